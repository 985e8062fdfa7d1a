"""Obstacles on the route's lane (``route_obstacles.py``, ``construction_crash_vehicle.py``, ``vehicle_opens_door.py``).

The ego has to drive around them: in the next lane of its direction, or, in the "TwoWays" types, in the oncoming lane between
the drivers of an oncoming flow, which the criteria then permit.
"""

from __future__ import annotations

import math

import numpy as np

from vla_models.errors import SceneError
from vla_models.simulation.episodes import Script, Stage
from vla_models.simulation.roads import HALF_WIDTH
from vla_models.simulation.scenarios.common import SCENARIO_TIMEOUT, clamp, opposite_flow, parked_offset
from vla_models.simulation.tables import Kind

END_DISTANCE = 50.0
WAIT = 5.0


def _close(stage: Stage, script: Script, begin: int, first: int, last: int, distance: float) -> None:
    """Oncoming flow and end of an obstacle that stands from ``first`` to ``last`` metres on the route."""
    two_ways = script.type.endswith("TwoWays")
    if two_ways:
        x, y = stage.route.points[first, :2]
        try:
            opposite_flow(stage, script, first, (float(x), float(y)), distance, WAIT)
        except SceneError:
            if script.type != "VehicleOpensDoorTwoWays":  # the original's flow needs no oncoming lane there
                raise
    stage.finish(begin, last + END_DISTANCE, SCENARIO_TIMEOUT, wrong_way=two_ways, quiet=15.0)


def _standing(stage: Stage, kind: Kind, s: int, offset: float) -> None:
    """Put an obstacle on the route's lane, ``offset`` half lane widths from its middle (left positive)."""
    s = clamp(stage, s)
    stage.add(kind, stage.route.pose(s, offset * float(stage.route.points[s, HALF_WIDTH])))


def _warning(stage: Stage, begin: int, side: float) -> None:
    """The warning sign at the roadside, some metres before the obstacle."""
    stage.add(Kind.SIGN, stage.route.pose(begin, parked_offset(stage, begin, side) + side * 0.6))


def accident(stage: Stage, script: Script) -> None:
    """A police car and two vehicles after an accident, 10 m and 6 m apart."""
    begin, side = stage.begin(script), script.side()
    police = stage.before_junction(begin, script.number("distance", 120.0))
    first = stage.before_junction(police, 10.0)
    second = stage.before_junction(first, 6.0)
    _warning(stage, begin, side)
    _standing(stage, Kind.POLICE, police, 0.6 * side)
    for s in (first, second):
        _standing(stage, Kind.CAR, s, 0.6 * side)
    _close(stage, script, begin, police, second, 50.0)


def parked(stage: Stage, script: Script) -> None:
    """A vehicle that has broken down."""
    begin, side = stage.begin(script), script.side()
    s = stage.before_junction(begin, script.number("distance", 120.0))
    _warning(stage, begin, side)
    _standing(stage, Kind.CAR, s, 0.7 * side)
    _close(stage, script, begin, s, s, 50.0)


def construction(stage: Stage, script: Script) -> None:
    """A construction site: a sign, debris, and cones along one side and across the lane."""
    begin, side = stage.begin(script), script.side()
    s = clamp(stage, begin + script.number("distance", 100.0))
    _warning(stage, begin, side)
    pose = stage.route.pose(s)
    half = 0.85 * float(stage.route.points[s, HALF_WIDTH])
    c, n = np.array([math.cos(pose[2]), math.sin(pose[2])]), np.array([-math.sin(pose[2]), math.cos(pose[2])])

    def put(kind: Kind, along: float, across: float, solid: float = 1.0) -> None:
        stage.add(kind, np.array([*(pose[:2] + along * c + across * n), pose[2]]), solid=solid)

    put(Kind.BARRIER, -5.0, 0.0)
    put(Kind.DEBRIS, 2.0, 0.0, solid=0.0)
    for k in range(4):  # along the open side, then across the lane in front
        put(Kind.CONE, 2.0 * (k + 1), -side * half)
    for k in range(3):
        put(Kind.CONE, 8.0, -side * half + side * (k + 1.0))
    _close(stage, script, begin, s, clamp(stage, s + 8.0), 30.0)


def door(stage: Stage, script: Script) -> None:
    """A parked car whose door opens before the ego: a box of 0.9 m beside it, into the lane."""
    begin, side = stage.begin(script), script.side()
    s = clamp(stage, begin + script.number("distance", 50.0))
    offset = side * (float(stage.route.points[s, HALF_WIDTH]) + 0.9)  # this one is parked badly: towards the lane
    stage.add(Kind.CAR, stage.route.pose(s, offset))
    place = stage.route.points[s]
    stage.add(
        Kind.DOOR, stage.route.pose(s, offset - side * 1.4), shown=2.0, start=1.0, start_x=place[0], start_y=place[1],
        start_distance=10.0, start_time=3.0,
    )  # fmt: skip
    _close(stage, script, begin, s, s, 10.0)
