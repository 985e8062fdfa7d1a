"""The ego: a kinematic bicycle with the dimensions of CARLA's Lincoln MKZ, and the two controllers that follow a plan.

Steering: at full lock the public fit of CARLA's ego (World on Rails, Chen et al. 2021, ``ego_model``) turns with 0.27 1/m,
that is 0.65 rad on a wheelbase of 2.86 m. Full brake decelerates by 4.95 m/s² there; throttle and drag are ours, chosen so
that 0.75 throttle (the PID's limit) reaches 50 km/h in 5 s.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from vla_models.control import (
    AIM_DISTANCE,
    BRAKE_RATIO,
    BRAKE_SPEED,
    CLIP_DELTA,
    MAX_THROTTLE,
    PLAN_DT,
)
from vla_models.kernels import numba
from vla_models.simulation.tables import (
    E_ACC,
    E_BRAKE,
    E_H,
    E_LATERAL,
    E_PID_AT,
    E_PLAN_DT,
    E_PLAN_LENGTH,
    E_PLAN_TICK,
    E_STEER,
    E_THROTTLE,
    E_TICK,
    E_V,
    E_X,
    E_Y,
    E_YAW_RATE,
    PID_WINDOW,
    TICK,
)

WHEELBASE: Final = 2.86
LENGTH: Final = 4.89
WIDTH: Final = 1.84
REAR_TO_CENTER: Final = 1.43
"""Metres from the rear axle to the box's centre (CARLA's origin of the vehicle)."""
FULL_LOCK: Final = 0.65
"""Radians of the front wheels at steer 1."""
LOCK_RATE: Final = 3.0
"""Full locks a second that the wheels turn, at most."""
FULL_BRAKE: Final = 4.95
FULL_THROTTLE: Final = 4.6
DRAG: Final = 0.08
"""1/s: m/s² lost per m/s."""
AIM_TIME: Final = 0.8
"""Seconds of driving ahead at which the tracker steers."""


@numba.njit(cache=True)
def planned_at(plan, count, dt, seconds, out):  # type: ignore[no-untyped-def]
    """Place (x, y) of a plan at ``seconds`` from its start into ``out`` [2]; row ``count`` … is unused, row 0 is the start
    itself. Past the end the last segment goes on."""
    u = seconds / dt
    k = min(max(int(u), 0), count - 1)
    u -= k
    out[0] = plan[k, 0] + u * (plan[k + 1, 0] - plan[k, 0])
    out[1] = plan[k, 1] + u * (plan[k + 1, 1] - plan[k, 1])


@numba.njit(cache=True)
def _pid(errors, at, error, proportional, integral, derivative):  # type: ignore[no-untyped-def]
    """``control.PID.step`` on a ring of errors."""
    before = errors[(at - 1) % PID_WINDOW]
    errors[at] = error
    total = 0.0
    for k in range(PID_WINDOW):  # oldest first: the order of the sum in ``control.PID``
        total += errors[(at + 1 + k) % PID_WINDOW]
    return proportional * error + integral * total / PID_WINDOW + derivative * (error - before)


@numba.njit(cache=True)
def pid_controls(env, plan, errors):  # type: ignore[no-untyped-def]
    """Bench2Drive's PID (``control.WaypointController``) on the rest of the plan -> steer (right positive), throttle, brake."""
    count, dt = int(env[E_PLAN_LENGTH]), env[E_PLAN_DT]
    now = (env[E_TICK] - env[E_PLAN_TICK]) * TICK
    c, s = math.cos(env[E_H]), math.sin(env[E_H])
    ends = max(2, math.floor(count * dt / PLAN_DT + 1e-9))
    here = np.empty(2)
    x0, y0, length = 0.0, 0.0, 0.0
    nearest, angle = 1e9, 0.0
    for k in range(ends):
        planned_at(plan, count, dt, now + PLAN_DT * (k + 1), here)
        dx, dy = here[0] - env[E_X], here[1] - env[E_Y]
        x, y = c * dx + s * dy, -s * dx + c * dy
        if k > 0:
            length += math.hypot(x - x0, y - y0)
            off = abs(math.hypot((x + x0) / 2.0, (y + y0) / 2.0) - AIM_DISTANCE)
            if off < nearest:
                nearest, angle = off, math.atan2(-y0, x0) / (math.pi / 2.0)
        x0, y0 = x, y
    wanted = length / (ends - 1) / PLAN_DT
    at = int(env[E_PID_AT])
    env[E_PID_AT] = (at + 1) % PID_WINDOW
    brake = wanted < BRAKE_SPEED or env[E_V] > BRAKE_RATIO * wanted
    throttle = _pid(errors[1], at, min(max(wanted - env[E_V], 0.0), CLIP_DELTA), 5.0, 0.5, 1.0)
    steer = min(max(_pid(errors[0], at, angle, 0.75, 0.75, 0.3), -1.0), 1.0)
    return steer, 0.0 if brake else min(max(throttle, 0.0), MAX_THROTTLE), 1.0 if brake else 0.0


@numba.njit(cache=True)
def tracker_controls(env, plan):  # type: ignore[no-untyped-def]
    """Follows the plan as well as the vehicle can -> steer (right positive), throttle, brake: speed and lag of the plan for the
    pedals, pure pursuit of a point ``AIM_TIME`` ahead for the wheels."""
    count, dt = int(env[E_PLAN_LENGTH]), env[E_PLAN_DT]
    now = (env[E_TICK] - env[E_PLAN_TICK]) * TICK
    c, s = math.cos(env[E_H]), math.sin(env[E_H])
    a, b = np.empty(2), np.empty(2)
    planned_at(plan, count, dt, now, a)
    lag = c * (a[0] - env[E_X]) + s * (a[1] - env[E_Y])
    planned_at(plan, count, dt, now + 0.25, a)
    planned_at(plan, count, dt, now + 0.75, b)
    wanted = math.hypot(b[0] - a[0], b[1] - a[1]) / 0.5
    pull = (wanted - env[E_V]) / 0.5 + 0.8 * min(max(lag, -1.0), 1.0)
    if wanted < 0.15 and env[E_V] < 1.0:
        pull = -FULL_BRAKE
    reach = max(3.0, AIM_TIME * env[E_V] + 1.5)
    steer = 0.0
    for k in range(24):  # the plan's first point at least ``reach`` away
        planned_at(plan, count, dt, now + 0.25 * (k + 1), a)
        dx, dy = a[0] - env[E_X], a[1] - env[E_Y]
        x, y = c * dx + s * dy, -s * dx + c * dy
        d2 = x * x + y * y
        if d2 >= reach * reach or k == 23:
            if d2 > 1.0 and x > 0.0:
                steer = -math.atan(WHEELBASE * 2.0 * y / d2) / FULL_LOCK
            break
    steer = min(max(steer, -1.0), 1.0)
    if pull >= -DRAG * env[E_V]:
        return steer, min((pull + DRAG * env[E_V]) / FULL_THROTTLE, 1.0), 0.0
    return steer, 0.0, min((-pull - DRAG * env[E_V]) / FULL_BRAKE, 1.0)


@numba.njit(cache=True)
def drive(env, steer, throttle, brake):  # type: ignore[no-untyped-def]
    """One tick of the bicycle under CARLA's controls (steer right positive)."""
    change = LOCK_RATE * TICK
    steer = min(max(steer, env[E_STEER] - change), env[E_STEER] + change)
    v = env[E_V]
    a = FULL_THROTTLE * throttle - FULL_BRAKE * brake - DRAG * v
    after = max(0.0, v + a * TICK)
    middle = 0.5 * (v + after)
    rate = -middle * math.tan(FULL_LOCK * steer) / WHEELBASE
    h = env[E_H] + 0.5 * rate * TICK
    env[E_X] += middle * math.cos(h) * TICK
    env[E_Y] += middle * math.sin(h) * TICK
    heading = env[E_H] + rate * TICK
    env[E_H] = math.atan2(math.sin(heading), math.cos(heading))
    env[E_ACC] = (after - v) / TICK
    env[E_LATERAL] = middle * rate + REAR_TO_CENTER * (rate - env[E_YAW_RATE]) / TICK
    env[E_YAW_RATE] = rate
    env[E_V] = after
    env[E_STEER], env[E_THROTTLE], env[E_BRAKE] = steer, throttle, brake
