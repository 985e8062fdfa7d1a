"""What a driver expects of the next seconds: where the others will be, where he himself would be, and whether that meets.

Kernels for ``driver``, one environment at a time. The others go on as they drive now: along their paths, behind whatever they
have seen last, at constant speed where they look at nothing. The ego follows its route at a lateral offset.
"""

from __future__ import annotations

import math
from typing import Final

from vla_models.kernels import numba
from vla_models.simulation.agents import SIDE_SPEED, place, wanted_speed
from vla_models.simulation.checks import boxes_touch
from vla_models.simulation.roads import CAP, HEADING, X, Y
from vla_models.simulation.tables import (
    AACC,
    ACCEL,
    AD,
    AD_TO,
    AH,
    AHEAD,
    AS,
    AT_END,
    AV,
    AX,
    AY,
    DECEL,
    E_ACC,
    E_AWAKE,
    E_H,
    E_PROGRESS,
    E_V,
    E_X,
    E_Y,
    F_FIRST,
    F_LAST,
    F_NEXT,
    F_PATH,
    F_SCENARIO,
    F_SPEED,
    F_STATE,
    GAP,
    HEADWAY,
    KIND,
    LENGTH,
    MIN_GAP,
    PATH,
    PHASE,
    PRESENT,
    SEES,
    SOLID,
    STATE,
    WIDTH,
    Kind,
    Phase,
)
from vla_models.simulation.traffic import idm
from vla_models.simulation.vehicle import LENGTH as EGO_LENGTH
from vla_models.simulation.vehicle import REAR_TO_CENTER
from vla_models.simulation.vehicle import WIDTH as EGO_WIDTH

STEP: Final = 0.2
STEPS: Final = 50
"""Steps of ``STEP`` seconds that are looked ahead."""
NOSE: Final = REAR_TO_CENTER + 0.5 * EGO_LENGTH
"""Metres from the rear axle to the front bumper."""
HARD: Final = 4.8
"""m/s² of braking that the ego can be trusted with."""
SLOPE: Final = 0.5
"""Metres aside per metre ahead, at most."""
SOFT: Final = 1.6
BEYOND: Final = 25
"""Steps after which nobody who looks where he drives is reckoned with, unless he comes the other way."""
NOWHERE: Final = 1e9
_MOVING, _WALKER = float(Phase.MOVING), float(Kind.WALKER)


@numba.njit(cache=True)
def expect(env, actors, awake, flows, scenarios, points, offsets, places, slots, speeds):  # type: ignore[no-untyped-def]
    """Fill ``places`` [A + F, STEPS + 1, 3]: poses (x, y, heading) of everybody awake now and after each step, and of the next
    one of each flow, who comes from further away than this world reaches (``NOWHERE`` is x before one comes and after one has
    left; the ego's own row is left as it is); ``slots`` with their rows in ``actors``, ``speeds`` with what they drive now."""
    count = int(env[E_AWAKE])
    for f in range(len(places) - count):
        _newcomer(actors, flows[f], scenarios, points, offsets, places[count + f])
        slots[count + f], speeds[count + f] = int(flows[f, F_FIRST]), flows[f, F_SPEED]
    for a in range(count):
        slots[a], speeds[a] = awake[a], actors[awake[a], AV]
    for a in range(1, count):
        me = actors[awake[a]].copy()
        if me[PRESENT] == 0.0 or me[SOLID] == 0.0:
            places[a, :, 0], places[a, :, 1:] = NOWHERE, 0.0
            continue
        if me[PHASE] != _MOVING or me[PATH] < 0.0:
            places[a, :, 0], places[a, :, 1], places[a, :, 2] = me[AX], me[AY], me[AH]
            continue
        path = points[offsets[int(me[PATH])] : offsets[int(me[PATH]) + 1]]
        for k in range(STEPS + 1):
            places[a, k, 0], places[a, k, 1], places[a, k, 2] = me[AX], me[AY], me[AH]
            v = me[AV]
            if me[SEES] > 0.0:
                pull = idm(v, wanted_speed(env, me, path), me[GAP], me[AHEAD], me[ACCEL], me[DECEL], me[HEADWAY], me[MIN_GAP])
                pull = min(max(pull, -HARD), me[AACC] + 5.0 * STEP)
                me[AV] = max(0.0, v + pull * STEP)
                me[AACC] = pull
            moved = 0.5 * (v + me[AV]) * STEP
            me[GAP] -= moved - me[AHEAD] * STEP
            me[AS] += moved
            side = min(SIDE_SPEED, 0.25 * v) * STEP
            me[AD] += min(max(me[AD_TO] - me[AD], -side), side)
            if me[AS] >= len(path) - 1.0 and me[AT_END] > 0.0:
                places[a, k + 1 :, 0], places[a, k + 1 :, 1], places[a, k + 1 :, 2] = NOWHERE, me[AY], me[AH]
                break
            place(me, path)


@numba.njit(cache=True)
def _newcomer(actors, flow, scenarios, points, offsets, places):  # type: ignore[no-untyped-def]
    """Fill ``places`` [STEPS + 1, 3] with where the next actor of a flow will be."""
    places[:, 0], places[:, 1:] = NOWHERE, 0.0
    last = int(flow[F_LAST])
    if flow[F_STATE] != 2.0 or scenarios[int(flow[F_SCENARIO]), STATE] != 1.0 or last < 0 or actors[last, PHASE] != _MOVING:
        return
    path = points[offsets[int(flow[F_PATH])] : offsets[int(flow[F_PATH]) + 1]]
    for k in range(STEPS + 1):
        s = actors[last, AS] - flow[F_NEXT] + k * STEP * flow[F_SPEED]
        at = min(max(int(s), 0), len(path) - 1)
        places[k, 1], places[k, 2] = path[at, Y], path[at, HEADING]
        if 0.0 <= s < len(path) - 1.0:
            places[k, 0] = path[at, X]


@numba.njit(cache=True)
def roll(env, route, offset, begin, until, base, speed, accel, haste, halt, gap, ahead, slope, step, out):  # type: ignore[no-untyped-def]
    """Fill ``out`` [K, 6] with what the ego would do: rear axle x, y, heading, speed, metres beside and along the route, every
    ``step`` seconds. It drives at most ``speed``, ``gap`` metres behind something that drives at ``ahead``, and stops with its
    nose at the route's metre ``halt``; beside the route by ``offset`` while between the metres ``begin`` and ``until``, by
    ``base`` else. ``haste`` scales what bends allow, ``slope`` is how many metres aside it goes per metre
    ahead, at most."""
    last = len(route) - 1
    s, v = env[E_PROGRESS] - REAR_TO_CENTER, env[E_V]
    k = min(max(int(s), 0), last)
    h = route[k, HEADING]
    d = -math.sin(h) * (env[E_X] - route[k, X]) + math.cos(h) * (env[E_Y] - route[k, Y])
    drift = v * math.sin(env[E_H] - h)
    a = min(max(env[E_ACC], -3.0), 1.0)
    parts = max(round(step / 0.1), 1)
    dt = step / parts
    left = gap
    for t in range(len(out)):
        for _ in range(parts):
            at = min(max(int(s + REAR_TO_CENTER + 0.4 * v) + 1, 0), last)
            wanted = min(speed, route[at, CAP] * haste)
            rest = halt - s - NOSE
            if rest < 200.0:
                wanted = min(wanted, math.sqrt(2.0 * SOFT * max(rest, 0.0)))
            pull = idm(v, wanted, left, ahead, accel, 2.5, 1.2, 2.0)
            if rest < 200.0 and v * v > 2.0 * SOFT * max(rest, 0.02):
                pull = min(pull, -v * v / (2.0 * max(rest, 0.02)))
            a = min(a + 8.0 * dt, max(a - 12.0 * dt, max(pull, -HARD)))
            after = max(0.0, v + a * dt)
            moved = 0.5 * (v + after) * dt
            s += moved
            left -= moved - ahead * dt
            v = after
            target = offset if begin <= s + NOSE and s < until else base
            fastest = min(1.4, slope * v)
            turn = min(max(1.5 * (target - d), -fastest), fastest) - drift
            change = min(4.0, 0.3 + slope * slope * v * v) * dt
            drift += min(max(turn, -change), change)
            drift = min(max(drift, -v), v)
            d += drift * dt
        j = min(max(math.floor(s), 0), last - 1)
        u = s - j  # beyond the ends the route goes straight on
        h = route[j, HEADING] + min(max(u, 0.0), 1.0) * (route[j + 1, HEADING] - route[j, HEADING])
        out[t, 0] = route[j, X] + u * (route[j + 1, X] - route[j, X]) - d * math.sin(h)
        out[t, 1] = route[j, Y] + u * (route[j + 1, Y] - route[j, Y]) + d * math.cos(h)
        out[t, 2] = h + (math.atan2(drift, v) if v > 0.3 else 0.0)
        out[t, 3], out[t, 4], out[t, 5] = v, d, s


@numba.njit(cache=True)
def contact(env, actors, places, slots, speeds, rolled, brakes, patience):  # type: ignore[no-untyped-def]
    """(step, row of ``places``) of the first contact of what the ego would do (``rolled`` of ``roll``) with anybody, or
    (STEPS, -1). Boxes are a little wider than the cars, and longer the faster they are; ``patience`` from 1 down to 0 scales
    that. Not the ego's business: who comes from behind and sees it. Who is expected to give way stops as it can with ``brakes``
    [A] m/s²."""
    side, room = 0.25 + 0.1 * patience, 0.3 + 0.3 * patience
    d0 = rolled[0, 4]
    c, s = math.cos(env[E_H]), math.sin(env[E_H])
    half_length, half_width = 0.5 * EGO_LENGTH, 0.5 * EGO_WIDTH
    now_x, now_y = env[E_X] + REAR_TO_CENTER * c, env[E_Y] + REAR_TO_CENTER * s
    best, who = STEPS, -1
    for a in range(1, len(places)):
        me, w = actors[slots[a]], speeds[a]
        stretch = (0.1 + 0.35 * patience) * w
        more, wide = room, side if w > 0.1 else 0.12
        long, broad = 0.5 * me[LENGTH], 0.5 * me[WIDTH]
        if me[KIND] == _WALKER:
            wide += 0.3
        near = math.hypot(places[a, 0, 0] - now_x, places[a, 0, 1] - now_y) < 8.0
        if near and boxes_touch(
            now_x, now_y, c, s, half_length + more, half_width + wide, places[a, 0, 0], places[a, 0, 1],
            math.cos(places[a, 0, 2]), math.sin(places[a, 0, 2]), long, broad,
        ):  # fmt: skip
            if w < 0.1 and boxes_touch(
                now_x, now_y, c, s, half_length + 0.05, half_width + 0.05, places[a, 0, 0], places[a, 0, 1],
                math.cos(places[a, 0, 2]), math.sin(places[a, 0, 2]), long, broad,
            ):  # fmt: skip
                continue  # has been hit
            more = wide = 0.02  # closer than one would like already
        reach = half_length + half_width + long + broad + stretch + 1.0
        stands = STEPS  # step at whose place it stops if it begins to brake now
        if brakes[a] > 0.0 and w > 0.5:
            stands = min(int((0.7 + w / (2.0 * brakes[a])) / STEP) + 1, STEPS)
        for k in range(best):
            j = min(k + 1, stands)
            dx, dy = places[a, j, 0] - rolled[k, 0], places[a, j, 1] - rolled[k, 1]
            if abs(dx) > reach or abs(dy) > reach:
                continue
            h, other = rolled[k, 2], places[a, j, 2]
            c, s = math.cos(h), math.sin(h)
            along = c * dx + s * dy - REAR_TO_CENTER
            facing = math.cos(other - h)
            if me[SEES] > 0.0:
                if along < -1.0 and facing > 0.3 and abs(rolled[k, 4] - d0) < 0.6:
                    continue
                if k >= BEYOND and facing > -0.5:
                    break
            oc, os = math.cos(other), math.sin(other)
            if facing < -0.7 and w < 5.0:
                wide = min(wide, 0.12)  # one squeezes past
            long_more = stretch if j < stands else 0.0
            if not boxes_touch(
                rolled[k, 0] + REAR_TO_CENTER * c, rolled[k, 1] + REAR_TO_CENTER * s, c, s, half_length + more,
                half_width + wide, places[a, j, 0] + 0.5 * long_more * oc, places[a, j, 1] + 0.5 * long_more * os, oc, os,
                long + 0.5 * long_more, broad,
            ):  # fmt: skip
                continue
            best, who = k, a
            break
    return best, who
