"""The ego starts in a parking place (``parking_exit.py``)."""

from __future__ import annotations

from vla_models.simulation.episodes import Script, Stage
from vla_models.simulation.scenarios.common import SCENARIO_TIMEOUT, clamp, parked_offset
from vla_models.simulation.tables import Kind


def parking_exit(stage: Stage, script: Script) -> None:
    """Parked cars before and behind the ego, one vehicle beside it that drives off, and traffic in the lane that it has to
    enter, ``flow_distance`` metres apart. The ego starts in the parking place, at the
    trigger point."""
    begin, side = stage.begin(script), script.side()
    front = script.number("front_vehicle_distance", 20.0)
    s = clamp(stage, begin + front)
    stage.add(Kind.CAR, stage.route.pose(s, parked_offset(stage, s, side)))
    lane = stage.along(begin, front + 90.0, before=70.0)
    behind = lane.nearest(*stage.route.points[begin, :2])
    stage.add(
        Kind.CAR,
        lane.pose(max(behind - script.number("behind_vehicle_distance", 10.0), 0.0), parked_offset(stage, begin, side)),
    )
    stage.start_index, stage.start_offset = begin, parked_offset(stage, begin, side)
    gap = script.number("flow_distance", 25.0)
    speed = min(8.0, float(lane.points[0, 3]))
    stage.add(
        Kind.CAR, path=lane, s=float(behind), sees=1.0, obeys=1.0, yields=1.0, speed_mode=1.0, target=speed, start=2.0,
        travel_limit=50.0, at_end=1.0,
    )  # fmt: skip
    stage.add_flow(lane, (gap, gap + 15.0), speed, sees=1.0, obeys=1.0, yields=1.0)
    stage.finish(begin, begin + front + 15.0, SCENARIO_TIMEOUT, quiet=15.0)
