"""Which lane each vehicle stands on at t = 0: what NavSim's reactive traffic drives along (``Scene.agent_paths``).

Two sources: a nuPlan map (``from_nuplan_map``, the official look-up) and a town's lane graph (``from_lane_graph``, the same
rules). Vehicles that are absent at t = 0, and everything that is not a vehicle, own no lane.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vla_models.geometry import FloatArray, arc_lengths, project, wrap_angle
from vla_models.scenes.lanes import LaneGraph
from vla_models.scenes.scene import AGENT_KINDS, AgentPaths, Tracks

_VEHICLE = AGENT_KINDS.index("vehicle")
_NEAR = 10.0  # metres from a lane's centre line beyond which its surface is not looked at


class _Rows:
    """The rows of ``AgentPaths`` as they are found."""

    def __init__(self, count: int) -> None:
        self.lines: list[FloatArray] = [np.zeros((0, 3))] * count
        self.progress = np.full(count, np.nan)
        self.snapped = np.full((count, 3), np.nan)
        self.speed_limit = np.full(count, np.nan)
        self.in_lane = np.zeros(count, dtype=np.bool_)

    def done(self) -> AgentPaths:
        offsets = np.concatenate([[0], np.cumsum([len(line) for line in self.lines])]).astype(np.int64)
        points = np.concatenate([np.zeros((0, 3)), *self.lines])
        return AgentPaths(points, offsets, self.progress, self.snapped, self.speed_limit, self.in_lane)


def _vehicles(tracks: Tracks) -> npt.NDArray[np.int64]:
    """Vehicles that are there at t = 0."""
    return np.flatnonzero((tracks.kind == _VEHICLE) & np.isfinite(tracks.states[:, 0]).all(axis=1))


def from_nuplan_map(tracks: Tracks, origin: npt.ArrayLike, map_api: Any) -> AgentPaths:
    """Lanes of ``tracks`` (in a local frame with the global ``origin`` [2]) in a nuPlan map.

    ``map_api`` is nuPlan's ``AbstractMap``; used are ``is_in_layer(point, layer)``, ``get_all_map_objects(point, layer)`` and
    of the lanes ``speed_limit_mps`` and ``baseline_path`` (``discrete_path``, ``get_nearest_pose_from_position``,
    ``get_nearest_arc_length_from_position``). The rules are those of nuPlan's ``get_starting_segment``: a lane if the centre
    lies on one, else a connector if it lies in an intersection; of several the one whose heading differs least (headings are
    subtracted as they are). Needs nuplan-devkit.
    """
    from nuplan.common.actor_state.state_representation import StateSE2
    from nuplan.common.maps.maps_datatypes import SemanticMapLayer

    rows = _Rows(len(tracks))
    at = np.asarray(origin, dtype=np.float64)
    shift = np.array([at[0], at[1], 0.0])
    for a in _vehicles(tracks):
        center = StateSE2(*(tracks.states[a, 0, :3] + shift).tolist())
        if map_api.is_in_layer(center, SemanticMapLayer.LANE):
            layer = SemanticMapLayer.LANE
        elif map_api.is_in_layer(center, SemanticMapLayer.INTERSECTION):
            layer = SemanticMapLayer.LANE_CONNECTOR
        else:
            continue
        rows.in_lane[a] = True
        lanes = list(map_api.get_all_map_objects(center, layer))
        if not lanes:
            continue
        poses = [lane.baseline_path.get_nearest_pose_from_position(center) for lane in lanes]
        best = int(np.argmin([abs(pose.heading - center.heading) for pose in poses]))
        lane, pose = lanes[best], poses[best]
        points = lane.baseline_path.discrete_path
        rows.lines[a] = np.array([[p.x, p.y, p.heading] for p in points], dtype=np.float64) - shift
        rows.progress[a] = lane.baseline_path.get_nearest_arc_length_from_position(center)
        rows.snapped[a] = np.array([pose.x, pose.y, pose.heading]) - shift
        rows.speed_limit[a] = np.nan if lane.speed_limit_mps is None else lane.speed_limit_mps
    return rows.done()


def from_lane_graph(tracks: Tracks, origin: npt.ArrayLike, graph: LaneGraph) -> AgentPaths:
    """Lanes of ``tracks`` (in a local frame with the town position ``origin`` [2]) in a town's lane graph.

    As in a nuPlan map: a lane outside junctions if the centre lies on one, else a lane of a junction.
    """
    rows = _Rows(len(tracks))
    at = np.asarray(origin, dtype=np.float64)
    owner = np.repeat(np.arange(len(graph)), np.diff(graph.offsets))
    for a in _vehicles(tracks):
        x, y, heading = tracks.states[a, 0, 0] + at[0], tracks.states[a, 0, 1] + at[1], tracks.states[a, 0, 2]
        near = np.unique(owner[np.hypot(graph.center[:, 0] - x, graph.center[:, 1] - y) < _NEAR])
        under = [int(lane) for lane in near if _holds(graph.lane_polygon(int(lane)), x, y)]
        under = [lane for lane in under if graph.junction[lane] < 0] or under
        if not under:
            continue
        rows.in_lane[a] = True
        best = min(under, key=lambda lane: abs(wrap_angle(_nearest(graph, lane, x, y)[1][2] - heading)))
        progress, pose = _nearest(graph, best, x, y)
        rows.lines[a] = graph.center[graph.stations(best)] - np.array([at[0], at[1], 0.0])
        rows.progress[a], rows.snapped[a] = progress, pose - np.array([at[0], at[1], 0.0])
        rows.speed_limit[a] = graph.speed_limit[best]
    return rows.done()


def _holds(ring: FloatArray, x: float, y: float) -> bool:
    """Whether a point lies inside a ring (even-odd rule)."""
    before = np.roll(ring, 1, axis=0)
    crossed = (ring[:, 1] > y) != (before[:, 1] > y)
    slope = (before[crossed, 0] - ring[crossed, 0]) / (before[crossed, 1] - ring[crossed, 1])
    return bool(np.count_nonzero(x < slope * (y - ring[crossed, 1]) + ring[crossed, 0]) % 2)


def _nearest(graph: LaneGraph, lane: int, x: float, y: float) -> tuple[float, FloatArray]:
    """Progress and pose on a lane's centre line nearest to a point."""
    line = np.ascontiguousarray(graph.center[graph.stations(lane)])
    progress, _ = project(line, x, y)
    arc = arc_lengths(line)
    heading = np.interp(progress, arc, np.unwrap(line[:, 2]))
    return progress, np.array([np.interp(progress, arc, line[:, 0]), np.interp(progress, arc, line[:, 1]), heading])
