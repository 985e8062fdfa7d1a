"""What happens in each kind of scene: where the ego drives, who else is there, and what they are up to.

``set_stage`` picks a place in a town for a kind, lays the ego's route through it, puts the kind's actors there and fills the
surroundings with ordinary traffic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from vla_models.geometry import wrap_angle
from vla_models.scenes.routes import RoadNet, extend_backward, shift
from vla_models.scenes.stage import (
    BARRIER,
    BEHIND,
    CAR,
    CONE,
    MEETING,
    PACIFICA,
    TOP_SPEED,
    Stage,
    Unsuitable,
    lay_ego,
    vehicle_size,
)  # fmt: skip

FloatArray = npt.NDArray[np.float64]


def _pick(rng: np.random.Generator, options: npt.NDArray[np.int64], what: str) -> int:
    if not len(options):
        raise Unsuitable(f"the town has no {what}")
    return int(options[int(rng.integers(len(options)))])


def _on_lane(
    net: RoadNet, rng: np.random.Generator, options: npt.NDArray[np.int64], calm: float = 1.0, standstill: float = 0.08
) -> Stage:
    """A stage somewhere on one of ``options``; long lanes are taken more often."""
    if not len(options):
        raise Unsuitable("the town has no such lane")
    ends = np.cumsum(net.graph.length[options])
    at = float(rng.uniform(0.0, ends[-1]))
    k = int(np.searchsorted(ends, at))
    return lay_ego(net, rng, [int(options[k])], at - float(ends[k - 1] if k else 0.0), calm, standstill)


def _at_connector(net: RoadNet, rng: np.random.Generator, lane: int, low: float, high: float, calm: float) -> Stage:
    """A stage cut while the junction lane's start is ``low`` … ``high`` metres ahead of the ego."""
    stage = lay_ego(net, rng, [lane], -float(rng.uniform(low, high)), calm)
    at = np.flatnonzero(stage.path.lane[0] == lane)
    if not len(at):
        raise Unsuitable("the junction is beyond the route")
    stage.target, stage.near = float(at[0]), (low, high)
    stage.light = int(net.light[lane])
    if stage.light >= 0:  # mostly green, so that the manoeuvre happens
        stage.yellow_at = float(rng.uniform(7.0, 20.0)) if rng.random() < 0.8 else None
    return stage


def _lane_follow(net: RoadNet, rng: np.random.Generator) -> Stage:
    curved = net.free[net.bend[net.free] > np.radians(12.0)]
    if len(curved) and rng.random() < 0.75:
        return _on_lane(net, rng, curved)
    return _on_lane(net, rng, net.free)


def _turn_left(net: RoadNet, rng: np.random.Generator) -> Stage:
    return _at_connector(net, rng, _pick(rng, net.left, "left turns"), -8.0, 22.0, 0.75)


def _turn_right(net: RoadNet, rng: np.random.Generator) -> Stage:
    return _at_connector(net, rng, _pick(rng, net.right, "right turns"), -6.0, 20.0, 0.7)


def _intersection_straight(net: RoadNet, rng: np.random.Generator) -> Stage:
    return _at_connector(net, rng, _pick(rng, net.straight, "straight junction lanes"), -5.0, 30.0, 0.9)


def _light_traffic(net: RoadNet, rng: np.random.Generator) -> Stage:
    stage = _on_lane(net, rng, net.free)
    _lead(stage, float(rng.uniform(14.0, 40.0)), float(rng.uniform(0.4, 1.0)))
    return stage


def _dense_traffic(net: RoadNet, rng: np.random.Generator) -> Stage:
    stage = _on_lane(net, rng, net.free, 0.5)
    stage.agents[0]["speed"] *= float(rng.uniform(0.2, 0.8))
    gap, s = 0.0, BEHIND
    for _ in range(int(rng.integers(2, 5))):
        gap = float(rng.uniform(10.0, 18.0))
        s += gap
        speed = stage.agents[0]["speed"] * float(rng.uniform(0.6, 1.1))
        stage.add_on_path(s, speed=speed, speed_factor=float(rng.uniform(0.3, 0.8)))
    return stage


def _lead(stage: Stage, gap: float, pace: float, **values: float) -> int:
    """Somebody ``gap`` metres (axle to axle) ahead of the ego at ``pace`` times its speed."""
    speed = stage.agents[0]["speed"]
    return stage.add_on_path(BEHIND + gap, None, **{"speed": speed * pace, **values})


def _lead_stopped(net: RoadNet, rng: np.random.Generator) -> Stage:
    stage = _on_lane(net, rng, net.free, 0.8)
    starts = float(rng.uniform(4.0, 9.0)) if rng.random() < 0.3 else 1e9
    s = stage.target + float(rng.uniform(10.0, 45.0))
    for k in range(int(rng.integers(1, 4))):
        stage.add_on_path(s + 7.5 * k, speed=0.0, hold_until=starts + 0.8 * (2 - k))
    stage.target, stage.near = s, (8.0, 55.0)
    return stage


def _lead_braking(net: RoadNet, rng: np.random.Generator) -> Stage:
    stage = _on_lane(net, rng, net.free, standstill=0.0)
    brake = float(rng.uniform(2.8, 5.0))
    gap = 7.0 + stage.agents[0]["speed"] * float(rng.uniform(0.7, 1.8))
    floor, decel = float(rng.choice([0.0, 0.0, 2.0, 4.0])), float(rng.uniform(1.2, 3.5))
    pace = stage.agents[0]["speed_factor"]
    _lead(stage, gap, 1.0, brake_time=brake, brake_decel=decel, brake_floor=floor, speed_factor=pace)
    stage.window = (brake + 0.5, brake + 2.5)
    return stage


def _cut_in(net: RoadNet, rng: np.random.Generator) -> Stage:
    graph = net.graph
    wide = net.free[((graph.left_lane[net.free] >= 0) | (graph.right_lane[net.free] >= 0)) & (graph.length[net.free] > 30.0)]
    stage = _on_lane(net, rng, wide, standstill=0.0)
    lane = int(stage.path.lane[0, int(stage.target)])
    sides = [int(n[lane]) for n in (graph.left_lane, graph.right_lane) if n[lane] >= 0]
    if not sides:
        raise Unsuitable("no neighbouring lane where the ego will be")
    beside = sides[int(rng.integers(len(sides)))]
    here = stage.at(stage.target)
    d = graph.center[graph.stations(beside), :2] - here[:2]
    nearest = d[int(np.argmin(np.hypot(*d.T)))]
    offset = float(-np.sin(here[2]) * nearest[0] + np.cos(here[2]) * nearest[1])
    if not 2.0 < abs(offset) < 5.0:
        raise Unsuitable("the neighbouring lane is not beside the ego")
    pace = float(rng.uniform(0.6, 1.0))
    gap = float(rng.uniform(7.0, 16.0))
    begins = stage.target + gap + float(rng.uniform(-4.0, 8.0))
    over = max(12.0, stage.agents[0]["speed"] * float(rng.uniform(1.8, 3.2)))
    u = np.clip((np.arange(stage.points) - begins) / over, 0.0, 1.0)
    path = shift(stage.path.pose[0], offset * (1.0 - u * u * (3.0 - 2.0 * u)))
    s = BEHIND + (stage.target - BEHIND) * (1.0 - pace) + gap
    stage.add_on_path(s, path, speed=stage.agents[0]["speed"] * pace, speed_factor=stage.agents[0]["speed_factor"] * pace)
    stage.target, stage.near = begins, (0.0, 26.0)
    return stage


def _pedestrian_crossing(net: RoadNet, rng: np.random.Generator) -> Stage:
    stage = _on_lane(net, rng, net.free, 0.9)
    speed = stage.agents[0]["speed"]
    s = stage.target + 6.0 + speed * float(rng.uniform(1.2, 3.5))
    here = stage.at(s)
    for _ in range(int(rng.integers(1, 4))):
        side = 1.0 if rng.random() < 0.5 else -1.0
        out = float(rng.uniform(4.5, 7.5))
        walks = float(rng.uniform(0.9, 1.8))
        along = float(rng.normal(0.0, 1.2))
        x = here[0] + along * np.cos(here[2]) - side * out * np.sin(here[2])
        y = here[1] + along * np.sin(here[2]) + side * out * np.cos(here[2])
        heading = here[2] - side * np.pi / 2.0 + float(rng.normal(0.0, 0.08))
        # at MEETING it is between the kerb and the ego's lane
        begins = MEETING - (out - float(rng.uniform(1.0, 4.5))) / walks
        stage.add_walker((x, y, float(wrap_angle(heading))), 2.0 * out + 1.0, walks, begins)
    stage.target, stage.near = s, (7.0, 45.0)
    return stage


def _parked_cars(net: RoadNet, rng: np.random.Generator) -> Stage:
    graph = net.graph
    edge = net.free[(graph.right_lane[net.free] < 0) & (graph.length[net.free] > 25.0)]
    stage = _on_lane(net, rng, edge, 0.9)
    s = stage.target + float(rng.uniform(4.0, 22.0))
    works = rng.random() < 0.25  # a building site instead of cars
    into = float(rng.uniform(0.1, 1.25))
    first = last = s
    for _ in range(int(rng.integers(1, 5))):
        k = int(min(last, stage.points - 1))
        here, lane = stage.path.pose[0, k], int(stage.path.lane[0, k])
        if graph.junction[lane] >= 0 or graph.right_lane[lane] >= 0:
            break
        a = graph.stations(lane)
        j = int(np.argmin(np.hypot(*(graph.center[a, :2] - here[:2]).T)))
        half = float(np.hypot(*(graph.right[a][j] - graph.center[a, :2][j])))
        inside = into + float(rng.normal(0.0, 0.08))
        if works:
            size, kind = ((0.4, 0.4, 0.7), CONE) if rng.random() < 0.7 else ((2.0, 0.5, 1.0), BARRIER)
        else:
            body, height = vehicle_size(rng)
            size, kind = (body["length"], body["width"], height), CAR
        off = -half + inside - size[1] / 2.0
        pose = (here[0] - off * np.sin(here[2]), here[1] + off * np.cos(here[2]), here[2] + float(rng.normal(0.0, 0.02)))
        stage.add_standing(pose, kind, size)
        wide, last = half - inside, last + size[0] + float(rng.uniform(1.0, 3.0))
    if last == first:
        raise Unsuitable("no room to park")
    # the ego moves over as far as it must: half its width and a margin beside the cars
    aside = max(0.0, PACIFICA[1] / 2.0 + float(rng.uniform(0.3, 0.5)) - wide + 0.1)
    u = np.minimum((np.arange(stage.points) - (first - 22.0)) / 14.0, (last + 14.0 - np.arange(stage.points)) / 14.0)
    u = np.clip(u, 0.0, 1.0)
    stage.drive = shift(stage.drive, aside * u * u * (3.0 - 2.0 * u))
    stage.paths[0] = stage.drive
    stage.target, stage.near = first, (3.0, 30.0)
    return stage


def _red_light(net: RoadNet, rng: np.random.Generator) -> Stage:
    lit = np.flatnonzero((net.light >= 0) & (np.diff(net.graph.predecessor_offsets) > 0))
    stage = _at_connector(net, rng, _pick(rng, lit, "traffic lights"), 4.0, 40.0, 0.7)
    # red from well before to well after, turning red just now, or about to turn green
    stage.yellow_at = float(rng.choice([rng.uniform(-8.0, 1.0), rng.uniform(2.0, 6.0), rng.uniform(-18.0, -10.0)]))
    s = stage.target - 4.5
    for _ in range(int(rng.integers(0, 4))):  # those who wait already
        if s < BEHIND + 12.0:
            break
        stage.add_on_path(s - 2.0, speed=0.0)
        s -= float(rng.uniform(6.5, 8.5))
    return stage


def _cross_traffic(net: RoadNet, rng: np.random.Generator) -> Stage:
    graph = net.graph
    lane = _pick(rng, np.concatenate([net.straight, net.left, net.right]), "junctions")
    stage = _at_connector(net, rng, lane, -4.0, 25.0, 0.75)
    start = graph.center[graph.offsets[lane], 2]
    others = np.flatnonzero((graph.junction == graph.junction[lane]) & (np.diff(graph.predecessor_offsets) > 0))
    turned = np.abs(wrap_angle(graph.center[graph.offsets[others], 2] - start))
    others = others[turned > np.radians(40.0)]
    for _ in range(int(rng.integers(1, 4))):
        other = _pick(rng, others, "crossing lanes")
        speed = float(min(graph.speed_limit[other], TOP_SPEED) * rng.uniform(0.5, 0.9))
        back = speed * float(rng.uniform(MEETING - 0.5, MEETING + 3.0))
        lanes, added = extend_backward(net, [other], back, rng)
        arc = added - back
        if arc < 0.0:
            continue
        while len(lanes) > 1 and arc > graph.length[lanes[0]]:
            arc -= float(graph.length[lanes.pop(0)])
        row = int(min(graph.offsets[lanes[0]] + arc, graph.offsets[lanes[0] + 1] - 1))
        if stage.is_clear(graph.center[row, 0], graph.center[row, 1], 9.0):
            stage.add_on_lanes(lanes, arc, speed=speed)
    return stage


SITUATIONS: Final[dict[str, tuple[Callable[[RoadNet, np.random.Generator], Stage], float, tuple[int, int]]]] = {
    # kind: who sets the stage, share of the mix, background vehicles (least, most)
    "lane_follow": (_lane_follow, 0.13, (2, 12)),
    "turn_left": (_turn_left, 0.15, (2, 14)),
    "turn_right": (_turn_right, 0.14, (2, 14)),
    "intersection_straight": (_intersection_straight, 0.07, (3, 14)),
    "light_traffic": (_light_traffic, 0.07, (4, 9)),
    "dense_traffic": (_dense_traffic, 0.08, (14, 24)),
    "lead_stopped": (_lead_stopped, 0.07, (2, 12)),
    "lead_braking": (_lead_braking, 0.07, (2, 12)),
    "cut_in": (_cut_in, 0.05, (3, 12)),
    "pedestrian_crossing": (_pedestrian_crossing, 0.05, (2, 10)),
    "parked_cars": (_parked_cars, 0.05, (2, 10)),
    "red_light": (_red_light, 0.04, (4, 14)),
    "cross_traffic": (_cross_traffic, 0.03, (3, 12)),
}
"""The kinds of scenes, with their shares. Turns and curves lead, as in NavSim after its filter."""


def _within(points: FloatArray, here: FloatArray, metres: float) -> npt.NDArray[np.int64]:
    """Rows of ``points`` [n, >=2] in the square of half side ``metres`` around ``here``."""
    return np.flatnonzero((np.abs(points[:, 0] - here[0]) < metres) & (np.abs(points[:, 1] - here[1]) < metres))


def add_background(stage: Stage, least: int, most: int) -> None:
    """Ordinary traffic, parked cars and people on the pavement around where the ego will be at ``MEETING``."""
    net, rng, graph = stage.net, stage.rng, stage.net.graph
    here = stage.at(stage.start + (stage.target - stage.start) * 0.8)[:2]
    own = set(stage.route)
    near = _within(net.slots, here, 65.0)
    near = near[rng.permutation(len(near))]
    wanted = int(rng.integers(least, most + 1))
    if wanted and rng.random() < 0.5:  # somebody behind the ego, where there is room
        stage.add_on_path(BEHIND - float(rng.uniform(10.0, 16.0)), speed=stage.agents[0]["speed"] * 0.9)
        wanted -= 1
    ahead = stage.drive[int(BEHIND) : int(BEHIND) + 30, :2]
    for slot in near[: 4 * wanted]:
        if wanted <= 0:
            break
        x, y = net.slots[slot]
        lane = int(net.slot_lane[slot])
        if not stage.is_clear(x, y, 11.0) or (lane in own and np.hypot(*(ahead - (x, y)).T).min() < 4.0):
            continue
        limit = min(float(graph.speed_limit[lane]), TOP_SPEED)
        if rng.random() < 0.07:
            pace = float(rng.uniform(2.5, 5.5))
            stage.add_on_lanes([lane], float(net.slot_arc[slot]), True, speed=pace, speed_factor=pace / limit)
        else:
            stage.add_on_lanes([lane], float(net.slot_arc[slot]), speed=limit * float(rng.uniform(0.3, 0.95)))
        wanted -= 1
    parked = _within(net.parking, here, 50.0)
    for q in parked[rng.random(len(parked)) < rng.uniform(0.0, 0.5)][:10]:
        x, y, heading, wide = net.parking[q]
        body, height = vehicle_size(rng)
        if body["width"] < wide and body["length"] < 6.0 and stage.is_clear(x, y, 6.0):
            stage.add_standing((x, y, heading), CAR, (body["length"], body["width"], height))
    walks = _within(net.pavement, here, 45.0)
    for u in walks[rng.permutation(len(walks))[: int(rng.integers(0, 5))]]:
        x, y, heading = net.pavement[u]
        back = np.pi * float(rng.random() < 0.5)
        stage.add_walker((x, y, float(wrap_angle(heading + back))), 14.0, float(rng.uniform(0.8, 1.6)))


def set_stage(kind: str, net: RoadNet, rng: np.random.Generator) -> Stage:
    """Ego, actors and background of a scene of ``kind`` somewhere in the town; raises ``Unsuitable`` if this draw fails."""
    place, _, (least, most) = SITUATIONS[kind]
    stage = place(net, rng)
    if stage.path.length[0] < stage.target + 60.0:
        raise Unsuitable("the route ends too early")
    add_background(stage, least, most)
    return stage
