"""Distances between simple polygons and open chains of points: how near one shape comes to another.

Shapes are [n, 2] vertices in order; a polygon's closing edge is implied (a repeated first vertex does no harm).
"""

from __future__ import annotations

import numba
import numpy as np

from vla_models.geometry import FloatArray


@numba.njit(cache=True, inline="always")
def _point_segment2(px: float, py: float, ax: float, ay: float, bx: float, by: float) -> float:
    """Squared distance of a point from a segment."""
    ux, uy = bx - ax, by - ay
    wx, wy = px - ax, py - ay
    n2 = ux * ux + uy * uy
    if n2 > 0.0:
        t = min(1.0, max(0.0, (wx * ux + wy * uy) / n2))
        wx -= t * ux
        wy -= t * uy
    return wx * wx + wy * wy


@numba.njit(cache=True)
def segment_gap2(
    ax: float, ay: float, bx: float, by: float, cx: float, cy: float, dx: float, dy: float
) -> float:
    """Squared distance between the segments AB and CD; 0 where they cross."""
    ux, uy = bx - ax, by - ay
    vx, vy = dx - cx, dy - cy
    c = ux * (cy - ay) - uy * (cx - ax)
    d = ux * (dy - ay) - uy * (dx - ax)
    a = vx * (ay - cy) - vy * (ax - cx)
    b = vx * (by - cy) - vy * (bx - cx)
    if ((c > 0.0) != (d > 0.0)) and ((a > 0.0) != (b > 0.0)):
        return 0.0
    return min(
        min(_point_segment2(ax, ay, cx, cy, dx, dy), _point_segment2(bx, by, cx, cy, dx, dy)),
        min(_point_segment2(cx, cy, ax, ay, bx, by), _point_segment2(dx, dy, ax, ay, bx, by)),
    )


@numba.njit(cache=True)
def inside(x: float, y: float, ring: FloatArray) -> bool:
    """Whether a point lies inside a polygon (even-odd rule; the border is undecided)."""
    found = False
    j = len(ring) - 1
    for i in range(len(ring)):
        if (ring[i, 1] > y) != (ring[j, 1] > y):
            if x < (ring[j, 0] - ring[i, 0]) * (y - ring[i, 1]) / (ring[j, 1] - ring[i, 1]) + ring[i, 0]:
                found = not found
        j = i
    return found


@numba.njit(cache=True)
def border_gap2(a: FloatArray, b: FloatArray, closed: bool) -> float:
    """Squared distance of polygon ``a``'s border from ``b``'s border (``closed``) or from the open chain ``b``.

    Fast where ``a`` is the small one: a segment of ``b`` that lies beyond the circle around ``a`` is passed over.
    """
    n = len(a)
    x, y = a[:, 0].mean(), a[:, 1].mean()
    radius = 0.0
    for i in range(n):
        radius = max(radius, np.hypot(a[i, 0] - x, a[i, 1] - y))
    best = np.inf
    reach2 = np.inf
    j0 = len(b) - 1
    for j in range(len(b)):
        if (j > 0 or closed) and _point_segment2(x, y, b[j0, 0], b[j0, 1], b[j, 0], b[j, 1]) <= reach2:
            i0 = n - 1
            for i in range(n):
                gap2 = segment_gap2(a[i0, 0], a[i0, 1], a[i, 0], a[i, 1], b[j0, 0], b[j0, 1], b[j, 0], b[j, 1])
                if gap2 < best:
                    best = gap2
                    reach2 = (np.sqrt(gap2) + radius) ** 2
                i0 = i
            if best == 0.0:
                return best
        j0 = j
    return best


@numba.njit(cache=True)
def gap(a: FloatArray, b: FloatArray) -> float:
    """Distance between the polygons ``a`` and ``b``; 0 where they touch or one contains the other."""
    if inside(a[0, 0], a[0, 1], b) or inside(b[0, 0], b[0, 1], a):
        return 0.0
    return float(np.sqrt(border_gap2(a, b, True)))


@numba.njit(cache=True)
def polygon_within(a: FloatArray, b: FloatArray) -> bool:
    """Whether polygon ``a`` lies inside polygon ``b`` (a border that touches counts as outside)."""
    for i in range(len(a)):
        if not inside(a[i, 0], a[i, 1], b):
            return False
    return border_gap2(a, b, True) > 0.0


def polygon_centroid(ring: FloatArray) -> FloatArray:
    """Centre of area [2] of a polygon; the mean of the vertices where it has no area."""
    base = ring[0]
    p, q = ring - base, np.roll(ring, -1, axis=0) - base
    cross = p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0]
    area = cross.sum()
    if area == 0.0:
        return np.asarray(ring.mean(axis=0))
    return np.asarray(base + ((p + q) * cross[:, None]).sum(axis=0) / (3.0 * area))
