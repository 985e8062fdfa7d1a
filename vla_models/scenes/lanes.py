"""The lane graph: a town's roads as columnar arrays, independent of where they came from.

Frame: the town's own origin, right-handed SI (CARLA's y is negated on reading). Read-only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

STATION_STEP: Final = 1.0
"""Metres between stations of a lane (the last interval may be shorter)."""


@dataclass(frozen=True)
class LaneGraph:
    """Driving lanes with their geometry and connections. L lanes, V stations in total, T lights; CSR = (offsets, values)."""

    town: str
    # geometry, ragged over lanes: lane i owns stations offsets[i]:offsets[i + 1], in driving direction
    offsets: IntArray  # [L + 1]
    center: FloatArray  # [V, 3] x, y, heading
    left: FloatArray  # [V, 2] left boundary
    right: FloatArray  # [V, 2] right boundary
    arc: FloatArray  # [V] metres from the lane's start
    # per lane
    length: FloatArray  # [L] metres
    speed_limit: FloatArray  # [L] m/s
    junction: IntArray  # [L] junction id, or -1 outside junctions
    road: npt.NDArray[np.int64]  # [L] a key that same-direction neighbouring lanes of one road section share (a "roadblock")
    left_lane: IntArray  # [L] neighbour driving in the same direction, or -1
    right_lane: IntArray  # [L]
    names: tuple[str, ...]  # [L] "road/section/lane" of the OpenDRIVE file
    # connections, CSR over lanes
    successor_offsets: IntArray  # [L + 1]
    successors: IntArray
    predecessor_offsets: IntArray  # [L + 1]
    predecessors: IntArray
    # traffic lights
    light_pose: FloatArray  # [T, 3] x, y, heading of the head (it faces oncoming traffic)
    light_lane_offsets: IntArray  # [T + 1] CSR: the junction lanes (connectors) that the light governs
    light_lanes: IntArray
    light_junction: IntArray  # [T] the junction it belongs to
    stop_lines: FloatArray  # [T, 2, 2] end points of the stop line in front of the governed lanes
    # surfaces outside driving lanes, ragged polygons
    parking_offsets: IntArray  # [K + 1] parking lanes ("carpark" in NavSim's words)
    parking_vertices: FloatArray  # [W, 2]
    sidewalk_offsets: IntArray  # [S + 1]
    sidewalk_vertices: FloatArray  # [X, 2]
    crosswalks: FloatArray  # [Z, 4, 2] quadrilaterals

    def __len__(self) -> int:
        return len(self.length)

    def stations(self, lane: int) -> slice:
        """Slice of ``center``, ``left``, ``right`` and ``arc`` that belongs to ``lane``."""
        return slice(int(self.offsets[lane]), int(self.offsets[lane + 1]))

    def next_lanes(self, lane: int) -> IntArray:
        """Lanes that continue ``lane``."""
        return self.successors[self.successor_offsets[lane] : self.successor_offsets[lane + 1]]

    def previous_lanes(self, lane: int) -> IntArray:
        """Lanes that lead into ``lane``."""
        return self.predecessors[self.predecessor_offsets[lane] : self.predecessor_offsets[lane + 1]]

    def lane_polygon(self, lane: int) -> FloatArray:
        """Ring of ``lane``'s surface, [2n, 2]: the left boundary forward, then the right one back."""
        s = self.stations(lane)
        return np.concatenate([self.left[s], self.right[s][::-1]])
