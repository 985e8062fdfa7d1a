"""Conversion through CARLA's map API: what a lane graph promises, on three towns that differ."""

from __future__ import annotations

import gzip
from types import SimpleNamespace

import numpy as np
import pytest

from vla_models.errors import SceneError
from vla_models.geometry import wrap_angle
from vla_models.scenes.carla_map import convert, crosswalks
from vla_models.scenes.lanes import LaneGraph
from vla_models.scenes.towns import town_file

pytest.importorskip("carla")


@pytest.fixture(scope="module", params=["Town02", "Town03", "Town10HD"])
def graph(request: pytest.FixtureRequest) -> LaneGraph:
    return convert(request.param, gzip.decompress(town_file(request.param).read_bytes()))


def test_lanes_end_where_their_successors_start(graph: LaneGraph) -> None:
    lane = np.repeat(np.arange(len(graph)), np.diff(graph.successor_offsets))
    end, start = graph.center[graph.offsets[1:] - 1][lane], graph.center[graph.offsets[:-1]][graph.successors]
    assert np.hypot(*(end - start)[:, :2].T).max() < 0.5
    assert np.abs(wrap_angle(end[:, 2] - start[:, 2])).max() < 0.05
    assert np.mean(np.diff(graph.successor_offsets) == 0) < 0.01  # hardly a dead end


def test_predecessors_are_the_transpose_of_successors(graph: LaneGraph) -> None:
    forward = {(i, int(j)) for i in range(len(graph)) for j in graph.next_lanes(i)}
    backward = {(int(i), j) for j in range(len(graph)) for i in graph.previous_lanes(j)}
    assert forward == backward
    assert len(forward) == len(graph.successors) == len(graph.predecessors)


def test_stations_are_about_a_metre_apart(graph: LaneGraph) -> None:
    inner = np.delete(np.arange(len(graph.arc) - 1), graph.offsets[1:-1] - 1)
    step = np.diff(graph.arc)[inner]
    assert step.min() > 0.1
    assert step.max() <= 1.1
    assert np.all(graph.arc[graph.offsets[:-1]] == 0.0)
    np.testing.assert_array_equal(graph.arc[graph.offsets[1:] - 1], graph.length)
    chord = np.diff(graph.center[:, :2], axis=0)[inner]
    middle = graph.center[inner, 2] + 0.5 * wrap_angle(graph.center[inner + 1, 2] - graph.center[inner, 2])
    assert np.abs(wrap_angle(np.arctan2(chord[:, 1], chord[:, 0]) - middle)).max() < 0.05


def test_boundaries_lie_on_their_sides(graph: LaneGraph) -> None:
    normal = np.stack([-np.sin(graph.center[:, 2]), np.cos(graph.center[:, 2])], axis=-1)
    left = ((graph.left - graph.center[:, :2]) * normal).sum(axis=1)
    right = ((graph.right - graph.center[:, :2]) * normal).sum(axis=1)
    assert left.min() > 1.2
    assert right.max() < -1.2
    np.testing.assert_allclose(left, -right, atol=1e-3)


def test_neighbours_drive_abreast_and_share_a_boundary(graph: LaneGraph) -> None:
    for lane in np.flatnonzero(graph.left_lane >= 0):
        other = int(graph.left_lane[lane])
        assert graph.right_lane[other] == lane
        assert graph.road[other] == graph.road[lane]
        mine, theirs = graph.stations(lane), graph.stations(other)
        assert np.hypot(*(graph.left[mine] - graph.right[theirs]).T).max() < 0.01
        assert np.abs(wrap_angle(graph.center[mine, 2] - graph.center[theirs, 2])).max() < 0.2
    assert len(set(graph.road.tolist())) == np.sum(graph.left_lane < 0)


def test_lights_face_the_lanes_that_they_govern(graph: LaneGraph) -> None:
    assert len(graph.light_pose) > 10
    start = graph.center[graph.offsets[:-1]]
    for light, pose in enumerate(graph.light_pose):
        lanes = graph.governed_lanes(light)
        assert len(lanes)
        assert np.all(graph.junction[lanes] == graph.light_junction[light])
        assert np.abs(wrap_angle(pose[2] + np.pi - start[lanes, 2])).max() < np.pi / 3 + 0.2
        left, right = graph.stop_lines[light]
        for point in start[lanes, :2]:  # every governed lane starts on the stop line
            assert 0.0 < (point - left) @ (right - left) < (right - left) @ (right - left)
            assert abs(np.cross(np.append(right - left, 0), np.append(point - left, 0))[2]) / np.hypot(*(right - left)) < 0.5
        for lane in lanes:  # and nothing inside the junction leads to it
            assert np.all(graph.junction[graph.previous_lanes(lane)] != graph.junction[lane])


def test_columns_are_complete_and_finite(graph: LaneGraph) -> None:
    assert np.all(np.isfinite(graph.center))
    assert np.all(np.isfinite(graph.elevation))
    assert np.all((graph.speed_limit > 5.0) & (graph.speed_limit < 35.0))
    assert len(set(graph.names)) == len(graph)
    assert graph.length.min() >= 0.19
    for offsets, vertices in (
        (graph.parking_offsets, graph.parking_vertices),
        (graph.sidewalk_offsets, graph.sidewalk_vertices),
        (graph.shoulder_offsets, graph.shoulder_vertices),
    ):
        assert offsets[0] == 0
        assert offsets[-1] == len(vertices)
        assert np.all(np.diff(offsets) >= 4) or len(offsets) == 1
    assert np.all(np.isfinite(graph.crosswalks))


def test_what_the_towns_hold(graph: LaneGraph) -> None:
    """Known numbers: Town02 is plain, Town03 has parking lanes and crosswalks, Town10HD has lights without a head."""
    known = {"Town02": (88, 24, 0, 0), "Town03": (413, 38, 75, 73), "Town10HD": (168, 17, 0, 16)}
    counts = len(graph), len(graph.light_pose), len(graph.parking_offsets) - 1, len(graph.crosswalks)
    assert counts == known[graph.town]
    if graph.town == "Town02":
        np.testing.assert_allclose(graph.speed_limit, 25 * 0.44704)


NO_LANES = """<?xml version="1.0"?>
<OpenDRIVE><header revMajor="1" revMinor="4"/>
<road name="" length="10" id="0" junction="-1"><link/>
<planView><geometry s="0" x="0" y="0" hdg="0" length="10"><line/></geometry></planView>
<lanes><laneSection s="0"><center><lane id="0" type="none" level="false"/></center></laneSection></lanes>
</road></OpenDRIVE>"""


def test_a_file_without_driving_lanes_is_refused() -> None:
    with pytest.raises(SceneError, match="no driving lane"):
        convert("Nowhere", NO_LANES.encode())


def testcrosswalks_are_quadrilaterals() -> None:
    """A row of corners as CARLA gives it: an open line, a quadrilateral, an outline with two corners too many."""
    line = [(50, 50), (60, 60)]
    square = [(0, 0), (2, 0), (2, 8), (0, 8), (0, 0)]
    long = [(10, 0), (12, 0), (12, 4.1), (12, 8), (10, 8), (10, 3.9), (10, 0)]
    corners = [SimpleNamespace(x=float(x), y=float(y)) for x, y in line + square + long]
    found = crosswalks(SimpleNamespace(get_crosswalks=lambda: corners))
    assert found.tolist() == [[[0, 0], [2, 0], [2, -8], [0, -8]], [[10, 0], [12, 0], [12, -8], [10, -8]]]
