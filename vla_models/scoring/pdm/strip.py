"""Strips along paths: the ground that a vehicle sweeps, as a ring of vertices, and how near two rings are.

A strip is what GEOS makes of a line by ``buffer(width / 2, cap_style="flat")`` with round joins of 16 segments a quadrant:
each side is the chain of the shifted segments, cut where they cross (inside of a bend) and joined by a bevel, or by an arc
where the bend is sharp (outside). GEOS's simplification of the line only removes vertices that lie closer together than 1 %
of the width and is not imitated.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from vla_models.geometry import FloatArray
from vla_models.kernels import numba
from vla_models.scoring.pdm.clearance import inside, segment_gap2

QUADRANT_SEGMENTS: Final = 16
"""Segments with which GEOS draws a quarter of a circle."""
_QUANTUM: Final = math.pi / 2 / QUADRANT_SEGMENTS
_CLOSING: Final = 80.0

PATH_X, PATH_Y, PATH_HEADING, PATH_PROGRESS = range(4)
"""Columns of a path [n, 4]: position, heading (unwrapped), distance along the path."""


def most_vertices(path: FloatArray) -> int:
    """Upper bound of the vertices of any strip along ``path`` [n, 4]."""
    if len(path) < 2:
        return 8
    turned = np.diff(np.arctan2(np.diff(path[:, PATH_Y]), np.diff(path[:, PATH_X])))
    arcs = np.abs((turned + np.pi) % (2.0 * np.pi) - np.pi) / _QUANTUM + 0.5
    return 8 + 8 * len(path) + int(arcs.astype(np.int64).sum())


@numba.njit(cache=True, error_model="numpy")
def at_progress(path: FloatArray, progress: float, out: FloatArray) -> int:
    """Pose ``out`` [3] at ``progress`` within the path's range; returns the first vertex beyond it (n where there is none)."""
    low, high = 0, len(path)
    while low < high:  # the first vertex with more progress
        middle = (low + high) // 2
        if path[middle, PATH_PROGRESS] > progress:
            high = middle
        else:
            low = middle + 1
    k = min(max(low, 1), len(path) - 1)
    f = (progress - path[k - 1, PATH_PROGRESS]) / (path[k, PATH_PROGRESS] - path[k - 1, PATH_PROGRESS])
    for j in range(3):
        out[j] = path[k - 1, j] + f * (path[k, j] - path[k - 1, j])
    return low


@numba.njit(cache=True, error_model="numpy")
def trim(path: FloatArray, start: float, end: float, line: FloatArray) -> int:
    """Vertices of the path from ``start`` to ``end`` (progress; inf: to its end) into ``line`` [*, 3]; returns their number.

    Where nothing of the path lies beyond ``start`` these are its last two vertices, before ``end`` its first two.
    """
    first = at_progress(path, start, line[0])
    last = len(path) - 1
    if first > last:
        line[0], line[1] = path[last - 1, :3], path[last, :3]
        return 2
    if end < np.inf and not path[0, PATH_PROGRESS] < end:
        line[0], line[1] = path[0, :3], path[1, :3]
        return 2
    count = 1
    for k in range(first, last + 1):
        if not path[k, PATH_PROGRESS] < end:
            break
        line[count] = path[k, :3]
        count += 1
    if end < np.inf:
        at_progress(path, end, line[count])
        count += 1
    return count


@numba.njit(cache=True, error_model="numpy")
def _side(line: FloatArray, count: int, shift: float, ring: FloatArray, begin: int) -> int:
    """Append the chain at ``shift`` (left is positive) beside ``line`` to ``ring``; returns the ring's new length."""
    n = begin
    ux, uy, before = 0.0, 0.0, 0.0
    known = False
    for k in range(count - 1):
        dx, dy = line[k + 1, 0] - line[k, 0], line[k + 1, 1] - line[k, 1]
        length = math.sqrt(dx * dx + dy * dy)
        if length == 0.0:
            continue
        vx, vy = dx / length, dy / length
        x, y = line[k, 0], line[k, 1]
        if not known:
            ring[n, 0], ring[n, 1] = x - shift * vy, y + shift * vx
            n += 1
        else:
            sine, cosine = ux * vy - uy * vx, ux * vx + uy * vy
            if sine * shift > 0.0:  # inside of the bend: where the two shifted segments cross
                back = shift * sine / (1.0 + cosine)
                if back <= min(before, length):
                    ring[n, 0], ring[n, 1] = x - shift * uy - back * ux, y + shift * ux - back * uy
                    n += 1
                else:  # they are too short to cross: from end to start, nearly straight (GEOS's "closing segment")
                    near = shift * _CLOSING / (_CLOSING + 1.0)
                    ring[n, 0], ring[n, 1] = x - shift * uy, y + shift * ux
                    ring[n + 1, 0], ring[n + 1, 1] = x - near * uy, y + near * ux
                    ring[n + 2, 0], ring[n + 2, 1] = x - near * vy, y + near * vx
                    ring[n + 3, 0], ring[n + 3, 1] = x - shift * vy, y + shift * vx
                    n += 4
            elif sine != 0.0 or cosine < 0.0:
                start = math.atan2(shift * ux, -shift * uy)
                total = abs(math.atan2(sine, cosine))
                arcs = int(total / _QUANTUM + 0.5)
                direction = 1.0 if shift < 0.0 else -1.0
                ring[n, 0], ring[n, 1] = x - shift * uy, y + shift * ux
                n += 1
                for i in range(1, arcs):
                    angle = start + direction * i * total / arcs
                    ring[n, 0], ring[n, 1] = x + abs(shift) * math.cos(angle), y + abs(shift) * math.sin(angle)
                    n += 1
                ring[n, 0], ring[n, 1] = x - shift * vy, y + shift * vx
                n += 1
        ux, uy, before, known = vx, vy, length, True
    if known:
        ring[n, 0], ring[n, 1] = line[count - 1, 0] - shift * uy, line[count - 1, 1] + shift * ux
        n += 1
    return n


@numba.njit(cache=True, error_model="numpy")
def strip(line: FloatArray, count: int, half_width: float, ring: FloatArray) -> int:
    """Ring of the strip along the first ``count`` vertices of ``line``; returns its number of vertices (0: no length)."""
    n = _side(line, count, half_width, ring, 0)
    m = _side(line, count, -half_width, ring, n)
    for i in range((m - n) // 2):  # the right side backwards
        for j in range(2):
            ring[n + i, j], ring[m - 1 - i, j] = ring[m - 1 - i, j], ring[n + i, j]
    return m


@numba.njit(cache=True, error_model="numpy")
def bounds_of(ring: FloatArray, out: FloatArray, fresh: bool) -> None:
    """Bounds ``out`` [4] (low x, low y, high x, high y) of a ring, widening what is there unless ``fresh``."""
    if fresh:
        out[0], out[1], out[2], out[3] = np.inf, np.inf, -np.inf, -np.inf
    for i in range(len(ring)):
        out[0], out[1] = min(out[0], ring[i, 0]), min(out[1], ring[i, 1])
        out[2], out[3] = max(out[2], ring[i, 0]), max(out[3], ring[i, 1])


@numba.njit(cache=True, error_model="numpy")
def _apart2(a: FloatArray, i0: int, i: int, lx: float, ly: float, hx: float, hy: float) -> float:
    """Squared distance of the bounds of edge (i0, i) of ``a`` from a box: a lower bound of what the edge can reach."""
    dx = max(0.0, max(min(a[i0, 0], a[i, 0]) - hx, lx - max(a[i0, 0], a[i, 0])))
    dy = max(0.0, max(min(a[i0, 1], a[i, 1]) - hy, ly - max(a[i0, 1], a[i, 1])))
    return float(dx * dx + dy * dy)


@numba.njit(cache=True, error_model="numpy")
def ring_gap2(a: FloatArray, b: FloatArray, best: float) -> float:
    """Squared distance of two polygons (0: they touch, or one holds the other), or ``best`` where it is not less than that."""
    if len(a) == 0 or len(b) == 0 or best == 0.0:
        return best
    low_x, low_y, high_x, high_y = a[0, 0], a[0, 1], a[0, 0], a[0, 1]
    for i in range(1, len(a)):
        low_x, low_y = min(low_x, a[i, 0]), min(low_y, a[i, 1])
        high_x, high_y = max(high_x, a[i, 0]), max(high_y, a[i, 1])
    if inside(a[0, 0], a[0, 1], b) or inside(b[0, 0], b[0, 1], a):
        return 0.0
    j0 = len(b) - 1
    for j in range(len(b)):
        if _apart2(b, j0, j, low_x, low_y, high_x, high_y) < best:
            lx, ly = min(b[j0, 0], b[j, 0]), min(b[j0, 1], b[j, 1])
            hx, hy = max(b[j0, 0], b[j, 0]), max(b[j0, 1], b[j, 1])
            i0 = len(a) - 1
            for i in range(len(a)):
                if _apart2(a, i0, i, lx, ly, hx, hy) < best:
                    found = segment_gap2(a[i0, 0], a[i0, 1], a[i, 0], a[i, 1], b[j0, 0], b[j0, 1], b[j, 0], b[j, 1])
                    best = min(best, found)
                    if best == 0.0:
                        return best
                i0 = i
        j0 = j
    return best


@numba.njit(cache=True, error_model="numpy")
def rings_touch(a: FloatArray, b: FloatArray) -> bool:
    """Whether two polygons have a point in common."""
    return ring_gap2(a, b, 1e-300) == 0.0
