"""A town's lanes as the closed loop needs them: which lane is here, and paths (a point every metre) that vehicles follow.

A path is [n, ``PATH_COLUMNS``]. Everything in the batched world moves along paths with a lateral offset (left positive), so
what lies beside a path (the neighbouring lanes, the edge of the road) is stored with it and costs nothing while driving.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vla_models.errors import SceneError
from vla_models.kernels import numba
from vla_models.scenes.lanes import SIDES, LaneGraph
from vla_models.scenes.towns import load_town

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

PATH_COLUMNS: Final = (
    "x",
    "y",
    "heading",
    "cap",
    "left",
    "right",
    "opposite",
    "half_width",
    "junction",
    "edge_left",
    "edge_right",
    "parking_left",
    "parking_right",
)
"""x, y; heading (unwrapped along the path); cap: speed m/s that limit and curvature allow; left, right: metres to the centre of
the neighbouring lane of the same direction, opposite: to that of the nearest oncoming lane on the left (0: none); half_width of
the lane; junction: 1 inside one; edge_left, edge_right: metres from the path to where the lanes of this direction end (inside a
junction: where any lane ends), parking lanes included as officially; parking_left, parking_right: width of a parking lane
there (0: none)."""
X, Y, HEADING, CAP, LEFT, RIGHT, OPPOSITE, HALF_WIDTH, JUNCTION, EDGE_LEFT, EDGE_RIGHT, PARKING_LEFT, PARKING_RIGHT = range(13)

LATERAL_ACCEL: Final = 2.2
"""m/s² that a driver accepts in a curve."""
COMFORT_DECEL: Final = 1.6
"""m/s² with which a driver slows down for a curve."""
CELL: Final = 6.0
"""Metres, the side of a cell in which lane stations are looked up."""
STOREY: Final = 4.0
"""Metres of elevation beyond which a lane is another storey (bridges)."""
CHANGE_LENGTH: Final = 26
"""Metres that a lane change of a route takes, where there is room."""
EDGE_REACH: Final = 16.0
"""Metres beside a path within which the edge of the road is sought."""
EDGE_STEP: Final = 0.25


@numba.njit(cache=True)
def _nearest(  # type: ignore[no-untyped-def]
    center, lane_of, elevation, order, starts, x0, y0, columns, rows, x, y, z, heading, agree, within
):  # fmt: skip
    """Station nearest to (x, y), or -1. ``agree``: least cosine between its heading and ``heading`` (-2: any direction); z NaN:
    any storey."""
    best, found = within * within, -1
    cx, cy = int((x - x0) // CELL), int((y - y0) // CELL)
    ring = math.ceil(within / CELL)
    for j in range(max(0, cy - ring), min(rows, cy + ring + 1)):
        for i in range(max(0, cx - ring), min(columns, cx + ring + 1)):
            for k in range(starts[j * columns + i], starts[j * columns + i + 1]):
                v = order[k]
                d = (center[v, 0] - x) ** 2 + (center[v, 1] - y) ** 2
                if d >= best or abs(elevation[v] - z) > STOREY:
                    continue
                if agree > -2.0 and math.cos(center[v, 2] - heading) < agree:
                    continue
                best, found = d, v
    return found


@numba.njit(cache=True)
def _edges(  # type: ignore[no-untyped-def]
    path, lanes, center, half, lane_of, in_junction, elevation, order, starts, x0, y0, columns, rows, stations
):  # fmt: skip
    """Fill ``edge_left``, ``edge_right`` and ``opposite`` of a path, looking sideways step by step."""
    for p in range(len(path)):
        h = path[p, HEADING]
        nx, ny = -math.sin(h), math.cos(h)
        z = elevation[stations[p]] if stations[p] >= 0 else np.nan
        any_direction = path[p, JUNCTION] > 0.0
        path[p, OPPOSITE] = 0.0
        for side in (1.0, -1.0):
            edge, own = path[p, HALF_WIDTH], True
            d = path[p, HALF_WIDTH]
            while d < EDGE_REACH:
                d += EDGE_STEP
                x, y = path[p, X] + side * d * nx, path[p, Y] + side * d * ny
                v = _nearest(center, lane_of, elevation, order, starts, x0, y0, columns, rows, x, y, z, 0.0, -2.0, 3.5)
                if v < 0:
                    break
                across = -math.sin(center[v, 2]) * (x - center[v, 0]) + math.cos(center[v, 2]) * (y - center[v, 1])
                if abs(across) > half[v] + 0.05:
                    break
                same = math.cos(center[v, 2] - h) > 0.0
                if own and (same or any_direction or in_junction[lane_of[v]]):
                    edge = d
                elif not same:
                    own = False
                    if side > 0.0:
                        path[p, OPPOSITE] = -math.sin(h) * (center[v, 0] - path[p, X]) + math.cos(h) * (
                            center[v, 1] - path[p, Y]
                        )
                        break
                else:
                    break
            path[p, EDGE_LEFT if side > 0.0 else EDGE_RIGHT] = edge


@dataclass(frozen=True)
class Path:
    """A path with what lies on it. ``points`` [n, 13], a point a metre; ``lanes`` [n] the lane of each point, or -1."""

    points: FloatArray
    lanes: IntArray

    def __len__(self) -> int:
        return len(self.points)

    def pose(self, s: float, offset: float = 0.0) -> FloatArray:
        """Pose [3] at ``s`` metres, ``offset`` metres to the left."""
        k = min(max(round(s), 0), len(self.points) - 1)
        x, y, h = self.points[k, :3]
        return np.array([x - offset * math.sin(h), y + offset * math.cos(h), h])

    def nearest(self, x: float, y: float) -> int:
        """Index of the point nearest to (x, y)."""
        return int(np.argmin(np.hypot(self.points[:, X] - x, self.points[:, Y] - y)))


class Roads:
    """Look-ups and paths on one town's lane graph. Read-only once made; ``roads_of`` keeps one a town."""

    def __init__(self, graph: LaneGraph) -> None:
        self.graph = graph
        self.lane_of: IntArray = np.repeat(np.arange(len(graph)), np.diff(graph.offsets))
        self.half: FloatArray = 0.5 * np.hypot(*(graph.left - graph.right).T)
        self.in_junction = graph.junction >= 0
        x, y = graph.center[:, 0], graph.center[:, 1]
        self.x0, self.y0 = float(x.min()) - CELL, float(y.min()) - CELL
        self.columns, self.rows = int((x.max() - self.x0) // CELL) + 2, int((y.max() - self.y0) // CELL) + 2
        cell = ((y - self.y0) // CELL).astype(np.int64) * self.columns + ((x - self.x0) // CELL).astype(np.int64)
        self.order: IntArray = np.argsort(cell, kind="stable")
        counts = np.bincount(cell, minlength=self.columns * self.rows)
        self.starts: IntArray = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self.lights_of: dict[int, int] = {}
        for light in range(len(graph.light_pose)):
            for lane in graph.governed_lanes(light):
                self.lights_of.setdefault(int(lane), light)

    @property
    def _grid(self) -> tuple[Any, ...]:
        return self.order, self.starts, self.x0, self.y0, self.columns, self.rows

    def nearest(
        self, x: float, y: float, heading: float | None = None, within: float = 8.0, elevation: float = math.nan
    ) -> int:
        """Station nearest to a point (of a lane that runs within 90° of ``heading``, where given), or -1 where there is
        none."""
        g = self.graph
        agree, h = (-2.0, 0.0) if heading is None else (1e-9, heading)
        kernel: Any = _nearest
        return int(kernel(g.center, self.lane_of, g.elevation, *self._grid, x, y, elevation, h, agree, within))

    def _on_lane(self, lane: int, x: float, y: float) -> int:
        """The station of a lane that is nearest to (x, y)."""
        s = self.graph.stations(lane)
        return int(s.start) + int(np.argmin((self.graph.center[s, 0] - x) ** 2 + (self.graph.center[s, 1] - y) ** 2))

    def place(self, x: float, y: float, heading: float | None = None, within: float = 8.0) -> tuple[int, float]:
        """(lane, metres along it) nearest to a point. Raises ``SceneError`` where no lane is near."""
        v = self.nearest(x, y, heading, within)
        if v < 0:
            raise SceneError(f"no driving lane of {self.graph.town} within {within} m of ({x:.1f}, {y:.1f})")
        return int(self.lane_of[v]), float(self.graph.arc[v])

    def turn(self, lane: int) -> float:
        """Heading change along a lane, radians, left positive."""
        h = np.unwrap(self.graph.center[self.graph.stations(lane), 2])
        return float(h[-1] - h[0])

    def straightest(self, lanes: Sequence[int] | IntArray) -> int:
        """The lane of ``lanes`` that bends least."""
        return min((int(i) for i in lanes), key=lambda i: (abs(self.turn(i)), i))

    def ahead(self, lane: int, arc: float, distance: float) -> list[int]:
        """Lanes from ``lane`` on that cover ``distance`` metres from ``arc``, going straight where there is a choice."""
        lanes, left = [lane], distance - (float(self.graph.length[lane]) - arc)
        while left > 0.0 and len(following := self.graph.next_lanes(lanes[-1])):
            lanes.append(self.straightest(following))
            left -= float(self.graph.length[lanes[-1]])
        return lanes

    def behind(self, lane: int, arc: float, distance: float, leave_junctions: bool = True) -> tuple[list[int], float]:
        """(lanes up to ``lane``, metres along the first of them) that start ``distance`` metres before ``arc`` on ``lane``;
        less where the road begins or, without ``leave_junctions``, where a junction ends."""
        lanes, left = [lane], distance - arc
        while left > 0.0 and len(before := self.graph.previous_lanes(lanes[0])):
            lane = self.straightest(before)
            if lane in lanes or (not leave_junctions and self.in_junction[lane]):
                break
            lanes.insert(0, lane)
            left -= float(self.graph.length[lane])
        return lanes, max(0.0, -left)

    def entries(self, junction: int) -> list[int]:
        """Lanes outside a junction from which one drives into it."""
        g = self.graph
        inside = np.flatnonzero(g.junction == junction)
        before = {int(p) for i in inside for p in g.previous_lanes(int(i))}
        return sorted(p for p in before if g.junction[p] != junction)

    def exits(self, entry: int, junction: int) -> list[list[int]]:
        """The ways through a junction from one of its entries: connectors, one after the other, and the lane behind them."""
        found = []
        for first in self.graph.next_lanes(entry):
            way = [int(first)]
            while self.graph.junction[way[-1]] == junction and len(way) < 12 and len(after := self.graph.next_lanes(way[-1])):
                way.append(self.straightest(after))
            found.append(way)
        return found

    def connection(self, start: tuple[int, float], goal: tuple[int, float]) -> list[int]:
        """The shortest chain of lanes from one place (lane, metres) to another. Raises ``SceneError`` where there is none."""
        g = self.graph
        if start[0] == goal[0] and start[1] < goal[1]:
            return [start[0]]
        best = {start[0]: 0.0}
        came: dict[int, int] = {}
        queue = [(0.0, start[0])]
        while queue:
            far, lane = heapq.heappop(queue)
            if lane == goal[0] and lane in came:
                chain = [lane]
                while (lane := came[lane]) != start[0]:
                    chain.insert(0, lane)
                return [start[0], *chain]
            if far > best.get(lane, math.inf) or far > 3000.0:
                continue
            for after in (int(i) for i in g.next_lanes(lane)):
                reached = far + float(g.length[lane])
                if reached < best.get(after, math.inf):
                    best[after], came[after] = reached, lane
                    heapq.heappush(queue, (reached, after))
        raise SceneError(f"{g.town}: no way along the lanes from lane {g.names[start[0]]} to lane {g.names[goal[0]]}")

    def path(self, lanes: Sequence[int], start: float = 0.0, length: float = math.inf) -> Path:
        """The path along lanes that continue (or lie beside) one another, from ``start`` metres on the first."""
        g = self.graph
        parts = [np.arange(g.offsets[i], g.offsets[i + 1]) for i in lanes]
        first = int(np.searchsorted(g.arc[parts[0]], start - 1e-6))
        parts[0] = parts[0][min(first, len(parts[0]) - 2) :]
        return self.path_through(np.concatenate(parts), length)

    def path_through(self, stations: IntArray, length: float = math.inf) -> Path:
        """The path through lane stations in driving order."""
        g = self.graph
        line = g.center[stations, :2]
        keep = np.concatenate([[True], np.hypot(*np.diff(line, axis=0).T) > 1e-3])
        stations, line = stations[keep], line[keep]
        arc = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(line, axis=0).T))])
        at = np.arange(0.0, min(arc[-1], length) + 1e-9)
        if len(at) < 2:
            raise SceneError(f"a path in {g.town} is shorter than a metre")
        nearest = stations[np.clip(np.searchsorted(arc, at - 0.5), 0, len(stations) - 1)]
        xy = np.stack([np.interp(at, arc, line[:, 0]), np.interp(at, arc, line[:, 1])], -1)
        return self.dressed(xy, self.lane_of[nearest], nearest)

    def dressed(self, xy: FloatArray, lanes: IntArray, stations: IntArray, limit: FloatArray | None = None) -> Path:
        """A path through points [n, 2] a metre apart, with the columns that lanes and stations (-1: unknown) give."""
        g = self.graph
        points = np.zeros((len(xy), len(PATH_COLUMNS)))
        points[:, :2] = xy
        points[:, HEADING] = headings(xy)
        known = stations >= 0
        at = np.maximum(stations, 0)
        points[:, HALF_WIDTH] = np.where(known, self.half[at], 1.75)
        points[:, JUNCTION] = known & self.in_junction[self.lane_of[at]]
        for column, neighbour in ((LEFT, g.left_lane), (RIGHT, g.right_lane)):
            beside = neighbour[self.lane_of[at]]
            has = known & (beside >= 0)
            other = g.offsets[np.maximum(beside, 0)] + (at - g.offsets[self.lane_of[at]])
            points[has, column] = np.hypot(*(g.center[at, :2] - g.center[np.minimum(other, len(g.center) - 1), :2])[has].T)
        limits = np.where(known, g.speed_limit[self.lane_of[at]], 8.3) if limit is None else limit
        points[:, CAP] = speed_caps(points[:, HEADING], limits)
        points[:, EDGE_LEFT] = points[:, EDGE_RIGHT] = points[:, HALF_WIDTH]
        return Path(points, np.where(known, lanes, -1))

    def with_edges(self, path: Path, stations: IntArray) -> Path:
        """``path``, whose points lie at ``stations``, with its edges and oncoming lanes filled in."""
        g, points = self.graph, path.points.copy()
        kernel: Any = _edges
        kernel(points, path.lanes, g.center, self.half, self.lane_of, self.in_junction, g.elevation, *self._grid, stations)
        for at in np.flatnonzero(points[:, JUNCTION] == 0.0):
            lane, arc = int(self.lane_of[stations[at]]), int(stations[at] - g.offsets[self.lane_of[stations[at]]])
            for neighbour, side, width, edge, column in (
                (g.left_lane, g.left_side, g.left_width, EDGE_LEFT, PARKING_LEFT),
                (g.right_lane, g.right_side, g.right_width, EDGE_RIGHT, PARKING_RIGHT),
            ):
                outer = lane
                while neighbour[outer] >= 0:
                    outer = int(neighbour[outer])
                if SIDES[side[outer]] == "parking":
                    points[at, column] = width[min(g.offsets[outer] + arc, g.offsets[outer + 1] - 1)]
                    points[at, edge] += points[at, column]
        return Path(points, path.lanes)

    def _changes(self, lanes: IntArray) -> list[int]:
        """Indices at which a sequence of lanes goes over to the lane beside."""
        g = self.graph
        at = np.flatnonzero(lanes[1:] != lanes[:-1]) + 1
        return [int(k) for k in at if lanes[k] in (g.left_lane[lanes[k - 1]], g.right_lane[lanes[k - 1]])]

    def route_path(self, points: FloatArray, lanes: IntArray | None = None) -> Path:
        """The path along a route's points [R, >=3] (x, y, heading[, speed limit]) as the ego is to drive it, with edges.
        ``lanes`` [R], where known, say on which of several storeys it runs."""
        arc = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points[:, :2], axis=0).T))])
        at = np.arange(0.0, arc[-1] + 1e-9)
        if len(at) < 3:
            raise SceneError(f"a route of {arc[-1]:.1f} m in {self.graph.town} is too short to drive")
        xy = np.stack([np.interp(at, arc, points[:, k]) for k in (0, 1)], -1)
        if lanes is not None:
            xy = _smooth_changes(xy, self._changes(lanes[np.searchsorted(arc, at - 0.5)]))
        h = headings(xy)
        if lanes is None:
            stations = np.array([self.nearest(float(x), float(y), float(k)) for (x, y), k in zip(xy, h, strict=True)])
        else:
            stations = np.array(
                [self._on_lane(int(lanes[k]), x, y) for k, (x, y) in zip(np.searchsorted(arc, at - 0.5), xy, strict=True)]
            )
        limit = np.interp(at, arc, points[:, 3]) if points.shape[1] > 3 else None
        path = self.dressed(xy, np.where(stations >= 0, self.lane_of[np.maximum(stations, 0)], -1), stations, limit)
        return self.with_edges(path, stations)


def _smooth_changes(xy: FloatArray, changes: Sequence[int]) -> FloatArray:
    """A polyline [n, 2] with a point a metre whose lane changes, at the indices ``changes``, take ``CHANGE_LENGTH`` metres as
    a driver's do (officially they are kinks of some 40 degrees): cubic curves, shorter where changes follow one another."""
    smooth, last = xy.copy(), len(xy) - 1
    ends = [0, *changes, last]
    for before, at, after in zip(ends[:-2], ends[1:-1], ends[2:], strict=True):
        reach = min(CHANGE_LENGTH // 2, (at - before) // 2, (after - at) // 2)
        a, b = at - reach, at + reach
        if reach < 4:
            continue
        u = np.linspace(0.0, 1.0, b - a + 1)[:, None]
        length = float(np.hypot(*(xy[b] - xy[a])))
        start, end = (length * (xy[max(k, 1)] - xy[max(k, 1) - 1]) for k in (a, min(b + 1, last)))
        smooth[a : b + 1] = (
            (2 * u**3 - 3 * u**2 + 1) * xy[a]
            + (u**3 - 2 * u**2 + u) * start
            + (3 * u**2 - 2 * u**3) * xy[b]
            + (u**3 - u**2) * end
        )
    return smooth


def headings(xy: FloatArray) -> FloatArray:
    """Unwrapped headings [n] of a polyline's points [n, 2]."""
    d = np.gradient(xy, axis=0)
    return np.unwrap(np.arctan2(d[:, 1], d[:, 0]))


def speed_caps(heading: FloatArray, limit: FloatArray) -> FloatArray:
    """[n] m/s allowed along a path with a point a metre: the limit, what curves allow, and what braking for both allows."""
    spread = np.minimum(np.arange(len(heading)), 2), np.minimum(np.arange(len(heading))[::-1], 2)
    at = np.arange(len(heading))
    bend = np.abs(heading[at + spread[1]] - heading[at - spread[0]]) / np.maximum(spread[0] + spread[1], 1)
    cap: FloatArray = np.minimum(limit, np.sqrt(LATERAL_ACCEL / np.maximum(bend, 1e-4)))
    for k in range(len(cap) - 2, -1, -1):
        cap[k] = min(cap[k], math.sqrt(cap[k + 1] ** 2 + 2.0 * COMFORT_DECEL))
    return cap


def straight_path(start: FloatArray, length: float, speed: float) -> Path:
    """A straight path from a pose [3]: what a walker follows across the road."""
    at = np.arange(0.0, math.ceil(length) + 1.0)
    points = np.zeros((max(len(at), 2), len(PATH_COLUMNS)))
    points[:, X] = start[0] + at * math.cos(start[2])
    points[:, Y] = start[1] + at * math.sin(start[2])
    points[:, HEADING], points[:, CAP], points[:, HALF_WIDTH] = start[2], speed, 1.0
    return Path(points, np.full(len(points), -1, dtype=np.int64))


def shifted(path: Path, offset: FloatArray) -> Path:
    """``path`` moved sideways by ``offset`` [n] metres (left positive): a lane change, a car that cuts a corner, a parked
    start.

    Points stay about a metre apart; beside the new path nothing is known, so nobody changes lanes from it.
    """
    points = path.points.copy()
    xy = points[:, :2] + offset[:, None] * np.stack([-np.sin(points[:, HEADING]), np.cos(points[:, HEADING])], -1)
    arc = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(xy, axis=0).T))])
    at = np.arange(0.0, arc[-1] + 1e-9)
    source = np.clip(np.searchsorted(arc, at - 0.5), 0, len(points) - 1)
    moved = points[source].copy()
    moved[:, X], moved[:, Y] = np.interp(at, arc, xy[:, 0]), np.interp(at, arc, xy[:, 1])
    moved[:, HEADING] = headings(moved[:, :2])
    moved[:, LEFT] = moved[:, RIGHT] = moved[:, OPPOSITE] = 0.0
    return Path(moved, path.lanes[source])


def blend(n: int, start: int, length: float, before: float, after: float) -> FloatArray:
    """Offsets [n]: ``before`` up to index ``start``, then smoothly to ``after`` within ``length`` metres."""
    u = np.clip((np.arange(n) - start) / max(length, 1.0), 0.0, 1.0)
    return before + (after - before) * u * u * (3.0 - 2.0 * u)


@lru_cache(maxsize=4)
def roads_of(town: str) -> Roads:
    """The roads of a CARLA town."""
    return Roads(load_town(town))
