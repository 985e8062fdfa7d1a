"""A careful driver on rules and foresight: keeps to the route, stops at lights and signs, and does only what meets nobody.

Each decision, candidates are tried from the most willing to the most careful: drive on, drive slower, move aside, wait further
back. The first one on which the next ten seconds (``foresight``) meet nobody is the plan. Who has waited long accepts less
room. There is no memory: the same state of the world gives the same plan.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from vla_models.control import AIM_DISTANCE, BRAKE_RATIO
from vla_models.kernels import numba
from vla_models.simulation.agents import meets
from vla_models.simulation.foresight import HARD, NOSE, SLOPE, STEP, STEPS, contact, expect, roll
from vla_models.simulation.roads import CAP, EDGE_LEFT, EDGE_RIGHT, HALF_WIDTH, HEADING, JUNCTION, LEFT, OPPOSITE, RIGHT, X, Y
from vla_models.simulation.tables import (
    AD,
    AH,
    AV,
    AX,
    AY,
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
    GREEN,
    KIND,
    LEAVE_AFTER,
    LENGTH,
    N_FLOWS,
    N_SCENARIOS,
    PATH,
    PRESENT,
    SEES,
    SINCE,
    SOLID,
    STATE,
    STATE_SINCE,
    TICK,
    WIDTH,
    YELLOW,
    YIELDS,
    Kind,
)
from vla_models.simulation.vehicle import REAR_TO_CENTER
from vla_models.simulation.vehicle import WIDTH as EGO_WIDTH

CLEARANCE: Final = 0.5
"""Metres between the ego and what it passes."""
SIGHT: Final = 70.0
"""Metres ahead in which the driver looks for obstacles."""
WAIT_BEFORE: Final = 11.0
"""Metres before an obstacle at which one waits: far enough to pull out again."""
ACCEL: Final = 2.4
HASTY: Final = 3.1
"""m/s² of pulling away where there is no time to lose."""
SOON: Final = 0.6
"""Seconds from now of the speed that a plan of one speed has."""
PID_NEEDS: Final = 8.2
"""Radians of aim with which the PID makes the car turn with 1/m, while what it remembers grows …"""
PID_KEEPS: Final = 1.4
"""… and radians of aim that what it remembers is worth."""
MOST_LEAN: Final = 0.5
PEOPLE_AHEAD: Final = 22.0
PEOPLE_SPEED: Final = 5.0
"""m/s past people who stand at the roadside, from so many metres before them on."""
BESIDE: Final = -1.5
"""Metres of gap below which somebody is beside the ego, not before it."""
LINE: Final = 0.3
"""Metres before a stop line at which the nose shall stand."""
SIGN_REACH: Final = 5.0
"""Metres between the car's middle and a stop sign's line within which one has stopped at it."""
PATIENCE: Final = 25.0
"""Seconds of standing after which a driver takes every gap that is one."""
DESPERATE, STUCK, ANYHOW = 40.0, 75.0, 50.0
"""Seconds of standing, or within one scenario, after which one goes wherever there is a second before the first contact
(traffic that lets nobody in), and of standing after which one goes anyhow: after 60 s an episode ends as blocked."""
_BACK: Final = (2.5, 1.5, 4.0, 6.0, 9.0, 13.0, 18.0)
"""Metres before the place of a contact at which one may wait, best first; before those who do not brake it is further, for a
running start into a gap."""
_WALKER, _BICYCLE = float(Kind.WALKER), float(Kind.BICYCLE)
_NEVER = 1e9


@numba.njit(cache=True)
def in_the_way(me):  # type: ignore[no-untyped-def]
    """Whether an actor is one to drive around: it stands for good, or is a bicycle that crawls along the lane."""
    if me[PRESENT] == 0.0 or me[SOLID] == 0.0 or me[KIND] == _WALKER or me[LEAVE_AFTER] < 1e9:
        return False
    return me[PATH] < 0.0 or me[SINCE] > 1e17 or (me[KIND] == _BICYCLE and me[SEES] > 0.0 and me[AV] < 5.0)


@numba.njit(cache=True)
def blockers(env, actors, awake, route, low, high, until, tail):  # type: ignore[no-untyped-def]
    """What stands (or crawls) on the route between the offsets ``low`` and ``high``, up to ``until`` metres ahead and from
    ``tail`` metres behind on -> first and last metre, and how far to the left and to the right it reaches."""
    s = env[E_PROGRESS]
    lo, hi = int(s), min(int(s + until), len(route) - 1)
    first, last, left, right = _NEVER, -_NEVER, -_NEVER, _NEVER
    for a in range(1, int(env[E_AWAKE])):
        me = actors[awake[a]]
        if not in_the_way(me):
            continue
        at, along, _ = meets(route, lo, hi, low, high, me[AX], me[AY], me[AH], 0.5 * me[LENGTH], 0.5 * me[WIDTH])
        if at < 0.0 or at + along < s - tail:
            continue
        k = min(int(at), len(route) - 1)
        side = -math.sin(route[k, HEADING]) * (me[AX] - route[k, X]) + math.cos(route[k, HEADING]) * (me[AY] - route[k, Y])
        turn = me[AH] - route[k, HEADING]
        across = 0.5 * (abs(math.sin(turn)) * me[LENGTH] + abs(math.cos(turn)) * me[WIDTH])
        first, last = min(first, at - along), max(last, at + along + (6.0 if me[AV] > 0.0 else 0.0))
        left, right = max(left, side + across), min(right, side - across)
    return first, last, left, right


@numba.njit(cache=True)
def leader(env, actors, awake, route, d, offset, base, passing):  # type: ignore[no-untyped-def]
    """(gap, speed) of what drives or stands ahead while the ego goes from ``d`` metres beside the route over ``offset`` to
    ``base``. Of what one drives around, only what stands at ``base`` counts, and nothing while ``passing``."""
    s, half = env[E_PROGRESS], 0.5 * EGO_WIDTH + 0.25
    lo = min(max(int(s), 0), len(route) - 1)
    hi = min(int(s + 20.0 + 5.0 * env[E_V]), len(route) - 1)
    gap, ahead = _NEVER, 0.0
    for a in range(1, int(env[E_AWAKE])):
        me = actors[awake[a]]
        if me[PRESENT] == 0.0 or me[SOLID] == 0.0 or (passing and in_the_way(me)):
            continue
        low, high = min(offset, base) - half, max(offset, base) + half
        if not in_the_way(me):
            low, high = min(low, d - half), max(high, d + half)
        at, along, h = meets(route, lo, hi, low, high, me[AX], me[AY], me[AH], 0.5 * me[LENGTH], 0.5 * me[WIDTH])
        if at < s + 0.5:
            continue
        with_me = math.cos(me[AH] - h)
        if me[AV] > 0.3 and (with_me < 0.5 or me[KIND] == _WALKER):
            continue  # crosses or comes: foresight's business
        free = at - along - s - (NOSE - REAR_TO_CENTER)
        if BESIDE < free < gap:
            gap, ahead = free, max(me[AV] * with_me, 0.0)
    return gap, ahead


@numba.njit(cache=True)
def stop_line(env, stops, lights):  # type: ignore[no-untyped-def]
    """Metre of the route at which the nose has to stop for a light or a sign (1e9: nowhere)."""
    s, v = env[E_PROGRESS], env[E_V]
    halt = _NEVER
    for q in range(len(stops)):
        at = stops[q, 0] - s
        free = at - (NOSE - REAR_TO_CENTER) - LINE
        if stops[q, 1] >= 0.0:
            state = lights[int(stops[q, 1])]
            if state == GREEN or free < -1.5 or free < v * v / (2.0 * (3.0 if state == YELLOW else HARD)) - 0.7:
                continue  # free to go, or too late to stop
        else:
            stopped = env[E_STOP] == stops[q, 2] and env[E_STOPPED] > 0.0
            if stopped or at < -1.0 or (v < 0.1 and at < SIGN_REACH) or at > 90.0:
                continue
        halt = min(halt, stops[q, 0] - LINE)
    return halt


@numba.njit(cache=True)
def who_gives_way(actors, slots, cross, s, patience, brakes):  # type: ignore[no-untyped-def]
    """Fill ``brakes`` [A]: m/s² with which each of the others may be expected to let the ego go first (0: not at all). Those
    with the lower rank at a crossing give way; who has waited long counts on everybody who sees him."""
    for a in range(1, len(brakes)):
        me = actors[slots[a]]
        brakes[a] = 3.0 * (1.0 - patience) if me[SEES] > 0.0 and me[EMERGENCY] == 0.0 else 0.0
        if me[YIELDS] == 0.0:
            continue
        for e in range(len(cross)):
            if cross[e, 0] == me[PATH] and cross[e, 1] > s and cross[e, 3] > cross[e, 4]:
                brakes[a] = max(brakes[a], 2.5)


@numba.njit(cache=True)
def make_way(env, actors, awake, route, d):  # type: ignore[no-untyped-def]
    """(offset, speed) with which an emergency vehicle behind is let past; (0, inf) where there is none."""
    k = min(int(env[E_PROGRESS]), len(route) - 1)
    x, y = env[E_X], env[E_Y]
    for a in range(1, int(env[E_AWAKE])):
        other = actors[awake[a]]
        if other[EMERGENCY] == 0.0 or other[PRESENT] == 0.0:
            continue
        c, sn = math.cos(other[AH]), math.sin(other[AH])
        along = c * (x - other[AX]) + sn * (y - other[AY]) + REAR_TO_CENTER
        if not -12.0 < along < 60.0:
            continue
        speed = _NEVER
        if route[k, RIGHT] > 0.0:
            offset = -route[k, RIGHT]
        elif route[k, LEFT] > 0.0:
            offset = route[k, LEFT]
        else:
            offset, speed = -route[k, EDGE_RIGHT] + 0.3, 4.0
        if abs(d - offset) < 1.0:
            speed = min(speed, max(other[AV] - 3.0, 3.0))
        return offset, speed
    return 0.0, _NEVER


@numba.njit(cache=True)
def _weigh(env, actors, route, places, slots, speeds, rolled, brakes, patience, m, choice):  # type: ignore[no-untyped-def]
    """Roll out ``m`` [10], the arguments of ``roll`` from ``offset`` on, and keep it in ``choice`` where it is the best so far:
    the one that meets nobody, else the slowest then, else the latest (``choice[10]``). -> the first contact."""
    roll(env, route, m[0], m[1], m[2], m[3], m[4], m[5], m[6], m[7], m[8], m[9], SLOPE, STEP, rolled)
    at, who = contact(env, actors, places, slots, speeds, rolled, brakes, patience)
    worth = 1.0 if who < 0 else 0.01 * at / STEPS - rolled[at, 3]
    if worth > choice[10]:
        choice[:10], choice[10] = m, worth
    return at, who


@numba.njit(cache=True)
def _people(env, actors, awake, route):  # type: ignore[no-untyped-def]
    """Speed with which one passes people who stand at the roadside and face the road; inf where there are none."""
    s = env[E_PROGRESS]
    lo = min(int(s), len(route) - 1)
    hi = min(int(s + PEOPLE_AHEAD), len(route) - 1)
    for a in range(1, int(env[E_AWAKE])):
        me = actors[awake[a]]
        if me[PRESENT] == 0.0 or me[AV] > 0.1 or me[PATH] < 0.0 or (me[KIND] != _WALKER and me[KIND] != _BICYCLE):
            continue
        wide = max(route[lo, EDGE_LEFT], route[lo, EDGE_RIGHT]) + 4.0
        at, _, h = meets(route, lo, hi, -wide, wide, me[AX], me[AY], me[AH], 0.5 * me[LENGTH], 0.5 * me[WIDTH])
        if at > s and abs(math.sin(me[AH] - h)) > 0.7:
            return PEOPLE_SPEED
    return _NEVER


@numba.njit(cache=True)
def _aside(env, actors, awake, route, d, base, nose, options):  # type: ignore[no-untyped-def]
    """Fill ``options`` [4, 5] (offset, begin, until, base, metre to wait at or 1e9) with what may be done sideways -> (how
    many, the metre at which one waits for a way past an obstacle, or 1e9)."""
    s, v, end = env[E_PROGRESS], env[E_V], len(route) - 1
    k = min(int(s), end)
    half = 0.5 * EGO_WIDTH + CLEARANCE
    first, last, _, _ = blockers(env, actors, awake, route, base - half, base + half, SIGHT, 3.0)
    if last < first:
        options[0] = base, -_NEVER, _NEVER, base, 0.0
        later = min(k + 40, end)
        for column, side in ((LEFT, 1.0), (RIGHT, -1.0)):  # in the next lane, the one that the route has left: stay
            if side * d > 1.5 and route[k, column] > 0.0 and route[later, column] > 0.0:
                stay = side * route[k, column]
                options[1] = stay, -_NEVER, _NEVER, stay, 0.0
                return 2, _NEVER
        if base != 0.0:  # no room aside: on as before
            options[1] = 0.0, -_NEVER, _NEVER, 0.0, 0.0
            return 2, _NEVER
        return 1, _NEVER
    room = first - nose
    n = 0
    for side in (1.0, -1.0):
        if room < 1.0 and side * d < -1.0:
            continue  # beside it already, on the other side
        reach, end_of_it = side * base - half, last
        for _ in range(4):  # what stands beside it widens it
            low, high = side * base - half, reach + 2.0 * half
            _, end_of_it, left, right = blockers(
                env, actors, awake, route, min(side * low, side * high), max(side * low, side * high), end_of_it - s + 12.0, 3.0
            )
            further = left if side > 0.0 else -right
            if further <= reach + 1e-3:
                break
            reach = further
        offset = side * (reach + half)
        at = min(int(max(first, s)), end)
        edge = route[at, EDGE_LEFT] if side > 0.0 else route[at, EDGE_RIGHT]
        if side * offset + 0.5 * EGO_WIDTH > edge + 0.2 and room > 1.0:
            foreign = side > 0.0 and 0.0 < offset < route[at, OPPOSITE] + 1.0
            if not foreign or room > max(18.0, 2.6 * v + 8.0):
                continue  # no room, or too early to use the oncoming lane
        narrow = 0.5 * EGO_WIDTH + 0.3
        begin, until, _, _ = blockers(env, actors, awake, route, offset - narrow, offset + narrow, end_of_it - s + 5.0, -2.5)
        if begin > until:
            options[n] = offset, first - max(14.0, 2.6 * v + 4.0), end_of_it + 1.5, base, first
            n += 1
    options[n] = base, -_NEVER, _NEVER, base, 0.0  # up to it
    return n + 1, first - WAIT_BEFORE if room > WAIT_BEFORE else nose


@numba.njit(cache=True)
def decide(env, actors, awake, scenarios, route, stops, lights, cross, places, slots, speeds, choice):  # type: ignore[no-untyped-def]
    """Fill ``choice`` [11] with the arguments of ``roll`` from ``offset`` to
    ``ahead``. The tables are those of the ego's own path."""
    s, v = env[E_PROGRESS], env[E_V]
    k, d = min(int(s), len(route) - 1), actors[0, AD]
    nose = s + NOSE - REAR_TO_CENTER
    waited = (env[E_TICK] - env[E_SLOW_SINCE]) * TICK
    patience = max(0.0, 1.0 - waited / PATIENCE)
    desperate = waited > DESPERATE
    for q in range(int(env[N_SCENARIOS])):
        if scenarios[q, STATE] == 1.0 and (env[E_TICK] - scenarios[q, STATE_SINCE]) * TICK > STUCK:
            desperate = True
    if desperate:
        patience = 0.0
    at_nose = min(int(nose), len(route) - 1)
    line = stop_line(env, stops, lights)
    base, slow = make_way(env, actors, awake, route, d)
    aside = route[k, HALF_WIDTH] + 0.5
    if base == 0.0 and ((d < -aside and route[k, RIGHT] == 0.0) or (d > aside and route[k, LEFT] == 0.0 == route[k, OPPOSITE])):
        slow = 3.0  # out of a parking place
    slow = min(slow, _people(env, actors, awake, route))
    options, move, rolled = np.empty((4, 5)), np.empty(10), np.empty((STEPS, 6))
    count, wait = _aside(env, actors, awake, route, d, base, nose, options)
    pulls_out = count > 0 and 0.0 < options[0, 4] < nose + WAIT_BEFORE - 1.0 and v < 6.0
    if v > 0.1 and (route[at_nose, JUNCTION] > 0.0 or d > 1.2 or pulls_out):
        patience = 0.0  # once off, one goes on
    brakes = np.zeros(len(slots))
    who_gives_way(actors, slots, cross, s, patience, brakes)
    fast = max(v, min(route[min(k + 5, len(route) - 1), CAP], 8.0))
    choice[10] = -_NEVER
    least_bad, in_time = choice.copy(), 1.0 if waited < ANYHOW else 0.0
    met_at, met = _NEVER, -1
    for o in range(count):
        if o > 0 and desperate and least_bad[10] * STEP >= in_time:
            break  # rather that than another time up to the obstacle
        move[:4] = options[o, :4]
        past = options[o, 4] > 0.0
        move[8], move[9] = leader(env, actors, awake, route, d, move[0], move[3], past)
        move[7] = line if past else min(line, wait)
        for gear in range(6):
            move[4], move[5], move[6] = slow, ACCEL, 1.0
            if gear == 1:
                if patience > 0.8:
                    continue
                move[5], move[6] = HASTY, 1.5
            elif gear > 1:
                move[4] = min(slow, fast * (1.0 - 0.2 * (gear - 1)))
            room = options[o, 4] - nose
            if past and room < 14.0:
                aside = abs(options[o, 0] - d) > 0.5 and room > -2.0
                move[4] = min(move[4], max(2.5, 0.4 * room) if aside else 8.0)
            at, who = _weigh(env, actors, route, places, slots, speeds, rolled, brakes, patience, move, choice)
            if who < 0:
                return
            if at > least_bad[10]:
                least_bad[:10], least_bad[10] = move, at
            if met < 0:
                met_at, met = rolled[at, 5] + NOSE, who
                if not past and math.cos(places[who, at + 1, 2] - rolled[at, 2]) < -0.5:  # somebody comes: keep to the side
                    far = 0.5 * EGO_WIDTH + 0.1 - route[k, EDGE_RIGHT]
                    for part in (0.5, 1.0):
                        move[0] = move[3] = part * far
                        _, who = _weigh(env, actors, route, places, slots, speeds, rolled, brakes, patience, move, choice)
                        if who < 0:
                            return
                    move[0] = move[3] = base
    if desperate and least_bad[10] * STEP >= in_time:
        choice[:] = least_bad
        return
    # wait: before the obstacle, at the stop line, or before the place of the contact, the nearer the better
    move[:4] = 0.0, -_NEVER, _NEVER, 0.0
    beside = count > 0 and options[0, 4] > 0.0 and options[0, 4] < nose + 1.0 and abs(d - options[0, 0]) < 1.0
    if beside:
        move[:4] = options[0, :4]
    move[4], move[5], move[6] = slow, ACCEL, 1.0
    move[8], move[9] = leader(env, actors, awake, route, d, move[0], move[3], beside)
    reckless = met >= 0 and actors[slots[met], SEES] == 0.0 and speeds[met] > 3.0
    soonest = nose + v * v / (2.0 * HARD)
    for place in range(-3, 7):
        if place == -3:
            halt = wait
        elif place == -2:
            halt = _line_before(stops, min(met_at, wait))
        elif place == 0:
            halt = soonest
        else:
            back = max(place, 0)
            halt = min(met_at, wait) - _BACK[back] * (max(2.4, 0.25 * speeds[met]) if reckless else 1.0)
        if place != 0 and (halt < soonest - 0.3 or halt > _NEVER - 100.0):
            continue
        move[7] = min(line, halt)
        _, who = _weigh(env, actors, route, places, slots, speeds, rolled, brakes, 1.0, move, choice)
        if who < 0:
            return


@numba.njit(cache=True)
def _line_before(stops, at):  # type: ignore[no-untyped-def]
    """Metre at which the nose stands at the last stop line within 12 m before the metre ``at`` (1e9: there is none)."""
    found = _NEVER
    for q in range(len(stops)):
        if at - 12.0 < stops[q, 0] < at:
            found = stops[q, 0] - LINE
    return found


@numba.njit(cache=True, nogil=True)
def drive_carefully(t, dt, mean, plans):  # type: ignore[no-untyped-def]
    """Fill plans [N, T, 3] (ego frame, ``dt`` apart) of the careful driver for every environment. ``mean``: the controller
    drives at the mean speed of a plan (Bench2Drive's PID), so that a plan has one speed: the one wanted ``SOON``."""
    choice, soon = np.empty(11), np.empty((1, 6))
    out = np.empty((plans.shape[1], 6))
    for n in range(len(t.env)):
        env, awake, lights = t.env[n], t.awake[n], t.lights[n]
        route = t.points[n, : t.path_offsets[n, 1]]
        stops, cross = t.stops[n, : t.stop_offsets[n, 1]], t.cross[n, : t.cross_offsets[n, 1]]
        count = int(env[E_AWAKE] + env[N_FLOWS])
        places, slots, speeds = np.empty((count, STEPS + 1, 3)), np.empty(count, dtype=np.int64), np.empty(count)
        expect(env, t.actors[n], awake, t.flows[n], t.scenarios[n], t.points[n], t.path_offsets[n], places, slots, speeds)
        decide(env, t.actors[n], awake, t.scenarios[n], route, stops, lights, cross, places, slots, speeds, choice)
        c = choice
        if mean:
            roll(env, route, c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7], c[8], c[9], SLOPE, SOON, soon)
            wanted = soon[0, 3] if soon[0, 3] > env[E_V] - 0.2 else soon[0, 3] / BRAKE_RATIO
            c[4], c[5], c[7], c[8] = wanted, HASTY, _NEVER, _NEVER
        roll(env, route, c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7], c[8], c[9], SLOPE, dt, out)
        into_frame(env, out, plans[n])
        if mean:
            _lean(t.pid[n, 0], plans[n])


@numba.njit(cache=True)
def _lean(errors, plan):  # type: ignore[no-untyped-def]
    """Bend the near part of a plan [T, 3] (ego frame) so that Bench2Drive's PID steers as the plan means it. It aims at the
    point about ``AIM_DISTANCE`` ahead and steers by its angle and by the mean of the last angles, which is too little in a
    bend and too much behind it."""
    chosen, nearest = 0, _NEVER
    for k in range(len(plan) - 1):
        off = abs(0.5 * math.hypot(plan[k, 0] + plan[k + 1, 0], plan[k, 1] + plan[k + 1, 1]) - AIM_DISTANCE)
        if off < nearest:
            chosen, nearest = k, off
    x, y = plan[chosen, 0], plan[chosen, 1]
    reach = math.hypot(x, y)
    if reach < 0.5:
        return
    angle = math.atan2(y, x)
    bend = 2.0 * math.sin(angle) / max(reach, 2.5)
    more = PID_NEEDS * bend + PID_KEEPS * errors.mean() - angle
    more = min(max(more, -MOST_LEAN), MOST_LEAN)
    for k in range(len(plan)):
        r = math.hypot(plan[k, 0], plan[k, 1])
        aside = more * min(r, reach) * min(max((4.0 * reach - r) / (3.0 * reach), 0.0), 1.0)
        h = math.atan2(plan[k, 1], plan[k, 0])
        plan[k, 0] -= aside * math.sin(h)
        plan[k, 1] += aside * math.cos(h)


@numba.njit(cache=True)
def into_frame(env, rolled, plan):  # type: ignore[no-untyped-def]
    """Fill a plan [T, 3] in the ego's frame with poses of ``roll``."""
    c, s = math.cos(env[E_H]), math.sin(env[E_H])
    for k in range(len(plan)):
        dx, dy = rolled[k, 0] - env[E_X], rolled[k, 1] - env[E_Y]
        plan[k, 0], plan[k, 1] = c * dx + s * dy, -s * dx + c * dy
        turned = rolled[k, 2] - env[E_H]
        plan[k, 2] = math.atan2(math.sin(turned), math.cos(turned))
