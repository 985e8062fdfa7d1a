"""A route: way points laid along a town's lanes, with the scenarios on it. What the world runs and the criteria measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from vla_models.errors import SceneError
from vla_models.geometry import arc_lengths, wrap_angle
from vla_models.scenes.bench2drive.scenario_types import Value
from vla_models.scenes.lanes import FloatArray, IntArray, LaneGraph
from vla_models.scenes.planner import LanePlanner
from vla_models.scenes.strips import Strips
from vla_models.scenes.surroundings import surroundings
from vla_models.scenes.towns import load_town

TRIGGER_DISTANCE: Final = 2.0
"""Metres between a trigger and the nearest route point, at most (official ``DIST_THRESHOLD``)."""
TRIGGER_ANGLE: Final = np.radians(10.0)
"""Radians between their headings, at most (official ``ANGLE_THRESHOLD``)."""
OFF_ROAD: Final = 5.0
"""Metres; a way point further than this from every driving lane is off the road (official files stay below 1.3 m)."""
BESIDE: Final = 5.0
"""Metres; a trigger that is no further off is on a lane beside the route (the only one of Bench2Drive's route 28154 is)."""
SAME_PLACE: Final = 0.1
"""Metres; a traced point nearer than this to the one before is the same one (a lane's end and its successor's start)."""
WIDEST_STEP: Final = 1.5
"""Metres; wider steps of a trace (lane changes, way points between hops) are filled."""
PAST_JUNCTION: Final = 8
"""Points behind a junction's first one at which it counts as passed (``ability_benchmark.py``)."""
BACKWARDS: Final = 3.0
"""Metres that a trace may step back where two way points meet; such points are left out."""


@dataclass(frozen=True)
class ScenarioSpec:
    """One scenario of a route, as its file has it."""

    name: str
    type: str
    """A key of ``scenario_types.SCENARIO_TYPES``."""
    trigger: tuple[float, float, float]
    """x, y, heading."""
    parameters: Mapping[str, Value]
    """All that the type reads, in the units of ``scenario_types.PARAMETERS``; places are (x, y, elevation) in our frame."""
    at: int
    """Index of the route point nearest to the trigger."""


@dataclass(frozen=True)
class Route:
    """A route of R points, about a metre apart."""

    id: str
    town: str
    points: FloatArray
    """[R, 4] x, y, heading of the lane, speed limit."""
    lanes: IntArray
    """[R] the lane of each point in the town's graph."""
    option: IntArray
    """[R] ``planner.RoadOption``."""
    elevation: FloatArray
    """[R]"""
    scenarios: tuple[ScenarioSpec, ...] = ()
    dropped: tuple[str, ...] = ()
    """Scenarios that lie off the route by the official rule, each with the reason."""
    theme: str = ""
    """Type of the first scenario in the file: what the route is about, also where that scenario was dropped."""
    junction_share: float = float("nan")
    """Share of the traced points from which Bench2Drive's ability script holds the first junction for passed; NaN: no
    junction."""
    weather: tuple[Mapping[str, float], ...] = field(default=())
    """Weather along the route as in the file: ``route_percentage`` and CARLA's parameters."""

    @property
    def arc(self) -> FloatArray:
        """[R] metres driven at each point, climbing included, as CARLA measures routes."""
        level = np.diff(arc_lengths(self.points))
        return np.concatenate([np.zeros(1), np.cumsum(np.hypot(level, np.diff(self.elevation)))])

    @property
    def length(self) -> float:
        """Metres."""
        return float(self.arc[-1])


@dataclass(frozen=True)
class LocalTown:
    """A route's part of its town."""

    graph: LaneGraph
    lanes: IntArray
    """[R] the lane of each route point in ``graph``."""
    driving: Strips
    parking: Strips


def local(route: Route, radius: float = 150.0, town: LaneGraph | None = None) -> LocalTown:
    """The surroundings of ``route``, cut out of its town (loaded where it is not given)."""
    graph, kept = surroundings(load_town(route.town) if town is None else town, route.points, radius)
    return LocalTown(graph, np.searchsorted(kept, route.lanes), Strips.driving(graph), Strips.parking(graph))


def lay_route(planner: LanePlanner, places: FloatArray, name: str) -> Route:
    """The route ``name``, without scenarios, through way points [n, 3]: x, y, elevation (or NaN).

    As the official ``interpolate_trajectory``: one trace from each way point to the next, put together. Unlike there, points
    that come twice or step back are left out and wide steps are filled, so that the route is a clean polyline. ``SceneError``
    names the way point that is wrong.
    """
    if len(places) < 2:
        raise SceneError("a route needs two way points at least")
    for i, place in enumerate(places):
        lane, distance = planner.localize(place)
        if lane < 0 or distance > OFF_ROAD:
            how = "no driving lane is near it" if lane < 0 else f"the nearest driving lane is {distance:.1f} m away"
            raise SceneError(f"way point {i + 1} of {len(places)} is off the road: {how}")
    traces = []
    for i in range(len(places) - 1):
        try:
            traces.append(planner.trace(places[i], places[i + 1]))
        except SceneError as error:
            raise SceneError(f"way point {i + 2} of {len(places)} cannot be reached from the one before: {error}") from None
    pose = np.concatenate([t.pose for t in traces])
    lane_of = np.concatenate([t.lane for t in traces])
    inside = np.flatnonzero(planner.graph.junction[lane_of] >= 0)
    junction_share = (int(inside[0]) + 1 + PAST_JUNCTION) / len(lane_of) if len(inside) else float("nan")
    rows = _forward(pose)
    if len(rows) < 2:
        raise SceneError("its way points are all the same place")
    pose = pose[rows]
    lane_of = lane_of[rows]
    option = np.concatenate([t.option for t in traces])[rows]
    elevation = np.concatenate([t.elevation for t in traces])[rows]
    step = np.hypot(*np.diff(pose[:, :2], axis=0).T)
    parts = np.where(step > WIDEST_STEP, np.ceil(step), 1.0).astype(np.int64)
    source = np.append(np.repeat(np.arange(len(step)), parts), len(step))
    share = np.append(np.concatenate([np.arange(n) / n for n in parts]), 0.0)
    ahead = np.minimum(source + 1, len(step))
    filled = pose[source] + share[:, None] * (pose[ahead] - pose[source])
    filled[:, 2] = wrap_angle(pose[source, 2] + share * wrap_angle(pose[ahead, 2] - pose[source, 2]))
    nearer = np.where(share < 0.5, source, ahead)
    return Route(
        id=name,
        town=planner.graph.town,
        points=np.column_stack([filled, planner.graph.speed_limit[lane_of[nearer]]]),
        lanes=lane_of[nearer],
        option=option[nearer],
        elevation=elevation[source] + share * (elevation[ahead] - elevation[source]),
        junction_share=junction_share,
    )


def _forward(pose: FloatArray) -> IntArray:
    """Rows of a trace without those that repeat the row before or step back a little."""
    rows = [0]
    for i in range(1, len(pose)):
        x, y, heading = pose[rows[-1]]
        dx, dy = pose[i, 0] - x, pose[i, 1] - y
        distance = float(np.hypot(dx, dy))
        along = dx * np.cos(heading) + dy * np.sin(heading)
        if distance > SAME_PLACE and (along > 0.0 or distance > BACKWARDS):
            rows.append(i)
    return np.array(rows)


def off_route(trigger: Sequence[float], points: FloatArray, elevation: FloatArray) -> tuple[str, bool] | None:
    """Why a trigger (x, y, heading, elevation) is not on the route, and whether it is right beside it; None if it is on it.

    The official rule (leaderboard ``RouteParser.is_scenario_at_route``): one route point lies within 2 m and 10 degrees of it,
    and the trigger is no more than 2 m above it.
    """
    x, y, heading, height = trigger
    distance = np.hypot(points[:, 0] - x, points[:, 1] - y)
    aligned = np.abs(wrap_angle(points[:, 2] - heading)) < TRIGGER_ANGLE
    level = ~(height - elevation >= TRIGGER_DISTANCE)
    close = distance < TRIGGER_DISTANCE
    if np.any(close & level & aligned):
        return None
    beside = bool(np.any((distance < BESIDE) & level & aligned))
    if not np.any(close):
        return f"its trigger is {distance.min():.1f} m off the route (2 m at most)", beside
    if not np.any(close & level):
        return f"its trigger is {np.min((height - elevation)[close]):.1f} m above the route (2 m at most)", beside
    least = np.degrees(np.abs(wrap_angle(points[close, 2] - heading)).min())
    return f"its trigger points {least:.0f} degrees away from the route (10 at most)", beside
