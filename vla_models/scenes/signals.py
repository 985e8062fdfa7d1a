"""Traffic lights in time: every junction alternates between its two axes, with yellow and all-red in between."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from vla_models.scenes.routes import Paths, RoadNet

GREEN: Final = 0
YELLOW: Final = 1
RED: Final = 2

YELLOW_TIME: Final = 3.0
"""Seconds of yellow (usual at 50 km/h)."""
CLEARING_TIME: Final = 2.0
"""Seconds in which all are red."""
STOP_BEFORE: Final = 1.0
"""Metres before the junction lane's start at which vehicles stop."""
_STOPS = 4


def light_states(
    net: RoadNet,
    center: npt.NDArray[np.float64],
    radius: float,
    steps: int,
    tick: float,
    rng: np.random.Generator,
    own: int = -1,
    own_green_until: float | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int8]]:
    """Lights within ``radius`` of ``center``: their indices [K], and their states [steps, K] (``GREEN``, ``YELLOW``, ``RED``).

    Each junction has its own cycle at a random phase; ``own_green_until`` fixes that of light ``own``'s junction: the second at
    which that light turns yellow (it may be negative: then it is red for a while).
    """
    graph = net.graph
    near = np.flatnonzero(np.hypot(*(graph.light_pose[:, :2] - center).T) < radius)
    if own >= 0 and own not in near:
        near = np.append(near, own)
    states = np.zeros((steps, len(near)), dtype=np.int8)
    time = np.arange(steps) * tick
    for junction in np.unique(graph.light_junction[near]):
        members = np.flatnonzero(graph.light_junction[near] == junction)
        lead = int(members[0])
        green = float(rng.uniform(8.0, 18.0))
        half = green + YELLOW_TIME + CLEARING_TIME
        yellow_at = float(rng.uniform(0.0, 2.0 * half))
        if own >= 0 and own_green_until is not None and graph.light_junction[own] == junction:
            lead, yellow_at = int(np.flatnonzero(near == own)[0]), own_green_until
            green = max(green, yellow_at + 1.0)  # it has been green since the start
            half = green + YELLOW_TIME + CLEARING_TIME
        axis = graph.light_pose[near[lead], 2]
        for k in members:
            same = abs(np.sin(graph.light_pose[near[k], 2] - axis)) < np.sqrt(0.5)
            since = (time - yellow_at - (0.0 if same else half)) % (2.0 * half)  # since this axis turned yellow
            states[:, k] = np.where(since < YELLOW_TIME, YELLOW, np.where(since < 2.0 * half - green, RED, GREEN))
    return near, states


def stop_points(
    net: RoadNet, paths: Paths, near: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Where paths meet the lights ``near``: metres along each path [N, 4] and columns of the state table [N, 4] (-1: none)."""
    count = len(paths.length)
    at, which = np.zeros((count, _STOPS)), np.full((count, _STOPS), -1, dtype=np.int64)
    column = np.full(len(net.graph.light_pose) + 1, -1, dtype=np.int64)
    column[near] = np.arange(len(near))
    light = column[net.light[paths.lane]]
    enters = (paths.lane[:, 1:] != paths.lane[:, :-1]) & (light[:, 1:] >= 0)
    used = np.zeros(count, dtype=np.int64)
    for i, p in zip(*np.nonzero(enters), strict=True):
        if used[i] < _STOPS:
            at[i, used[i]] = p + 1.0 - STOP_BEFORE
            which[i, used[i]] = light[i, p + 1]
            used[i] += 1
    return at, which
