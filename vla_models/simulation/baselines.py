"""Policies to compare with: constant velocity, a blind route follower, and a rule-based driver that sees the world's state.

Each maps a ``World`` to plans [N, T, 3], as a model would. They have no memory: the same world state gives the same plan, so
they branch with a snapshot.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from vla_models.kernels import numba
from vla_models.simulation.driver import ACCEL, drive_carefully, into_frame
from vla_models.simulation.foresight import SLOPE, roll
from vla_models.simulation.tables import FloatArray
from vla_models.simulation.world import World

_FAR: Final = 1e9


def constant_velocity(world: World, steps: int = 8, dt: float = 0.5) -> FloatArray:
    """Plans [N, steps, 3]: straight on at the present speed."""
    plans = np.zeros((len(world), steps, 3))
    plans[:, :, 0] = world.ego[:, 3, None] * dt * np.arange(1, steps + 1)
    return plans


def blind_follower(world: World, speed: float = 8.0, steps: int = 8, dt: float = 0.5) -> FloatArray:
    """Plans [N, steps, 3] along the route at ``speed`` (less where a bend or the limit demands it), whatever is there."""
    plans = np.zeros((len(world), steps, 3))
    _follow(world.tables, speed, dt, plans)
    return plans


def rule_based(world: World, steps: int = 8, dt: float = 0.5) -> FloatArray:
    """Plans [N, steps, 3] of a careful driver (``driver``): keeps to the route, follows and gives way, stops at red lights and
    stop signs, drives around what stands in its lane (in the oncoming lane only when that is free), takes gaps that are long
    enough, lets emergency vehicles pass."""
    plans = np.zeros((len(world), steps, 3))
    drive_carefully(world.tables, dt, world.controller == "pid", plans)
    return plans


@numba.njit(cache=True)
def _follow(t, speed, dt, plans):  # type: ignore[no-untyped-def]
    """``blind_follower`` on bare arrays."""
    out = np.empty((plans.shape[1], 6))
    for n in range(len(t.env)):
        route = t.points[n, : t.path_offsets[n, 1]]
        roll(t.env[n], route, 0.0, -_FAR, _FAR, 0.0, speed, ACCEL, 1.0, _FAR, _FAR, 0.0, SLOPE, dt, out)
        into_frame(t.env[n], out, plans[n])
