"""What the VLA sees in a closed loop: a route's part of a town, drawn again and again as the ego moves.

The road plane is painted once per tile of the town, with all that can be seen from there, and stays in the renderer while the
camera moves over it; per frame only solids and shadows are built. The painters are those of NavSim's scenes (``ground``,
``solids``).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from vla_models.geometry import from_frame
from vla_models.render.camera import CameraSpec, Canvas, shared_engine
from vla_models.render.ground import SHADOW, WHITE, YELLOW, paint_ground, view_from_above
from vla_models.render.solids import build_solids, solids
from vla_models.scenes.lanes import FloatArray, LaneGraph
from vla_models.scenes.routes import make_road_net
from vla_models.scenes.scene import AGENT_KINDS, DT, Polygons, RedLights, Scene, Tracks
from vla_models.scenes.strips import Strips
from vla_models.scenes.surfaces import cut, make_surfaces

TILE: Final = 32.0
"""Metres; side of a tile."""
SIGHT: Final = 80.0
"""Metres from the ego up to which the town is drawn, by default."""

PIECE: Final = 40.0
"""Metres; side of the squares in which the road plane is culled."""

_Piece = tuple[int, npt.NDArray[np.float32], npt.NDArray[np.uint8]]
"""Painting order, positions, colours: see ``Canvas.lay``."""
_NOTHING: Final = Polygons(np.zeros((0, 2)), np.zeros(1, np.int64), np.zeros(0, np.int8), np.zeros(0, bool), ())
_SIGN: Final = AGENT_KINDS.index("czone_sign")
_BLOCK: Final = AGENT_KINDS.index("generic_object")
_SIGN_SIZE: Final = (0.3, 0.8, 2.4)
_SIGN_RED: Final = (190, 22, 26)
_HOUSES: Final = ((168, 150, 132), (142, 134, 128), (178, 160, 120), (124, 112, 108), (186, 178, 168))
_HOUSE_EVERY: Final = 22
"""Stations (about metres) between places where a house is tried."""
_SETBACK: Final = 15.0
"""Metres from a lane's right border to a house's middle."""
_CLEAR: Final = 12.0
"""Metres that a house's middle keeps from every lane's centre line, and twice that from other houses."""


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


@dataclass(frozen=True)
class _Frame:
    """One moment, ready for any camera."""

    ground: list[_Piece]
    """The tile's road plane; the same list as long as the ego stays on the tile."""
    scene: Scene
    standing: npt.NDArray[np.uint8]
    """[S, 3] colours of the standing things, which come after the actors."""


class TownView:
    """One route's surroundings as frames for any number of cameras."""

    def __init__(self, graph: LaneGraph, sight: float = SIGHT) -> None:
        """``graph``: the route's part of the town (``surroundings``); ``sight``: how far one sees, metres."""
        self._graph = graph
        self._surfaces = make_surfaces(make_road_net(graph))
        self._sight, self._reach = sight, sight + TILE * 0.75
        self._tiles: dict[tuple[int, int], list[_Piece]] = {}
        houses = _houses(graph)
        self.houses: FloatArray = houses
        """[H, 3] middles and headings of the simple buildings."""
        self._standing = np.concatenate([graph.stop_pose, houses])
        count = len(graph.stop_pose)
        self._kinds = np.array([_SIGN] * count + [_BLOCK] * len(houses), dtype=np.int8)
        self._sizes = np.array([_SIGN_SIZE] * count + [_house_size(pose) for pose in houses]).reshape(-1, 3)
        self._colours = np.array(
            [_SIGN_RED] * count + [_HOUSES[_number(pose) % len(_HOUSES)] for pose in houses], dtype=np.uint8
        ).reshape(-1, 3)

    def frame(self, ego: FloatArray, actors: Actors, lights: npt.ArrayLike | None = None) -> _Frame:
        """The moment, to be drawn by cameras.

        ``ego`` [3]: the rear axle's pose in the town's frame; ``lights`` [T]: 0 green, 1 yellow, 2 red for the rows of the
        graph's ``light_pose`` (without it no light is drawn).
        """
        tile = (int(np.floor(ego[0] / TILE)), int(np.floor(ego[1] / TILE)))
        origin = (np.array(tile) + 0.5) * TILE
        if tile not in self._tiles:
            self._tiles[tile] = self._paint(origin)
        seen = _within(actors.pose, ego, self._sight)
        stands = _within(self._standing, ego, self._sight)
        pose = np.concatenate([actors.pose[seen], self._standing[stands]])
        moving = np.concatenate([actors.speed[seen], np.full(len(stands), 1.0)])
        speed = np.stack([moving, moving], axis=1)
        speed[: len(seen), 1] += DT * actors.acceleration[seen]
        states = np.empty((len(pose), 2, 5))
        states[:, :, :2] = pose[:, None, :2] - origin
        states[:, :, 2] = pose[:, None, 2]
        states[:, :, 3] = speed * np.cos(pose[:, 2:])
        states[:, :, 4] = speed * np.sin(pose[:, 2:])
        names = [actors.ids[i] for i in seen.tolist()] + [""] * len(stands)
        tracks = Tracks(
            np.concatenate([actors.kind[seen], self._kinds[stands]]),
            np.concatenate([actors.size[seen], self._sizes[stands]]), states, tuple(names),
        )  # fmt: skip
        heads = np.zeros((0, 4))
        if lights is not None:
            shown = _within(self._graph.light_pose, ego, self._sight)
            heads = np.column_stack([self._graph.light_pose[shown], np.asarray(lights, dtype=np.float64)[shown]])
            heads[:, :2] -= origin
        here = np.zeros(11)
        here[:3] = ego[0] - origin[0], ego[1] - origin[1], ego[2]
        return _Frame(self._tiles[tile], _scene(here, tracks, heads, _NOTHING, []), self._colours[stands])

    def _paint(self, origin: FloatArray) -> list[_Piece]:
        """The road plane around a tile's middle, in the tile's frame, with a line before every light and stop sign."""
        graph = self._graph
        polygons, index = cut(self._surfaces, float(origin[0]), float(origin[1]), self._reach, [])
        lanes = np.unique(np.concatenate([graph.light_lanes, graph.stop_lanes]))
        lines = [index[p] for p in self._surfaces.lane_polygon[lanes].tolist() if p in index]
        nobody = Tracks(np.zeros(0, np.int8), np.zeros((0, 3)), np.zeros((0, 2, 5)), ())
        scene = _scene(np.zeros(11), nobody, np.zeros((0, 4)), polygons, lines)
        everywhere = (0.0, -self._reach, self._reach)
        return _pieces(*paint_ground(scene, np.array([0.0, 0.0, np.pi / 2]), np.zeros((0, 4, 2)), everywhere))


def _pieces(pos: npt.NDArray[np.float32], rgb: npt.NDArray[np.uint8]) -> list[_Piece]:
    """Triangles in painting order [3m, 3], [3m, 4], sorted into squares of ``PIECE`` metres.

    Surfaces of one colour in a row may be painted in any order, and so may all lines, which come last.
    """
    first = rgb[::3]
    line = np.all(first[:, :3] == WHITE, axis=1) | np.all(first[:, :3] == YELLOW, axis=1)
    changes = np.concatenate([[False], np.any(first[1:] != first[:-1], axis=1)]) & ~line
    order = np.cumsum(changes)
    order[line] = order.max(initial=0) + 1
    middle = pos.reshape(-1, 3, 3)[..., :2].mean(axis=1)
    square = np.floor(middle / PIECE).astype(np.int64)
    keys, which = np.unique(np.column_stack([order, square]), axis=0, return_inverse=True)
    rows = np.arange(len(pos)).reshape(-1, 3)
    return [
        (int(key[0]), pos[chosen], rgb[chosen]) for k, key in enumerate(keys) for chosen in [rows[which.ravel() == k].ravel()]
    ]


def _scene(ego: FloatArray, tracks: Tracks, heads: FloatArray, polygons: Polygons, lines: list[int]) -> Scene:
    """A tile's part of a ``Scene`` that the painters read; stop lines are painted before the polygons ``lines``."""
    return Scene(
        token="now", origin=np.zeros(2), ego=ego, ego_history=None, centerline=ego[None, :3], speed_limit=0.0,
        polygons=polygons, tracks=tracks, light_heads=heads,
        red_lights=RedLights(np.array(lines, dtype=np.int64), np.ones((len(lines), 1), dtype=bool)),
    )  # fmt: skip


class Rig:
    """The cameras of one car; close it when done."""

    def __init__(self, specs: Sequence[CameraSpec]) -> None:
        shared = shared_engine()
        self._cameras = [(spec, Canvas(spec, shared)) for spec in specs]
        self._laid: list[_Piece] | None = None

    def render(self, frame: _Frame) -> dict[str, npt.NDArray[np.uint8]]:
        """camera name -> RGB uint8 [height, width, 3] of a moment (``TownView.frame``)."""
        things = solids(frame.scene)
        first = len(frame.scene.tracks) - len(frame.standing)
        things.colours[first : len(frame.scene.tracks), 0] = frame.standing
        if self._laid is not frame.ground:
            self._laid = frame.ground
            for _, canvas in self._cameras:
                canvas.lay(frame.ground)
        images = {}
        for spec, canvas in self._cameras:
            x, y, z = spec.position
            mast = from_frame(np.array([x, y, math.radians(spec.yaw)]), frame.scene.ego[:3])
            view = view_from_above(math.radians(spec.fov), spec.height / spec.width, math.radians(spec.pitch))
            pos, rgb, shadows = build_solids(things, mast, z, view)
            images[spec.name] = canvas.draw(None, (pos, rgb), _dark(shadows), (mast[0], mast[1], mast[2]))
        return images

    def close(self) -> None:
        """Free the drawing buffers; calling it twice is fine."""
        for _, canvas in self._cameras:
            canvas.close()
        self._cameras = []

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _within(pose: FloatArray, ego: FloatArray, sight: float) -> npt.NDArray[np.int64]:
    """Rows of poses [n, 3] within ``sight`` metres of the ego."""
    return np.flatnonzero(np.hypot(pose[:, 0] - ego[0], pose[:, 1] - ego[1]) < sight)


def _dark(quads: FloatArray) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Triangles of shadows [n, 4, 2]."""
    pos = np.zeros((len(quads) * 6, 3), np.float32)
    pos[:, :2] = quads[:, (0, 1, 2, 0, 2, 3)].reshape(-1, 2)
    return pos, np.tile(np.array([*SHADOW, 255], np.uint8), (len(pos), 1))


def _number(pose: FloatArray) -> int:
    """A number that depends on the place alone."""
    return zlib.crc32(np.round(pose[:2]).astype(np.int64).tobytes())


def _house_size(pose: FloatArray) -> tuple[float, float, float]:
    n = _number(pose)
    return 9.0 + n % 7, 8.0 + n // 7 % 5, 5.0 + n // 35 % 3 * 3.0


def _houses(graph: LaneGraph) -> FloatArray:
    """[H, 3] middles of simple buildings along the roads, clear of every lane; the same for the same town."""
    rows = np.arange(0, len(graph.arc), _HOUSE_EVERY)
    lane = np.searchsorted(graph.offsets, rows, side="right") - 1
    rows = rows[(graph.junction[lane] < 0) & (graph.right_lane[lane] < 0)]
    across = graph.right[rows] - graph.left[rows]
    unit = across / np.maximum(np.hypot(*across.T), 1e-9)[:, None]
    middle = graph.right[rows] + _SETBACK * unit
    _, _, _, away = Strips.driving(graph).nearest(middle)
    kept: list[FloatArray] = []
    for k in np.flatnonzero(away > _CLEAR).tolist():
        if all(np.hypot(*(middle[k] - other[:2])) > 2.0 * _CLEAR for other in kept):
            kept.append(np.array([*middle[k], graph.center[rows[k], 2]]))
    return np.array(kept).reshape(-1, 3)
