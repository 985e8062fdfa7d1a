"""Cutting a scene out of simulated traffic: one moment becomes the decision, what came before history, what follows tracks."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from vla_models.geometry import to_frame, wrap_angle
from vla_models.kernels import numba
from vla_models.scenes.agent_paths import from_lane_graph
from vla_models.scenes.routes import Paths, resample_path
from vla_models.scenes.scene import COMMANDS, DT, LAYERS, PLAN_DT, PLAN_STEPS, TRACK_STEPS, RedLights, Scene, Tracks
from vla_models.scenes.signals import RED
from vla_models.scenes.stage import Stage, Unsuitable
from vla_models.scenes.surfaces import TownSurfaces, cut
from vla_models.simulation.traffic import Motion, column

FloatArray = npt.NDArray[np.float64]

WHEELBASE: Final = 3.089
"""Metres, NavSim's Pacifica."""
MAP_RADIUS: Final = 80.0
"""Metres around the ego within which map polygons belong to the scene; more where it is fast: as far as it can get at …"""
FASTER: Final = 5.0
MAP_MARGIN: Final = 8.0
"""… so many m/s more than now, and so many metres."""
TRACK_RADIUS: Final = 65.0
"""Metres around the ego within which agents belong to the scene …"""
MAX_TRACKS: Final = 40
"""… and of these the nearest so many."""
HISTORY: Final = 3
"""Poses at 0.5 s before the decision."""
LINE_BEHIND: Final = 20.0
LINE_AHEAD: Final = 120.0
"""Metres of centre line behind and ahead of the ego."""
COMMAND_AHEAD: Final = 20.0
COMMAND_OFFSET: Final = 2.0
"""The command is left (right) if the centre line so many metres ahead lies that far to the left (right): NavSim's rule."""
_SMOOTH: Final = np.full(5, 0.2)
ROUTE_POINTS: Final = 10
ROUTE_STEP: Final = 5.0
"""Route points told to the model, and the metres between them."""
_TOLD: Final = np.array([COMMAND_AHEAD, *(ROUTE_STEP * np.arange(1, ROUTE_POINTS + 1))])


@numba.njit(cache=True)
def _apart(ax, ay, ah, al, aw, bx, by, bh, bl, bw):  # type: ignore[no-untyped-def]
    """Whether two boxes (centre, heading, length, width) are disjoint: separating axes."""
    dx, dy = bx - ax, by - ay
    if dx * dx + dy * dy > 0.25 * (np.hypot(al, aw) + np.hypot(bl, bw)) ** 2:
        return True
    turned_c, turned_s = abs(np.cos(bh - ah)), abs(np.sin(bh - ah))
    c, s = np.cos(ah), np.sin(ah)
    if abs(c * dx + s * dy) > 0.5 * (al + turned_c * bl + turned_s * bw):
        return True
    if abs(-s * dx + c * dy) > 0.5 * (aw + turned_s * bl + turned_c * bw):
        return True
    c, s = np.cos(bh), np.sin(bh)
    if abs(c * dx + s * dy) > 0.5 * (bl + turned_c * al + turned_s * aw):
        return True
    return bool(abs(-s * dx + c * dy) > 0.5 * (bw + turned_s * al + turned_c * aw))


@numba.njit(cache=True)
def _keep_disjoint(center, heading, size, keep):  # type: ignore[no-untyped-def]
    """Clear ``keep`` for agents that touch an earlier kept one at any step; the first agent (the ego) that something touches
    is cleared itself. center [T, N, 2], heading [T, N], size [N, 2]."""
    steps, count = heading.shape
    for i in range(count):
        if not keep[i]:
            continue
        for j in range(i + 1, count):
            if not keep[j]:
                continue
            for t in range(steps):
                if not _apart(
                    center[t, i, 0], center[t, i, 1], heading[t, i], size[i, 0], size[i, 1],
                    center[t, j, 0], center[t, j, 1], heading[t, j], size[j, 0], size[j, 1],
                ):  # fmt: skip
                    keep[j] = False
                    if i == 0:
                        keep[0] = False
                        return
                    break


def _ego_states(stage: Stage, motion: Motion) -> FloatArray:
    """[T, 11] the ego's states over the whole simulation (columns ``EGO_COLUMNS``), consistent with its path's curvature."""
    turned = wrap_angle(np.diff(stage.drive[:, 2]))
    curvature = np.interp(motion.travelled[:, 0], np.arange(stage.points - 1) + 0.5, np.convolve(turned, _SMOOTH, mode="same"))
    speed, pose = motion.speed[:, 0], motion.pose[:, 0]
    out = np.zeros((len(pose), 11))
    out[:, :2], out[:, 2] = pose[:, :2], wrap_angle(pose[:, 2])
    out[:, 3], out[:, 5], out[:, 6] = speed, motion.acceleration[:, 0], speed * speed * curvature
    out[:, 7] = np.arctan(WHEELBASE * curvature)
    out[:, 8] = np.gradient(out[:, 7]) / DT
    out[:, 9] = speed * curvature
    out[:, 10] = np.gradient(out[:, 9]) / DT
    return out


def _moment(stage: Stage, motion: Motion) -> int:
    """The step at which the scene is cut: random among those that show what the scene is about."""
    ahead = stage.target - motion.travelled[:, 0]
    time = np.arange(len(ahead)) * DT
    with np.errstate(invalid="ignore"):
        good = (ahead >= stage.near[0]) & (ahead <= stage.near[1]) & (time >= stage.window[0]) & (time <= stage.window[1])
    good[: HISTORY * 5 + 1] = False
    good[len(good) - TRACK_STEPS + 1 :] = False
    steps = np.flatnonzero(good & np.isfinite(motion.travelled[:, 0]))
    if not len(steps):
        raise Unsuitable("the ego is never where the scene happens")
    return int(steps[int(stage.rng.integers(len(steps)))])


def cut_scene(
    stage: Stage,
    paths: Paths,
    agents: FloatArray,
    motion: Motion,
    lights: tuple[npt.NDArray[np.int64], npt.NDArray[np.int8]],
    surfaces: TownSurfaces,
    token: str,
    kind: str,
) -> Scene:
    """The scene at one moment of ``motion``, without image and reference. Raises ``Unsuitable`` where none can be cut."""
    t = _moment(stage, motion)
    graph = stage.net.graph
    future = slice(t, t + TRACK_STEPS)
    s = float(motion.travelled[t, 0])
    if not np.isfinite(motion.travelled[t + TRACK_STEPS - 1, 0]) or paths.length[0] < s + LINE_AHEAD - 10.0:
        raise Unsuitable("the route ends too early")
    ego = _ego_states(stage, motion)
    origin = ego[t, :2].copy()

    pose = motion.pose[future]
    center = pose[..., :2] + agents[:, column("center"), None] * np.stack([np.cos(pose[..., 2]), np.sin(pose[..., 2])], -1)
    distance = np.hypot(*(center[0] - origin).T)
    size = agents[:, [column("length"), column("width")]]
    keep = np.isfinite(distance) & (distance < TRACK_RADIUS)
    _keep_disjoint(np.ascontiguousarray(center), np.ascontiguousarray(pose[..., 2]), np.ascontiguousarray(size), keep)
    if not keep[0]:
        raise Unsuitable("somebody runs into the ego")
    keep[0] = False
    shown = np.flatnonzero(keep)
    shown = shown[np.argsort(distance[shown], kind="stable")][:MAX_TRACKS]
    states = np.full((len(shown), TRACK_STEPS, 5), np.nan)
    heading = pose[:, shown, 2].T
    turned = wrap_angle(np.diff(heading, axis=1)) / DT
    turning = np.concatenate([turned, turned[:, -1:]], axis=1) * agents[shown, column("center"), None]
    speed = motion.speed[future][:, shown].T
    states[..., :2] = center[:, shown].transpose(1, 0, 2) - origin
    states[..., 2] = wrap_angle(heading)
    states[..., 3] = speed * np.cos(heading) - turning * np.sin(heading)
    states[..., 4] = speed * np.sin(heading) + turning * np.cos(heading)
    gone = ~np.isfinite(states).all(axis=2)
    states[gone] = np.nan
    tracks = Tracks(
        kind=np.array([stage.kinds[i] for i in shown], dtype=np.int8),
        size=np.concatenate([size[shown], np.array([[stage.heights[i]] for i in shown]).reshape(-1, 1)], axis=1),
        states=states,
        ids=tuple(f"agent_{i:03d}" for i in shown),
    )

    on_path = paths.lane[0, max(0, int(s - LINE_BEHIND)) : int(s + LINE_AHEAD) + 2]
    first, last = stage.route.index(on_path[0]), len(stage.route) - 1 - stage.route[::-1].index(on_path[-1])
    radius = max(MAP_RADIUS, MAP_MARGIN + PLAN_STEPS * PLAN_DT * (ego[t, 3] + FASTER))
    polygons, index = cut(surfaces, float(origin[0]), float(origin[1]), radius, stage.route[first : last + 1])
    near, light_state = lights
    polygon, red = [], []
    for k, light in enumerate(near):
        steps = light_state[future, k] == RED
        if not steps.any():
            continue
        for lane in graph.governed_lanes(light):
            p = index.get(int(surfaces.lane_polygon[lane]), -1)
            if p >= 0 and polygons.on_route[p] and LAYERS[polygons.layer[p]] == "lane_connector" and p not in polygon:
                polygon.append(p)
                red.append(steps)
    heads = graph.light_pose[near]
    lit = np.hypot(*(heads[:, :2] - origin).T) < MAP_RADIUS
    light_heads = np.concatenate([heads[lit] - np.array([*origin, 0.0]), light_state[t, lit, None].astype(np.float64)], axis=1)

    at = np.arange(-min(LINE_BEHIND, s), min(LINE_AHEAD, float(paths.length[0]) - s))
    line = resample_path(stage.path.pose[0], at + s)
    line[:, :2] -= origin
    here = ego[t].copy()
    here[:2] = 0.0
    history = ego[t - 5 * HISTORY : t + 1 : 5].copy()
    history[:, :2] -= origin
    ahead = to_frame(resample_path(stage.path.pose[0], s + _TOLD), ego[t, :3])
    side = ahead[0, 1]
    command = "left" if side >= COMMAND_OFFSET else "right" if side <= -COMMAND_OFFSET else "straight"
    every = round(PLAN_DT / DT)
    return Scene(
        token=token,
        origin=origin,
        ego=here,
        ego_history=history,
        centerline=line,
        speed_limit=stage.limit(s),
        polygons=polygons,
        tracks=tracks,
        red_lights=RedLights(
            np.array(polygon, dtype=np.int64), np.array(red, dtype=np.bool_).reshape(len(polygon), TRACK_STEPS)
        ),
        human=to_frame(ego[t + every : t + PLAN_STEPS * every + 1 : every, :3], ego[t, :3]),
        command=COMMANDS.index(command),
        light_heads=light_heads,
        route=np.ascontiguousarray(ahead[1:, :2]),
        agent_paths=from_lane_graph(tracks, origin, graph),
        town=graph.town,
        kind=kind,
    )
