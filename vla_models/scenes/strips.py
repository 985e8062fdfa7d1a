"""Where is the nearest lane? Centre lines of driving and parking lanes in a grid, asked by compiled code.

Stands for CARLA's ``Map.get_waypoint``, which projects a place onto the nearest centre line in three dimensions; here the
vertical distance counts only where the caller knows an elevation (roads cross over one another in five of the towns).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from vla_models.kernels import numba
from vla_models.scenes.lanes import FloatArray, IntArray, LaneGraph, offsets_of

Int32Array = npt.NDArray[np.int32]

CELL: Final = 4.0
"""Metres; side of a grid cell."""
LONGEST: Final = 2.0
"""Metres; no two neighbouring points of a strip lie further apart (stations do not, nor do parking lanes' cross-sections)."""
REACH: Final = 60.0
"""Metres; a place further than this from every strip has none."""
X, Y, ELEVATION, WIDTH, HEADING, JUNCTION = range(6)
"""Columns of ``StripGrid.place``."""
COLUMNS: Final = 6


class StripGrid(NamedTuple):
    """The compiled code's view: G independent grids (one a town, or one an environment), each with P points of centre lines."""

    place: FloatArray
    """[G, P, 6] x, y, elevation (NaN: unknown), width of the strip, heading, 1 inside a junction."""
    owner: Int32Array
    """[G, P] lane or parking strip of the point, -1 for padding; a segment joins a point to the next one of the same owner."""
    first: Int32Array
    """[G, C + 1] offsets into ``order`` of each cell."""
    order: Int32Array
    """[G, P] points cell by cell."""
    origin: FloatArray
    """[G, 2] the grid's lower left corner."""
    shape: IntArray
    """[G, 2] cells along x and y."""


@dataclass(frozen=True)
class Strips:
    """Centre lines with the grid over them (G = 1)."""

    grid: StripGrid

    @classmethod
    def make(cls, place: FloatArray, owner: npt.ArrayLike) -> Strips:
        """From points [P, 6] and their owners [P], each owner's points in a row."""
        low = place[:, :2].min(axis=0) - 1.0 if len(place) else np.zeros(2)
        high = place[:, :2].max(axis=0) + 1.0 if len(place) else np.ones(2)
        shape = np.ceil((high - low) / CELL).astype(np.int64)
        cell = ((place[:, :2] - low) / CELL).astype(np.int64)
        key = cell[:, 0] * shape[1] + cell[:, 1]
        order = np.argsort(key, kind="stable")
        first = offsets_of(np.bincount(key, minlength=int(shape.prod())))
        owners, firsts, orders = (np.asarray(part, dtype=np.int32)[None] for part in (owner, first, order))
        return cls(StripGrid(np.ascontiguousarray(place)[None], owners, firsts, orders, low[None], shape[None]))

    @classmethod
    def driving(cls, graph: LaneGraph) -> Strips:
        """Driving lanes; owners are lanes, points are the graph's stations."""
        lane = np.repeat(np.arange(len(graph)), np.diff(graph.offsets))
        width = np.hypot(*(graph.left - graph.right).T)
        inside = graph.junction[lane] >= 0
        return cls.make(np.column_stack([graph.center[:, :2], graph.elevation, width, graph.center[:, 2], inside]), lane)

    @classmethod
    def parking(cls, graph: LaneGraph) -> Strips:
        """Parking lanes; owners are the graph's parking surfaces. The graph has no elevation of theirs."""
        places, owners = [np.zeros((0, COLUMNS))], [np.zeros(0, dtype=np.int64)]
        for k in range(len(graph.parking_offsets) - 1):
            ring = graph.parking_vertices[graph.parking_offsets[k] : graph.parking_offsets[k + 1]]
            left, right = ring[: len(ring) // 2], ring[len(ring) // 2 :][::-1]
            across = left - right
            width = np.hypot(*across.T)
            heading = np.arctan2(-across[:, 0], across[:, 1])
            unknown, outside = np.full(len(left), np.nan), np.zeros(len(left))
            places.append(np.column_stack([0.5 * (left + right), unknown, width, heading, outside]))
            owners.append(np.full(len(left), k))
        return cls.make(np.concatenate(places), np.concatenate(owners))

    def nearest(
        self, xy: npt.ArrayLike, elevation: npt.ArrayLike | None = None
    ) -> tuple[IntArray, IntArray, FloatArray, FloatArray]:
        """For places [n, 2]: owner, point at or behind the foot, share of the way to the next point, level distance.

        A place without a strip within ``REACH`` has owner -1 and an infinite distance. ``elevation`` [n] may be NaN (unknown).
        """
        places = np.asarray(xy, dtype=np.float64).reshape(-1, 2)
        height = np.full(len(places), np.nan) if elevation is None else np.asarray(elevation, dtype=np.float64)
        return _nearest_all(self.grid, places, np.ascontiguousarray(height))


class StripSlots:
    """Room for the strips of G environments; one of them can be exchanged without touching the others."""

    def __init__(self, count: int) -> None:
        self.grid = StripGrid(
            np.zeros((count, 0, COLUMNS)),
            np.zeros((count, 0), dtype=np.int32),
            np.zeros((count, 1), dtype=np.int32),
            np.zeros((count, 0), dtype=np.int32),
            np.zeros((count, 2)),
            np.ones((count, 2), dtype=np.int64),
        )

    def put(self, slot: int, strips: Strips) -> None:
        """The strips of one environment; room grows as needed."""
        room: dict[str, npt.NDArray[Any]] = self.grid._asdict()
        for name, new in strips.grid._asdict().items():
            more = new.shape[1] - room[name].shape[1]
            if more > 0:
                padding = np.zeros((len(room[name]), more, *new.shape[2:]), dtype=new.dtype)
                room[name] = np.concatenate([room[name], padding], axis=1)
            room[name][slot, : new.shape[1]] = new[0]
        room["owner"][slot, strips.grid.owner.shape[1] :] = -1
        self.grid = StripGrid(**room)


@numba.njit(cache=True)
def nearest_strip(grid: StripGrid, g: int, x: float, y: float, z: float, within: float) -> tuple[int, int, float, float]:
    """``Strips.nearest`` for one place in grid ``g``, looking no further than ``within`` metres."""
    place, owner_of = grid.place[g], grid.owner[g]
    rows, columns = grid.shape[g]
    cx = int(np.floor((x - grid.origin[g, 0]) / CELL))
    cy = int(np.floor((y - grid.origin[g, 1]) / CELL))
    best, flat = within * within, np.inf
    owner, point, share = -1, -1, 0.0
    last = len(owner_of) - 1
    for ring in range(int((within + LONGEST) / CELL) + 2):
        out = max(0.0, (ring - 1.0) * CELL - LONGEST)
        if best < out * out:  # the segments that begin further out are further away
            break
        for i in range(max(0, cx - ring), min(rows, cx + ring + 1)):
            step = 1 if abs(i - cx) == ring or ring == 0 else 2 * ring
            for j in range(cy - ring, cy + ring + 1, step):
                if j < 0 or j >= columns:
                    continue
                cell = i * columns + j
                for at in range(grid.first[g, cell], grid.first[g, cell + 1]):
                    p = grid.order[g, at]
                    u = 0.0
                    dx, dy, height = x - place[p, X], y - place[p, Y], place[p, ELEVATION]
                    if p < last and owner_of[p + 1] == owner_of[p]:
                        bx, by = place[p + 1, X] - place[p, X], place[p + 1, Y] - place[p, Y]
                        n2 = bx * bx + by * by
                        if n2 > 0.0:
                            u = min(1.0, max(0.0, (dx * bx + dy * by) / n2))
                        dx, dy = dx - u * bx, dy - u * by
                        height += u * (place[p + 1, ELEVATION] - height)
                    d2 = dx * dx + dy * dy
                    dz = height - z
                    total = d2 + (dz * dz if dz == dz else 0.0)
                    if total < best:
                        best, flat = total, d2
                        owner, point, share = int(owner_of[p]), int(p), u
    return owner, point, share, float(np.sqrt(flat))


@numba.njit(cache=True)
def _nearest_all(grid: StripGrid, xy: FloatArray, z: FloatArray) -> tuple[IntArray, IntArray, FloatArray, FloatArray]:
    n = len(xy)
    owner, point = np.empty(n, np.int64), np.empty(n, np.int64)
    share, distance = np.empty(n), np.empty(n)
    for i in range(n):
        owner[i], point[i], share[i], distance[i] = nearest_strip(grid, 0, xy[i, 0], xy[i, 1], z[i], REACH)
    return owner, point, share, distance
