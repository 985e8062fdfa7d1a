"""From scores of frames to the numbers that NavSim v2.2 publishes: one plan a frame, S frames, plain arrays.

* One stage (``run_pdm_score_one_stage.py``): extended comfort compares each frame with the one before it in its log; the
  total is ``extended_score``; the published number is the mean over frames.
* Two stages (``run_pdm_score.py``, ``scene_aggregator.py``): a group is an original frame, the frame before it, and pairs of
  synthetic frames that start about where a plan ends. Each pair weighs the more, the nearer it starts to the end of the
  original frame's plan (a Gaussian). Per sub-score, stage one times the weighted mean of stage two, averaged over the current
  and the previous frame, then over the groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from vla_models.errors import PlanError, SceneError
from vla_models.geometry import from_frame
from vla_models.scenes.scene import DT, Scene
from vla_models.scoring.pdm.comfort import extended_comfort
from vla_models.scoring.pdm.filtered import extended_score
from vla_models.scoring.pdm.results import PDMScores

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

ADJACENT: Final = 0.55
"""Seconds: frames of a log that lie at most so far apart are neighbours (extended comfort wants less than this)."""
SIGMA_SQUARED: Final = 0.1
"""m², of the Gaussian that weighs second-stage frames."""
_NOTHING: Final = 1e-8  # a sum of weights up to this counts as 0 (np.isclose), and all weigh the same

COLUMNS: Final = ("nc", "dac", "ddc", "tlc", "ep", "ttc", "lk", "hc", "ec", "score")
"""Columns that are averaged: the sub-scores, extended comfort, and the total."""


@dataclass(frozen=True)
class Group:
    """One group of the two-stage mapping; numbers are rows."""

    now: int
    """The original frame."""
    previous: int
    """The original frame 0.5 s before."""
    second: IntArray
    """[K, 2] synthetic frames: one that follows ``now``, and the one 0.5 s before that, which follows ``previous``."""


@dataclass(frozen=True)
class TwoStage:
    """The published means, by column (``COLUMNS``)."""

    combined: dict[str, float]
    """Stage one times stage two; ``combined["score"]`` is the leaderboard's EPDMS."""
    stage_one: dict[str, float]
    stage_two: dict[str, float]


def groups_of(tokens: Sequence[str], mapping: Sequence[tuple[str, str, Sequence[tuple[str, str]]]]) -> list[Group]:
    """The official mapping (current token, previous token, pairs of second-stage tokens) in rows of ``tokens``.

    Raises SceneError for a token that is absent, naming it, or that has a part in more than one place.
    """
    row = {token: s for s, token in enumerate(tokens)}
    used = [t for now, previous, pairs in mapping for t in (now, previous, *(x for pair in pairs for x in pair))]
    absent = sorted(set(used) - set(row))
    if absent:
        raise SceneError(f"{len(absent)} tokens of the two-stage mapping have no score, the first: {absent[0]!r}; score them")
    twice = sorted(t for t in set(used) if used.count(t) > 1)
    if twice:
        raise SceneError(f"the two-stage mapping names {twice[0]!r} more than once; a frame belongs to one group")
    return [
        Group(row[now], row[previous], np.array([[row[a], row[b]] for a, b in pairs], dtype=np.int64).reshape(-1, 2))
        for now, previous, pairs in mapping
    ]


def adjacent_frames(logs: Sequence[str], times: npt.ArrayLike) -> IntArray:
    """Row of the frame before each frame in its log [S], -1 where there is none within 0.55 s; ``times`` [S] in seconds."""
    at = np.asarray(times, dtype=np.float64)
    previous = np.full(len(at), -1, dtype=np.int64)
    order = sorted(range(len(at)), key=lambda s: (logs[s], at[s]))
    for before, now in pairwise(order):
        if logs[before] == logs[now] and at[now] - at[before] <= ADJACENT:
            previous[now] = before
    return previous


def frame_comfort(states: FloatArray, times: npt.ArrayLike, previous: IntArray) -> FloatArray:
    """Extended comfort [S] in {0, 1} of driven ``states`` [S, 41, 11] against the frame before; NaN where there is none (-1).

    Raises PlanError, naming the rows, where two frames are not more than 0 and less than 0.55 s apart.
    """
    at = np.asarray(times, dtype=np.float64)
    out = np.full(len(states), np.nan)
    now = np.flatnonzero(previous >= 0)
    gap = at[now] - at[previous[now]]
    steps = np.rint(gap / DT).astype(np.int64)
    bad = now[~((gap > 0.0) & (gap < ADJACENT) & (steps > 0))]
    if len(bad):
        s = int(bad[0])
        raise PlanError(
            f"extended comfort of row {s} against row {previous[s]}: they are {at[s] - at[previous[s]]:.3f} s apart, expected "
            f"0.05 to {ADJACENT} s; correct the times (seconds) or the mapping"
        )
    for apart in np.unique(steps):
        rows = now[steps == apart]
        out[rows] = extended_comfort(states[rows], states[previous[rows]], apart=int(apart))
    return out


def gaussian_weights(endpoint: npt.ArrayLike, starts: npt.ArrayLike, sigma_squared: float = SIGMA_SQUARED) -> FloatArray:
    """Weights [K], sum 1, of frames that start at ``starts`` [K, 2] after a plan that ends at ``endpoint`` [2] (metres, one
    frame): exp(-d² / (2 sigma²)); all the same where every one of them is practically 0."""
    away = np.asarray(starts, dtype=np.float64) - np.asarray(endpoint, dtype=np.float64)
    weights = np.exp(-(away**2).sum(axis=1) / (2.0 * sigma_squared))
    total = weights.sum()
    if np.isnan(total) or total <= _NOTHING:
        return np.full(len(weights), 1.0 / len(weights)) if len(weights) else weights
    return np.asarray(weights / total)


def endpoints(scenes: Sequence[Scene], plans: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Where plans [S, 8, 3] end, and where they start (the rear axle), both global [S, 2]."""
    last = np.asarray(plans, dtype=np.float64)[:, -1, :2]
    ends = [from_frame(last[s], scene.ego) + scene.origin for s, scene in enumerate(scenes)]
    return np.array(ends).reshape(-1, 2), np.array([scene.ego[:2] + scene.origin for scene in scenes]).reshape(-1, 2)


def final_columns(scores: PDMScores, comfort: FloatArray) -> dict[str, FloatArray]:
    """``COLUMNS`` [S] of version-2 ``scores`` of one plan a frame (human-filtered, as the official scripts do it, or not) with
    extended ``comfort`` [S]."""
    if scores.score.shape[1] != 1:
        raise PlanError(f"scores are of {scores.score.shape[1]} plans a frame; published numbers are those of one")
    total = extended_score(scores, comfort[:, None])[:, 0]
    return {**{name: values[:, 0] for name, values in scores.terms().items()}, "ec": comfort, "score": total}


def one_stage_average(columns: Mapping[str, FloatArray]) -> dict[str, float]:
    """Mean of each column over the frames that have it (the official ``average_all_frames`` row)."""
    return {name: _mean(columns[name]) for name in COLUMNS}


def two_stage_comfort(states: FloatArray, times: npt.ArrayLike, groups: Sequence[Group]) -> FloatArray:
    """Extended comfort [S] of all frames of ``groups``: that of a pair counts for both of its frames. NaN elsewhere."""
    previous = np.full(len(states), -1, dtype=np.int64)
    for group in groups:
        previous[group.now] = group.previous
        previous[group.second[:, 0]] = group.second[:, 1]
    comfort = frame_comfort(states, times, previous)
    now = np.flatnonzero(previous >= 0)
    comfort[previous[now]] = comfort[now]
    return comfort


def two_stage_weights(
    ends: FloatArray, starts: FloatArray, groups: Sequence[Group], sigma_squared: float = SIGMA_SQUARED
) -> FloatArray:
    """Weight [S] of each frame within its group: 1 in stage one, Gaussian in stage two, NaN outside all groups."""
    weights = np.full(len(ends), np.nan)
    for group in groups:
        weights[[group.now, group.previous]] = 1.0
        for k, first in enumerate((group.now, group.previous)):
            weights[group.second[:, k]] = gaussian_weights(ends[first], starts[group.second[:, k]], sigma_squared)
    return weights


def two_stage_average(columns: Mapping[str, FloatArray], weights: FloatArray, groups: Sequence[Group]) -> TwoStage:
    """The published means over ``groups``; NaN in a frame's column makes its group NaN, and such groups are left out."""
    one: list[FloatArray] = []
    two: list[FloatArray] = []
    table = np.stack([columns[name] for name in COLUMNS])
    for group in groups:
        for k, first in enumerate((group.now, group.previous)):
            rows = group.second[:, k]
            total = weights[rows].sum()
            one.append(table[:, first])
            two.append((table[:, rows] * weights[rows]).sum(axis=1) / (total if total != 0.0 else np.nan))
    first_stage, second_stage = np.array(one).reshape(-1, len(table)), np.array(two).reshape(-1, len(table))
    both = (first_stage * second_stage).reshape(-1, 2, len(table)).mean(axis=1)
    means = [{name: _mean(part[:, j]) for j, name in enumerate(COLUMNS)} for part in (both, first_stage, second_stage)]
    return TwoStage(*means)


def _mean(values: FloatArray) -> float:
    """Mean without NaN; NaN of nothing."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
