"""Traffic lights of a CARLA town: where the heads are, which junction lanes they govern, where one stops for them."""

from __future__ import annotations

import itertools
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vla_models.geometry import wrap_angle
from vla_models.scenes.carla_lanes import DrivingLanes
from vla_models.scenes.lanes import FloatArray, IntArray, offsets_of
from vla_models.scenes.opendrive import LaneKey, Network

TRAFFIC_LIGHT: Final = "1000001"
"""OpenDRIVE signal type of a three-colour traffic light."""
KERB_DISTANCE: Final = 1.0
"""Metres from the kerb to a light's post, where the file has no post."""


def lights(carla_map: Any, network: Network, lanes: DrivingLanes) -> dict[str, npt.NDArray[Any]]:
    """Columns of the traffic lights (``LaneGraph.light_*`` and ``stop_lines``): one row per head and approach.

    CARLA lists a light once per junction lane that it governs, at that lane. Lights that govern no junction lane are left out.
    """
    heads: dict[str, FloatArray | None] = {}
    governed: dict[tuple[str, tuple[int, int, int]], set[int]] = {}  # (light, approach) -> lanes
    at = lanes.columns["predecessor_offsets"]
    predecessors = [lanes.columns["predecessors"][a:b] for a, b in itertools.pairwise(at)]
    for mark in carla_map.get_all_landmarks_of_type(TRAFFIC_LIGHT):
        road = network.roads[mark.road_id]
        k = max(i for i, section in enumerate(road.sections) if i == 0 or section.start <= mark.s)
        for first, last in mark.get_lane_validities():
            for lane_id in range(first, last + 1):
                lane = lanes.index.get((road.id, k, lane_id))
                if lane is None or road.junction < 0:
                    continue
                entry = _entry(lane, lanes.keys, predecessors)
                from_road, from_section, from_lane = lanes.keys[next(iter(predecessors[entry]), entry)]
                governed.setdefault((mark.id, (from_road, from_section, int(np.sign(from_lane)))), set()).add(entry)
                heads[mark.id] = _head(mark)
    order = sorted(governed)
    lane_groups = [sorted(governed[key]) for key in order]
    unswitched = 1 + max(network.controllers.values(), default=0)
    groups = {name: network.controllers.get(name, unswitched + n) for n, name in enumerate(sorted(heads))}
    poses = [_facing(lanes, heads[name], group[0]) for (name, _), group in zip(order, lane_groups, strict=True)]
    return {
        "light_pose": np.array(poses).reshape(-1, 3),
        "light_lane_offsets": offsets_of([len(group) for group in lane_groups]),
        "light_lanes": np.array([lane for group in lane_groups for lane in group], dtype=np.int64),
        "light_junction": np.array([lanes.columns["junction"][group[0]] for group in lane_groups], dtype=np.int64),
        "light_group": np.array([groups[name] for name, _ in order], dtype=np.int64),
        "stop_lines": np.array([_stop_line(lanes, group) for group in lane_groups]).reshape(-1, 2, 2),
    }


def _head(mark: Any) -> FloatArray | None:
    """Pose [3] of a light's head, or None for a light without one: RoadRunner's unnamed "gates" lie on the lane itself."""
    if not mark.name:
        return None
    place, yaw = mark.transform.location, mark.transform.rotation.yaw
    # a mark looks the way the traffic goes, a head the way it comes from
    return np.array([place.x, -place.y, float(wrap_angle(np.pi - np.radians(yaw)))])


def _facing(lanes: DrivingLanes, head: FloatArray | None, lane: int) -> FloatArray:
    """``head`` where those who wait at ``lane`` can see it: turned to them if it looks elsewhere (dozens in Town11 do), put at
    the right-hand kerb if there is none."""
    start = lanes.geometry["center"][lane][0]
    oncoming = float(wrap_angle(start[2] + np.pi))
    if head is None:
        while (beside := int(lanes.columns["right_lane"][lane])) >= 0:
            lane = beside
        rightwards = np.array([np.sin(start[2]), -np.cos(start[2])])
        return np.array([*(lanes.geometry["right"][lane][0] + KERB_DISTANCE * rightwards), oncoming])
    turned_away = abs(float(wrap_angle(head[2] - oncoming))) > np.pi / 3
    return np.array([head[0], head[1], oncoming]) if turned_away else head


def _entry(lane: int, keys: list[LaneKey], predecessors: list[IntArray]) -> int:
    """First lane of the connecting road, going back from ``lane``: a mark may lie in a later section of it."""
    seen = {lane}
    while True:
        same_road = [int(p) for p in predecessors[lane] if keys[int(p)][0] == keys[lane][0] and int(p) not in seen]
        if not same_road:
            return lane
        lane = same_road[0]
        seen.add(lane)


def _stop_line(lanes: DrivingLanes, group: list[int]) -> FloatArray:
    """[2, 2] leftmost and rightmost point of where the lanes of ``group`` start."""
    starts = np.stack([lanes.geometry["center"][lane][0] for lane in group])
    left = np.stack([lanes.geometry["left"][lane][0] for lane in group])
    right = np.stack([lanes.geometry["right"][lane][0] for lane in group])
    heading = np.arctan2(np.sin(starts[:, 2]).sum(), np.cos(starts[:, 2]).sum())
    leftwards = np.array([-np.sin(heading), np.cos(heading)])
    return np.stack([left[np.argmax(left @ leftwards)], right[np.argmin(right @ leftwards)]])
