"""One tick of the official criteria, for all environments, on bare arrays.

Each function is one criterion of ``atomic_criteria.py`` (Bench2Drive 0.0.4, class named in its docstring), its thresholds and
its order of operations kept. Distances along the route are spatial, as CARLA's; between the ego and things they are level.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from vla_models.kernels import numba
from vla_models.scenes.lanes import BoolArray, FloatArray, IntArray
from vla_models.scenes.strips import HEADING, JUNCTION, REACH, WIDTH, X, Y, nearest_strip
from vla_models.scoring.bench2drive.events import KIND, OTHER, PLACE_X, PLACE_Y, TICK, VALUE, Event
from vla_models.scoring.bench2drive.tables import ARC, COSINE, HEIGHT, LIMIT, SINE, Tables

TICK_SECONDS: Final = 0.05
"""The official evaluator runs at 20 Hz."""

COLLISION_RADIUS: Final = 5.0
COLLISION_SECONDS: Final = 5.0
COLLISION_SPEED: Final = 0.1
COMPLETE_PERCENT: Final = 99.0
COMPLETE_DISTANCE: Final = 10.0
COMPLETION_WINDOW: Final = 2
OFF_ROUTE: Final = 30.0
OFF_ROUTE_SAFE: Final = 15.0
OFF_ROUTE_PERCENT: Final = 30.0
IN_ROUTE_WINDOW: Final = 5
LANE_MARGIN: Final = 0.5
OUTSIDE_WINDOW: Final = 3
WRONG_VEHICLE_ANGLE: Final = np.radians(120.0)
WRONG_LANE_ANGLE: Final = np.radians(150.0)
BLOCKED_SPEED: Final = 0.1
BLOCKED_SECONDS: Final = 60.0
LIGHT_DISTANCE: Final = 15.0
STOP_DISTANCE: Final = 4.0
STOP_SPEED: Final = 0.1
STOP_STEP: Final = 0.5
STOP_GROWTH: Final = 1.2
BACKWARDS: Final = -0.17
SPEED_WINDOW: Final = 2
SPEED_CHECKPOINTS: Final = 20
ROUTE_SECONDS: Final = 300.0
ROUTE_SPEED_SHARE: Final = 0.1
TIMEOUT_WINDOW: Final = 3
"""The official thresholds, in the order of the criteria below."""

RUNNING, COMPLETED, DEVIATED, BLOCKED, TIMED_OUT, TICK_LIMIT = range(6)
"""Why an episode has ended."""

(
    I_TICK, I_ENDED, I_EVENTS, I_INDEX, I_REACHED, I_HIT, I_IN_ROUTE, I_OUTSIDE_INDEX, I_OUTSIDE, I_WRONG, I_LANE,
    I_LANE_JUNCTION, I_LIGHT, I_SIGN, I_STOPPED, I_FAILED_SIGN, I_SPEED_INDEX, I_SPEED_COUNT, I_TIME_INDEX, I_IN_SAFE,
) = range(20)  # fmt: skip
"""Columns of ``State.whole``."""
INTEGERS: Final = 20
(
    R_PERCENT, R_HIT_TIME, R_HIT_X, R_HIT_Y, R_OUT_METRES, R_TOTAL, R_WRONG, R_LANE_HEADING, R_MOVED_TIME, R_SPEED_FROM,
    R_TRAFFIC, R_EGO, R_TIME_LIMIT, R_OUT_TICK, R_OUT_X, R_OUT_Y,
) = range(16)  # fmt: skip
"""Columns of ``State.real``."""
REALS: Final = 16
NEVER: Final = -1e18

_STATIC, _PEDESTRIAN, _VEHICLE = int(Event.COLLISION_STATIC), int(Event.COLLISION_PEDESTRIAN), int(Event.COLLISION_VEHICLE)
_LIGHT, _STOP, _SLOW = int(Event.TRAFFIC_LIGHT), int(Event.STOP), int(Event.MIN_SPEED)
_DEVIATION, _BLOCKED, _TIMEOUT, _COMPLETED = (
    int(Event.ROUTE_DEVIATION), int(Event.VEHICLE_BLOCKED), int(Event.ROUTE_TIMEOUT), int(Event.ROUTE_COMPLETED),
)  # fmt: skip


class State(NamedTuple):
    """All that the criteria remember of N environments."""

    whole: IntArray
    """[N, 20] integers"""
    real: FloatArray
    """[N, 16] real numbers"""
    events: FloatArray
    """[N, E, 6]"""
    wrong_way_counts: BoolArray
    """[N] whether driving in an oncoming lane counts (scenarios that need that lane switch it off)."""
    blocked_counts: BoolArray
    """[N] whether standing still counts."""


@numba.njit(cache=True)
def begin(tables: Tables, state: State, n: int, x: float, y: float) -> None:
    """The state of environment ``n`` as the official constructors leave it, with the ego at (x, y)."""
    state.whole[n] = 0
    state.real[n] = 0.0
    state.events[n] = 0.0
    state.wrong_way_counts[n] = True
    state.blocked_counts[n] = True
    count, real = state.whole[n], state.real[n]
    count[I_HIT] = count[I_LIGHT] = count[I_SIGN] = count[I_FAILED_SIGN] = -1
    count[I_IN_SAFE] = 1
    lane, point, _, _ = nearest_strip(tables.driving, n, x, y, tables.route[n, 0, HEIGHT], REACH)
    count[I_LANE] = -1
    if lane >= 0:
        count[I_LANE_JUNCTION] = int(tables.driving.place[n, point, JUNCTION])
        real[R_LANE_HEADING] = tables.driving.place[n, point, HEADING]
    real[R_HIT_TIME] = real[R_HIT_X] = real[R_MOVED_TIME] = NEVER
    real[R_TIME_LIMIT] = ROUTE_SECONDS


@numba.njit(cache=True)
def report(state: State, n: int, kind: int, value: float, x: float, y: float, other: float) -> None:
    """Append an event; a full table keeps counting, and reading it complains."""
    k = state.whole[n, I_EVENTS]
    state.whole[n, I_EVENTS] = k + 1
    if k >= state.events.shape[1]:
        return
    row = state.events[n, k]
    row[TICK], row[KIND], row[VALUE] = state.whole[n, I_TICK], kind, value
    row[PLACE_X], row[PLACE_Y], row[OTHER] = x, y, other


@numba.njit(cache=True)
def _passed(route: FloatArray, k: int, x: float, y: float) -> bool:
    """Whether (x, y) lies ahead of route point ``k``."""
    return bool((x - route[k, 0]) * route[k, COSINE] + (y - route[k, 1]) * route[k, SINE] > 0.0)


@numba.njit(cache=True)
def _wrapped(angle: float) -> float:
    return float(np.arctan2(np.sin(angle), np.cos(angle)))


@numba.njit(cache=True)
def _collisions(state: State, n: int, x: float, y: float, speed: float, ids: IntArray, kinds: IntArray) -> None:
    """CollisionTest: one event per accident, none while the ego stands. The sensor speaks first, then the test forgets."""
    count, real = state.whole[n], state.real[n]
    now = count[I_TICK] * TICK_SECONDS
    for c in range(len(ids)):
        if ids[c] < 0 or ids[c] == count[I_HIT]:
            continue
        if real[R_HIT_X] > NEVER and np.hypot(x - real[R_HIT_X], y - real[R_HIT_Y]) <= COLLISION_RADIUS:
            continue
        if abs(speed) < COLLISION_SPEED:
            continue
        real[R_HIT_TIME], real[R_HIT_X], real[R_HIT_Y] = now, x, y
        if ids[c] != 0:
            count[I_HIT] = ids[c]
        kind = _VEHICLE if kinds[c] == 0 else _PEDESTRIAN if kinds[c] == 1 else _STATIC
        report(state, n, kind, speed, x, y, ids[c])
    if real[R_HIT_X] > NEVER and np.hypot(x - real[R_HIT_X], y - real[R_HIT_Y]) > COLLISION_RADIUS:
        real[R_HIT_X] = NEVER
    if count[I_HIT] >= 0 and now - real[R_HIT_TIME] > COLLISION_SECONDS:
        count[I_HIT] = -1


@numba.njit(cache=True)
def _completion(tables: Tables, state: State, n: int, x: float, y: float) -> bool:
    """RouteCompletionTest; True a tick after the goal was reached, as its SUCCESS comes a tick late."""
    count, real = state.whole[n], state.real[n]
    if count[I_REACHED]:
        return True
    route, last = tables.route[n], tables.route_count[n] - 1
    index = count[I_INDEX]
    for k in range(index, min(index + COMPLETION_WINDOW, last) + 1):
        if _passed(route, k, x, y):
            count[I_INDEX] = k
            real[R_PERCENT] = route[k, ARC] / route[last, ARC] * 100.0
    real[R_PERCENT] = np.round(real[R_PERCENT], 2)
    near = np.hypot(x - route[last, 0], y - route[last, 1]) < COMPLETE_DISTANCE
    if real[R_PERCENT] > COMPLETE_PERCENT and near:
        count[I_REACHED] = 1
        real[R_PERCENT] = 100.0
        report(state, n, _COMPLETED, 100.0, x, y, -1.0)
    return False


@numba.njit(cache=True)
def _lanes(tables: Tables, state: State, n: int, x: float, y: float, heading: float, at: tuple[int, int, float, float]) -> None:
    """OutsideRouteLanesTest: which share of the route is driven off the lanes or against the traffic."""
    count, real = state.whole[n], state.real[n]
    lane, point, share, driving = at
    place = tables.driving.place[n]
    count[I_OUTSIDE] = 1
    if lane >= 0:
        width = place[point, WIDTH] + share * (place[min(point + 1, len(place) - 1), WIDTH] - place[point, WIDTH])
        away = driving
        parked, p, u, parking = nearest_strip(tables.parking, n, x, y, np.nan, driving)
        if parked >= 0:  # nearer than the driving lane
            park = tables.parking.place[n]
            away = parking
            width = park[p, WIDTH] + u * (park[min(p + 1, len(park) - 1), WIDTH] - park[p, WIDTH])
        count[I_OUTSIDE] = int(away > width / 2.0 + LANE_MARGIN)
        junction = place[point, JUNCTION] > 0.0
        direction = place[point, HEADING]
        if junction:
            count[I_WRONG] = 0
        elif count[I_LANE] != lane:
            if count[I_LANE_JUNCTION]:
                count[I_WRONG] = int(abs(_wrapped(direction - heading)) >= WRONG_VEHICLE_ANGLE)
            elif abs(_wrapped(direction - real[R_LANE_HEADING])) > WRONG_LANE_ANGLE:
                count[I_WRONG] = 1 - count[I_WRONG]
        count[I_LANE], count[I_LANE_JUNCTION], real[R_LANE_HEADING] = lane, int(junction), direction
    outside = count[I_OUTSIDE] == 1 or (state.wrong_way_counts[n] and count[I_WRONG] == 1)
    route, last = tables.route[n], tables.route_count[n] - 1
    index = count[I_OUTSIDE_INDEX]
    for k in range(index + 1, min(index + OUTSIDE_WINDOW, last) + 1):
        if _passed(route, k, x, y):
            now = count[I_OUTSIDE_INDEX]
            climb = route[k, HEIGHT] - route[now, HEIGHT]
            step = np.hypot(np.hypot(route[k, 0] - route[now, 0], route[k, 1] - route[now, 1]), climb)
            real[R_TOTAL] += step
            if outside:
                if real[R_WRONG] == 0.0:
                    real[R_OUT_X], real[R_OUT_Y] = x, y
                real[R_WRONG] += step
            if real[R_WRONG] > 0.0:
                real[R_OUT_TICK] = count[I_TICK]
            count[I_OUTSIDE_INDEX] = k


@numba.njit(cache=True)
def _red_lights(
    tables: Tables, state: State, n: int, x: float, y: float, heading: float, half_length: float, red: BoolArray
) -> None:
    """RunningRedLightTest: the ego's tail crosses the stop line of its lane while the light is red."""
    lines = tables.lights[n]
    c, s = np.cos(heading), np.sin(heading)
    near_x, near_y = x - 0.8 * half_length * c, y - 0.8 * half_length * s
    far_x, far_y = x - (half_length + 1.0) * c, y - (half_length + 1.0) * s
    lane = -2  # of the tail, looked up once it is needed
    for k in range(tables.light_count[n]):
        light = int(lines[k, 0])
        if light == state.whole[n, I_LIGHT] or not red[light]:
            continue
        if np.hypot(x - lines[k, 7], y - lines[k, 8]) > LIGHT_DISTANCE:
            continue
        if lane == -2:
            lane, _, _, _ = nearest_strip(
                tables.driving, n, far_x, far_y, tables.route[n, state.whole[n, I_INDEX], HEIGHT], REACH
            )
        if lane != int(lines[k, 1]) or np.cos(heading - lines[k, 6]) <= 0.0:
            continue
        if _cross(near_x, near_y, far_x, far_y, lines[k, 2], lines[k, 3], lines[k, 4], lines[k, 5]):
            report(state, n, _LIGHT, 0.0, x, y, light)
            state.whole[n, I_LIGHT] = light


@numba.njit(cache=True)
def _cross(
    ax: float, ay: float, bx: float, by: float, cx: float, cy: float, dx: float, dy: float
) -> bool:  # fmt: skip
    """Whether segments ab and cd meet."""
    side_c = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
    side_d = (bx - ax) * (dy - ay) - (by - ay) * (dx - ax)
    side_a = (dx - cx) * (ay - cy) - (dy - cy) * (ax - cx)
    side_b = (dx - cx) * (by - cy) - (dy - cy) * (bx - cx)
    return side_c * side_d <= 0.0 and side_a * side_b <= 0.0


@numba.njit(cache=True)
def _affected(tables: Tables, n: int, sign: int, at: tuple[int, int, float, float]) -> bool:
    """``is_actor_affected_by_stop``: a point of the lane, from the ego to 4 m ahead of it, lies in the sign's box."""
    lane, point, share, _ = at
    if lane < 0:
        return False
    place, boxes = tables.driving.place[n], tables.signs[n]
    ahead = min(point + 1, tables.lanes[n, lane, 1])
    x = place[point, X] + share * (place[ahead, X] - place[point, X])
    y = place[point, Y] + share * (place[ahead, Y] - place[point, Y])
    for k in range(tables.sign_count[n]):
        if int(boxes[k, 0]) != sign or np.hypot(x - boxes[k, 1], y - boxes[k, 2]) > STOP_DISTANCE:
            continue
        reach = STOP_GROWTH * boxes[k, 3]
        px, py, on, a = x, y, lane, ahead
        for _ in range(int(STOP_DISTANCE / STOP_STEP) + 1):
            if abs(px - boxes[k, 1]) < reach and abs(py - boxes[k, 2]) < reach:
                return True
            left = STOP_STEP
            while left > 0.0:
                gap = np.hypot(place[a, X] - px, place[a, Y] - py)
                if gap > left:
                    px += left / gap * (place[a, X] - px)
                    py += left / gap * (place[a, Y] - py)
                    break
                px, py = place[a, X], place[a, Y]
                left -= gap
                if a < tables.lanes[n, on, 1]:
                    a += 1
                elif tables.lanes[n, on, 2] >= 0:
                    on = tables.lanes[n, on, 2]
                    a = tables.lanes[n, on, 0]
                else:
                    break
    return False


@numba.njit(cache=True)
def _stop_signs(
    tables: Tables, state: State, n: int, x: float, y: float, heading: float, speed: float, at: tuple[int, int, float, float]
) -> None:
    """RunningStopTest: a sign's box was passed without having stood in front of it."""
    count = state.whole[n]
    if tables.sign_count[n] == 0:
        return
    if count[I_SIGN] < 0:
        lane, point, _, _ = at
        if lane < 0 or speed < BACKWARDS or np.cos(heading - tables.driving.place[n, point, HEADING]) < BACKWARDS:
            return
        for k in range(tables.sign_count[n]):
            sign = int(tables.signs[n, k, 0])
            if _affected(tables, n, sign, at):
                count[I_SIGN] = sign
                return
        return
    if not count[I_STOPPED] and abs(speed) < STOP_SPEED:
        count[I_STOPPED] = 1
    if not _affected(tables, n, count[I_SIGN], at):
        if not count[I_STOPPED] and count[I_FAILED_SIGN] != count[I_SIGN]:
            report(state, n, _STOP, 0.0, x, y, count[I_SIGN])
            count[I_FAILED_SIGN] = count[I_SIGN]
        count[I_SIGN] = -1
        count[I_STOPPED] = 0


@numba.njit(cache=True)
def speed_checkpoint(state: State, n: int, x: float, y: float) -> None:
    """MinimumSpeedRouteTest's event: the ego's mean speed as a percentage of the traffic's since the last one."""
    count, real = state.whole[n], state.real[n]
    value = 100.0
    if count[I_SPEED_COUNT] > 0 and real[R_TRAFFIC] != 0.0:
        traffic, ego = real[R_TRAFFIC] / count[I_SPEED_COUNT], real[R_EGO] / count[I_SPEED_COUNT]
        value = np.round(ego / traffic * 100.0, 2)
    report(state, n, _SLOW, value, x, y, -1.0)


@numba.njit(cache=True)
def _min_speed(tables: Tables, state: State, n: int, x: float, y: float, speed: float, traffic: float) -> None:
    """MinimumSpeedRouteTest; ``traffic`` is NaN while there is none."""
    count, real = state.whole[n], state.real[n]
    route, last = tables.route[n], tables.route_count[n] - 1
    index = count[I_SPEED_INDEX]
    for k in range(index, min(index + SPEED_WINDOW, last) + 1):
        if _passed(route, k, x, y):
            count[I_SPEED_INDEX] = k
    driven = route[count[I_SPEED_INDEX], ARC]
    if driven - real[R_SPEED_FROM] > route[last, ARC] / SPEED_CHECKPOINTS:
        speed_checkpoint(state, n, x, y)
        real[R_SPEED_FROM] = driven
        real[R_TRAFFIC] = real[R_EGO] = 0.0
        count[I_SPEED_COUNT] = 0
    if traffic == traffic:
        real[R_TRAFFIC] += traffic
        real[R_EGO] += abs(speed)
        count[I_SPEED_COUNT] += 1


@numba.njit(cache=True)
def _in_route(tables: Tables, state: State, n: int, x: float, y: float) -> bool:
    """InRouteTest; True where the ego has left the route."""
    count, real = state.whole[n], state.real[n]
    route, last = tables.route[n], tables.route_count[n] - 1
    index = count[I_IN_ROUTE]
    closest, shortest = index, np.inf
    for k in range(index, min(index + IN_ROUTE_WINDOW, last) + 1):
        distance = np.hypot(x - route[k, 0], y - route[k, 1])
        if distance <= shortest:
            closest, shortest = k, distance
    off = True
    if shortest < OFF_ROUTE:
        off = False
        count[I_IN_SAFE] = int(shortest < OFF_ROUTE_SAFE)
    if closest != index:
        if not count[I_IN_SAFE]:
            real[R_OUT_METRES] += route[closest, ARC] - route[index, ARC]
            if 100.0 * real[R_OUT_METRES] / route[last, ARC] > OFF_ROUTE_PERCENT:
                off = True
        count[I_IN_ROUTE] = closest
    if off:
        report(state, n, _DEVIATION, shortest, x, y, -1.0)
    return off


@numba.njit(cache=True)
def _is_blocked(state: State, n: int, x: float, y: float, speed: float) -> bool:
    """ActorBlockedTest; True where the ego has stood for a minute."""
    real = state.real[n]
    now = state.whole[n, I_TICK] * TICK_SECONDS
    if not state.blocked_counts[n]:
        real[R_MOVED_TIME] = now
        return False
    if abs(speed) < BLOCKED_SPEED and real[R_MOVED_TIME] > NEVER:
        if now - real[R_MOVED_TIME] > BLOCKED_SECONDS:
            report(state, n, _BLOCKED, 0.0, x, y, -1.0)
            return True
    else:
        real[R_MOVED_TIME] = now
    return False


@numba.njit(cache=True)
def _out_of_time(tables: Tables, state: State, n: int, x: float, y: float) -> bool:
    """RouteTimeoutBehavior (timer.py): 300 s, and more for every metre driven, at a tenth of the speed limit."""
    count, real = state.whole[n], state.real[n]
    route, last = tables.route[n], tables.route_count[n] - 1
    index = new = count[I_TIME_INDEX]
    for k in range(index, min(index + TIMEOUT_WINDOW, last) + 1):
        if _passed(route, k, x, y):
            new = k
    if new > index:
        real[R_TIME_LIMIT] += (route[new, ARC] - route[index, ARC]) / (route[new, LIMIT] * ROUTE_SPEED_SHARE)
        count[I_TIME_INDEX] = new
    if count[I_TICK] * TICK_SECONDS > real[R_TIME_LIMIT]:
        report(state, n, _TIMEOUT, 0.0, x, y, -1.0)
        return True
    return False


@numba.njit(cache=True)
def tick(
    tables: Tables,
    state: State,
    pose: FloatArray,
    speed: FloatArray,
    half_length: FloatArray,
    contact_id: IntArray,
    contact_kind: IntArray,
    red: BoolArray,
    traffic: FloatArray,
    live: BoolArray,
    tick_limit: int,
) -> None:
    """One tick of every live environment; ``I_ENDED`` says why one has ended."""
    for n in range(len(pose)):
        count = state.whole[n]
        if not live[n] or count[I_ENDED] != RUNNING:
            continue
        count[I_TICK] += 1
        x, y, heading = pose[n]
        if count[I_TICK] > tick_limit:  # the official loop gives up before its criteria see this tick
            count[I_ENDED] = TICK_LIMIT
        else:
            _collisions(state, n, x, y, speed[n], contact_id[n], contact_kind[n])
            timed_out = _out_of_time(tables, state, n, x, y)
            at = nearest_strip(tables.driving, n, x, y, tables.route[n, count[I_INDEX], HEIGHT], REACH)
            completed = _completion(tables, state, n, x, y)
            _lanes(tables, state, n, x, y, heading, at)
            _red_lights(tables, state, n, x, y, heading, half_length[n], red[n])
            _stop_signs(tables, state, n, x, y, heading, speed[n], at)
            _min_speed(tables, state, n, x, y, speed[n], traffic[n])
            deviated = _in_route(tables, state, n, x, y)
            blocked = _is_blocked(state, n, x, y, speed[n])
            if deviated:
                count[I_ENDED] = DEVIATED
            elif blocked:
                count[I_ENDED] = BLOCKED
            elif completed:
                count[I_ENDED] = COMPLETED
            elif timed_out:
                count[I_ENDED] = TIMED_OUT
        if count[I_ENDED] != RUNNING:
            finish(tables, state, n, x, y)


@numba.njit(cache=True)
def finish(tables: Tables, state: State, n: int, x: float, y: float) -> None:
    """``terminate`` of the criteria: near the goal the last speed checkpoint is written, and written twice.

    py_trees ends the criteria once and ``BasicScenario.terminate`` once more; only the tick limit's exception spares the first.
    """
    route, last = tables.route[n], tables.route_count[n] - 1
    if route[state.whole[n, I_SPEED_INDEX], ARC] / route[last, ARC] > 0.95:
        speed_checkpoint(state, n, x, y)
        if state.whole[n, I_ENDED] != TICK_LIMIT:
            speed_checkpoint(state, n, x, y)
