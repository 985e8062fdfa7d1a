"""NavSim's PDM score of many plans in many scenes: ``score``.

Version 1 is NavSim v1.1, version 2 is v2.2 with log-replayed traffic. Every plan is scored with the scene's reference as
the official code scores a pair [PDM-Closed, plan]: only progress couples the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final, Literal

import numba
import numpy as np
import numpy.typing as npt

from vla_models.errors import PlanError, SceneError, did_you_mean
from vla_models.scenes.scene import PLAN_STEPS, Scene
from vla_models.scoring.pdm.area import Areas, RedAreas, area_kernel, compliance_kernel, red_light_kernel
from vla_models.scoring.pdm.collide import (
    MULTIPLE_LANES,
    NON_DRIVABLE,
    ONCOMING,
    Agents,
    collision_kernel,
    footprint_kernel,
    time_to_collision_kernel,
)
from vla_models.scoring.pdm.comfort import CENTER_LEVER, NO_PAST, comfort_kernel, operators
from vla_models.scoring.pdm.prepare import PreparedScene, prepared
from vla_models.scoring.pdm.progress import PROGRESS_THRESHOLD, Line, lane_keeping_kernel, progress_kernel
from vla_models.scoring.pdm.track import STEPS, VELOCITY_OPERATOR, interpolate_kernel, owned, track_kernel

FloatArray = npt.NDArray[np.float64]
Version = Literal["v1", "v2"]

VERSIONS: Final = ("v1", "v2")

_NC, _DAC, _DDC, _TLC, _TTC, _LK, _COMFORT, PROGRESS_ROW, _NC_INDEX, _TTC_INDEX, MULT_ROW, _EP, SCORE_ROW = range(13)
TABLE_ROWS: Final = 13
"""Rows of the kernels' result table [13, N]."""


@dataclass(frozen=True)
class PDMScores:
    """Scores of S scenes x N plans; arrays are float64 [S, N] unless said otherwise. Sub-scores lie in [0, 1], 1 is good."""

    version: str
    """"v1" or "v2"."""
    tokens: tuple[str, ...]
    """[S] the scenes."""
    score: FloatArray
    """The official total. v2: the ``pdm_score`` column, which leaves extended comfort out and is not human-filtered."""
    nc: FloatArray
    """No at-fault collision: 0, 1/2 (an object was hit), 1."""
    dac: FloatArray
    """Drivable area compliance: 0, 1."""
    ddc: FloatArray
    """Driving direction compliance: 0, 1/2, 1 (v1: reported, weight 0)."""
    tlc: FloatArray | None
    """Traffic light compliance: 0, 1; None in v1."""
    ep: FloatArray
    """Ego progress relative to the better of plan and reference."""
    ttc: FloatArray
    """Time to collision within bound: 0, 1."""
    lk: FloatArray | None
    """Lane keeping: 0, 1; None in v1."""
    comfort: FloatArray
    """Comfort (v1) or history comfort (v2): 0, 1."""
    mult: FloatArray
    """Product of the multiplicative terms: nc dac (v1), nc dac ddc tlc (v2)."""
    progress_raw: FloatArray
    """Metres along the route's centre line."""
    nc_idx: FloatArray
    """First step (0.1 s) of an at-fault collision, or inf."""
    ttc_idx: FloatArray
    """First step that violates time to collision, or inf."""
    ref_progress_raw: FloatArray
    """[S] the reference's metres along the centre line."""
    ref_mult: FloatArray
    """[S] the reference's multiplicative product."""
    states: FloatArray | None = None
    """[S, N, 41, 11] driven states in the scenes' local frames, on request."""
    ego_areas: npt.NDArray[np.bool_] | None = None
    """[S, N, 41, 3] in several lanes, off the drivable area, against the traffic; on request."""

    def terms(self) -> dict[str, FloatArray]:
        """The sub-scores by their short names (v1 has ``comfort``, v2 ``hc``, ``tlc`` and ``lk``), without the total."""
        terms = {"nc": self.nc, "dac": self.dac, "ddc": self.ddc, "ep": self.ep, "ttc": self.ttc}
        if self.tlc is None or self.lk is None:
            return {**terms, "comfort": self.comfort}
        return {**terms, "tlc": self.tlc, "lk": self.lk, "hc": self.comfort}


@numba.njit(cache=True, nogil=True, error_model="numpy")
def rate_kernel(
    states: FloatArray, agents: Agents, areas: Areas, red_areas: RedAreas, line: Line, past: FloatArray, has_past: bool,
    lever: float, operator: FloatArray, version: int, boxes: FloatArray, flags: npt.NDArray[np.uint8], table: FloatArray,
) -> None:  # fmt: skip
    """Rate N driven plans, ``states`` [N, 41, 11], in all that does not depend on the reference.

    Writes ego ``boxes`` [N, 41, 5], area ``flags`` [N, 41] and ``table`` [13, N] but for its last two rows (EP and total).
    """
    footprint_kernel(states, boxes)
    area_kernel(states, boxes, areas, flags)
    collision_kernel(states, boxes, flags, agents, version, table[_NC], table[_NC_INDEX])
    time_to_collision_kernel(states, boxes, flags, agents, version, table[_TTC], table[_TTC_INDEX])
    compliance_kernel(boxes, flags, version, table[_DAC], table[_DDC])
    progress_kernel(boxes, line, table[PROGRESS_ROW])
    if has_past:
        comfort_kernel(states, past, operator, lever, table[_COMFORT])
    else:
        table[_COMFORT, :] = 1.0
    if version == 1:
        table[_TLC, :] = 1.0
        table[_LK, :] = 1.0
    else:
        red_light_kernel(boxes, areas, red_areas, table[_TLC])
        lane_keeping_kernel(boxes, flags, line, table[_LK])
    for n in range(states.shape[0]):
        mult = table[_NC, n] * table[_DAC, n]
        table[MULT_ROW, n] = mult if version == 1 else mult * table[_DDC, n] * table[_TLC, n]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def total_kernel(table: FloatArray, version: int, ref_progress: float, ref_mult: float) -> None:
    """The last rows of ``table`` [13, N]: progress relative to the better of plan and reference, and the weighted total."""
    for n in range(table.shape[1]):
        mult, progress = table[MULT_ROW, n], table[PROGRESS_ROW, n]
        best = max(progress * mult, ref_progress * ref_mult)
        if version == 1:
            ep = progress * mult / best if best > PROGRESS_THRESHOLD else (1.0 if mult != 0.0 else 0.0)
            weighted = (5.0 * ep + 5.0 * table[_TTC, n] + 2.0 * table[_COMFORT, n]) / 12.0
        else:
            ep = min(1.0, progress / best) if best > PROGRESS_THRESHOLD else 1.0
            weighted = (5.0 * ep + 5.0 * table[_TTC, n] + 2.0 * table[_LK, n] + 2.0 * table[_COMFORT, n]) / 14.0
        table[_EP, n] = ep
        table[SCORE_ROW, n] = mult * weighted


def _rate(
    scene: PreparedScene, poses: FloatArray, version: Version, states: FloatArray, flags: npt.NDArray[np.uint8],
    table: FloatArray,
) -> None:  # fmt: skip
    """Drive and rate N plans, given as ``poses`` [N, 41, 3]; ``states`` [N, 41, 11] and the others are written."""
    number = VERSIONS.index(version) + 1
    past, has_past, lever, samples = NO_PAST, True, 0.0, STEPS
    if number == 2:
        has_past = scene.past is not None
        if scene.past is not None:
            past, lever, samples = scene.past, CENTER_LEVER, STEPS + len(scene.past)
    track_kernel(poses, scene.ego, VELOCITY_OPERATOR, states)
    rate_kernel(
        states, scene.agents, scene.areas, scene.red_areas, scene.line, past, has_past, lever, operators(number, samples),
        number, np.empty((len(poses), STEPS, 5)), flags, table,
    )  # fmt: skip


def _rate_one(scene: PreparedScene, poses: FloatArray, version: Version) -> FloatArray:
    """Column [13] of the result table for one plan's poses [1, 41, 3]."""
    table = np.zeros((TABLE_ROWS, 1))
    _rate(scene, poses, version, np.empty((1, STEPS, 11)), np.empty((1, STEPS), np.uint8), table)
    return table[:, 0]


def _reference(scene: PreparedScene, version: Version) -> tuple[float, float]:
    """(raw progress, multiplicative product) of the scene's reference, computed once."""
    known = scene.reference_terms.get(version)
    if known is None:
        row = _rate_one(scene, scene.reference_poses, version)
        known = float(row[PROGRESS_ROW]), float(row[MULT_ROW])
        scene.reference_terms[version] = known
    return known


def _poses(scene: PreparedScene, plans: FloatArray) -> FloatArray:
    """Plans [N, 8, 3] as poses [N, 41, 3]."""
    poses = np.empty((len(plans), STEPS, 3))
    interpolate_kernel(plans, scene.ego, scene.interval, scene.fraction, poses)
    return poses


def _checked_plans(proposals: npt.ArrayLike, tokens: Sequence[str], single: bool) -> FloatArray:
    """Plans as float64 [S, N, 8, 3]; PlanError naming what is wrong."""
    try:
        plans = owned(proposals)
    except (TypeError, ValueError):
        raise PlanError("proposals are not one array of numbers [S, N, 8, 3]") from None
    expected = f"[{len(tokens)} scenes, N, {PLAN_STEPS}, 3] (x, y, heading in the ego frame, 0.5 s apart)"
    if single and plans.ndim == 3:
        plans = plans[None]
    if plans.ndim != 4 or plans.shape[0] != len(tokens) or plans.shape[2:] != (PLAN_STEPS, 3):
        raise PlanError(f"proposals have shape {np.shape(proposals)}, expected {expected}")
    bad = np.argwhere(~np.isfinite(plans).all(axis=(2, 3)))
    if len(bad):
        rows = ", ".join(f"({tokens[s]}, {n})" for s, n in bad[:10]) + (f" and {len(bad) - 10} more" if len(bad) > 10 else "")
        raise PlanError(f"proposals that are not finite cannot be scored; (scene, row): {rows}")
    return plans


def score(
    scenes: Scene | PreparedScene | Sequence[Scene | PreparedScene],
    proposals: npt.ArrayLike,
    version: Version = "v1",
    states: bool = False,
    threads: int = 1,
) -> PDMScores:
    """PDM scores of ``proposals`` [S, N, 8, 3] (or [N, 8, 3] for one scene): x, y, heading of the rear axle in the ego frame
    at 0.5 … 4.0 s.

    ``states`` asks for the driven states and ego areas as well (memory: 3.7 kB a plan). ``threads`` share the scenes; the
    result does not depend on it. Raises PlanError for a wrong shape or a plan that is not finite (nothing is scored then),
    SceneError for a scene without a reference.
    """
    single = isinstance(scenes, (Scene, PreparedScene))
    listed: list[Scene | PreparedScene] = [scenes] if isinstance(scenes, (Scene, PreparedScene)) else list(scenes)
    if version not in VERSIONS:
        raise ValueError(f"version {version!r} of the PDM score is unknown; {did_you_mean(str(version), VERSIONS)}")
    if not listed:
        raise SceneError("no scenes to score")
    plans = _checked_plans(proposals, [s.token for s in listed], single)
    scene_count, plan_count = plans.shape[:2]
    table = np.empty((scene_count, TABLE_ROWS, plan_count))
    reference = np.empty((scene_count, 2))
    all_states = np.empty((scene_count, plan_count, STEPS, 11)) if states else None
    all_flags = np.empty((scene_count, plan_count, STEPS), np.uint8) if states else None

    def one(s: int) -> None:
        scene = prepared(listed[s])
        reference[s] = _reference(scene, version)
        driven = np.empty((plan_count, STEPS, 11)) if all_states is None else all_states[s]
        flags = np.empty((plan_count, STEPS), np.uint8) if all_flags is None else all_flags[s]
        _rate(scene, _poses(scene, plans[s]), version, driven, flags, table[s])
        total_kernel(table[s], VERSIONS.index(version) + 1, reference[s, 0], reference[s, 1])

    if threads > 1 and scene_count > 1:
        with ThreadPoolExecutor(min(threads, scene_count)) as pool:
            list(pool.map(one, range(scene_count)))
    else:
        for s in range(scene_count):
            one(s)

    row = np.ascontiguousarray(table.transpose(1, 0, 2))
    bits = (MULTIPLE_LANES, NON_DRIVABLE, ONCOMING)
    areas = None if all_flags is None else np.stack([(all_flags & bit) != 0 for bit in bits], axis=-1)
    return PDMScores(
        version=version, tokens=tuple(s.token for s in listed), score=row[SCORE_ROW],
        nc=row[_NC], dac=row[_DAC], ddc=row[_DDC], tlc=None if version == "v1" else row[_TLC], ep=row[_EP], ttc=row[_TTC],
        lk=None if version == "v1" else row[_LK], comfort=row[_COMFORT], mult=row[MULT_ROW], progress_raw=row[PROGRESS_ROW],
        nc_idx=row[_NC_INDEX], ttc_idx=row[_TTC_INDEX], ref_progress_raw=reference[:, 0], ref_mult=reference[:, 1],
        states=all_states, ego_areas=areas,
    )  # fmt: skip


def human_filtered(scenes: Scene | PreparedScene | Sequence[Scene | PreparedScene], scores: PDMScores) -> PDMScores:
    """``scores`` (v2) after the official human filter: sub-scores become 1 in which the scene's recorded human got 0.

    ``mult`` follows; ``score`` stays as it was, because the official ``pdm_score`` column does. The total over filtered
    sub-scores is ``extended_score``. Scenes without a human plan stay as they are.
    """
    if scores.tlc is None or scores.lk is None:
        raise ValueError("the human filter belongs to version 2 of the PDM score; score with version='v2'")
    listed = [scenes] if isinstance(scenes, (Scene, PreparedScene)) else list(scenes)
    terms = {name: getattr(scores, name).copy() for name in ("nc", "dac", "ddc", "tlc", "ttc", "lk")}
    for s, scene in enumerate(listed):
        ready = prepared(scene)
        if ready.human is None:
            continue
        row = _rate_one(ready, _poses(ready, ready.human), "v2")
        # progress and history comfort are left out: scored alone, the human has full progress, and no history is given
        for name, term in (("nc", _NC), ("dac", _DAC), ("ddc", _DDC), ("tlc", _TLC), ("ttc", _TTC), ("lk", _LK)):
            if row[term] == 0.0:
                terms[name][s] = 1.0
    return replace(scores, **terms, mult=terms["nc"] * terms["dac"] * terms["ddc"] * terms["tlc"])


def extended_score(scores: PDMScores, extended_comfort: npt.ArrayLike) -> FloatArray:
    """EPDMS [S, N] of version-2 ``scores`` (human-filtered or not) with extended comfort [S, N] included, as the official
    ``compute_final_scores`` computes it: mult (5 EP + 5 TTC + 2 LK + 2 HC + 2 EC) / 16."""
    if scores.lk is None:
        raise ValueError("EPDMS belongs to version 2 of the PDM score; score with version='v2'")
    comfort = 2.0 * scores.comfort + 2.0 * np.asarray(extended_comfort, dtype=np.float64)
    return scores.mult * (5.0 * scores.ep + 5.0 * scores.ttc + 2.0 * scores.lk + comfort) / 16.0
