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
from vla_models.render.triangles import lane_ends, ring_length, signed_area, simplify, triangulate
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
_ROADBLOCK: Final = LAYERS.index("roadblock")
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
_TOLERANCE: Final = 0.03  # metres by which a simplified rim may stray


@numba.njit(cache=True)
def _triangle(pos, rgb, n, ax, ay, bx, by, cx, cy, colour, view):  # type: ignore[no-untyped-def]
    """Append a triangle unless it lies wholly outside the view; returns the grown buffers and the new count."""
    side, back, ahead = view
    if min(ay, by, cy) > ahead or max(ay, by, cy) < back:
        return pos, rgb, n
    if side > 0.0:
        if min(ax - side * ay, bx - side * by, cx - side * cy) > 0.0:
            return pos, rgb, n
        if max(ax + side * ay, bx + side * by, cx + side * cy) < 0.0:
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
def _middle(chain, count):  # type: ignore[no-untyped-def]
    """The point halfway along the first ``count`` vertices of a chain."""
    total = 0.0
    for k in range(count - 1):
        total += np.hypot(chain[k + 1, 0] - chain[k, 0], chain[k + 1, 1] - chain[k, 1])
    left = total / 2.0
    for k in range(count - 1):
        dx, dy = chain[k + 1, 0] - chain[k, 0], chain[k + 1, 1] - chain[k, 1]
        d = np.hypot(dx, dy)
        if left <= d and d > 0.0:
            return chain[k, 0] + left / d * dx, chain[k, 1] + left / d * dy
        left -= d
    return chain[0, 0], chain[0, 1]


@numba.njit(cache=True)
def _near(chain, count, x, y):  # type: ignore[no-untyped-def]
    """Whether (x, y) lies on the first ``count`` vertices of a chain, give or take ``_SHARED``."""
    for k in range(count - 1):
        ux, uy = chain[k + 1, 0] - chain[k, 0], chain[k + 1, 1] - chain[k, 1]
        wx, wy = x - chain[k, 0], y - chain[k, 1]
        n2 = ux * ux + uy * uy
        t = 0.0 if n2 == 0.0 else min(1.0, max(0.0, (wx * ux + wy * uy) / n2))
        dx, dy = wx - t * ux, wy - t * uy
        if dx * dx + dy * dy < _SHARED * _SHARED:
            return True
    return False


@numba.njit(cache=True)
def _paint(points, offsets, layer, order, stop, shadows, colours, paints, view):  # type: ignore[no-untyped-def]
    """All triangles of the road plane: surfaces layer by layer, lane lines, stop lines, shadows."""
    side, back, ahead = view
    pos = np.empty((4096, 3), np.float32)
    rgb = np.empty((4096, 4), np.uint8)
    n = 0
    count = len(offsets) - 1
    # 1. what is in sight, without the vertices that a straight road does not need: `kept` holds ring p from offsets[p] on,
    # lanes turned so that the left side (lefts[p] vertices) comes first, then the right one (rights[p])
    kept = np.empty_like(points)
    lefts = np.zeros(count, np.int64)
    rights = np.zeros(count, np.int64)
    for p in range(count):
        ring = points[offsets[p] : offsets[p + 1]]
        lo_x, hi_x, lo_y, hi_y = np.inf, -np.inf, np.inf, -np.inf
        for k in range(len(ring)):
            lo_x, hi_x = min(lo_x, ring[k, 0]), max(hi_x, ring[k, 0])
            lo_y, hi_y = min(lo_y, ring[k, 1]), max(hi_y, ring[k, 1])
        # 2 m more than the view: a line between two lanes looks the same whether or not the other lane is in sight
        if hi_y < back - 2.0 or lo_y > ahead or (side > 0.0 and (lo_x > side * hi_y + 2.0 or hi_x < -side * hi_y - 2.0)):
            continue
        size = ring_length(ring)
        target = kept[offsets[p] : offsets[p + 1]]
        if size < 3:
            continue
        if layer[p] != _LANE or size < 4:
            lefts[p] = simplify(ring, size, 0, size, _TOLERANCE, target)
            continue
        far, near = lane_ends(ring, size)
        if signed_area(ring[:size]) > 0.0:  # the ring begins with the right side
            far, near = near, far
        lefts[p] = simplify(ring, size, near + 1, (far - near - 1) % size + 1, _TOLERANCE, target)
        rights[p] = simplify(ring, size, far + 1, (near - far - 1) % size + 1, _TOLERANCE, target[lefts[p] :])
    # 2. surfaces
    for which in order:
        for p in range(count):
            if layer[p] == which and lefts[p] > 0:
                ring = kept[offsets[p] : offsets[p] + lefts[p] + rights[p]]
                tri = triangulate(ring)
                for t in range(len(tri)):
                    a, b, c = tri[t]
                    pos, rgb, n = _triangle(
                        pos, rgb, n, ring[a, 0], ring[a, 1], ring[b, 0], ring[b, 1], ring[c, 0], ring[c, 1], colours[which], view
                    )
    # 3. lane lines
    for p in range(count):
        for s in range(2):
            if rights[p] == 0:
                continue
            size = lefts[p] if s == 0 else rights[p]
            chain = kept[offsets[p] : offsets[p] + size] if s == 0 else kept[offsets[p] + lefts[p] : offsets[p] + lefts[p] + size]
            x, y = _middle(chain, size)
            inner, opposite = False, False
            for q in range(count):
                if q == p or rights[q] == 0:
                    continue
                left = kept[offsets[q] : offsets[q] + lefts[q]]
                right = kept[offsets[q] + lefts[q] : offsets[q] + lefts[q] + rights[q]]
                on_left, on_right = _near(left, lefts[q], x, y), _near(right, rights[q], x, y)
                inner = inner or (on_right if s == 0 else on_left)
                opposite = opposite or (on_left if s == 0 else on_right)
            if inner and s == 1:
                continue  # the neighbour paints it as its left side
            colour = paints[1] if opposite and not inner else paints[0]
            arc = 0.0
            for k in range(size - 1):
                ax, ay, bx, by = chain[k, 0], chain[k, 1], chain[k + 1, 0], chain[k + 1, 1]
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
    # 4. stop lines and shadows
    for p in stop:
        ring = points[offsets[p] : offsets[p + 1]]
        size = ring_length(ring)
        if size >= 4:
            _, near = lane_ends(ring, size)
            a, b = near, (near + 1) % size
            pos, rgb, n = _line(pos, rgb, n, ring[a, 0], ring[a, 1], ring[b, 0], ring[b, 1], _HALF_STOP, paints[0], view)
    for p in range(len(shadows)):
        q = shadows[p]
        for t in range(2):
            b, c = 1 + t, 2 + t
            pos, rgb, n = _triangle(pos, rgb, n, q[0, 0], q[0, 1], q[b, 0], q[b, 1], q[c, 0], q[c, 1], paints[2], view)
    return pos[:n], rgb[:n]


def view_from_above(fov: float, aspect: float, pitch: float) -> tuple[float, float, float]:
    """(side, back, ahead): the camera sees no more of the road than y in [back, ahead] and |x| <= side * y.

    ``fov`` is horizontal, ``pitch`` positive upwards (radians), ``aspect`` = height / width. Where the camera looks so
    steeply that there is no such wedge, ``side`` is 0 and only ``back`` and ``ahead`` hold.
    """
    half = np.tan(fov / 2.0)
    nearest = np.cos(pitch) - half * aspect * abs(np.sin(pitch))  # how far ahead the corner rays go per metre of depth
    return (half / nearest, 0.0, RANGE) if nearest > 0.05 else (0.0, -RANGE, RANGE)


def paint_ground(
    scene: Scene, mast: FloatArray, shadows: FloatArray, view: tuple[float, float, float]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Triangles of the road plane as the camera's mast sees it, in painting order.

    ``mast``: [3] its pose x, y, heading in the scene frame; ``shadows``: [n, 4, 2] dark quadrilaterals in the mast frame;
    ``view``: from ``view_from_above``. Returns positions [3m, 3] and RGBA [3m, 4], three rows a triangle.
    """
    polygons, lights = scene.polygons, scene.red_lights
    # a roadblock is the union of its lanes: painting it again would only cost time
    order = _PAINT_ORDER if not (polygons.layer == _LANE).any() else _PAINT_ORDER[_PAINT_ORDER != _ROADBLOCK]
    return _paint(
        to_mast(polygons.vertices, mast), np.asarray(polygons.offsets, np.int64), np.asarray(polygons.layer, np.int8),
        order, np.asarray(lights.polygon, np.int64), shadows, _COLOURS, _PAINTS, view,
    )  # fmt: skip


def to_mast(points: FloatArray, mast: FloatArray) -> FloatArray:
    """Points [n, 2] of the scene frame in the mast frame (x right, y ahead)."""
    local = to_frame(points, mast)
    return np.ascontiguousarray(np.stack([-local[:, 1], local[:, 0]], axis=-1))
