"""One other vehicle that misbehaves on the road ahead (``hard_break.py``, ``invading_turn.py``)."""

from __future__ import annotations

from vla_models.simulation.episodes import Script, Stage
from vla_models.simulation.roads import HALF_WIDTH, blend, shifted
from vla_models.simulation.scenarios.common import SCENARIO_TIMEOUT, clamp, oncoming
from vla_models.simulation.tables import Kind


def hard_break(stage: Stage, script: Script) -> None:
    """The vehicles ahead brake as hard as they can and stand for 10 s. The original brakes whatever traffic is there; here one
    vehicle keeps 18 m before the ego until then, on the ego's route, and is gone 15 s after it may drive on."""
    begin = stage.begin(script)
    s = clamp(stage, max(begin, 0) + 18.0)
    stage.add(
        Kind.CAR, path=0, s=float(s), speed_mode=4.0, target=18.0, sees=1.0, obeys=1.0, yields=1.0, accel=3.0,
        brake_seconds=10.0, at_end=1.0, leave_distance=60.0, leave_after=25.0,
    )  # fmt: skip
    stage.finish(begin, begin + 120.0)


def invading_turn(stage: Stage, script: Script) -> None:
    """Cones stand at the right side of the oncoming lane; those who come drive ``offset`` metres over the centre line."""
    begin = stage.begin(script)
    distance = script.number("distance", 100.0)
    middle = clamp(stage, begin + distance)
    path = oncoming(stage, middle, distance + 30.0)
    half = float(path.points[0, HALF_WIDTH])
    invade = script.number("offset", 0.25) + half - 0.7
    start = clamp(stage, begin + distance + 30.0)
    cone = path.nearest(*stage.route.points[start, :2]) + 10
    for _ in range(max(1, round(0.5 * distance / 5.0))):
        cone += 5
        if cone < len(path):
            stage.add(Kind.CONE, path.pose(cone, -0.8 * half), shown=1.0)
    source = path.nearest(*stage.route.points[start, :2])
    sink = path.nearest(*stage.route.points[begin, :2])
    part = type(path)(path.points[source : max(sink, source + 30)], path.lanes[source : max(sink, source + 30)])
    over = shifted(part, blend(len(part), 0, 8.0, invade, invade))
    limit = float(part.points[:, 3].mean())
    stage.add_flow(over, (40.0, 40.0), limit, speed_mode=0.0, target=1.0)
    stage.finish(begin, begin + distance + 30.0, SCENARIO_TIMEOUT, quiet=15.0)
