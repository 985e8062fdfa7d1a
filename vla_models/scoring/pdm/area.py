"""Where the ego is: drivable area (DAC), driving direction (DDC), several lanes at once, red lights (TLC).

All of it rests on point-in-polygon tests with GEOS's semantics: a point on the border is outside. Each polygon carries a
table of cells along its longer side. A cell knows between which coordinates all of its edges lie, and the widest gap
between them that is inside: most points are decided by that, the others look at the few edges that cross their cell.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

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
from vla_models.scoring.pdm.track import STEPS

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_INTERSECTION: Final = LAYERS.index("intersection")
_LANE: Final = LAYERS.index("lane")
_CONNECTOR: Final = LAYERS.index("lane_connector")

_MAX_CELLS: Final = 64
_SLACK: Final = 1e-9  # metres added to quick rejections, so that rounding never makes them decide
_DDC_STEPS: Final = 10  # driving direction: metres against the traffic within 1 s …
_DDC_COMPLIANT: Final = 2.0  # … below which the score is 1,
_DDC_VIOLATION: Final = 6.0  # … and from which it is 0


class Areas(NamedTuple):
    """Map polygons, prepared for point tests: P polygons, C cells in total, E edge entries (an edge may be in many cells)."""

    layer: npt.NDArray[np.int8]
    """[P] index into ``LAYERS``."""
    on_route: npt.NDArray[np.bool_]
    """[P] a lane or lane connector of the route."""
    bounds: FloatArray
    """[P, 4] smallest x, smallest y, largest x, largest y."""
    hull: FloatArray
    """[P, 6] an oriented box around the polygon: centre x, y, direction cos, sin, half length, half width."""
    swapped: npt.NDArray[np.bool_]
    """[P] cells lie along x (the longer side), and edges are stored as (y, x)."""
    grid: FloatArray
    """[P, 2] start of the cells and cells per metre."""
    cells: IntArray
    """[P + 1] polygon p owns cells ``cells[p]:cells[p + 1]``."""
    entries: IntArray
    """[C + 1] cell c owns edges ``entries[c]:entries[c + 1]``."""
    spans: FloatArray
    """[C, 4] across coordinates: smallest and largest of the cell's edges, start and end of a gap that is inside."""
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


@numba.njit(cache=True, error_model="numpy")
def _layout(
    vertices: FloatArray, offsets: IntArray, bounds: FloatArray, hull: FloatArray, swapped: npt.NDArray[np.bool_],
    grid: FloatArray, cells: IntArray,
) -> None:  # fmt: skip
    """Bounds, oriented boxes and the division into cells of all polygons."""
    for p in range(offsets.shape[0] - 1):
        low_x, low_y, high_x, high_y = np.inf, np.inf, -np.inf, -np.inf
        mean_x, mean_y = 0.0, 0.0
        count = offsets[p + 1] - offsets[p]
        for v in range(offsets[p], offsets[p + 1]):
            x, y = vertices[v, 0], vertices[v, 1]
            low_x, low_y, high_x, high_y = min(low_x, x), min(low_y, y), max(high_x, x), max(high_y, y)
            mean_x += x / count
            mean_y += y / count
        bounds[p, 0], bounds[p, 1], bounds[p, 2], bounds[p, 3] = low_x, low_y, high_x, high_y
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
        hull[p, 0], hull[p, 1], hull[p, 2], hull[p, 3] = mean_x + u * c - w * s, mean_y + u * s + w * c, c, s
        hull[p, 4], hull[p, 5] = (high_u - low_u) / 2.0, (high_w - low_w) / 2.0

        swapped[p] = high_x - low_x > high_y - low_y
        start, length = (low_x, high_x - low_x) if swapped[p] else (low_y, high_y - low_y)
        count = min(_MAX_CELLS, count)
        grid[p, 0] = start
        grid[p, 1] = count / length if length > 0.0 else 0.0
        cells[p + 1] = cells[p] + count


@numba.njit(cache=True, error_model="numpy")
def _fill(
    vertices: FloatArray, offsets: IntArray, swapped: npt.NDArray[np.bool_], grid: FloatArray, cells: IntArray,
    counts: IntArray, edges: FloatArray, store: bool,
) -> None:  # fmt: skip
    """Count (``store`` False) or write (True) the edges of each cell; ``counts`` [C] is then the cells' write position."""
    for p in range(offsets.shape[0] - 1):
        along, across = (0, 1) if swapped[p] else (1, 0)
        last = cells[p + 1] - cells[p] - 1
        before = offsets[p + 1] - 1
        for v in range(offsets[p], offsets[p + 1]):
            a, b = vertices[before, along], vertices[v, along]
            first_cell = min(last, int((min(a, b) - grid[p, 0]) * grid[p, 1]))
            last_cell = min(last, int((max(a, b) - grid[p, 0]) * grid[p, 1]))
            for cell in range(cells[p] + first_cell, cells[p] + last_cell + 1):
                if store:
                    e = counts[cell]
                    edges[e, 0], edges[e, 1], edges[e, 2], edges[e, 3] = vertices[before, across], a, vertices[v, across], b
                counts[cell] += 1
            before = v


@numba.njit(cache=True, error_model="numpy")
def _span(grid: FloatArray, cells: IntArray, entries: IntArray, edges: FloatArray, spans: FloatArray) -> None:
    """Fill ``spans``: per cell the edges' extent, and the widest gap between them if it is inside.

    Edges count with their whole length, not only the part in the cell: that makes gaps narrower, never wrong.
    """
    for p in range(grid.shape[0]):
        for cell in range(cells[p], cells[p + 1]):
            first, end = entries[cell], entries[cell + 1]
            for e in range(first + 1, end):  # insertion sort of a handful of edges by their smaller across coordinate
                for k in range(e, first, -1):
                    if min(edges[k, 0], edges[k, 2]) >= min(edges[k - 1, 0], edges[k - 1, 2]):
                        break
                    for j in range(4):
                        edges[k, j], edges[k - 1, j] = edges[k - 1, j], edges[k, j]
            spans[cell, 0], spans[cell, 1] = np.inf, -np.inf
            spans[cell, 2], spans[cell, 3] = np.inf, -np.inf
            covered = -np.inf
            for e in range(first, end):
                low, high = min(edges[e, 0], edges[e, 2]), max(edges[e, 0], edges[e, 2])
                if e > first and low - covered > max(0.0, spans[cell, 3] - spans[cell, 2]):
                    # parity on the line through the cell's middle, from edges beyond the gap
                    middle = grid[p, 0] + (cell - cells[p] + 0.5) / grid[p, 1]
                    inside = False
                    for k in range(e, end):
                        if (edges[k, 1] > middle) != (edges[k, 3] > middle):
                            inside = not inside
                    if inside:
                        spans[cell, 2], spans[cell, 3] = covered, low
                covered = max(covered, high)
                spans[cell, 0], spans[cell, 1] = min(spans[cell, 0], low), max(spans[cell, 1], high)


def prepare_areas(scene: Scene) -> Areas:
    """``scene``'s map polygons as ``Areas``."""
    polygons = scene.polygons
    vertices, offsets = np.ascontiguousarray(polygons.vertices), np.ascontiguousarray(polygons.offsets, dtype=np.int64)
    count = len(polygons)
    bounds, hull, grid = np.empty((count, 4)), np.empty((count, 6)), np.empty((count, 2))
    swapped, cells = np.empty(count, np.bool_), np.zeros(count + 1, np.int64)
    _layout(vertices, offsets, bounds, hull, swapped, grid, cells)
    counts = np.zeros(cells[-1], np.int64)
    _fill(vertices, offsets, swapped, grid, cells, counts, np.empty((0, 4)), False)
    entries = np.zeros(cells[-1] + 1, np.int64)
    np.cumsum(counts, out=entries[1:])
    edges, spans = np.empty((entries[-1], 4)), np.empty((cells[-1], 4))
    _fill(vertices, offsets, swapped, grid, cells, entries[:-1].copy(), edges, True)
    _span(grid, cells, entries, edges, spans)
    layer = np.ascontiguousarray(polygons.layer, dtype=np.int8)
    lane = (layer == _LANE) | (layer == _CONNECTOR)
    on_route = np.ascontiguousarray(polygons.on_route & lane)
    return Areas(layer, on_route, bounds, hull, swapped, grid, cells, entries, spans, edges)


def prepare_red_areas(scene: Scene) -> RedAreas:
    """``scene``'s red lights as ``RedAreas``."""
    lights, polygons = scene.red_lights, scene.polygons
    rings = [polygons.ring(int(p)) for p in lights.polygon]
    return RedAreas(
        np.concatenate(rings) if rings else np.zeros((0, 2)),
        np.concatenate([[0], np.cumsum([len(r) for r in rings])]).astype(np.int64),
        np.ascontiguousarray(lights.polygon, dtype=np.int64),
        np.ascontiguousarray(lights.red),
    )


@numba.njit(cache=True, error_model="numpy")
def contains(areas: Areas, p: int, x: float, y: float) -> bool:
    """Whether (x, y) lies inside polygon ``p``; a point on the border does not."""
    if not (areas.bounds[p, 0] < x < areas.bounds[p, 2] and areas.bounds[p, 1] < y < areas.bounds[p, 3]):
        return False
    across, along = (y, x) if areas.swapped[p] else (x, y)
    cell = areas.cells[p] + int((along - areas.grid[p, 0]) * areas.grid[p, 1])
    cell = min(cell, areas.cells[p + 1] - 1)
    if not areas.spans[cell, 0] <= across <= areas.spans[cell, 1]:
        return False
    if areas.spans[cell, 2] < across < areas.spans[cell, 3]:
        return True
    inside = False
    for e in range(areas.entries[cell], areas.entries[cell + 1]):
        a1, s1 = areas.edges[e, 0] - across, areas.edges[e, 1] - along
        a2, s2 = areas.edges[e, 2] - across, areas.edges[e, 3] - along
        if (s1 > 0.0) != (s2 > 0.0):
            side = a1 * s2 - a2 * s1
            if side == 0.0:
                return False
            if (side > 0.0) == (s2 > s1):
                inside = not inside
        elif s1 == 0.0 and s2 == 0.0 and min(a1, a2) <= 0.0 <= max(a1, a2):
            return False
        elif (s1 == 0.0 and a1 == 0.0) or (s2 == 0.0 and a2 == 0.0):
            return False
    return inside


@numba.njit(cache=True, nogil=True, error_model="numpy")
def area_kernel(states: FloatArray, boxes: FloatArray, areas: Areas, out: npt.NDArray[np.uint8]) -> None:
    """Bits (``collide.MULTIPLE_LANES`` …) of where the ego is at each step of N driven plans: ``out`` [N, 41]."""
    near = np.empty(areas.layer.shape[0], np.int64)
    xs, ys = np.empty(4), np.empty(4)
    covered = np.empty(4, np.bool_)
    for n in range(states.shape[0]):
        low_x, low_y, high_x, high_y = np.inf, np.inf, -np.inf, -np.inf
        for t in range(STEPS):
            x, y = boxes[n, t, BOX_X], boxes[n, t, BOX_Y]
            low_x, low_y, high_x, high_y = min(low_x, x), min(low_y, y), max(high_x, x), max(high_y, y)
        count = 0
        for p in range(areas.layer.shape[0]):
            if areas.bounds[p, 0] > high_x + RADIUS or areas.bounds[p, 2] < low_x - RADIUS:
                continue
            if areas.bounds[p, 1] > high_y + RADIUS or areas.bounds[p, 3] < low_y - RADIUS:
                continue
            near[count] = p
            count += 1
        for t in range(STEPS):
            x, y, c, s = boxes[n, t, BOX_X], boxes[n, t, BOX_Y], boxes[n, t, BOX_COS], boxes[n, t, BOX_SIN]
            lx, ly, wx, wy = HALF_LENGTH * c, HALF_LENGTH * s, -HALF_WIDTH * s, HALF_WIDTH * c
            xs[0], xs[1], xs[2], xs[3] = x + lx + wx, x - lx + wx, x - lx - wx, x + lx - wx
            ys[0], ys[1], ys[2], ys[3] = y + ly + wy, y - ly + wy, y - ly - wy, y + ly - wy
            covered[:] = False
            touched_lanes = 0
            in_one_lane = False
            against = True
            flags = 0
            for i in range(count):
                p = near[i]
                hc, hs = areas.hull[p, 2], areas.hull[p, 3]
                cr, sr = abs(c * hc + s * hs), abs(s * hc - c * hs)
                dx, dy = areas.hull[p, 0] - x, areas.hull[p, 1] - y
                if abs(dx * hc + dy * hs) > areas.hull[p, 4] + HALF_LENGTH * cr + HALF_WIDTH * sr + _SLACK:
                    continue
                if abs(dy * hc - dx * hs) > areas.hull[p, 5] + HALF_LENGTH * sr + HALF_WIDTH * cr + _SLACK:
                    continue
                layer = areas.layer[p]
                if layer == _LANE or layer == _CONNECTOR:
                    corners = 0
                    for k in range(4):
                        if contains(areas, p, xs[k], ys[k]):
                            corners += 1
                    touched_lanes += corners > 0
                    in_one_lane = in_one_lane or corners == 4
                    if against and areas.on_route[p] and contains(areas, p, x, y):
                        against = False
                else:
                    for k in range(4):
                        if not covered[k] and contains(areas, p, xs[k], ys[k]):
                            covered[k] = True
                    if layer == _INTERSECTION:
                        if contains(areas, p, x, y):
                            flags |= CENTER_IN_INTERSECTION
                        if contains(areas, p, states[n, t, 0], states[n, t, 1]):
                            flags |= REAR_AXLE_IN_INTERSECTION
            if touched_lanes > 1 and not in_one_lane:
                flags |= MULTIPLE_LANES
            if not (covered[0] and covered[1] and covered[2] and covered[3]):
                flags |= NON_DRIVABLE
            if against:
                flags |= ONCOMING
            out[n, t] = flags


@numba.njit(cache=True, nogil=True, error_model="numpy")
def compliance_kernel(
    boxes: FloatArray, flags: npt.NDArray[np.uint8], version: int, drivable: FloatArray, direction: FloatArray
) -> None:
    """DAC ``drivable`` [N] in {0, 1} and DDC ``direction`` [N] in {0, 1/2, 1} from the areas [N, 41].

    Version 2 does not count metres whose end lies in an intersection.
    """
    against = np.empty(STEPS)
    for n in range(boxes.shape[0]):
        drivable[n] = 1.0
        worst = 0.0
        against[0] = 0.0
        for t in range(STEPS):
            if flags[n, t] & NON_DRIVABLE:
                drivable[n] = 0.0
            if t > 0:
                counts = (flags[n, t] & ONCOMING) != 0 and (version == 1 or (flags[n, t] & CENTER_IN_INTERSECTION) == 0)
                dx, dy = boxes[n, t, BOX_X] - boxes[n, t - 1, BOX_X], boxes[n, t, BOX_Y] - boxes[n, t - 1, BOX_Y]
                against[t] = np.sqrt(dx * dx + dy * dy) if counts else 0.0
            total = 0.0
            for k in range(max(0, t - _DDC_STEPS), t + 1):
                total += against[k]
            worst = max(worst, total)
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
    for n in range(boxes.shape[0]):
        score[n] = 1.0
        for r in range(lights.polygon.shape[0]):
            p = lights.polygon[r]
            for t in range(STEPS):
                x, y, c, s = boxes[n, t, BOX_X], boxes[n, t, BOX_Y], boxes[n, t, BOX_COS], boxes[n, t, BOX_SIN]
                if not lights.red[r, t] or score[n] == 0.0:
                    continue
                if areas.bounds[p, 0] > x + RADIUS or areas.bounds[p, 2] < x - RADIUS:
                    continue
                if areas.bounds[p, 1] > y + RADIUS or areas.bounds[p, 3] < y - RADIUS:
                    continue
                meets = contains(areas, p, x, y)
                last = lights.offsets[r + 1] - 1
                dx, dy = lights.vertices[last, 0] - x, lights.vertices[last, 1] - y
                u1, w1 = dx * c + dy * s, dy * c - dx * s
                for v in range(lights.offsets[r], lights.offsets[r + 1]):
                    if meets:
                        break
                    dx, dy = lights.vertices[v, 0] - x, lights.vertices[v, 1] - y
                    u2, w2 = dx * c + dy * s, dy * c - dx * s
                    meets = _edge_meets_box(u1, w1, u2, w2)
                    u1, w1 = u2, w2
                if meets:
                    score[n] = 0.0
