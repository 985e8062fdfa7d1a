"""Traffic lights: their phases, and the scripts with which scenarios freeze them.

CARLA's own order: the approaches of a junction (OpenDRIVE's controllers) are green one after the other, 10 s green, 3 s yellow,
2 s red for all; less green where there are so many that one would wait for a minute. A scenario's script overrules the phase
of the lights that it names, first row for ``script_seconds``, then the second until ``script_end`` or the scenario's end
(scenario_runner's ``TrafficLightFreezer``).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from vla_models.kernels import numba
from vla_models.scenes.lanes import LaneGraph
from vla_models.simulation.tables import (
    E_TICK,
    GREEN,
    N_LIGHTS,
    N_SCENARIOS,
    RED,
    SCRIPT_END,
    SCRIPT_SECONDS,
    STATE,
    STATE_SINCE,
    TICK,
    YELLOW,
    FloatArray,
    IntArray,
)

GREEN_SECONDS: Final = 10.0
YELLOW_SECONDS: Final = 3.0
CLEAR_SECONDS: Final = 2.0
LONGEST_RED: Final = 55.0
"""Seconds that nobody waits longer than: after 60 s of standing an episode ends as blocked."""


def cycles(graph: LaneGraph, rows: IntArray, phase: float) -> FloatArray:
    """[G, 4] offset, green, yellow, period in ticks of the light rows ``rows`` of a town; ``phase`` in [0, 1) shifts all."""
    out = np.zeros((len(rows), 4))
    change = YELLOW_SECONDS + CLEAR_SECONDS
    for k, row in enumerate(rows):
        groups = np.unique(graph.light_group[graph.light_junction == graph.light_junction[row]])
        turn = min(GREEN_SECONDS + change, (LONGEST_RED - CLEAR_SECONDS) / max(len(groups) - 1, 1))
        place = int(np.searchsorted(groups, graph.light_group[row]))
        period = len(groups) * turn
        out[k] = np.round(np.array([(phase * period - place * turn) % period, turn - change, YELLOW_SECONDS, period]) / TICK)
    return out


@numba.njit(cache=True)
def switch(env, lights, cycle, scenarios, script):  # type: ignore[no-untyped-def]
    """States of one environment's lights at its tick."""
    tick = env[E_TICK]
    for g in range(int(env[N_LIGHTS])):
        at = (tick + cycle[g, 0]) % cycle[g, 3]
        lights[g] = GREEN if at < cycle[g, 1] else (YELLOW if at < cycle[g, 1] + cycle[g, 2] else RED)
    for k in range(int(env[N_SCENARIOS])):
        if scenarios[k, STATE] != 1.0:
            continue
        elapsed = (tick - scenarios[k, STATE_SINCE]) * TICK
        if elapsed >= scenarios[k, SCRIPT_END]:
            continue
        second = elapsed >= scenarios[k, SCRIPT_SECONDS]
        for g in range(int(env[N_LIGHTS])):
            state = script[k, g, 1 if second else 0]
            if state >= 0:
                lights[g] = state
