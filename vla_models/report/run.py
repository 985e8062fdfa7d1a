"""A run folder read for the report: every part is optional except ``summary.json``, and what is missing is named."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vla_models.errors import SceneError, VLAModelsError
from vla_models.scenes.scene import Scene

PLANNERS: Final[dict[str, tuple[str, str]]] = {
    "constant_velocity": ("Constant velocity", "keeps speed and heading"),
    "imitation": ("Imitation", "the model before reinforcement learning"),
    "rl": ("Reinforcement learning", "the model at the end of the run"),
    "pdm_closed": ("PDM-Closed", "rule-based planner that knows the true scene"),
}
"""Planners in the order of the tables: name in the files -> (title, what it is)."""

DRIVERS: Final[dict[str, tuple[str, str]]] = {
    "constant_velocity": ("Constant velocity", "keeps the speed it has, which at the start is none"),
    "imitation": PLANNERS["imitation"],
    "rl": PLANNERS["rl"],
    "rule_based": ("Rule-based", "careful driver that knows the true world"),
}
"""The same for runs in Bench2Drive."""

ROUTE_NUMBERS: Final[dict[str, str]] = {
    "driving_score": "driving score",
    "success": "success",
    "route_completion": "route completion",
    "infraction_penalty": "penalty",
    "efficiency": "efficiency",
    "smoothness": "smoothness",
}
"""Bench2Drive's numbers of a driver: name in the files -> title."""

SUB_SCORES: Final[dict[str, tuple[str, str]]] = {
    "nc": ("no collision", "at-fault collisions"),
    "dac": ("drivable area", "leaving the drivable area"),
    "ddc": ("direction", "driving against the traffic"),
    "tlc": ("traffic lights", "running a red light"),
    "ttc": ("time to collision", "coming too close to a collision"),
    "ep": ("progress", "too little progress"),
    "lk": ("lane keeping", "straying from the lane"),
    "comfort": ("comfort", "harsh driving"),
}
"""Sub-scores in the order in which a failure is named: name -> (what it measures, what its loss means)."""

SIGNS: Final[dict[str, str]] = {"progress_raw": "metres along the route", "reverse": "metres driven backwards"}
"""Numbers that are no sub-scores but show a reward that is being gamed: name -> what it is."""


class RunError(VLAModelsError, FileNotFoundError):
    """A run folder lacks what a report cannot do without."""


@dataclass
class Heldout:
    """``heldout.npz``: plans and scores on n held-out scenes, or scores alone on n held-out routes."""

    tokens: list[str]
    plans: dict[str, npt.NDArray[np.float32]]
    """planner -> [n, 8, 3]"""
    scores: dict[str, dict[str, npt.NDArray[np.float64]]]
    """planner -> sub-score or "score" -> [n]; NaN for a route whose world failed."""
    scenarios: list[str] = field(default_factory=list)
    """Bench2Drive: what each route is about."""
    store: Any = None
    """The ``SceneStore`` with the scenes, or None where it cannot be opened."""

    def scene(self, row: int) -> Scene | None:
        """The scene of a row, or None where the store lacks it."""
        if self.store is None:
            return None
        try:
            found: Scene = self.store.by_token(self.tokens[row])
        except SceneError:
            return None
        return found


@dataclass
class Run:
    """What a run folder holds."""

    path: Path
    summary: dict[str, Any]
    metrics: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """phase -> rows of ``metrics.jsonl`` in the order of their steps"""
    config: str | None = None
    heldout: Heldout | None = None
    missing: list[str] = field(default_factory=list)
    """What could not be read, one sentence each."""

    @property
    def on_routes(self) -> bool:
        """Whether the run drove Bench2Drive's routes (else NavSim's scenes)."""
        return self.summary.get("env") == "bench2drive"

    @property
    def planners(self) -> dict[str, tuple[str, str]]:
        """Who is compared: ``PLANNERS`` or ``DRIVERS``."""
        return DRIVERS if self.on_routes else PLANNERS

    def series(self, phase: str, key: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Steps and values of a number of a phase, rows without it left out."""
        rows = [r for r in self.metrics.get(phase, []) if isinstance(r.get("step"), (int, float)) and _is_number(r.get(key))]
        return np.array([r["step"] for r in rows], float), np.array([r[key] for r in rows], float)

    @property
    def version(self) -> str:
        """Which PDM score the run was measured by: "v1" or "v2"."""
        versions = self.summary.get("versions")
        named = versions.get("score") if isinstance(versions, dict) else None
        if named in ("v1", "v2"):
            return str(named)
        return "v2" if any(self.sub_score(planner, "tlc") is not None for planner in PLANNERS) else "v1"

    def score(self, planner: str) -> float | None:
        """Mean held-out score of a planner."""
        return _number(self.summary["heldout"].get(planner))

    def sub_score(self, planner: str, key: str) -> float | None:
        """Mean held-out sub-score, or one of ``SIGNS``, of a planner."""
        found = self.summary.get("subscores")
        scores = found.get(planner) if isinstance(found, dict) else None
        return _number(scores.get(key)) if isinstance(scores, dict) else None


def read_run(run_dir: Path) -> Run:
    """Read a run folder. Raises ``RunError`` if ``summary.json`` is missing or unusable; all else may be missing."""
    run_dir = Path(run_dir)
    path = run_dir / "summary.json"
    if not path.is_file():
        raise RunError(
            f"there is no {path}: a run's report needs it. It is written when training ends; "
            f"finish the run with `vla-models train {run_dir / 'config.yaml'} --resume {run_dir}`"
        )
    try:
        summary = json.loads(path.read_text())
    except ValueError as error:
        raise RunError(f"{path} is not JSON ({error}); finish the run again to rewrite it") from error
    if not isinstance(summary, dict) or not isinstance(summary.get("heldout"), dict):
        raise RunError(f'{path} has no "heldout" scores; finish the run again to rewrite it')
    run = Run(run_dir, summary)
    for name in run.planners:
        if run.score(name) is None:
            run.missing.append(f"summary.json has no held-out score of {name}.")
    config = run_dir / "config.yaml"
    if config.is_file():
        run.config = config.read_text(errors="replace")
    else:
        run.missing.append("config.yaml is missing: the settings of the run are unknown.")
    _read_metrics(run)
    _read_heldout(run)
    return run


def _number(value: Any) -> float | None:
    return float(value) if _is_number(value) else None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and bool(np.isfinite(value))


def _read_metrics(run: Run) -> None:
    path = run.path / "metrics.jsonl"
    if not path.is_file():
        run.missing.append("metrics.jsonl is missing: there are no learning curves.")
        return
    bad = 0
    for line in path.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
            run.metrics.setdefault(str(row["phase"]), []).append(row)
        except (ValueError, KeyError, TypeError):
            bad += bool(line.strip())
    for rows in run.metrics.values():
        rows.sort(key=lambda row: row["step"] if _is_number(row.get("step")) else 0)
    if bad:
        run.missing.append(f"{bad} line(s) of metrics.jsonl could not be read and are left out.")


def _read_heldout(run: Run) -> None:
    path = run.path / "heldout.npz"
    if not path.is_file():
        run.missing.append("heldout.npz is missing: there are no pictures of scenes.")
        return
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        tokens = [str(token) for token in arrays["tokens"]]
    except Exception as error:  # a damaged zip raises many kinds
        run.missing.append(f"heldout.npz could not be read ({type(error).__name__}: {error}): there are no pictures of scenes.")
        return
    plans, scores = {}, {}
    for name in run.planners:
        plan = arrays.get(f"{name}_plans")
        if plan is not None and plan.shape[:1] == (len(tokens),) and plan.ndim == 3:
            plans[name] = plan
        found = {key: arrays.get(f"{name}_{key}") for key in ("score", *(ROUTE_NUMBERS if run.on_routes else SUB_SCORES))}
        scores[name] = {k: np.asarray(v, float) for k, v in found.items() if v is not None and v.shape == (len(tokens),)}
    run.heldout = Heldout(tokens, plans, scores)
    if run.on_routes:
        run.heldout.scenarios = [str(kind) for kind in arrays.get("scenarios", ())]
        return
    where = str(arrays.get("scene_store", ""))
    if not where:
        run.missing.append("heldout.npz does not name its scene file: the scenes cannot be drawn.")
        return
    from vla_models.scenes.store import SceneStore

    try:
        run.heldout.store = SceneStore.open(Path(where))
    except SceneError as error:
        run.missing.append(f"The held-out scenes cannot be drawn: {error}")
