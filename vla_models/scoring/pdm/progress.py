"""Along the route's centre line: ego progress (EP) and lane keeping (LK)."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from vla_models.kernels import numba
from vla_models.scenes.scene import Scene
from vla_models.scoring.pdm.collide import BOX_COS, BOX_SIN, BOX_X, BOX_Y, CENTER_IN_INTERSECTION
from vla_models.scoring.pdm.track import STEPS

FloatArray = npt.NDArray[np.float64]

_LANE_DEVIATION: Final = 0.5  # metres from the centre line …
_LANE_STEPS: Final = 20  # … for so many steps in a row: the lane is not kept
PROGRESS_THRESHOLD: Final = 5.0
"""Metres: below this best progress of the pair (reference, plan), everybody has full progress."""


class Line(NamedTuple):
    """The centre line, prepared: K segments."""

    segments: FloatArray
    """[K, 7] start x, start y, vector x, vector y, 1 / squared length, distance along the line at the start, length."""


def prepare_line(scene: Scene) -> Line:
    """``scene``'s centre line as a ``Line``."""
    start = scene.centerline[:-1, :2]
    vector = np.diff(scene.centerline[:, :2], axis=0)
    squared = vector[:, 0] ** 2 + vector[:, 1] ** 2
    length = np.sqrt(squared)
    along = np.concatenate([np.zeros(1), np.cumsum(length)[:-1]])
    inverse = np.divide(1.0, squared, out=np.zeros_like(squared), where=squared > 0.0)  # a repeated point: its own start
    return Line(np.ascontiguousarray(np.column_stack([start, vector, inverse, along, length])))


@numba.njit(cache=True, error_model="numpy")
def _squared_distance(segments: FloatArray, k: int, x: float, y: float) -> tuple[float, float]:
    """Squared distance of (x, y) to segment ``k``, and the fraction of the segment at which its nearest point lies."""
    ux, uy = segments[k, 2], segments[k, 3]
    wx, wy = x - segments[k, 0], y - segments[k, 1]
    part = (wx * ux + wy * uy) * segments[k, 4]
    fraction = min(1.0, max(0.0, part))
    dx, dy = wx - fraction * ux, wy - fraction * uy
    return dx * dx + dy * dy, fraction


@numba.njit(cache=True, error_model="numpy")
def locate(line: Line, x: float, y: float) -> float:
    """Distance along the line of its point nearest to (x, y): the first of equally near ones, as in GEOS."""
    segments = line.segments
    best = np.inf
    at = 0.0
    for k in range(segments.shape[0]):
        squared, fraction = _squared_distance(segments, k, x, y)
        if squared < best:
            best = squared
            at = segments[k, 5] + fraction * segments[k, 6]
    return at


@numba.njit(cache=True, nogil=True, error_model="numpy")
def progress_kernel(boxes: FloatArray, line: Line, out: FloatArray) -> None:
    """Metres ``out`` [N] >= 0 along the centre line from the first to the last box centre of N driven plans."""
    if boxes.shape[0] == 0:
        return
    start = locate(line, boxes[0, 0, BOX_X], boxes[0, 0, BOX_Y])  # all plans start at the same state
    for n in range(boxes.shape[0]):
        out[n] = max(0.0, locate(line, boxes[n, STEPS - 1, BOX_X], boxes[n, STEPS - 1, BOX_Y]) - start)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def reverse_kernel(states: FloatArray, boxes: FloatArray, out: FloatArray) -> None:
    """Metres ``out`` [N] >= 0 that the rear axle moves backwards in N driven plans. No part of the score: a warning sign."""
    for n in range(states.shape[0]):
        out[n] = 0.0
        for t in range(1, STEPS):
            dx, dy = states[n, t, 0] - states[n, t - 1, 0], states[n, t, 1] - states[n, t - 1, 1]
            out[n] += max(0.0, -dx * boxes[n, t - 1, BOX_COS] - dy * boxes[n, t - 1, BOX_SIN])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def lane_keeping_kernel(boxes: FloatArray, flags: npt.NDArray[np.uint8], line: Line, score: FloatArray) -> None:
    """LK ``score`` [N] in {0, 1}: 0 after 20 steps in a row beyond 0.5 m; steps in intersections neither count nor reset."""
    segments = line.segments
    count = segments.shape[0]
    limit = _LANE_DEVIATION * _LANE_DEVIATION
    for n in range(boxes.shape[0]):
        score[n] = 1.0
        beyond = 0
        recent = 0  # the search starts where the last one ended: plans move along the line
        margin = 0.0  # metres that the centre can move before it may be near the line again
        for t in range(STEPS):
            x, y = boxes[n, t, BOX_X], boxes[n, t, BOX_Y]
            if t > 0:
                margin -= np.hypot(x - boxes[n, t - 1, BOX_X], y - boxes[n, t - 1, BOX_Y])
            if flags[n, t] & CENTER_IN_INTERSECTION:
                continue
            found = False
            if margin <= 0.0:
                nearest = np.inf
                for i in range(count):
                    k = recent + i
                    k = k - count if k >= count else k
                    squared, _ = _squared_distance(segments, k, x, y)
                    nearest = min(nearest, squared)
                    if squared <= limit:
                        recent = k
                        found = True
                        break
                if not found:
                    margin = np.sqrt(nearest) - _LANE_DEVIATION - 1e-9
            beyond = 0 if found else beyond + 1
            if beyond >= _LANE_STEPS:
                score[n] = 0.0
                break
