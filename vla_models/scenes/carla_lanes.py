"""Driving lanes sampled through CARLA's map API: stations, boundaries, links, neighbours and speed limits as columns.

CARLA is left-handed with degrees: the y axis and the headings are negated as they are read.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from vla_models.errors import SceneError
from vla_models.geometry import arc_lengths, wrap_angle
from vla_models.scenes.lanes import STATION_STEP, FloatArray, IntArray, csr, offsets_of
from vla_models.scenes.opendrive import LaneKey, Network, Road, Section, lane_links, speed_limit

DEFAULT_SPEED: Final = 13.9
"""m/s (50 km/h), where a file has no limit."""
SHORTEST: Final = 0.2
"""Metres; shorter lane sections are left out, and what they linked is linked directly (the gap stays below this)."""
WIDEST_GAP: Final = 0.5
"""Metres between a lane's end and its successor's start, at most. Town03 links one lane to its neighbour's continuation, a
whole lane width aside: no car can drive that, and the link is dropped."""
NARROWEST: Final = 0.05
"""Metres; a surface that is nowhere wider is left out."""
END_MARGIN: Final = 1e-3
"""Metres that stations keep from a section's ends: CARLA's s is float32, and at the very end it may find the next section."""


class DrivingLanes:
    """Driving lanes in the graph's order: keys in the file, stations lane by lane, at last the graph's columns."""

    def __init__(self) -> None:
        self.keys: list[LaneKey] = []
        self.index: dict[LaneKey, int] = {}
        self.geometry: dict[str, list[FloatArray]] = {n: [] for n in ("center", "left", "right", "arc", "elevation")}
        self.columns: dict[str, Any] = {}

    def add(self, key: LaneKey, center: FloatArray, left: FloatArray, right: FloatArray, elevation: FloatArray) -> None:
        """Append a lane with its n stations: centre [n, 3], boundaries [n, 2], elevation [n]."""
        self.index[key] = len(self.keys)
        self.keys.append(key)
        parts = (center, left, right, arc_lengths(center), elevation)
        for column, part in zip(self.geometry.values(), parts, strict=True):
            column.append(part)


def driving_lanes(carla_map: Any, network: Network) -> DrivingLanes:
    """All driving lanes of a ``carla.Map`` with their columns of the lane graph. ``SceneError`` where there are none."""
    lanes = DrivingLanes()
    for road in network.roads.values():
        for k, section in enumerate(road.sections):
            ids = [i for i, lane in section.lanes.items() if lane.kind == "driving"]
            if not ids or section.end - section.start < SHORTEST:
                continue
            count = max(1, math.ceil((section.end - section.start) / STATION_STEP))
            strips = lane_strips(carla_map, road, section, ids, count)
            longest = max(float(np.hypot(*np.diff(center[:, :2], axis=0).T).max()) for center, *_ in strips)
            if longest > 1.05 * STATION_STEP:  # the outer lanes of a bend are longer than the road's reference line
                strips = lane_strips(carla_map, road, section, ids, math.ceil(count * longest / STATION_STEP))
            for i, (center, left, right, elevation) in zip(ids, strips, strict=True):
                lanes.add((road.id, k, i), center, left, right, elevation)
    if not lanes.keys:
        raise SceneError("the OpenDRIVE file has no driving lane")
    count = len(lanes.keys)
    pairs = _links(network, lanes)
    left_lane, right_lane = _neighbours(lanes)
    road_key = np.arange(count)
    for i in range(count):  # lanes abreast take the key of the leftmost of them
        j = i
        while left_lane[j] >= 0:
            j = int(left_lane[j])
        road_key[i] = j
    successor_offsets, successors = csr(pairs[:, 0], pairs[:, 1], count)
    predecessor_offsets, predecessors = csr(pairs[:, 1], pairs[:, 0], count)
    geometry = {name: np.concatenate(parts) for name, parts in lanes.geometry.items()}
    lanes.columns = {
        "offsets": offsets_of([len(part) for part in lanes.geometry["arc"]]),
        **geometry,
        "length": np.array([part[-1] for part in lanes.geometry["arc"]]),
        "speed_limit": _speed_limits(network, lanes, pairs),
        "junction": np.array([network.roads[key[0]].junction for key in lanes.keys], dtype=np.int64),
        "road": road_key,
        "left_lane": left_lane,
        "right_lane": right_lane,
        "names": tuple("/".join(map(str, key)) for key in lanes.keys),
        "successor_offsets": successor_offsets,
        "successors": successors,
        "predecessor_offsets": predecessor_offsets,
        "predecessors": predecessors,
    }
    return lanes


def lane_strips(
    carla_map: Any, road: Road, section: Section, ids: list[int], intervals: int
) -> list[tuple[FloatArray, FloatArray, FloatArray, FloatArray]]:
    """Centre [n, 3], left and right boundary [n, 2] and elevation [n] of lanes of a section, each in its driving direction.

    All points of one cross-section lie on the normal of the road's reference line, so that a lane's boundary is its
    neighbour's. The normal is the direction from the centre lane (id 0) to the lane's centre: a lane that widens has another
    heading than its road.
    """
    rows: list[tuple[float, float, float, float, float]] = []
    get = carla_map.get_waypoint_xodr
    at = np.linspace(section.start + END_MARGIN, section.end - END_MARGIN, intervals + 1).tolist()
    for lane_id in (0, *ids):
        for s in at:
            waypoint = get(road.id, lane_id, s)
            if waypoint is None:
                raise SceneError(f"road {road.id} has no lane {lane_id} at s = {s:.3f}, though its section says so")
            transform = waypoint.transform
            place = transform.location
            width = waypoint.lane_width if lane_id else 0.0  # the centre lane has none, and CARLA fails when asked
            rows.append((place.x, place.y, place.z, transform.rotation.yaw, width))
    table = np.array(rows).reshape(1 + len(ids), intervals + 1, 5)
    table[..., 1] *= -1.0
    heading = wrap_angle(-np.radians(table[..., 3]))
    strips = []
    for j, lane_id in enumerate(ids, start=1):
        center = table[j, :, :2]
        across = table[0, :, :2] - center if lane_id < 0 else center - table[0, :, :2]  # to the left of the road's s
        distance = np.hypot(across[:, 0], across[:, 1])[:, None]
        upright = np.stack([-np.sin(heading[0]), np.cos(heading[0])], axis=-1)
        normal = np.where(distance > NARROWEST, across / np.maximum(distance, NARROWEST), upright)
        half = 0.5 * table[j, :, 4:5] * normal
        left, right, forward = center + half, center - half, slice(None)
        if lane_id > 0:
            left, right, forward = right, left, slice(None, None, -1)
        pose = np.concatenate([center, heading[j][:, None]], axis=-1)
        strips.append((pose[forward], left[forward], right[forward], table[j, forward, 2]))
    return strips


def _links(network: Network, lanes: DrivingLanes) -> IntArray:
    """[E, 2] distinct (lane, successor) pairs; left-out lanes are bridged, and lanes that do not meet are not linked."""
    ahead: dict[LaneKey, set[LaneKey]] = {}
    for a, b in lane_links(network):
        ahead.setdefault(a, set()).add(b)

    def reached(key: LaneKey, seen: frozenset[LaneKey]) -> set[int]:
        found: set[int] = set()
        for b in ahead.get(key, ()):
            if b in lanes.index:
                found.add(lanes.index[b])
            elif b not in seen:
                found |= reached(b, seen | {b})
        return found

    found = [(i, j) for i, key in enumerate(lanes.keys) for j in sorted(reached(key, frozenset()))]
    pairs = np.array(found, dtype=np.int64).reshape(-1, 2)
    ends = np.array([center[-1, :2] for center in lanes.geometry["center"]])
    starts = np.array([center[0, :2] for center in lanes.geometry["center"]])
    gap: FloatArray = np.linalg.norm(ends[pairs[:, 0]] - starts[pairs[:, 1]], axis=-1)
    return pairs[gap <= WIDEST_GAP]


def _neighbours(lanes: DrivingLanes) -> tuple[IntArray, IntArray]:
    """Left and right neighbour of each lane in driving direction, or -1. Ids grow leftwards along s: -2, -1, 0, 1, 2."""
    inner = [(r, k, i + (1 if i < 0 else -1)) for r, k, i in lanes.keys]
    outer = [(r, k, i - (1 if i < 0 else -1)) for r, k, i in lanes.keys]
    left, right = (np.array([lanes.index.get(key, -1) for key in side], dtype=np.int64) for side in (inner, outer))
    return left, right


def _speed_limits(network: Network, lanes: DrivingLanes, pairs: IntArray) -> FloatArray:
    """[L] m/s. A lane without a record (the connectors of the older towns) has the limit of the lanes that lead to it, else of
    those that follow, else ``DEFAULT_SPEED``."""
    limits = np.full(len(lanes.keys), np.nan)
    for i, (road_id, k, lane_id) in enumerate(lanes.keys):
        road = network.roads[road_id]
        found = speed_limit(road, road.sections[k], road.sections[k].lanes[lane_id])
        limits[i] = np.nan if found is None else found
    for source, target in ((0, 1), (1, 0)):
        while True:
            usable = np.isnan(limits[pairs[:, target]]) & ~np.isnan(limits[pairs[:, source]])
            if not usable.any():
                break
            spread = np.full(len(limits), np.inf)
            np.minimum.at(spread, pairs[usable, target], limits[pairs[usable, source]])
            limits = np.where(np.isfinite(spread), spread, limits)
    return np.where(np.isnan(limits), DEFAULT_SPEED, limits)
