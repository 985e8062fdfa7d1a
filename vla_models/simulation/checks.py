"""What Bench2Drive's criteria watch, tick by tick (``atomic_criteria.py`` of scenario_runner): events and the ego's log.

One environment at a time. Distances along the route stand for CARLA's way point look-ups: the route's path carries the edges
of its lanes, its stop lines and its stop signs.
"""

from __future__ import annotations

import math
from typing import Final

from vla_models.kernels import numba
from vla_models.simulation.roads import EDGE_LEFT, EDGE_RIGHT, HEADING, OPPOSITE, X, Y
from vla_models.simulation.tables import (
    AACC,
    AD,
    AD_TO,
    AH,
    AS,
    AV,
    AX,
    AY,
    BACKGROUND,
    BRAKE_UNTIL,
    E_ACC,
    E_AWAKE,
    E_BRAKE,
    E_CHECKPOINT,
    E_DONE,
    E_EVENTS,
    E_FAR_METRES,
    E_H,
    E_HIT_ACTOR,
    E_HIT_TICK,
    E_HIT_X,
    E_HIT_Y,
    E_INDEX,
    E_LATERAL,
    E_LIGHT,
    E_OTHER_SPEED,
    E_OUTSIDE,
    E_OUTSIDE_METRES,
    E_OWN_SPEED,
    E_PROGRESS,
    E_ROUTE_LENGTH,
    E_SLOW_SINCE,
    E_SPEED_POINTS,
    E_STEER,
    E_STOP,
    E_STOP_DONE,
    E_STOPPED,
    E_THROTTLE,
    E_TICK,
    E_V,
    E_X,
    E_Y,
    E_YAW_RATE,
    KIND,
    LEAVE_AFTER,
    LENGTH,
    MAX_EVENTS,
    N_ACTORS,
    N_SCENARIOS,
    NEAR_SINCE,
    PATH,
    PHASE,
    PRESENT,
    RED,
    SCENARIO,
    SEES,
    SOLID,
    STATE,
    TICK,
    WIDTH,
    WRONG_WAY,
    Event,
    Kind,
    Phase,
)
from vla_models.simulation.vehicle import LENGTH as EGO_LENGTH
from vla_models.simulation.vehicle import REAR_TO_CENTER
from vla_models.simulation.vehicle import WIDTH as EGO_WIDTH

COMPLETION: Final = 0.99
"""Part of the route after which it counts as driven, with its end within ``END_DISTANCE``."""
END_DISTANCE: Final = 10.0
LANE_TOLERANCE: Final = 0.5
WAY_OFF, OFF, OFF_PART = 30.0, 15.0, 0.3
"""Metres from the route that end an episode; metres beyond which it counts; the part of the route that may be driven so."""
BLOCKED_SPEED, BLOCKED_SECONDS = 0.1, 60.0
COLLISION_SPEED, SAME_PLACE, SAME_SECONDS = 0.1, 5.0, 5.0
STOP_NEAR, STOP_SPEED = 4.0, 0.1
CHECKPOINTS: Final = 20
WINDOW: Final = 3
"""Route points ahead at which progress looks."""
CLEARED_SECONDS: Final = 5.0
"""Seconds after which a vehicle that was hit is cleared away."""
_WALKER, _CONE, _SIGN, _BARRIER, _DEBRIS = (float(k) for k in (Kind.WALKER, Kind.CONE, Kind.SIGN, Kind.BARRIER, Kind.DEBRIS))
_GONE = float(Phase.GONE)
(
    _STATIC, _PEDESTRIAN, _VEHICLE, _LIGHT, _STOP, _MIN_SPEED, _YIELD, _TIMEOUT, _OUTSIDE, _DEVIATION, _BLOCKED, _LATE,
    _COMPLETED,
) = (int(e) for e in Event)  # fmt: skip


@numba.njit(cache=True)
def note_event(env, events, kind, value, other):  # type: ignore[no-untyped-def]
    """Append an event. A table that is full drops the rest (128 infractions have scored 0 long before)."""
    n = int(env[E_EVENTS])
    if n >= MAX_EVENTS:
        return
    row = events[n]
    row[0], row[1], row[2], row[5] = env[E_TICK], kind, value, other
    row[3], row[4] = env[E_X] + REAR_TO_CENTER * math.cos(env[E_H]), env[E_Y] + REAR_TO_CENTER * math.sin(env[E_H])
    env[E_EVENTS] = n + 1


@numba.njit(cache=True)
def boxes_touch(x, y, c, s, a, b, x2, y2, c2, s2, a2, b2):  # type: ignore[no-untyped-def]
    """Whether two boxes overlap (separating axes); a, b: half length and width, c, s: cosine and sine of the heading."""
    dx, dy = x2 - x, y2 - y
    cc, ss = abs(c * c2 + s * s2), abs(s * c2 - c * s2)
    return (
        abs(c * dx + s * dy) <= a + a2 * cc + b2 * ss
        and abs(-s * dx + c * dy) <= b + a2 * ss + b2 * cc
        and abs(c2 * dx + s2 * dy) <= a2 + a * cc + b * ss
        and abs(-s2 * dx + c2 * dy) <= b2 + a * ss + b * cc
    )


@numba.njit(cache=True)
def _push_apart(env, me, x, y, c, s):  # type: ignore[no-untyped-def]
    """Move the ego (box centre x, y) the shortest way out of what it stands in, so that it may steer clear of it -> the new
    centre."""
    dx, dy = me[AX] - x, me[AY] - y
    c2, s2 = math.cos(me[AH]), math.sin(me[AH])
    cc, ss = abs(c * c2 + s * s2), abs(s * c2 - c * s2)
    a, b, a2, b2 = 0.5 * EGO_LENGTH, 0.5 * EGO_WIDTH, 0.5 * me[LENGTH], 0.5 * me[WIDTH]
    least, ax, ay = math.inf, 0.0, 0.0
    for ux, uy, reach in (
        (c, s, a + a2 * cc + b2 * ss), (-s, c, b + a2 * ss + b2 * cc), (c2, s2, a2 + a * cc + b * ss),
        (-s2, c2, b2 + a * ss + b * cc),
    ):  # fmt: skip
        along = ux * dx + uy * dy
        depth = reach - abs(along)
        if depth < least:
            sign = -1.0 if along > 0.0 else 1.0
            least, ax, ay = depth, sign * ux, sign * uy
    env[E_X] += least * ax
    env[E_Y] += least * ay
    return x + least * ax, y + least * ay


@numba.njit(cache=True)
def collide(env, actors, awake, events, x, y):  # type: ignore[no-untyped-def]
    """Collisions of the ego (box centre x, y). Counted as ``CollisionTest`` does: not below 0.1 m/s, not again with the same
    one within 5 s, nor within 5 m of the last. What was hit: walkers and cones fall, vehicles brake and are cleared away
    after 5 s; the ego stops at whatever stands before it."""
    c, s = math.cos(env[E_H]), math.sin(env[E_H])
    for k in range(1, int(env[E_AWAKE])):
        i = awake[k]
        me = actors[i]
        if me[PRESENT] == 0.0 or me[SOLID] == 0.0:
            continue
        dx, dy = me[AX] - x, me[AY] - y
        reach = 2.7 + 0.5 * (me[LENGTH] + me[WIDTH])
        if dx * dx + dy * dy > reach * reach:
            continue
        if not boxes_touch(
            x, y, c, s, 0.5 * EGO_LENGTH, 0.5 * EGO_WIDTH, me[AX], me[AY], math.cos(me[AH]), math.sin(me[AH]), 0.5 * me[LENGTH],
            0.5 * me[WIDTH],
        ):  # fmt: skip
            continue
        kind = me[KIND]
        speed = env[E_V]
        same = env[E_HIT_ACTOR] == i and (env[E_TICK] - env[E_HIT_TICK]) * TICK < SAME_SECONDS
        near = env[E_HIT_ACTOR] >= 0.0 and math.hypot(x - env[E_HIT_X], y - env[E_HIT_Y]) < SAME_PLACE
        if speed >= COLLISION_SPEED and not same and not near:
            what = _VEHICLE
            if kind == _WALKER:
                what = _PEDESTRIAN
            elif _CONE <= kind <= _DEBRIS:
                what = _STATIC
            note_event(env, events, what, speed, i)
            env[E_HIT_TICK], env[E_HIT_X], env[E_HIT_Y], env[E_HIT_ACTOR] = env[E_TICK], x, y, i
        if kind in (_WALKER, _CONE):
            me[PHASE], me[PRESENT] = _GONE, 0.0
            continue
        if me[PATH] >= 0.0:
            if me[SEES] == 0.0:  # as ``ActorFlow``: from the first collision on all of them look where they drive
                for j in range(1, int(env[N_ACTORS])):
                    if actors[j, PATH] == me[PATH] and actors[j, SCENARIO] == me[SCENARIO]:
                        actors[j, SEES] = 1.0
            me[BRAKE_UNTIL] = math.inf
            me[AV], me[AACC] = 0.0, 0.0
            if me[NEAR_SINCE] < 0.0 or me[LEAVE_AFTER] == math.inf:
                me[NEAR_SINCE], me[LEAVE_AFTER] = env[E_TICK], CLEARED_SECONDS
        if c * dx + s * dy > 0.0:
            env[E_V], env[E_ACC] = 0.0, -speed / TICK
            x, y = _push_apart(env, me, x, y, c, s)


@numba.njit(cache=True)
def progress(env, actors, scenarios, route, x, y):  # type: ignore[no-untyped-def]
    """Where the ego (box centre x, y) is on its route, and whether it is outside the route's lanes."""
    k, last = int(env[E_INDEX]), len(route) - 1
    before = env[E_PROGRESS]
    for ahead in range(k, min(k + WINDOW, last) + 1):
        h = route[ahead, HEADING]
        if (x - route[ahead, X]) * math.cos(h) + (y - route[ahead, Y]) * math.sin(h) > 0.0:
            k = ahead
    env[E_INDEX] = k
    h = route[k, HEADING]
    dx, dy = x - route[k, X], y - route[k, Y]
    along, side = math.cos(h) * dx + math.sin(h) * dy, -math.sin(h) * dx + math.cos(h) * dy
    now = max(before, k + min(max(along, 0.0), 1.0))
    env[E_PROGRESS] = now
    ego = actors[0]
    ego[AX], ego[AY], ego[AH], ego[AV], ego[AACC] = x, y, env[E_H], env[E_V], env[E_ACC]
    ego[AS], ego[AD], ego[AD_TO] = now, side, side
    left, right = route[k, EDGE_LEFT], route[k, EDGE_RIGHT] + LANE_TOLERANCE
    if route[k, OPPOSITE] > 0.0:
        for q in range(int(env[N_SCENARIOS])):
            if scenarios[q, STATE] == 1.0 and scenarios[q, WRONG_WAY] > 0.0:
                left = max(left, route[k, OPPOSITE] + 1.75 + LANE_TOLERANCE)
    else:
        left += LANE_TOLERANCE
    env[E_OUTSIDE] = 1.0 if side > left or side < -right else 0.0
    env[E_OUTSIDE_METRES] += env[E_OUTSIDE] * (now - before)
    return now - before, math.hypot(dx - min(max(along, 0.0), 1.0) * math.cos(h), dy - min(max(along, 0.0), 1.0) * math.sin(h))


@numba.njit(cache=True)
def obey(env, events, stops, first, last, lights):  # type: ignore[no-untyped-def]
    """Red lights (the tail crosses the line while it is red, ``RunningRedLightTest``) and stop signs (``RunningStopTest``)."""
    half = 0.5 * EGO_LENGTH
    for q in range(first, last):
        at = stops[q, 0] - env[E_PROGRESS]
        if at < -12.0 or at > 12.0:
            continue
        light = stops[q, 1]
        if light >= 0.0:
            if -half - 1.0 <= at <= -0.8 * half and lights[int(light)] == RED and env[E_LIGHT] != light:
                env[E_LIGHT] = light
                note_event(env, events, _LIGHT, env[E_V], light)
        else:
            sign = stops[q, 2]
            affected = -1.5 < at < STOP_NEAR + 1.5
            if env[E_STOP] == sign:
                if env[E_V] < STOP_SPEED:
                    env[E_STOPPED] = 1.0
                if not affected:
                    if env[E_STOPPED] == 0.0 and env[E_STOP_DONE] != sign:
                        env[E_STOP_DONE] = sign
                        note_event(env, events, _STOP, env[E_V], sign)
                    env[E_STOP], env[E_STOPPED] = -1.0, 0.0
            elif affected and env[E_STOP] < 0.0 and env[E_STOP_DONE] != sign:
                env[E_STOP], env[E_STOPPED] = sign, 0.0


@numba.njit(cache=True)
def _checkpoint(env, events):  # type: ignore[no-untyped-def]
    """A min-speed event: the ego's mean speed in per cent of the traffic's since the last one (100 without traffic)."""
    percentage = 100.0
    if env[E_SPEED_POINTS] > 0.0 and env[E_OTHER_SPEED] > 0.0:
        percentage = round(100.0 * env[E_OWN_SPEED] / env[E_OTHER_SPEED] * 100.0) / 100.0
    note_event(env, events, _MIN_SPEED, percentage, -1.0)


@numba.njit(cache=True)
def compare_speed(env, actors, awake, events):  # type: ignore[no-untyped-def]
    """``MinimumSpeedRouteTest``: the ego's speed against that of the background traffic, in 20 parts of the route."""
    if env[E_PROGRESS] - env[E_CHECKPOINT] > env[E_ROUTE_LENGTH] / CHECKPOINTS:
        _checkpoint(env, events)
        env[E_CHECKPOINT] = env[E_PROGRESS]
        env[E_OWN_SPEED], env[E_OTHER_SPEED], env[E_SPEED_POINTS] = 0.0, 0.0, 0.0
    total, count = 0.0, 0
    for k in range(1, int(env[E_AWAKE])):
        i = awake[k]
        if actors[i, BACKGROUND] > 0.0 and actors[i, PRESENT] > 0.0:
            total += actors[i, AV]
            count += 1
    if count:
        env[E_OTHER_SPEED] += total / count
        env[E_OWN_SPEED] += env[E_V]
        env[E_SPEED_POINTS] += 1.0


@numba.njit(cache=True)
def finish(env, events, route, moved, away, x, y, limit):  # type: ignore[no-untyped-def]
    """End the episode where it ends: route driven, far from it, blocked, or out of time."""
    length, end = env[E_ROUTE_LENGTH], len(route) - 1
    ended = -1
    if env[E_PROGRESS] > COMPLETION * length and math.hypot(x - route[end, X], y - route[end, Y]) < END_DISTANCE:
        ended = _COMPLETED
    if away > OFF:
        env[E_FAR_METRES] += moved
    if away > WAY_OFF or env[E_FAR_METRES] > OFF_PART * length:
        ended = _DEVIATION
    if env[E_V] >= BLOCKED_SPEED:
        env[E_SLOW_SINCE] = env[E_TICK]
    elif (env[E_TICK] - env[E_SLOW_SINCE]) * TICK > BLOCKED_SECONDS:
        ended = _BLOCKED
    if ended < 0 and env[E_TICK] + 1.0 >= limit:
        ended = _LATE
    if ended < 0:
        return
    if env[E_PROGRESS] > 0.95 * length:
        _checkpoint(env, events)
    if env[E_OUTSIDE_METRES] > 0.0:
        note_event(env, events, _OUTSIDE, 100.0 * env[E_OUTSIDE_METRES] / env[E_PROGRESS], -1.0)
    note_event(env, events, ended, env[E_V], -1.0)
    env[E_DONE] = 1.0 + ended


@numba.njit(cache=True)
def write_log(env, log, x, y):  # type: ignore[no-untyped-def]
    """The tick's row of the log (``LOG_COLUMNS``)."""
    row = log[int(env[E_TICK])]
    row[0], row[1], row[2], row[3] = x, y, env[E_H], env[E_V]
    row[4] = env[E_ACC] - REAR_TO_CENTER * env[E_YAW_RATE] * env[E_YAW_RATE]
    row[5], row[6], row[7], row[8] = env[E_LATERAL], env[E_YAW_RATE], env[E_PROGRESS], env[E_OUTSIDE]
    row[9], row[10], row[11] = env[E_STEER], env[E_THROTTLE], env[E_BRAKE]
