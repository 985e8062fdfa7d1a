"""Merging into, and crossing, flows on faster roads (``actor_flow.py``). The XML says where a flow starts and ends."""

from __future__ import annotations

import math

from vla_models.simulation.episodes import Script, Stage
from vla_models.simulation.roads import Path
from vla_models.simulation.scenarios.common import SCENARIO_TIMEOUT

SINK = 2.0


def _way(stage: Stage, start: tuple[float, float], end: tuple[float, float]) -> Path:
    """The path along the lanes from one place to another."""
    roads = stage.roads
    a, b = roads.place(*start), roads.place(*end)
    path = roads.path(roads.connection(a, b), a[1])
    stop = path.nearest(*end)
    stop = max(stop, min(len(path) - 1, 20))
    return Path(path.points[: stop + 1], path.lanes[: stop + 1])


def _flow(stage: Stage, script: Script, path: Path, fill: float) -> None:
    speed = script.number("flow_speed", 10.0)
    stage.add_flow(path, script.interval("source_dist_interval", (20.0, 50.0)), speed, fill=fill)


def enter_flow(stage: Stage, script: Script) -> None:
    """The ego enters a road with a flow on its lanes; over where the flow ends. Also the slow traffic of the "Merger" types."""
    begin = stage.begin(script)
    start, end = script.point("start_actor_flow"), script.point("end_actor_flow")
    path = _way(stage, start, end)
    _flow(stage, script, path, 1.0)
    if script.type == "EnterActorFlow":
        graph = stage.roads.graph
        (a, arc_a), (b, arc_b) = stage.roads.place(*start), stage.roads.place(*end)
        beside, beyond = int(graph.left_lane[a]), int(graph.left_lane[b])
        if beside >= 0 and beyond >= 0:  # the original fills all lanes of that direction; here the first two
            first, last = graph.stations(beside), graph.stations(beyond)
            from_xy = graph.center[first.start + min(int(arc_a), first.stop - first.start - 1), :2]
            to_xy = graph.center[last.start + min(int(arc_b), last.stop - last.start - 1), :2]
            _flow(stage, script, _way(stage, (from_xy[0], from_xy[1]), (to_xy[0], to_xy[1])), 1.0)
    stage.finish(begin, max(stage.route.nearest(*end), begin + 20) - SINK, SCENARIO_TIMEOUT, quiet=40.0)


def highway_exit(stage: Stage, script: Script) -> None:
    """A flow in the lane that the ego has to cross to leave the motorway."""
    begin = stage.begin(script)
    _flow(stage, script, _way(stage, script.point("start_actor_flow"), script.point("end_actor_flow")), 1.0)
    _, out = stage.junction_after(begin)
    stage.finish(begin, out, SCENARIO_TIMEOUT, quiet=30.0)


def interurban(stage: Stage, script: Script) -> None:
    """The ego turns left across an oncoming flow on an interurban road."""
    begin = stage.begin(script)
    _flow(stage, script, _way(stage, script.point("start_actor_flow"), script.point("end_actor_flow")), 0.0)
    _, out = stage.junction_after(begin)
    stage.finish(begin, out, SCENARIO_TIMEOUT, quiet=30.0)


def interurban_advanced(stage: Stage, script: Script) -> None:
    """The ego turns left into an interurban road: across a flow from its left and into one from its right."""
    begin = stage.begin(script)
    start, end = script.point("start_actor_flow"), script.point("end_actor_flow")
    path = _way(stage, start, end)
    _flow(stage, script, path, 0.0)
    _, out = stage.junction_after(begin)
    back = _other_side(stage, path)
    if back is not None:
        _flow(stage, script, back, 0.0)
    stage.finish(begin, out + 30.0, SCENARIO_TIMEOUT, quiet=40.0)


def _other_side(stage: Stage, path: Path) -> Path | None:
    """The oncoming lanes beside a path, driven the other way: from beside its end to beside its start."""
    ends = []
    for at in (len(path) - 1, 0):
        h = float(path.points[at, 2])
        for d in (3.5, 7.0, 10.5, 14.0):
            pose = path.pose(at, d)
            v = stage.roads.nearest(float(pose[0]), float(pose[1]), h + math.pi, 2.5)
            if v >= 0:
                ends.append((float(stage.roads.graph.center[v, 0]), float(stage.roads.graph.center[v, 1])))
                break
        else:
            return None
    return _way(stage, ends[0], ends[1])
