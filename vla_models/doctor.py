"""What is installed, what works, and the command that mends the rest: the checks of ``vla-models doctor``."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from vla_models.files import cache_dir

Status = Literal["ok", "missing", "broken", "optional"]
"""optional: not there, and nothing that is there needs it."""

CORE = ("torch", "numpy", "numba", "pydantic", "PyYAML", "pillow", "gymnasium", "safetensors", "pyarrow", "typer", "rich")
"""Distributions without which the package does not work."""
EXTRAS = {
    "carla": ("roads of the CARLA towns (map reader, no server)", "pip install carla"),
    "py123d": ("roads of the CARLA towns (OpenDRIVE files)", "pip install --no-deps py123d"),
    "panda3d": ("camera images", "pip install panda3d"),
    "matplotlib": ("report", "pip install matplotlib"),
    "jinja2": ("report", "pip install jinja2"),
    "tensorboard": ("learning curves in TensorBoard", "pip install tensorboard"),
}
"""distribution -> what it is for, and how to get it; the pinned versions are in requirements/."""
FRAMEWORK_PACKAGES = {"areal": "areal", "rlinf": "rlinf", "verl": "verl", "siirl": "siirl"}
"""framework -> distribution."""
MIN_FREE_GIB = 2.0
"""Free space below which generated scenes may not fit."""


@dataclass(frozen=True)
class Check:
    """One line of the doctor's report."""

    group: str
    name: str
    status: Status
    detail: str
    fix: str = ""
    """The command (or step) that mends it; empty where nothing is wrong."""


def examine(quick: bool = False) -> Iterator[Check]:
    """All checks, one after the other; ``quick`` leaves out those that do real work (seconds; a minute on a fresh install)."""
    yield from _machine()
    yield from _packages()
    yield from _frameworks()
    if not quick:
        yield from _works()


def _machine() -> Iterator[Check]:
    yield Check("machine", "Python", "ok", f"{platform.python_version()}, {platform.system()} {platform.machine()}")
    yield Check("machine", "CPU", "ok", f"{len(os.sched_getaffinity(0))} cores")
    folder = cache_dir()
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(existing).free / 2**30
    if not os.access(existing, os.W_OK):
        yield Check("machine", "cache", "broken", f"{folder} cannot be written", "export VLA_MODELS_CACHE=/a/folder/you/own")
    elif free < MIN_FREE_GIB:
        yield Check("machine", "cache", "broken", f"{folder}: {free:.1f} GiB free", "export VLA_MODELS_CACHE=/a/larger/disk")
    else:
        yield Check("machine", "cache", "ok", f"{folder} ({free:.0f} GiB free)")


def _packages() -> Iterator[Check]:
    for name in CORE:
        version = installed_version(name)
        yield Check(
            "packages",
            name,
            "ok" if version else "missing",
            version or "not installed",
            "" if version else f"pip install {name}",
        )
    for name, (purpose, fix) in EXTRAS.items():
        version = installed_version(name)
        detail = f"{version or 'not installed'} · {purpose}"
        yield Check("packages", name, "ok" if version else "missing", detail, "" if version else fix)
    if installed_version("torchvision"):
        try:
            importlib.import_module("torchvision")
        except Exception as e:
            yield Check(
                "packages", "torchvision", "broken", f"does not fit this torch: {_short(e)}", "pip uninstall torchvision"
            )


def _frameworks() -> Iterator[Check]:
    from vla_models.frameworks import launch_module

    yield Check("frameworks", "local", "ok", "built in")
    for framework, package in FRAMEWORK_PACKAGES.items():
        version = installed_version(package)
        if launch_module(framework) is None:
            yield Check("frameworks", framework, "optional", "not in this version of vla_models")
        elif version is None:
            yield Check("frameworks", framework, "optional", "not installed", f"make env-{framework}")
        else:
            yield Check("frameworks", framework, "ok", version)


def _works() -> Iterator[Check]:
    """The quick start's chain, link by link; after the first that breaks the rest is not tried."""
    for name, link in _CHAIN:
        start = time.monotonic()
        try:
            detail = link()
        except Exception as e:  # whatever it is, the doctor reports it and goes on
            yield Check("works", name, "broken", _short(e), "see the lines above, or report it with this output")
            return
        yield Check("works", name, "ok", f"{detail} ({time.monotonic() - start:.1f} s)")


def _check_torch() -> str:
    import torch

    if not bool(torch.isfinite(torch.ones(8, 8) @ torch.ones(8, 8)).all()):
        raise RuntimeError("a matrix product is not finite")
    return f"CUDA: {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else "CPU only"


def _check_roads() -> str:
    from vla_models.scenes.towns import TOWNS, load_town

    load_town(TOWNS[0])
    return f"{TOWNS[0]} of {len(TOWNS)} towns"


def _check_drive() -> str:
    """Two scenes with pictures, the default model's plans for them, their scores."""
    from vla_models.envs.navsim import NavSimEnv
    from vla_models.inputs import VLAInput
    from vla_models.model_registry import create_model
    from vla_models.render.camera import CameraSpec
    from vla_models.scenes.procedural import ProceduralSpec, generate

    scenes = generate(ProceduralSpec(towns=("Town01",), count=2, seed=0, camera=CameraSpec()))
    env = NavSimEnv(2, scenes=scenes)
    observation, _ = env.reset(seed=0)
    plans = create_model("tiny_vla").predict(VLAInput.batch(observation), deterministic=True).waypoints
    _, rewards, _, _, _ = env.step(plans)
    return f"scene, camera, tiny_vla, score: {', '.join(f'{r:.2f}' for r in rewards)}"


def _check_score() -> str:
    """Every kind of score once, so that its kernels are compiled and kept on disk: the next first call takes no second."""
    from vla_models.render.camera import CameraSpec
    from vla_models.scenes.procedural import ProceduralSpec, generate
    from vla_models.scoring.pdm import extended_comfort, human_filtered, score
    from vla_models.scoring.pdm.baselines import constant_velocity_plan
    from vla_models.scoring.pdm.drive import TRAFFIC

    scene = generate(ProceduralSpec(towns=("Town01",), count=2, seed=0, camera=CameraSpec()))[0]  # those of the drive above
    plans = constant_velocity_plan(scene)[None]
    found = [("v1", score(scene, plans, "v1"))]
    for traffic in TRAFFIC:
        found.append((f"v2 {traffic}", score(scene, plans, "v2", states=True, traffic=traffic)))
    human_filtered(scene, found[1][1])
    states = found[1][1].states
    assert states is not None
    extended_comfort(states[0], states[0])
    return ", ".join(f"{name} {scores.score[0, 0]:.2f}" for name, scores in found)


_CHAIN: tuple[tuple[str, Callable[[], str]], ...] = (
    ("torch", _check_torch),
    ("roads", _check_roads),
    ("a drive in NavSim", _check_drive),
    ("the PDM score", _check_score),
)


def installed_version(distribution: str) -> str | None:
    """Version of an installed distribution, or None (it is not imported)."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
