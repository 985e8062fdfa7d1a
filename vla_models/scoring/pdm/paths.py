"""The paths that PDM-Closed may follow: the route's centre line and two parallels, and the corridor the ego sweeps on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numba
import numpy as np

from vla_models.errors import SceneError
from vla_models.geometry import FloatArray, arc_lengths
from vla_models.scenes.scene import Scene
from vla_models.scoring.pdm.clearance import border_gap2, gap, inside

LATERAL_OFFSETS: Final = (0.0, -1.0, 1.0)
"""Offsets of the paths from the centre line (m, left is positive), in the official order."""
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
    normal = np.stack([np.cos(line[:, 2] + np.pi / 2), np.sin(line[:, 2] + np.pi / 2)], axis=-1)
    points = np.stack([line[:, :2] + offset * normal for offset in LATERAL_OFFSETS])
    progress = np.stack([arc_lengths(path) for path in points])
    if progress[:, -1].min() <= _NEAREST:
        raise SceneError(f"scene {scene.token!r}: its centerline has no length; a planner needs a route to follow.")
    return Paths(points, np.unwrap(line[:, 2]), progress)


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
def corridor_blocks(line: FloatArray) -> FloatArray:
    """Bounding boxes [n, 4] (x0, y0, x1, y1) of every ``BLOCK`` segments of ``line``."""
    n = max(1, (len(line) - 1 + BLOCK - 1) // BLOCK)
    boxes = np.empty((n, 4))
    for b in range(n):
        part = line[b * BLOCK : b * BLOCK + BLOCK + 1]
        boxes[b, 0], boxes[b, 1] = part[:, 0].min(), part[:, 1].min()
        boxes[b, 2], boxes[b, 3] = part[:, 0].max(), part[:, 1].max()
    return boxes


@numba.njit(cache=True)
def in_corridor(shape: FloatArray, line: FloatArray, blocks: FloatArray, ends: FloatArray, half_width: float) -> bool:
    """Whether the polygon ``shape`` [n, 2] touches the corridor of ``corridor_line``, ``corridor_blocks``, ``corridor_ends``."""
    x0, y0 = shape[:, 0].min() - half_width, shape[:, 1].min() - half_width
    x1, y1 = shape[:, 0].max() + half_width, shape[:, 1].max() + half_width
    for b in range(len(blocks)):
        if blocks[b, 0] <= x1 and blocks[b, 2] >= x0 and blocks[b, 1] <= y1 and blocks[b, 3] >= y0:
            part = line[b * BLOCK : b * BLOCK + BLOCK + 1]
            if inside(part[0, 0], part[0, 1], shape) or border_gap2(shape, part, False) <= half_width * half_width:
                return True
    for k in range(2):
        near = False  # the square ends reach at most sqrt(2) half widths beyond the tips
        for i in range(4):
            near = near or (x0 <= ends[k, i, 0] <= x1 and y0 <= ends[k, i, 1] <= y1)
        if near and gap(shape, ends[k]) == 0.0:
            return True
    return False
