"""Vehicles and walkers on their paths: what they see, whom they let pass, how they move. One environment at a time.

The rules are those of ``traffic`` (the same car-following law, the same way to give way), but every vehicle has a lateral
offset from its path, may change lanes, and is looked after tick by tick, so that the ego can come in between.
"""

from __future__ import annotations

import math
from typing import Final

from vla_models.kernels import numba
from vla_models.simulation.roads import CAP, HALF_WIDTH, HEADING, JUNCTION, LEFT, RIGHT, X, Y
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
    BACKGROUND,
    BRAKE_UNTIL,
    DECEL,
    E_AWAKE,
    E_PROGRESS,
    E_TICK,
    E_V,
    E_X,
    E_Y,
    GAP,
    GREEN,
    HEADWAY,
    KIND,
    LENGTH,
    MIN_GAP,
    OBEYS,
    PATH,
    PHASE,
    PRESENT,
    SEES,
    SINCE,
    SOLID,
    SPEED_MODE,
    STOP_PASSED,
    SYNC_S,
    SYNC_X,
    SYNC_Y,
    TARGET,
    TICK,
    TRAVEL_LIMIT,
    TRAVELLED,
    WIDTH,
    YELLOW,
    YIELDS,
)
from vla_models.simulation.traffic import idm

CORRIDOR: Final = 0.3
"""Metres that a driver wants free on each side."""
ASIDE: Final = 0.6
"""Metres to the right, at most, to which a vehicle moves for one that comes the other way in its lane."""
LOOK_EVERY: Final = 4
"""Ticks between two looks around: five a second; in between a driver reckons."""
HARDEST_BRAKE: Final = 8.0
JERK_UP: Final = 0.25
"""m/s² of change per tick."""
JERK_DOWN: Final = 0.6
SIDE_SPEED: Final = 1.2
"""m/s with which a lane is changed."""
_WAITING, _DELAYED, _MOVING, _GONE = 0.0, 1.0, 2.0, 3.0
_WALKER = 5.0
_PATH_SPEED, _FIXED, _EGO_PLUS, _SYNCHRONISED, _LEAD = 0.0, 1.0, 2.0, 3.0, 4.0


@numba.njit(cache=True)
def meets(points, first, last, low, high, x, y, heading, half_length, half_width):  # type: ignore[no-untyped-def]
    """Metres along a path at which a box stands in the strip between the offsets ``low`` and ``high`` (-1: nowhere between
    indices ``first`` and ``last``), its half extent along the path, and the path's heading there."""
    reach = max(-low, high) + half_length + half_width
    k = first
    while k <= last:
        dx, dy = x - points[k, X], y - points[k, Y]
        d2 = dx * dx + dy * dy
        if d2 > reach * reach:
            k += max(1, int(math.sqrt(d2) - reach))
            continue
        while k < last:
            ex, ey = x - points[k + 1, X], y - points[k + 1, Y]
            closer = ex * ex + ey * ey
            if closer >= d2:
                break
            d2, dx, dy = closer, ex, ey
            k += 1
        h = points[k, HEADING]
        c, s = math.cos(h), math.sin(h)
        turned_c, turned_s = abs(math.cos(heading - h)), abs(math.sin(heading - h))
        across = turned_s * half_length + turned_c * half_width
        side = -s * dx + c * dy
        if low < side + across and side - across < high:
            return k + c * dx + s * dy, turned_c * half_length + turned_s * half_width, h
        return -1.0, 0.0, 0.0
    return -1.0, 0.0, 0.0


@numba.njit(cache=True)
def look(env, actors, awake, i, points, offsets, cross_offsets, cross, stop_offsets, stops, lights):  # type: ignore[no-untyped-def]
    """What vehicle ``i`` has to stop or slow down for: fills its ``gap`` and ``ahead``."""
    me = actors[i]
    v, s = me[AV], me[AS]
    p = int(me[PATH])
    path = points[offsets[p] : offsets[p + 1]]
    last_index = len(path) - 1
    half = 0.5 * me[LENGTH]
    distance = min(90.0, 14.0 + v * 4.5)
    gap, ahead = 1e9, 0.0
    narrow = False
    beside = 0.1 if v < 4.0 and -ASIDE <= me[AD_TO] < 0.0 else CORRIDOR  # one squeezes past
    low = min(me[AD], me[AD_TO]) - 0.5 * me[WIDTH] - beside
    high = max(me[AD], me[AD_TO]) + 0.5 * me[WIDTH] + beside
    c, sn = math.cos(me[AH]), math.sin(me[AH])
    lo, hi = min(int(s), last_index), min(last_index, int(s + half + distance))
    reach = distance + 8.0
    for a in range(int(env[E_AWAKE])):
        j = awake[a]
        if j == i or actors[j, PRESENT] == 0.0 or actors[j, SOLID] == 0.0:
            continue
        other = actors[j]
        dx, dy = other[AX] - me[AX], other[AY] - me[AY]
        if abs(dx) > reach or abs(dy) > reach or dx * c + dy * sn < -4.0:
            continue
        if other[PATH] == me[PATH] and j != 0:
            if other[AS] <= s or abs(other[AD] - 0.5 * (low + high)) > 0.5 * (high - low) + 0.5 * other[WIDTH]:
                continue
            free = other[AS] - s - half - 0.5 * other[LENGTH]
            if free < gap:
                gap, ahead = free, other[AV]
            continue
        walker = other[KIND] == _WALKER
        if not walker and not narrow and math.cos(other[AH] - me[AH]) < -0.5:  # somebody comes in one's own lane: keep aside
            side, _, _ = meets(
                path, lo, min(hi, lo + 40), -0.5 * me[WIDTH] - CORRIDOR, 0.5 * me[WIDTH] + 0.7, other[AX], other[AY], other[AH],
                0.5 * other[LENGTH], 0.5 * other[WIDTH],
            )  # fmt: skip
            narrow = side >= s
        steps = 1
        if walker and other[AV] > 0.0:
            steps = 3  # where a walker will be when one may get there counts as much as where he is
        vx, vy = other[AV] * math.cos(other[AH]), other[AV] * math.sin(other[AH])
        for k in range(steps):
            at, along, h = meets(
                path, lo, hi, low, high, other[AX] + 0.9 * k * vx, other[AY] + 0.9 * k * vy, other[AH], 0.5 * other[LENGTH],
                0.5 * other[WIDTH],
            )  # fmt: skip
            if at < s + 0.2:
                continue
            free = at - along - s - half
            if free < gap:
                gap = free
                ahead = 0.0 if walker else max(0.0, other[AV] * math.cos(other[AH] - h))
    if me[OBEYS] > 0.0:
        for q in range(stop_offsets[p], stop_offsets[p + 1]):
            free = stops[q, 0] - s - half
            if free < -1.0 or free > distance:
                continue
            if stops[q, 1] >= 0.0:
                state = lights[int(stops[q, 1])]
                if state == GREEN or free < v * v / (2.0 * (3.0 if state == YELLOW else 7.0)) - 0.5:
                    continue  # free to go, or too late to stop
            elif stops[q, 0] <= me[STOP_PASSED]:
                continue
            elif free < 1.8 and v < 0.1:
                me[STOP_PASSED] = stops[q, 0]
                continue
            if free + 0.5 < gap:
                gap, ahead = max(free, 0.0) + 0.5, 0.0
    if me[YIELDS] > 0.0:
        for e in range(cross_offsets[p], cross_offsets[p + 1]):
            mine = cross[e, 1] - s - half
            if mine < 0.0 or mine > 60.0:
                continue
            for a in range(int(env[E_AWAKE])):
                j = awake[a]
                if actors[j, PATH] != cross[e, 0] or j == i or actors[j, PHASE] != _MOVING or actors[j, SOLID] == 0.0:
                    continue
                theirs = cross[e, 2] - actors[j, AS] - 0.5 * actors[j, LENGTH]
                if theirs < -1.0 - actors[j, LENGTH] or theirs > 60.0:
                    continue
                w = actors[j, AV]
                if (w < 0.3 and theirs > 2.5) or (w < 0.1 and theirs > 0.5):
                    continue  # it waits
                t_mine, t_theirs = mine / max(v, 1.5), max(theirs, 0.0) / max(w, 1.5)
                if t_theirs - t_mine > 3.0 or t_mine - t_theirs > 4.0 or min(t_mine, t_theirs) > 6.0:
                    continue
                reckless = actors[j, YIELDS] == 0.0 and j != 0
                if not reckless and 1.5 * cross[e, 3] - t_mine >= 1.5 * cross[e, 4] - t_theirs:
                    continue
                free = mine - 2.0
                if free < v * v / 12.0 - 0.5:
                    continue
                if free < gap:
                    gap, ahead = max(free, 0.1), 0.0
    me[GAP], me[AHEAD] = gap, ahead
    if narrow and me[AD_TO] == 0.0:
        me[AD_TO] = -min(max(path[lo, HALF_WIDTH] - 0.5 * me[WIDTH] + 0.1, 0.0), ASIDE)
    elif not narrow and -ASIDE <= me[AD_TO] < 0.0:
        me[AD_TO] = 0.0


@numba.njit(cache=True)
def side_free(env, actors, awake, i, target, behind, before):  # type: ignore[no-untyped-def]
    """Whether nobody is beside vehicle ``i`` at the lateral offset ``target`` (nor ``behind``, ``before`` metres)."""
    me = actors[i]
    c, s = math.cos(me[AH]), math.sin(me[AH])
    side = target - me[AD]
    for a in range(int(env[E_AWAKE])):
        j = awake[a]
        if j == i or actors[j, PRESENT] == 0.0 or actors[j, SOLID] == 0.0:
            continue
        dx, dy = actors[j, AX] - me[AX], actors[j, AY] - me[AY]
        along, across = c * dx + s * dy, -s * dx + c * dy
        faster = max(0.0, actors[j, AV] - me[AV]) if along < 0.0 else 0.0
        if -behind - faster < along < before and abs(across - side) < 0.5 * (me[WIDTH] + actors[j, WIDTH]) + 0.6:
            return False
    return True


@numba.njit(cache=True)
def change_lane(env, actors, awake, i, path):  # type: ignore[no-untyped-def]
    """Let a vehicle of the background traffic overtake in the next lane, and come back before that lane or the road ends."""
    me = actors[i]
    if me[AD] != me[AD_TO]:
        return
    k, last = int(me[AS]), len(path) - 1
    if abs(me[AD]) > ASIDE:
        column = LEFT if me[AD] > 0.0 else RIGHT
        later = min(k + 35, last)
        if path[later, column] == 0.0 or path[later, JUNCTION] > 0.0 or later == last:
            if side_free(env, actors, awake, i, 0.0, 8.0, 10.0):
                me[AD_TO] = 0.0
            else:  # waits for a gap
                me[GAP], me[AHEAD] = min(me[GAP], 12.0), 0.0
        return
    if me[GAP] > 30.0 or me[AHEAD] > 0.6 * path[k, CAP] or me[AHEAD] < 0.5 or k + 70 > last:
        return
    for column in (LEFT, RIGHT):
        width = path[k, column]
        if width == 0.0:
            continue
        open_lane = True
        for ahead in (10, 25, 40, 55, 70):
            if path[k + ahead, column] == 0.0 or path[k + ahead, JUNCTION] > 0.0:
                open_lane = False
        target = width if column == LEFT else -width
        if open_lane and side_free(env, actors, awake, i, target, 12.0, 25.0):
            me[AD_TO] = target
            return


@numba.njit(cache=True)
def place(actor, path):  # type: ignore[no-untyped-def]
    """Pose of an actor from its metres along, and beside, its path."""
    s = min(max(actor[AS], 0.0), len(path) - 1.0)
    k = min(int(s), len(path) - 2)
    u = s - k
    h = path[k, HEADING] + u * (path[k + 1, HEADING] - path[k, HEADING])
    x = path[k, X] + u * (path[k + 1, X] - path[k, X])
    y = path[k, Y] + u * (path[k + 1, Y] - path[k, Y])
    d = actor[AD]
    if d != 0.0:
        x -= d * math.sin(h)
        y += d * math.cos(h)
    actor[AX], actor[AY], actor[AH] = x, y, h


@numba.njit(cache=True)
def wanted_speed(env, me, path):  # type: ignore[no-untyped-def]
    """The speed that an actor would have on a free road."""
    last = len(path) - 1
    k = min(int(me[AS]) + 1, last)
    cap = min(path[k, CAP], path[min(int(me[AS] + 0.5 * me[AV]) + 1, last), CAP])
    mode = me[SPEED_MODE]
    if mode == _PATH_SPEED:
        return cap * me[TARGET]
    if mode == _FIXED:
        return me[TARGET]
    if mode == _EGO_PLUS:
        return env[E_V] + me[TARGET]
    if mode == _LEAD:  # keeps ``target`` metres before the ego
        return min(max(env[E_V] + 0.25 * (me[TARGET] - (me[AS] - env[E_PROGRESS])), 0.0), cap)
    left = me[SYNC_S] - me[AS]
    if left < 1.0:
        me[SPEED_MODE], me[TARGET] = _FIXED, max(0.8 * env[E_V], 3.0)
        return me[TARGET]
    return min(left * max(env[E_V], 2.0) / max(math.hypot(env[E_X] - me[SYNC_X], env[E_Y] - me[SYNC_Y]), 0.5), 35.0)


@numba.njit(cache=True)
def move(env, actors, i, path):  # type: ignore[no-untyped-def]
    """One tick of an actor that is on its way."""
    me = actors[i]
    v = me[AV]
    wanted = wanted_speed(env, me, path)
    braking = env[E_TICK] < me[BRAKE_UNTIL]
    if me[SEES] == 0.0 and not braking:
        me[AACC], me[AV] = (wanted - v) / TICK, wanted
        ds = wanted * TICK
    else:
        target = idm(v, wanted, me[GAP], me[AHEAD], me[ACCEL], me[DECEL], me[HEADWAY], me[MIN_GAP])
        if braking:
            target = -HARDEST_BRAKE
        target = max(-HARDEST_BRAKE, target)
        a = min(me[AACC] + JERK_UP, max(me[AACC] - (HARDEST_BRAKE if braking else JERK_DOWN), target))
        after = v + a * TICK
        if after <= 0.0:
            after, a = 0.0, 0.0
        ds = 0.5 * (v + after) * TICK
        me[AACC], me[AV] = a, after
        me[GAP] -= (v - me[AHEAD]) * TICK
    if me[AD] != me[AD_TO]:
        step = min(SIDE_SPEED, 0.25 * v) * TICK
        me[AD] += min(max(me[AD_TO] - me[AD], -step), step)
    me[AS] += ds
    me[TRAVELLED] += ds
    if me[AS] >= len(path) - 1.0 or me[TRAVELLED] >= me[TRAVEL_LIMIT]:
        if me[AT_END] > 0.0:
            me[PHASE], me[PRESENT] = _GONE, 0.0
        else:
            me[PHASE] = _DELAYED  # stands for good: a delay that nobody ends
            me[SINCE], me[AV], me[AACC] = 1e18, 0.0, 0.0
    place(me, path)


@numba.njit(cache=True)
def step_agents(  # type: ignore[no-untyped-def]
    env, actors, awake, points, offsets, cross_offsets, cross, stop_offsets, stops, lights
):  # fmt: skip
    """One tick of everybody but the ego."""
    tick = int(env[E_TICK])
    count = int(env[E_AWAKE])
    for a in range(count):
        i = awake[a]
        me = actors[i]
        if i == 0 or me[PHASE] != _MOVING or me[PATH] < 0.0:
            continue
        p = int(me[PATH])
        if (tick + i) % LOOK_EVERY == 0 and me[SEES] > 0.0:
            look(env, actors, awake, i, points, offsets, cross_offsets, cross, stop_offsets, stops, lights)
            if me[BACKGROUND] > 0.0:
                change_lane(env, actors, awake, i, points[offsets[p] : offsets[p + 1]])
        move(env, actors, i, points[offsets[p] : offsets[p + 1]])
