"""Reactive traffic: NavSim v2.2's IDM vehicles, for each plan its own reaction.

Officially ``NavsimIDMTrafficAgents`` with nuPlan's ``IDMAgent``, in their standard configuration. Every vehicle of t = 0 that
stands on a lane (within 3 m of its centre line, not on top of the ego or of a vehicle before it) follows that lane's centre
line; at each 0.1 s, one after the other, it looks for what stands in its strip to the lane's end, takes what is nearest to
its own footprint, and changes its speed by one Euler step of the intelligent driver model. All the official habits that the
result depends on are kept:

* the lane does not go on: a vehicle stops at its end; the lane's last point is lost on the way (``create_path_from_se2``);
* the ego that the others see stands with its box centred on the *rear axle*, one step late;
* a vehicle's footprint reaches 1.5 s ahead of it and is what the others keep away from; red lights and everything that is
  not a vehicle are not seen; pedestrians, bicycles and objects replay their log, later vehicles never appear;
* a vehicle more than 100 m away from the ego is given up; vehicles without a lane are shown, standing still, where they were
  (in motion or not), if they stand off the lanes or far from the line, and touch nobody;
* a target speed without a speed limit is that of the vehicle before; a name that is part of another hides its owner.

Of several things that overlap the footprint equally GEOS's search tree takes the one with the lowest centre (its bounds' y)
among up to ten; here that holds for any number.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from vla_models.errors import SceneError
from vla_models.geometry import FloatArray, box_corners
from vla_models.kernels import numba
from vla_models.scenes.scene import AGENT_KINDS, AgentPaths, Tracks
from vla_models.scoring.pdm.clearance import box_gap
from vla_models.scoring.pdm.strip import (
    PATH_HEADING,
    PATH_PROGRESS,
    at_progress,
    bounds_of,
    most_vertices,
    ring_gap2,
    rings_touch,
    strip,
    trim,
)  # fmt: skip
from vla_models.scoring.pdm.track import DT, LENGTH, REAR_AXLE_TO_CENTER, STEPS, WIDTH

TARGET_SPEED: Final = 10.0
"""m/s where the map has no speed limit."""
MIN_GAP: Final = 1.0
"""Standstill distance (m)."""
HEADWAY: Final = 1.5
"""Time headway (s)."""
ACCEL_MAX: Final = 1.0
DECEL_MAX: Final = 2.0
"""m/s²."""
SNAP: Final = 3.0
"""Metres from the lane's centre line within which a vehicle reacts."""
SIGHT: Final = 100.0
"""Metres from the ego beyond which a vehicle is given up."""
PARKED_SPEED: Final = 0.1
"""m/s below which a vehicle off the lanes counts as parked."""
_SAME_POINT: Final = 1e-8

_VEHICLE: Final = AGENT_KINDS.index("vehicle")
LOGGED, REACTING, PARKED, GONE = range(4)
"""``Rails.role``: replays its log; reacts; is shown where it stood; is never shown after t = 0."""

STUCK: Final = 1
"""Status of ``react_kernel``: a vehicle does not stand in its own strip, where the official code gives up."""


class Rails(NamedTuple):
    """What reacts, prepared: A agents; entries of agents that do not react are not used."""

    role: npt.NDArray[np.int8]
    """[A] LOGGED …"""
    may_park: npt.NDArray[np.bool_]
    """[A] a vehicle that would be shown where it stood while it does not react."""
    path: FloatArray
    """[V, 4] the lanes of all agents, see ``strip.PATH_X``."""
    offsets: npt.NDArray[np.int64]
    """[A + 1]"""
    start: FloatArray
    """[A, 2] initial progress and speed."""
    target: FloatArray
    """[A] desired speed."""
    snapped: FloatArray
    """[A, 4, 2] the box that the others see before the vehicle first moves."""
    hidden: npt.NDArray[np.bool_]
    """[A, A + 1] agent a never follows agent b (last column: the ego)."""
    like_ego: npt.NDArray[np.bool_]
    """[A] agents whose name contains "ego": officially taken for it."""
    like_line: npt.NDArray[np.bool_]
    """[A] agents whose name contains "stop_line": officially taken for one."""
    vertices: int
    """Most vertices of a strip."""


def _lane(points: FloatArray, name: str) -> FloatArray:
    """A centre line [n, 3] as a path [m, 4]: nuPlan's ``create_path_from_se2``, which drops repeated points and the last."""
    step = np.hypot(np.diff(points[:, 0]), np.diff(points[:, 1]))
    progress = np.concatenate([np.zeros(1), np.cumsum(step)])
    kept = np.flatnonzero(np.abs(step) > _SAME_POINT)
    if len(kept) < 2:
        raise SceneError(f"{name} has a lane of {len(points)} points, of which nuPlan's IDM keeps {len(kept)}; it needs 2")
    path = np.column_stack([points[kept], progress[kept]])
    path[:, PATH_HEADING] = np.unwrap(path[:, PATH_HEADING])
    return path


def prepare_rails(token: str, ego: FloatArray, tracks: Tracks, lanes: AgentPaths | None) -> Rails:
    """The vehicles of the scene ``token`` as ``Rails``. SceneError, with the remedy, where their lanes are not known."""
    name = f"scene {token!r}"
    count = len(tracks)
    if lanes is None:
        raise SceneError(
            f"{name} does not know on which lanes its agents drive (agent_paths is None), so they cannot react; import it "
            "again with the nuPlan map at hand (scenes.agent_paths.from_nuplan_map), or score with traffic='log_replay'"
        )
    if len(lanes) != count or lanes.offsets.shape != (count + 1,) or lanes.snapped.shape != (count, 3):
        raise SceneError(f"{name} has agent_paths of {len(lanes)} agents for {count} tracks; make them anew for these tracks")
    c, s = np.cos(ego[2]), np.sin(ego[2])
    boxes = [np.array([ego[0] + REAR_AXLE_TO_CENTER * c, ego[1] + REAR_AXLE_TO_CENTER * s, ego[2], LENGTH, WIDTH])]
    role = np.full(count, LOGGED, dtype=np.int8)
    may_park = np.zeros(count, dtype=np.bool_)
    start, target = np.zeros((count, 2)), np.full(count, np.nan)
    snapped = np.zeros((count, 4, 2))
    paths: list[FloatArray] = []
    offsets = np.zeros(count + 1, dtype=np.int64)
    wanted = TARGET_SPEED
    for a in range(count):
        offsets[a + 1] = offsets[a]
        if tracks.kind[a] != _VEHICLE:
            continue
        now = tracks.states[a, 0]
        role[a] = GONE
        if np.isnan(now[0]):
            continue
        speed = float(np.hypot(now[3], now[4]))
        points = lanes.points[lanes.offsets[a] : lanes.offsets[a + 1]]
        off_line = float(np.hypot(lanes.snapped[a, 0] - now[0], lanes.snapped[a, 1] - now[1])) if len(points) else np.nan
        may_park[a] = (speed < PARKED_SPEED and not lanes.in_lane[a]) or off_line > SNAP
        if not len(points) or off_line > SNAP:
            continue
        if not (np.isfinite(points).all() and np.isfinite(lanes.snapped[a]).all() and np.isfinite(lanes.progress[a])):
            raise SceneError(f"{name} has agent_paths of {tracks.ids[a]!r} that are not finite; make them anew")
        box = np.array([*lanes.snapped[a], tracks.size[a, 0], tracks.size[a, 1]])
        if any(box_gap(*box, *other) == 0.0 for other in boxes):
            continue
        boxes.append(box)
        limit = float(lanes.speed_limit[a])
        if limit > 0.0:
            wanted = limit
        role[a] = REACTING
        start[a], target[a] = (lanes.progress[a], speed), wanted
        snapped[a] = box_corners(*box)
        path = _lane(points, f"{name}: agent {tracks.ids[a]!r}")
        paths.append(path)
        offsets[a + 1] += len(path)
    ids = tracks.ids
    hidden = np.array([[other in mine for other in (*ids, "ego")] for mine in ids], dtype=np.bool_).reshape(count, count + 1)
    return Rails(
        role=role, may_park=may_park, path=np.concatenate([*paths, np.zeros((0, 4))]), offsets=offsets, start=start,
        target=target, snapped=snapped, hidden=hidden, like_ego=np.array(["ego" in i for i in ids], dtype=np.bool_),
        like_line=np.array(["stop_line" in i for i in ids], dtype=np.bool_),
        vertices=max([most_vertices(path) for path in paths], default=8),
    )  # fmt: skip


class World(NamedTuple):
    """Where everything is while one plan's traffic is simulated; scratch, one a thread. Row A is the ego."""

    rings: FloatArray
    """[A + 1, 2, M, 2] footprints: a strip and a box."""
    counts: npt.NDArray[np.int64]
    """[A + 1, 2] their vertices."""
    bounds: FloatArray
    """[A + 1, 4]"""
    motion: FloatArray
    """[A, 2] progress and speed."""
    pose: FloatArray
    """[A, 3]"""
    active: npt.NDArray[np.bool_]
    """[A]"""
    shown: npt.NDArray[np.int64]
    """[A] who is there at a step."""
    line: FloatArray
    """[M, 3]"""
    corridor: FloatArray
    """[M, 2]"""
    corridor_bounds: FloatArray
    """[4]"""


def make_world(rails: Rails) -> World:
    """Scratch for ``react_kernel``."""
    count, vertices = len(rails.role), rails.vertices
    return World(
        np.empty((count + 1, 2, vertices, 2)), np.zeros((count + 1, 2), np.int64), np.empty((count + 1, 4)),
        np.empty((count, 2)), np.empty((count, 3)), np.zeros(count, np.bool_), np.empty(count, np.int64),
        np.empty((vertices, 3)), np.empty((vertices, 2)), np.empty(4),
    )  # fmt: skip


@numba.njit(cache=True, error_model="numpy")
def _principal(angle: float) -> float:
    return (angle + np.pi) % (2.0 * np.pi) - np.pi


@numba.njit(cache=True, error_model="numpy")
def _place(rails: Rails, world: World, a: int) -> None:
    """The pose at a vehicle's progress, kept within its lane."""
    path = rails.path[rails.offsets[a] : rails.offsets[a + 1]]
    at_progress(path, _within(path, world.motion[a, 0]), world.pose[a])
    world.pose[a, 2] = _principal(world.pose[a, 2])


@numba.njit(cache=True, error_model="numpy")
def _within(path: FloatArray, progress: float) -> float:
    return float(max(path[0, PATH_PROGRESS], min(progress, path[len(path) - 1, PATH_PROGRESS])))


@numba.njit(cache=True, error_model="numpy")
def _set_box(world: World, i: int, x: float, y: float, heading: float, length: float, width: float) -> None:
    c, s = math.cos(heading), math.sin(heading)
    a, b = length / 2.0, width / 2.0
    for k in range(4):  # front left, rear left, rear right, front right
        u, v = a if k == 0 or k == 3 else -a, b if k < 2 else -b
        world.rings[i, 1, k, 0], world.rings[i, 1, k, 1] = x + c * u - s * v, y + s * u + c * v
    world.counts[i, 1] = 4
    bounds_of(world.rings[i, 1, :4], world.bounds[i], world.counts[i, 0] == 0)


@numba.njit(cache=True, error_model="numpy")
def _set_footprint(rails: Rails, world: World, a: int, length: float, width: float) -> None:
    """The ground from a vehicle's rear to 1.5 s ahead of its front, and its box."""
    path = rails.path[rails.offsets[a] : rails.offsets[a + 1]]
    progress, speed = world.motion[a, 0], world.motion[a, 1]
    first, last = _within(path, progress - length / 2.0), _within(path, progress + length / 2.0 + speed * HEADWAY)
    count = trim(path, first, last, world.line)
    world.counts[a, 0] = strip(world.line, count, width / 2.0, world.rings[a, 0])
    bounds_of(world.rings[a, 0, : world.counts[a, 0]], world.bounds[a], True)
    _set_box(world, a, world.pose[a, 0], world.pose[a, 1], world.pose[a, 2], length, width)


@numba.njit(cache=True, error_model="numpy")
def _in_corridor(world: World, i: int, vertices: int) -> bool:
    """Whether footprint ``i`` touches the corridor."""
    other, bounds = world.bounds[i], world.corridor_bounds
    if other[0] > bounds[2] or other[2] < bounds[0] or other[1] > bounds[3] or other[3] < bounds[1]:
        return False
    corridor = world.corridor[:vertices]
    if rings_touch(world.rings[i, 1, : world.counts[i, 1]], corridor):
        return True
    return rings_touch(world.rings[i, 0, : world.counts[i, 0]], corridor)


@numba.njit(cache=True, error_model="numpy")
def _footprint_gap2(world: World, a: int, i: int) -> float:
    best = np.inf
    for p in (1, 0):  # boxes first: they are cheap
        for q in (1, 0):
            mine = world.rings[a, p, : world.counts[a, p]]
            best = ring_gap2(mine, world.rings[i, q, : world.counts[i, q]], best)
    return float(best)


@numba.njit(cache=True, error_model="numpy")
def _acceleration(speed: float, gap: float, lead_speed: float, target: float) -> float:
    wanted = MIN_GAP + speed * HEADWAY + speed * (speed - lead_speed) / (2.0 * math.sqrt(ACCEL_MAX * DECEL_MAX))
    ratio = wanted / max(gap, MIN_GAP)
    acceleration = ACCEL_MAX * (1.0 - (speed / target) ** 4 - ratio * ratio)
    return min(max(acceleration, -DECEL_MAX), ACCEL_MAX)


@numba.njit(cache=True, error_model="numpy")
def _advance(rails: Rails, world: World, sizes: FloatArray, ego: FloatArray, a: int) -> int:
    """One step of vehicle ``a``; ``ego`` [11] is what it sees of it."""
    count = len(rails.role)
    path = rails.path[rails.offsets[a] : rails.offsets[a + 1]]
    progress, speed = world.motion[a, 0], world.motion[a, 1]
    length, width = sizes[a, 0], sizes[a, 1]
    points = trim(path, _within(path, progress), np.inf, world.line)
    vertices = strip(world.line, points, width / 2.0, world.corridor)
    bounds_of(world.corridor[:vertices], world.corridor_bounds, True)
    if not _in_corridor(world, a, vertices):
        return STUCK
    nearest, nearest_gap, lowest = -1, np.inf, np.inf
    alone = True
    for i in range(count + 1):
        if i == a or (i < count and not world.active[i]) or not _in_corridor(world, i, vertices):
            continue
        alone = False
        if rails.hidden[a, i]:
            continue
        gap = _footprint_gap2(world, a, i)
        low = world.bounds[i, 1] + world.bounds[i, 3]
        if gap < nearest_gap or (gap == nearest_gap and low < lowest):
            nearest, nearest_gap, lowest = i, gap, low
    if alone:
        gap, lead_speed = path[len(path) - 1, PATH_PROGRESS] - progress - length / 2.0, 0.0
    elif nearest < 0:
        return STUCK
    else:
        gap, lead_speed, lead_heading = math.sqrt(nearest_gap), 0.0, world.pose[a, 2]
        if nearest == count or rails.like_ego[nearest]:
            lead_speed, lead_heading = math.hypot(ego[3], ego[4]), ego[2]
        elif not rails.like_line[nearest]:
            lead_speed, lead_heading = world.motion[nearest, 1], world.pose[nearest, 2]
        lead_speed *= math.cos(lead_heading - world.pose[a, 2])
    world.motion[a, 0] = progress + DT * speed
    world.motion[a, 1] = max(speed + DT * _acceleration(speed, gap, lead_speed, rails.target[a]), 0.0)
    _place(rails, world, a)
    _set_footprint(rails, world, a, length, width)
    return 0


@numba.njit(cache=True, error_model="numpy")
def _show(world: World, shown: int, a: int, t: int, boxes: FloatArray, x: float, y: float, heading: float) -> int:
    boxes[a, t, 0], boxes[a, t, 1], boxes[a, t, 2], boxes[a, t, 3] = x, y, math.cos(heading), math.sin(heading)
    world.shown[shown] = a
    return shown + 1


@numba.njit(cache=True, error_model="numpy")
def _meets_shown(world: World, shown: int, a: int, t: int, boxes: FloatArray, sizes: FloatArray, log: FloatArray) -> bool:
    """Whether vehicle ``a`` as it stood at t = 0 touches one that is shown at step ``t``."""
    h = math.atan2(log[a, 0, 3], log[a, 0, 2])
    for k in range(shown):
        b = world.shown[k]
        if box_gap(
            log[a, 0, 0], log[a, 0, 1], h, sizes[a, 0], sizes[a, 1],
            boxes[b, t, 0], boxes[b, t, 1], math.atan2(boxes[b, t, 3], boxes[b, t, 2]), sizes[b, 0], sizes[b, 1],
        ) == 0.0:  # fmt: skip
            return True
    return False


@numba.njit(cache=True, nogil=True, error_model="numpy")
def react_kernel(
    states: FloatArray, rails: Rails, sizes: FloatArray, log: FloatArray, world: World, boxes: FloatArray, extents: FloatArray
) -> int:
    """Traffic around one driven plan ``states`` [41, 11]: ``boxes`` [A, 51, 4] as in ``collide.Agents``, up to step 40.

    ``log`` are the recorded boxes, ``sizes`` [A, 3]. The last column of ``extents`` [A, 4], the largest displacement between
    steps, follows. Returns 0, or STUCK where the official code gives up.
    """
    count = len(rails.role)
    for a in range(count):
        world.active[a] = rails.role[a] == REACTING
        world.counts[a, 0] = 0
        world.counts[a, 1] = 0
        boxes[a, :] = np.nan
        boxes[a, 0] = log[a, 0]
        if rails.role[a] == LOGGED:
            boxes[a, :STEPS] = log[a, :STEPS]
        elif world.active[a]:
            world.motion[a] = rails.start[a]
            _place(rails, world, a)
            world.rings[a, 1, :4] = rails.snapped[a]
            world.counts[a, 1] = 4
            bounds_of(rails.snapped[a], world.bounds[a], True)
    world.counts[count, 0] = 0
    for t in range(1, STEPS):
        ego = states[t - 1]
        _set_box(world, count, ego[0], ego[1], ego[2], LENGTH, WIDTH)
        for a in range(count):
            if world.active[a] and math.hypot(world.pose[a, 0] - ego[0], world.pose[a, 1] - ego[1]) > SIGHT:
                world.active[a] = False
        for a in range(count):
            if world.active[a] and _advance(rails, world, sizes, ego, a) != 0:
                return STUCK
        shown = 0
        for a in range(count):
            if world.active[a]:
                shown = _show(world, shown, a, t, boxes, world.pose[a, 0], world.pose[a, 1], world.pose[a, 2])
        for a in range(count):
            if rails.may_park[a] and not world.active[a] and not _meets_shown(world, shown, a, t, boxes, sizes, log):
                shown = _show(world, shown, a, t, boxes, log[a, 0, 0], log[a, 0, 1], math.atan2(log[a, 0, 3], log[a, 0, 2]))
    for a in range(count):
        extents[a, 3] = 0.0
        before = -1
        for t in range(STEPS):
            if boxes[a, t, 0] != boxes[a, t, 0]:
                continue
            if before >= 0:
                moved = math.hypot(boxes[a, t, 0] - boxes[a, before, 0], boxes[a, t, 1] - boxes[a, before, 1]) / (t - before)
                extents[a, 3] = max(extents[a, 3], moved)
            before = t
    return 0
