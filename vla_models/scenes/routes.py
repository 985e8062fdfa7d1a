"""Walking a town's lane graph: routes, and the evenly spaced paths that vehicles follow along them.

A *route* is a sequence of lanes that continue one another; a *path* is a route's centre line sampled every metre, so that
"where is the vehicle after s metres" is an index. ``road_net`` has what every scene of a town needs and is made once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from vla_models.geometry import wrap_angle
from vla_models.kernels import numba
from vla_models.scenes.lanes import LaneGraph

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

PATH_STEP: Final = 1.0
"""Metres between two points of a path."""
MAX_LANES: Final = 64
"""Lanes of one route at most."""
SLOT_STEP: Final = 6.0
"""Metres between places where a vehicle may start."""
TURN_ANGLE: Final = np.radians(40.0)
"""Junction lanes whose heading changes by more than this are turns."""
U_TURN_ANGLE: Final = np.radians(140.0)
"""Junction lanes that turn further than this are not used."""


@dataclass(frozen=True)
class RoadNet:
    """A lane graph with what scene generation looks up again and again. Read-only; lanes are indices into ``graph``."""

    graph: LaneGraph
    turn: FloatArray
    """[L] heading change along the lane, radians, left positive."""
    bend: FloatArray
    """[L] largest heading change within 30 m of the lane, radians."""
    light: IntArray
    """[L] index of the traffic light that governs the lane, or -1."""
    left: IntArray
    """Junction lanes that turn left."""
    right: IntArray
    """Junction lanes that turn right."""
    straight: IntArray
    """Junction lanes that go straight on."""
    free: IntArray
    """Lanes outside junctions on which a scene may lie."""
    slots: FloatArray
    """[M, 2] points every ``SLOT_STEP`` metres on lanes outside junctions."""
    slot_lane: IntArray
    """[M] their lanes."""
    slot_arc: FloatArray
    """[M] their distances from the lane's start."""
    parking: FloatArray
    """[Q, 4] parking places: x, y, heading, width of the parking lane."""
    pavement: FloatArray
    """[U, 3] x, y, heading of points along sidewalks."""


def _strip_places(offsets: IntArray, vertices: FloatArray, step: float) -> FloatArray:
    """[n, 4] x, y, heading, width at every ``step`` metres along strips (rings: one border forward, the other one back)."""
    places = [np.zeros((0, 4))]
    for k in range(len(offsets) - 1):
        ring = vertices[offsets[k] : offsets[k + 1]]
        n = len(ring) // 2
        if n < 2:
            continue
        a, b = ring[:n], ring[n : 2 * n][::-1]
        middle, width = (a + b) / 2.0, np.hypot(*(a - b).T)
        arc = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(middle, axis=0).T))])
        at = np.arange(step / 2.0, arc[-1], step)
        if not len(at):
            continue
        d = np.gradient(middle, axis=0)
        seg = np.clip(np.searchsorted(arc, at), 0, n - 1)
        heading = np.arctan2(d[seg, 1], d[seg, 0])
        x, y = np.interp(at, arc, middle[:, 0]), np.interp(at, arc, middle[:, 1])
        places.append(np.stack([x, y, heading, np.interp(at, arc, width)], -1))
    return np.concatenate(places)


def make_road_net(graph: LaneGraph) -> RoadNet:
    """The tables of ``RoadNet`` from a lane graph."""
    count = len(graph)
    turn, bend = np.zeros(count), np.zeros(count)
    slots, slot_lane, slot_arc = [], [], []
    for lane in range(count):
        s = graph.stations(lane)
        heading = np.unwrap(graph.center[s, 2])
        turn[lane] = heading[-1] - heading[0]
        window = min(30, len(heading) - 1)
        bend[lane] = np.abs(heading[window:] - heading[: len(heading) - window]).max()
        if graph.junction[lane] < 0:
            keep = np.arange(2, len(heading), int(SLOT_STEP))
            slots.append(graph.center[s, :2][keep])
            slot_arc.append(graph.arc[s][keep])
            slot_lane.append(np.full(len(keep), lane, dtype=np.int64))
    light = np.full(count, -1, dtype=np.int64)
    for k in range(len(graph.light_pose)):
        light[graph.governed_lanes(k)] = k
    connected = (np.diff(graph.predecessor_offsets) > 0) & (np.diff(graph.successor_offsets) > 0)
    connector = (graph.junction >= 0) & connected & (graph.length > 3.0)
    return RoadNet(
        graph=graph,
        turn=turn,
        bend=bend,
        light=light,
        left=np.flatnonzero(connector & (turn > TURN_ANGLE) & (turn < U_TURN_ANGLE)),
        right=np.flatnonzero(connector & (turn < -TURN_ANGLE) & (turn > -U_TURN_ANGLE)),
        straight=np.flatnonzero(connector & (np.abs(turn) < TURN_ANGLE / 2.0) & (graph.length > 8.0)),
        free=np.flatnonzero((graph.junction < 0) & connected & (graph.length > 12.0)),
        slots=np.concatenate(slots) if slots else np.zeros((0, 2)),
        slot_lane=np.concatenate(slot_lane) if slot_lane else np.zeros(0, dtype=np.int64),
        slot_arc=np.concatenate(slot_arc) if slot_arc else np.zeros(0),
        parking=_strip_places(graph.parking_offsets, graph.parking_vertices, 7.0),
        pavement=_strip_places(graph.sidewalk_offsets, graph.sidewalk_vertices, 5.0)[:, :3],
    )


@lru_cache(maxsize=16)
def road_net(town: str) -> RoadNet:
    """``RoadNet`` of a CARLA town (converted and cached on disk by ``towns.load_town``, kept in memory here)."""
    from vla_models.scenes.towns import load_town

    return make_road_net(load_town(town))


def extend_forward(net: RoadNet, lanes: list[int], metres: float, rng: np.random.Generator) -> list[int]:
    """``lanes`` continued along random successors until at least ``metres`` lie beyond the last one (U-turns avoided)."""
    route, left = list(lanes), metres
    while left > 0.0 and len(route) < MAX_LANES:
        options = [int(n) for n in net.graph.next_lanes(route[-1])]
        options = [n for n in options if abs(net.turn[n]) < U_TURN_ANGLE] or options
        if not options:
            break
        route.append(options[int(rng.integers(len(options)))])
        left -= float(net.graph.length[route[-1]])
    return route


def extend_backward(net: RoadNet, lanes: list[int], metres: float, rng: np.random.Generator) -> tuple[list[int], float]:
    """``lanes`` preceded by random predecessors over at least ``metres``; also the length that was put in front."""
    route, added = list(lanes), 0.0
    while added < metres and len(route) < MAX_LANES:
        options = [int(n) for n in net.graph.previous_lanes(route[0])]
        options = [n for n in options if abs(net.turn[n]) < U_TURN_ANGLE] or options
        if not options:
            break
        route.insert(0, options[int(rng.integers(len(options)))])
        added += float(net.graph.length[route[0]])
    return route, added


@dataclass(frozen=True)
class Paths:
    """Paths of N vehicles, P points each (``PATH_STEP`` metres apart); beyond its length a path repeats its last point."""

    pose: FloatArray
    """[N, P, 3] x, y, heading."""
    limit: FloatArray
    """[N, P] speed limit, m/s."""
    lane: IntArray
    """[N, P] the lane of each point."""
    length: FloatArray
    """[N] metres."""


@numba.njit(cache=True)
def _lay(  # type: ignore[no-untyped-def]
    offsets, center, arc, lane_length, lane_limit, successors_at, successors, turn, lanes, start, choice,
    pose, limit, lane_of, length,
):  # fmt: skip
    """``lay_paths`` on bare arrays."""
    count, points = limit.shape
    for i in range(count):
        k = 0
        lane = lanes[i, 0]
        a = min(start[i], lane_length[lane])
        total = -1.0
        p = 0
        while p < points:
            while a > lane_length[lane] + 1e-9:
                follow = -1
                if k + 1 < lanes.shape[1] and lanes[i, k + 1] >= 0:
                    follow = lanes[i, k + 1]
                else:
                    first, last = successors_at[lane], successors_at[lane + 1]
                    if last > first:
                        # a random successor, but not one that turns back if there is another
                        pick = int(choice[i, k % choice.shape[1]] * (last - first))
                        for tries in range(last - first):
                            follow = successors[first + (pick + tries) % (last - first)]
                            if abs(turn[follow]) < 2.44:
                                break
                if follow < 0:
                    break
                a -= lane_length[lane]
                lane = follow
                k += 1
            if a > lane_length[lane] + 1e-9:
                break
            lo, hi = offsets[lane], offsets[lane + 1] - 1
            j = min(lo + int(a), hi - 1)
            while j > lo and arc[j] > a:
                j -= 1
            while j < hi - 1 and arc[j + 1] < a:
                j += 1
            width = arc[j + 1] - arc[j]
            u = 0.0 if width <= 0.0 else min(1.0, max(0.0, (a - arc[j]) / width))
            turned = center[j + 1, 2] - center[j, 2]
            turned = np.arctan2(np.sin(turned), np.cos(turned))
            pose[i, p, 0] = center[j, 0] + u * (center[j + 1, 0] - center[j, 0])
            pose[i, p, 1] = center[j, 1] + u * (center[j + 1, 1] - center[j, 1])
            pose[i, p, 2] = center[j, 2] + u * turned
            limit[i, p] = lane_limit[lane]
            lane_of[i, p] = lane
            total += 1.0
            a += 1.0
            p += 1
        length[i] = max(total, 0.0)
        for q in range(max(p, 1), points):
            pose[i, q] = pose[i, p - 1]
            limit[i, q] = limit[i, p - 1]
            lane_of[i, q] = lane_of[i, p - 1]


def lay_paths(net: RoadNet, lanes: list[list[int]], start: npt.ArrayLike, points: int, rng: np.random.Generator) -> Paths:
    """Paths of ``points`` metres: vehicle i starts ``start[i]`` metres into ``lanes[i][0]``, follows ``lanes[i]``, then goes
    on along random successors. A path that runs out of lanes is shorter."""
    count = len(lanes)
    table = np.full((count, MAX_LANES), -1, dtype=np.int64)
    for i, route in enumerate(lanes):
        table[i, : len(route)] = route[:MAX_LANES]
    g = net.graph
    out = Paths(
        np.empty((count, points, 3)), np.empty((count, points)), np.empty((count, points), dtype=np.int64), np.zeros(count)
    )
    begin = np.ascontiguousarray(start, dtype=np.float64)
    choice = rng.random((count, 16))
    _lay(
        g.offsets, g.center, g.arc, g.length, g.speed_limit, g.successor_offsets, g.successors, net.turn,
        table, begin, choice, out.pose, out.limit, out.lane, out.length,
    )  # fmt: skip
    return out


def resample_path(pose: FloatArray, at: FloatArray) -> FloatArray:
    """Poses [m, 3] of one path [P, 3] ``at`` metres along it (within it); headings interpolate the short way."""
    k = np.minimum(at.astype(np.int64), len(pose) - 2)
    a, b, u = pose[k], pose[k + 1], (at - k)[:, None]
    out: FloatArray = a + u * (b - a)
    out[:, 2] = wrap_angle(a[:, 2] + u[:, 0] * wrap_angle(b[:, 2] - a[:, 2]))
    return out


def shift(pose: FloatArray, offset: FloatArray) -> FloatArray:
    """Path [P, 3] moved sideways by ``offset`` [P] metres (left positive), headings turned to follow."""
    x = pose[:, 0] - offset * np.sin(pose[:, 2])
    y = pose[:, 1] + offset * np.cos(pose[:, 2])
    return np.stack([x, y, wrap_angle(pose[:, 2] + np.arctan(np.gradient(offset) / PATH_STEP))], -1)
