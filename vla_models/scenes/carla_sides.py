"""What lies beside each driving lane of a CARLA town: where lanes may be changed, what borders them, stop signs.

CARLA is left-handed with degrees: the y axis and the headings are negated as they are read.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vla_models.geometry import wrap_angle
from vla_models.scenes.carla_lanes import END_MARGIN, DrivingLanes
from vla_models.scenes.lanes import SIDES, offsets_of
from vla_models.scenes.opendrive import Network

STOP_SIGN: Final = "206"
"""OpenDRIVE signal type of a stop sign."""
STOP_BOX: Final = 0.45
"""Half extent of a stop sign's trigger box, in lane widths (CARLA, StopSignComponent.cpp: 0.9 times half the width)."""
MARK_STEP: Final = 2
"""Every how many stations the lane marks are asked for: changes are allowed over tens of metres or not at all."""

LEFT_CHANGE: Final = 2
RIGHT_CHANGE: Final = 1
"""Bits of ``carla.LaneChange``, in driving direction."""

_SIDE_OF_KIND: Final = {
    "parking": "parking",
    "sidewalk": "sidewalk",
    "shoulder": "shoulder",
    "biking": "shoulder",
    "bidirectional": "shoulder",
    "none": "nothing",
}


def sides(carla_map: Any, network: Network, lanes: DrivingLanes) -> dict[str, npt.NDArray[Any]]:
    """Columns ``left_change``, ``right_change``, ``opposite_lane``, ``left_side``, ``right_side``, ``left_width``,
    ``right_width``.

    Traffic keeps to the right in all towns, so in driving direction the neighbour nearer the road's centre is the left one.
    """
    get = carla_map.get_waypoint_xodr
    count = len(lanes.keys)
    allowed = np.zeros(count, dtype=np.int64)
    opposite = np.full(count, -1, dtype=np.int64)
    kinds = {"left": np.zeros(count, dtype=np.int64), "right": np.zeros(count, dtype=np.int64)}
    widths: dict[str, list[npt.NDArray[np.float64]]] = {"left": [], "right": []}
    for i, (road_id, k, lane_id) in enumerate(lanes.keys):
        road = network.roads[road_id]
        section = road.sections[k]
        stations = len(lanes.geometry["arc"][i])
        at = np.linspace(section.start + END_MARGIN, section.end - END_MARGIN, stations)
        outward = 1 if lane_id > 0 else -1
        opposite[i] = lanes.index.get((road_id, k, -lane_id), -1) if abs(lane_id) == 1 else -1
        if road.junction < 0:
            for s in at[::MARK_STEP].tolist():
                allowed[i] |= int(get(road_id, lane_id, s).lane_change)
        inner = lane_id - outward if abs(lane_id) > 1 else outward * -1
        for side, neighbour in (("left", inner), ("right", lane_id + outward)):
            lane = section.lanes.get(neighbour)
            if lane is None:
                name = "nothing"
            elif lane.kind == "driving":
                name = "driving" if neighbour * lane_id > 0 else "oncoming"
            else:
                name = _SIDE_OF_KIND.get(lane.kind, "other")
            kinds[side][i] = SIDES.index(name)
            width = np.zeros(stations)
            if name not in ("nothing", "driving", "oncoming"):
                width = np.array([0.0 if (w := get(road_id, neighbour, s)) is None else w.lane_width for s in at.tolist()])
            widths[side].append(width[::-1] if lane_id > 0 else width)
    return {
        "left_change": (allowed & LEFT_CHANGE > 0) & (lanes.columns["left_lane"] >= 0),
        "right_change": (allowed & RIGHT_CHANGE > 0) & (lanes.columns["right_lane"] >= 0),
        "opposite_lane": opposite,
        **{f"{side}_side": kind for side, kind in kinds.items()},
        **{f"{side}_width": np.concatenate(parts) for side, parts in widths.items()},
    }


def stop_signs(carla_map: Any, network: Network, lanes: DrivingLanes) -> dict[str, npt.NDArray[Any]]:
    """Columns ``stop_*``: one row per sign, with the lanes that it is for. Signs for no driving lane are left out.

    CARLA lists a sign once per lane that it is for: nearly always the first metres of a junction lane.
    """
    poses: dict[str, tuple[float, float, float]] = {}
    entries: dict[str, dict[int, tuple[float, float, float, float]]] = {}  # sign -> lane -> arc, box x, y, half extent
    for mark in carla_map.get_all_landmarks_of_type(STOP_SIGN):
        road = network.roads[mark.road_id]
        k = max(i for i, section in enumerate(road.sections) if i == 0 or section.start <= mark.s)
        section = road.sections[k]
        for first, last in mark.get_lane_validities():
            for lane_id in range(first, last + 1):
                lane = lanes.index.get((road.id, k, lane_id))
                if lane is None:
                    continue
                low, high = section.start + END_MARGIN, section.end - END_MARGIN
                s = float(np.clip(mark.s, low, high))
                half = STOP_BOX * carla_map.get_waypoint_xodr(road.id, lane_id, s).lane_width
                box_s = float(np.clip(s - half if lane_id < 0 else s + half, low, high))
                box = carla_map.get_waypoint_xodr(road.id, lane_id, box_s).transform.location
                share = (s - section.start) / (section.end - section.start)
                arc = (share if lane_id < 0 else 1.0 - share) * lanes.columns["length"][lane]
                entries.setdefault(mark.id, {})[lane] = (arc, box.x, -box.y, half)
                place, yaw = mark.transform.location, mark.transform.rotation.yaw
                # a mark looks the way the traffic goes, a sign the way it comes from
                poses[mark.id] = (place.x, -place.y, float(wrap_angle(np.pi - np.radians(yaw))))
    order = sorted(entries)
    rows = [entries[sign][lane] for sign in order for lane in sorted(entries[sign])]
    table = np.array(rows).reshape(-1, 4)
    return {
        "stop_pose": np.array([poses[sign] for sign in order]).reshape(-1, 3),
        "stop_lane_offsets": offsets_of([len(entries[sign]) for sign in order]),
        "stop_lanes": np.array([lane for sign in order for lane in sorted(entries[sign])], dtype=np.int64),
        "stop_arc": table[:, 0],
        "stop_box": table[:, 1:],
    }
