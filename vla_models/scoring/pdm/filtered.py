"""Version 2 beyond ``score``: the human filter in its two official forms, and EPDMS with extended comfort.

NavSim v2.2 knows two totals of a plan (named here as there):

* the ``pdm_score`` column: leaves extended comfort out (weights sum to 14) and is not touched by the human filter;
  this is ``PDMScores.score``;
* the final ``score`` of the evaluation scripts (their ``compute_final_scores``): over human-filtered sub-scores and with
  extended comfort (weights sum to 16, or 14 where a frame has no previous one); this is ``extended_score``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from vla_models.errors import SceneError
from vla_models.scoring.pdm.drive import Scratch, Traffic, rate_plans
from vla_models.scoring.pdm.prepare import prepared
from vla_models.scoring.pdm.rate import (
    DAC_ROW,
    DDC_ROW,
    LK_ROW,
    NC_ROW,
    TABLE_ROWS,
    TLC_ROW,
    TTC_ROW,
)  # fmt: skip
from vla_models.scoring.pdm.results import PDMScores
from vla_models.scoring.pdm.score import AnyScene

FloatArray = npt.NDArray[np.float64]

_FILTERED: Final = {"nc": NC_ROW, "dac": DAC_ROW, "ddc": DDC_ROW, "tlc": TLC_ROW, "ttc": TTC_ROW, "lk": LK_ROW}
"""Sub-scores that the filter can raise. Not progress and history comfort: the human is scored alone and without history,
which gives 1 in both."""


def human_terms(scene: AnyScene, traffic: Traffic = "log_replay") -> dict[str, float] | None:
    """The recorded human's own sub-scores (nc dac ddc tlc ttc lk), as the filter sees them; None where there is no human."""
    ready = prepared(scene)
    if ready.human is None:
        return None
    table = np.zeros((TABLE_ROWS, 1))
    scratch = Scratch(1)
    rate_plans(ready, ready.human, "v2", traffic, scratch, table, np.zeros(1))
    if scratch.status[0] != 0:
        raise SceneError(f"scene {ready.token!r} has a human whose reactive traffic gets stuck; filter in recorded traffic")
    return {name: float(table[row, 0]) for name, row in _FILTERED.items()}


def human_filtered(scenes: AnyScene | Sequence[AnyScene], scores: PDMScores) -> PDMScores:
    """``scores`` (v2) after the official human filter: sub-scores become 1 in which the scene's recorded human got 0.

    The human drives in the same kind of traffic. ``mult`` follows; ``score`` stays as it was, because the official
    ``pdm_score`` column does. The total over filtered sub-scores is ``extended_score``. Scenes without a human plan, and rows
    that are not valid, stay as they are.
    """
    if scores.tlc is None or scores.lk is None:
        raise ValueError("the human filter belongs to version 2 of the PDM score; score with version='v2'")
    given: list[AnyScene] = [scenes] if isinstance(scenes, AnyScene) else list(scenes)
    if tuple(s.token for s in given) != scores.tokens:
        raise SceneError("these are not the scenes that the scores belong to; give the same ones in the same order")
    terms = {name: getattr(scores, name).copy() for name in _FILTERED}
    for s, scene in enumerate(given):
        human = human_terms(scene, scores.traffic) if scores.valid[s].any() else None
        for name, value in (human or {}).items():
            if value == 0.0:
                terms[name][s, scores.valid[s]] = 1.0
    return replace(scores, **terms, mult=terms["nc"] * terms["dac"] * terms["ddc"] * terms["tlc"])


def extended_score(scores: PDMScores, extended_comfort: npt.ArrayLike) -> FloatArray:
    """EPDMS [S, N] of version-2 ``scores`` (human-filtered or not) with extended comfort [S, N] included, as the official
    ``compute_final_scores`` computes it: mult (5 EP + 5 TTC + 2 LK + 2 HC + 2 EC) / 16.

    Where extended comfort is NaN (no previous frame) it is left out: mult (5 EP + 5 TTC + 2 LK + 2 HC) / 14, as in the
    official one-stage script.
    """
    if scores.lk is None:
        raise ValueError("EPDMS belongs to version 2 of the PDM score; score with version='v2'")
    comfort = np.broadcast_to(np.asarray(extended_comfort, dtype=np.float64), scores.score.shape)
    known = ~np.isnan(comfort)
    total = 5.0 * scores.ep + 5.0 * scores.ttc + 2.0 * scores.lk + 2.0 * scores.comfort
    total = total + 2.0 * np.where(known, comfort, 0.0)
    return np.asarray(scores.mult * (total / np.where(known, 16.0, 14.0)))
