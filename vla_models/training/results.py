"""What a run leaves about how it drives: ``heldout.npz``, a value a scene, and ``summary.json``, the means."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vla_models.files import atomic_path
from vla_models.training.practice import Practice, Result

if TYPE_CHECKING:
    from vla_models.config import VLAConfig


def keep_results(run_dir: Path, practice: Practice, results: Mapping[str, Result]) -> None:
    """Put results into ``heldout.npz``, beside those that are in there already."""
    path = run_dir / "heldout.npz"
    arrays: dict[str, npt.NDArray[Any]] = {}
    if path.exists():
        with np.load(path) as old:
            arrays = dict(old)
    arrays |= practice.heldout_arrays()
    for name, result in results.items():
        arrays |= result.arrays(name)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # its stub takes keywords for its own options


def summarise(config: VLAConfig, run_dir: Path, practice: Practice, wall_s: float) -> dict[str, Any]:
    """Write ``summary.json`` from ``heldout.npz``; returns what is in there."""
    with np.load(run_dir / "heldout.npz") as arrays:
        means = _means(arrays, practice.drivers)
    summary = {
        "framework": config.framework,
        "env": config.environment.type,
        "seed": config.seed,
        "heldout": {name: values.pop("score") for name, values in means.items()},
        "subscores": means,
        "wall_s": round(wall_s, 1),
        "versions": _versions() | {"score": practice.score},
    }
    with atomic_path(run_dir / "summary.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def _means(arrays: Any, drivers: Sequence[str]) -> dict[str, dict[str, float]]:
    """driver -> score -> mean over the scenes that have one (a score that none has is left out)."""
    means: dict[str, dict[str, float]] = {}
    for name in drivers:
        for key in arrays.files:
            if key.startswith(f"{name}_") and not key.endswith("_plans"):
                known = arrays[key][np.isfinite(arrays[key])]
                if len(known):
                    means.setdefault(name, {})[key.removeprefix(f"{name}_")] = float(known.mean())
    return means


def _versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for package in ("vla_models", "torch", "numpy", "numba", "gymnasium"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a source tree that was never installed
            found[package] = "not installed"
    return found
