"""Traces along lanes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vla_models.errors import SceneError
from vla_models.scenes.lanes import LaneGraph
from vla_models.scenes.planner import ARRIVED, LanePlanner, RoadOption
from vla_models.scenes.routes import road_net
from vla_models.scenes.towns import load_town


@pytest.fixture(scope="module")
def town() -> LaneGraph:
    return load_town("Town05")


@pytest.fixture(scope="module")
def planner(town: LaneGraph) -> LanePlanner:
    return LanePlanner(town)


def middle(town: LaneGraph, lane: int) -> np.ndarray:
    k = (town.offsets[lane] + town.offsets[lane + 1]) // 2
    return np.array([*town.center[k, :2], town.elevation[k]])


def test_a_trace_stays_on_connected_lanes_and_arrives(town: LaneGraph, planner: LanePlanner) -> None:
    rng = np.random.default_rng(0)
    lanes = np.flatnonzero((town.junction < 0) & (town.length > 10.0))
    for start, goal in rng.choice(lanes, (15, 2)):
        trace = planner.trace(middle(town, start), middle(town, goal))
        assert np.hypot(*(trace.pose[-1, :2] - middle(town, goal)[:2])) < ARRIVED
        changes = np.flatnonzero(np.diff(trace.lane))
        for k in changes.tolist():
            here, there = int(trace.lane[k]), int(trace.lane[k + 1])
            changing = trace.option[k] in (RoadOption.CHANGE_LANE_LEFT, RoadOption.CHANGE_LANE_RIGHT)
            if changing and trace.option[k + 1] == trace.option[k]:
                left = trace.option[k] == RoadOption.CHANGE_LANE_LEFT
                beside, allowed = (town.left_lane, town.left_change) if left else (town.right_lane, town.right_change)
                # from ``here``, or from a lane that starts where ``here`` starts (the search knows lanes' ends only)
                assert np.any(allowed[beside == there])
                assert beside[here] == there or np.hypot(*(trace.pose[k + 1, :2] - trace.pose[k, :2])) < 12.0
            else:  # the next lane, or one that starts where this one ends (CARLA joins lanes by their ends)
                assert np.hypot(*(trace.pose[k + 1, :2] - trace.pose[k, :2])) < 1.6


def test_turns_are_called_what_they_are(town: LaneGraph, planner: LanePlanner) -> None:
    net = road_net("Town05")
    for lanes, option in ((net.left, RoadOption.LEFT), (net.right, RoadOption.RIGHT)):
        for lane in lanes[:8].tolist():
            before, after = int(town.previous_lanes(lane)[0]), int(town.next_lanes(lane)[0])
            if town.junction[before] >= 0 or town.junction[after] >= 0 or min(town.length[[before, after]]) < 8.0:
                continue
            trace = planner.trace(middle(town, before), middle(town, after))
            if lane in trace.lane:
                assert set(trace.option[trace.lane == lane].tolist()) == {option}
                assert trace.option[0] == RoadOption.LANE_FOLLOW


def test_no_way_and_no_lane_are_errors(town: LaneGraph) -> None:
    count = len(town)
    apart = replace(
        town, successors=town.successors[:0], successor_offsets=np.zeros(count + 1, np.int64),
        left_change=np.zeros(count, bool), right_change=np.zeros(count, bool),
    )  # fmt: skip
    planner = LanePlanner(apart)
    with pytest.raises(SceneError, match="no way along the lanes"):
        planner.trace(middle(town, 0), middle(town, 200))
    with pytest.raises(SceneError, match="no lane near"):
        planner.trace(middle(town, 0), np.array([1e5, 1e5, 0.0]))
