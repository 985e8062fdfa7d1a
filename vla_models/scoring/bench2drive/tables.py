"""The criteria's view of N environments: routes, lanes, lights and signs in padded columns that compiled code reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vla_models.scenes.bench2drive.routes import LocalTown, Route
from vla_models.scenes.lanes import FloatArray, IntArray, LaneGraph
from vla_models.scenes.strips import StripGrid, StripSlots


@dataclass(frozen=True)
class Course:
    """What one environment drives: a route and the part of the town around it."""

    route: Route
    local: LocalTown


COSINE, SINE, ARC, LIMIT, HEIGHT = range(2, 7)
"""Columns of ``Tables.route`` behind x and y."""


class Tables(NamedTuple):
    """Columns of N environments, padded; counts say how much of a row is real."""

    route: FloatArray
    """[N, R, 7] x, y, cosine and sine of the heading, metres from the start, speed limit, elevation."""
    route_count: IntArray
    """[N]"""
    lanes: IntArray
    """[N, L, 3] first and last point of a lane in ``driving``, its first successor (-1: none)."""
    lights: FloatArray
    """[N, K, 10] light, lane that leads to it, stop line x1 y1 x2 y2, heading there, middle of the light's stop lines x y,
    0."""
    light_count: IntArray
    """[N]"""
    signs: FloatArray
    """[N, S, 4] stop sign, x, y, half extent of its trigger box."""
    sign_count: IntArray
    """[N]"""
    driving: StripGrid
    parking: StripGrid


_ROUTE, _LANES, _LIGHTS, _SIGNS = (0, 7), (0, 3), (0, 10), (0, 4)


class TableSlots:
    """Builds ``Tables`` and exchanges single environments in it."""

    def __init__(self, count: int) -> None:
        self._driving, self._parking = StripSlots(count), StripSlots(count)
        self._columns: dict[str, npt.NDArray[np.float64] | npt.NDArray[np.int64]] = {
            "route": np.zeros((count, *_ROUTE)),
            "route_count": np.zeros(count, dtype=np.int64),
            "lanes": np.zeros((count, *_LANES), dtype=np.int64),
            "lights": np.zeros((count, *_LIGHTS)),
            "light_count": np.zeros(count, dtype=np.int64),
            "signs": np.zeros((count, *_SIGNS)),
            "sign_count": np.zeros(count, dtype=np.int64),
        }

    def put(self, slot: int, course: Course) -> None:
        """The course of one environment."""
        route, graph = course.route, course.local.graph
        points = route.points
        rows: dict[str, FloatArray | IntArray] = {
            "route": np.column_stack(
                [points[:, :2], np.cos(points[:, 2]), np.sin(points[:, 2]), route.arc, points[:, 3], route.elevation]
            ),
            "lanes": _lanes(graph),
            "lights": stop_lines(graph),
            "signs": _signs(graph),
        }
        for name, row in rows.items():
            column = self._columns[name]
            more = len(row) - column.shape[1]
            if more > 0:
                padding = np.zeros((len(column), more, *column.shape[2:]), dtype=column.dtype)
                column = self._columns[name] = np.concatenate([column, padding], axis=1)
            column[slot, : len(row)] = row
        for name, counted in (("route_count", "route"), ("light_count", "lights"), ("sign_count", "signs")):
            self._columns[name][slot] = len(rows[counted])
        self._driving.put(slot, course.local.driving)
        self._parking.put(slot, course.local.parking)

    def tables(self) -> Tables:
        """The columns as they are now (views: a later ``put`` may need new ones)."""
        return Tables(**self._columns, driving=self._driving.grid, parking=self._parking.grid)  # type: ignore[arg-type]


def _lanes(graph: LaneGraph) -> IntArray:
    has = np.diff(graph.successor_offsets) > 0
    successor = np.full(len(graph), -1, dtype=np.int64)
    successor[has] = graph.successors[graph.successor_offsets[:-1][has]]
    return np.column_stack([graph.offsets[:-1], graph.offsets[1:] - 1, successor])


def stop_lines(graph: LaneGraph) -> FloatArray:
    """[K, 10] rows of ``Tables.lights``: per light and lane that leads to a lane it governs, the line at that lane's end.

    The line is 1.2 lane widths long (``RunningRedLightTest``: 0.6 to either side of the last waypoint before the junction).
    """
    found = []
    seen: set[tuple[int, float, float]] = set()  # the graph has a head once per approach; two may share a lane
    for light in range(len(graph.light_pose)):
        entries = sorted({int(p) for lane in graph.governed_lanes(light) for p in graph.previous_lanes(int(lane))})
        ends = np.array([graph.offsets[lane + 1] - 1 for lane in entries], dtype=np.int64)
        middle = graph.center[ends, :2].mean(axis=0) if len(ends) else np.zeros(2)
        for lane, end in zip(entries, ends, strict=True):
            head = (lane, float(graph.light_pose[light, 0]), float(graph.light_pose[light, 1]))
            if head in seen:
                continue
            seen.add(head)
            x, y, heading = graph.center[end]
            reach = 0.6 * float(np.hypot(*(graph.left[end] - graph.right[end])))
            dx, dy = -np.sin(heading) * reach, np.cos(heading) * reach
            found.append((light, lane, x + dx, y + dy, x - dx, y - dy, heading, middle[0], middle[1], 0.0))
    return np.array(found).reshape(-1, 10)


def _signs(graph: LaneGraph) -> FloatArray:
    sign = np.repeat(np.arange(len(graph.stop_pose)), np.diff(graph.stop_lane_offsets))
    return np.column_stack([sign, graph.stop_box])
