"""Everything that lies on the road plane, as one list of coloured triangles in painting order (no depth test needed).

Frame of the output: the camera's mast. The origin is on the road below the camera, x right, y ahead (where the camera
points, level), z up: panda3d's own axes.
"""

from __future__ import annotations

from typing import Final

import numba
import numpy as np
import numpy.typing as npt

from vla_models.geometry import to_frame
from vla_models.render.triangles import lane_ends, ring_length, signed_area, triangulate
from vla_models.scenes.scene import LAYERS, Scene

FloatArray = npt.NDArray[np.float64]

RANGE: Final = 160.0
"""Metres ahead beyond which nothing is drawn: a 4 m road is two pixels wide there at 160 px."""
DASH: Final = 3.0
GAP: Final = 6.0
"""Metres of a dashed lane line and of the space after it."""

ROAD: Final = (92, 94, 99)
JUNCTION: Final = (86, 88, 93)
CARPARK: Final = (66, 68, 75)
WHITE: Final = (232, 232, 228)
YELLOW: Final = (226, 178, 48)
SHADOW: Final = (44, 45, 49)

_LANE: Final = LAYERS.index("lane")
_COLOURS: Final = np.array(
    [{"intersection": JUNCTION, "lane_connector": JUNCTION, "carpark": CARPARK}.get(name, ROAD) for name in LAYERS],
    dtype=np.uint8,
)
_PAINT_ORDER: Final = np.array(
    [LAYERS.index(n) for n in ("drivable_area", "carpark", "roadblock", "intersection", "lane", "lane_connector")],
    dtype=np.int64,
)
_PAINTS: Final = np.array([WHITE, YELLOW, SHADOW], dtype=np.uint8)
_HALF_LINE: Final = 0.1  # metres; real lines are 0.10-0.15 m wide in all: below a pixel from 10 m on
_HALF_STOP: Final = 0.25
_SHARED: Final = 0.4  # metres between two lanes' sides that are one line on the road


@numba.njit(cache=True)
def _triangle(pos, rgb, n, ax, ay, bx, by, cx, cy, colour, view):  # type: ignore[no-untyped-def]
    """Append a triangle unless it lies wholly outside the view; returns the grown buffers and the new count."""
    side, back, ahead = view
    if min(ay, by, cy) > ahead or max(ay, by, cy) < back:
        return pos, rgb, n
    if min(ax - side * ay, bx - side * by, cx - side * cy) > 0.0 or max(ax + side * ay, bx + side * by, cx + side * cy) < 0.0:
        return pos, rgb, n
    if n + 3 > len(pos):
        pos = np.concatenate((pos, np.empty_like(pos)))
        rgb = np.concatenate((rgb, np.empty_like(rgb)))
    pos[n, 0], pos[n, 1], pos[n, 2] = ax, ay, 0.0
    pos[n + 1, 0], pos[n + 1, 1], pos[n + 1, 2] = bx, by, 0.0
    pos[n + 2, 0], pos[n + 2, 1], pos[n + 2, 2] = cx, cy, 0.0
    for k in range(3):
        rgb[n + k, 0], rgb[n + k, 1], rgb[n + k, 2], rgb[n + k, 3] = colour[0], colour[1], colour[2], 255
    return pos, rgb, n + 3


@numba.njit(cache=True)
def _line(pos, rgb, n, ax, ay, bx, by, half, colour, view):  # type: ignore[no-untyped-def]
    """Append a stroke of width 2 * half from a to b (two triangles)."""
    dx, dy = bx - ax, by - ay
    d = np.hypot(dx, dy)
    if d < 1e-6:
        return pos, rgb, n
    ox, oy = -dy / d * half, dx / d * half
    pos, rgb, n = _triangle(pos, rgb, n, ax + ox, ay + oy, ax - ox, ay - oy, bx - ox, by - oy, colour, view)
    return _triangle(pos, rgb, n, ax + ox, ay + oy, bx - ox, by - oy, bx + ox, by + oy, colour, view)


@numba.njit(cache=True)
def _middle(points, start, count, size):  # type: ignore[no-untyped-def]
    """The point halfway along the chain of ``count`` vertices from ``start`` (cyclic in a ring of ``size``)."""
    total = 0.0
    for k in range(count - 1):
        a, b = (start + k) % size, (start + k + 1) % size
        total += np.hypot(points[b, 0] - points[a, 0], points[b, 1] - points[a, 1])
    left = total / 2.0
    for k in range(count - 1):
        a, b = (start + k) % size, (start + k + 1) % size
        d = np.hypot(points[b, 0] - points[a, 0], points[b, 1] - points[a, 1])
        if left <= d and d > 0.0:
            t = left / d
            return points[a, 0] + t * (points[b, 0] - points[a, 0]), points[a, 1] + t * (points[b, 1] - points[a, 1])
        left -= d
    return points[start % size, 0], points[start % size, 1]


@numba.njit(cache=True)
def _near(points, start, count, size, x, y, limit):  # type: ignore[no-untyped-def]
    """Whether (x, y) lies within ``limit`` of the chain."""
    for k in range(count - 1):
        a, b = (start + k) % size, (start + k + 1) % size
        ux, uy = points[b, 0] - points[a, 0], points[b, 1] - points[a, 1]
        wx, wy = x - points[a, 0], y - points[a, 1]
        n2 = ux * ux + uy * uy
        t = 0.0 if n2 == 0.0 else min(1.0, max(0.0, (wx * ux + wy * uy) / n2))
        dx, dy = wx - t * ux, wy - t * uy
        if dx * dx + dy * dy < limit * limit:
            return True
    return False


@numba.njit(cache=True)
def _paint(points, offsets, layer, order, lane_layer, stop, shadows, colours, paints, view):  # type: ignore[no-untyped-def]
    """All triangles of the road plane: surfaces layer by layer, lane lines, stop lines, shadows."""
    side, back, ahead = view
    pos = np.empty((4096, 3), np.float32)
    rgb = np.empty((4096, 4), np.uint8)
    n = 0
    count = len(offsets) - 1
    seen = np.zeros(count, np.bool_)
    for p in range(count):
        ring = points[offsets[p] : offsets[p + 1]]
        lo_x, hi_x, lo_y, hi_y = np.inf, -np.inf, np.inf, -np.inf
        for k in range(len(ring)):
            lo_x, hi_x = min(lo_x, ring[k, 0]), max(hi_x, ring[k, 0])
            lo_y, hi_y = min(lo_y, ring[k, 1]), max(hi_y, ring[k, 1])
        # 2 m more than the view: a line between two lanes looks the same whether or not the other lane is in sight
        seen[p] = hi_y > back - 2.0 and lo_y < ahead and lo_x < side * hi_y + 2.0 and hi_x > -side * hi_y - 2.0
    for which in order:
        for p in range(count):
            if layer[p] == which and seen[p]:
                ring = points[offsets[p] : offsets[p + 1]]
                tri = triangulate(ring)
                for t in range(len(tri)):
                    a, b, c = ring[tri[t, 0]], ring[tri[t, 1]], ring[tri[t, 2]]
                    pos, rgb, n = _triangle(
                        pos, rgb, n, a[0], a[1], b[0], b[1], c[0], c[1], colours[which], view
                    )
    # sides[p, s]: first vertex and number of vertices of the left (s = 0) and right (s = 1) side, both in ring order
    sides = np.zeros((count, 2, 2), np.int64)
    middles = np.zeros((count, 2, 2))
    for p in range(count):
        if layer[p] != lane_layer or not seen[p]:
            continue
        ring = points[offsets[p] : offsets[p + 1]]
        size = ring_length(ring)
        if size < 4:
            seen[p] = False
            continue
        far, near = lane_ends(ring, size)
        if signed_area(ring[:size]) > 0.0:  # the ring begins with the right side
            far, near = near, far
        for s in range(2):
            start, end = ((near + 1) % size, far) if s == 0 else ((far + 1) % size, near)
            sides[p, s, 0], sides[p, s, 1] = start, (end - start) % size + 1
            middles[p, s] = _middle(ring, start, sides[p, s, 1], size)
    for p in range(count):
        if layer[p] != lane_layer or not seen[p]:
            continue
        ring = points[offsets[p] : offsets[p + 1]]
        size = ring_length(ring)
        for s in range(2):
            inner = False  # shared with a lane of the same direction
            opposite = False
            x, y = middles[p, s]
            for q in range(count):
                if q == p or layer[q] != lane_layer or not seen[q]:
                    continue
                other = points[offsets[q] : offsets[q + 1]]
                osize = ring_length(other)
                inner = inner or _near(other, sides[q, 1 - s, 0], sides[q, 1 - s, 1], osize, x, y, _SHARED)
                opposite = opposite or _near(other, sides[q, s, 0], sides[q, s, 1], osize, x, y, _SHARED)
                if inner:
                    break
            if inner and s == 1:
                continue  # the neighbour paints it as its left side
            colour = paints[1] if opposite and not inner else paints[0]
            arc = 0.0
            for k in range(sides[p, s, 1] - 1):
                i, j = (sides[p, s, 0] + k) % size, (sides[p, s, 0] + k + 1) % size
                ax, ay, bx, by = ring[i, 0], ring[i, 1], ring[j, 0], ring[j, 1]
                d = np.hypot(bx - ax, by - ay)
                if not inner:
                    pos, rgb, n = _line(pos, rgb, n, ax, ay, bx, by, _HALF_LINE, colour, view)
                elif d > 0.0:
                    at = np.floor(arc / (DASH + GAP)) * (DASH + GAP)
                    while at < arc + d:
                        t0, t1 = max(0.0, (at - arc) / d), min(1.0, (at + DASH - arc) / d)
                        if t1 > t0:
                            pos, rgb, n = _line(
                                pos, rgb, n, ax + t0 * (bx - ax), ay + t0 * (by - ay), ax + t1 * (bx - ax),
                                ay + t1 * (by - ay), _HALF_LINE, colour, view,
                            )  # fmt: skip
                        at += DASH + GAP
                arc += d
    for p in stop:
        ring = points[offsets[p] : offsets[p + 1]]
        size = ring_length(ring)
        if size >= 4:
            _, near = lane_ends(ring, size)
            a, b = ring[near], ring[(near + 1) % size]
            pos, rgb, n = _line(pos, rgb, n, a[0], a[1], b[0], b[1], _HALF_STOP, paints[0], view)
    for p in range(len(shadows)):
        for t in range(2):
            a, b, c = shadows[p, 0], shadows[p, 1 + t], shadows[p, 2 + t]
            pos, rgb, n = _triangle(pos, rgb, n, a[0], a[1], b[0], b[1], c[0], c[1], paints[2], view)
    return pos[:n], rgb[:n]


def view_from_above(fov: float, aspect: float, pitch: float) -> tuple[float, float, float]:
    """(side, back, ahead): the camera sees no more of the road than y in [back, ahead] and |x| <= side * y.

    ``fov`` is horizontal, ``pitch`` positive upwards (radians), ``aspect`` = height / width. Where the camera looks so
    steeply that this wedge does not exist, ``side`` is infinite.
    """
    half = np.tan(fov / 2.0)
    nearest = np.cos(pitch) - half * aspect * abs(np.sin(pitch))  # how far ahead the corner rays go per metre of depth
    return (half / nearest, 0.0, RANGE) if nearest > 0.05 else (np.inf, -RANGE, RANGE)


def paint_ground(
    scene: Scene, mast: FloatArray, shadows: FloatArray, view: tuple[float, float, float]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Triangles of the road plane as the camera's mast sees it, in painting order.

    ``mast``: [3] its pose x, y, heading in the scene frame; ``shadows``: [n, 4, 2] dark quadrilaterals in the mast frame;
    ``view``: from ``view_from_above``. Returns positions [3m, 3] and RGBA [3m, 4], three rows a triangle.
    """
    polygons, lights = scene.polygons, scene.red_lights
    return _paint(
        to_mast(polygons.vertices, mast), np.asarray(polygons.offsets, np.int64), np.asarray(polygons.layer, np.int8),
        _PAINT_ORDER, _LANE, np.asarray(lights.polygon, np.int64), shadows, _COLOURS, _PAINTS, view,
    )  # fmt: skip


def to_mast(points: FloatArray, mast: FloatArray) -> FloatArray:
    """Points [n, 2] of the scene frame in the mast frame (x right, y ahead)."""
    local = to_frame(points, mast)
    return np.ascontiguousarray(np.stack([-local[:, 1], local[:, 0]], axis=-1))
