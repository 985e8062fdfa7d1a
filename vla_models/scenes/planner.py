"""From way point to way point along the lanes: what CARLA's ``GlobalRoutePlanner`` does, on our lane graph.

Source of the rules: CARLA 0.9, ``PythonAPI/carla/agents/navigation/global_route_planner.py`` (``_path_search``,
``_lane_change_link``, ``_turn_decision``, ``trace_route``) with the leaderboard's hop resolution of 1 m. A place is put on the
nearest lane; the search runs from that lane's start to the start of the target's lane, each lane costs its length, a lane
change that the marks allow costs nothing. What differs: hops are 1 m along the lane itself (CARLA: along the road's reference
line), and lanes are joined by their links (CARLA: by rounding their ends to whole metres).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np

from vla_models.errors import SceneError
from vla_models.geometry import wrap_angle
from vla_models.scenes.lanes import FloatArray, IntArray, LaneGraph
from vla_models.scenes.strips import Strips

HOP: Final = 1.0
"""Metres between two points of a trace."""
ARRIVED: Final = 2.0 * HOP
"""Metres; a trace ends with the first point this near to its target."""
CHANGE_AHEAD: Final = 5
"""Points by which a lane change moves ahead."""
STRAIGHT: Final = np.radians(33.0)
"""A way through a junction that deviates less than this is straight on."""


class RoadOption(IntEnum):
    """What to do at a point, with CARLA's numbers (agents/navigation/local_planner.py)."""

    LEFT = 1
    RIGHT = 2
    STRAIGHT = 3
    LANE_FOLLOW = 4
    CHANGE_LANE_LEFT = 5
    CHANGE_LANE_RIGHT = 6


@dataclass(frozen=True)
class Trace:
    """Points along lanes, n of them."""

    pose: FloatArray
    """[n, 3] x, y, heading."""
    elevation: FloatArray
    """[n]"""
    lane: IntArray
    """[n]"""
    option: IntArray
    """[n] ``RoadOption``."""

    def __len__(self) -> int:
        return len(self.lane)


@dataclass(frozen=True)
class _Edge:
    lane: int
    """The lane that one follows, or changes to."""
    change: RoadOption | None = None


class LanePlanner:
    """Traces over one town's lane graph."""

    def __init__(self, graph: LaneGraph) -> None:
        self.graph = graph
        self.strips = Strips.driving(graph)
        count = len(graph)
        self._entry, self._exit = _nodes(graph)
        self._leaving: dict[int, list[int]] = {}
        for lane in range(count):
            self._leaving.setdefault(int(self._entry[lane]), []).append(lane)
        self._at: dict[int, FloatArray] = {}
        first, last = graph.offsets[:-1], graph.offsets[1:] - 1
        for node, rows in ((self._exit, last), (self._entry, first)):
            self._at |= dict(zip(node.tolist(), graph.center[rows, :2], strict=True))
        self._start = graph.center[first]
        self._end = graph.center[last]
        self._cost = np.maximum(np.ceil(graph.length / HOP), 1.0)
        self._samples: dict[int, tuple[FloatArray, FloatArray]] = {}

    def localize(self, place: FloatArray) -> tuple[int, float]:
        """Lane nearest to a place [3] (x, y, elevation, which may be NaN), and the distance to its centre line."""
        lane, _, _, distance = self.strips.nearest(place[None, :2], place[2:3])
        return int(lane[0]), float(distance[0])

    def trace(self, origin: FloatArray, target: FloatArray) -> Trace:
        """Points from ``origin`` to ``target``, both [3] x, y, elevation. ``SceneError`` where no way leads there."""
        start, _ = self.localize(origin)
        goal, _ = self.localize(target)
        if min(start, goal) < 0:
            raise SceneError("there is no lane near it")
        edges = self._search(start, goal)
        if edges is None:
            raise SceneError("no way along the lanes leads there")
        here = origin[:2]
        pieces: list[tuple[FloatArray, FloatArray, int, int]] = []
        on_start = self._nearest_sample(start, here)
        pose, height = self._sampled(start)
        last = (pose[on_start : on_start + 1], height[on_start : on_start + 1], start)
        for i, edge in enumerate(edges):
            pose, height = self._sampled(edge.lane)
            if edge.change is not None:
                pieces.append((*last, int(edge.change)))
                inner = len(pose) - 2  # CARLA looks among the points between a lane's ends
                k = len(pose) - 1
                if inner > 0:
                    k = 1 + min(inner - 1, int(_distance(pose[1:-1], here).argmin()) + CHANGE_AHEAD)
                last = (pose[k : k + 1], height[k : k + 1], edge.lane)
                pieces.append((*last, int(edge.change)))
            else:
                k = int(_distance(pose, here).argmin())
                stop = len(pose)
                if i == len(edges) - 1:
                    near = np.flatnonzero(_distance(pose[k:], target[:2]) < ARRIVED)
                    if len(near):
                        stop = k + int(near[0]) + 1
                    elif k > self._nearest_sample(goal, target[:2]):
                        stop = k + 1
                pieces.append((pose[k:stop], height[k:stop], edge.lane, int(self._option(edges, i))))
                last = (pose[stop - 1 : stop], height[stop - 1 : stop], edge.lane)
            here = last[0][0, :2]
        counts = [len(pose) for pose, *_ in pieces]
        return Trace(
            np.concatenate([pose for pose, *_ in pieces]),
            np.concatenate([height for _, height, *_ in pieces]),
            np.repeat([lane for *_, lane, _ in pieces], counts),
            np.repeat([option for *_, option in pieces], counts),
        )

    def _search(self, start: int, goal: int) -> list[_Edge] | None:
        """Cheapest edges from the start of lane ``start`` to the start of lane ``goal``, then along it; None if there are
        none."""
        source, aim = int(self._entry[start]), int(self._entry[goal])
        end = self._at[aim]
        queue = [(0.0, 0.0, 0, source)]
        cost = {source: 0.0}
        came: dict[int, tuple[int, _Edge]] = {}
        done: set[int] = set()
        pushed = 0
        while queue:
            _, spent, _, node = heapq.heappop(queue)
            if node == aim:
                edges = [_Edge(goal)]
                while node != source:
                    node, edge = came[node]
                    edges.append(edge)
                return edges[::-1]
            if node in done:
                continue
            done.add(node)
            for lane in self._leaving.get(node, ()):
                for next_node, edge, price in self._ways(lane):
                    total = spent + price
                    if total < cost.get(next_node, np.inf):
                        cost[next_node] = total
                        came[next_node] = (node, edge)
                        pushed += 1
                        guess = float(np.hypot(*(self._at[next_node] - end)))
                        heapq.heappush(queue, (total + guess, total, pushed, next_node))
        return None

    def _ways(self, lane: int) -> list[tuple[int, _Edge, float]]:
        """(node, edge, cost) of what one may do at the start of ``lane``: follow it, or change to a lane beside it."""
        g = self.graph
        ways = [(int(self._exit[lane]), _Edge(lane), float(self._cost[lane]))]
        for allowed, beside, option in (
            (g.left_change, g.left_lane, RoadOption.CHANGE_LANE_LEFT),
            (g.right_change, g.right_lane, RoadOption.CHANGE_LANE_RIGHT),
        ):
            if allowed[lane]:
                ways.append((int(self._entry[beside[lane]]), _Edge(int(beside[lane]), option), 0.0))
        return ways

    def _option(self, edges: list[_Edge], i: int) -> RoadOption:
        """What the way along ``edges[i]`` is called: a turn if it lies in a junction that was entered on this trace."""
        junction = self.graph.junction
        if junction[edges[i].lane] < 0:
            return RoadOption.LANE_FOLLOW
        entered = i
        while entered > 0 and edges[entered - 1].change is None and junction[edges[entered - 1].lane] >= 0:
            entered -= 1
        if entered == 0 or edges[entered - 1].change is not None:
            return RoadOption.LANE_FOLLOW
        tail = entered
        while tail + 1 < len(edges) and edges[tail + 1].change is None and junction[edges[tail + 1].lane] >= 0:
            tail += 1
        from_lane, to_lane = edges[entered - 1].lane, edges[tail].lane
        heading = self._end[from_lane, 2]
        deviation = self._turn(heading, to_lane)
        if abs(deviation) < STRAIGHT:
            return RoadOption.STRAIGHT
        others = [o for o in self._leaving[int(self._entry[edges[entered].lane])] if o != edges[entered].lane]
        sines = [np.sin(self._turn(heading, o)) for o in others] or [0.0]
        sine = np.sin(deviation)
        if sine > max(sines):
            return RoadOption.LEFT
        if sine < min(sines):
            return RoadOption.RIGHT
        return RoadOption.LEFT if sine > 0.0 else RoadOption.RIGHT

    def _turn(self, heading: float, lane: int) -> float:
        """Angle from ``heading`` to the chord of ``lane``, left positive."""
        chord = self._end[lane, :2] - self._start[lane, :2]
        return float(wrap_angle(np.arctan2(chord[1], chord[0]) - heading))

    def _sampled(self, lane: int) -> tuple[FloatArray, FloatArray]:
        """Poses [n, 3] and elevations [n] of a lane every ``HOP`` metres, and at its end."""
        if lane not in self._samples:
            s = self.graph.stations(lane)
            arc, center = self.graph.arc[s], self.graph.center[s]
            at = np.append(np.arange(0.0, arc[-1] - 1e-6, HOP), arc[-1])
            heading = np.interp(at, arc, np.unwrap(center[:, 2]))
            pose = np.column_stack([np.interp(at, arc, center[:, 0]), np.interp(at, arc, center[:, 1]), wrap_angle(heading)])
            self._samples[lane] = (pose, np.interp(at, arc, self.graph.elevation[s]))
        return self._samples[lane]

    def _nearest_sample(self, lane: int, place: FloatArray) -> int:
        return int(_distance(self._sampled(lane)[0], place).argmin())


def _distance(pose: FloatArray, place: FloatArray) -> FloatArray:
    away: FloatArray = np.hypot(pose[:, 0] - place[0], pose[:, 1] - place[1])
    return away


def _nodes(graph: LaneGraph) -> tuple[IntArray, IntArray]:
    """Node at which each lane starts and ends, [L] and [L]: a lane's end and its successors' starts are one node."""
    count = len(graph)
    parent = np.arange(2 * count)  # lane i starts at i and ends at count + i

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = int(parent[i])
        return i

    for lane in range(count):
        for successor in graph.next_lanes(lane).tolist():
            parent[root(successor)] = root(count + lane)
    roots = np.array([root(i) for i in range(2 * count)])
    return roots[:count], roots[count:]
