"""What lies beside the lanes of a town: neighbours, lane changes, stop signs (Town05 has all of them)."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from vla_models.scenes.lanes import SIDES, LaneGraph
from vla_models.scenes.strips import Strips
from vla_models.scenes.towns import load_town, town_file


@pytest.fixture(scope="module")
def town() -> LaneGraph:
    return load_town("Town05")


def test_oncoming_lanes_are_each_others_and_lie_abreast_in_reverse(town: LaneGraph) -> None:
    pairs = np.flatnonzero(town.opposite_lane >= 0)
    assert len(pairs) > 50
    assert np.array_equal(town.opposite_lane[town.opposite_lane[pairs]], pairs)
    for lane in pairs.tolist():
        a, b = town.stations(lane), town.stations(int(town.opposite_lane[lane]))
        assert np.allclose(town.left[a], town.left[b][::-1], atol=0.02)  # they share the centre line
        assert town.left_side[lane] == SIDES.index("oncoming")


def test_lane_changes_lead_to_neighbours_and_are_never_in_junctions(town: LaneGraph) -> None:
    assert np.all(town.left_lane[town.left_change] >= 0)
    assert np.all(town.right_lane[town.right_change] >= 0)
    assert np.all(town.junction[town.left_change | town.right_change] < 0)
    assert 0 < town.left_change.sum() < (town.left_lane >= 0).sum()


def test_lane_changes_are_carlas(town: LaneGraph) -> None:
    carla = pytest.importorskip("carla")
    carla_map = carla.Map("Town05", gzip.decompress(town_file("Town05").read_bytes()).decode())
    for lane in np.flatnonzero(town.junction < 0)[::9].tolist():
        road, _, lane_id = map(int, town.names[lane].split("/"))
        x, y, _ = town.center[(town.offsets[lane] + town.offsets[lane + 1]) // 2]
        waypoint = carla_map.get_waypoint(carla.Location(x, -y, town.elevation[town.offsets[lane]]))
        if (waypoint.road_id, waypoint.lane_id) != (road, lane_id):
            continue  # the middle lies under or over another road
        neighbour = waypoint.get_right_lane()
        wanted = bool(waypoint.lane_change & carla.LaneChange.Right)
        if wanted and neighbour is not None and neighbour.lane_type == carla.LaneType.Driving:
            assert town.right_change[lane]


def test_parking_strips_are_where_the_widths_say(town: LaneGraph) -> None:
    lanes = np.flatnonzero(town.right_side == SIDES.index("parking"))
    assert len(lanes)
    parking = Strips.parking(town)
    for lane in lanes.tolist():
        k = (town.offsets[lane] + town.offsets[lane + 1]) // 2
        across = town.left[k] - town.right[k]
        middle = town.right[k] - 0.5 * town.right_width[k] * across / np.hypot(*across)
        _, _, _, distance = parking.nearest(middle)
        assert distance[0] < 0.2
    assert np.all(town.right_width[np.repeat(town.right_lane >= 0, np.diff(town.offsets))] == 0.0)


def test_stop_signs_stand_at_the_first_metres_of_junction_lanes(town: LaneGraph) -> None:
    assert len(town.stop_pose) == 5
    assert len(town.stop_lanes) == town.stop_lane_offsets[-1] == len(town.stop_arc) == len(town.stop_box) == 11
    assert np.all(town.junction[town.stop_lanes] >= 0)
    assert np.all((town.stop_arc >= 0.0) & (town.stop_arc <= town.length[town.stop_lanes]))
    _, _, _, distance = Strips.driving(town).nearest(town.stop_box[:, :2])
    assert distance.max() < 0.5
    for sign in range(5):
        lane = int(town.stop_lanes[town.stop_lane_offsets[sign]])
        start = town.center[town.offsets[lane]]
        faces = town.stop_pose[sign, 2] - start[2]
        assert np.cos(faces) < -0.5  # against the traffic
        assert np.hypot(*(town.stop_pose[sign, :2] - start[:2])) < 15.0
