"""Bicycles at the side of the lane (``route_obstacles.HazardAtSideLane``) and a slippery road (``control_loss.py``)."""

from __future__ import annotations

from vla_models.simulation.episodes import Script, Stage
from vla_models.simulation.roads import HALF_WIDTH
from vla_models.simulation.scenarios.common import SCENARIO_TIMEOUT, clamp, opposite_flow
from vla_models.simulation.tables import Kind


def side_lane(stage: Stage, script: Script) -> None:
    """Two slow bicycles 9 m apart on the right side of the lane; after ``bicycle_drive_distance`` they stop."""
    begin = stage.begin(script)
    first = stage.before_junction(begin, script.number("distance", 100.0))
    travel = script.number("bicycle_drive_distance", 50.0)
    speed = script.number("bicycle_speed", 10.0) / 3.6
    lane = stage.add_path(stage.along(first, travel + 40.0))
    offset = -0.55 * float(stage.route.points[first, HALF_WIDTH])
    for ahead in (0.0, 9.0):
        stage.add(
            Kind.BICYCLE, path=lane, s=ahead, d=offset, speed_mode=1.0, target=speed, sees=1.0, start=2.0, travel_limit=travel,
            min_gap=1.0,
        )  # fmt: skip
    two_ways = script.type.endswith("TwoWays")
    if two_ways:
        x, y = stage.route.points[first, :2]
        opposite_flow(stage, script, first, (float(x), float(y)), 50.0, 5.0)
    stage.finish(begin, first + travel + 9.0 + 50.0, SCENARIO_TIMEOUT, wrong_way=two_ways, quiet=15.0)


def control_loss(stage: Stage, script: Script) -> None:
    """Three slippery places, 14, 48 and 74 m ahead: within 2 m of their middle noise is added to the ego's controls."""
    begin = stage.begin(script)
    for ahead in (14, 48, 74):
        pose = stage.route.pose(clamp(stage, begin + ahead))
        stage.add(Kind.DEBRIS, pose, solid=0.0)
        stage.slippery.append([float(pose[0]), float(pose[1]), 2.0, float(stage.scenario)])
    stage.finish(begin, begin + 110.0)
