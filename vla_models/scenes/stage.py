"""A scene's cast before it moves: ``Stage`` collects who is there, where they start and which way they go."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from vla_models.geometry import wrap_angle
from vla_models.scenes.routes import PATH_STEP, Paths, RoadNet, extend_backward, extend_forward, lay_paths, shift
from vla_models.scenes.scene import AGENT_KINDS
from vla_models.simulation.traffic import DRIVER, SCRIPTED, STANDING, column, new_agents

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
_BICYCLE_SIZE: Final = {"length": 1.8, "width": 0.65, "center": 0.6}
CAR, PEDESTRIAN, BICYCLE, CONE, BARRIER = (
    AGENT_KINDS.index(kind) for kind in ("vehicle", "pedestrian", "bicycle", "traffic_cone", "barrier")
)


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
        return len(self.drive)

    def at(self, s: float) -> FloatArray:
        """Pose on the ego's path ``s`` metres along."""
        pose: FloatArray = self.path.pose[0, int(np.clip(round(s), 0, self.points - 1))]
        return pose

    def limit(self, s: float) -> float:
        """Speed limit on the ego's path, m/s."""
        return float(self.path.limit[0, int(np.clip(round(s), 0, self.points - 1))])

    def add(self, kind: int, height: float, pose: FloatArray, **values: float) -> int:
        """An agent at ``pose`` with some columns of the agent table set; its path or lanes are set by the caller."""
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
        begin = own[int(np.clip(s, 0, self.points - 1))]
        k = self.add(CAR, height, begin, **{**driver(self.rng), **size, "start": s, **values})
        self.paths[k] = own
        return k

    def add_on_lanes(self, lanes: list[int], arc: float, cyclist: bool = False, **values: float) -> int:
        """A car (or cyclist) that starts ``arc`` metres into ``lanes[0]``, follows ``lanes`` and then random successors."""
        size, height = (dict(_BICYCLE_SIZE), 1.7) if cyclist else vehicle_size(self.rng)
        g = self.net.graph
        row = min(int(g.offsets[lanes[0]] + arc), int(g.offsets[lanes[0] + 1]) - 1)
        k = self.add(BICYCLE if cyclist else CAR, height, g.center[row], **{**driver(self.rng), **size, **values})
        self.lanes[k], self.arcs[k] = lanes, arc
        return k

    def add_walker(self, pose: npt.ArrayLike, distance: float, speed: float, hold: float = 0.0) -> int:
        """A pedestrian at ``pose`` (x, y, heading) who walks straight ahead for ``distance`` metres from second ``hold`` on."""
        p = np.asarray(pose, dtype=np.float64)
        s = np.minimum(np.arange(self.points) * PATH_STEP, max(distance, 1.0))
        line = np.stack([p[0] + s * np.cos(p[2]), p[1] + s * np.sin(p[2]), np.full(self.points, p[2])], -1)
        k = self.add(
            PEDESTRIAN, float(self.rng.uniform(1.55, 1.9)), p, length=0.6, width=0.7, center=0.0, speed=speed, role=SCRIPTED,
            hold_until=hold, reach=max(distance, 1.0),
        )  # fmt: skip
        self.paths[k] = line
        return k

    def add_standing(self, pose: npt.ArrayLike, kind: int, size: tuple[float, float, float]) -> int:
        """Something that stands with its centre at ``pose``."""
        p = np.asarray(pose, dtype=np.float64)
        k = self.add(kind, size[2], p, length=size[0], width=size[1], center=0.0, role=STANDING)
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
        lane = np.full((count, g), -1, dtype=np.int64)
        out = Paths(np.empty((count, g, 3)), np.full((count, g), 13.9), lane, np.zeros(count))
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


def lay_ego(
    net: RoadNet, rng: np.random.Generator, lanes: list[int], arc: float, calm: float = 1.0, standstill: float = 0.08
) -> Stage:
    """A stage whose ego is expected ``arc`` metres into ``lanes[0]`` (before it, if negative) at ``MEETING``, driving at about
    ``calm`` times its free speed until then; ``standstill`` is the probability that it stands instead and starts there."""
    graph = net.graph
    limit = min(float(graph.speed_limit[lanes[0]]), TOP_SPEED)
    habits = {**driver(rng), "lateral_accel": float(rng.uniform(1.2, 2.4))}
    starts = float(rng.uniform(4.0, 7.0)) if rng.random() < standstill else 0.0
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
    stage.add(CAR, 1.8, stage.drive[int(BEHIND)], **ego)
    stage.paths[0] = stage.drive
    return stage


def _curve_offset(pose: FloatArray) -> FloatArray:
    """Metres [P] by which a driver keeps the rear axle inside a curve's centre line, so that the whole car lies in the lane:
    half of what the front corner, ``_NOSE`` metres ahead of the axle, swings out."""
    turned = wrap_angle(np.diff(pose[:, 2], prepend=pose[0, 2]))
    swing = np.clip(_NOSE * _NOSE / 4.0 * np.convolve(turned, _SMOOTH, mode="same"), -0.6, 0.6)
    return np.convolve(swing, _SMOOTH, mode="same")
