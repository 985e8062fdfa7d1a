"""Everything that lies on the road plane, as one list of coloured triangles in painting order (no depth test needed).

Frame of the output: the camera's mast. The origin is on the road below the camera, x right, y ahead (where the camera
points, level), z up: panda3d's own axes.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from vla_models.geometry import to_frame
from vla_models.kernels import numba
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
_SURFACES: Final = {"intersection": JUNCTION, "lane_connector": JUNCTION, "carpark": CARPARK}
_PAINTS: Final = np.array(
    [(*_SURFACES.get(name, ROAD), 255) for name in LAYERS] + [(*c, 255) for c in (WHITE, YELLOW, SHADOW)], np.uint8
)
_WHITE: Final = len(LAYERS)
_YELLOW: Final = len(LAYERS) + 1
_SHADOW: Final = len(LAYERS) + 2
_PAINT_ORDER: Final = np.array(
    [LAYERS.index(n) for n in ("drivable_area", "carpark", "roadblock", "intersection", "lane", "lane_connector")],
    dtype=np.int64,
)
_HALF_LINE: Final = 0.1  # metres; real lines are 0.10-0.15 m wide in all: below a pixel from 10 m on
_HALF_STOP: Final = 0.25
_SHARED: Final = 0.4  # metres between two lanes' sides that are one line on the road
_TOLERANCE: Final = 0.03  # metres by which a simplified rim may stray


@numba.njit(cache=True)
def _triangle(out, paint, n, ax, ay, bx, by, cx, cy, colour, view):  # type: ignore[no-untyped-def]
    """Write triangle number ``n`` unless it lies wholly outside the view; returns the new count."""
    side, back, ahead = view
    if min(ay, by, cy) > ahead or max(ay, by, cy) < back:
        return n
    if side > 0.0:
        if min(ax - side * ay, bx - side * by, cx - side * cy) > 0.0:
            return n
        if max(ax + side * ay, bx + side * by, cx + side * cy) < 0.0:
            return n
    out[n, 0, 0], out[n, 0, 1] = ax, ay
    out[n, 1, 0], out[n, 1, 1] = bx, by
    out[n, 2, 0], out[n, 2, 1] = cx, cy
    paint[n] = colour
    return n + 1


@numba.njit(cache=True)
def _middle(chain):  # type: ignore[no-untyped-def]
    """The point halfway along a chain."""
    total = 0.0
    for k in range(len(chain) - 1):
        total += np.hypot(chain[k + 1, 0] - chain[k, 0], chain[k + 1, 1] - chain[k, 1])
    left = total / 2.0
    for k in range(len(chain) - 1):
        dx, dy = chain[k + 1, 0] - chain[k, 0], chain[k + 1, 1] - chain[k, 1]
        d = np.hypot(dx, dy)
        if left <= d and d > 0.0:
            return chain[k, 0] + left / d * dx, chain[k, 1] + left / d * dy
        left -= d
    return chain[0, 0], chain[0, 1]


@numba.njit(cache=True)
def _near(chain, x, y):  # type: ignore[no-untyped-def]
    """Whether (x, y) lies on a chain, give or take ``_SHARED``."""
    for k in range(len(chain) - 1):
        ux, uy = chain[k + 1, 0] - chain[k, 0], chain[k + 1, 1] - chain[k, 1]
        wx, wy = x - chain[k, 0], y - chain[k, 1]
        n2 = ux * ux + uy * uy
        t = 0.0 if n2 == 0.0 else min(1.0, max(0.0, (wx * ux + wy * uy) / n2))
        dx, dy = wx - t * ux, wy - t * uy
        if dx * dx + dy * dy < _SHARED * _SHARED:
            return True
    return False


@numba.njit(cache=True)
def _paint(points, offsets, layer, order, stop, shadows, view, out, paint):  # type: ignore[no-untyped-def]
    """All triangles of the road plane: surfaces layer by layer, lane lines, stop lines, shadows; returns their number.

    ``out`` [m, 3, 2] corners and ``paint`` [m] colours are filled; m must suffice (``paint_ground`` bounds it).
    """
    side, back, ahead = view
    n = 0
    quad = np.empty((4, 2))
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
                    a, b, c = tri[t, 0], tri[t, 1], tri[t, 2]
                    n = _triangle(
                        out, paint, n, ring[a, 0], ring[a, 1], ring[b, 0], ring[b, 1], ring[c, 0], ring[c, 1], which, view
                    )
    # 3. lane lines and stop lines: a stroke is ax, ay, bx, by, half its width, its paint
    stroke = np.empty((len(out), 6))
    m = 0
    for p in range(count):
        for s in range(2):
            if rights[p] == 0:
                continue
            start, size = (offsets[p], lefts[p]) if s == 0 else (offsets[p] + lefts[p], rights[p])
            chain = kept[start : start + size]
            x, y = _middle(chain)
            inner, opposite = False, False  # whether the side is shared with a lane of the same direction, of the other one
            for q in range(count):
                if q == p or rights[q] == 0:
                    continue
                for o in range(2):
                    start, size = (offsets[q], lefts[q]) if o == 0 else (offsets[q] + lefts[q], rights[q])
                    if _near(kept[start : start + size], x, y):
                        inner, opposite = inner or o != s, opposite or o == s
            if inner and s == 1:
                continue  # the neighbour paints it as its left side
            arc = 0.0
            for k in range(len(chain) - 1):
                ax, ay = chain[k, 0], chain[k, 1]
                dx, dy = chain[k + 1, 0] - ax, chain[k + 1, 1] - ay
                d = np.hypot(dx, dy)
                at = np.floor(arc / (DASH + GAP)) * (DASH + GAP) if inner else arc
                on = DASH if inner else d
                while at < arc + d:
                    t0, t1 = max(0.0, (at - arc) / d), min(1.0, (at + on - arc) / d)
                    if t1 > t0:
                        stroke[m, 0], stroke[m, 1], stroke[m, 2], stroke[m, 3] = (
                            ax + t0 * dx,
                            ay + t0 * dy,
                            ax + t1 * dx,
                            ay + t1 * dy,
                        )
                        stroke[m, 4], stroke[m, 5] = _HALF_LINE, _YELLOW if opposite and not inner else _WHITE
                        m += 1
                    at += DASH + GAP if inner else d
                arc += d
    for p in stop:
        ring = points[offsets[p] : offsets[p + 1]]
        size = ring_length(ring)
        if size >= 4:
            _, near = lane_ends(ring, size)
            b = (near + 1) % size
            stroke[m, 0], stroke[m, 1], stroke[m, 2], stroke[m, 3] = ring[near, 0], ring[near, 1], ring[b, 0], ring[b, 1]
            stroke[m, 4], stroke[m, 5] = _HALF_STOP, _WHITE
            m += 1
    for k in range(m + len(shadows)):
        if k < m:
            ax, ay, bx, by = stroke[k, 0], stroke[k, 1], stroke[k, 2], stroke[k, 3]
            d = max(np.hypot(bx - ax, by - ay), 1e-9)
            ox, oy = (ay - by) / d * stroke[k, 4], (bx - ax) / d * stroke[k, 4]
            quad[0, 0], quad[0, 1], quad[1, 0], quad[1, 1] = ax + ox, ay + oy, ax - ox, ay - oy
            quad[2, 0], quad[2, 1], quad[3, 0], quad[3, 1] = bx - ox, by - oy, bx + ox, by + oy
        else:
            for t in range(4):
                quad[t, 0], quad[t, 1] = shadows[k - m, t, 0], shadows[k - m, t, 1]
        colour = np.int64(stroke[k, 5]) if k < m else np.int64(_SHADOW)
        for t in range(1, 3):
            n = _triangle(
                out, paint, n, quad[0, 0], quad[0, 1], quad[t, 0], quad[t, 1], quad[t + 1, 0], quad[t + 1, 1], colour, view
            )
    return n


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
    polygons = scene.polygons
    points = to_mast(polygons.vertices, mast)
    stop = np.asarray(scene.red_lights.polygon, np.int64)
    # a roadblock is the union of its lanes: painting it again would only cost time
    order = _PAINT_ORDER if not (polygons.layer == _LANE).any() else _PAINT_ORDER[_PAINT_ORDER != _ROADBLOCK]
    # a surface has fewer triangles than vertices, an edge one stroke of two or, dashed, one per dash that it touches
    rim = float(np.hypot(*np.diff(points, axis=0).T).sum()) if len(points) else 0.0
    most = len(points) + 2 * (2 * len(points) + int(rim / (DASH + GAP))) + 2 * (len(stop) + len(shadows))
    out = np.empty((most, 3, 2), np.float32)
    paint = np.empty(most, np.uint8)
    offsets, layer = np.asarray(polygons.offsets, np.int64), np.asarray(polygons.layer, np.int8)
    count = _paint(points, offsets, layer, order, stop, shadows, view, out, paint)
    pos = np.zeros((3 * count, 3), np.float32)
    pos[:, :2] = out[:count].reshape(-1, 2)
    return pos, np.repeat(_PAINTS[paint[:count]], 3, axis=0)


def to_mast(points: FloatArray, mast: FloatArray) -> FloatArray:
    """Points [n, 2] of the scene frame in the mast frame (x right, y ahead)."""
    local = to_frame(points, mast)
    return np.ascontiguousarray(np.stack([-local[:, 1], local[:, 0]], axis=-1))
