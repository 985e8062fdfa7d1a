"""What a car on a route observes in the embedded world: its own motion, the route ahead, a command, pictures."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from vla_models.geometry import arc_lengths, to_frame
from vla_models.inputs import EGO_FEATURES
from vla_models.render.camera import CameraSpec
from vla_models.render.town import Actors, Rig, TownView
from vla_models.scenes.bench2drive.routes import Route
from vla_models.scenes.planner import RoadOption
from vla_models.scenes.scene import AGENT_KINDS, COMMANDS
from vla_models.scenes.surroundings import surroundings
from vla_models.scenes.towns import load_town
from vla_models.simulation import tables as columns
from vla_models.simulation.roads import roads_of
from vla_models.simulation.tables import RED, FloatArray, Kind
from vla_models.simulation.vehicle import FULL_LOCK, REAR_TO_CENTER
from vla_models.simulation.world import World

AHEAD: Final = 5.0 * np.arange(1, 11)
"""Metres along the route, from where the rear axle is beside it, of the points of the observation ``route``."""
COMMAND_AHEAD: Final = 25
"""Metres ahead from which a junction or a lane change is commanded."""

KEPT_METRES: Final = 20_000.0
"""Metres of routes whose preparation is kept (``Prepared``)."""

_T = TypeVar("_T")
_LOOKS: Final[dict[Kind, tuple[str, float]]] = {
    Kind.CAR: ("vehicle", 1.6), Kind.TRUCK: ("vehicle", 3.0), Kind.POLICE: ("vehicle", 1.6), Kind.AMBULANCE: ("vehicle", 2.5),
    Kind.BICYCLE: ("bicycle", 1.7), Kind.WALKER: ("pedestrian", 1.75), Kind.CONE: ("traffic_cone", 0.8),
    Kind.SIGN: ("czone_sign", 1.6), Kind.BARRIER: ("barrier", 1.0), Kind.DEBRIS: ("generic_object", 0.3),
    Kind.DOOR: ("generic_object", 1.1),
}  # fmt: skip
"""As what an actor is drawn, and its height in metres."""
_DRAWN: Final = np.array([AGENT_KINDS.index(_LOOKS[kind][0]) for kind in Kind], dtype=np.int8)
_HEIGHT: Final = np.array([_LOOKS[kind][1] for kind in Kind])
_LEFT: Final = (RoadOption.LEFT, RoadOption.CHANGE_LANE_LEFT)
_RIGHT: Final = (RoadOption.RIGHT, RoadOption.CHANGE_LANE_RIGHT)


def ego_features(world: World) -> npt.NDArray[np.float32]:
    """[N, 5] ``EGO_FEATURES``: accelerations in the ego's axes, steering in radians of the front wheels, left positive."""
    env = world.tables.env
    found = {
        "speed": env[:, columns.E_V],
        "acceleration": env[:, columns.E_ACC],
        "lateral_acceleration": env[:, columns.E_LATERAL],
        "steering": -FULL_LOCK * env[:, columns.E_STEER],
        "yaw_rate": env[:, columns.E_YAW_RATE],
    }
    return np.stack([found[name] for name in EGO_FEATURES], axis=1).astype(np.float32)


def route_ahead(world: World) -> npt.NDArray[np.float32]:
    """[N, 10, 2] the route at ``AHEAD`` metres in each ego's frame; beyond its end it goes straight on."""
    ahead = np.empty((len(world), len(AHEAD), 2), dtype=np.float32)
    for n, (pose, progress) in enumerate(zip(world.ego[:, :3], world.progress, strict=True)):
        line = world.episodes[n].route.points[:, :2]  # a point a metre
        at = progress - REAR_TO_CENTER + AHEAD
        k = np.clip(np.floor(at), 0, len(line) - 2).astype(np.int64)
        points = line[k] + (at - k)[:, None] * (line[k + 1] - line[k])
        ahead[n] = to_frame(points, pose)
    return ahead


def route_commands(route: Route) -> npt.NDArray[np.int64]:
    """Index into ``COMMANDS`` for each metre along a route: what comes first within ``COMMAND_AHEAD`` metres.

    A lane change commands its side, a junction its turn; without either it is "straight".
    """
    arc = arc_lengths(route.points)
    option = route.option[np.searchsorted(arc, np.arange(0.0, arc[-1] + 1e-9) - 0.5)]
    commands = np.full(len(option), COMMANDS.index("straight"))
    upcoming, since = COMMANDS.index("straight"), COMMAND_AHEAD + 1
    for s in range(len(option) - 1, -1, -1):
        if option[s] == RoadOption.LANE_FOLLOW:
            since += 1
        else:
            side = "left" if option[s] in _LEFT else "right" if option[s] in _RIGHT else "straight"
            upcoming, since = COMMANDS.index(side), 0
        if since <= COMMAND_AHEAD:
            commands[s] = upcoming
    return commands


class Prepared(Generic[_T]):
    """Something made once a route (by its id) and kept for those last used: ``least`` of them, and more as long as they are no
    longer than ``KEPT_METRES`` together."""

    def __init__(self, make: Callable[[Route], _T], least: int) -> None:
        self._make, self._least = make, least
        self._kept: OrderedDict[str, tuple[float, _T]] = OrderedDict()

    def __call__(self, route: Route) -> _T:
        """What was made for ``route``."""
        if route.id not in self._kept:
            self._kept[route.id] = route.length, self._make(route)
        self._kept.move_to_end(route.id)
        while len(self._kept) > self._least and sum(length for length, _ in self._kept.values()) > KEPT_METRES:
            self._kept.popitem(last=False)
        return self._kept[route.id][1]


class RouteCameras:
    """Draws what the cameras of N cars see."""

    def __init__(self, specs: Sequence[CameraSpec], keep: int) -> None:
        """``keep``: routes, at least, whose part of the town is kept ready."""
        self.specs = tuple(specs)
        self._rig: Rig | None = None
        self._views = Prepared(_view, keep)

    def draw(
        self,
        world: World,
        routes: Sequence[Route],
        rows: Sequence[int] | None = None,
        before: Mapping[str, npt.NDArray[np.uint8]] | None = None,
    ) -> dict[str, npt.NDArray[np.uint8]]:
        """camera -> uint8 [N, H, W, 3]; ``routes``: what each environment drives.

        Only ``rows`` (left out: all) are drawn, the others keep what they saw ``before``. Lights of junctions that an episode
        does not know (no path of it leads there) are drawn red. Who is nowhere, because its world failed, sees black.
        """
        if before is None:
            images = {spec.name: np.zeros((len(world), spec.height, spec.width, 3), np.uint8) for spec in self.specs}
        else:
            images = {name: part.copy() for name, part in before.items()}
        if not images:
            return images
        if self._rig is None:
            self._rig = Rig(self.specs)
        frames = {}
        ego = world.ego
        for n in range(len(world)) if rows is None else rows:
            view, lights = self._views(routes[n])
            if np.isfinite(ego[n]).all():
                frames[n] = view.frame(ego[n, :3], _actors(world, n), light_states_now(world, n, lights, routes[n].town))
            else:
                for part in images.values():
                    part[n] = 0
        for n in sorted(frames, key=lambda k: id(frames[k].ground)):  # rows on one tile need it laid out once
            for name, image in self._rig.render(frames[n]).items():
                images[name][n] = image
        return images

    def close(self) -> None:
        """Free the drawing buffers; the next ``draw`` makes new ones."""
        if self._rig is not None:
            self._rig.close()
            self._rig = None


def _view(route: Route) -> tuple[TownView, FloatArray]:
    """A route's part of its town, ready to be drawn, and the poses of the lights there."""
    graph, _ = surroundings(load_town(route.town), route.points)
    return TownView(graph), graph.light_pose


def _actors(world: World, n: int) -> Actors:
    """Who is there in environment ``n`` besides the ego."""
    rows = world.tables.actors[n, 1 : int(world.tables.env[n, columns.N_ACTORS])]
    rows = rows[rows[:, columns.PRESENT] > 0.0]
    kind = rows[:, columns.KIND].astype(np.int64)
    return Actors(
        kind=_DRAWN[kind],
        size=np.column_stack([rows[:, [columns.LENGTH, columns.WIDTH]], _HEIGHT[kind]]),
        pose=rows[:, [columns.AX, columns.AY, columns.AH]],
        speed=rows[:, columns.AV],
        acceleration=rows[:, columns.AACC],
        ids=tuple(f"colour {int(colour)}" for colour in rows[:, columns.COLOUR]),
    )


def light_states_now(world: World, n: int, lights: FloatArray, town: str) -> npt.NDArray[np.int8]:
    """[T] states of a route's lights (their poses [T, 3]), which are some of the town's."""
    rows, states = world.light_states(n)
    out = np.full(len(lights), RED, dtype=np.int8)
    if len(rows) and len(lights):
        same = np.all(lights[:, None] == roads_of(town).graph.light_pose[rows][None], axis=-1)
        known = same.any(axis=1)
        out[known] = states[same[known].argmax(axis=1)]
    return out
