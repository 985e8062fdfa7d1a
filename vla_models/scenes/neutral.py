"""Scenes as JSON: the neutral format ``pdm-scene/1``, one scene a file, plain or gzipped.

Coordinates in a file are global. Reading subtracts a whole-metre origin near the ego in float64 before anything else, which
is exact, so that reading and writing again gives the same numbers. Fields that only this package knows (images, route,
command, lamp heads, town, kind) are not part of the format and are not written.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vla_models.errors import SceneError, did_you_mean
from vla_models.files import atomic_path
from vla_models.scenes.scene import AGENT_KINDS, LAYERS, PLAN_STEPS, TRACK_STEPS, Polygons, RedLights, Scene, Tracks

FORMAT: Final = "pdm-scene/1"

_EGO_FIELDS: Final = (
    "x", "y", "heading", "vx", "vy", "ax", "ay", "steering", "steering_rate", "angular_velocity", "angular_acceleration"
)  # fmt: skip
"""Names in the file of the columns ``EGO_COLUMNS``."""

_GZIP_MAGIC: Final = b"\x1f\x8b"


class _Fields:
    """Typed access to one file's JSON; every complaint names the file and the field."""

    def __init__(self, data: dict[str, Any], path: Path) -> None:
        self.data, self.path = data, path

    def error(self, field: str, problem: str) -> SceneError:
        return SceneError(f"{self.path}: field {field!r} {problem}")

    def get(self, field: str) -> Any:
        if field not in self.data:
            raise self.error(field, f"is missing; fields present — {did_you_mean(field, self.data)}")
        return self.data[field]

    def rows(self, field: str) -> list[dict[str, Any]]:
        rows = self.get(field)
        if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
            raise self.error(field, "must be a list of objects")
        return rows

    def member(self, field: str, row: dict[str, Any], key: str) -> Any:
        if key not in row:
            raise self.error(f"{field}.{key}", "is missing")
        return row[key]

    def numbers(self, field: str, value: Any, shape: tuple[int | None, ...]) -> npt.NDArray[np.float64]:
        """``value`` as a finite float64 array of ``shape`` (None: any length)."""
        wanted = " x ".join("n" if n is None else str(n) for n in shape)
        try:
            array = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError):
            raise self.error(field, f"must be numbers ({wanted})") from None
        if array.ndim != len(shape) or any(n is not None and n != m for n, m in zip(shape, array.shape, strict=True)):
            raise self.error(field, f"has shape {array.shape}, expected {wanted}")
        if not np.isfinite(array).all():
            raise self.error(field, "has numbers that are not finite")
        return np.ascontiguousarray(array)

    def number(self, field: str, value: Any) -> float:
        return float(self.numbers(field, [value], (1,))[0])

    def code(self, field: str, name: Any, known: tuple[str, ...]) -> int:
        if name not in known:
            raise self.error(field, f"is {name!r}; {did_you_mean(str(name), known)}")
        return known.index(name)


def read_scene(path: str | Path) -> Scene:
    """The scene in a ``pdm-scene/1`` file (``.json`` or ``.json.gz``), in a local frame whose origin is ego's rounded position.

    Raises SceneError, naming file and field, for what is missing, malformed or not finite.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise SceneError(f"scene file {path} does not exist") from None
    except OSError as error:
        raise SceneError(f"scene file {path} cannot be read: {error}") from error
    return parse_scene(raw, path)


def parse_scene(raw: bytes, path: Path) -> Scene:
    """The scene in the bytes ``raw`` of a file; ``path`` names it in errors. See ``read_scene``."""
    try:
        data = json.loads(gzip.decompress(raw) if raw[:2] == _GZIP_MAGIC else raw)
    except (OSError, EOFError, ValueError) as error:  # ValueError covers JSON and UTF-8 errors; zlib's are below
        raise SceneError(f"{path} is not JSON (plain or gzipped): {error}") from error
    except Exception as error:  # zlib.error derives from Exception only
        raise SceneError(f"{path} is damaged: {error}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise SceneError(f"{path}: field 'format' is {found!r}, expected {FORMAT!r}")
    return _scene(_Fields(data, path))


def _scene(f: _Fields) -> Scene:
    ego_fields = f.get("ego")
    if not isinstance(ego_fields, dict):
        raise f.error("ego", "must be an object")
    ego = f.numbers("ego", [f.member("ego", ego_fields, k) for k in _EGO_FIELDS], (len(_EGO_FIELDS),))
    origin = np.round(ego[:2])

    def local(field: str, value: Any, columns: int, least: int = 1) -> npt.NDArray[np.float64]:
        rows = f.numbers(field, value, (None, columns))
        if len(rows) < least:
            raise f.error(field, f"has {len(rows)} rows, at least {least} are needed")
        rows[:, :2] -= origin
        return rows

    ego[:2] -= origin
    dt = f.number("dt", f.data.get("dt", 0.1))
    if dt != 0.1:
        raise f.error("dt", f"is {dt}, only 0.1 s is supported")
    history = f.data.get("ego_history")
    reference = f.data.get("reference")
    if reference is not None:
        poses = reference.get("poses") if isinstance(reference, dict) else None
        reference = local("reference.poses", poses, 3, least=TRACK_STEPS)
        if len(reference) != TRACK_STEPS:
            raise f.error("reference.poses", f"has {len(reference)} rows, expected {TRACK_STEPS}")
    human = f.data.get("human")
    polygons = _polygons(f, origin)
    return Scene(
        token=str(f.get("name")),
        origin=origin,
        ego=ego,
        ego_history=None if history is None else local("ego_history", history, len(_EGO_FIELDS), least=2),
        centerline=local("centerline", f.get("centerline"), 3, least=2),
        speed_limit=f.number("speed_limit", f.get("speed_limit")),
        polygons=polygons,
        tracks=_tracks(f, origin),
        red_lights=_red_lights(f, polygons),
        reference=reference,
        human=None if human is None else f.numbers("human", human, (PLAN_STEPS, 3)),
        time_us=int(f.number("time_us", f.get("time_us"))),
    )


def _polygons(f: _Fields, origin: npt.NDArray[np.float64]) -> Polygons:
    rings: list[npt.NDArray[np.float64]] = []
    layers: list[int] = []
    on_route: list[bool] = []
    ids: list[str] = []
    for i, row in enumerate(f.rows("map")):
        name = f"map[{i}]"
        ring = f.numbers(f"{name}.polygon", f.member(name, row, "polygon"), (None, 2))
        if len(ring) < 3:
            raise f.error(f"{name}.polygon", f"has {len(ring)} vertices, at least 3 are needed")
        rings.append(ring - origin)
        layers.append(f.code(f"{name}.type", f.member(name, row, "type"), LAYERS))
        on_route.append(bool(f.member(name, row, "on_route")))
        ids.append(str(f.member(name, row, "id")))
    return Polygons(
        vertices=np.concatenate(rings) if rings else np.zeros((0, 2)),
        offsets=np.concatenate([[0], np.cumsum([len(r) for r in rings])]).astype(np.int64),
        layer=np.array(layers, dtype=np.int8),
        on_route=np.array(on_route, dtype=np.bool_),
        ids=tuple(ids),
    )


def _tracks(f: _Fields, origin: npt.NDArray[np.float64]) -> Tracks:
    rows = f.rows("tracks")
    kind = np.zeros(len(rows), dtype=np.int8)
    size = np.zeros((len(rows), 3))
    states = np.full((len(rows), TRACK_STEPS, 5), np.nan)
    ids: list[str] = []
    for i, row in enumerate(rows):
        name = f"tracks[{i}]"
        kind[i] = f.code(f"{name}.type", f.member(name, row, "type"), AGENT_KINDS)
        size[i] = f.numbers(name, [f.member(name, row, k) for k in ("length", "width", "height")], (3,))
        states_field = f.member(name, row, "states")
        if not isinstance(states_field, list) or len(states_field) != TRACK_STEPS:
            raise f.error(f"{name}.states", f"must be a list of {TRACK_STEPS} rows (null where the agent is absent)")
        present = [t for t, state in enumerate(states_field) if state is not None]
        if present:
            states[i, present] = f.numbers(f"{name}.states", [states_field[t] for t in present], (None, 5))
        ids.append(str(f.member(name, row, "id")))
    if len(set(ids)) != len(ids):
        raise f.error("tracks", f"names an agent twice: {next(x for x in ids if ids.count(x) > 1)!r}")
    states[:, :, :2] -= origin
    return Tracks(kind=kind, size=size, states=states, ids=tuple(ids))


def _red_lights(f: _Fields, polygons: Polygons) -> RedLights:
    rows = f.rows("red_lights")
    connector = LAYERS.index("lane_connector")
    index = {name: p for p, name in enumerate(polygons.ids) if polygons.layer[p] == connector}
    where = np.zeros(len(rows), dtype=np.int64)
    red = np.zeros((len(rows), TRACK_STEPS), dtype=np.bool_)
    for i, row in enumerate(rows):
        name = f"red_lights[{i}]"
        connector_id = str(f.member(name, row, "id"))
        if connector_id not in index:
            raise f.error(
                f"{name}.id", f"is {connector_id!r}, no lane_connector of the map; {did_you_mean(connector_id, index)}"
            )
        where[i] = index[connector_id]
        red[i] = f.numbers(f"{name}.steps", f.member(name, row, "steps"), (TRACK_STEPS,)) != 0.0
    return RedLights(polygon=where, red=red)


def write_scene(scene: Scene, path: str | Path) -> None:
    """Write ``scene`` as ``pdm-scene/1`` (gzipped if ``path`` ends in ``.gz``), in global coordinates; never half a file."""
    path = Path(path)

    def out(rows: npt.NDArray[np.float64]) -> list[list[float]]:
        shifted = rows.copy()
        shifted[:, :2] += scene.origin
        listed: list[list[float]] = shifted.tolist()
        return listed

    p, tracks = scene.polygons, scene.tracks
    data = {
        "format": FORMAT,
        "name": scene.token,
        "time_us": scene.time_us,
        "dt": 0.1,
        "ego": dict(zip(_EGO_FIELDS, out(scene.ego[None])[0], strict=True)),
        "ego_history": None if scene.ego_history is None else out(scene.ego_history),
        "centerline": out(scene.centerline),
        "speed_limit": float(scene.speed_limit),
        "map": [
            {"id": p.ids[i], "type": LAYERS[p.layer[i]], "polygon": out(p.ring(i)), "on_route": bool(p.on_route[i])}
            for i in range(len(p))
        ],
        "tracks": [
            {
                "id": tracks.ids[i],
                "type": AGENT_KINDS[tracks.kind[i]],
                **dict(zip(("length", "width", "height"), tracks.size[i].tolist(), strict=True)),
                "states": [None if row[0] != row[0] else row for row in out(tracks.states[i])],
            }
            for i in range(len(tracks))
        ],
        "red_lights": [
            {"id": p.ids[scene.red_lights.polygon[i]], "steps": scene.red_lights.red[i].tolist()}
            for i in range(len(scene.red_lights))
        ],
        "human": None if scene.human is None else scene.human.tolist(),
        "reference": None if scene.reference is None else {"poses": out(scene.reference), "dt": 0.1},
    }
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).encode()
    with atomic_path(path) as temporary:
        temporary.write_bytes(gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)
