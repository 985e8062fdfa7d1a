"""An OpenDRIVE town sampled through CARLA's own map API (``carla.Map``, no server) into a lane graph.

Run as a program in a process of its own (``python -m vla_models.scenes.carla_map TOWN SOURCE TARGET``): CARLA's parser may end
the process on a bad file, and a big town takes almost 1 GB that only the end of the process gives back.

CARLA is left-handed with degrees; the y axis and the headings are negated as they are read, nothing behind this module knows.
"""

from __future__ import annotations

import gzip
import math
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vla_models.errors import SceneError
from vla_models.geometry import arc_lengths, wrap_angle
from vla_models.scenes.lanes import STATION_STEP, FloatArray, IntArray, LaneGraph, csr, offsets_of
from vla_models.scenes.opendrive import LaneKey, Network, Road, Section, lane_links, read_network, speed_limit

CONVERTER_VERSION: Final = 1
"""Raise it when the conversion's result changes: cached graphs of other versions are not used."""
DEFAULT_SPEED: Final = 13.9
"""m/s (50 km/h), where a file has no limit."""
SHORTEST: Final = 0.2
"""Metres; shorter lane sections are left out, and what they linked is linked directly (the gap stays below this)."""
NARROWEST: Final = 0.05
"""Metres; a surface that is nowhere wider is left out."""
END_MARGIN: Final = 1e-3
"""Metres that stations keep from a section's ends: CARLA's s is float32, and at the very end it may find the next section."""
SURFACE_STEP: Final = 2.0
"""Metres between the cross-sections of surfaces that are not driving lanes, at most."""
SHOULDER_KINDS: Final = ("shoulder", "biking", "bidirectional")
TRAFFIC_LIGHT: Final = "1000001"
"""OpenDRIVE signal type of a three-colour traffic light."""


def convert(town: str, xodr: bytes) -> LaneGraph:
    """The lane graph of an OpenDRIVE file's text. Raises ``SceneError`` where the file contradicts itself."""
    import carla

    carla_map = carla.Map(town, xodr.decode("utf-8"))
    network = read_network(xodr)
    lanes = _driving_lanes(carla_map, network)
    surfaces = {
        name: _surfaces(carla_map, network, kinds)
        for name, kinds in (("parking", ("parking",)), ("sidewalk", ("sidewalk",)), ("shoulder", SHOULDER_KINDS))
    }
    return LaneGraph(
        town=town,
        **lanes.columns,
        **_lights(carla_map, network, lanes),
        **{f"{name}_offsets": offsets for name, (offsets, _) in surfaces.items()},
        **{f"{name}_vertices": vertices for name, (_, vertices) in surfaces.items()},
        crosswalks=_crosswalks(carla_map),
    )


class _Lanes:
    """Driving lanes while they are gathered: their keys in the file, and the graph's columns."""

    def __init__(self) -> None:
        self.keys: list[LaneKey] = []
        self.index: dict[LaneKey, int] = {}
        self.geometry: dict[str, list[FloatArray]] = {n: [] for n in ("center", "left", "right", "arc", "elevation")}
        self.columns: dict[str, Any] = {}

    def add(self, key: LaneKey, center: FloatArray, left: FloatArray, right: FloatArray, elevation: FloatArray) -> None:
        self.index[key] = len(self.keys)
        self.keys.append(key)
        parts = (center, left, right, arc_lengths(center), elevation)
        for column, part in zip(self.geometry.values(), parts, strict=True):
            column.append(part)


def _driving_lanes(carla_map: Any, network: Network) -> _Lanes:
    lanes = _Lanes()
    for road in network.roads.values():
        for k, section in enumerate(road.sections):
            ids = [i for i, lane in section.lanes.items() if lane.kind == "driving"]
            if not ids or section.end - section.start < SHORTEST:
                continue
            count = max(1, math.ceil((section.end - section.start) / STATION_STEP))
            strips = _strips(carla_map, road, section, ids, count)
            longest = max(float(arc_lengths(center)[-1]) for center, *_ in strips)
            if longest > 1.05 * count * STATION_STEP:  # the outer lanes of a bend are longer than the road's reference line
                strips = _strips(carla_map, road, section, ids, math.ceil(longest / STATION_STEP))
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


def _strips(
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


def _links(network: Network, lanes: _Lanes) -> IntArray:
    """[E, 2] distinct (lane, successor) pairs; left-out lanes are bridged."""
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

    pairs = [(i, j) for i, key in enumerate(lanes.keys) for j in sorted(reached(key, frozenset()))]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _neighbours(lanes: _Lanes) -> tuple[IntArray, IntArray]:
    """Left and right neighbour of each lane in driving direction, or -1. Ids grow leftwards along s: -2, -1, 0, 1, 2."""
    inner = [(r, k, i + (1 if i < 0 else -1)) for r, k, i in lanes.keys]
    outer = [(r, k, i - (1 if i < 0 else -1)) for r, k, i in lanes.keys]
    return tuple(np.array([lanes.index.get(key, -1) for key in side], dtype=np.int64) for side in (inner, outer))  # type: ignore[return-value]


def _speed_limits(network: Network, lanes: _Lanes, pairs: IntArray) -> FloatArray:
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


def _surfaces(carla_map: Any, network: Network, kinds: tuple[str, ...]) -> tuple[IntArray, FloatArray]:
    """Outlines of all lanes of the given types, as ragged rings."""
    rings = []
    for road in network.roads.values():
        for section in road.sections:
            length = section.end - section.start
            ids = [i for i, lane in section.lanes.items() if lane.kind in kinds]
            if not ids or length < SHORTEST:
                continue
            for _, left, right, _ in _strips(carla_map, road, section, ids, max(1, math.ceil(length / SURFACE_STEP))):
                if np.hypot(*(left - right).T).max() > NARROWEST:
                    rings.append(np.concatenate([left, right[::-1]]))
    return offsets_of([len(ring) for ring in rings]), np.concatenate([np.zeros((0, 2)), *rings])


def _lights(carla_map: Any, network: Network, lanes: _Lanes) -> dict[str, npt.NDArray[Any]]:
    """Columns of the traffic lights. A light is listed once per junction lane that it governs, at that lane."""
    governed: dict[tuple[str, LaneKey], set[int]] = {}  # (light, approach) -> lanes
    poses: dict[str, tuple[float, float, float]] = {}
    predecessors = [
        lanes.columns["predecessors"][a:b]
        for a, b in zip(lanes.columns["predecessor_offsets"], lanes.columns["predecessor_offsets"][1:], strict=False)
    ]
    for mark in carla_map.get_all_landmarks_of_type(TRAFFIC_LIGHT):
        place, yaw = mark.transform.location, mark.transform.rotation.yaw
        road = network.roads[mark.road_id]
        k = max(i for i, section in enumerate(road.sections) if i == 0 or section.start <= mark.s)
        for first, last in mark.get_lane_validities():
            for lane_id in range(min(first, last), max(first, last) + 1):
                lane = lanes.index.get((road.id, k, lane_id))
                if lane is None or road.junction < 0:
                    continue
                entry = _entry(lane, lanes.keys, predecessors)
                before = predecessors[entry]
                from_road, from_section, from_lane = lanes.keys[int(before[0])] if len(before) else lanes.keys[entry]
                approach = (from_road, from_section, 1 if from_lane > 0 else -1)
                governed.setdefault((mark.id, approach), set()).add(entry)
                # the mark's transform looks the way the traffic goes, the head the way it comes from
                poses[mark.id] = (place.x, -place.y, float(wrap_angle(np.pi - np.radians(yaw))))
    order = sorted(governed)
    unswitched = 1 + max(network.controllers.values(), default=0)
    groups = {name: network.controllers.get(name, unswitched + n) for n, name in enumerate(sorted(poses))}
    governed_lanes = [sorted(governed[key]) for key in order]
    return {
        "light_pose": np.array([poses[name] for name, _ in order]).reshape(-1, 3),
        "light_lane_offsets": offsets_of([len(group) for group in governed_lanes]),
        "light_lanes": np.array([lane for group in governed_lanes for lane in group], dtype=np.int64),
        "light_junction": np.array([lanes.columns["junction"][group[0]] for group in governed_lanes], dtype=np.int64),
        "light_group": np.array([groups[name] for name, _ in order], dtype=np.int64),
        "stop_lines": np.array([_stop_line(lanes, group) for group in governed_lanes]).reshape(-1, 2, 2),
    }


def _entry(lane: int, keys: list[LaneKey], predecessors: list[IntArray]) -> int:
    """First lane of the connecting road, going back from ``lane``: a mark may lie in a later section of it."""
    while True:
        same_road = [int(p) for p in predecessors[lane] if keys[int(p)][0] == keys[lane][0]]
        if not same_road:
            return lane
        lane = same_road[0]


def _stop_line(lanes: _Lanes, group: list[int]) -> FloatArray:
    """[2, 2] leftmost and rightmost point of where the lanes of ``group`` start."""
    starts = np.stack([lanes.geometry["center"][lane][0] for lane in group])
    left = np.stack([lanes.geometry["left"][lane][0] for lane in group])
    right = np.stack([lanes.geometry["right"][lane][0] for lane in group])
    heading = np.arctan2(np.sin(starts[:, 2]).sum(), np.cos(starts[:, 2]).sum())
    leftwards = np.array([-np.sin(heading), np.cos(heading)])
    return np.stack([left[np.argmax(left @ leftwards)], right[np.argmin(right @ leftwards)]])


def _crosswalks(carla_map: Any) -> FloatArray:
    """[Z, 4, 2] quadrilaterals. CARLA lists the corners of all of them in one row, each closed by its first corner."""
    rings: list[FloatArray] = []
    corners: list[tuple[float, float]] = []
    for place in carla_map.get_crosswalks():
        corner = (place.x, -place.y)
        if corners and corner == corners[0]:
            rings.append(np.array(corners))
            corners = []
        else:
            corners.append(corner)
    return np.array([ring for ring in rings if len(ring) == 4]).reshape(-1, 4, 2)


def main() -> None:
    """Convert ``SOURCE`` (.xodr or .xodr.gz) to ``TARGET`` (.npz)."""
    town, source, target = sys.argv[1:]
    data = Path(source).read_bytes()
    convert(town, gzip.decompress(data) if source.endswith(".gz") else data).save(Path(target))


if __name__ == "__main__":
    main()
