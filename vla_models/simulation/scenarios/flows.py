"""Flows of traffic through the ego's junction (``signalized_junction_left_turn.py``, ``left_turn_enter_flow.py``,
``signalized_junction_right_turn.py``, ``cross_bicycle_flow.py``).

The vehicles of a flow (``ActorFlow``) drive at ``flow_speed`` and look at nothing, until one of them is hit.
"""

from __future__ import annotations

import math

import numpy as np

from vla_models.simulation.episodes import Script, Stage
from vla_models.simulation.roads import straight_path
from vla_models.simulation.scenarios.common import (
    RED_THEN_GREEN,
    SCENARIO_TIMEOUT,
    entries_from,
    junction_at,
    junction_script,
    through,
)
from vla_models.simulation.tables import GREEN, RED, Kind


def _flow(stage: Stage, script: Script, direction: str, turn: float, before: float, after: float, fill: float) -> None:
    begin = stage.begin(script)
    first, out = stage.junction_after(begin)
    speed = script.number("flow_speed", 20.0)
    entries = entries_from(stage, first, direction)
    if direction == "left":  # the rightmost lane
        graph = stage.roads.graph
        entry = entries[0]
        while graph.right_lane[entry] >= 0:
            entry = int(graph.right_lane[entry])
    else:
        entry = entries[int(stage.random(0.0, len(entries) - 1e-6))]
    path, _ = through(stage, entry, junction_at(stage, first), turn, before * speed, after * speed)
    stage.add_flow(path, script.interval("source_dist_interval", (25.0, 50.0)), speed, fill=fill)
    lights = ({}, {}) if script.type.startswith("Non") else junction_script(stage, first, *RED_THEN_GREEN, source=entry)
    stage.finish(begin, out + 10.0, SCENARIO_TIMEOUT, quiet=40.0, script=lights, script_seconds=5.0)


def left_turn(stage: Stage, script: Script) -> None:
    """The ego turns left across a flow that comes straight on."""
    _flow(stage, script, "opposite", 0.0, 4.0, 2.5, 0.0)


def left_turn_enter(stage: Stage, script: Script) -> None:
    """The ego turns left into a flow that turns right into the same road."""
    _flow(stage, script, "opposite", -math.pi / 2.0, 4.0, 2.5, 0.0)


def right_turn(stage: Stage, script: Script) -> None:
    """The ego turns right into a flow that comes from its left."""
    _flow(stage, script, "left", 0.0, 5.0, 3.0, 1.0)


def crossing_bicycles(stage: Stage, script: Script) -> None:
    """Bicycles cross the ego's way. The towns' cycle lanes are no driving lanes: the flow runs straight from
    ``start_actor_flow`` to 40 m behind the junction, along the lane beside it."""
    begin = stage.begin(script)
    first, out = stage.junction_after(begin)
    x, y = script.point("start_actor_flow")
    if "end_actor_flow" in script.parameters:
        ex, ey = script.point("end_actor_flow")
        heading = math.atan2(ey - y, ex - x)
        length = math.hypot(ex - x, ey - y) + 40.0
    else:  # along the nearest lane that leads to the junction
        middle = stage.route.points[(first + out) // 2]
        v = stage.roads.nearest(x, y, math.atan2(middle[1] - y, middle[0] - x), 12.0)
        heading = float(stage.roads.graph.center[v, 2]) if v >= 0 else math.atan2(middle[1] - y, middle[0] - x)
        length = math.hypot(middle[0] - x, middle[1] - y) + 60.0
    speed = script.number("flow_speed", 10.0)
    path = straight_path(np.array([x, y, heading]), length, speed)
    stage.add_flow(path, script.interval("source_dist_interval", (20.0, 50.0)), speed, Kind.BICYCLE, fill=1.0)
    lights = junction_script(stage, first, {"ego": RED}, {"ego": GREEN})
    stage.finish(begin, out + 10.0, SCENARIO_TIMEOUT, quiet=40.0, script=lights, script_seconds=5.0)
