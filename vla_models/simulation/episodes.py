"""An episode: a route with its scenarios, staged. Arrays that the world copies into an environment's row.

``stage`` is where a route becomes actors, paths, lights and flows; the scenarios' own files in ``scenarios/`` say who plays
what.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np

from vla_models.errors import SceneError
from vla_models.geometry import wrap_angle
from vla_models.kernels import numba
from vla_models.simulation.chance import uniform
from vla_models.simulation.lights import cycles
from vla_models.simulation.roads import HEADING, JUNCTION, Path, Roads, X, Y, roads_of
from vla_models.simulation.tables import (
    ACTOR_INDEX,
    FLOW_COLUMNS,
    SCENARIO_COLUMNS,
    FloatArray,
    Int8Array,
    IntArray,
    Kind,
    new_actor,
)
from vla_models.simulation.vehicle import LENGTH as EGO_LENGTH
from vla_models.simulation.vehicle import WIDTH as EGO_WIDTH

CROSSING: Final = 2.4
"""Metres between two paths within which they count as crossing …"""
APART: Final = 3.2
"""… after they were further apart than this."""
TRAFFIC_PATHS: Final = 24
"""Paths of the background traffic for each 250 m of route."""
TRAFFIC_LENGTH: Final = 260.0
SURROUNDINGS: Final = 90.0
"""Metres around the route in which background traffic starts."""


class RouteLike(Protocol):
    """What is read of a route (``scenes`` has the reader of route files)."""

    @property
    def id(self) -> str: ...
    @property
    def town(self) -> str: ...
    @property
    def points(self) -> FloatArray: ...
    @property
    def scenarios(self) -> Sequence[Any]: ...


@dataclass(frozen=True)
class Script:
    """One scenario on a route: what its file reads."""

    type: str
    trigger: tuple[float, float, float]
    parameters: dict[str, Any] = field(default_factory=dict)
    name: str = ""

    def number(self, name: str, default: float) -> float:
        """A parameter's number. Raises ``SceneError`` where it is none."""
        value = self.parameters.get(name, default)
        try:
            return float(value)
        except (TypeError, ValueError):
            raise SceneError(f"scenario {self.type}: parameter {name!r} must be a number, not {value!r}") from None

    def interval(self, name: str, default: tuple[float, float]) -> tuple[float, float]:
        """A parameter's two numbers ("from", "to"); one number counts twice."""
        value = self.parameters.get(name, default)
        try:
            low, high = (float(v) for v in (value if isinstance(value, tuple | list) else (value, value)))
        except (TypeError, ValueError):
            raise SceneError(f"scenario {self.type}: parameter {name!r} must be two numbers, not {value!r}") from None
        if not 0.0 < low <= high:
            raise SceneError(f"scenario {self.type}: parameter {name!r} must rise from above 0, not {low:g} … {high:g}")
        return low, high

    def point(self, name: str) -> tuple[float, float]:
        """A parameter's place (x, y)."""
        value = self.parameters.get(name)
        if not isinstance(value, tuple | list) or len(value) < 2:
            raise SceneError(f"scenario {self.type} needs the place {name!r} (x, y), it has {value!r}")
        return float(value[0]), float(value[1])

    def side(self) -> float:
        """+1 for ``direction`` left, -1 for right (the default)."""
        value = self.parameters.get("direction", "right")
        if value not in ("left", "right"):
            raise SceneError(f"scenario {self.type}: parameter 'direction' must be left or right, not {value!r}")
        return 1.0 if value == "left" else -1.0


@dataclass
class Stage:
    """A route being staged: scenario files add actors, paths and flows to it."""

    roads: Roads
    route: Path
    seed: int
    paths: list[Path] = field(default_factory=list)
    actors: list[FloatArray] = field(default_factory=list)
    flows: list[FloatArray] = field(default_factory=list)
    slippery: list[list[float]] = field(default_factory=list)
    scenarios: list[FloatArray] = field(default_factory=list)
    scripts: list[tuple[dict[int, int], dict[int, int]]] = field(default_factory=list)
    stop_signs: list[tuple[int, float]] = field(default_factory=list)
    start_index: int = 0
    """Route index at which the ego starts."""
    start_offset: float = 0.0
    """Metres beside the route where the ego starts (left positive)."""
    draws: int = 0

    @property
    def scenario(self) -> int:
        """Index of the scenario being staged."""
        return len(self.scenarios)

    def random(self, low: float, high: float) -> float:
        """A number that depends on the episode's seed and on how many were drawn before."""
        self.draws += 1
        return low + (high - low) * float(uniform(self.seed, 7, self.draws))

    def add_path(self, path: Path) -> int:
        """Index of a new path."""
        self.paths.append(path)
        return len(self.paths) - 1

    def add(self, kind: Kind, pose: FloatArray | None = None, path: Path | int | None = None, **columns: float) -> int:
        """Add an actor of the current scenario: at ``pose`` [3] (it stands), or on a path at ``s`` metres. -> its slot."""
        length, width = SIZES[kind]
        row = new_actor(kind, columns.pop("length", length), columns.pop("width", width), scenario=self.scenario, **columns)
        if path is not None:
            index = path if isinstance(path, int) else self.add_path(path)
            row[ACTOR_INDEX["path"]] = index
            at = self.paths[index].pose(columns.get("s", 0.0), columns.get("d", 0.0))
            row[ACTOR_INDEX["d_to"]] = columns.get("d_to", columns.get("d", 0.0))
        elif pose is not None:
            at = pose
            row[ACTOR_INDEX["start"]] = columns.get("start", 99.0)
        else:
            raise ValueError("an actor needs a pose or a path")
        row[[0, 1, 2]] = at
        row[ACTOR_INDEX["colour"]] = float(len(self.actors) % 8)
        self.actors.append(row)
        return len(self.actors)  # slot 0 is the ego

    def add_flow(self, path: Path, gap: tuple[float, float], speed: float, kind: Kind = Kind.CAR, **columns: float) -> None:
        """Add a source of traffic along ``path``: a new actor whenever the last is a random distance of ``gap`` away. Columns
        of the flow table (start_x, delay, fill …) and of its actors (sees, yields …) by name."""
        flow = {n: columns.pop(n) for n in FLOW_COLUMNS if n in columns}
        index = self.add_path(path)
        slots = min(24, int(len(path) / max(gap[0], 4.0)) + 2)
        drives: dict[str, Any] = {"speed_mode": 1.0, "target": speed, "at_end": 1.0, "shown": 2.0, "start": 99.0} | columns
        first = len(self.actors) + 1
        for _ in range(slots):
            self.add(kind, path=index, **drives)
        row = {
            "path": index, "speed": speed, "gap_from": gap[0], "gap_to": gap[1], "last": -1, "scenario": self.scenario,
            "first": first, "slots": slots, "start_distance": math.inf,
        } | flow  # fmt: skip
        self.flows.append(np.array([float(row.get(n, 0.0)) for n in FLOW_COLUMNS]))

    def begin(self, script: Script) -> int:
        """Route index of a scenario's trigger point. Raises ``SceneError`` where it is off the route."""
        x, y, heading = script.trigger
        points = self.route.points
        away = np.hypot(points[:, X] - x, points[:, Y] - y) + 5.0 * (np.cos(points[:, HEADING] - heading) < 0.0)
        k = int(np.argmin(away))
        if away[k] > 4.0:
            raise SceneError(f"scenario {script.type}: its trigger point ({x:.1f}, {y:.1f}) is {away[k]:.1f} m off the route")
        return k

    def junction_after(self, s: int) -> tuple[int, int]:
        """Route indices at which the next junction at or after ``s`` begins and ends. Raises ``SceneError`` where none
        comes."""
        inside = self.route.points[:, JUNCTION] > 0.0
        later = np.flatnonzero(inside[s:])
        if not len(later):
            raise SceneError(f"no junction on the route after {s} m")
        first = s + int(later[0])
        out = np.flatnonzero(~inside[first:])
        return first, first + int(out[0]) if len(out) else len(inside) - 1

    def before_junction(self, s: int, distance: float) -> int:
        """Route index ``distance`` metres after ``s``, not beyond the last point before a junction or the route's end."""
        stop = min(s + round(distance), len(self.route) - 1)
        inside = np.flatnonzero(self.route.points[s : stop + 1, JUNCTION] > 0.0)
        return s + int(inside[0]) - 1 if len(inside) and inside[0] > 0 else stop

    def along(self, s: float, length: float, before: float = 0.0) -> Path:
        """The lane that the route uses at ``s``, as a path from ``before`` metres behind it: what a vehicle there would follow
        that goes straight on, beyond the route's end where need be."""
        k = min(round(s), len(self.route) - 1)
        x, y, h = self.route.points[k, :3]
        lane, arc = self.roads.place(x, y, h)
        lanes, start = self.roads.behind(lane, arc, before)
        return self.roads.path(lanes[:-1] + self.roads.ahead(lane, arc, length), start, before + length)

    def finish(
        self, begin: int, end: float, timeout: float = math.inf, wrong_way: bool = False, quiet: float | None = None,
        script: tuple[dict[int, int], dict[int, int]] = ({}, {}), script_seconds: float = 0.0, script_end: float = math.inf,
    ) -> None:  # fmt: skip
        """Close the current scenario: it runs between two places of the route. ``quiet``: metres beyond that stretch in which
        there is no background traffic (None: it stays). ``script``: light row -> state, first for ``script_seconds``, then to
        its end."""
        last = len(self.route) - 1
        stop = min(float(end), last - 0.5)
        first = max(float(begin), stop - 200.0)  # what a scenario is about lies near its end
        middle = self.route.points[min(int((first + stop) / 2), last)]
        radius = 0.0 if quiet is None else (stop - first) / 2.0 + quiet
        columns = {
            "begin": begin, "end": stop, "timeout": timeout, "wrong_way": wrong_way, "script_seconds": script_seconds,
            "script_end": script_end,
            "window": begin - 150.0, "quiet_x": middle[X], "quiet_y": middle[Y], "quiet_radius": radius,
        }  # fmt: skip
        self.scenarios.append(np.array([float(columns.get(n, 0.0)) for n in SCENARIO_COLUMNS]))
        self.scripts.append(script)


SIZES: Final[dict[Kind, tuple[float, float]]] = {
    Kind.CAR: (4.7, 1.95), Kind.TRUCK: (7.5, 2.5), Kind.POLICE: (5.2, 2.0), Kind.AMBULANCE: (6.4, 2.35), Kind.BICYCLE: (1.7,
    0.6), Kind.WALKER: (0.5, 0.5), Kind.CONE: (0.4, 0.4), Kind.SIGN: (0.4, 1.6), Kind.BARRIER: (1.2, 2.4), Kind.DEBRIS: (1.5,
    1.5), Kind.DOOR: (0.9, 0.9),
}  # fmt: skip
"""Length and width of an actor by its kind, metres."""


@dataclass(frozen=True)
class Episode:
    """A staged route: the rows that the world copies. ``world.Tables`` says what the columns are."""

    route_id: str
    town: str
    types: tuple[str, ...]
    dropped: tuple[str, ...]
    """Scenarios that could not be staged (``skip_bad``), each with the reason."""
    seed: int
    route: Path
    actors: FloatArray  # [A, 50], 0 is the ego
    points: FloatArray  # [W, 13]
    path_offsets: IntArray
    cross_offsets: IntArray
    cross: FloatArray
    stop_offsets: IntArray
    stops: FloatArray
    light_rows: IntArray
    """[G] rows of the town's lights that the episode knows; its own light index counts these."""
    light_cycle: FloatArray
    script: Int8Array
    scenarios: FloatArray
    flows: FloatArray
    slippery: FloatArray
    traffic: FloatArray
    start: FloatArray
    """[3] pose of the ego's box centre."""
    start_index: int
    """Route index there."""
    stop_signs: tuple[tuple[float, float, float], ...]
    """Poses of the stop signs that the episode knows (row of the event STOP)."""

    @property
    def sizes(self) -> dict[str, int]:
        """Rows that it needs in each table."""
        return {
            "A": len(self.actors), "W": len(self.points), "P": len(self.path_offsets) - 1, "C": len(self.cross),
            "G": len(self.light_cycle), "Q": len(self.stops), "K": len(self.scenarios), "F": len(self.flows),
            "Z": len(self.slippery), "B": len(self.traffic),
        }  # fmt: skip


@numba.njit(cache=True)
def _crossings(points, offsets):  # type: ignore[no-untyped-def]
    """Rows (path, other path, metres on each, rank of each) where a path comes near another one that it was apart from."""
    count, total = len(offsets) - 1, len(points)
    x0, y0 = points[:, 0].min() - 1.0, points[:, 1].min() - 1.0
    columns = int((points[:, 0].max() - x0) / APART) + 3
    owner = np.empty(total, dtype=np.int64)
    cell = np.empty(total, dtype=np.int64)
    for p in range(count):
        for w in range(offsets[p], offsets[p + 1]):
            owner[w] = p
            cell[w] = (int((points[w, 1] - y0) / APART) + 1) * columns + int((points[w, 0] - x0) / APART) + 1
    order = np.argsort(cell, kind="mergesort")
    keys = cell[order]
    found = [(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)]
    found.clear()
    nearest, at = np.empty(count), np.empty(count, dtype=np.int64)
    last_near = np.empty(count, dtype=np.int64)
    for p in range(count):
        last_near[:] = -10
        for w in range(offsets[p], offsets[p + 1]):
            a = w - offsets[p]
            nearest[:] = 1e9
            at[:] = 1 << 60
            for row in range(-1, 2):
                low = np.searchsorted(keys, cell[w] + row * columns - 1)
                high = np.searchsorted(keys, cell[w] + row * columns + 2)
                for k in range(low, high):
                    q = owner[order[k]]
                    if q == p:
                        continue
                    d = math.hypot(points[w, 0] - points[order[k], 0], points[w, 1] - points[order[k], 1])
                    nearest[q] = min(nearest[q], d)
                    if d < CROSSING:
                        at[q] = min(at[q], order[k] - offsets[q])
            for q in range(count):
                if nearest[q] > APART:
                    continue
                if nearest[q] < CROSSING and a > 0 and (last_near[q] < 0 or a - last_near[q] > 2):
                    ranks = np.empty(2)
                    for k in range(2):
                        path = points[offsets[p] : offsets[p + 1]] if k == 0 else points[offsets[q] : offsets[q + 1]]
                        place = a if k == 0 else at[q]
                        turned = path[min(place + 10, len(path) - 1), 2] - path[max(place - 12, 0), 2]
                        ranks[k] = 0.0 if turned > 0.5 else (1.0 if turned < -0.5 else 2.0)
                    found.append((float(p), float(q), float(a), float(at[q]), ranks[0], ranks[1]))
                if nearest[q] < CROSSING or last_near[q] >= 0:
                    last_near[q] = a
    out = np.empty((len(found), 6))
    for k in range(len(found)):
        for c in range(6):
            out[k, c] = found[k][c]
    return out


def crossings(paths: Sequence[Path]) -> tuple[IntArray, FloatArray]:
    """Crossings of paths by path: offsets [P + 1], rows [C, 5] (other path, metres here, metres there, rank here, rank there).
    Ranks: left turn 0, right turn 1, straight 2; the lower gives way, others being equal."""
    points, offsets = _ragged(paths)
    rows = _crossings(points, offsets)
    counts = np.bincount(rows[:, 0].astype(np.int64), minlength=len(paths)) if len(rows) else np.zeros(len(paths), np.int64)
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), np.ascontiguousarray(rows[:, 1:])


def _ragged(paths: Sequence[Path]) -> tuple[FloatArray, IntArray]:
    offsets = np.concatenate([[0], np.cumsum([len(p) for p in paths])]).astype(np.int64)
    return np.ascontiguousarray(np.concatenate([p.points for p in paths])), offsets


def traffic_paths(stage: Stage, density: float) -> list[tuple[Path, float]]:
    """Paths of the background traffic: random walks over the lanes around the route, each with the metres along the route
    where it is nearest to it."""
    roads, route = stage.roads, stage.route
    g = roads.graph
    want = round(TRAFFIC_PATHS * density * max(1.0, len(route) / 250.0))
    if want == 0:
        return []
    found: list[tuple[Path, float]] = []
    low, high = route.points[:, :2].min(0) - SURROUNDINGS, route.points[:, :2].max(0) + SURROUNDINGS
    inside = np.all((g.center[:, :2] > low) & (g.center[:, :2] < high), axis=1) & ~roads.in_junction[roads.lane_of]
    candidates = np.flatnonzero(inside)
    for _ in range(6 * want):
        if len(found) == want or not len(candidates):
            break
        v = int(candidates[int(stage.random(0.0, len(candidates) - 1e-6))])
        away = np.hypot(route.points[:, X] - g.center[v, 0], route.points[:, Y] - g.center[v, 1])
        k = int(np.argmin(away))
        if away[k] > SURROUNDINGS:
            continue
        lanes, start = roads.behind(int(roads.lane_of[v]), float(g.arc[v]), 80.0)
        length = float(g.length[lanes].sum()) - start
        while length < TRAFFIC_LENGTH and len(following := g.next_lanes(lanes[-1])):
            lanes.append(int(following[int(stage.random(0.0, len(following) - 1e-6))]))
            length += float(g.length[lanes[-1]])
        if length < 60.0:
            continue
        found.append((roads.path(lanes, start, TRAFFIC_LENGTH), float(k)))
    return found


def stops_on(roads: Roads, path: Path, lights: dict[int, int], signs: dict[int, list[tuple[float, int]]]) -> list[list[float]]:
    """Rows (metres, light, sign) of the stop lines on a path. ``lights``: lane -> light; ``signs``: lane -> (metres, sign)."""
    rows = []
    lanes = path.lanes
    starts = np.flatnonzero(np.concatenate([[True], lanes[1:] != lanes[:-1]]))
    for k in starts:
        lane = int(lanes[k])
        if lane in lights and k > 0 and lights.get(int(lanes[k - 1])) != lights[lane]:
            rows.append([float(k), float(lights[lane]), -1.0])
        for arc, sign in signs.get(lane, ()):
            line = roads.graph.stations(lane)
            v = line.start + int(np.argmin(np.abs(roads.graph.arc[line] - arc)))
            at = path.nearest(*roads.graph.center[v, :2])
            if lane in path.lanes[max(at - 1, 0) : at + 2] and at > 0:
                rows.append([float(at), -1.0, float(sign)])
    return sorted(rows)


def ego_row(pose: FloatArray) -> FloatArray:
    """The ego's row of the actor table."""
    row = new_actor(Kind.CAR, EGO_LENGTH, EGO_WIDTH, path=0, present=1, obeys=1, yields=1, sees=1, phase=2)
    row[:3] = pose
    return row


def traffic_row() -> FloatArray:
    """A row of the background traffic, not yet on the road."""
    length, width = SIZES[Kind.CAR]
    return new_actor(Kind.CAR, length, width, background=1, phase=3, obeys=1, yields=1, sees=1, path=0, at_end=1)


def assemble(
    route: RouteLike, stage: Stage, types: tuple[str, ...], dropped: tuple[str, ...], vehicles: int, density: float
) -> Episode:
    """Close a stage: background traffic, crossings, lights, stop lines -> the episode."""
    roads, graph = stage.roads, stage.roads.graph
    beyond = traffic_paths(stage, density) if vehicles else []
    traffic = [[float(stage.add_path(path)), near] for path, near in beyond]
    on_paths = np.unique(np.concatenate([p.lanes for p in stage.paths]))
    rows = sorted(
        {roads.lights_of[int(i)] for i in on_paths if int(i) in roads.lights_of} | {k for a, b in stage.scripts for k in a | b}
    )
    junctions = {int(graph.light_junction[k]) for k in rows}
    rows = [k for k in range(len(graph.light_pose)) if int(graph.light_junction[k]) in junctions]
    local = {row: k for k, row in enumerate(rows)}
    lights = {lane: local[row] for lane, row in roads.lights_of.items() if row in local}
    signs: dict[int, list[tuple[float, int]]] = {}
    for sign in range(len(graph.stop_pose)):
        for at in range(graph.stop_lane_offsets[sign], graph.stop_lane_offsets[sign + 1]):
            signs.setdefault(int(graph.stop_lanes[at]), []).append((float(graph.stop_arc[at]), sign))
    stops = [stops_on(roads, p, lights, signs) for p in stage.paths]
    script = np.full((len(stage.scripts), len(rows), 2), -1, dtype=np.int8)
    for k, pair in enumerate(stage.scripts):
        for part, states in enumerate(pair):
            for row, state in states.items():
                script[k, local[row], part] = state
    cross_offsets, cross = crossings(stage.paths)
    points, offsets = _ragged(stage.paths)
    start = stage.route.pose(stage.start_index, stage.start_offset)
    start[2] = float(wrap_angle(start[2]))
    colours = [traffic_row() for _ in range(vehicles)]
    for k, vehicle in enumerate(colours):
        vehicle[ACTOR_INDEX["colour"]] = float(k % 8)
    return Episode(
        route_id=route.id,
        town=route.town,
        types=types,
        dropped=dropped,
        seed=stage.seed,
        route=stage.route,
        actors=np.stack([ego_row(start), *stage.actors, *colours]),
        points=points,
        path_offsets=offsets,
        cross_offsets=cross_offsets,
        cross=cross,
        stop_offsets=np.concatenate([[0], np.cumsum([len(s) for s in stops])]).astype(np.int64),
        stops=np.array([row for s in stops for row in s]).reshape(-1, 3),
        light_rows=np.array(rows, dtype=np.int64),
        light_cycle=cycles(graph, np.array(rows, dtype=np.int64), float(uniform(stage.seed, 8, 0))),
        script=script,
        scenarios=np.array(stage.scenarios).reshape(-1, len(SCENARIO_COLUMNS)),
        flows=np.array(stage.flows).reshape(-1, len(FLOW_COLUMNS)),
        slippery=np.array(stage.slippery).reshape(-1, 4),
        traffic=np.array(traffic).reshape(-1, 2),
        start=start,
        start_index=stage.start_index,
        stop_signs=tuple((float(x), float(y), float(h)) for x, y, h in graph.stop_pose),
    )


def stage(
    route: RouteLike,
    seed: int = 0,
    *,
    vehicles: int = 12,
    density: float = 1.0,
    roads: Roads | None = None,
    skip_bad: bool = False,
) -> Episode:
    """Stage a route as an episode: same route and seed, same bits.

    ``vehicles``: of the background traffic at a time around the ego; ``density`` scales how many paths they have to choose
    from. Raises ``SceneError`` with the route's and the scenario's name where a scenario cannot be staged;
    with ``skip_bad`` such scenarios are left out and listed in ``Episode.dropped``.
    """
    from vla_models.simulation.scenarios import stage_scenario

    roads = roads or roads_of(route.town)
    path = roads.route_path(np.asarray(route.points, dtype=np.float64), getattr(route, "lanes", None))
    setting = Stage(roads, path, seed, paths=[path])
    types, dropped = [], list[str]()
    for spec in route.scenarios:
        script = Script(spec.type, tuple(float(v) for v in spec.trigger), dict(spec.parameters), spec.name)  # type: ignore[arg-type]
        try:
            stage_scenario(setting, script)
        except SceneError as error:
            if not skip_bad:
                raise SceneError(f"route {route.id} ({route.town}): {error}") from None
            dropped.append(f"{spec.name}: {error}")
            continue
        types.append(script.type)
    return assemble(route, setting, tuple(types), tuple(dropped), vehicles, density)
