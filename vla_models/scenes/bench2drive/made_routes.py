"""Routes without a file: for any scenario type, a stretch of a town that suits it, with a trigger and parameters.

They are meant for training. Lengths and parameters are drawn from the ranges that Bench2Drive's routes have; a route is
determined by (town, type, seed).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Final

import numpy as np

from vla_models.errors import SceneError, did_you_mean
from vla_models.geometry import wrap_angle
from vla_models.scenes.bench2drive.recipes import INTERVALS, RANGES, RECIPES, Recipe
from vla_models.scenes.bench2drive.routes import Route, ScenarioSpec, lay_route
from vla_models.scenes.bench2drive.scenario_types import SCENARIO_TYPES, Value
from vla_models.scenes.lanes import SIDES, FloatArray, IntArray
from vla_models.scenes.planner import LanePlanner, RoadOption
from vla_models.scenes.routes import RoadNet, extend_backward, extend_forward, lay_paths, road_net

EASY_TOWNS: Final = ("Town01", "Town02", "Town03", "Town04", "Town05", "Town06", "Town07", "Town10HD", "Town15")
"""Towns that convert in seconds; together they have a place for every type."""
BEFORE: Final = 15.0
"""Metres of route before the trigger."""
APPROACH: Final = (25.0, 40.0)
"""Metres from the trigger to the junction, for types that are about one."""
BEYOND: Final = 70.0
"""Metres of route behind what it is about."""
FLOW: Final = (45.0, 30.0)
"""Metres that a flow starts before the place where it meets the ego, and ends behind it."""
MEET: Final = 1.5
"""Metres; lanes whose centre lines come this near cross."""
CHANGING: Final = 200
"""Metres on which a route of lane changes lies."""
LEAVING: Final = 120
"""Metres before a lane's end within which a route leaves a motorway."""
DRAWS: Final = 400
"""Places that are tried before a town counts as unsuitable."""

_PARKING: Final = SIDES.index("parking")


class _Unsuitable(Exception):
    """This draw is no place for the type; another may be."""


def generate_routes(types: Sequence[str], count: int, seed: int, towns: Sequence[str] = EASY_TOWNS) -> list[Route]:
    """``count`` routes that go through ``types`` in turn, each in one of ``towns`` that has a place for it."""
    made = []
    for i in range(count):
        kind = types[i % len(types)]
        draw = np.random.default_rng([seed, i, zlib.crc32(kind.encode())])
        for town in draw.permutation(towns).tolist():
            try:
                made.append(generate_route(town, kind, int(draw.integers(2**31))))
                break
            except SceneError:
                if kind not in SCENARIO_TYPES:
                    raise
        else:
            raise SceneError(f"none of {', '.join(towns)} has a place for a {kind} route")
    return made


def generate_route(town: str, kind: str, seed: int) -> Route:
    """A route of ``town`` with one scenario of type ``kind``, 100 to 250 m long.

    ``SceneError`` for an unknown type or town, or where the town has no place for the type.
    """
    if kind not in SCENARIO_TYPES:
        raise SceneError(f"there is no scenario type {kind!r}; {did_you_mean(kind, SCENARIO_TYPES)}")
    net = road_net(town)
    recipe = RECIPES[kind]
    rng = np.random.default_rng([seed, zlib.crc32(f"{town}/{kind}".encode())])
    places = _stretches(town, recipe.needs) if recipe.place == "stretch" else _ways(town, recipe.place, recipe.needs)
    for _ in range(DRAWS if len(places) else 0):
        try:
            return _draw(net, kind, recipe, int(rng.choice(places)), rng, f"{kind}-{town}-{seed}")
        except _Unsuitable:
            continue
    raise SceneError(f"{town} has no place for a {kind} route; try another town")


@lru_cache(maxsize=128)
def _stretches(town: str, needs: str) -> IntArray:
    """Lanes away from junctions, 90 m long at least, that have what is needed beside them."""
    g = road_net(town).graph
    good = (g.junction < 0) & (g.length >= 90.0)
    if needs == "beside":
        good &= (g.right_lane < 0) & (g.left_lane >= 0) & g.left_change
    elif needs == "oncoming":
        good &= (g.right_lane < 0) & (g.left_lane < 0) & (g.opposite_lane >= 0)
    elif needs == "parking":
        good &= g.right_side == _PARKING
    elif needs == "two":
        good &= (g.right_lane >= 0) & g.right_change
    elif needs == "three":
        beside = g.left_lane
        good &= (beside >= 0) & g.left_change & (g.left_lane[beside] >= 0) & g.left_change[beside]
    return np.flatnonzero(good)


@lru_cache(maxsize=128)
def _ways(town: str, turn: str, needs: str) -> IntArray:
    """Junction lanes of one kind."""
    net = road_net(town)
    g = net.graph
    sets = {"left": (net.left,), "right": (net.right,), "straight": (net.straight,), "turn": (net.left, net.right)}
    lanes = np.concatenate(sets.get(turn, (net.left, net.right, net.straight)))
    if needs == "signal":
        lanes = lanes[net.light[lanes] >= 0]
    elif needs == "free":
        lanes = lanes[~np.isin(g.junction[lanes], g.light_junction)]
    elif needs == "stop":
        lanes = lanes[np.isin(lanes, g.stop_lanes)]
    return np.sort(lanes)


def _draw(net: RoadNet, kind: str, recipe: Recipe, lane: int, rng: np.random.Generator, name: str) -> Route:
    g = net.graph
    parameters = _parameters(kind, rng)
    if recipe.place == "stretch":
        about = _reach(parameters)
        room = g.length[lane] - about - 15.0
        if room < 0.0:
            raise _Unsuitable
        trigger = float(rng.uniform(0.0, room))
        lanes, added = extend_backward(net, [lane], max(0.0, BEFORE - trigger), rng)
        start, at = max(0.0, added + trigger - BEFORE), min(BEFORE, added + trigger)
        length = at + about + BEYOND
    else:
        ahead = float(rng.uniform(*APPROACH))
        lanes, added = extend_backward(net, [lane], ahead + BEFORE, rng)
        if added < ahead + BEFORE or any(g.junction[i] >= 0 for i in lanes[_last_before(lanes, lane, g.length, ahead) : -1]):
            raise _Unsuitable
        start, at = added - ahead - BEFORE, BEFORE
        length = at + ahead + float(g.length[lane]) + BEYOND
    lanes = extend_forward(net, lanes, start + length - sum(float(g.length[i]) for i in lanes) + 10.0, rng)
    points = int(np.ceil(length))
    path = lay_paths(net, [lanes], [start], points, rng)
    if path.length[0] < points - 1:
        raise _Unsuitable
    pose, on = path.pose[0], path.lane[0]
    if recipe.needs == "three" or kind == "HighwayExit":
        route = _changing(net, name, lane) if recipe.needs == "three" else _leaving(net, name, lane, rng)
        pose, on, at = route.points[:, :3], route.lanes, min(float(at), 10.0)
    else:
        route = Route(
            id=name, town=g.town, points=np.column_stack([pose, path.limit[0]]), lanes=on, option=_options(net, on),
            elevation=g.elevation[_stations(g.offsets, g.center, on, pose)],
        )  # fmt: skip
    index = int(at)
    parameters |= _others(net, kind, recipe, lane, pose[index], rng)
    here = pose[index]
    spec = ScenarioSpec(f"{kind}_1", kind, (float(here[0]), float(here[1]), float(here[2])), parameters, index)
    inside = np.flatnonzero(g.junction[route.lanes] >= 0)
    share = (int(inside[0]) + 9) / len(route.lanes) if len(inside) else float("nan")
    return Route(**{**vars(route), "scenarios": (spec,), "theme": kind, "junction_share": share})


def _last_before(lanes: list[int], way: int, length: FloatArray, metres: float) -> int:
    """Index of the lane in which one is ``metres`` before the last one, ``way``."""
    i = len(lanes) - 1
    while i > 0 and metres > 0.0:
        i -= 1
        metres -= float(length[lanes[i]])
    return i


def _parameters(kind: str, rng: np.random.Generator) -> dict[str, Value]:
    """The type's parameters, drawn where a range is known, else the official defaults; places are added later."""
    drawn: dict[str, Value] = {}
    for name, default in SCENARIO_TYPES[kind].items():
        if name in RANGES:
            value = float(rng.uniform(*RANGES[name]))
            drawn[name] = round(value, 2) if name == "offset" else float(round(value))
        elif name in INTERVALS:
            low, high = INTERVALS[name]
            ends = float(round(rng.uniform(*low))), float(round(rng.uniform(*high)))
            drawn[name] = (ends[1], ends[1]) if kind == "HazardAtSideLaneTwoWays" else ends
        elif default is not None:
            drawn[name] = default
    if kind == "YieldToEmergencyVehicle":
        drawn["distance"] = 30.0
    return drawn


def _reach(parameters: dict[str, Value]) -> float:
    """Metres from the trigger to the end of what happens on a stretch."""
    distance = parameters.get("distance", 40.0)
    return float(distance) + 25.0 if isinstance(distance, float) else 65.0


def _others(
    net: RoadNet, kind: str, recipe: Recipe, lane: int, trigger: FloatArray, rng: np.random.Generator
) -> dict[str, Value]:
    """Parameters that name places or sides: flows, other cars, the direction someone comes from."""
    g = net.graph
    if kind.startswith("OppositeVehicle"):
        sides = _sides(net, lane)
        if not sides:
            raise _Unsuitable
        return {"direction": str(rng.choice(sides))}
    if recipe.other == "beside":
        beside = int(g.right_lane[lane])
        s = g.stations(beside)
        k = int(np.hypot(*(g.center[s, :2] - trigger[:2]).T).argmin())
        last = s.stop - s.start - 1
        return {
            "start_actor_flow": _place(net, s.start + max(0, k - 60)),
            "end_actor_flow": _place(net, s.start + min(last, k + 80)),
        }
    if not recipe.other:
        return {}
    others = list(_meeting(net, lane, recipe.other))
    if not others:
        raise _Unsuitable
    other = others[int(rng.integers(len(others)))]
    first = _along(net, other, -float(FLOW[0]), rng)
    if kind == "HighwayCutIn":
        return {"other_actor_location": first}
    last = _along(net, other, FLOW[1], rng)
    if np.hypot(last[0] - first[0], last[1] - first[1]) < FLOW[0]:  # round a block, back to where it came from
        raise _Unsuitable
    return {"start_actor_flow": first, "end_actor_flow": last}


def _meeting(net: RoadNet, lane: int, how: str) -> Iterator[int]:
    """Lanes of the same junction that cross ``lane``, or that end where it ends and come from elsewhere."""
    g = net.graph
    inside = np.flatnonzero(g.junction == g.junction[lane])
    goals, sources = set(g.next_lanes(lane).tolist()), set(g.previous_lanes(lane).tolist())
    own = g.center[g.stations(lane), :2]
    for other in inside.tolist():
        if other == lane or sources & set(g.previous_lanes(other).tolist()) or not len(g.previous_lanes(other)):
            continue
        merges = bool(goals & set(g.next_lanes(other).tolist()))
        if how == "merge" and merges:
            yield other
        elif how == "cross" and not merges:
            away = own[:, None] - g.center[g.stations(other), :2][None]
            if (away**2).sum(axis=-1).min() < MEET**2:
                yield other


def _along(net: RoadNet, lane: int, metres: float, rng: np.random.Generator) -> tuple[float, float, float]:
    """Place that lies ``metres`` behind the end of ``lane``, or -``metres`` before its start, along connected lanes."""
    g = net.graph
    if metres < 0.0:
        lanes, added = extend_backward(net, [lane], -metres, rng)
        if added < -metres:
            raise _Unsuitable
        return _place(net, int(g.offsets[lanes[0]] + np.searchsorted(g.arc[g.stations(lanes[0])], added + metres)))
    lanes = extend_forward(net, [lane], metres, rng)
    rest = sum(float(g.length[i]) for i in lanes[1:])
    if rest < metres:
        raise _Unsuitable
    arc = g.arc[g.stations(lanes[-1])]
    return _place(net, int(g.offsets[lanes[-1]] + np.searchsorted(arc, arc[-1] - (rest - metres)).clip(max=len(arc) - 1)))


def _place(net: RoadNet, station: int) -> tuple[float, float, float]:
    x, y, _ = net.graph.center[station]
    return float(x), float(y), float(net.graph.elevation[station])


def _sides(net: RoadNet, lane: int) -> list[str]:
    """From where others come into the junction of ``lane``, seen by one who enters it."""
    g = net.graph
    heading = g.center[g.offsets[lane], 2]
    others = np.flatnonzero((g.junction == g.junction[lane]) & (np.diff(g.predecessor_offsets) > 0))
    turned = wrap_angle(g.center[g.offsets[others], 2] - heading)
    found = []
    for side, angle in (("left", -np.pi / 2), ("right", np.pi / 2), ("opposite", np.pi)):
        if np.any(np.abs(wrap_angle(turned - angle)) < np.pi / 6):
            found.append(side)
    return found


def _changing(net: RoadNet, name: str, lane: int) -> Route:
    """A route that changes to the left twice within the first ``CHANGING`` metres of ``lane``'s stretch of road."""
    g = net.graph
    second = int(g.left_lane[lane])
    third = int(g.left_lane[second])
    count = min(int(g.offsets[lane + 1] - g.offsets[lane]), CHANGING)
    rows = [(lane, 0.02), (second, 0.35), (third, 0.7), (third, 0.98)]
    places = [_place(net, int(g.offsets[on]) + int(share * (count - 1))) for on, share in rows]
    try:
        return lay_route(_planner(g.town), np.array(places), name)
    except SceneError:
        raise _Unsuitable from None


def _leaving(net: RoadNet, name: str, lane: int, rng: np.random.Generator) -> Route:
    """A route that changes to the lane on the right of ``lane``, within its last ``LEAVING`` metres, and leaves by it."""
    g = net.graph
    beside, end = int(g.right_lane[lane]), int(g.offsets[lane + 1]) - 1
    count = min(end - int(g.offsets[lane]) - int(BEFORE), LEAVING)
    over = int(g.offsets[beside + 1]) - 1 - count // 3
    places = [_place(net, end - count), _place(net, over), _along(net, beside, FLOW[1], rng)]
    try:
        return lay_route(_planner(g.town), np.array(places), name)
    except SceneError:
        raise _Unsuitable from None


@lru_cache(maxsize=4)
def _planner(town: str) -> LanePlanner:
    return LanePlanner(road_net(town).graph)


def _options(net: RoadNet, lanes: IntArray) -> IntArray:
    """``RoadOption`` of points on ``lanes``: turns inside junctions, else to follow the lane."""
    option = np.full(len(lanes), int(RoadOption.LANE_FOLLOW))
    inside = net.graph.junction[lanes] >= 0
    turn = net.turn[lanes]
    option[inside] = int(RoadOption.STRAIGHT)
    option[inside & (turn > np.radians(33.0))] = int(RoadOption.LEFT)
    option[inside & (turn < -np.radians(33.0))] = int(RoadOption.RIGHT)
    return option


def _stations(offsets: IntArray, center: FloatArray, lanes: IntArray, pose: FloatArray) -> IntArray:
    """Station nearest to each pose on its lane."""
    out = np.zeros(len(lanes), dtype=np.int64)
    for lane in np.unique(lanes):
        rows = lanes == lane
        line = center[offsets[lane] : offsets[lane + 1], :2]
        away = pose[rows, None, :2] - line[None]
        out[rows] = offsets[lane] + (away**2).sum(axis=-1).argmin(axis=1)
    return out
