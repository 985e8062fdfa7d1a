"""What the VLA sees in a closed loop: a route's part of a town, drawn again and again as the ego moves.

The map's polygons are cut into tiles once, each with all that can be seen from it; a frame takes the tile under the ego, adds whoever
is there now, and is drawn by the same painter as NavSim's scenes (``camera``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from vla_models.render.camera import CameraRenderer, CameraSpec
from vla_models.scenes.lanes import FloatArray, LaneGraph
from vla_models.scenes.routes import make_road_net
from vla_models.scenes.scene import DT, Polygons, RedLights, Scene, Tracks
from vla_models.scenes.surfaces import TownSurfaces, cut, make_surfaces

TILE: Final = 24.0
"""Metres; side of a tile."""
SIGHT: Final = 100.0
"""Metres from the ego up to which the town is drawn, by default."""

_NO_LIGHTS: Final = np.zeros((0, 4))


@dataclass(frozen=True)
class Actors:
    """Who is there now besides the ego, A of them, in the town's frame."""

    kind: npt.NDArray[np.int8]
    """[A] index into ``scene.AGENT_KINDS``."""
    size: FloatArray
    """[A, 3] length, width, height."""
    pose: FloatArray
    """[A, 3] x, y, heading of the box centre."""
    speed: FloatArray
    """[A] m/s."""
    acceleration: FloatArray
    """[A] m/s2: brake lights shine below -0.6, and where one stands."""
    ids: tuple[str, ...]
    """[A] names; a vehicle's colour depends on it alone."""


class TownView:
    """One route's surroundings as frames for any number of cameras."""

    def __init__(self, graph: LaneGraph, sight: float = SIGHT) -> None:
        """``graph``: the route's part of the town (``surroundings``); ``sight``: how far one sees, metres."""
        self._graph = graph
        self._surfaces: TownSurfaces = make_surfaces(make_road_net(graph))
        self._reach = sight + TILE * 0.75
        self._tiles: dict[tuple[int, int], Polygons] = {}

    def scene(self, ego: FloatArray, actors: Actors, lights: npt.ArrayLike | None = None) -> Scene:
        """The moment as a ``Scene`` whose origin is the tile's middle.

        ``ego`` [3]: the rear axle's pose in the town's frame; ``lights`` [T]: 0 green, 1 yellow, 2 red for the rows of the graph's
        ``light_pose`` (without it no light is drawn).
        """
        tile = (int(np.floor(ego[0] / TILE)), int(np.floor(ego[1] / TILE)))
        origin = (np.array(tile) + 0.5) * TILE
        if tile not in self._tiles:
            self._tiles[tile] = cut(self._surfaces, float(origin[0]), float(origin[1]), self._reach, [])[0]
        states = np.empty((len(actors.kind), 2, 5))
        states[:, :, :2] = actors.pose[:, None, :2] - origin
        states[:, :, 2] = actors.pose[:, None, 2]
        speed = np.stack([actors.speed, actors.speed + DT * actors.acceleration], axis=1)
        states[:, :, 3] = speed * np.cos(states[:, :, 2])
        states[:, :, 4] = speed * np.sin(states[:, :, 2])
        heads = _NO_LIGHTS
        if lights is not None:
            shown = np.hypot(*(self._graph.light_pose[:, :2] - ego[:2]).T) < self._reach
            heads = np.column_stack([self._graph.light_pose, np.asarray(lights, dtype=np.float64)])[shown]
            heads[:, :2] -= origin
        here = np.zeros(11)
        here[:3] = ego[0] - origin[0], ego[1] - origin[1], ego[2]
        return Scene(
            token="now", origin=origin, ego=here, ego_history=None, centerline=here[None, :3], speed_limit=0.0,
            polygons=self._tiles[tile], tracks=Tracks(actors.kind, actors.size, states, actors.ids),
            red_lights=RedLights(np.zeros(0, dtype=np.int64), np.zeros((0, 1), dtype=bool)),
            light_heads=heads, town=self._graph.town,
        )  # fmt: skip


class Rig:
    """The cameras of one car; close it when done."""

    def __init__(self, specs: Sequence[CameraSpec]) -> None:
        self._cameras = {spec.name: CameraRenderer(spec) for spec in specs}

    def render(self, scene: Scene) -> dict[str, npt.NDArray[np.uint8]]:
        """camera name -> RGB uint8 [height, width, 3]."""
        return {name: camera.render(scene) for name, camera in self._cameras.items()}

    def close(self) -> None:
        """Free the drawing buffers."""
        for camera in self._cameras.values():
            camera.close()

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
