"""Official metric caches (navsim 1.1 and 2.2) as scenes: ``read_metric_cache``.

A metric cache is what the official score reads of a scene: PDM-Closed's trajectory, the ego's state, the other agents at each
0.1 s, the route's centre line and lanes, the map around the ego; version 2.2 adds red lights, the ego's past and the human's
plan (navsim/planning/metric_caching/metric_cache.py). They are read through ``scenes.restricted``, without navsim.

What a metric cache does not have: cameras, the driving command (``scenes.navsim`` adds both from the logs) and the speed
limit. A cache of version 1.1 knows neither red lights nor the past nor the human: scored as v2, TLC and HC are 1 and nothing is
filtered.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from vla_models.errors import SceneError
from vla_models.geometry import arc_lengths, project, to_frame, wrap_angle
from vla_models.scenes.pickled import MAP_LAYERS, METRIC_CACHE, OBJECT_TYPES, ORIGINAL_SCENE, Geometry
from vla_models.scenes.restricted import Record, read_pickle
from vla_models.scenes.scene import AGENT_KINDS, LAYERS, PLAN_STEPS, TRACK_STEPS, Polygons, RedLights, Scene, Tracks

FloatArray = npt.NDArray[np.float64]

UNKNOWN_SPEED_LIMIT: Final = 15.0
"""m/s, PDM-Closed's own target where the map has no limit (metric_cache_processor.py): a cache has the reference already."""
FILE_NAME: Final = "metric_cache.pkl"
_STEP_US: Final = 100_000
_LONGEST_PAST_US: Final = 5_000_000
_RED: Final = "red_light_"
_MAP_REACH: Final = 90.0
"""Metres around the ego within which a cache's map (radius 100 m) has every lane."""
_ROUTE_STEP: Final = 5.0
_ROUTE_POINTS: Final = 10
_BOX_TOLERANCE: Final = 1e-3
"""Metres between the box of an agent at its first appearance and its outline later on."""


def read_metric_cache(path: str | Path) -> Scene:
    """The scene in an official ``metric_cache.pkl``; its token is the folder's name, its town the map's.

    Raises SceneError, naming file and part, for what is damaged or missing; UnsafePickleError for what is no metric cache.
    """
    path = Path(path)
    cache = read_pickle(path, METRIC_CACHE)
    if not isinstance(cache, Record) or cache.name != "MetricCache":
        raise SceneError(f"{path} holds a {getattr(cache, 'name', type(cache).__name__)}, not a MetricCache")
    try:
        return _scene(cache, path)
    except SceneError as error:
        raise type(error)(f"{path}: {error}") from error
    except (AttributeError, TypeError, ValueError, IndexError, KeyError) as error:
        raise SceneError(f"{path} is not the metric cache of navsim 1.1 or 2.2 ({type(error).__name__}: {error})") from error


def metric_cache_files(folder: Path) -> list[Path]:
    """The metric caches of a folder in the official layout (LOG/TYPE/TOKEN/metric_cache.pkl), sorted; a cache's own metadata
    csv names them by absolute paths of the machine that made them and is not needed."""
    return sorted(folder.rglob(FILE_NAME))


def route_ahead(centerline: FloatArray, ego: FloatArray) -> FloatArray:
    """[10, 2] points 5, 10, … 50 m ahead along the centre line [C, 3] from where ``ego`` [11] is beside it, in the ego frame
    (``Scene.route``); past its end, the end."""
    at, _ = project(centerline, float(ego[0]), float(ego[1]))
    arc = arc_lengths(centerline)
    ahead = [np.interp(at + _ROUTE_STEP * np.arange(1, _ROUTE_POINTS + 1), arc, centerline[:, k]) for k in (0, 1)]
    return to_frame(np.stack(ahead, axis=-1), ego[:3])


def _scene(cache: Record, path: Path) -> Scene:
    now = _time(cache["ego_state"]["_time_point"])
    ego = _ego_row(cache["ego_state"])
    origin = np.round(ego[:2])
    polygons = _polygons(cache["drivable_area_map"], set(cache["route_lane_ids"]), origin)
    centerline = np.array([_pose(state) for state in cache["centerline"].args[0]])
    local = np.concatenate([origin, np.zeros(9)])
    state = cache.state
    past = state.get("past_human_trajectory")
    human = state.get("human_trajectory")
    if human is not None and state["scene_type"] != ORIGINAL_SCENE:
        human = None  # the official score filters by the human in original scenes only
    if human is not None and np.shape(human["poses"]) != (PLAN_STEPS, 3):
        raise SceneError(f"human_trajectory has shape {np.shape(human['poses'])}, expected ({PLAN_STEPS}, 3)")
    observation = cache["observation"]
    later = state.get("map_parameters") is not None
    centerline[:, :2] -= origin
    history = history_us = None
    if past is not None:
        history = np.array([_ego_row(row) - local for row in past.args[0]])
        history_us = np.array([_time(row["_time_point"]) - now for row in past.args[0]])
        if (np.diff(history_us) <= 0).any() or history_us[0] < -_LONGEST_PAST_US or history_us[-1] > 0:
            raise SceneError(f"past_human_trajectory has the times {history_us.tolist()} us before now")
    ego = ego - local
    return Scene(
        token=path.parent.name,
        origin=origin,
        ego=ego,
        ego_history=history,
        ego_history_us=history_us,
        centerline=centerline,
        speed_limit=UNKNOWN_SPEED_LIMIT,
        polygons=polygons,
        tracks=_logged_tracks(observation, origin) if later else _outlined_tracks(observation, origin),
        red_lights=_red_lights(observation, polygons, origin) if later else RedLights(*_no_lights()),
        reference=_reference(cache["trajectory"], now, origin),
        human=None if human is None else np.ascontiguousarray(human["poses"], dtype=np.float64),
        route=route_ahead(centerline, ego),
        town=state["map_parameters"]["map_name"] if later else "",
        kind=path.parent.parent.name,
        time_us=now,
    )


def _time(point: Record) -> int:
    return int(point["time_us"])


def _pose(state: Record) -> tuple[float, float, float]:
    return state["x"], state["y"], state["heading"]


def _vector(vector: Record) -> tuple[float, float]:
    return vector["_x"], vector["_y"]


def _ego_row(ego: Record) -> FloatArray:
    """Row [11] of a nuPlan EgoState. The rear axle is where nuPlan computes it: behind the centre, along the heading."""
    footprint, motion = ego["_car_footprint"], ego["_dynamic_car_state"]
    x, y, heading = _pose(footprint["_center"])
    _, front, rear = footprint["_vehicle_parameters"].args[:3]
    back = -((front + rear) / 2.0 - rear)
    row = [x + back * np.cos(heading), y + back * np.sin(heading), heading]
    row += [*_vector(motion["_rear_axle_velocity_2d"]), *_vector(motion["_rear_axle_acceleration_2d"])]
    row += [ego["_tire_steering_angle"], motion["_tire_steering_rate"]]
    return np.array([*row, motion["_angular_velocity"], motion["_angular_acceleration"]], dtype=np.float64)


def _reference(trajectory: Record, now: int, origin: FloatArray) -> FloatArray:
    """[51, 3] the planned poses, moved to exact multiples of 0.1 s where they are not there already."""
    states = trajectory.args[0]
    at = np.array([_time(state["_time_point"]) for state in states]) - now
    poses = np.array([_ego_row(state)[:3] for state in states])
    poses[:, :2] -= origin
    wanted = _STEP_US * np.arange(TRACK_STEPS)
    if at[0] > 0 or at[-1] < wanted[-1] or (np.diff(at) <= 0).any():
        raise SceneError(f"the reference trajectory spans {at[0] / 1e6} to {at[-1] / 1e6} s, 0 to 5 s are needed")
    if len(at) == TRACK_STEPS and (at == wanted).all():
        return poses
    poses[:, 2] = np.unwrap(poses[:, 2])
    moved = np.stack([np.interp(wanted, at, column) for column in poses.T], axis=-1)
    moved[:, 2] = wrap_angle(moved[:, 2])
    return moved


def _without_holes(rings: list[FloatArray]) -> FloatArray:
    """One ring [n, 2] that encloses the same area: each hole is entered and left at its vertex nearest to the outline."""
    outline = rings[0]
    for hole in rings[1:]:
        gap = np.linalg.norm(outline[:, None] - hole[None], axis=-1)
        i, j = np.unravel_index(np.argmin(gap), gap.shape)
        around = np.concatenate([hole[j:-1], hole[: j + 1]])
        outline = np.concatenate([outline[: i + 1], around, outline[i:]])
    return outline


def _polygons(drivable: Record, route: set[str], origin: FloatArray) -> Polygons:
    names, types, geometries = drivable.args[:3]
    if not len(names) == len(types) == len(geometries) or not len(names):
        raise SceneError(f"drivable_area_map has {len(names)} names, {len(types)} types and {len(geometries)} polygons")
    rings: list[FloatArray] = []
    layers: list[int] = []
    ids: list[str] = []
    for name, kind, geometry in zip(names, types, geometries, strict=True):
        if kind not in MAP_LAYERS:
            raise SceneError(f"map polygon {name!r} is of the layer {kind}, which the score does not know")
        for part in _parts(geometry):
            rings.append(_without_holes(part) - origin)
            layers.append(LAYERS.index(MAP_LAYERS[kind]))
            ids.append(str(name))
    lane = np.isin(layers, [LAYERS.index("lane"), LAYERS.index("lane_connector")])
    return Polygons(
        vertices=np.concatenate(rings),
        offsets=np.concatenate([[0], np.cumsum([len(ring) for ring in rings])]).astype(np.int64),
        layer=np.array(layers, dtype=np.int8),
        on_route=lane & np.array([name in route for name in ids]),
        ids=tuple(ids),
    )


def _parts(geometry: Any) -> list[list[FloatArray]]:
    """Polygons of a pickled geometry, each a list of rings (the official maps have MultiPolygons among intersections)."""
    if not isinstance(geometry, Geometry):
        raise SceneError(f"a {type(geometry).__name__} stands where a polygon is expected")
    return geometry.polygons()


class _Agent(NamedTuple):
    """An agent at its first appearance."""

    kind: int
    size: tuple[float, float, float]
    velocity: tuple[float, float]


def _agent(found: Record, name: str) -> _Agent:
    kind = OBJECT_TYPES.get(found["_tracked_object_type"], "")
    if kind not in AGENT_KINDS:
        raise SceneError(
            f"agent {name!r} is of the type {kind or found['_tracked_object_type']!r}, which the score does not know"
        )
    box = found["_box"]
    velocity = _vector(found["_velocity"] if "_velocity" in found.state else found["velocity"])
    return _Agent(AGENT_KINDS.index(kind), (box["_length"], box["_width"], box["_height"]), velocity)


def _tracks(agents: dict[str, _Agent], states: FloatArray) -> Tracks:
    return Tracks(
        kind=np.array([agent.kind for agent in agents.values()], dtype=np.int8),
        size=np.array([agent.size for agent in agents.values()], dtype=np.float64).reshape(-1, 3),
        states=states,
        ids=tuple(agents),
    )


def _logged_tracks(observation: Record, origin: FloatArray) -> Tracks:
    """Version 2.2: from the detections that the cache keeps beside the outlines; the score looks at 41 steps of them."""
    frames = [frame["tracked_objects"]["tracked_objects"] for frame in observation["_detections_tracks"]]
    _check_length(len(frames), 41)
    agents: dict[str, _Agent] = {}
    rows: list[tuple[int, int, list[float]]] = []
    number: dict[str, int] = {}
    for t, frame in enumerate(frames[:TRACK_STEPS]):
        seen = set()
        for found in frame:
            name = str(found["_metadata"]["track_token"])
            if name in seen:
                raise SceneError(f"agent {name!r} occurs twice at {t / 10} s")
            seen.add(name)
            if name not in agents:
                agents[name] = _agent(found, name)
                number[name] = len(number)
            velocity = _vector(found["_velocity"] if "_velocity" in found.state else found["velocity"])
            rows.append((number[name], t, [*_pose(found["_box"]["_center"]), *velocity]))
    states = np.full((len(agents), TRACK_STEPS, 5), np.nan)
    for a, t, row in rows:
        states[a, t] = row
    states[:, :, :2] -= origin
    return _tracks(agents, states)


def _outlined_tracks(observation: Record, origin: FloatArray) -> Tracks:
    """Version 1.1: outlines at each step and the agent at its first appearance. Later velocities are central differences of
    the centre, which no score reads: NC and TTC take an agent's speed from its first appearance."""
    maps = observation["_occupancy_maps"]
    _check_length(len(maps), TRACK_STEPS)
    if observation["_observation_sample_res"] != 1:
        raise SceneError("the observation is not sampled every 0.1 s")
    agents = {str(name): _agent(found, str(name)) for name, found in observation["_unique_objects"].items()}
    number = {name: k for k, name in enumerate(agents)}
    states = np.full((len(agents), TRACK_STEPS, 5), np.nan)
    for t, occupied in enumerate(maps[:TRACK_STEPS]):
        for name, outline in zip(*occupied.args[:2], strict=True):
            if not name.startswith(_RED):
                states[number[name], t, :3] = _box_pose(outline, agents[name].size, name)
    states[:, :, :2] -= origin
    for agent, track in zip(agents.values(), states, strict=True):
        present = np.flatnonzero(~np.isnan(track[:, 0]))
        if len(present) > 1:
            track[present, 3:] = np.gradient(track[present, :2], present * 0.1, axis=0)
        track[present[:1], 3:] = agent.velocity
    return _tracks(agents, states)


def _box_pose(outline: Any, size: tuple[float, float, float], name: str) -> FloatArray:
    """Centre and heading [3] of a box from its outline (front left, rear left, rear right, front right)."""
    parts = _parts(outline)
    if len(parts) != 1 or len(parts[0]) != 1 or len(parts[0][0]) != 5:
        raise SceneError(f"the outline of agent {name!r} is no box")
    corners = parts[0][0][:4]
    forward = corners[0] - corners[1] + corners[3] - corners[2]
    sides = np.linalg.norm(np.diff(parts[0][0], axis=0), axis=-1)
    if np.abs(sides - [size[0], size[1], size[0], size[1]]).max() > _BOX_TOLERANCE:
        raise SceneError(f"the outline of agent {name!r} is not the box {size[0]} x {size[1]} m of its first appearance")
    return np.array([*corners.mean(axis=0), np.arctan2(forward[1], forward[0])])


def _check_length(found: int, least: int) -> None:
    if found < least:
        raise SceneError(f"the observation has {found} steps of 0.1 s, {least} are needed")


def _no_lights() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    return np.zeros(0, dtype=np.int64), np.zeros((0, TRACK_STEPS), dtype=np.bool_)


def _red_lights(observation: Record, polygons: Polygons, origin: FloatArray) -> RedLights:
    """Version 2.2: the on-route connectors that are red, by step. Those beyond the map's reach are left out."""
    connector = LAYERS.index("lane_connector")
    where: dict[str, list[int]] = {}
    for p, name in enumerate(polygons.ids):
        if polygons.layer[p] == connector:
            where.setdefault(name, []).append(p)
    red: dict[int, npt.NDArray[np.bool_]] = {}
    for t, (names, geometries) in enumerate(observation["_occupancy_maps_tl"][:TRACK_STEPS]):
        for name, geometry in zip(names, geometries, strict=True):
            connector_id = name.removeprefix(_RED)
            if connector_id not in where:
                rings = np.concatenate([ring for part in _parts(geometry) for ring in part]) - origin
                if np.linalg.norm(rings, axis=-1).min() < _MAP_REACH:
                    raise SceneError(f"the red light of connector {connector_id!r} is near, but the map has no such connector")
                continue
            for p in where[connector_id]:
                red.setdefault(p, np.zeros(TRACK_STEPS, dtype=np.bool_))[t] = True
    if not red:
        return RedLights(*_no_lights())
    return RedLights(polygon=np.array(list(red), dtype=np.int64), red=np.stack(list(red.values())))
