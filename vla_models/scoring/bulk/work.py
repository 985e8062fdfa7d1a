"""A share of the work: some scenes with their proposals, loaded and scored, one row a proposal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_models.errors import PlanError, SceneError
from vla_models.scoring.bulk.sources import Job
from vla_models.scoring.bulk.table import joined
from vla_models.scoring.pdm import PDMScores, human_filtered, score
from vla_models.scoring.pdm.score import Version

Columns = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Options:
    """What the scores of a scene depend on besides the scene and its proposals."""

    version: Version = "v1"
    human_filter: bool = False
    """v2: also the sub-scores after the official human filter, as ``f_nc`` …"""


def score_share(jobs: Sequence[Job], options: Options) -> Columns:
    """The rows of some jobs. What cannot be scored has NaN and a text in ``error``; one row where N is not known."""
    return joined([_score(job, options) for job in jobs])


def _score(job: Job, options: Options) -> Columns:
    count = 1
    try:
        if job.plans is None:
            raise PlanError(f"no proposals: {job.problem}")
        plans = job.plans.load()
        count = len(plans)
        scene = job.scene.load()
        scores = score(scene, plans, options.version)
        columns = columns_of(scores)
        if options.human_filter:
            columns |= {f"f_{name}": values[0] for name, values in human_filtered(scene, scores).terms().items()}
    except (PlanError, SceneError) as error:
        return _rows(job, count, {"score": np.full(count, np.nan)}, np.full(count, str(error)))
    return _rows(job, count, columns, np.full(count, ""))


def _rows(job: Job, count: int, columns: Columns, errors: npt.NDArray[np.str_]) -> Columns:
    return {"token": np.full(count, job.scene.name), "proposal": np.arange(count), **columns, "error": errors}


def columns_of(scores: PDMScores) -> Columns:
    """The numbers of one scene's scores, each [N], the total first."""
    count = scores.score.shape[1]
    columns = {"score": scores.score[0]} | {name: values[0] for name, values in scores.terms().items()}
    columns |= {name: getattr(scores, name)[0] for name in ("mult", "progress_raw", "nc_idx", "ttc_idx")}
    return columns | {name: np.full(count, getattr(scores, name)[0]) for name in ("ref_progress_raw", "ref_mult")}
