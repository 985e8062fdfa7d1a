"""What several scenarios share: places beside the road, oncoming traffic, the approaches of a junction."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from vla_models.errors import SceneError
from vla_models.geometry import wrap_angle
from vla_models.simulation.episodes import Script, Stage
from vla_models.simulation.roads import (
    EDGE_LEFT,
    EDGE_RIGHT,
    HALF_WIDTH,
    LEFT,
    OPPOSITE,
    PARKING_LEFT,
    PARKING_RIGHT,
    RIGHT,
    Path,
)
from vla_models.simulation.tables import GREEN, RED

SCENARIO_TIMEOUT: Final = 240.0
"""Seconds after which most scenarios count as not solved."""
PARKED: Final = 1.25
"""Metres from the lane's edge to the middle of a vehicle that is parked beside it."""


def parked_offset(stage: Stage, s: float, side: float) -> float:
    """Lateral offset of a vehicle parked beside the route's lane: on the outer part of the parking lane, where there is one."""
    point = stage.route.points[round(s)]
    half = float(point[HALF_WIDTH])
    width = float(point[PARKING_LEFT if side > 0.0 else PARKING_RIGHT])
    if width == 0.0 or point[LEFT if side > 0.0 else RIGHT] > 0.0:
        return side * (half + PARKED)
    return side * (half + max(0.5 * width + 0.25 * (width - 1.0), PARKED))


def kerb_offset(stage: Stage, s: float, side: float, beyond: float) -> float:
    """Lateral offset of a place ``beyond`` metres outside the lanes of the route's direction."""
    return side * (float(stage.route.points[round(s), EDGE_LEFT if side > 0.0 else EDGE_RIGHT]) + beyond)


def clamp(stage: Stage, s: float) -> int:
    """A place on the route: ``s`` as an index that it has."""
    return min(max(round(s), 0), len(stage.route) - 1)


def oncoming(stage: Stage, s: int, distance: float) -> Path:
    """The oncoming lane beside the route at ``s``: from ``distance`` metres before to ``distance`` metres after, as those who
    drive there see it. Raises ``SceneError`` where no oncoming lane is near."""
    x, y, h = stage.route.points[s, :3]
    across = float(stage.route.points[s, OPPOSITE]) or 3.5
    for d in (across, across + 3.5, across + 7.0, across + 10.5):
        v = stage.roads.nearest(x - d * math.sin(h), y + d * math.cos(h), float(h) + math.pi, 2.5)
        if v >= 0:
            lane, arc = int(stage.roads.lane_of[v]), float(stage.roads.graph.arc[v])
            lanes, start = stage.roads.behind(lane, arc, distance, leave_junctions=False)
            return stage.roads.path(lanes[:-1] + stage.roads.ahead(lane, arc, distance), start, 2.0 * distance)
    raise SceneError(f"no oncoming lane beside the route at {s} m")


def opposite_flow(stage: Stage, script: Script, s: int, place: tuple[float, float], distance: float, delay: float) -> None:
    """Oncoming drivers beside an obstacle (``OppositeActorFlow``), from when the ego has come within ``distance`` of
    ``place``."""
    limit = float(stage.roads.graph.speed_limit[max(int(stage.route.lanes[s]), 0)])
    path = oncoming(stage, s, 1.5 * 3.6 * limit + 30.0)
    stage.add_flow(
        path, script.interval("frequency", (20.0, 100.0)), min(limit, float(path.points[0, 3])), speed_mode=0.0, target=1.0,
        sees=1.0, start_x=place[0], start_y=place[1], start_distance=distance, delay=delay,
    )  # fmt: skip


def junction_at(stage: Stage, index: int) -> int:
    """The junction that the route crosses at a route index."""
    graph = stage.roads.graph
    for k in range(index, min(index + 12, len(stage.route))):
        lane = int(stage.route.lanes[k])
        if lane >= 0 and graph.junction[lane] >= 0:
            return int(graph.junction[lane])
    raise SceneError(f"the route's junction at {index} m has no lane")


def entries_from(stage: Stage, index: int, direction: str) -> list[int]:
    """Lanes into the route's junction at ``index`` that come from a side, as ``filter_junction_wp_direction`` sorts them: by
    the angle to the ego's heading as it drives in. Raises ``SceneError`` where there is none."""
    junction = junction_at(stage, index)
    roads = stage.roads
    heading = float(stage.route.points[index, 2])
    found = []
    for lane in roads.entries(junction):
        angle = math.degrees(float(wrap_angle(roads.graph.center[roads.graph.stations(lane), 2][-1] - heading)))
        where = "opposite" if abs(angle) > 135.0 else "right" if angle > 30.0 else "left" if angle < -30.0 else "ref"
        if where == direction:
            found.append(lane)
    if not found:
        raise SceneError(f"the route's junction at {index} m has no lane that comes from {direction}")
    return found


def through(stage: Stage, entry: int, junction: int, turn: float, before: float, after: float) -> tuple[Path, int]:
    """(path, path index of the junction) from ``before`` metres ahead of a junction, through it with the heading change
    nearest to ``turn``, to ``after`` metres behind it."""
    roads = stage.roads
    ways = [w for w in roads.exits(entry, junction) if len(w) > 1 and roads.graph.junction[w[-1]] != junction]
    if not ways:
        raise SceneError(f"no way through the junction from lane {roads.graph.names[entry]}")
    start = roads.graph.center[roads.graph.stations(entry), 2][-1]
    ends = [float(wrap_angle(roads.graph.center[roads.graph.stations(w[-1]), 2][0] - start)) for w in ways]
    way = ways[int(np.argmin(np.abs(np.array(ends) - turn)))]
    length = float(roads.graph.length[entry])
    lanes, offset = roads.behind(entry, length, before, leave_junctions=False)
    tail = roads.ahead(way[-1], 0.0, after)
    chain = [*lanes, *way[:-1], *tail]
    inside = float(sum(roads.graph.length[i] for i in lanes)) - offset
    end = inside + float(sum(roads.graph.length[i] for i in way[:-1])) + after
    return roads.path(chain, offset, end), round(inside)


def junction_script(stage: Stage, index: int, first: dict[str, int], then: dict[str, int], source: int = -1) -> tuple[
    dict[int, int], dict[int, int]
]:  # fmt: skip
    """A light script for the route's junction at ``index``: states of the ego's light ("ego"), of the one that governs the lane
    ``source`` ("source", if given), and of all others (red). Empty where the junction has no lights."""
    graph = stage.roads.graph
    junction = junction_at(stage, index)
    rows = [k for k in range(len(graph.light_pose)) if int(graph.light_junction[k]) == junction]
    ego = next(
        (
            stage.roads.lights_of[int(i)]
            for i in stage.route.lanes[index : index + 12]
            if int(i) >= 0 and graph.junction[int(i)] == junction and int(i) in stage.roads.lights_of
        ),
        -1,
    )
    theirs = (
        next((stage.roads.lights_of[int(i)] for i in graph.next_lanes(source) if int(i) in stage.roads.lights_of), -1)
        if source >= 0
        else -1
    )
    out = []
    for states in (first, then):
        chosen = dict.fromkeys(rows, RED)
        if theirs in chosen:
            chosen[theirs] = states.get("source", RED)
        if ego in chosen:
            chosen[ego] = states["ego"]
        out.append(chosen)
    return out[0], out[1]


RED_THEN_GREEN: Final = ({"ego": RED, "source": GREEN}, {"ego": GREEN, "source": GREEN})
"""The signalised flows: the ego's light is red for 5 s, then green, as the flow's is all the time."""
