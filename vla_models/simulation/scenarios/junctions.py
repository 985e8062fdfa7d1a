"""Junctions without an adversary: turns under lights and signs (``vanilla_turn.py``, ``t_junction.py``,
``sequentially_lane_change.py``, ``green_traffic_light.py``) and a vehicle that blocks the exit
(``blocked_intersection.py``)."""

from __future__ import annotations

import math

from vla_models.simulation.episodes import Script, Stage
from vla_models.simulation.scenarios.common import SCENARIO_TIMEOUT, clamp, junction_script
from vla_models.simulation.tables import GREEN, RED, Kind


def vanilla(stage: Stage, script: Script) -> None:
    """A turn. With lights: green for 5 s and then red for 5 s, or red for 5 s and then green; all others red."""
    begin = stage.begin(script)
    first, out = stage.junction_after(begin)
    lights: tuple[dict[int, int], dict[int, int]] = ({}, {})
    end = math.inf
    if "GreenLight" in script.type:
        lights = junction_script(stage, first, {"ego": GREEN}, {"ego": RED})
        end = 10.0  # 5 s of green, 5 s of red, then the usual phases
    elif "RedLight" in script.type:
        lights = junction_script(stage, first, {"ego": RED}, {"ego": GREEN})
    stage.finish(begin, out + 10.0, script=lights, script_seconds=5.0, script_end=end)


def plain(stage: Stage, script: Script) -> None:
    """Nothing but the route: a T junction, or several lane changes in a row. 240 s for 200 m."""
    begin = stage.begin(script)
    stage.finish(begin, begin + 200.0, SCENARIO_TIMEOUT)


def priority_at_junction(stage: Stage, script: Script) -> None:
    """The ego's light stays green until it has left the junction."""
    begin = stage.begin(script)
    first, out = stage.junction_after(begin)
    stage.finish(begin, out, script=junction_script(stage, first, {"ego": GREEN}, {"ego": GREEN}))


def blocked_intersection(stage: Stage, script: Script) -> None:
    """A vehicle stands 5 m behind the junction; it goes away 10 s after the ego came within 13 m."""
    begin = stage.begin(script)
    _, out = stage.junction_after(begin)
    s = clamp(stage, out + 5.0)
    stage.add(Kind.CAR, stage.route.pose(s), shown=1.0, leave_distance=13.0, leave_after=10.0)
    stage.finish(begin, s + 10.0, SCENARIO_TIMEOUT, quiet=15.0)
