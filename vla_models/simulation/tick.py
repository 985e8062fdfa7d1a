"""The world's clock: all environments, tick by tick, in one numba kernel."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from vla_models.kernels import numba
from vla_models.simulation import checks, directing
from vla_models.simulation.agents import step_agents
from vla_models.simulation.chance import normal, uniform
from vla_models.simulation.lights import switch
from vla_models.simulation.tables import (
    E_DONE,
    E_H,
    E_PLAN_DT,
    E_PLAN_LENGTH,
    E_PLAN_TICK,
    E_SEED,
    E_TICK,
    E_X,
    E_Y,
    N_SLIPPERY,
    STATE,
)
from vla_models.simulation.vehicle import REAR_TO_CENTER, drive, pid_controls, tracker_controls

TRAFFIC_EVERY: Final = 20
"""Ticks between two looks at whether background traffic should enter or leave."""
THROTTLE_NOISE, THROTTLE_SPREAD, STEER_NOISE, STEER_SPREAD = 0.03, 0.01, 0.055, 0.015
"""Of ``ControlLoss``: means (of a random sign at each place) and deviations of what is added to the controls."""


@numba.njit(cache=True)
def set_plan(env, store, plan, dt):  # type: ignore[no-untyped-def]
    """Put a plan [T, 3] (ego frame: rear axle) in force: its places in the town's frame, the ego's own first."""
    c, s = math.cos(env[E_H]), math.sin(env[E_H])
    store[0, 0], store[0, 1], store[0, 2] = env[E_X], env[E_Y], env[E_H]
    for k in range(len(plan)):
        store[k + 1, 0] = env[E_X] + c * plan[k, 0] - s * plan[k, 1]
        store[k + 1, 1] = env[E_Y] + s * plan[k, 0] + c * plan[k, 1]
        store[k + 1, 2] = env[E_H] + plan[k, 2]
    env[E_PLAN_TICK], env[E_PLAN_DT], env[E_PLAN_LENGTH] = env[E_TICK], dt, len(plan)


@numba.njit(cache=True)
def _slip(env, slippery, scenarios, x, y, steer, throttle):  # type: ignore[no-untyped-def]
    """Controls with ``AddNoiseToRouteEgo`` where the road is slippery."""
    for z in range(int(env[N_SLIPPERY])):
        place = slippery[z]
        if scenarios[int(place[3]), STATE] != 1.0 or math.hypot(x - place[0], y - place[1]) > place[2]:
            continue
        side = 1.0 if uniform(env[E_SEED], 20, z) < 0.5 else -1.0
        push = 1.0 if uniform(env[E_SEED], 21, z) < 0.5 else -1.0
        steer += side * STEER_NOISE + STEER_SPREAD * normal(env[E_SEED], 22, env[E_TICK])
        throttle += push * THROTTLE_NOISE + THROTTLE_SPREAD * normal(env[E_SEED], 23, env[E_TICK])
        return min(max(steer, -1.0), 1.0), min(max(throttle, 0.0), 1.0)
    return steer, throttle


@numba.njit(cache=True)
def _set_stage(t, n, nearest):  # type: ignore[no-untyped-def]
    """Bring the stage of environment ``n`` up to date without moving anything: lights, cues, flows, traffic (used at its
    start)."""
    env, actors = t.env[n], t.actors[n]
    x, y = env[E_X] + REAR_TO_CENTER * math.cos(env[E_H]), env[E_Y] + REAR_TO_CENTER * math.sin(env[E_H])
    note = np.full(2, -1.0)
    route = t.points[n, t.path_offsets[n, 0] : t.path_offsets[n, 1]]
    checks.progress(env, actors, t.scenarios[n], route, x, y)
    directing.step_scenarios(env, actors, t.scenarios[n], x, y, note)
    directing.roll_call(env, actors, t.awake[n], t.scenarios[n])
    directing.step_cues(env, actors, t.awake[n], t.scenarios[n], x, y, note)
    directing.step_flows(env, actors, t.flows[n], t.scenarios[n], t.points[n], t.path_offsets[n], x, y)
    for _ in range(6):
        directing.step_traffic(env, actors, t.scenarios[n], t.traffic[n], t.points[n], t.path_offsets[n], x, y, nearest)
    directing.roll_call(env, actors, t.awake[n], t.scenarios[n])
    switch(env, t.lights[n], t.light_cycle[n], t.scenarios[n], t.script[n])


@numba.njit(cache=True)
def _tick(t, n, tracker):  # type: ignore[no-untyped-def]
    """One tick of environment ``n``."""
    env, actors, awake, scenarios = t.env[n], t.actors[n], t.awake[n], t.scenarios[n]
    points, offsets, events = t.points[n], t.path_offsets[n], t.events[n]
    tick = int(env[E_TICK])
    x, y = env[E_X] + REAR_TO_CENTER * math.cos(env[E_H]), env[E_Y] + REAR_TO_CENTER * math.sin(env[E_H])
    note = np.full(2, -1.0)
    changed = directing.step_scenarios(env, actors, scenarios, x, y, note)
    if note[0] >= 0.0:
        checks.note_event(env, events, note[0], 0.0, note[1])
    if changed or tick % directing.ROLL_CALL == 0:
        directing.roll_call(env, actors, awake, scenarios)
    note[0] = -1.0
    directing.step_cues(env, actors, awake, scenarios, x, y, note)
    if note[0] >= 0.0:
        checks.note_event(env, events, note[0], 0.0, note[1])
    if directing.step_flows(env, actors, t.flows[n], scenarios, points, offsets, x, y):
        directing.roll_call(env, actors, awake, scenarios)
    if tick % TRAFFIC_EVERY == 0:
        directing.step_standoffs(env, actors, awake, x, y)
        directing.step_traffic(env, actors, scenarios, t.traffic[n], points, offsets, x, y, directing.SPAWN_NEAR)
    switch(env, t.lights[n], t.light_cycle[n], scenarios, t.script[n])
    if tracker:
        steer, throttle, brake = tracker_controls(env, t.plan[n])
    else:
        steer, throttle, brake = pid_controls(env, t.plan[n], t.pid[n])
    if env[N_SLIPPERY] > 0.0:
        steer, throttle = _slip(env, t.slippery[n], scenarios, x, y, steer, throttle)
    drive(env, steer, throttle, brake)
    step_agents(env, actors, awake, points, offsets, t.cross_offsets[n], t.cross[n], t.stop_offsets[n], t.stops[n], t.lights[n])
    x, y = env[E_X] + REAR_TO_CENTER * math.cos(env[E_H]), env[E_Y] + REAR_TO_CENTER * math.sin(env[E_H])
    checks.collide(env, actors, awake, events, x, y)
    route = points[offsets[0] : offsets[1]]
    moved, away = checks.progress(env, actors, scenarios, route, x, y)
    checks.obey(env, events, t.stops[n], t.stop_offsets[n, 0], t.stop_offsets[n, 1], t.lights[n])
    checks.compare_speed(env, actors, awake, events)
    checks.write_log(env, t.log[n], x, y)
    checks.finish(env, events, route, moved, away, x, y, len(t.log[n]))
    env[E_TICK] += 1.0


@numba.njit(cache=True, nogil=True)
def advance(t, plans, dt, ticks, tracker, fresh, nearest):  # type: ignore[no-untyped-def]
    """Put plans [N, T, 3] in force and run ``ticks`` ticks of every environment whose episode has not ended. With ``fresh``
    >= 0 instead: set the stage of that environment at its start, traffic no nearer than ``nearest`` (in one kernel with the
    rest, so that its parts are compiled once)."""
    if fresh >= 0:
        _set_stage(t, fresh, nearest)
        return
    for n in range(len(t.env)):
        if t.env[n, E_DONE] > 0.0:
            continue
        set_plan(t.env[n], t.plan[n], plans[n], dt)
        for _ in range(ticks):
            _tick(t, n, tracker)
            if t.env[n, E_DONE] > 0.0:
                break
