"""The compiled core of the score: driven states in, a table of results out. ``score`` is what people call."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from vla_models.kernels import numba
from vla_models.scoring.pdm.area import Areas, RedAreas, area_kernel, compliance_kernel, red_light_kernel
from vla_models.scoring.pdm.collide import Agents, collision_kernel, footprint_kernel, time_to_collision_kernel
from vla_models.scoring.pdm.comfort import comfort_kernel
from vla_models.scoring.pdm.progress import PROGRESS_THRESHOLD, Line, lane_keeping_kernel, progress_kernel, reverse_kernel
from vla_models.scoring.pdm.react import Rails, World, react_kernel
from vla_models.scoring.pdm.track import interpolate_kernel, track_kernel

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

(
    NC_ROW, DAC_ROW, DDC_ROW, TLC_ROW, TTC_ROW, LK_ROW, COMFORT_ROW, PROGRESS_ROW, NC_INDEX_ROW, TTC_INDEX_ROW, MULT_ROW,
    REVERSE_ROW, EP_ROW, SCORE_ROW,
) = range(14)  # fmt: skip
TABLE_ROWS: Final = 14
"""Rows of the result table [14, N]."""


@numba.njit(cache=True, nogil=True, error_model="numpy")
def rate_kernel(
    states: FloatArray, agents: Agents, areas: Areas, red_areas: RedAreas, line: Line, past: FloatArray, has_past: bool,
    lever: float, operator: FloatArray, version: int, boxes: FloatArray, flags: npt.NDArray[np.uint8], table: FloatArray,
) -> None:  # fmt: skip
    """Rate N driven plans, ``states`` [N, 41, 11], in all that does not depend on the reference.

    Writes ego ``boxes`` [N, 41, 5], area ``flags`` [N, 41] and ``table`` [14, N] but for its last two rows (EP and total).
    """
    footprint_kernel(states, boxes)
    area_kernel(states, boxes, areas, flags)
    collision_kernel(states, boxes, flags, agents, version, table[NC_ROW], table[NC_INDEX_ROW])
    time_to_collision_kernel(states, boxes, flags, agents, version, table[TTC_ROW], table[TTC_INDEX_ROW])
    compliance_kernel(boxes, flags, version, table[DAC_ROW], table[DDC_ROW])
    progress_kernel(boxes, line, table[PROGRESS_ROW])
    reverse_kernel(states, boxes, table[REVERSE_ROW])
    if has_past:
        comfort_kernel(states, past, operator, lever, table[COMFORT_ROW])
    else:
        table[COMFORT_ROW, :] = 1.0
    if version == 1:
        table[TLC_ROW, :] = 1.0
        table[LK_ROW, :] = 1.0
    else:
        red_light_kernel(boxes, areas, red_areas, table[TLC_ROW])
        lane_keeping_kernel(boxes, flags, line, table[LK_ROW])
    for n in range(states.shape[0]):
        mult = table[NC_ROW, n] * table[DAC_ROW, n]
        table[MULT_ROW, n] = mult if version == 1 else mult * table[DDC_ROW, n] * table[TLC_ROW, n]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def follow_kernel(
    poses: FloatArray, ego: FloatArray, velocity: FloatArray, agents: Agents, areas: Areas, red_areas: RedAreas, line: Line,
    past: FloatArray, has_past: bool, lever: float, operator: FloatArray, version: int, states: FloatArray, boxes: FloatArray,
    flags: npt.NDArray[np.uint8], table: FloatArray,
) -> None:  # fmt: skip
    """Drive along N ``poses`` [N, 41, 3] from ``ego`` and rate what was driven: ``rate_kernel`` writes the rest."""
    track_kernel(poses, ego, velocity, states)
    rate_kernel(states, agents, areas, red_areas, line, past, has_past, lever, operator, version, boxes, flags, table)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def drive_kernel(
    plans: FloatArray, headings: FloatArray, ego: FloatArray, interval: IntArray, fraction: FloatArray, velocity: FloatArray,
    agents: Agents, areas: Areas, red_areas: RedAreas, line: Line, past: FloatArray, has_past: bool, lever: float,
    operator: FloatArray, version: int, poses: FloatArray, states: FloatArray, boxes: FloatArray,
    flags: npt.NDArray[np.uint8], table: FloatArray,
) -> None:  # fmt: skip
    """Everything that one scene's N plans [N, 8, 3] need, in one call that holds no interpreter lock."""
    interpolate_kernel(plans, headings, ego, interval, fraction, poses)
    follow_kernel(
        poses, ego, velocity, agents, areas, red_areas, line, past, has_past, lever, operator, version, states, boxes, flags,
        table,
    )  # fmt: skip


@numba.njit(cache=True, nogil=True, error_model="numpy")
def reactive_kernel(
    states: FloatArray, boxes: FloatArray, flags: npt.NDArray[np.uint8], ref_states: FloatArray, ref_boxes: FloatArray,
    ref_flags: npt.NDArray[np.uint8], log: FloatArray, sizes: FloatArray, rails: Rails, world: World, agents: Agents,
    table: FloatArray, ref_nc: FloatArray, status: npt.NDArray[np.int64],
) -> None:  # fmt: skip
    """What depends on traffic, again, with the traffic's reaction to each of N driven plans: NC, TTC and mult of ``table``.

    ``agents`` is scratch with room for the traffic of one plan, ``log`` the recorded boxes. ``ref_nc`` [N] is the reference's
    NC in each plan's traffic, ``status`` [N] what ``react_kernel`` returns; rows where it is not 0 are not written.
    """
    nc, index = np.empty(1), np.empty(1)
    for n in range(states.shape[0]):
        status[n] = react_kernel(states[n], rails, sizes, log, world, agents.boxes, agents.extents)
        if status[n] != 0:
            continue
        one = slice(n, n + 1)
        collision_kernel(states[one], boxes[one], flags[one], agents, 2, nc, index)
        table[NC_ROW, n], table[NC_INDEX_ROW, n] = nc[0], index[0]
        table[MULT_ROW, n] = nc[0] * table[DAC_ROW, n] * table[DDC_ROW, n] * table[TLC_ROW, n]
        time_to_collision_kernel(states[one], boxes[one], flags[one], agents, 2, nc, index)
        table[TTC_ROW, n], table[TTC_INDEX_ROW, n] = nc[0], index[0]
        collision_kernel(ref_states, ref_boxes, ref_flags, agents, 2, nc, index)
        ref_nc[n] = nc[0]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def total_kernel(table: FloatArray, version: int, ref_progress: float, ref_mult: FloatArray) -> None:
    """The last rows of ``table`` [14, N]: progress relative to the better of plan and reference (its product ``ref_mult`` [N]
    can depend on the plan), and the weighted total."""
    for n in range(table.shape[1]):
        mult, progress = table[MULT_ROW, n], table[PROGRESS_ROW, n]
        best = max(progress * mult, ref_progress * ref_mult[n])
        if version == 1:
            ep = progress * mult / best if best > PROGRESS_THRESHOLD else (1.0 if mult != 0.0 else 0.0)
            weighted = (5.0 * ep + 5.0 * table[TTC_ROW, n] + 2.0 * table[COMFORT_ROW, n]) / 12.0
        else:
            ep = min(1.0, progress / best) if best > PROGRESS_THRESHOLD else 1.0
            weighted = (5.0 * ep + 5.0 * table[TTC_ROW, n] + 2.0 * table[LK_ROW, n] + 2.0 * table[COMFORT_ROW, n]) / 14.0
        table[EP_ROW, n] = ep
        table[SCORE_ROW, n] = mult * weighted
