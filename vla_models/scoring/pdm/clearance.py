"""Distances between simple polygons and open chains of points: how near one shape comes to another.

Shapes are [n, 2] vertices in order; a polygon's closing edge is implied (a repeated first vertex does no harm).
"""

from __future__ import annotations

import numpy as np

from vla_models.geometry import FloatArray
from vla_models.kernels import numba


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
def segment_gap2(ax: float, ay: float, bx: float, by: float, cx: float, cy: float, dx: float, dy: float) -> float:
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
        ux, uy = ring[j, 0] - ring[i, 0], ring[j, 1] - ring[i, 1]
        if (ring[i, 1] > y) != (ring[j, 1] > y) and x < ux * (y - ring[i, 1]) / uy + ring[i, 0]:
            found = not found
        j = i
    return found


@numba.njit(cache=True)
def border_gap2(a: FloatArray, b: FloatArray, closed: bool, limit: float) -> float:
    """Squared distance of polygon ``a``'s border from ``b``'s border (``closed``) or from the open chain ``b``.

    Distances above ``limit`` may come back as infinity. Fast where ``a`` is the small one: a segment of ``b`` too far from the
    circle around ``a`` is passed over.
    """
    n = len(a)
    x, y = 0.0, 0.0
    for i in range(n):
        x += a[i, 0] / n
        y += a[i, 1] / n
    radius2 = 0.0
    for i in range(n):
        radius2 = max(radius2, (a[i, 0] - x) ** 2 + (a[i, 1] - y) ** 2)
    radius = np.sqrt(radius2)
    best = np.inf
    reach2 = (limit + radius) ** 2
    j0 = len(b) - 1
    for j in range(len(b)):
        if (j > 0 or closed) and _point_segment2(x, y, b[j0, 0], b[j0, 1], b[j, 0], b[j, 1]) <= reach2:
            i0 = n - 1
            for i in range(n):
                gap2 = segment_gap2(a[i0, 0], a[i0, 1], a[i, 0], a[i, 1], b[j0, 0], b[j0, 1], b[j, 0], b[j, 1])
                if gap2 < best:
                    best = gap2
                    reach2 = min(reach2, (np.sqrt(gap2) + radius) ** 2)
                i0 = i
            if best == 0.0:
                return best
        j0 = j
    return best


@numba.njit(cache=True)
def gap(a: FloatArray, b: FloatArray) -> float:
    """Distance between the polygons ``a`` (the smaller, for speed) and ``b``; 0 where they touch or one holds the other."""
    if inside(a[0, 0], a[0, 1], b) or inside(b[0, 0], b[0, 1], a):
        return 0.0
    return float(np.sqrt(border_gap2(a, b, True, np.inf)))


@numba.njit(cache=True, inline="always")
def _beyond(x: float, y: float, c: float, s: float, la: float, wa: float, lb: float, wb: float) -> tuple[bool, float]:
    """Corners of a box (half sizes ``lb``, ``wb``) against the upright box (``la``, ``wa``) at the origin.

    The box is at (x, y) turned by the angle with cosine ``c`` and sine ``s``. Returns whether one of the upright box's sides
    separates the two, and the least squared distance of a corner from the upright box.
    """
    ex, ey = abs(c) * lb + abs(s) * wb, abs(s) * lb + abs(c) * wb
    nearest = np.inf
    for k in range(4):
        u = lb if k % 2 == 0 else -lb
        w = wb if k < 2 else -wb
        dx = max(abs(x + c * u - s * w) - la, 0.0)
        dy = max(abs(y + s * u + c * w) - wa, 0.0)
        nearest = min(nearest, dx * dx + dy * dy)
    return abs(x) > la + ex or abs(y) > wa + ey, nearest


@numba.njit(cache=True)
def box_gap(
    ax: float, ay: float, ah: float, al: float, aw: float, bx: float, by: float, bh: float, bl: float, bw: float
) -> float:
    """Distance between two boxes (centre x, y, heading, length, width); 0 where they touch."""
    ca, sa, cb, sb = np.cos(ah), np.sin(ah), np.cos(bh), np.sin(bh)
    c, s = ca * cb + sa * sb, ca * sb - sa * cb
    dx, dy = bx - ax, by - ay
    apart, near = _beyond(ca * dx + sa * dy, ca * dy - sa * dx, c, s, 0.5 * al, 0.5 * aw, 0.5 * bl, 0.5 * bw)
    apart_b, near_b = _beyond(-cb * dx - sb * dy, sb * dx - cb * dy, c, -s, 0.5 * bl, 0.5 * bw, 0.5 * al, 0.5 * aw)
    return float(np.sqrt(min(near, near_b))) if apart or apart_b else 0.0


@numba.njit(cache=True)
def polygon_within(a: FloatArray, b: FloatArray) -> bool:
    """Whether polygon ``a`` lies inside polygon ``b`` (a border that touches counts as outside)."""
    for i in range(len(a)):
        if not inside(a[i, 0], a[i, 1], b):
            return False
    return border_gap2(a, b, True, 0.0) > 0.0


@numba.njit(cache=True)
def polygon_centroid(ring: FloatArray) -> FloatArray:
    """Centre of area [2] of a polygon; the mean of the vertices where it has no area."""
    area = 0.0
    total = np.zeros(2)
    centroid = np.zeros(2)
    j = len(ring) - 1
    for i in range(len(ring)):
        px, py = ring[j, 0] - ring[0, 0], ring[j, 1] - ring[0, 1]
        qx, qy = ring[i, 0] - ring[0, 0], ring[i, 1] - ring[0, 1]
        cross = px * qy - py * qx
        area += cross
        total[0] += (px + qx) * cross
        total[1] += (py + qy) * cross
        centroid += ring[i] / len(ring)
        j = i
    if area != 0.0:
        centroid[:] = ring[0] + total / (3.0 * area)
    return centroid
