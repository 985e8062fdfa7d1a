"""Policies to compare with: constant velocity, a blind route follower, and a rule-based driver that sees the world's state.

Each maps a ``World`` to plans [N, T, 3], as a model would. They have no memory: the same world state gives the same plan, so
they branch with a snapshot.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from vla_models.kernels import numba
from vla_models.simulation.agents import look, meets, side_free
from vla_models.simulation.roads import (
    CAP,
    EDGE_LEFT,
    EDGE_RIGHT,
    HALF_WIDTH,
    HEADING,
    LEFT,
    OPPOSITE,
    PARKING_LEFT,
    PARKING_RIGHT,
    RIGHT,
    X,
    Y,
)
from vla_models.simulation.tables import (
    AD,
    AD_TO,
    AH,
    AHEAD,
    AS,
    AV,
    AX,
    AY,
    E_ACC,
    E_AWAKE,
    E_H,
    E_PROGRESS,
    E_SLOW_SINCE,
    E_STOP,
    E_STOPPED,
    E_TICK,
    E_V,
    E_X,
    E_Y,
    EMERGENCY,
    GAP,
    KIND,
    LEAVE_AFTER,
    LENGTH,
    PATH,
    PHASE,
    PRESENT,
    SEES,
    SINCE,
    SOLID,
    STOP_PASSED,
    TICK,
    WIDTH,
    YIELDS,
    FloatArray,
    Kind,
    Phase,
)
from vla_models.simulation.traffic import idm
from vla_models.simulation.vehicle import LENGTH as EGO_LENGTH
from vla_models.simulation.vehicle import REAR_TO_CENTER
from vla_models.simulation.vehicle import WIDTH as EGO_WIDTH
from vla_models.simulation.world import World

CLEARANCE: Final = 0.5
"""Metres between the ego and what it passes."""
SIGHT: Final = 70.0
"""Metres ahead in which the driver looks for obstacles."""
BRAKE_COMFORT: Final = 2.5
ACCEL: Final = 2.4
_WALKER, _BICYCLE, _MOVING = float(Kind.WALKER), float(Kind.BICYCLE), float(Phase.MOVING)


def constant_velocity(world: World, steps: int = 8, dt: float = 0.5) -> FloatArray:
    """Plans [N, steps, 3]: straight on at the present speed."""
    plans = np.zeros((len(world), steps, 3))
    plans[:, :, 0] = world.ego[:, 3, None] * dt * np.arange(1, steps + 1)
    return plans


def blind_follower(world: World, speed: float = 8.0, steps: int = 8, dt: float = 0.5) -> FloatArray:
    """Plans [N, steps, 3] along the route at ``speed`` (less where a bend or the limit demands it), whatever is there."""
    plans = np.zeros((len(world), steps, 3))
    t = world.tables
    for n in range(len(world)):
        _follow(t.env[n], _route(world, n), 0.0, speed, 1e9, 0.0, dt, plans[n])
    return plans


def rule_based(world: World, steps: int = 8, dt: float = 0.5) -> FloatArray:
    """Plans [N, steps, 3] of a careful driver: keeps to the route, follows and gives way like the traffic, stops at red
    lights and stop signs, drives around what stands in its lane (in the oncoming lane only when that is free), lets emergency
    vehicles pass."""
    plans = np.zeros((len(world), steps, 3))
    _rule_based(world.tables, dt, plans)
    return plans


def _route(world: World, n: int) -> FloatArray:
    t = world.tables
    return t.points[n, t.path_offsets[n, 0] : t.path_offsets[n, 1]]


@numba.njit(cache=True)
def _follow(env, route, offset, speed, gap, ahead, dt, plan):  # type: ignore[no-untyped-def]
    """Fill a plan [T, 3]: along the route, moving to the lateral ``offset``, at most ``speed``, ``gap`` metres behind
    something that drives at ``ahead``."""
    last = len(route) - 1
    c, sn = math.cos(env[E_H]), math.sin(env[E_H])
    rear_s, v, a = env[E_PROGRESS] - REAR_TO_CENTER, env[E_V], env[E_ACC]
    k = min(max(int(rear_s), 0), last)
    h = route[k, HEADING]
    d = -math.sin(h) * (env[E_X] - route[k, X]) + math.cos(h) * (env[E_Y] - route[k, Y])
    a = min(max(a, -3.0), 1.0)
    step = 0.1
    parts = round(dt / step)
    left = gap
    for t in range(len(plan)):
        for _ in range(parts):
            at = min(max(int(rear_s + REAR_TO_CENTER + 0.4 * v) + 1, 0), last)
            wanted = min(speed, route[at, CAP])
            target = idm(v, wanted, left, ahead, ACCEL, BRAKE_COMFORT, 1.2, 2.0)
            target = max(target, -4.8)
            a = min(a + 8.0 * step, max(a - 12.0 * step, target))
            after = max(0.0, v + a * step)
            moved = 0.5 * (v + after) * step
            rear_s += moved
            left -= moved - ahead * step
            v = after
            rate = min(1.6, 0.55 * v) * step
            d += min(max(offset - d, -rate), rate)
        s = rear_s
        j = min(max(math.floor(s), 0), last - 1)
        u = s - j  # beyond the ends the route goes straight on
        h = route[j, HEADING] + min(max(u, 0.0), 1.0) * (route[j + 1, HEADING] - route[j, HEADING])
        x = route[j, X] + u * (route[j + 1, X] - route[j, X]) - d * math.sin(h) - env[E_X]
        y = route[j, Y] + u * (route[j + 1, Y] - route[j, Y]) + d * math.cos(h) - env[E_Y]
        plan[t, 0], plan[t, 1] = c * x + sn * y, -sn * x + c * y
        turned = h - env[E_H]
        plan[t, 2] = math.atan2(math.sin(turned), math.cos(turned))


@numba.njit(cache=True)
def _in_the_way(me):  # type: ignore[no-untyped-def]
    """Whether an actor is one to drive around: it stands for good, or is a bicycle that crawls along the lane."""
    if me[PRESENT] == 0.0 or me[SOLID] == 0.0 or me[KIND] == _WALKER or me[LEAVE_AFTER] < 1e9:
        return False
    return me[PATH] < 0.0 or me[SINCE] > 1e17 or (me[KIND] == _BICYCLE and me[SEES] > 0.0 and me[AV] < 5.0)


@numba.njit(cache=True)
def _hide(env, actors, awake):  # type: ignore[no-untyped-def]
    """Take what one drives around out of a copy of the actors, so that only what moves is looked at."""
    for a in range(1, int(env[E_AWAKE])):
        if _in_the_way(actors[awake[a]]):
            actors[awake[a], PRESENT] = 0.0


@numba.njit(cache=True)
def _clear(t, n, env, actors, route, d, offset, last):  # type: ignore[no-untyped-def]
    """Whether one can pass at the lateral ``offset``: nothing stands there, and nobody is beside the ego (``actors``: without
    what stands)."""
    half = 0.5 * EGO_WIDTH + 0.3
    begin, end, _, _ = _blockers(
        env, t.actors[n], t.awake[n], route, offset - half, offset + half, last - env[E_PROGRESS] + 5.0
    )
    return begin > end and (abs(offset - d) < 1.0 or side_free(env, actors, t.awake[n], 0, offset, 8.0, 10.0))


@numba.njit(cache=True)
def _blockers(env, actors, awake, route, low, high, until):  # type: ignore[no-untyped-def]
    """What stands (or crawls) on the route between the offsets ``low`` and ``high``, up to ``until`` metres ahead -> first
    and last metre, and how far to the left and to the right it reaches."""
    s = env[E_PROGRESS]
    lo, hi = int(s), min(int(s + until), len(route) - 1)
    first, last, left, right = 1e9, -1e9, -1e9, 1e9
    for a in range(1, int(env[E_AWAKE])):
        me = actors[awake[a]]
        if not _in_the_way(me):
            continue
        at, along, _ = meets(route, lo, hi, low, high, me[AX], me[AY], me[AH], 0.5 * me[LENGTH], 0.5 * me[WIDTH])
        if at < 0.0 or at + along < s - 3.0:
            continue
        k = min(int(at), len(route) - 1)
        side = -math.sin(route[k, HEADING]) * (me[AX] - route[k, X]) + math.cos(route[k, HEADING]) * (me[AY] - route[k, Y])
        turn = me[AH] - route[k, HEADING]
        across = 0.5 * (abs(math.sin(turn)) * me[LENGTH] + abs(math.cos(turn)) * me[WIDTH])
        first, last = min(first, at - along), max(last, at + along + (6.0 if me[AV] > 0.0 else 0.0))
        left, right = max(left, side + across), min(right, side - across)
    return first, last, left, right


@numba.njit(cache=True)
def _dodge(env, actors, awake, route):  # type: ignore[no-untyped-def]
    """Lateral offset (0 or to the right) that keeps clear of somebody who comes over the centre line."""
    s = env[E_PROGRESS]
    k = min(int(s), len(route) - 1)
    offset = 0.0
    for a in range(1, int(env[E_AWAKE])):
        me = actors[awake[a]]
        if me[PRESENT] == 0.0 or me[SOLID] == 0.0 or me[AV] < 1.0 or me[KIND] == _WALKER:
            continue
        at, _, h = meets(
            route, k, min(k + 60, len(route) - 1), -0.5, 1.9, me[AX], me[AY], me[AH], 0.5 * me[LENGTH], 0.5 * me[WIDTH]
        )
        if at < 0.0 or math.cos(me[AH] - h) > -0.8:
            continue
        j = min(int(at), len(route) - 1)
        side = -math.sin(h) * (me[AX] - route[j, X]) + math.cos(h) * (me[AY] - route[j, Y])
        offset = min(offset, side - 0.5 * me[WIDTH] - 0.5 * EGO_WIDTH - 0.4)
    return max(offset, 0.5 * EGO_WIDTH + 0.15 - route[k, EDGE_RIGHT])


@numba.njit(cache=True)
def _oncoming_free(env, actors, awake, route, first, last, offset):  # type: ignore[no-untyped-def]
    """Whether nobody who comes the other way would meet the ego beside an obstacle that it passes at the lateral ``offset``."""
    s, v = env[E_PROGRESS], max(env[E_V], 3.0)
    stretch = last + 10.0 - s
    seconds = stretch / (0.5 * (v + 8.0)) + 2.0
    for a in range(1, int(env[E_AWAKE])):
        me = actors[awake[a]]
        if me[PRESENT] == 0.0 or me[SOLID] == 0.0 or me[AV] < 0.3:
            continue
        far = stretch + me[AV] * seconds + 10.0
        k0, k1 = int(s), min(int(s + far), len(route) - 1)
        at, _, h = meets(
            route, k0, k1, offset - 0.5 * EGO_WIDTH - 0.4, offset + 0.5 * EGO_WIDTH + 0.6, me[AX], me[AY], me[AH],
            0.5 * me[LENGTH], 0.5 * me[WIDTH],
        )  # fmt: skip
        if at > s - 3.0 and math.cos(me[AH] - h) < 0.0:
            return False
        if at < 0.0 and s + far > len(route):  # beyond the route's end: by distance along the last direction
            h = route[len(route) - 1, HEADING]
            dx, dy = me[AX] - route[len(route) - 1, X], me[AY] - route[len(route) - 1, Y]
            ahead, side = math.cos(h) * dx + math.sin(h) * dy, -math.sin(h) * dx + math.cos(h) * dy
            if 0.0 < ahead < s + far - len(route) and abs(side - offset) < 2.5 and math.cos(me[AH] - h) < 0.0:
                return False
    return True


@numba.njit(cache=True)
def _waited(env):  # type: ignore[no-untyped-def]
    """Seconds that the ego has stood."""
    return (env[E_TICK] - env[E_SLOW_SINCE]) * TICK


@numba.njit(cache=True)
def _time_to(distance, v, wanted):  # type: ignore[no-untyped-def]
    """Seconds to drive ``distance`` metres from speed ``v``, accelerating to ``wanted`` (with a little delay, and not quite
    as hard as one means to)."""
    if distance <= 0.0:
        return 0.0
    wanted = max(wanted, v, 1.0)
    accel = 0.85 * ACCEL
    delay = 0.3 if v < 1.0 else 0.0
    run = (wanted * wanted - v * v) / (2.0 * accel)
    if run >= distance:
        return delay + (math.sqrt(v * v + 2.0 * accel * distance) - v) / accel
    return delay + (wanted - v) / accel + (distance - run) / wanted


@numba.njit(cache=True)
def _crossing_gap(env, actors, awake, cross, first_row, last_row, stops, first_stop, last_stop, points, offsets):  # type: ignore[no-untyped-def]
    """Metres to where the ego has to wait for somebody with the right of way on a crossing path (1e9: nowhere). Who has
    waited long takes smaller gaps. Takes those out of ``actors``, a copy, who will have passed before the ego is there."""
    s, v = env[E_PROGRESS], env[E_V]
    gap = 1e9
    route = points[offsets[0] : offsets[1]]
    patience = max(0.0, 1.0 - _waited(env) / 30.0)
    passed = np.zeros(int(env[E_AWAKE]), dtype=np.bool_)
    for e in range(first_row, last_row):
        mine = cross[e, 1] - s - 0.5 * EGO_LENGTH
        if mine < -1.0 or mine > 60.0:
            continue
        cap = min(12.0, route[min(int(cross[e, 1]), len(route) - 1), CAP])
        enter, leave = _time_to(mine - 1.0, v, cap), _time_to(mine + EGO_LENGTH + 1.5, v, cap)
        other = points[offsets[int(cross[e, 0])] : offsets[int(cross[e, 0]) + 1]]
        a, b = min(int(cross[e, 1]) + 12, len(route) - 1), min(int(cross[e, 2]) + 12, len(other) - 1)
        merges = math.hypot(route[a, X] - other[b, X], route[a, Y] - other[b, Y]) < 3.0
        entry = min(math.sqrt(v * v + 2.0 * ACCEL * max(mine, 0.0)), cap)
        calm = 0.0 if v < 6.0 and env[E_ACC] > 0.3 and mine < 10.0 else patience  # once off, one goes on
        for a in range(1, int(env[E_AWAKE])):
            me = actors[awake[a]]
            if me[PATH] != cross[e, 0] or me[PRESENT] == 0.0 or me[SOLID] == 0.0 or me[PHASE] != _MOVING:
                continue
            theirs = cross[e, 2] - me[AS] - 0.5 * me[LENGTH]
            if theirs < -me[LENGTH] - 4.0 or theirs > 90.0:
                continue
            if me[YIELDS] > 0.0 and cross[e, 3] > cross[e, 4]:
                continue
            w = me[AV]
            if w < 0.3 and theirs > 1.0:
                continue
            come, gone = max(theirs - 2.0, 0.0) / max(w, 2.0), (theirs + me[LENGTH] + 1.0) / max(w, 2.0)
            safe = leave - 0.5
            if merges:  # one need not be gone, only as fast as they are before they arrive
                safe = enter + ((max(w - entry, 0.0)) ** 2 / (1.7 * ACCEL) + 3.0) / max(w, 2.0)
            if gone + 0.4 * calm - 0.3 < enter:
                passed[a] = True
                continue
            if come > safe + 1.5 * calm:
                continue
            stop = mine - (7.0 if me[YIELDS] == 0.0 else 1.5)  # a running start for a gap between those who do not brake
            for q in range(first_stop, last_stop):  # rather at the stop line than behind it
                line = stops[q, 0] - s - 0.5 * EGO_LENGTH
                if 0.0 < line < mine and mine - line < 12.0:
                    stop = line
            if mine - 0.3 < v * v / (2.0 * 4.8):
                continue  # too late to stop: go on
            gap = min(gap, max(stop, 0.0) + 1.5)
    for a in range(len(passed)):
        if passed[a]:
            actors[awake[a], PRESENT] = 0.0
    return gap


@numba.njit(cache=True, nogil=True)
def _rule_based(t, dt, plans):  # type: ignore[no-untyped-def]
    """``rule_based`` on bare arrays."""
    for n in range(len(t.env)):
        env, awake = t.env[n], t.awake[n]
        route = t.points[n, t.path_offsets[n, 0] : t.path_offsets[n, 1]]
        actors = t.actors[n].copy()
        s = env[E_PROGRESS]
        k = min(int(s), len(route) - 1)
        me = actors[0]
        d = me[AD]
        offset, wait, speed = 0.0, 1e9, 1e9
        half = 0.5 * EGO_WIDTH + CLEARANCE
        # an obstacle in the lane: on which side is there room?
        first, last, left, right = _blockers(env, actors, awake, route, -half, half, SIGHT)
        if last > first:
            first, last, left, right = _blockers(env, actors, awake, route, -half, half, last - s + 12.0)
            at = min(int(max(first, s)), len(route) - 1)
            room = first - s - 0.5 * EGO_LENGTH
            to_left, to_right = left + half, right - half
            _hide(env, actors, awake)
            passing = False
            if room < 1.0 and abs(d - (to_left if d > 0.0 else to_right)) < 0.8:  # beside it already
                offset, passing = (to_left if d > 0.0 else to_right), True
            elif to_left + 0.5 * EGO_WIDTH < route[at, EDGE_LEFT] + 0.2 and _clear(t, n, env, actors, route, d, to_left, last):
                offset, passing = to_left, True
            elif to_right - 0.5 * EGO_WIDTH > -route[at, EDGE_RIGHT] - 0.2 and _clear(
                t, n, env, actors, route, d, to_right, last
            ):
                offset, passing = to_right, True
            elif (
                0.0 < to_left < route[at, OPPOSITE] + 1.0
                and room < 45.0
                and _clear(t, n, env, actors, route, d, to_left, last)
                and _oncoming_free(env, actors, awake, route, first, last, to_left)
            ):
                offset, passing = to_left, True
            if passing:
                if abs(offset - d) > 0.4 and room < 14.0:
                    speed = max(2.5, 0.35 * room)
                if last - s < 15.0 or room < 8.0:
                    speed = min(speed, 8.0)
            else:
                actors[:, PRESENT] = t.actors[n, :, PRESENT]
                wait = room - 8.0  # far enough to pull out again
        elif abs(d) > 1.2 and not side_free(env, actors, awake, 0, 0.0, max(5.0 - 0.2 * _waited(env), 0.0), 6.0):
            offset = d  # back into the lane only when it is free
            if d < -route[k, EDGE_RIGHT] + route[k, PARKING_RIGHT] or d > route[k, EDGE_LEFT] - route[k, PARKING_LEFT] + 1.0:
                wait = 0.0
        elif abs(d) > 1.2:  # out of a parking place, or back from an overtaking: past what stands beside
            _hide(env, actors, awake)
            if abs(d) > route[k, HALF_WIDTH] + 0.5:
                speed = 3.0
        if offset == 0.0 and abs(d) < 1.5:
            offset = _dodge(env, actors, awake, route)
        # an emergency vehicle behind
        for a in range(1, int(env[E_AWAKE])):
            other = actors[awake[a]]
            if other[EMERGENCY] == 0.0 or other[PRESENT] == 0.0:
                continue
            c, sn = math.cos(other[AH]), math.sin(other[AH])
            along = c * (me[AX] - other[AX]) + sn * (me[AY] - other[AY])
            if -12.0 < along < 60.0:
                if route[k, RIGHT] > 0.0:
                    offset = -route[k, RIGHT]
                elif route[k, LEFT] > 0.0:
                    offset = route[k, LEFT]
                else:
                    offset, speed = -route[k, EDGE_RIGHT] + 0.3, min(speed, 4.0)
                if abs(d - offset) < 1.0:
                    speed = min(speed, max(other[AV] - 3.0, 3.0))
        me[AD], me[AD_TO] = d, offset
        me[STOP_PASSED] = -1.0
        if env[E_STOPPED] > 0.0:
            for q in range(t.stop_offsets[n, 0], t.stop_offsets[n, 1]):
                if t.stops[n, q, 2] == env[E_STOP]:
                    me[STOP_PASSED] = t.stops[n, q, 0]
        crossing = _crossing_gap(
            env, actors, awake, t.cross[n], t.cross_offsets[n, 0], t.cross_offsets[n, 1], t.stops[n], t.stop_offsets[n, 0],
            t.stop_offsets[n, 1], t.points[n], t.path_offsets[n],
        )  # fmt: skip
        me[YIELDS] = 0.0
        look(
            env, actors, awake, 0, t.points[n], t.path_offsets[n], t.cross_offsets[n], t.cross[n], t.stop_offsets[n],
            t.stops[n], t.lights[n],
        )  # fmt: skip
        gap, ahead = me[GAP], me[AHEAD]
        nearest = min(crossing, wait)
        if nearest < gap:
            gap, ahead = max(nearest, 0.05), 0.0
        _follow(env, route, offset, speed, gap, ahead, dt, plans[n])
