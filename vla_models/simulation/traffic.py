"""Traffic on lane paths: the Intelligent Driver Model, red lights, and giving way where paths cross, in one numba kernel.

Every vehicle keeps to its own path (a polyline with a point every metre, which its rear axle follows) and chooses only its
speed: below the limit, slow in curves, behind whatever stands or drives on its path, at red lights, and before the crossing
path of somebody who has the right of way. Pedestrians and standing objects move as told; vehicles brake for them.

The car-following law is Treiber, Hennecke and Helbing, "Congested traffic states in empirical observations and microscopic
simulations" (2000), with limited jerk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from vla_models.kernels import numba

FloatArray = npt.NDArray[np.float64]

TICK: Final = 0.1
"""Seconds between two steps."""
DRIVER: Final = 0
"""Role: a vehicle that the model drives along its path."""
SCRIPTED: Final = 1
"""Role: moves along its path at its start speed once its time has come (a pedestrian), stands before and at the end."""
STANDING: Final = 2
"""Role: stands where it starts."""

AGENT_COLUMNS: Final = (
    "length",  # m
    "width",  # m
    "center",  # m from the rear axle (the point on the path) to the box centre
    "start",  # m along the path at the first step
    "speed",  # m/s at the first step
    "speed_factor",  # desired speed as a fraction of the limit
    "max_accel",  # m/s²
    "decel",  # comfortable deceleration, m/s²
    "headway",  # s
    "min_gap",  # m
    "lateral_accel",  # m/s² that the driver accepts in curves
    "brake_time",  # s, from then on the driver brakes whatever happens (inf: never)
    "brake_decel",  # m/s² of that braking
    "brake_floor",  # m/s, the speed at which that braking ends and is held
    "hold_until",  # s, until then it does not start to move
    "role",  # DRIVER, SCRIPTED or STANDING
)
"""Columns of the agent table that ``simulate`` takes; ``new_agents`` fills them with defaults."""
_INDEX: Final = {name: k for k, name in enumerate(AGENT_COLUMNS)}

_LENGTH, _WIDTH, _CENTER, _START, _SPEED, _FACTOR, _ACCEL, _DECEL, _HEADWAY, _GAP, _LATERAL = range(11)
_BRAKE_TIME, _BRAKE_DECEL, _BRAKE_FLOOR, _HOLD, _ROLE = range(11, 16)

_NEVER = np.inf
_HARDEST_BRAKE = 8.0  # m/s², a dry road's limit
_JERK_UP, _JERK_DOWN = 0.35, 0.9  # m/s² of change per tick
_CORRIDOR = 0.25  # m that a driver wants free on each side
_CROSSING = 2.2  # m between two paths where they count as crossing
_LOOK_EVERY = 2  # ticks: a driver looks around five times a second and reckons in between


def new_agents(count: int) -> FloatArray:
    """Agent table [count, 16] (columns ``AGENT_COLUMNS``): ordinary cars and drivers, standing at the path's start."""
    agents = np.zeros((count, len(AGENT_COLUMNS)))
    for name, value in (
        ("length", 4.6), ("width", 1.9), ("center", 1.3), ("speed_factor", 0.95), ("max_accel", 1.6), ("decel", 2.2),
        ("headway", 1.3), ("min_gap", 2.0), ("lateral_accel", 2.2), ("brake_time", _NEVER), ("brake_decel", 4.0),
    ):  # fmt: skip
        agents[:, _INDEX[name]] = value
    return agents


def column(name: str) -> int:
    """Index of a column of the agent table."""
    return _INDEX[name]


@dataclass(frozen=True)
class Motion:
    """What happened: T steps ``TICK`` apart of N agents. NaN where an agent has left (its path ended)."""

    pose: FloatArray
    """[T, N, 3] rear axle x, y, heading."""
    travelled: FloatArray
    """[T, N] metres along the path."""
    speed: FloatArray
    """[T, N] m/s."""
    acceleration: FloatArray
    """[T, N] m/s²."""


@numba.njit(cache=True)
def _pose_at(pose, length, s, out):  # type: ignore[no-untyped-def]
    """Pose at ``s`` metres along one path [P, 3]."""
    s = min(max(s, 0.0), length)
    k = min(int(s), len(pose) - 2)
    u = s - k
    turned = pose[k + 1, 2] - pose[k, 2]
    turned = np.arctan2(np.sin(turned), np.cos(turned))
    out[0] = pose[k, 0] + u * (pose[k + 1, 0] - pose[k, 0])
    out[1] = pose[k, 1] + u * (pose[k + 1, 1] - pose[k, 1])
    out[2] = pose[k, 2] + u * turned


@numba.njit(cache=True)
def _meets(pose, first, last, half_width, x, y, heading, half_length_other, half_width_other):  # type: ignore[no-untyped-def]
    """Metres along a path at which a box stands on it (-1: nowhere between ``first`` and ``last``), its half extent along
    the path, and the path's heading there. The search jumps: from d metres away the box cannot be nearer than d - k after
    k metres."""
    reach = half_width + np.hypot(half_length_other, half_width_other) + _CORRIDOR
    k = first
    while k <= last:
        d = np.hypot(pose[k, 0] - x, pose[k, 1] - y)
        if d > reach:
            k += max(1, int(d - reach))
            continue
        while k < last:
            closer = np.hypot(pose[k + 1, 0] - x, pose[k + 1, 1] - y)
            if closer >= d:
                break
            d = closer
            k += 1
        h = pose[k, 2]
        c, s = np.cos(h), np.sin(h)
        dx, dy = x - pose[k, 0], y - pose[k, 1]
        turned_c, turned_s = abs(np.cos(heading - h)), abs(np.sin(heading - h))
        across = turned_s * half_length_other + turned_c * half_width_other
        along = turned_c * half_length_other + turned_s * half_width_other
        if abs(-s * dx + c * dy) < half_width + across + _CORRIDOR:
            return k + c * dx + s * dy, along, h
        return -1.0, 0.0, 0.0
    return -1.0, 0.0, 0.0


@numba.njit(cache=True)
def _first_crossing(one, one_from, one_to, two, two_from, two_to):  # type: ignore[no-untyped-def]
    """Metres along path ``one`` and ``two`` where they first come within ``_CROSSING`` of each other (-1, -1: never)."""
    a = one_from
    while a <= one_to:
        nearest = 1e9
        b = two_from
        while b <= two_to:
            d = np.hypot(one[a, 0] - two[b, 0], one[a, 1] - two[b, 1])
            if d < _CROSSING:
                return float(a), float(b)
            nearest = min(nearest, d)
            b += max(1, int(d - _CROSSING))
        a += max(1, int(nearest - _CROSSING))
    return -1.0, -1.0


@numba.njit(cache=True)
def idm(v, wanted, gap, v_ahead, accel, decel, headway, min_gap):  # type: ignore[no-untyped-def]
    """The model's acceleration: towards ``wanted`` speed, ``gap`` metres behind something that moves at ``v_ahead``."""
    free = accel * (1.0 - (v / max(wanted, 0.1)) ** 4)
    free = max(free, -1.3 * decel)
    if gap > 200.0:
        return free
    want = min_gap + max(0.0, v * headway + v * (v - v_ahead) / (2.0 * np.sqrt(accel * decel)))
    near = want / max(gap, 0.1)
    return min(free, accel * (1.0 - near * near)) if near > 1.0 else free - accel * near * near


@numba.njit(cache=True, nogil=True)
def _simulate(  # type: ignore[no-untyped-def]
    pose, limit, length, agents, stop_at, stop_light, lights, out_pose, out_s, out_v, out_a,
):  # fmt: skip
    """``simulate`` on bare arrays."""
    steps, count = out_s.shape
    points = limit.shape[1]
    cap = np.empty((count, points))
    for i in range(count):
        last = int(length[i])
        for p in range(points):
            lo, hi = max(0, p - 2), min(last, p + 2)
            cap[i, p] = limit[i, p] * agents[i, _FACTOR]
            if hi > lo:
                turned = pose[i, hi, 2] - pose[i, lo, 2]
                bend = abs(np.arctan2(np.sin(turned), np.cos(turned))) / (hi - lo)
                if bend > 1e-4:
                    cap[i, p] = min(cap[i, p], np.sqrt(agents[i, _LATERAL] / bend))
        for p in range(points - 2, -1, -1):
            cap[i, p] = min(cap[i, p], np.sqrt(cap[i, p + 1] ** 2 + 2.0 * 0.7 * agents[i, _DECEL]))
    # pairs of drivers whose paths cross: where, and who turns there (and so gives way)
    first = np.empty(count * (count - 1) // 2, dtype=np.int64)
    second = np.empty_like(first)
    where = np.empty((len(first), 2))
    rank = np.empty((len(first), 2))
    pairs = 0
    for i in range(count):
        if agents[i, _ROLE] != 0:
            continue
        for j in range(i + 1, count):
            if agents[j, _ROLE] != 0:
                continue
            a0, b0 = int(agents[i, _START]), int(agents[j, _START])
            apart = np.hypot(pose[i, a0, 0] - pose[j, b0, 0], pose[i, a0, 1] - pose[j, b0, 1])
            if apart > length[i] - a0 + length[j] - b0:
                continue
            a, b = _first_crossing(pose[i], a0, int(length[i]), pose[j], b0, int(length[j]))
            if a < 0.0:
                continue
            first[pairs], second[pairs], where[pairs, 0], where[pairs, 1] = i, j, a, b
            for k in range(2):
                w = i if k == 0 else j
                at = int(where[pairs, k])
                turned = pose[w, min(at + 8, int(length[w])), 2] - pose[w, max(at - 12, 0), 2]
                turned = np.arctan2(np.sin(turned), np.cos(turned))
                rank[pairs, k] = 0.0 if turned > 0.5 else (1.0 if turned < -0.5 else 2.0)
            pairs += 1
    s, v, a = agents[:, _START].copy(), agents[:, _SPEED].copy(), np.zeros(count)
    for i in range(count):
        if agents[i, _ROLE] == 0:
            v[i] = min(v[i], cap[i, min(int(s[i]), points - 1)] * 1.1)
        elif agents[i, _ROLE] == 2:
            v[i] = 0.0
    gone = np.zeros(count, dtype=np.bool_)
    gap, ahead = np.empty(count), np.empty(count)
    center = np.empty((count, 2))
    facing = np.empty((count, 2))
    for t in range(steps):
        now = t * TICK
        for i in range(count):
            if agents[i, _ROLE] == 0 and s[i] > length[i] - 1.0:
                gone[i] = True
            if gone[i]:
                out_pose[t, i, :] = np.nan
                out_s[t, i] = np.nan
                out_v[t, i] = np.nan
                out_a[t, i] = np.nan
                continue
            _pose_at(pose[i], length[i], s[i], out_pose[t, i])
            facing[i, 0], facing[i, 1] = np.cos(out_pose[t, i, 2]), np.sin(out_pose[t, i, 2])
            center[i, 0] = out_pose[t, i, 0] + agents[i, _CENTER] * facing[i, 0]
            center[i, 1] = out_pose[t, i, 1] + agents[i, _CENTER] * facing[i, 1]
            waiting = agents[i, _ROLE] == 1 and (now < agents[i, _HOLD] or s[i] >= length[i])
            out_s[t, i], out_v[t, i], out_a[t, i] = s[i], (0.0 if waiting else v[i]), a[i]
        # whatever is on the path, lights
        looks = t % _LOOK_EVERY == 0
        for i in range(count):
            if agents[i, _ROLE] != 0 or gone[i]:
                continue
            if not looks:
                gap[i] -= (v[i] - ahead[i]) * TICK
                continue
            gap[i], ahead[i] = 1e9, 0.0
            look = min(90.0, 12.0 + v[i] * 4.5)
            nose = agents[i, _CENTER] + agents[i, _LENGTH] / 2.0
            lo, hi = int(s[i]), min(int(length[i]), int(s[i] + nose + look))
            for j in range(count):
                if j == i or gone[j]:
                    continue
                dx, dy = center[j, 0] - center[i, 0], center[j, 1] - center[i, 1]
                if dx * dx + dy * dy > (look + 8.0) ** 2 or dx * facing[i, 0] + dy * facing[i, 1] < -12.0:
                    continue
                walker = agents[j, _ROLE] == 1
                moving = out_v[t, j]
                vx, vy = moving * facing[j, 0], moving * facing[j, 1]
                # where a walker will be when the vehicle may get there counts as much as where he is
                for k in range(3 if walker and moving > 0.0 else 1):
                    at, along, heading = _meets(
                        pose[i], lo, hi, agents[i, _WIDTH] / 2.0, center[j, 0] + 0.9 * k * vx, center[j, 1] + 0.9 * k * vy,
                        out_pose[t, j, 2], agents[j, _LENGTH] / 2.0, agents[j, _WIDTH] / 2.0,
                    )  # fmt: skip
                    if at < 0.0 or at < s[i] + agents[i, _CENTER]:
                        continue
                    free = at - along - s[i] - nose
                    if free < gap[i]:
                        gap[i] = free
                        ahead[i] = 0.0 if walker else max(0.0, moving * np.cos(out_pose[t, j, 2] - heading))
            for k in range(stop_at.shape[1]):
                if stop_light[i, k] < 0:
                    break
                free = stop_at[i, k] - s[i] - nose
                state = lights[t, stop_light[i, k]]
                if state == 0 or free < -1.0 or free > look:
                    continue
                if free < v[i] * v[i] / (2.0 * (3.5 if state == 1 else 6.0)):
                    continue  # too late to stop
                if free + 1.0 < gap[i]:
                    gap[i], ahead[i] = free + 1.0, 0.0  # it stops within a metre of the line, not min_gap before it
        # giving way: whoever arrives later, or turns, waits before the crossing
        for q in range(pairs if looks else 0):
            i, j = first[q], second[q]
            if gone[i] or gone[j]:
                continue
            di = where[q, 0] - s[i] - agents[i, _CENTER] - agents[i, _LENGTH] / 2.0
            dj = where[q, 1] - s[j] - agents[j, _CENTER] - agents[j, _LENGTH] / 2.0
            if di < 0.0 or dj < 0.0 or di > 60.0 or dj > 60.0:
                continue
            ti, tj = di / max(v[i], 1.0), dj / max(v[j], 1.0)
            if abs(ti - tj) > 4.0 or min(ti, tj) > 7.0:
                continue
            score_i = 1.5 * rank[q, 0] - ti
            score_j = 1.5 * rank[q, 1] - tj
            yields, distance = (j, dj) if score_i >= score_j else (i, di)
            distance -= 1.5
            if distance < v[yields] * v[yields] / (2.0 * 4.5):
                continue
            if distance < gap[yields]:
                gap[yields], ahead[yields] = distance, 0.0
        for i in range(count):
            if gone[i]:
                continue
            if agents[i, _ROLE] == 1:
                if now >= agents[i, _HOLD]:
                    s[i] = min(s[i] + v[i] * TICK, length[i])
                continue
            if agents[i, _ROLE] == 2:
                continue
            soon = min(int(s[i] + 0.5 * v[i]) + 1, points - 1)  # pedals take half a second
            wanted = min(cap[i, min(int(s[i]) + 1, points - 1)], cap[i, soon])
            target = idm(
                v[i], wanted, gap[i], ahead[i], agents[i, _ACCEL], agents[i, _DECEL], agents[i, _HEADWAY], agents[i, _GAP]
            )  # fmt: skip
            if now >= agents[i, _BRAKE_TIME]:
                held = -agents[i, _BRAKE_DECEL] if v[i] > agents[i, _BRAKE_FLOOR] else 0.0
                target = min(target, held)
            if now < agents[i, _HOLD]:
                target = -agents[i, _DECEL]
            target = max(-_HARDEST_BRAKE, target)
            a[i] = min(a[i] + _JERK_UP, max(a[i] - _JERK_DOWN, target))
            if v[i] + a[i] * TICK <= 0.0:
                a[i] = max(a[i], -v[i] / TICK)
            s[i] += max(0.0, v[i] * TICK + 0.5 * a[i] * TICK * TICK)
            v[i] = max(0.0, v[i] + a[i] * TICK)
            if v[i] == 0.0 and a[i] < 0.0:
                a[i] = 0.0


def simulate(
    pose: FloatArray,
    limit: FloatArray,
    length: FloatArray,
    agents: FloatArray,
    steps: int,
    stop_at: FloatArray | None = None,
    stop_light: npt.NDArray[np.int64] | None = None,
    lights: npt.NDArray[np.int8] | None = None,
) -> Motion:
    """Move N agents for ``steps`` steps of ``TICK``.

    ``pose`` [N, P, 3] and ``limit`` [N, P] (m/s) are the paths' points one metre apart, ``length`` [N] how many metres of each
    are real, ``agents`` [N, 16] the table of ``AGENT_COLUMNS``. Traffic lights: vehicle i stops ``stop_at[i, k]`` metres
    along its path while ``lights[t, stop_light[i, k]]`` is not 0 (1 yellow: only if it can stop gently, 2 red); a row of
    ``stop_light`` ends with -1. Nothing is random; equal inputs give equal bits.
    """
    count = len(agents)
    out = Motion(np.empty((steps, count, 3)), np.empty((steps, count)), np.empty((steps, count)), np.empty((steps, count)))
    if stop_at is None or stop_light is None or lights is None:
        stop_at, stop_light = np.zeros((count, 1)), np.full((count, 1), -1, dtype=np.int64)
        lights = np.zeros((steps, 1), dtype=np.int8)
    _simulate(
        np.ascontiguousarray(pose), np.ascontiguousarray(limit), np.ascontiguousarray(length), np.ascontiguousarray(agents),
        stop_at, stop_light, lights, out.pose, out.travelled, out.speed, out.acceleration,
    )  # fmt: skip
    return out
