"""Collisions with other agents: no at-fault collision (NC) and time to collision (TTC).

Both official loops go step by step and keep a list of agents to ignore. Per agent this means: its *first* overlap with the
ego decides. Either the ego is at fault (recorded; later overlaps of the same agent change nothing) or the agent is ignored
from then on. So each kernel walks agent by agent to the first overlap, and over stretches in which the two cannot have met
yet it jumps.

Official quirks that are kept: type and "stopped" come from an agent's first appearance; the angle to an agent is an
``arccos`` without clipping, so that an agent exactly ahead may be neither ahead nor behind.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from vla_models.scenes.scene import AGENT_KINDS, Scene
from vla_models.scoring.pdm.track import LENGTH, REAR_AXLE_TO_CENTER, STEPS, WIDTH

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


@numba.njit(cache=True, error_model="numpy")
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
                boxes[a, t, 0] = np.nan
                continue
            boxes[a, t, 0], boxes[a, t, 1], boxes[a, t, 2], boxes[a, t, 3] = x, y, np.cos(h), np.sin(h)
            if last < 0:
                if np.hypot(states[a, t, 3], states[a, t, 4]) <= STOPPED_SPEED:
                    stopped[a] = True
            else:
                moved = np.hypot(x - boxes[a, last, 0], y - boxes[a, last, 1]) / (t - last)
                extents[a, 3] = max(extents[a, 3], moved)
            last = t
        overlapping[a] = boxes_meet(ex, ey, c, s, HALF_LENGTH, HALF_WIDTH, boxes[a, 0], extents[a])


def prepare_agents(scene: Scene) -> Agents:
    """``scene``'s tracks as ``Agents``."""
    tracks = scene.tracks
    count = len(tracks)
    objects = tracks.kind >= _AGENT_CODES
    agents = Agents(
        np.empty((count, tracks.states.shape[1], 4)), np.empty((count, 4)), objects.copy(), objects, np.zeros(count, np.bool_)
    )
    _prepare(
        np.ascontiguousarray(tracks.states), np.ascontiguousarray(tracks.size, dtype=np.float64),
        np.ascontiguousarray(scene.ego), agents.boxes, agents.extents, agents.stopped, agents.overlapping,
    )  # fmt: skip
    return agents


@numba.njit(cache=True, error_model="numpy")
def boxes_meet(
    x: float, y: float, c: float, s: float, half_length: float, half_width: float, box: FloatArray, extent: FloatArray
) -> bool:
    """Whether the box at (x, y) with direction (c, s) and an agent's ``box`` [4] meet (touching counts); absent: False."""
    dx, dy = box[0] - x, box[1] - y
    a, b = extent[0], extent[1]
    reach = np.hypot(half_length, half_width) + extent[2]
    if not dx * dx + dy * dy <= reach * reach:  # also where the agent is absent (NaN)
        return False
    cr = abs(box[2] * c + box[3] * s)
    sr = abs(box[3] * c - box[2] * s)
    if abs(dx * c + dy * s) > half_length + a * cr + b * sr:
        return False
    if abs(dy * c - dx * s) > half_width + a * sr + b * cr:
        return False
    if abs(dx * box[2] + dy * box[3]) > a + half_length * cr + half_width * sr:
        return False
    return abs(dy * box[2] - dx * box[3]) <= b + half_length * sr + half_width * cr


@numba.njit(cache=True, nogil=True, error_model="numpy")
def footprint_kernel(states: FloatArray, out: FloatArray) -> None:
    """Ego boxes ``out`` [N, 41, 5] of driven states [N, 41, 11]."""
    for n in range(states.shape[0]):
        for t in range(states.shape[1]):
            state, box = states[n, t], out[n, t]
            c, s = np.cos(state[2]), np.sin(state[2])
            box[0], box[1] = state[0] + REAR_AXLE_TO_CENTER * c, state[1] + REAR_AXLE_TO_CENTER * s
            box[2], box[3], box[4] = c, s, np.hypot(state[3], state[4])


@numba.njit(cache=True, error_model="numpy")
def _front_meets(ego: FloatArray, box: FloatArray, extent: FloatArray) -> bool:
    """Whether the ego's front edge meets an agent's box: a box of no length at the front bumper."""
    c, s = ego[BOX_COS], ego[BOX_SIN]
    return boxes_meet(
        ego[BOX_X] + HALF_LENGTH * c, ego[BOX_Y] + HALF_LENGTH * s, c, s, 0.0, HALF_WIDTH, box, extent
    )  # fmt: skip


@numba.njit(cache=True, error_model="numpy")
def _direction_cosine(state: FloatArray, ego: FloatArray, box: FloatArray) -> float:
    """Cosine of the angle between the ego's heading and the line from its rear axle to an agent's centre; may exceed 1."""
    dx, dy = box[0] - state[0], box[1] - state[1]
    norm = np.sqrt(dx * dx + dy * dy)
    return ego[BOX_COS] * (dx / norm) + ego[BOX_SIN] * (dy / norm)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def collision_kernel(
    states: FloatArray, boxes: FloatArray, areas: npt.NDArray[np.uint8], agents: Agents, version: int,
    score: FloatArray, index: FloatArray,
) -> None:  # fmt: skip
    """NC of N driven plans: ``score`` [N] in {0, 1/2, 1} and ``index`` [N], the first at-fault step or inf."""
    for n in range(states.shape[0]):
        score[n] = 1.0
        index[n] = np.inf
        stride = 0.0
        for t in range(1, STEPS):
            stride = max(stride, np.hypot(boxes[n, t, 0] - boxes[n, t - 1, 0], boxes[n, t, 1] - boxes[n, t - 1, 1]))
        for a in range(agents.boxes.shape[0]):
            if version == 2 and agents.overlapping[a]:
                continue
            reach = RADIUS + agents.extents[a, 2]
            closing = stride + agents.extents[a, 3] + 1e-9
            t = 0
            while t < STEPS:
                dx, dy = agents.boxes[a, t, 0] - boxes[n, t, BOX_X], agents.boxes[a, t, 1] - boxes[n, t, BOX_Y]
                far = dx * dx + dy * dy
                if not far <= reach * reach:
                    if far > reach * reach:
                        t += max(1, int((np.sqrt(far) - reach) / closing))
                    else:
                        t += 1
                    continue
                ego, box = boxes[n, t], agents.boxes[a, t]
                if boxes_meet(
                    ego[BOX_X], ego[BOX_Y], ego[BOX_COS], ego[BOX_SIN], HALF_LENGTH, HALF_WIDTH, box, agents.extents[a]
                ):
                    if ego[BOX_SPEED] <= STOPPED_SPEED:
                        fault = False
                    elif agents.stopped[a]:
                        fault = True
                    elif -1.0 <= _direction_cosine(states[n, t], ego, box) < _BEHIND:
                        fault = False
                    elif _front_meets(ego, box, agents.extents[a]):
                        fault = True
                    else:
                        fault = (areas[n, t] & (MULTIPLE_LANES | NON_DRIVABLE)) != 0
                    if fault:
                        score[n] = min(score[n], 0.5 if agents.object[a] else 0.0)
                        index[n] = min(index[n], float(t))
                    break
                t += 1


@numba.njit(cache=True, nogil=True, error_model="numpy")
def time_to_collision_kernel(
    states: FloatArray, boxes: FloatArray, areas: npt.NDArray[np.uint8], agents: Agents, version: int,
    score: FloatArray, index: FloatArray,
) -> None:  # fmt: skip
    """TTC of N driven plans: ``score`` [N] in {0, 1} and ``index`` [N], the first step that violates it or inf.

    Version 1 looks from each of the 41 steps (tracks go on to 4.9 s), version 2 from the 32 whose projection ends by 4 s.
    """
    steps = STEPS if version == 1 else STEPS - TTC_STRIDE * (TTC_OFFSETS - 1)
    for n in range(states.shape[0]):
        score[n] = 1.0
        index[n] = np.inf
        stride = 0.0
        for t in range(1, steps):
            x, y = boxes[n, t, BOX_X] - boxes[n, t - 1, BOX_X], boxes[n, t, BOX_Y] - boxes[n, t - 1, BOX_Y]
            vx = boxes[n, t, BOX_SPEED] * boxes[n, t, BOX_COS] - boxes[n, t - 1, BOX_SPEED] * boxes[n, t - 1, BOX_COS]
            vy = boxes[n, t, BOX_SPEED] * boxes[n, t, BOX_SIN] - boxes[n, t - 1, BOX_SPEED] * boxes[n, t - 1, BOX_SIN]
            # the projected centre moves by (x + vx d, y + vy d), convex in d: the ends of [0, 0.9] bound it
            stride = max(stride, np.hypot(x, y), np.hypot(x + 0.9 * vx, y + 0.9 * vy))
        for a in range(agents.boxes.shape[0]):
            if version == 2 and agents.overlapping[a]:
                continue
            reach = RADIUS + agents.extents[a, 2]
            closing = stride + agents.extents[a, 3] + 1e-9
            t = 0
            while t < steps and t < index[n]:
                ego = boxes[n, t]
                if ego[BOX_SPEED] < TTC_STOPPED_SPEED:
                    t += 1
                    continue
                nearest = np.inf
                met = False
                for k in range(TTC_OFFSETS):
                    ahead = k * TTC_STRIDE * 0.1 * ego[BOX_SPEED]
                    x, y = ego[BOX_X] + ego[BOX_COS] * ahead, ego[BOX_Y] + ego[BOX_SIN] * ahead
                    box = agents.boxes[a, t + k * TTC_STRIDE]
                    dx, dy = box[0] - x, box[1] - y
                    far = dx * dx + dy * dy
                    if not far <= reach * reach:
                        nearest = min(nearest, far if far > reach * reach else 0.0)
                        continue
                    nearest = 0.0
                    if boxes_meet(x, y, ego[BOX_COS], ego[BOX_SIN], HALF_LENGTH, HALF_WIDTH, box, agents.extents[a]):
                        met = True
                        cosine = _direction_cosine(states[n, t], ego, box)
                        inside = (areas[n, t] & (MULTIPLE_LANES | NON_DRIVABLE | REAR_AXLE_IN_INTERSECTION)) != 0
                        if _AHEAD < cosine <= 1.0 or (inside and not -1.0 <= cosine < _BEHIND):
                            score[n] = 0.0
                            index[n] = min(index[n], float(t))
                        break
                if met:
                    break
                t += max(1, int((np.sqrt(nearest) - reach) / closing)) if nearest > reach * reach else 1
