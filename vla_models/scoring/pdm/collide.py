"""Collisions with other agents: no at-fault collision (NC) and time to collision (TTC).

Both official loops go step by step and keep a list of agents to ignore. Per agent this means: its *first* overlap with the
ego decides. Either the ego is at fault (recorded; later overlaps of the same agent change nothing) or the agent is ignored
from then on. So each kernel walks agent by agent to the first overlap, and over stretches in which the two cannot have met
yet it jumps.

Official quirks that are kept: type and "stopped" come from an agent's first appearance; the angle to an agent is an
``arccos`` without clipping, so that an agent exactly ahead may be neither ahead nor behind.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from vla_models.kernels import numba
from vla_models.scenes.scene import AGENT_KINDS, DT, Tracks
from vla_models.scoring.pdm.track import LENGTH, REAR_AXLE_TO_CENTER, STEPS, WIDTH, owned

FloatArray = npt.NDArray[np.float64]

HALF_LENGTH: Final = LENGTH / 2.0
HALF_WIDTH: Final = WIDTH / 2.0
RADIUS: Final = float(np.hypot(HALF_LENGTH, HALF_WIDTH))
"""Metres: half extents of the ego box, and the circle around it."""

BOX_X, BOX_Y, BOX_COS, BOX_SIN, BOX_SPEED = range(5)
"""Columns of ego boxes [N, 41, 5]: centre, direction, speed."""

MULTIPLE_LANES: Final = 1
NON_DRIVABLE: Final = 2
ONCOMING: Final = 4
REAR_AXLE_IN_INTERSECTION: Final = 8
CENTER_IN_INTERSECTION: Final = 16
"""Bits of the ego areas [N, 41]: where the ego is at each step (written by ``area``)."""

STOPPED_SPEED: Final = 5e-2
TTC_STOPPED_SPEED: Final = 5e-3
_AHEAD: Final = float(np.cos(np.deg2rad(30.0)))
_BEHIND: Final = float(np.cos(np.deg2rad(150.0)))
_AGENT_CODES: Final = len(("vehicle", "pedestrian", "bicycle"))  # the first kinds are agents, the others are objects
assert AGENT_KINDS[:_AGENT_CODES] == ("vehicle", "pedestrian", "bicycle")

_SLACK: Final = 1e-9  # metres added to quick rejections, so that rounding never makes them decide

TTC_STRIDE: Final = 3
TTC_OFFSETS: Final = 4
"""The ego is projected 0, 0.3, 0.6 and 0.9 s ahead at constant velocity."""


class Agents(NamedTuple):
    """Other agents, prepared: A boxes over 51 steps."""

    boxes: FloatArray
    """[A, 51, 4] centre x, y, cos and sin of the heading; x is NaN where the agent is absent."""
    extents: FloatArray
    """[A, 4] half length, half width, circumscribed radius, largest displacement between steps (metres)."""
    stopped: npt.NDArray[np.bool_]
    """[A] stands still at its first appearance (objects always do)."""
    object: npt.NDArray[np.bool_]
    """[A] an object rather than a vehicle, a pedestrian or a bicycle: hitting it costs half."""
    overlapping: npt.NDArray[np.bool_]
    """[A] overlaps the ego at t = 0: version 2 replays the log without these."""


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _prepare(
    states: FloatArray, size: FloatArray, ego: FloatArray, boxes: FloatArray, extents: FloatArray,
    stopped: npt.NDArray[np.bool_], overlapping: npt.NDArray[np.bool_],
) -> None:  # fmt: skip
    c, s = np.cos(ego[2]), np.sin(ego[2])
    ex, ey = ego[0] + REAR_AXLE_TO_CENTER * c, ego[1] + REAR_AXLE_TO_CENTER * s
    for a in range(states.shape[0]):
        extents[a, 0] = size[a, 0] / 2.0
        extents[a, 1] = size[a, 1] / 2.0
        extents[a, 2] = np.hypot(extents[a, 0], extents[a, 1])
        extents[a, 3] = 0.0
        last = -1
        for t in range(states.shape[1]):
            x, y, h = states[a, t, 0], states[a, t, 1], states[a, t, 2]
            if np.isnan(x):
                boxes[a, t, :] = np.nan
                continue
            boxes[a, t, 0], boxes[a, t, 1], boxes[a, t, 2], boxes[a, t, 3] = x, y, np.cos(h), np.sin(h)
            if last < 0:
                if np.hypot(states[a, t, 3], states[a, t, 4]) <= STOPPED_SPEED:
                    stopped[a] = True
            else:
                moved = np.hypot(x - boxes[a, last, 0], y - boxes[a, last, 1]) / (t - last)
                extents[a, 3] = max(extents[a, 3], moved)
            last = t
        overlapping[a] = _meets(ex, ey, c, s, HALF_LENGTH, HALF_WIDTH, boxes, extents, a, 0)


def prepare_agents(tracks: Tracks, ego: FloatArray) -> Agents:
    """``tracks`` around ``ego`` [11] as ``Agents``."""
    count = len(tracks)
    objects = tracks.kind >= _AGENT_CODES
    agents = Agents(
        np.empty((count, tracks.states.shape[1], 4)), np.empty((count, 4)), objects.copy(), objects, np.zeros(count, np.bool_)
    )
    _prepare(
        owned(tracks.states), owned(tracks.size),
        owned(ego), agents.boxes, agents.extents, agents.stopped, agents.overlapping,
    )  # fmt: skip
    return agents


def constant_velocity_agents(tracks: Tracks, ego: FloatArray) -> Agents:
    """NavSim v2.2's ``ConstantVelocityTrafficAgents``: vehicles of t = 0 slide on at that moment's velocity, later ones never
    appear, all the others replay their log; nobody is left out for overlapping the ego."""
    states = tracks.states.copy()
    vehicles = np.flatnonzero(tracks.kind == AGENT_KINDS.index("vehicle"))
    now = states[vehicles, 0]
    after = np.arange(1, states.shape[1]) * DT
    states[vehicles, 1:] = now[:, None]
    states[vehicles, 1:, :2] += now[:, None, 3:] * after[:, None]
    agents = prepare_agents(Tracks(tracks.kind, tracks.size, states, tracks.ids), ego)
    return agents._replace(overlapping=np.zeros(len(tracks), np.bool_))


@numba.njit(cache=True, error_model="numpy")
def _meets(
    x: float, y: float, c: float, s: float, half_length: float, half_width: float,
    boxes: FloatArray, extents: FloatArray, a: int, t: int,
) -> bool:  # fmt: skip
    """Whether the box at (x, y) with direction (c, s) meets agent ``a`` at step ``t`` (touching counts; absent: False)."""
    dx, dy, bc, bs = boxes[a, t, 0] - x, boxes[a, t, 1] - y, boxes[a, t, 2], boxes[a, t, 3]
    if dx != dx:
        return False
    length, width = extents[a, 0], extents[a, 1]
    cr, sr = abs(bc * c + bs * s), abs(bs * c - bc * s)
    if abs(dx * c + dy * s) > half_length + length * cr + width * sr:
        return False
    if abs(dy * c - dx * s) > half_width + length * sr + width * cr:
        return False
    if abs(dx * bc + dy * bs) > length + half_length * cr + half_width * sr:
        return False
    return not abs(dy * bc - dx * bs) > width + half_length * sr + half_width * cr


@numba.njit(cache=True, nogil=True, error_model="numpy")
def footprint_kernel(states: FloatArray, out: FloatArray) -> None:
    """Ego boxes ``out`` [N, 41, 5] of driven states [N, 41, 11]."""
    for n in range(states.shape[0]):
        for t in range(states.shape[1]):
            c, s = np.cos(states[n, t, 2]), np.sin(states[n, t, 2])
            out[n, t, BOX_X] = states[n, t, 0] + REAR_AXLE_TO_CENTER * c
            out[n, t, BOX_Y] = states[n, t, 1] + REAR_AXLE_TO_CENTER * s
            out[n, t, BOX_COS], out[n, t, BOX_SIN] = c, s
            out[n, t, BOX_SPEED] = np.hypot(states[n, t, 3], states[n, t, 4])


@numba.njit(cache=True, error_model="numpy")
def _direction_cosine(boxes: FloatArray, a: int, t: int, x: float, y: float, c: float, s: float) -> float:
    """Cosine of the angle from direction (c, s) at (x, y) to agent ``a`` at step ``t``; rounding may carry it past 1."""
    dx, dy = boxes[a, t, 0] - x, boxes[a, t, 1] - y
    norm = math.sqrt(dx * dx + dy * dy)
    return float(c * (dx / norm) + s * (dy / norm))


@numba.njit(cache=True, error_model="numpy")
def _is_behind(cosine: float) -> bool:
    """More than 150 degrees off the heading; past -1 the official ``arccos`` is NaN and nothing is behind."""
    return -1.0 <= cosine < _BEHIND


@numba.njit(cache=True, nogil=True, error_model="numpy")
def collision_kernel(
    states: FloatArray, boxes: FloatArray, areas: npt.NDArray[np.uint8], agents: Agents, version: int,
    score: FloatArray, index: FloatArray,
) -> None:  # fmt: skip
    """NC of N driven plans: ``score`` [N] in {0, 1/2, 1} and ``index`` [N], the first at-fault step or inf."""
    others, extents = agents.boxes, agents.extents
    for n in range(states.shape[0]):
        score[n] = 1.0
        index[n] = np.inf
        longest = 0.0
        for t in range(1, STEPS):
            dx, dy = boxes[n, t, BOX_X] - boxes[n, t - 1, BOX_X], boxes[n, t, BOX_Y] - boxes[n, t - 1, BOX_Y]
            longest = max(longest, dx * dx + dy * dy)
        stride = np.sqrt(longest)
        for a in range(others.shape[0]):
            if version == 2 and agents.overlapping[a]:
                continue
            reach = RADIUS + extents[a, 2] + _SLACK
            per_metre = 1.0 / (stride + extents[a, 3] + _SLACK)
            t = 0
            while t < STEPS:
                x, y = boxes[n, t, BOX_X], boxes[n, t, BOX_Y]
                dx, dy = others[a, t, 0] - x, others[a, t, 1] - y
                squared = dx * dx + dy * dy
                if squared > reach * reach:
                    t += max(1, int((np.sqrt(squared) - reach) * per_metre))
                    continue
                c, s = boxes[n, t, BOX_COS], boxes[n, t, BOX_SIN]
                if not _meets(x, y, c, s, HALF_LENGTH, HALF_WIDTH, others, extents, a, t):  # absent agents end here too
                    t += 1
                    continue
                if boxes[n, t, BOX_SPEED] <= STOPPED_SPEED:
                    fault = False
                elif agents.stopped[a]:
                    fault = True
                elif _is_behind(_direction_cosine(others, a, t, states[n, t, 0], states[n, t, 1], c, s)):
                    fault = False
                elif _meets(x + HALF_LENGTH * c, y + HALF_LENGTH * s, c, s, 0.0, HALF_WIDTH, others, extents, a, t):
                    fault = True  # the front edge, a box without length
                else:
                    fault = (areas[n, t] & (MULTIPLE_LANES | NON_DRIVABLE)) != 0
                if fault:
                    score[n] = min(score[n], 0.5 if agents.object[a] else 0.0)
                    index[n] = min(index[n], float(t))
                break


@numba.njit(cache=True, nogil=True, error_model="numpy")
def time_to_collision_kernel(
    states: FloatArray, boxes: FloatArray, areas: npt.NDArray[np.uint8], agents: Agents, version: int,
    score: FloatArray, index: FloatArray,
) -> None:  # fmt: skip
    """TTC of N driven plans: ``score`` [N] in {0, 1} and ``index`` [N], the first step that violates it or inf.

    Version 1 looks from each of the 41 steps (tracks go on to 4.9 s), version 2 from the 32 whose projection ends by 4 s.
    """
    others, extents = agents.boxes, agents.extents
    steps = STEPS if version == 1 else STEPS - TTC_STRIDE * (TTC_OFFSETS - 1)
    furthest = TTC_STRIDE * (TTC_OFFSETS - 1) * DT
    for n in range(states.shape[0]):
        score[n] = 1.0
        index[n] = np.inf
        longest = 0.0
        for t in range(1, steps):
            v, u = boxes[n, t, BOX_SPEED] * furthest, boxes[n, t - 1, BOX_SPEED] * furthest
            dx, dy = boxes[n, t, BOX_X] - boxes[n, t - 1, BOX_X], boxes[n, t, BOX_Y] - boxes[n, t - 1, BOX_Y]
            ex = dx + v * boxes[n, t, BOX_COS] - u * boxes[n, t - 1, BOX_COS]
            ey = dy + v * boxes[n, t, BOX_SIN] - u * boxes[n, t - 1, BOX_SIN]
            # how far the projected centre moves in a step is convex in the projection time: its ends bound it
            longest = max(longest, dx * dx + dy * dy, ex * ex + ey * ey)
        stride = np.sqrt(longest)
        for a in range(others.shape[0]):
            if version == 2 and agents.overlapping[a]:
                continue
            reach = RADIUS + extents[a, 2] + _SLACK
            per_metre = 1.0 / (stride + extents[a, 3] + _SLACK)
            t = 0
            while t < steps and t < index[n]:
                speed = boxes[n, t, BOX_SPEED]
                if speed < TTC_STOPPED_SPEED:
                    t += 1
                    continue
                c, s = boxes[n, t, BOX_COS], boxes[n, t, BOX_SIN]
                nearest = np.inf
                met = False
                for k in range(TTC_OFFSETS):
                    ahead = k * TTC_STRIDE * DT * speed
                    x, y = boxes[n, t, BOX_X] + c * ahead, boxes[n, t, BOX_Y] + s * ahead
                    j = t + k * TTC_STRIDE
                    dx, dy = others[a, j, 0] - x, others[a, j, 1] - y
                    squared = dx * dx + dy * dy
                    if squared > reach * reach:
                        nearest = min(nearest, squared)
                        continue
                    nearest = 0.0
                    if _meets(x, y, c, s, HALF_LENGTH, HALF_WIDTH, others, extents, a, j):
                        met = True
                        cosine = _direction_cosine(others, a, j, states[n, t, 0], states[n, t, 1], c, s)
                        inside = (areas[n, t] & (MULTIPLE_LANES | NON_DRIVABLE | REAR_AXLE_IN_INTERSECTION)) != 0
                        if _AHEAD < cosine <= 1.0 or (inside and not _is_behind(cosine)):
                            score[n] = 0.0
                            index[n] = float(t)
                        break
                if met:
                    break
                t += max(1, int((np.sqrt(nearest) - reach) * per_metre)) if nearest > 0.0 else 1
