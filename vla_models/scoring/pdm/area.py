"""Where the ego is: drivable area (DAC), driving direction (DDC), several lanes at once, red lights (TLC).

All of it rests on point-in-polygon tests with GEOS's semantics: a point on the border is outside. Each polygon carries a
table of cells along its longer side. A cell knows between which coordinates all of its edges lie, and the widest gap
between them that is inside: most points are decided by that, the others look at the few edges that cross their cell.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from vla_models.kernels import numba
from vla_models.scenes.scene import LAYERS, Scene
from vla_models.scoring.pdm.collide import (
    BOX_COS,
    BOX_SIN,
    BOX_X,
    BOX_Y,
    CENTER_IN_INTERSECTION,
    HALF_LENGTH,
    HALF_WIDTH,
    MULTIPLE_LANES,
    NON_DRIVABLE,
    ONCOMING,
    RADIUS,
    REAR_AXLE_IN_INTERSECTION,
)
from vla_models.scoring.pdm.track import STEPS, owned

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_INTERSECTION: Final = LAYERS.index("intersection")
_LANE: Final = LAYERS.index("lane")
_CONNECTOR: Final = LAYERS.index("lane_connector")

_MAX_CELLS: Final = 64
_STRETCH: Final = 8  # steps for which the candidate polygons are chosen together
_SLACK: Final = 1e-9  # metres added to quick rejections, so that rounding never makes them decide
_DDC_STEPS: Final = 10  # driving direction: metres against the traffic within 1 s …
_DDC_COMPLIANT: Final = 2.0  # … below which the score is 1,
_DDC_VIOLATION: Final = 6.0  # … and from which it is 0


LOW_X, LOW_Y, HIGH_X, HIGH_Y, HULL_X, HULL_Y, HULL_COS, HULL_SIN, HULL_LENGTH, HULL_WIDTH = range(10)
SWAPPED, GRID_START, GRID_DENSITY, FIRST_CELL, LAST_CELL = range(10, 15)
"""Columns of ``Areas.shapes``: bounds; an oriented box around the polygon (centre, direction, half extents); whether the
cells lie along x (the longer side) and edges are stored as (y, x); where cells start, cells per metre; which cells."""

SPAN_LOW, SPAN_HIGH, GAP_LOW, GAP_HIGH, FIRST_EDGE, END_EDGE = range(6)
"""Columns of ``Areas.cells``: smallest and largest across coordinate of the cell's edges; a gap between them that is inside;
which edges."""


class Areas(NamedTuple):
    """Map polygons, prepared for point tests: P polygons, C cells in total, E edge entries (an edge may be in many cells).

    Few wide arrays instead of many: numba passes each array as nine words, and point tests are called often.
    """

    layer: npt.NDArray[np.int8]
    """[P] index into ``LAYERS``."""
    on_route: npt.NDArray[np.bool_]
    """[P] a lane or lane connector of the route."""
    shapes: FloatArray
    """[P, 15] see ``LOW_X`` …"""
    cells: FloatArray
    """[C, 6] see ``SPAN_LOW`` …"""
    edges: FloatArray
    """[E, 4] end points (across 1, along 1, across 2, along 2); "along" is the direction of the cells."""


class RedAreas(NamedTuple):
    """Lane connectors behind red lights: R rings, ragged over one vertex array."""

    vertices: FloatArray
    """[V, 2]"""
    offsets: IntArray
    """[R + 1] ring r owns ``vertices[offsets[r]:offsets[r + 1]]``."""
    polygon: IntArray
    """[R] the same polygon in ``Areas``."""
    red: npt.NDArray[np.bool_]
    """[R, 51] whether the light is red at each step."""


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _layout(vertices: FloatArray, offsets: IntArray, shapes: FloatArray) -> int:
    """Fill ``shapes``; returns the number of cells."""
    cells = 0
    for p in range(offsets.shape[0] - 1):
        low_x, low_y, high_x, high_y = np.inf, np.inf, -np.inf, -np.inf
        mean_x, mean_y = 0.0, 0.0
        count = offsets[p + 1] - offsets[p]
        for v in range(offsets[p], offsets[p + 1]):
            x, y = vertices[v, 0], vertices[v, 1]
            low_x, low_y, high_x, high_y = min(low_x, x), min(low_y, y), max(high_x, x), max(high_y, y)
            mean_x += x / count
            mean_y += y / count
        shapes[p, LOW_X], shapes[p, LOW_Y], shapes[p, HIGH_X], shapes[p, HIGH_Y] = low_x, low_y, high_x, high_y
        xx, xy, yy = 0.0, 0.0, 0.0
        for v in range(offsets[p], offsets[p + 1]):
            x, y = vertices[v, 0] - mean_x, vertices[v, 1] - mean_y
            xx, xy, yy = xx + x * x, xy + x * y, yy + y * y
        angle = 0.5 * np.arctan2(2.0 * xy, xx - yy)  # the vertices' principal axis
        c, s = np.cos(angle), np.sin(angle)
        low_u, low_w, high_u, high_w = np.inf, np.inf, -np.inf, -np.inf
        for v in range(offsets[p], offsets[p + 1]):
            x, y = vertices[v, 0] - mean_x, vertices[v, 1] - mean_y
            u, w = x * c + y * s, y * c - x * s
            low_u, low_w, high_u, high_w = min(low_u, u), min(low_w, w), max(high_u, u), max(high_w, w)
        u, w = (low_u + high_u) / 2.0, (low_w + high_w) / 2.0
        shapes[p, HULL_X], shapes[p, HULL_Y] = mean_x + u * c - w * s, mean_y + u * s + w * c
        shapes[p, HULL_COS], shapes[p, HULL_SIN] = c, s
        shapes[p, HULL_LENGTH], shapes[p, HULL_WIDTH] = (high_u - low_u) / 2.0, (high_w - low_w) / 2.0

        swapped = high_x - low_x > high_y - low_y
        start, length = (low_x, high_x - low_x) if swapped else (low_y, high_y - low_y)
        count = min(_MAX_CELLS, count)
        shapes[p, SWAPPED] = 1.0 if swapped else 0.0
        shapes[p, GRID_START] = start
        shapes[p, GRID_DENSITY] = count / length if length > 0.0 else 0.0
        shapes[p, FIRST_CELL] = cells
        cells += count
        shapes[p, LAST_CELL] = cells - 1
    return cells


@numba.njit(cache=True, error_model="numpy")
def _cell(shapes: FloatArray, p: int, along: float) -> int:
    """The cell of polygon ``p`` at the coordinate ``along`` (monotone, so that an edge is in every cell it crosses)."""
    cell = shapes[p, FIRST_CELL] + (along - shapes[p, GRID_START]) * shapes[p, GRID_DENSITY]
    return int(min(cell, shapes[p, LAST_CELL]))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _fill(
    vertices: FloatArray, offsets: IntArray, shapes: FloatArray, counts: IntArray, edges: FloatArray, store: bool
) -> None:
    """Count (``store`` False) or write (True) the edges of each cell; ``counts`` [C] is then the cells' write position."""
    for p in range(offsets.shape[0] - 1):
        along, across = (0, 1) if shapes[p, SWAPPED] != 0.0 else (1, 0)
        before = offsets[p + 1] - 1
        for v in range(offsets[p], offsets[p + 1]):
            a, b = vertices[before, along], vertices[v, along]
            for cell in range(_cell(shapes, p, min(a, b)), _cell(shapes, p, max(a, b)) + 1):
                if store:
                    e = counts[cell]
                    edges[e, 0], edges[e, 1], edges[e, 2], edges[e, 3] = vertices[before, across], a, vertices[v, across], b
                counts[cell] += 1
            before = v


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _span(shapes: FloatArray, entries: IntArray, cells: FloatArray, edges: FloatArray) -> None:
    """Fill ``cells``: each one's edges, their extent, and the widest gap between them if it is inside.

    Edges count with their whole length, not only the part in the cell: that makes gaps narrower, never wrong.
    """
    for p in range(shapes.shape[0]):
        for cell in range(int(shapes[p, FIRST_CELL]), int(shapes[p, LAST_CELL]) + 1):
            first, end = entries[cell], entries[cell + 1]
            for e in range(first + 1, end):  # insertion sort of a handful of edges by their smaller across coordinate
                for k in range(e, first, -1):
                    if min(edges[k, 0], edges[k, 2]) >= min(edges[k - 1, 0], edges[k - 1, 2]):
                        break
                    for j in range(4):
                        edges[k, j], edges[k - 1, j] = edges[k - 1, j], edges[k, j]
            low_end, high_end, gap_low, gap_high = np.inf, -np.inf, 0.0, 0.0
            covered = -np.inf
            for e in range(first, end):
                low, high = min(edges[e, 0], edges[e, 2]), max(edges[e, 0], edges[e, 2])
                if e > first and low - covered > gap_high - gap_low:
                    # parity of the gap from the edges beyond it, on the line through the cell's middle
                    middle = shapes[p, GRID_START] + (cell - shapes[p, FIRST_CELL] + 0.5) / shapes[p, GRID_DENSITY]
                    inside = False
                    for k in range(e, end):
                        if (edges[k, 1] > middle) != (edges[k, 3] > middle):
                            inside = not inside
                    if inside:
                        gap_low, gap_high = covered, low
                covered = max(covered, high)
                low_end, high_end = min(low_end, low), max(high_end, high)
            cells[cell, SPAN_LOW], cells[cell, SPAN_HIGH] = low_end, high_end
            cells[cell, GAP_LOW], cells[cell, GAP_HIGH] = gap_low, gap_high
            cells[cell, FIRST_EDGE], cells[cell, END_EDGE] = first, end


def prepare_areas(scene: Scene) -> Areas:
    """``scene``'s map polygons as ``Areas``."""
    polygons = scene.polygons
    vertices = owned(polygons.vertices)
    offsets = np.array(polygons.offsets, dtype=np.int64)
    shapes = np.empty((len(polygons), LAST_CELL + 1))
    count = _layout(vertices, offsets, shapes)
    counts = np.zeros(count, np.int64)
    _fill(vertices, offsets, shapes, counts, np.empty((0, 4)), False)
    entries = np.zeros(count + 1, np.int64)
    np.cumsum(counts, out=entries[1:])
    edges, cells = np.empty((entries[-1], 4)), np.empty((count, END_EDGE + 1))
    _fill(vertices, offsets, shapes, entries[:-1].copy(), edges, True)
    _span(shapes, entries, cells, edges)
    layer = np.array(polygons.layer, dtype=np.int8)
    lane = (layer == _LANE) | (layer == _CONNECTOR)
    return Areas(layer, np.ascontiguousarray(polygons.on_route & lane), shapes, cells, edges)


def prepare_red_areas(scene: Scene) -> RedAreas:
    """``scene``'s red lights as ``RedAreas``: those of its route, as officially."""
    lights, polygons = scene.red_lights, scene.polygons
    mine = np.flatnonzero(polygons.on_route[lights.polygon])
    rings = [polygons.ring(int(p)) for p in lights.polygon[mine]]
    return RedAreas(
        np.concatenate(rings) if rings else np.zeros((0, 2)),
        np.concatenate([[0], np.cumsum([len(r) for r in rings])]).astype(np.int64),
        np.array(lights.polygon[mine], dtype=np.int64),
        np.array(lights.red[mine], dtype=np.bool_),
    )


@numba.njit(cache=True, error_model="numpy")
def inside(
    shapes: FloatArray, cells: FloatArray, edges: FloatArray, p: int, xs: FloatArray, ys: FloatArray, wanted: int
) -> int:
    """Bit k is set where point (xs[k], ys[k]) lies inside polygon ``p``, not on its border; only ``wanted`` bits are asked."""
    found = 0
    for k in range(xs.shape[0]):
        if wanted & (1 << k) == 0:
            continue
        x, y = xs[k], ys[k]
        if not (shapes[p, LOW_X] < x < shapes[p, HIGH_X] and shapes[p, LOW_Y] < y < shapes[p, HIGH_Y]):
            continue
        across, along = (y, x) if shapes[p, SWAPPED] != 0.0 else (x, y)
        cell = _cell(shapes, p, along)
        if across < cells[cell, SPAN_LOW] or across > cells[cell, SPAN_HIGH]:
            continue
        odd = cells[cell, GAP_LOW] < across < cells[cell, GAP_HIGH]
        if not odd:
            for e in range(int(cells[cell, FIRST_EDGE]), int(cells[cell, END_EDGE])):
                a1, s1 = edges[e, 0] - across, edges[e, 1] - along
                a2, s2 = edges[e, 2] - across, edges[e, 3] - along
                side = a1 * s2 - a2 * s1
                if (s1 > 0.0) != (s2 > 0.0):
                    odd = odd != ((side > 0.0) == (s2 > s1))
                if side == 0.0 and min(a1, a2) <= 0.0 <= max(a1, a2) and min(s1, s2) <= 0.0 <= max(s1, s2):
                    odd = False  # on this edge
                    break
        if odd:
            found |= 1 << k
    return found


@numba.njit(cache=True, error_model="numpy")
def ego_corners(x: float, y: float, c: float, s: float, xs: FloatArray, ys: FloatArray) -> None:
    """Corners of the ego box at (x, y) with direction (c, s), into ``xs[:4]``, ``ys[:4]``, in the order of ``CORNERS``."""
    lx, ly, wx, wy = HALF_LENGTH * c, HALF_LENGTH * s, -HALF_WIDTH * s, HALF_WIDTH * c
    xs[0], xs[1], xs[2], xs[3] = x + lx + wx, x - lx + wx, x - lx - wx, x + lx - wx
    ys[0], ys[1], ys[2], ys[3] = y + ly + wy, y - ly + wy, y - ly - wy, y + ly - wy


CORNERS: Final = ("front left", "rear left", "rear right", "front right")
_CORNERS: Final = 0b001111
_CENTER: Final = 0b010000
_REAR_AXLE: Final = 0b100000


@numba.njit(cache=True, nogil=True, error_model="numpy")
def area_kernel(states: FloatArray, boxes: FloatArray, areas: Areas, out: npt.NDArray[np.uint8]) -> None:
    """Bits (``collide.MULTIPLE_LANES`` …) of where the ego is at each step of N driven plans: ``out`` [N, 41]."""
    layers, on_route, shapes, cells, edges = areas
    near = np.empty(layers.shape[0], np.int64)
    xs, ys = np.empty(6), np.empty(6)  # corners, centre, rear axle
    for n in range(states.shape[0]):
        count = 0
        for t in range(STEPS):
            if t % _STRETCH == 0:  # the polygons that this stretch of the way can touch
                middle, end = min(t + _STRETCH // 2, STEPS - 1), min(t + _STRETCH, STEPS)
                x, y = boxes[n, middle, BOX_X], boxes[n, middle, BOX_Y]
                furthest = 0.0
                for k in range(t, end):
                    dx, dy = boxes[n, k, BOX_X] - x, boxes[n, k, BOX_Y] - y
                    furthest = max(furthest, dx * dx + dy * dy)
                reach = RADIUS + np.sqrt(furthest) + _SLACK
                count = 0
                for p in range(layers.shape[0]):
                    hc, hs = shapes[p, HULL_COS], shapes[p, HULL_SIN]
                    dx, dy = shapes[p, HULL_X] - x, shapes[p, HULL_Y] - y
                    if abs(dx * hc + dy * hs) > shapes[p, HULL_LENGTH] + reach:
                        continue
                    if abs(dy * hc - dx * hs) > shapes[p, HULL_WIDTH] + reach:
                        continue
                    near[count] = p
                    count += 1
            x, y, c, s = boxes[n, t, BOX_X], boxes[n, t, BOX_Y], boxes[n, t, BOX_COS], boxes[n, t, BOX_SIN]
            ego_corners(x, y, c, s, xs, ys)
            xs[4], ys[4], xs[5], ys[5] = x, y, states[n, t, 0], states[n, t, 1]
            covered = 0  # corners on drivable ground
            touched_lanes = 0
            in_one_lane = False
            against = True
            flags = 0
            for i in range(count):
                p = near[i]
                hc, hs = shapes[p, HULL_COS], shapes[p, HULL_SIN]
                cr, sr = abs(c * hc + s * hs), abs(s * hc - c * hs)
                dx, dy = shapes[p, HULL_X] - x, shapes[p, HULL_Y] - y
                if abs(dx * hc + dy * hs) > shapes[p, HULL_LENGTH] + HALF_LENGTH * cr + HALF_WIDTH * sr + _SLACK:
                    continue
                if abs(dy * hc - dx * hs) > shapes[p, HULL_WIDTH] + HALF_LENGTH * sr + HALF_WIDTH * cr + _SLACK:
                    continue
                lane = layers[p] == _LANE or layers[p] == _CONNECTOR
                if lane:
                    wanted = _CORNERS | _CENTER if against and on_route[p] else _CORNERS
                elif layers[p] == _INTERSECTION:
                    wanted = _CORNERS | _CENTER | _REAR_AXLE
                else:
                    wanted = _CORNERS & ~covered
                found = inside(shapes, cells, edges, p, xs, ys, wanted)
                if lane:
                    touched_lanes += (found & _CORNERS) != 0
                    in_one_lane = in_one_lane or (found & _CORNERS) == _CORNERS
                    if found & _CENTER:
                        against = False
                else:
                    covered |= found & _CORNERS
                    if found & _CENTER:
                        flags |= CENTER_IN_INTERSECTION
                    if found & _REAR_AXLE:
                        flags |= REAR_AXLE_IN_INTERSECTION
            if touched_lanes > 1 and not in_one_lane:
                flags |= MULTIPLE_LANES
            if covered != _CORNERS:
                flags |= NON_DRIVABLE
            if against:
                flags |= ONCOMING
            out[n, t] = flags


@numba.njit(cache=True, nogil=True, error_model="numpy")
def wrong_way_kernel(
    boxes: FloatArray, flags: npt.NDArray[np.uint8], n: int, version: int, metres: FloatArray, recent: FloatArray
) -> None:
    """Plan n's ``metres`` [41] against the driving direction in each step, and ``recent`` [41]: those of the last second.

    Version 2 does not count metres whose end lies in an intersection.
    """
    metres[0] = 0.0
    for t in range(STEPS):
        if t > 0:
            counts = (flags[n, t] & ONCOMING) != 0 and (version == 1 or (flags[n, t] & CENTER_IN_INTERSECTION) == 0)
            dx, dy = boxes[n, t, BOX_X] - boxes[n, t - 1, BOX_X], boxes[n, t, BOX_Y] - boxes[n, t - 1, BOX_Y]
            metres[t] = np.sqrt(dx * dx + dy * dy) if counts else 0.0
        recent[t] = 0.0
        for k in range(max(0, t - _DDC_STEPS), t + 1):
            recent[t] += metres[k]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def compliance_kernel(
    boxes: FloatArray, flags: npt.NDArray[np.uint8], version: int, drivable: FloatArray, direction: FloatArray
) -> None:
    """DAC ``drivable`` [N] in {0, 1} and DDC ``direction`` [N] in {0, 1/2, 1} from the areas [N, 41]."""
    metres, recent = np.empty(STEPS), np.empty(STEPS)
    for n in range(boxes.shape[0]):
        drivable[n] = 1.0
        for t in range(STEPS):
            if flags[n, t] & NON_DRIVABLE:
                drivable[n] = 0.0
        wrong_way_kernel(boxes, flags, n, version, metres, recent)
        worst = 0.0
        for t in range(STEPS):
            worst = max(worst, recent[t])
        direction[n] = 1.0 if worst < _DDC_COMPLIANT else (0.5 if worst < _DDC_VIOLATION else 0.0)


@numba.njit(cache=True, error_model="numpy")
def _edge_meets_box(u1: float, w1: float, u2: float, w2: float) -> bool:
    """Whether the segment (u1, w1)-(u2, w2), in the ego box's own frame, meets the box (touching counts)."""
    if min(u1, u2) > HALF_LENGTH or max(u1, u2) < -HALF_LENGTH or min(w1, w2) > HALF_WIDTH or max(w1, w2) < -HALF_WIDTH:
        return False
    du, dw = u2 - u1, w2 - w1
    return abs(u1 * dw - w1 * du) <= HALF_LENGTH * abs(dw) + HALF_WIDTH * abs(du)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def red_light_kernel(boxes: FloatArray, areas: Areas, lights: RedAreas, score: FloatArray) -> None:
    """TLC ``score`` [N] in {0, 1}: the ego box meets, at some step, a lane connector whose light is red at that step."""
    _, _, shapes, cells, edges = areas
    vertices, offsets, polygon, red = lights
    xs, ys = np.empty(1), np.empty(1)
    for n in range(boxes.shape[0]):
        score[n] = 1.0
        for r in range(polygon.shape[0]):
            p = polygon[r]
            for t in range(STEPS):
                if not red[r, t] or score[n] == 0.0:
                    continue
                x, y, c, s = boxes[n, t, BOX_X], boxes[n, t, BOX_Y], boxes[n, t, BOX_COS], boxes[n, t, BOX_SIN]
                if shapes[p, LOW_X] > x + RADIUS or shapes[p, HIGH_X] < x - RADIUS:
                    continue
                if shapes[p, LOW_Y] > y + RADIUS or shapes[p, HIGH_Y] < y - RADIUS:
                    continue
                xs[0], ys[0] = x, y
                meets = inside(shapes, cells, edges, p, xs, ys, 1) != 0
                last = offsets[r + 1] - 1
                dx, dy = vertices[last, 0] - x, vertices[last, 1] - y
                u1, w1 = dx * c + dy * s, dy * c - dx * s
                for v in range(offsets[r], offsets[r + 1]):
                    if meets:
                        break
                    dx, dy = vertices[v, 0] - x, vertices[v, 1] - y
                    u2, w2 = dx * c + dy * s, dy * c - dx * s
                    meets = _edge_meets_box(u1, w1, u2, w2)
                    u1, w1 = u2, w2
                if meets:
                    score[n] = 0.0
