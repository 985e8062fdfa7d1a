"""Who is on stage: scenarios begin and end, actors wait for their cue, flows and the background traffic bring in new vehicles.

These are the small state machines that scenario_runner builds from behaviour trees, as columns of the actor, scenario and flow
tables. One environment at a time, once a tick.
"""

from __future__ import annotations

import math
from typing import Final

from vla_models.kernels import numba
from vla_models.simulation.agents import place
from vla_models.simulation.chance import uniform
from vla_models.simulation.roads import CAP, JUNCTION
from vla_models.simulation.tables import (
    AACC,
    AD,
    AD_TO,
    AH,
    AHEAD,
    AS,
    AV,
    AX,
    AY,
    BACKGROUND,
    BEGIN,
    BRAKE_SECONDS,
    BRAKE_UNTIL,
    DELAY,
    E_AWAKE,
    E_DRAWS,
    E_H,
    E_HIT_ACTOR,
    E_PROGRESS,
    E_SEED,
    E_SLOW_SINCE,
    E_TICK,
    E_V,
    EMERGENCY,
    END,
    F_COUNT,
    F_DELAY,
    F_DISTANCE,
    F_FILL,
    F_FIRST,
    F_FROM,
    F_LAST,
    F_NEXT,
    F_PATH,
    F_SCENARIO,
    F_SINCE,
    F_SLOTS,
    F_SPEED,
    F_STATE,
    F_TO,
    F_X,
    F_Y,
    GAP,
    LEAVE_AFTER,
    LEAVE_DISTANCE,
    LENGTH,
    N_ACTORS,
    N_FLOWS,
    N_SCENARIOS,
    N_TRAFFIC,
    NEAR_SINCE,
    PATH,
    PHASE,
    PRESENT,
    QUIET_RADIUS,
    QUIET_X,
    QUIET_Y,
    SCENARIO,
    SEES,
    SHOWN,
    SINCE,
    SPEED_MODE,
    START,
    START_DISTANCE,
    START_TIME,
    START_X,
    START_Y,
    STATE,
    STATE_SINCE,
    STOP_PASSED,
    TARGET,
    TICK,
    TIMEOUT,
    TRAVELLED,
    WINDOW,
    Event,
    Phase,
    Shown,
    Speed,
    Start,
)

WAITING, DELAYED, MOVING, GONE = (float(p) for p in Phase)
EGO_PLUS = float(Speed.EGO_PLUS)
AT_ONCE, NEAR_PLACE, WITH_SCENARIO, NEAR_ME = (float(s) for s in Start)
FROM_SCENARIO, FROM_MOVING = float(Shown.WITH_SCENARIO), float(Shown.WHEN_MOVING)
ROLL_CALL: Final = 10
"""Ticks between two looks at who is awake."""
AHEAD_OF_BEGIN: Final = 2.0
"""Metres before a scenario's trigger point at which it begins (scenario_runner's ``ScenarioTriggerer``)."""
SPAWN_NEAR, SPAWN_FAR, TOO_FAR = 45.0, 130.0, 160.0
"""Metres from the ego within which the background traffic enters, and beyond which it leaves."""
CALM: Final = 12.0
"""Metres from the ego at which traffic enters standing; further away it is as fast as it can still stop."""
IN_SIGHT: Final = 25.0
"""Metres from the ego within which moving traffic is not taken out of a scenario's place."""
STANDOFF: Final = 20.0
STANDOFF_REACH: Final = 10.0
"""Metres between the middles of the ego and of one who stands in its way."""
SOURCE_AWAY: Final = 16.0
"""Metres from the ego within which a flow's source brings in nobody."""
SPAWN_GAP: Final = 16.0
TRAFFIC_REACH: Final = 140.0
"""Metres along the route within which a path of the background traffic is used."""
TIMEOUT_EVENT, YIELD_EVENT = int(Event.SCENARIO_TIMEOUT), int(Event.YIELD_TO_EMERGENCY)


@numba.njit(cache=True)
def roll_call(env, actors, awake, scenarios):  # type: ignore[no-untyped-def]
    """List the slots that are looked at: the ego, the background traffic, and the actors of scenarios that are near."""
    awake[0] = 0
    n = 1
    for i in range(1, int(env[N_ACTORS])):
        if actors[i, PHASE] == GONE and actors[i, BACKGROUND] == 0.0:
            continue
        k = int(actors[i, SCENARIO])
        if k >= 0 and (scenarios[k, STATE] == 2.0 or env[E_PROGRESS] < scenarios[k, WINDOW]):
            continue
        awake[n] = i
        n += 1
    env[E_AWAKE] = n


@numba.njit(cache=True)
def step_scenarios(env, actors, scenarios, ego_x, ego_y, note):  # type: ignore[no-untyped-def]
    """Begin and end scenarios. Returns whether one did; ``note`` [2] gets (event kind, scenario) or stays -1."""
    changed = False
    for k in range(int(env[N_SCENARIOS])):
        state = scenarios[k, STATE]
        if state == 2.0:
            continue
        if state == 0.0 and env[E_PROGRESS] >= scenarios[k, BEGIN] - AHEAD_OF_BEGIN:
            scenarios[k, STATE], scenarios[k, STATE_SINCE] = 1.0, env[E_TICK]
            for i in range(1, int(env[N_ACTORS])):
                if actors[i, SCENARIO] == k and actors[i, BRAKE_SECONDS] > 0.0:
                    actors[i, BRAKE_UNTIL] = env[E_TICK] + actors[i, BRAKE_SECONDS] / TICK
            changed = True
        elif state == 1.0:
            late = (env[E_TICK] - scenarios[k, STATE_SINCE]) * TICK >= scenarios[k, TIMEOUT]
            if late or env[E_PROGRESS] >= scenarios[k, END]:
                scenarios[k, STATE], scenarios[k, STATE_SINCE] = 2.0, env[E_TICK]
                if late:
                    note[0], note[1] = TIMEOUT_EVENT, k
                for i in range(1, int(env[N_ACTORS])):
                    if actors[i, SCENARIO] == k:
                        if actors[i, EMERGENCY] > 0.0 and actors[i, PRESENT] > 0.0 and _behind(actors[i], ego_x, ego_y):
                            note[0], note[1] = YIELD_EVENT, i
                        actors[i, PHASE], actors[i, PRESENT] = GONE, 0.0
                changed = True
    return changed


@numba.njit(cache=True)
def _behind(actor, ego_x, ego_y):  # type: ignore[no-untyped-def]
    """Whether an actor has the ego still before it (``YieldToEmergencyVehicleTest``)."""
    return math.cos(actor[2]) * (ego_x - actor[AX]) + math.sin(actor[2]) * (ego_y - actor[AY]) > 0.0


@numba.njit(cache=True)
def step_cues(env, actors, awake, scenarios, ego_x, ego_y, note):  # type: ignore[no-untyped-def]
    """Show actors, set them moving, and let them leave."""
    tick = env[E_TICK]
    for a in range(1, int(env[E_AWAKE])):
        me = actors[awake[a]]
        if me[PHASE] == GONE:
            continue
        if me[BACKGROUND] > 0.0:
            if me[NEAR_SINCE] >= 0.0 and (tick - me[NEAR_SINCE]) * TICK >= me[LEAVE_AFTER]:
                me[PHASE], me[PRESENT] = GONE, 0.0  # hit, and cleared away
            continue
        k = int(me[SCENARIO])
        running = k < 0 or scenarios[k, STATE] == 1.0
        if me[PHASE] == WAITING:
            if me[PRESENT] == 0.0 and (me[SHOWN] == 0.0 or (me[SHOWN] == FROM_SCENARIO and running)):
                me[PRESENT] = 1.0
            go = me[START] == AT_ONCE
            if running and not go:
                if me[START] == WITH_SCENARIO:
                    go = True
                elif me[START] == NEAR_PLACE:
                    d = math.hypot(ego_x - me[START_X], ego_y - me[START_Y])
                    go = d < me[START_DISTANCE] or d < me[START_TIME] * env[E_V]
                else:
                    go = math.hypot(ego_x - me[AX], ego_y - me[AY]) < me[START_DISTANCE]
            if go and (running or me[SHOWN] == 0.0):
                me[PHASE], me[SINCE] = DELAYED, tick
        if me[PHASE] == DELAYED and (tick - me[SINCE]) * TICK >= me[DELAY] and me[SINCE] < 1e17:
            me[PHASE], me[SINCE], me[PRESENT] = MOVING, tick, 1.0
            if me[SPEED_MODE] == EGO_PLUS:
                me[AV] = env[E_V] + me[TARGET]
        if running and me[LEAVE_AFTER] < math.inf and me[PRESENT] > 0.0:
            if me[NEAR_SINCE] < 0.0 and math.hypot(ego_x - me[AX], ego_y - me[AY]) < me[LEAVE_DISTANCE]:
                me[NEAR_SINCE] = tick
            if me[NEAR_SINCE] >= 0.0 and (tick - me[NEAR_SINCE]) * TICK >= me[LEAVE_AFTER]:
                if me[EMERGENCY] > 0.0 and _behind(me, ego_x, ego_y):
                    note[0], note[1] = YIELD_EVENT, awake[a]
                me[PHASE], me[PRESENT] = GONE, 0.0


@numba.njit(cache=True)
def step_standoffs(env, actors, awake, ego_x, ego_y):  # type: ignore[no-untyped-def]
    """Clear away who stands right before the ego, facing it or across its way, or beside it and waits for it, while both have
    stood for ``STANDOFF`` seconds, and what the ego has hit and stands against. Nobody in this world drives backwards, so it
    would last for ever."""
    if (env[E_TICK] - env[E_SLOW_SINCE]) * TICK < STANDOFF:
        return
    c, s = math.cos(env[E_H]), math.sin(env[E_H])
    for a in range(1, int(env[E_AWAKE])):
        me = actors[awake[a]]
        if me[PRESENT] == 0.0 or me[AV] > 0.1:
            continue
        dx, dy = me[AX] - ego_x, me[AY] - ego_y
        along, across = c * dx + s * dy, -s * dx + c * dy
        if awake[a] == env[E_HIT_ACTOR] and math.hypot(dx, dy) < STANDOFF_REACH:
            me[PHASE], me[PRESENT] = GONE, 0.0
        if me[PHASE] != MOVING or me[SEES] == 0.0:
            continue
        if abs(across) > 3.6 or not -4.0 < along < STANDOFF_REACH:
            continue
        if me[GAP] < 0.5 or (along > 0.0 and math.cos(me[AH] - env[E_H]) < 0.8):
            me[PHASE], me[PRESENT] = GONE, 0.0


@numba.njit(cache=True)
def _refresh(me):  # type: ignore[no-untyped-def]
    """Make an actor's slot that of a new one, that has seen nothing and hit nobody."""
    me[GAP], me[AHEAD], me[STOP_PASSED] = 1e9, 0.0, -1.0
    me[BRAKE_UNTIL], me[NEAR_SINCE], me[LEAVE_AFTER] = -1.0, -1.0, math.inf


@numba.njit(cache=True)
def _enter(env, actors, flow, path, s):  # type: ignore[no-untyped-def]
    """Bring a flow's next actor in at ``s`` metres, if a slot is free."""
    for i in range(int(flow[F_FIRST]), int(flow[F_FIRST] + flow[F_SLOTS])):
        me = actors[i]
        if me[PHASE] == WAITING or me[PHASE] == GONE:
            me[PHASE], me[SINCE], me[PRESENT] = MOVING, env[E_TICK], 1.0
            me[AS], me[AV], me[AACC], me[TRAVELLED] = s, flow[F_SPEED], 0.0, 0.0
            _refresh(me)
            place(me, path)
            flow[F_LAST] = i
            flow[F_COUNT] += 1.0
            u = uniform(env[E_SEED], 1000 + int(flow[F_FIRST]), flow[F_COUNT])
            flow[F_NEXT] = flow[F_FROM] + u * (flow[F_TO] - flow[F_FROM])
            return True
    return False


@numba.njit(cache=True)
def step_flows(env, actors, flows, scenarios, points, offsets, ego_x, ego_y):  # type: ignore[no-untyped-def]
    """Sources of traffic (scenario_runner's ``ActorFlow``, ``OppositeActorFlow``, ``BicycleFlow``): a new actor as soon as the
    last one is far enough from the source."""
    entered = False
    for f in range(int(env[N_FLOWS])):
        flow = flows[f]
        if scenarios[int(flow[F_SCENARIO]), STATE] != 1.0:
            continue
        path = points[offsets[int(flow[F_PATH])] : offsets[int(flow[F_PATH]) + 1]]
        if flow[F_STATE] == 0.0 and math.hypot(ego_x - flow[F_X], ego_y - flow[F_Y]) < flow[F_DISTANCE]:
            flow[F_STATE], flow[F_SINCE] = 1.0, env[E_TICK]
        if flow[F_STATE] == 1.0 and (env[E_TICK] - flow[F_SINCE]) * TICK >= flow[F_DELAY]:
            flow[F_STATE] = 2.0
            u = uniform(env[E_SEED], 1000 + int(flow[F_FIRST]), 0.0)
            flow[F_NEXT] = flow[F_FROM] + u * (flow[F_TO] - flow[F_FROM])
            if flow[F_FILL] > 0.0:
                s = len(path) - 3.0 - flow[F_NEXT]
                while s > 0.0:  # from the sink back to the source, so that the last one in is the last in the row
                    if math.hypot(path[int(s), 0] - ego_x, path[int(s), 1] - ego_y) > 9.0:
                        entered = _enter(env, actors, flow, path, s) or entered
                    s -= max(flow[F_NEXT], 6.0)
        if flow[F_STATE] == 2.0:
            last = int(flow[F_LAST])
            clear = last < 0 or actors[last, PHASE] == GONE or actors[last, AS] > flow[F_NEXT]
            if clear and math.hypot(path[0, 0] - ego_x, path[0, 1] - ego_y) > SOURCE_AWAY:
                entered = _enter(env, actors, flow, path, 0.0) or entered
    return entered


@numba.njit(cache=True)
def _quiet(scenarios, count, progress, x, y):  # type: ignore[no-untyped-def]
    """Whether the background traffic has to keep away from (x, y)."""
    for k in range(count):
        if scenarios[k, STATE] == 2.0 or scenarios[k, QUIET_RADIUS] == 0.0 or progress < scenarios[k, WINDOW]:
            continue
        if (x - scenarios[k, QUIET_X]) ** 2 + (y - scenarios[k, QUIET_Y]) ** 2 < scenarios[k, QUIET_RADIUS] ** 2:
            return True
    return False


@numba.njit(cache=True)
def step_traffic(env, actors, scenarios, traffic, points, offsets, ego_x, ego_y, nearest):  # type: ignore[no-untyped-def]
    """Bring in background traffic around the ego and take away what has left its surroundings. Random by counters."""
    progress, seed = env[E_PROGRESS], env[E_SEED]
    n, paths, scripts = int(env[N_ACTORS]), int(env[N_TRAFFIC]), int(env[N_SCENARIOS])
    if paths == 0:
        return
    for i in range(1, n):
        me = actors[i]
        if me[BACKGROUND] == 0.0:
            continue
        if me[PHASE] == MOVING:
            away = math.hypot(me[AX] - ego_x, me[AY] - ego_y)
            if away > TOO_FAR or ((away > IN_SIGHT or me[AV] < 3.0) and _quiet(scenarios, scripts, progress, me[AX], me[AY])):
                me[PHASE], me[PRESENT] = GONE, 0.0
            continue
        for _ in range(4):
            env[E_DRAWS] += 1.0
            b = int(uniform(seed, 1, env[E_DRAWS]) * paths)
            if abs(traffic[b, 1] - progress) > TRAFFIC_REACH:
                continue
            p = int(traffic[b, 0])
            path = points[offsets[p] : offsets[p + 1]]
            s = uniform(seed, 2, env[E_DRAWS]) * 0.8 * (len(path) - 2)
            k = int(s)
            d = math.hypot(path[k, 0] - ego_x, path[k, 1] - ego_y)
            if d < nearest or d > SPAWN_FAR or path[k, JUNCTION] > 0.0:
                continue
            if _quiet(scenarios, scripts, progress, path[k, 0], path[k, 1]):
                continue
            free = True
            for j in range(1, n):
                if actors[j, PRESENT] > 0.0:
                    close = SPAWN_GAP + 0.5 * actors[j, LENGTH]
                    if (actors[j, AX] - path[k, 0]) ** 2 + (actors[j, AY] - path[k, 1]) ** 2 < close * close:
                        free = False
                        break
            if not free:
                continue
            me[PATH], me[AS], me[AD], me[AD_TO] = p, s, 0.0, 0.0
            me[AV], me[AACC] = min(0.8 * path[k, CAP], math.sqrt(4.0 * max(d - CALM, 0.0))), 0.0
            me[TRAVELLED], me[PHASE], me[SINCE], me[PRESENT] = 0.0, MOVING, env[E_TICK], 1.0
            _refresh(me)
            me[TARGET] = 0.85 + 0.2 * uniform(seed, 3, env[E_DRAWS])
            place(me, path)
            break
