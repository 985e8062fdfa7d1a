"""Where is the nearest lane? Centre lines of driving and parking lanes in a grid, asked by compiled code.

Stands for CARLA's ``Map.get_waypoint``, which projects a place onto the nearest centre line in three dimensions; here the
vertical distance counts only where the caller knows an elevation (roads cross over one another in five of the towns).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from vla_models.scenes.lanes import FloatArray, IntArray, LaneGraph

CELL: Final = 8.0
"""Metres; side of a grid cell."""
REACH: Final = 60.0
"""Metres; a place further than this from every strip has none."""


class StripGrid(NamedTuple):
    """The compiled code's view of ``Strips``: P points of centre lines, in cells of ``CELL`` metres."""

    place: FloatArray
    """[P, 4] x, y, elevation, width of the strip there."""
    owner: IntArray
    """[P] the lane (or parking strip) that the point belongs to; a segment joins a point to the next one of the same owner."""
    first: IntArray
    """[cells + 1] offsets into ``order``."""
    order: IntArray
    """[P] points cell by cell."""
    origin: FloatArray
    """[2] the grid's lower left corner."""
    shape: IntArray
    """[2] cells along x and y."""


@dataclass(frozen=True)
class Strips:
    """Centre lines with widths, and the grid over them."""

    grid: StripGrid

    @classmethod
    def make(cls, place: FloatArray, owner: IntArray) -> Strips:
        """From points [P, 4] and their owners [P], each owner's points in a row."""
        low = place[:, :2].min(axis=0) - 1.0 if len(place) else np.zeros(2)
        high = place[:, :2].max(axis=0) + 1.0 if len(place) else np.ones(2)
        shape = np.ceil((high - low) / CELL).astype(np.int64)
        cell = ((place[:, :2] - low) / CELL).astype(np.int64)
        key = cell[:, 0] * shape[1] + cell[:, 1]
        order = np.argsort(key, kind="stable")
        first = np.searchsorted(key[order], np.arange(shape[0] * shape[1] + 1))
        return cls(StripGrid(np.ascontiguousarray(place), owner, first, order, low, shape))

    @classmethod
    def driving(cls, graph: LaneGraph) -> Strips:
        """Driving lanes; owners are lanes, points are the graph's stations."""
        width = np.hypot(*(graph.left - graph.right).T)
        place = np.column_stack([graph.center[:, :2], graph.elevation, width])
        return cls.make(place, np.repeat(np.arange(len(graph)), np.diff(graph.offsets)))

    @classmethod
    def parking(cls, graph: LaneGraph) -> Strips:
        """Parking lanes; owners are the graph's parking surfaces. The graph has no elevation of theirs: it is NaN (unknown)."""
        places, owners = [np.zeros((0, 4))], [np.zeros(0, dtype=np.int64)]
        for k in range(len(graph.parking_offsets) - 1):
            ring = graph.parking_vertices[graph.parking_offsets[k] : graph.parking_offsets[k + 1]]
            left, right = ring[: len(ring) // 2], ring[len(ring) // 2 :][::-1]
            width = np.hypot(*(left - right).T)
            places.append(np.column_stack([0.5 * (left + right), np.full(len(left), np.nan), width]))
            owners.append(np.full(len(left), k))
        return cls.make(np.concatenate(places), np.concatenate(owners))

    def nearest(
        self, xy: npt.ArrayLike, elevation: npt.ArrayLike | None = None
    ) -> tuple[IntArray, IntArray, FloatArray, FloatArray]:
        """For places [n, 2]: owner, point at or behind the foot, share of the way to the next point, horizontal distance.

        A place without a strip within ``REACH`` has owner -1 and an infinite distance. ``elevation`` [n] may hold NaN
        (unknown).
        """
        places = np.asarray(xy, dtype=np.float64).reshape(-1, 2)
        height = np.full(len(places), np.nan) if elevation is None else np.asarray(elevation, dtype=np.float64)
        return _nearest_all(self.grid, places, np.ascontiguousarray(height))


@numba.njit(cache=True)
def nearest_strip(grid: StripGrid, x: float, y: float, z: float) -> tuple[int, int, float, float]:
    """``Strips.nearest`` for one place."""
    cx, cy = int(np.floor((x - grid.origin[0]) / CELL)), int(np.floor((y - grid.origin[1]) / CELL))
    best, flat = np.inf, np.inf
    owner, point, share = -1, -1, 0.0
    last = len(grid.owner) - 1
    for ring in range(int(REACH / CELL) + 2):
        if best < max(0.0, ring - 1.0) ** 2 * CELL * CELL:  # whatever lies further out is further away
            break
        for i in range(cx - ring, cx + ring + 1):
            if i < 0 or i >= grid.shape[0]:
                continue
            edge = abs(i - cx) == ring
            step = 1 if edge or ring == 0 else 2 * ring
            for j in range(cy - ring, cy + ring + 1, step):
                if j < 0 or j >= grid.shape[1]:
                    continue
                cell = i * grid.shape[1] + j
                for at in range(grid.first[cell], grid.first[cell + 1]):
                    p = grid.order[at]
                    # the segments to the next and from the previous point; a strip of one point is that point
                    for a in (p, p - 1):
                        u = 0.0
                        if a < 0 or grid.owner[a] != grid.owner[p]:
                            continue
                        ax, ay, az = grid.place[a, 0], grid.place[a, 1], grid.place[a, 2]
                        if a < last and grid.owner[a + 1] == grid.owner[a]:
                            bx, by = grid.place[a + 1, 0] - ax, grid.place[a + 1, 1] - ay
                            n2 = bx * bx + by * by
                            if n2 > 0.0:
                                u = min(1.0, max(0.0, ((x - ax) * bx + (y - ay) * by) / n2))
                            dx, dy = x - ax - u * bx, y - ay - u * by
                            az += u * (grid.place[a + 1, 2] - az)
                        else:
                            dx, dy = x - ax, y - ay
                        d2 = dx * dx + dy * dy
                        dz = az - z
                        total = d2 + (dz * dz if dz == dz else 0.0)
                        if total < best:
                            best, flat = total, d2
                            owner, point, share = grid.owner[p], a, u
    if flat > REACH * REACH:
        return -1, -1, 0.0, np.inf
    return owner, point, share, np.sqrt(flat)


@numba.njit(cache=True)
def _nearest_all(grid: StripGrid, xy: FloatArray, z: FloatArray) -> tuple[IntArray, IntArray, FloatArray, FloatArray]:
    n = len(xy)
    owner, point = np.empty(n, np.int64), np.empty(n, np.int64)
    share, distance = np.empty(n), np.empty(n)
    for i in range(n):
        owner[i], point[i], share[i], distance[i] = nearest_strip(grid, xy[i, 0], xy[i, 1], z[i])
    return owner, point, share, distance
