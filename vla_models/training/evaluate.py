"""Held-out evaluation: greedy plans for every scene and their PDM scores, beside the two baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vla_models.envs.navsim import check_plans, observe
from vla_models.errors import SceneError
from vla_models.inputs import VLAInput
from vla_models.scenes.scene import Scene
from vla_models.scoring.pdm import score
from vla_models.scoring.pdm.baselines import constant_velocity_plan
from vla_models.scoring.pdm.closed import reference_plan
from vla_models.scoring.pdm.score import Version
from vla_models.scoring.rewards import METRICS

if TYPE_CHECKING:
    from vla_models.interface import VLAInterface

BASELINES = {"constant_velocity": constant_velocity_plan, "pdm_closed": reference_plan}
"""Planners that need no model, by name: what every result is compared with."""


@dataclass(frozen=True)
class Evaluation:
    """One planner on S scenes."""

    plans: npt.NDArray[np.float32]
    """[S, 8, 3] ego frame."""
    scores: dict[str, npt.NDArray[np.float64]]
    """sub-score -> [S]; names are ``METRICS[version]``, "score" is the whole."""
    invalid_answers: int = 0
    """Answers that were no plan: all their sub-scores are 0."""

    def means(self) -> dict[str, float]:
        """Mean of every sub-score over the scenes."""
        return {name: float(values.mean()) for name, values in self.scores.items()}

    def arrays(self, name: str) -> dict[str, npt.NDArray[Any]]:
        """Flat arrays for an npz file: ``<name>_plans``, ``<name>_score``, ``<name>_nc``, …"""
        return {f"{name}_plans": self.plans, **{f"{name}_{key}": values for key, values in self.scores.items()}}


def evaluate_model(
    model: VLAInterface, scenes: Sequence[Scene], *, version: Version = "v1", threads: int = 1, batch_size: int = 64
) -> Evaluation:
    """The model's most likely plan for each scene, scored; an answer that is no plan scores 0 and is counted.

    Raises PlanError if the model's plan is not 8 poses, 0.5 s apart.
    """
    plans, planned = [np.zeros((0, 8, 3))], [np.zeros(0, dtype=bool)]
    for start in range(0, len(scenes), batch_size):
        part = [scenes[i] for i in range(start, min(start + batch_size, len(scenes)))]
        decided = model.predict(VLAInput.batch(observe(part)), deterministic=True)
        plans.append(check_plans(decided.waypoints, len(part)))
        planned.append(np.ones(len(part), dtype=bool) if decided.valid is None else np.asarray(decided.valid))
    scored = score_plans(scenes, np.concatenate(plans), version=version, threads=threads)
    good = np.concatenate(planned)
    scores = {name: np.where(good, values, 0.0) for name, values in scored.scores.items()}
    return Evaluation(scored.plans, scores, int((~good).sum()))


def evaluate_baseline(name: str, scenes: Sequence[Scene], *, version: Version = "v1", threads: int = 1) -> Evaluation:
    """A planner of ``BASELINES`` on the scenes."""
    plans = np.array([BASELINES[name](scene) for scene in scenes]).reshape(-1, 8, 3)
    return score_plans(scenes, plans, version=version, threads=threads)


def score_plans(
    scenes: Sequence[Scene], plans: npt.NDArray[Any], *, version: Version = "v1", threads: int = 1, batch_size: int = 256
) -> Evaluation:
    """Score one plan [S, 8, 3] for each scene."""
    if len(scenes) == 0:
        raise SceneError("there are no scenes to evaluate on; raise environment.heldout_scenes")
    plans = check_plans(plans, len(scenes))
    parts: dict[str, list[npt.NDArray[np.float64]]] = {name: [] for name in METRICS[version]}
    for start in range(0, len(scenes), batch_size):
        part = [scenes[i] for i in range(start, min(start + batch_size, len(scenes)))]
        scores = score(part, plans[start : start + len(part), None], version=version, threads=threads)
        for name, values in parts.items():
            values.append(np.asarray(getattr(scores, name), dtype=np.float64)[:, 0])
    return Evaluation(plans.astype(np.float32), {name: np.concatenate(values) for name, values in parts.items()})
