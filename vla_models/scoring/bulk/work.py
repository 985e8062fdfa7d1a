"""A share of the work: some scenes with their proposals, loaded and scored, one row a proposal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_models.errors import PlanError, SceneError
from vla_models.scenes.scene import Scene
from vla_models.scoring.bulk.sources import Job
from vla_models.scoring.bulk.table import joined
from vla_models.scoring.pdm import AbsentScene, PDMScores, extended_score, human_filtered, score
from vla_models.scoring.pdm.drive import Traffic, Version

Columns = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Options:
    """What the scores of a scene depend on besides the scene and its proposals."""

    version: Version = "v1"
    traffic: Traffic = "log_replay"
    """How other agents move, see ``score``."""
    human_filter: bool = False
    """v2: also the sub-scores after the official human filter, as ``f_nc`` …, and the total over them, ``f_score``."""


def score_share(jobs: Sequence[Job], options: Options) -> Columns:
    """The rows of some jobs. What cannot be scored has NaN and a text in ``error``; one row where N is not known."""
    return joined([_score(job, options) for job in jobs])


def _score(job: Job, options: Options) -> Columns:
    name = job.scene.name
    try:
        if job.plans is None:
            raise PlanError(f"no proposals: {job.problem}")
        plans = job.plans.load()
    except PlanError as error:
        nothing = {"score": np.full(1, np.nan)}
        return {"token": np.array([name]), "proposal": np.zeros(1, np.int64), **nothing, "error": np.array([str(error)])}
    scene: Scene | AbsentScene
    try:
        scene = job.scene.load()
    except SceneError as error:
        scene = AbsentScene(name, str(error))
    scores = score(scene, plans, options.version, on_error="mark", traffic=options.traffic)
    columns = columns_of(scores)
    errors = _errors(scores)
    if options.human_filter:
        try:
            filtered = human_filtered(scene, scores)
        except SceneError as error:  # the traffic around the human gets stuck
            columns, errors = {"score": np.full(len(plans), np.nan)}, np.full(len(plans), str(error))
        else:
            columns |= {f"f_{name}": values[0] for name, values in filtered.terms().items()}
            columns |= {"f_mult": filtered.mult[0], "f_score": extended_score(filtered, np.nan)[0]}
    return {"token": np.full(len(plans), name), "proposal": np.arange(len(plans)), **columns, "error": errors}


def columns_of(scores: PDMScores) -> Columns:
    """The numbers of one scene's scores, each [N], the total first."""
    columns: Columns = {"score": scores.score[0]} | {name: values[0] for name, values in scores.terms().items()}
    columns |= {name: getattr(scores, name)[0] for name in ("mult", "progress_raw", "reverse", "nc_idx", "ttc_idx")}
    for name in ("ref_progress_raw", "ref_mult"):
        columns[name] = np.broadcast_to(getattr(scores, name)[0], columns["score"].shape).copy()
    return columns


def _errors(scores: PDMScores) -> npt.NDArray[np.str_]:
    """[N] why each row has no score; empty where it has one."""
    texts = [""] * scores.score.shape[1]
    for problem in scores.problems:
        for row in range(len(texts)) if problem.row is None else [problem.row]:
            texts[row] = problem.message
    return np.array(texts)
