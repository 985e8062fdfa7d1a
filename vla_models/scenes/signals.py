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
    junctions, member = np.unique(graph.light_junction[near], return_inverse=True)
    green = rng.uniform(8.0, 18.0, len(junctions))
    yellow_at = rng.random(len(junctions)) * 2.0 * (green + YELLOW_TIME + CLEARING_TIME)
    axis = np.empty(len(junctions))
    axis[member[::-1]] = graph.light_pose[near[::-1], 2]  # each junction's first light leads it
    if own >= 0 and own_green_until is not None:
        j = int(member[np.flatnonzero(near == own)[0]])
        axis[j], yellow_at[j] = graph.light_pose[own, 2], own_green_until
        green[j] = max(green[j], own_green_until + 1.0)  # it has been green since the start
    half = (green + YELLOW_TIME + CLEARING_TIME)[member]
    same = np.abs(np.sin(graph.light_pose[near, 2] - axis[member])) < np.sqrt(0.5)
    begin = yellow_at[member] + np.where(same, 0.0, half)
    since = (np.arange(steps)[:, None] * tick - begin) % (2.0 * half)  # seconds since this light turned yellow
    states = np.where(since < YELLOW_TIME, YELLOW, np.where(since < 2.0 * half - green[member], RED, GREEN))
    return near, states.astype(np.int8)


def stop_points(
    net: RoadNet, paths: Paths, near: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Where paths meet the lights ``near``: metres along each path [N, 4] and columns of the state table [N, 4] (-1: none)."""
    count = len(paths.length)
    at, which = np.zeros((count, _STOPS)), np.full((count, _STOPS), -1, dtype=np.int64)
    column = np.full(len(net.graph.light_pose) + 1, -1, dtype=np.int64)
    column[near] = np.arange(len(near))
    used = np.zeros(count, dtype=np.int64)
    for i, p in zip(*np.nonzero(paths.lane[:, 1:] != paths.lane[:, :-1]), strict=True):
        light = column[net.light[paths.lane[i, p + 1]]]
        if light < 0:
            continue
        if used[i] < _STOPS:
            at[i, used[i]] = p + 1.0 - STOP_BEFORE
            which[i, used[i]] = light
            used[i] += 1
    return at, which
