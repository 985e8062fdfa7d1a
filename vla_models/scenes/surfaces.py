"""NavSim's map polygons, cut from a lane graph: roadblocks, lanes, lane connectors, intersections, car parks.

A town's polygons are made once (``town_surfaces``), in NavSim's own order: roadblocks, lanes, connectors, intersections, car
parks. A scene takes those within a radius. A roadblock is the ring around neighbouring lanes of one direction. An
intersection is the outline of its connectors' union (inner holes filled), found on a grid of signed distances; NavSim's own
are drawn by hand and a little more generous.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from vla_models.kernels import numba
from vla_models.scenes.lanes import LaneGraph
from vla_models.scenes.routes import RoadNet, road_net
from vla_models.scenes.scene import LAYERS, Polygons

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

TOLERANCE: Final = 0.01
"""Metres by which a simplified border may differ from the lane graph's."""
GRID: Final = 0.5
"""Metres between grid points when intersections are outlined (between them the outline is interpolated)."""
_GROW: Final = 0.25
"""Metres by which an intersection reaches beyond its connectors, so that it meets its roads without a gap."""


@numba.njit(cache=True)
def _simplify(line, tolerance, keep):  # type: ignore[no-untyped-def]
    """Mark in ``keep`` the points of a polyline that Douglas and Peucker's method keeps."""
    n = len(line)
    stack = np.empty((n + 1, 2), dtype=np.int64)
    stack[0, 0], stack[0, 1] = 0, n - 1
    top = 1
    keep[0] = keep[n - 1] = True
    while top > 0:
        top -= 1
        a, b = stack[top]
        ux, uy = line[b, 0] - line[a, 0], line[b, 1] - line[a, 1]
        n2 = ux * ux + uy * uy
        worst, at = -1.0, -1
        for k in range(a + 1, b):
            wx, wy = line[k, 0] - line[a, 0], line[k, 1] - line[a, 1]
            u = 0.0 if n2 == 0.0 else min(1.0, max(0.0, (wx * ux + wy * uy) / n2))
            d = np.hypot(wx - u * ux, wy - u * uy)
            if d > worst:
                worst, at = d, k
        if worst > tolerance:
            keep[at] = True
            stack[top, 0], stack[top, 1] = a, at
            stack[top + 1, 0], stack[top + 1, 1] = at, b
            top += 2


def simplify(line: FloatArray, tolerance: float = TOLERANCE) -> FloatArray:
    """Polyline [n, 2] without the points that lie within ``tolerance`` of the line through their neighbours."""
    keep = np.zeros(len(line), dtype=np.bool_)
    _simplify(np.ascontiguousarray(line), tolerance, keep)
    return line[keep]


@numba.njit(cache=True)
def _grid_distance(vertices, offsets, x0, y0, step, grid):  # type: ignore[no-untyped-def]
    """Signed distance (outside positive) to the union of rings at the grid's points; exact outside and near the border."""
    rows, columns = grid.shape
    for p in range(len(offsets) - 1):
        a, b = offsets[p], offsets[p + 1]
        margin = 2.0 * step + 0.5
        lo_x, hi_x = vertices[a:b, 0].min() - margin, vertices[a:b, 0].max() + margin
        lo_y, hi_y = vertices[a:b, 1].min() - margin, vertices[a:b, 1].max() + margin
        for r in range(max(0, int((lo_y - y0) / step)), min(rows, int((hi_y - y0) / step) + 2)):
            y = y0 + r * step
            for c in range(max(0, int((lo_x - x0) / step)), min(columns, int((hi_x - x0) / step) + 2)):
                x = x0 + c * step
                best = 1e18
                inside = False
                j = b - 1
                for k in range(a, b):
                    xj, yj, xk, yk = vertices[j, 0], vertices[j, 1], vertices[k, 0], vertices[k, 1]
                    if (yk > y) != (yj > y) and x < (xj - xk) * (y - yk) / (yj - yk) + xk:
                        inside = not inside
                    ux, uy, wx, wy = xk - xj, yk - yj, x - xj, y - yj
                    n2 = ux * ux + uy * uy
                    u = 0.0 if n2 == 0.0 else min(1.0, max(0.0, (wx * ux + wy * uy) / n2))
                    d2 = (wx - u * ux) ** 2 + (wy - u * uy) ** 2
                    best = min(best, d2)
                    j = k
                d = -np.sqrt(best) if inside else np.sqrt(best)
                grid[r, c] = min(grid[r, c], d)


@numba.njit(cache=True)
def _trace(grid, level, row, column, out):  # type: ignore[no-untyped-def]
    """Walk the contour ``grid == level`` that passes between (row, column), below it, and its left neighbour, above it.
    Writes points (column, row) in grid units and returns how many; the inner side stays on one hand."""
    n = 0
    # state: the grid point inside, and the direction from it to the point outside (0 left, 1 up, 2 right, 3 down)
    dr = (0, 1, 0, -1)
    dc = (-1, 0, 1, 0)
    r, c, d = row, column, 0
    while n < len(out):
        inner, outer = grid[r, c], grid[r + dr[d], c + dc[d]]
        u = (level - inner) / (outer - inner)
        out[n, 0], out[n, 1] = c + u * dc[d], r + u * dr[d]
        n += 1
        # the cell beside this edge: its two other corners decide where the contour leaves
        e = (d + 1) % 4
        ahead_out = grid[r + dr[d] + dr[e], c + dc[d] + dc[e]] < level
        ahead_in = grid[r + dr[e], c + dc[e]] < level
        if ahead_in and ahead_out:
            r, c, d = r + dr[d] + dr[e], c + dc[d] + dc[e], (d + 3) % 4
        elif ahead_in:
            r, c = r + dr[e], c + dc[e]
        else:
            d = e
        if r == row and c == column and d == 0:
            break
    return n


def outline(rings: list[FloatArray], grow: float = _GROW, step: float = GRID) -> list[FloatArray]:
    """Outer rings [n, 2] of the union of ``rings`` grown by ``grow`` metres; holes are filled. Accurate to a few cm."""
    vertices = np.concatenate(rings)
    offsets = np.concatenate([[0], np.cumsum([len(r) for r in rings])]).astype(np.int64)
    low, high = vertices.min(axis=0) - 3.0 * step - grow, vertices.max(axis=0) + 3.0 * step + grow
    shape = np.ceil((high - low) / step).astype(int) + 1
    grid = np.full((int(shape[1]), int(shape[0])), 4.0 * step)
    _grid_distance(np.ascontiguousarray(vertices), offsets, low[0], low[1], step, grid)
    grid[np.abs(grid - grow) < 1e-9] += 1e-6  # no point exactly on the contour
    out: list[FloatArray] = []
    inside = grid < grow
    todo = inside.copy()
    while todo.any():
        # the first inner point in reading order lies on an outer contour, with an outer point to its left
        row, column = np.unravel_index(int(np.argmax(todo)), todo.shape)
        points = np.empty((8 * grid.size, 2))
        n = _trace(grid, grow, int(row), int(column), points)
        out.append(simplify(points[:n] * step + low, 0.02))
        todo &= ~_filled(inside, int(row), int(column))
    return [ring for ring in out if len(ring) >= 3]


def _filled(inside: npt.NDArray[np.bool_], row: int, column: int) -> npt.NDArray[np.bool_]:
    """The 4-connected part of ``inside`` that holds (row, column), and everything that it encloses."""
    part = np.zeros_like(inside)
    part[row, column] = True
    part = _flood(part, inside)
    outside = np.zeros_like(inside)
    outside[0, :] = outside[-1, :] = outside[:, 0] = outside[:, -1] = True
    filled: npt.NDArray[np.bool_] = ~_flood(outside & ~part, ~part)
    return filled


@numba.njit(cache=True)
def _flood(seed, mask):  # type: ignore[no-untyped-def]
    """Grow ``seed`` over the 4-connected neighbours within ``mask``."""
    rows, columns = seed.shape
    stack = np.empty((rows * columns + 1, 2), dtype=np.int64)
    top = 0
    for r in range(rows):
        for c in range(columns):
            if seed[r, c]:
                stack[top, 0], stack[top, 1] = r, c
                top += 1
    while top > 0:
        top -= 1
        r, c = stack[top]
        for dr, dc in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            p, q = r + dr, c + dc
            if 0 <= p < rows and 0 <= q < columns and mask[p, q] and not seed[p, q]:
                seed[p, q] = True
                stack[top, 0], stack[top, 1] = p, q
                top += 1
    return seed


@dataclass(frozen=True)
class TownSurfaces:
    """All map polygons of a town in NavSim's order, and what finds them."""

    vertices: FloatArray
    """[V, 2]"""
    offsets: IntArray
    """[P + 1]"""
    layer: npt.NDArray[np.int8]
    """[P]"""
    block: IntArray
    """[P] the roadblock or roadblock connector that the polygon is or belongs to, -1 for other layers."""
    bounds: FloatArray
    """[P, 4] low x, low y, high x, high y."""
    ids: npt.NDArray[np.object_]
    """[P] names."""
    lane_block: IntArray
    """[L] roadblock (or roadblock connector) of each lane."""
    lane_polygon: IntArray
    """[L] the lane's own polygon."""


def _rows_of_lanes(graph: LaneGraph) -> list[list[int]]:
    """Lanes outside junctions in rows of neighbours, left to right: the roadblocks."""
    rows = []
    for lane in range(len(graph)):
        left = int(graph.left_lane[lane])
        if graph.junction[lane] >= 0 or (left >= 0 and graph.road[left] == graph.road[lane]):
            continue
        row = [lane]
        while (right := int(graph.right_lane[row[-1]])) >= 0 and graph.road[right] == graph.road[lane] and right not in row:
            row.append(right)
        rows.append(row)
    return rows


def _lane_ring(graph: LaneGraph, leftmost: int, rightmost: int) -> FloatArray:
    """Ring [n, 2] from the left border of one lane and the right border of another (or the same)."""
    left = simplify(graph.left[graph.stations(leftmost)])
    right = simplify(graph.right[graph.stations(rightmost)])
    return np.concatenate([left, right[::-1]])


def make_surfaces(net: RoadNet) -> TownSurfaces:
    """All polygons of ``net``'s lane graph."""
    graph = net.graph
    rings: list[FloatArray] = []
    layers: list[str] = []
    blocks: list[int] = []
    ids: list[str] = []
    lane_block = np.full(len(graph), -1, dtype=np.int64)
    lane_polygon = np.full(len(graph), -1, dtype=np.int64)

    def add(ring: FloatArray, layer: str, block: int, name: str) -> None:
        rings.append(ring)
        layers.append(layer)
        blocks.append(block)
        ids.append(name)

    rows = _rows_of_lanes(graph)
    for block, row in enumerate(rows):
        lane_block[row] = block
        add(_lane_ring(graph, row[0], row[-1]), "roadblock", block, f"block:{graph.names[row[0]]}")
    for block, row in enumerate(rows):
        for lane in row:
            lane_polygon[lane] = len(rings)
            add(_lane_ring(graph, lane, lane), "lane", block, graph.names[lane])
    # connectors between the same two roadblocks are one roadblock connector
    known: dict[tuple[int, int, int], int] = {}
    inside = np.flatnonzero(graph.junction >= 0)
    for lane in map(int, inside):
        before, after = graph.previous_lanes(lane), graph.next_lanes(lane)
        ends = [int(lane_block[x[0]]) if len(x) else -1 for x in (before, after)]
        own = min(ends) < 0  # inside a chain of connectors: its road alone
        key = (int(graph.junction[lane]), -1 - int(graph.road[lane]) if own else ends[0], 0 if own else ends[1])
        lane_block[lane] = known.setdefault(key, len(rows) + len(known))
        lane_polygon[lane] = len(rings)
        add(_lane_ring(graph, lane, lane), "lane_connector", int(lane_block[lane]), graph.names[lane])
    for junction in np.unique(graph.junction[inside]):
        members = inside[graph.junction[inside] == junction]
        for k, ring in enumerate(outline([graph.lane_polygon(int(lane)) for lane in members])):
            add(ring, "intersection", -1, f"intersection:{junction}:{k}")
    for k in range(len(graph.parking_offsets) - 1):
        ring = graph.parking_vertices[graph.parking_offsets[k] : graph.parking_offsets[k + 1]]
        add(simplify(ring), "carpark", -1, f"parking:{k}")
    offsets = np.concatenate([[0], np.cumsum([len(r) for r in rings])]).astype(np.int64)
    vertices = np.concatenate(rings)
    low, high = np.minimum.reduceat(vertices, offsets[:-1]), np.maximum.reduceat(vertices, offsets[:-1])
    return TownSurfaces(
        vertices=vertices,
        offsets=offsets,
        layer=np.array([LAYERS.index(name) for name in layers], dtype=np.int8),
        block=np.array(blocks, dtype=np.int64),
        bounds=np.concatenate([low, high], axis=1),
        ids=np.array(ids, dtype=object),
        lane_block=lane_block,
        lane_polygon=lane_polygon,
    )


@lru_cache(maxsize=16)
def town_surfaces(town: str) -> TownSurfaces:
    """``make_surfaces`` of a CARLA town, kept in memory."""
    return make_surfaces(road_net(town))


def cut(surfaces: TownSurfaces, x: float, y: float, radius: float, route: list[int]) -> tuple[Polygons, dict[int, int]]:
    """Polygons within ``radius`` of (x, y) in the frame whose origin is there, and polygon of the town -> polygon of the
    scene. As in NavSim all lanes of the route's roadblocks are on the route; ``route`` lists its lanes."""
    b = surfaces.bounds
    dx = np.maximum(np.maximum(b[:, 0] - x, x - b[:, 2]), 0.0)
    dy = np.maximum(np.maximum(b[:, 1] - y, y - b[:, 3]), 0.0)
    near = np.flatnonzero(dx * dx + dy * dy <= radius * radius)
    counts = surfaces.offsets[near + 1] - surfaces.offsets[near]
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    rows = np.arange(offsets[-1]) + np.repeat(surfaces.offsets[near] - offsets[:-1], counts)
    blocks = np.unique(surfaces.lane_block[route])
    on_route = np.isin(surfaces.block[near], blocks)
    polygons = Polygons(
        vertices=surfaces.vertices[rows] - np.array([x, y]),
        offsets=offsets,
        layer=surfaces.layer[near],
        on_route=on_route,
        ids=tuple(surfaces.ids[near]),
    )
    return polygons, {int(p): k for k, p in enumerate(near)}
