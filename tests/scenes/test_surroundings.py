"""Cutting a route's part out of a town."""

from __future__ import annotations

import numpy as np
import pytest

from vla_models.scenes.lanes import LaneGraph
from vla_models.scenes.surroundings import surroundings
from vla_models.scenes.towns import load_town


@pytest.fixture(scope="module")
def town() -> LaneGraph:
    return load_town("Town05")


@pytest.mark.parametrize("lane", [3, 100, 250, 400])
def test_the_part_is_the_town_there(town: LaneGraph, lane: int) -> None:
    line = town.center[town.stations(lane), :2]
    part, kept = surroundings(town, line, 80.0)
    assert part.town == "Town05"
    assert lane in kept
    nearest = [
        np.hypot(*(town.center[town.stations(i), None, :2] - line[None]).reshape(-1, 2).T).min() for i in range(len(town))
    ]
    assert set(np.flatnonzero(np.array(nearest) < 72.0)) <= set(kept.tolist()) <= set(np.flatnonzero(np.array(nearest) < 88.0))
    new = {int(old): i for i, old in enumerate(kept)}
    for i, old in enumerate(kept.tolist()):
        assert part.names[i] == town.names[old]
        assert np.array_equal(part.center[part.stations(i)], town.center[town.stations(old)])
        assert np.array_equal(part.right_width[part.stations(i)], town.right_width[town.stations(old)])
        assert part.next_lanes(i).tolist() == sorted(new[n] for n in town.next_lanes(old).tolist() if n in new)
        assert part.previous_lanes(i).tolist() == sorted(new[n] for n in town.previous_lanes(old).tolist() if n in new)
        for name in ("left_lane", "right_lane", "opposite_lane"):
            assert getattr(part, name)[i] == new.get(int(getattr(town, name)[old]), -1)
    lights = {
        tuple(pose): [town.names[g] for g in town.governed_lanes(k) if g in new] for k, pose in enumerate(town.light_pose)
    }
    wanted = {pose: names for pose, names in lights.items() if names}
    assert {tuple(p): [part.names[g] for g in part.governed_lanes(k)] for k, p in enumerate(part.light_pose)} == wanted
    signs = {
        tuple(pose): [part.names[n] for n in part.stop_lanes[part.stop_lane_offsets[k] : part.stop_lane_offsets[k + 1]]]
        for k, pose in enumerate(part.stop_pose)
    }
    for k, pose in enumerate(town.stop_pose):
        rows = range(town.stop_lane_offsets[k], town.stop_lane_offsets[k + 1])
        names = [town.names[town.stop_lanes[e]] for e in rows if int(town.stop_lanes[e]) in new]
        assert signs.get(tuple(pose), []) == names


def test_everything_within_reach_is_the_whole_town(town: LaneGraph) -> None:
    part, kept = surroundings(town, town.center[::20, :2], 60.0)
    assert np.array_equal(kept, np.arange(len(town)))
    for name in ("successors", "predecessors", "light_lanes", "stop_box", "stop_lines", "center", "left_lane"):
        assert np.array_equal(getattr(part, name), getattr(town, name)), name
