"""The paths that PDM-Closed may follow: the route's centre line and two parallels, and the corridor the ego sweeps on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from vla_models.errors import SceneError
from vla_models.geometry import FloatArray
from vla_models.kernels import numba
from vla_models.scenes.scene import Scene
from vla_models.scoring.pdm.clearance import border_gap2, gap, inside

LATERAL_OFFSETS: Final = (0.0, -1.0, 1.0)
"""Offsets of the paths from the centre line (m, left is positive), in the official order."""
_OFFSETS: Final = np.array(LATERAL_OFFSETS)
_NEAREST: Final = 1e-5
"""The official path never returns its very first point: distances are clipped to this (m)."""
BLOCK: Final = 16
"""Corridor segments that share a bounding box (speed only)."""


@dataclass(frozen=True)
class Paths:
    """L parallel paths with the same number C of vertices."""

    points: FloatArray
    """[L, C, 2] vertices."""
    heading: FloatArray
    """[C] heading of the vertices, unwrapped, common to all paths."""
    progress: FloatArray
    """[L, C] distance of each vertex from the path's start."""


def build_paths(scene: Scene) -> Paths:
    """Centre line of ``scene`` and its parallels; raises ``SceneError`` where there is no line to follow."""
    line = scene.centerline
    if line.ndim != 2 or line.shape[1] != 3 or len(line) < 2:
        raise SceneError(f"scene {scene.token!r}: its centerline has shape {line.shape}; a planner needs [C >= 2, 3] poses.")
    if not np.isfinite(line).all():
        raise SceneError(f"scene {scene.token!r}: its centerline has values that are not finite.")
    paths = Paths(*_parallels(np.array(line, dtype=np.float64), _OFFSETS))
    if paths.progress[:, -1].min() <= _NEAREST:
        raise SceneError(f"scene {scene.token!r}: its centerline has no length; a planner needs a route to follow.")
    return paths


@numba.njit(cache=True)
def _parallels(line: FloatArray, offsets: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The three arrays of ``Paths``: vertices shifted along their own normals, headings unwrapped, arc lengths."""
    points = np.empty((len(offsets), len(line), 2))
    heading = np.empty(len(line))
    progress = np.zeros((len(offsets), len(line)))
    heading[0] = line[0, 2]
    for i in range(len(line)):
        for p in range(len(offsets)):
            points[p, i, 0] = line[i, 0] + offsets[p] * np.cos(line[i, 2] + np.pi / 2)
            points[p, i, 1] = line[i, 1] + offsets[p] * np.sin(line[i, 2] + np.pi / 2)
        if i > 0:
            turn = line[i, 2] - line[i - 1, 2]
            heading[i] = heading[i - 1] + turn - 2.0 * np.pi * np.round(turn / (2.0 * np.pi))
            for p in range(len(offsets)):
                step = np.hypot(points[p, i, 0] - points[p, i - 1, 0], points[p, i, 1] - points[p, i - 1, 1])
                progress[p, i] = progress[p, i - 1] + step
    return points, heading, progress


@numba.njit(cache=True)
def pose_at(points: FloatArray, heading: FloatArray, progress: FloatArray, distance: float, out: FloatArray) -> None:
    """Write the pose (3,) of a path at ``distance`` from its start to ``out``; beyond its ends the path stands still."""
    q = min(max(distance, _NEAREST), progress[-1])
    low, high = 0, len(progress) - 1  # progress[low] < q <= progress[high]: repeated vertices are never a segment
    while high - low > 1:
        middle = (low + high) // 2
        if progress[middle] < q:
            low = middle
        else:
            high = middle
    t = (q - progress[low]) / (progress[high] - progress[low])
    out[0] = points[low, 0] + t * (points[high, 0] - points[low, 0])
    out[1] = points[low, 1] + t * (points[high, 1] - points[low, 1])
    h = heading[low] + t * (heading[high] - heading[low])
    out[2] = np.arctan2(np.sin(h), np.cos(h))


@numba.njit(cache=True)
def corridor_line(points: FloatArray, heading: FloatArray, progress: FloatArray, start: float, end: float) -> FloatArray:
    """Middle [m >= 1, 2] of the corridor from ``start`` to ``end`` (m along the path).

    As in the official code it has only the path's own vertices where there are two or more between the ends, so it may begin
    up to a vertex ahead of ``start``; else it is cut exactly. One point is left where ``start`` is the path's end.
    """
    start = min(max(start, 0.0), progress[-1])
    end = min(max(end, 0.0), progress[-1])
    first = 0
    while first < len(progress) and progress[first] < start:
        first += 1
    last = first
    while last < len(progress) and progress[last] <= end:
        last += 1
    if last - first > 1:
        return points[first:last].copy()
    line = np.empty((3, 2))
    pose = np.empty(3)
    pose_at(points, heading, progress, start, pose)
    line[0] = pose[:2]
    n = 1
    for i in range(first, last):
        if start < progress[i] < end:
            line[n] = points[i]
            n += 1
    if end > start:
        pose_at(points, heading, progress, end, pose)
        line[n] = pose[:2]
        n += 1
    return line[:n].copy()


@numba.njit(cache=True)
def corridor_ends(line: FloatArray, half_width: float) -> FloatArray:
    """The square ends [2, 4, 2] of the corridor around ``line``: its first and last segment, lengthened by ``half_width``.

    A line of one point has two equal ends: the upright square around the point.
    """
    ends = np.empty((2, 4, 2))
    for k in range(2):
        tip = line[0] if k == 0 else line[-1]
        back = tip
        n = 0.0
        for i in range(1, len(line)):  # the nearest vertex that is not the tip itself gives the direction
            back = line[i] if k == 0 else line[len(line) - 1 - i]
            n = np.hypot(tip[0] - back[0], tip[1] - back[1])
            if n > 0.0:
                break
        if n > 0.0:
            ux, uy = half_width * (tip[0] - back[0]) / n, half_width * (tip[1] - back[1]) / n
        else:
            ux, uy = half_width, 0.0
            back = np.array([tip[0] - half_width, tip[1]])
        ends[k, 0, 0], ends[k, 0, 1] = tip[0] + ux - uy, tip[1] + uy + ux
        ends[k, 1, 0], ends[k, 1, 1] = back[0] - uy, back[1] + ux
        ends[k, 2, 0], ends[k, 2, 1] = back[0] + uy, back[1] - ux
        ends[k, 3, 0], ends[k, 3, 1] = tip[0] + ux + uy, tip[1] + uy - ux
    return ends


@numba.njit(cache=True)
def _bounds(points: FloatArray, out: FloatArray) -> None:
    """Write the bounding box (x0, y0, x1, y1) of ``points`` [n, 2] to ``out``."""
    out[0] = out[2] = points[0, 0]
    out[1] = out[3] = points[0, 1]
    for i in range(1, len(points)):
        out[0], out[1] = min(out[0], points[i, 0]), min(out[1], points[i, 1])
        out[2], out[3] = max(out[2], points[i, 0]), max(out[3], points[i, 1])


@numba.njit(cache=True)
def corridor_blocks(line: FloatArray) -> FloatArray:
    """Bounding boxes [n, 4] (x0, y0, x1, y1) of every ``BLOCK`` segments of ``line``."""
    n = max(1, (len(line) - 1 + BLOCK - 1) // BLOCK)
    boxes = np.empty((n, 4))
    for b in range(n):
        _bounds(line[b * BLOCK : b * BLOCK + BLOCK + 1], boxes[b])
    return boxes


@numba.njit(cache=True)
def in_corridor(shape: FloatArray, line: FloatArray, blocks: FloatArray, ends: FloatArray, half_width: float) -> bool:
    """Whether the polygon ``shape`` [n, 2] touches the corridor around ``line``, with its ``blocks`` and ``ends``."""
    around = np.empty(4)
    _bounds(shape, around)
    x0, y0, x1, y1 = around[0] - half_width, around[1] - half_width, around[2] + half_width, around[3] + half_width
    for b in range(len(blocks)):
        if blocks[b, 0] <= x1 and blocks[b, 2] >= x0 and blocks[b, 1] <= y1 and blocks[b, 3] >= y0:
            part = line[b * BLOCK : b * BLOCK + BLOCK + 1]
            if inside(part[0, 0], part[0, 1], shape):
                return True
            if border_gap2(shape, part, False, half_width) <= half_width * half_width:
                return True
    for k in range(2):
        _bounds(ends[k], around)
        if around[0] <= x1 and around[2] >= x0 and around[1] <= y1 and around[3] >= y0 and gap(ends[k], shape) == 0.0:
            return True
    return False
