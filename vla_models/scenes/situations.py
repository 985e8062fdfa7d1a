"""What happens in each kind of scene: where the ego drives, who else is there, and what they are up to.

A ``Stage`` collects the cast before the simulation starts; ``set_stage`` picks a place in a town for a kind, lays the ego's
route through it and puts the kind's actors there; ``add_background`` fills the surroundings with ordinary traffic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from vla_models.geometry import wrap_angle
from vla_models.simulation.traffic import DRIVER, SCRIPTED, STANDING, column, new_agents
from vla_models.scenes.routes import PATH_STEP, Paths, RoadNet, extend_backward, extend_forward, lay_paths, shift
from vla_models.scenes.scene import AGENT_KINDS

FloatArray = npt.NDArray[np.float64]

MEETING: Final = 5.0
"""Seconds after the simulation's start at which the kinds' actors are meant to be in place."""
BEHIND: Final = 26.0
"""Metres of route behind the ego's starting point."""
AHEAD: Final = 130.0
"""Metres of route that must lie ahead of the ego wherever a scene is cut."""
TOP_SPEED: Final = 22.0
"""m/s; the ego drives no faster, whatever the limit."""
PACIFICA: Final = (5.176, 2.297, 1.461)
"""Length, width, rear axle to centre of NavSim's ego, metres."""

_NOSE: Final = PACIFICA[0] / 2.0 + PACIFICA[2]
_SMOOTH: Final = np.full(9, 1.0 / 9.0)
_CAR, _PEDESTRIAN, _BICYCLE = (AGENT_KINDS.index(k) for k in ("vehicle", "pedestrian", "bicycle"))
_CONE, _BARRIER = AGENT_KINDS.index("traffic_cone"), AGENT_KINDS.index("barrier")


class Unsuitable(Exception):
    """This place or this draw does not make the wanted scene; another draw may."""


@dataclass
class Stage:
    """A scene's cast before it moves. Agent 0 is the ego."""

    net: RoadNet
    rng: np.random.Generator
    route: list[int]
    """Lanes of the ego's route."""
    path: Paths
    """The ego's path (N = 1): the route's centre line."""
    drive: FloatArray
    """[P, 3] what the ego's rear axle really follows: ``path`` moved sideways by wobble and by passing parked cars."""
    start: float
    """Metres along the path where the ego starts."""
    target: float
    """Metres along the path of what the scene is about."""
    near: tuple[float, float] = (-1e9, 1e9)
    """The scene is cut while ``target`` is this far ahead of the ego's rear axle (least, most)."""
    window: tuple[float, float] = (3.5, 7.5)
    """The scene is cut between these seconds of the simulation."""
    light: int = -1
    """The light that governs the scene's junction, or -1."""
    yellow_at: float | None = None
    """When that light turns yellow (seconds of the simulation), or None for chance."""
    agents: list[dict[str, float]] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    heights: list[float] = field(default_factory=list)
    lanes: list[list[int] | None] = field(default_factory=list)
    arcs: list[float] = field(default_factory=list)
    paths: list[FloatArray | None] = field(default_factory=list)
    spots: list[tuple[float, float]] = field(default_factory=list)
    """Where each agent starts: new ones keep clear of these."""

    @property
    def points(self) -> int:
        """Points of every path."""
        return self.drive.shape[0]

    def at(self, s: float) -> FloatArray:
        """Pose on the ego's path ``s`` metres along."""
        return self.path.pose[0, int(np.clip(round(s), 0, self.points - 1))]

    def limit(self, s: float) -> float:
        """Speed limit on the ego's path, m/s."""
        return float(self.path.limit[0, int(np.clip(round(s), 0, self.points - 1))])

    def _add(self, kind: int, height: float, pose: FloatArray, **values: float) -> int:
        self.agents.append(values)
        self.kinds.append(kind)
        self.heights.append(height)
        self.spots.append((float(pose[0]), float(pose[1])))
        self.lanes.append(None)
        self.paths.append(None)
        self.arcs.append(0.0)
        return len(self.agents) - 1

    def add_on_path(self, s: float, path: FloatArray | None = None, **values: float) -> int:
        """A car that follows the ego's route, starting ``s`` metres along it (or along ``path``, a variant of it)."""
        own = self.drive if path is None else path
        size, height = vehicle_size(self.rng)
        k = self._add(_CAR, height, own[int(np.clip(s, 0, self.points - 1))], **{**driver(self.rng), **size, "start": s, **values})
        self.paths[k] = own
        return k

    def add_on_lanes(self, lanes: list[int], arc: float, **values: float) -> int:
        """A car that starts ``arc`` metres into ``lanes[0]``, follows ``lanes`` and then random successors."""
        size, height = vehicle_size(self.rng)
        g = self.net.graph
        row = min(int(g.offsets[lanes[0]] + arc), int(g.offsets[lanes[0] + 1]) - 1)
        k = self._add(_CAR, height, g.center[row], **{**driver(self.rng), **size, **values})
        self.lanes[k], self.arcs[k] = lanes, arc
        return k

    def add_walker(self, pose: npt.ArrayLike, distance: float, speed: float, hold: float = 0.0) -> int:
        """A pedestrian at ``pose`` (x, y, heading) who walks straight ahead for ``distance`` metres from second ``hold`` on."""
        p = np.asarray(pose, dtype=np.float64)
        s = np.minimum(np.arange(self.points) * PATH_STEP, max(distance, 1.0))
        line = np.stack([p[0] + s * np.cos(p[2]), p[1] + s * np.sin(p[2]), np.full(self.points, p[2])], -1)
        k = self._add(
            _PEDESTRIAN, float(self.rng.uniform(1.55, 1.9)), p, length=0.6, width=0.7, center=0.0, speed=speed, role=SCRIPTED,
            hold_until=hold, reach=max(distance, 1.0),
        )  # fmt: skip
        self.paths[k] = line
        return k

    def add_standing(self, pose: npt.ArrayLike, kind: int, size: tuple[float, float, float]) -> int:
        """Something that stands with its centre at ``pose``."""
        p = np.asarray(pose, dtype=np.float64)
        k = self._add(kind, size[2], p, length=size[0], width=size[1], center=0.0, role=STANDING)
        self.paths[k] = np.repeat(p[None, :3], self.points, axis=0)
        return k

    def is_clear(self, x: float, y: float, distance: float) -> bool:
        """Whether no agent starts within ``distance`` of (x, y)."""
        return all((x - a) ** 2 + (y - b) ** 2 > distance * distance for a, b in self.spots)

    def finish(self) -> tuple[Paths, FloatArray]:
        """Paths [N] and agent table [N, 16] for the simulation."""
        count = len(self.agents)
        table = new_agents(count)
        for i, values in enumerate(self.agents):
            for name, value in values.items():
                if name != "reach":
                    table[i, column(name)] = value
        free = [i for i in range(count) if self.paths[i] is None]
        g = self.points
        out = Paths(np.empty((count, g, 3)), np.full((count, g), 13.9), np.full((count, g), -1, dtype=np.int64), np.zeros(count))
        if free:
            laid = lay_paths(self.net, [self.lanes[i] or [] for i in free], [self.arcs[i] for i in free], g, self.rng)
            for name in ("pose", "limit", "lane", "length"):
                getattr(out, name)[free] = getattr(laid, name)
        for i, own in enumerate(self.paths):
            if own is None:
                continue
            out.pose[i] = own
            out.length[i] = self.agents[i].get("reach", float(g - 1))
            if table[i, column("role")] == DRIVER:
                out.limit[i], out.lane[i], out.length[i] = self.path.limit[0], self.path.lane[0], self.path.length[0]
        return out, table


_HABITS: Final = ("speed_factor", "max_accel", "decel", "headway", "lateral_accel")
_HABITS_LOW: Final = np.array([0.75, 1.1, 1.6, 0.9, 1.6])
_HABITS_SPAN: Final = np.array([0.3, 1.0, 1.0, 0.8, 1.2])


def driver(rng: np.random.Generator) -> dict[str, float]:
    """An ordinary driver's habits."""
    return dict(zip(_HABITS, (_HABITS_LOW + rng.random(5) * _HABITS_SPAN).tolist(), strict=True))


def vehicle_size(rng: np.random.Generator) -> tuple[dict[str, float], float]:
    """Length, width and rear axle to centre of a car (nine of ten) or a lorry, and its height."""
    u = rng.random(4).tolist()
    if u[0] < 0.9:
        length, width, height = 4.1 + u[1], 1.75 + 0.3 * u[2], 1.4 + 0.5 * u[3]
    else:
        length, width, height = 6.5 + 2.5 * u[1], 2.2 + 0.3 * u[2], 2.6 + 0.8 * u[3]
    return {"length": length, "width": width, "center": 0.28 * length}, height


def _lay_ego(net: RoadNet, rng: np.random.Generator, lanes: list[int], arc: float, calm: float = 1.0) -> Stage:
    """A stage whose ego is expected ``arc`` metres into ``lanes[0]`` (before it, if negative) at ``MEETING``, driving at about
    ``calm`` times its free speed until then."""
    graph = net.graph
    limit = min(float(graph.speed_limit[lanes[0]]), TOP_SPEED)
    habits = {**driver(rng), "lateral_accel": float(rng.uniform(1.2, 2.4))}
    starts = float(rng.uniform(4.0, 7.0)) if rng.random() < 0.08 else 0.0  # some scenes begin at a standstill
    speed = 0.0 if starts else float(limit * min(1.0, rng.uniform(0.3, 1.1)) * habits["speed_factor"])
    travel = 1.0 if starts else float(MEETING * calm * (0.6 * speed + 0.4 * limit * habits["speed_factor"]))
    route, added = extend_backward(net, lanes, travel + BEHIND - arc, rng)
    begin = added + arc - travel - BEHIND
    if begin < 0.0:
        raise Unsuitable("the route is too short behind the ego")
    while begin > graph.length[route[0]]:
        begin -= float(graph.length[route.pop(0)])
    points = int(BEHIND + 7.5 * limit + AHEAD)
    route = extend_forward(net, route, points - (float(graph.length[route].sum()) - begin) + 2.0, rng)
    path = lay_paths(net, [route], [begin], points, rng)
    stage = Stage(net, rng, route, path, path.pose[0], BEHIND, BEHIND + travel)
    offset = _curve_offset(path.pose[0])
    if rng.random() < 0.7:  # nobody drives exactly on the centre line
        wave = np.sin(2.0 * np.pi * (np.arange(points) / rng.uniform(25.0, 60.0) + rng.random()))
        offset = offset + float(rng.normal(0.0, 0.15)) * wave + float(rng.normal(0.0, 0.1))
    stage.drive = shift(path.pose[0], offset)
    length, width, center = PACIFICA
    ego = {**habits, "length": length, "width": width, "center": center, "start": BEHIND, "speed": speed, "hold_until": starts}
    if starts:
        stage.window = (starts - 0.3, starts + 1.2)
    stage._add(_CAR, 1.8, stage.drive[int(BEHIND)], **ego)
    stage.paths[0] = stage.drive
    return stage


def _curve_offset(pose: FloatArray) -> FloatArray:
    """Metres [P] by which a driver keeps the rear axle inside a curve's centre line, so that the whole car lies in the lane:
    half of what the front corner, ``_NOSE`` metres ahead of the axle, swings out."""
    turned = wrap_angle(np.diff(pose[:, 2], prepend=pose[0, 2]))
    swing = np.clip(_NOSE * _NOSE / 4.0 * np.convolve(turned, _SMOOTH, mode="same"), -0.6, 0.6)
    return np.convolve(swing, _SMOOTH, mode="same")


def _pick(rng: np.random.Generator, options: npt.NDArray[np.int64], what: str) -> int:
    if not len(options):
        raise Unsuitable(f"the town has no {what}")
    return int(options[int(rng.integers(len(options)))])


def _on_lane(net: RoadNet, rng: np.random.Generator, options: npt.NDArray[np.int64], calm: float = 1.0) -> Stage:
    """A stage somewhere on one of ``options``; long lanes are taken more often."""
    if not len(options):
        raise Unsuitable("the town has no such lane")
    ends = np.cumsum(net.graph.length[options])
    at = float(rng.uniform(0.0, ends[-1]))
    k = int(np.searchsorted(ends, at))
    return _lay_ego(net, rng, [int(options[k])], at - float(ends[k - 1] if k else 0.0), calm)


def _at_connector(net: RoadNet, rng: np.random.Generator, lane: int, low: float, high: float, calm: float) -> Stage:
    """A stage cut while the junction lane's start is ``low`` … ``high`` metres ahead of the ego."""
    stage = _lay_ego(net, rng, [lane], -float(rng.uniform(low, high)), calm)
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
        stage.add_on_path(s, speed=stage.agents[0]["speed"] * float(rng.uniform(0.6, 1.1)), speed_factor=float(rng.uniform(0.3, 0.8)))
    return stage


def _lead(stage: Stage, gap: float, pace: float, **values: float) -> int:
    """Somebody ``gap`` metres (axle to axle) ahead of the ego at ``pace`` times its speed."""
    speed = stage.agents[0]["speed"]
    return stage.add_on_path(BEHIND + gap, **{"speed": speed * pace, **values})


def _lead_stopped(net: RoadNet, rng: np.random.Generator) -> Stage:
    stage = _on_lane(net, rng, net.free, 0.8)
    starts = float(rng.uniform(4.0, 9.0)) if rng.random() < 0.3 else 1e9
    s = stage.target + float(rng.uniform(10.0, 45.0))
    for k in range(int(rng.integers(1, 4))):
        stage.add_on_path(s + 7.5 * k, speed=0.0, hold_until=starts + 0.8 * (2 - k))
    stage.target, stage.near = s, (8.0, 55.0)
    return stage


def _lead_braking(net: RoadNet, rng: np.random.Generator) -> Stage:
    stage = _on_lane(net, rng, net.free)
    brake = float(rng.uniform(3.0, 5.5))
    gap = 7.0 + stage.agents[0]["speed"] * float(rng.uniform(0.7, 1.8))
    _lead(
        stage, gap, 1.0, brake_time=brake, brake_decel=float(rng.uniform(1.5, 4.5)), speed_factor=stage.agents[0]["speed_factor"],
        brake_floor=float(rng.choice([0.0, 0.0, 2.0, 4.0])),
    )  # fmt: skip
    stage.window = (brake + 0.2, brake + 2.0)
    return stage


def _cut_in(net: RoadNet, rng: np.random.Generator) -> Stage:
    graph = net.graph
    wide = net.free[((graph.left_lane[net.free] >= 0) | (graph.right_lane[net.free] >= 0)) & (graph.length[net.free] > 30.0)]
    stage = _on_lane(net, rng, wide)
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
            size, kind = ((0.4, 0.4, 0.7), _CONE) if rng.random() < 0.7 else ((2.0, 0.5, 1.0), _BARRIER)
        else:
            body, height = vehicle_size(rng)
            size, kind = (body["length"], body["width"], height), _CAR
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
        stage.add_on_lanes([lane], float(net.slot_arc[slot]), speed=limit * float(rng.uniform(0.3, 0.95)))
        wanted -= 1
    parked = _within(net.parking, here, 50.0)
    for q in parked[rng.random(len(parked)) < rng.uniform(0.0, 0.5)][:10]:
        x, y, heading, wide = net.parking[q]
        body, height = vehicle_size(rng)
        if body["width"] < wide and body["length"] < 6.0 and stage.is_clear(x, y, 6.0):
            stage.add_standing((x, y, heading), _CAR, (body["length"], body["width"], height))
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
