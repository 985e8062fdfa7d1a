"""Vehicles that cut in before the ego (``parking_cut_in.py``, ``cut_in_with_static_vehicle.py``, ``highway_cut_in.py``)."""

from __future__ import annotations

import numpy as np

from vla_models.simulation.episodes import Script, Stage
from vla_models.simulation.roads import HALF_WIDTH, JUNCTION, LEFT, RIGHT, blend, shifted
from vla_models.simulation.scenarios.common import clamp, parked_offset
from vla_models.simulation.tables import Kind


def parking(stage: Stage, script: Script) -> None:
    """A parked car 35 m ahead pulls out when the ego is 2.35 s (or 10 m) away; another one before it hides it."""
    begin, side = stage.begin(script), script.side()
    s = clamp(stage, begin + 28.0)
    stage.add(Kind.CAR, stage.route.pose(s, parked_offset(stage, s, side)))
    s = clamp(stage, begin + 35.0)
    lane = stage.along(s, 90.0)
    place = stage.route.points[s]
    path = shifted(lane, blend(len(lane), 0, 11.0, parked_offset(stage, s, side), 0.0))
    stage.add(
        Kind.CAR, path=path, speed_mode=1.0, target=20.0 / 3.6, accel=3.0, sees=1.0, start=1.0, start_x=place[0],
        start_y=place[1], start_distance=10.0, start_time=2.35, travel_limit=45.0, at_end=1.0,
    )  # fmt: skip
    stage.finish(begin, s + 60.0, quiet=10.0)


def static(stage: Stage, script: Script) -> None:
    """Vehicles stand in the next lane, 11 m apart; the third of them cuts in when the ego is 2.7 s (or 15 m) away."""
    begin, side = stage.begin(script), script.side()
    first = clamp(stage, begin + script.number("distance", 100.0))
    column = LEFT if side > 0.0 else RIGHT
    beside = float(stage.route.points[first, column]) or 2.0 * float(stage.route.points[first, HALF_WIDTH])
    lane = stage.along(first, 22.0 + 11.0 * 4 + 120.0)
    for k in (0, 1, 3, 4, 5):
        stage.add(Kind.CAR, lane.pose(11.0 * k, side * beside), shown=1.0)
    at = lane.points[22]
    path = shifted(lane, blend(len(lane), 22, 9.0, side * beside, 0.0))
    stage.add(
        Kind.CAR, path=path, s=22.0, speed_mode=1.0, target=60.0 / 3.6, accel=2.5, sees=1.0, start=1.0, start_x=at[0],
        start_y=at[1], start_distance=15.0, start_time=2.7, shown=1.0, travel_limit=70.0, at_end=1.0, min_gap=1.0,
    )  # fmt: skip
    stage.finish(begin, first + 22.0 + 80.0, quiet=15.0)


def highway(stage: Stage, script: Script) -> None:
    """A car on the slip road arrives with the ego, 10 m behind the junction, and changes into its lane at 80 % of its speed."""
    begin = stage.begin(script)
    lane, arc = stage.roads.place(*script.point("other_actor_location"))
    path = stage.roads.path(stage.roads.ahead(lane, arc, 400.0), arc, 400.0)
    inside = np.flatnonzero(path.points[:, JUNCTION] > 0.0)
    out = np.flatnonzero(path.points[inside[0] :, JUNCTION] == 0.0) if len(inside) else inside
    meet = int(inside[0] + out[0]) + 10 if len(out) else 60
    meet = min(meet, len(path) - 40)
    ego = stage.route.nearest(*path.points[meet - 10, :2])
    across = float(path.points[min(meet + 20, len(path) - 1), LEFT])
    if across > 0.0:
        path = shifted(path, blend(len(path), meet + 4, 30.0, 0.0, across))
    place = stage.route.points[ego]
    stage.add(
        Kind.CAR, path=path, speed_mode=3.0, sync_s=float(meet), sync_x=place[0], sync_y=place[1], start=2.0, shown=1.0,
        travel_limit=float(meet) + 120.0, at_end=1.0,
    )  # fmt: skip
    stage.finish(begin, ego + 150.0, quiet=30.0)
