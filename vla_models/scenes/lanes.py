"""The lane graph: a town's roads as columnar arrays, independent of where they came from.

Frame: the town's own origin, right-handed SI (CARLA's y is negated on reading). Read-only.
"""

from __future__ import annotations

import io
import mmap
import struct
import zipfile
import zlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vla_models.files import atomic_path

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

STATION_STEP: Final = 1.0
"""Metres between stations of a lane, at most (5 % more here and there); lanes that lie abreast have equally many stations."""

SIDES: Final = ("nothing", "driving", "oncoming", "parking", "sidewalk", "shoulder", "other")
"""What may border a driving lane: ``left_side`` and ``right_side`` of the graph are indices into this. "driving" goes the same
way, "oncoming" lies across the road's centre, "shoulder" is any other street-level surface (bike lanes, two-way turning
lanes)."""


@dataclass(frozen=True)
class LaneGraph:
    """Driving lanes with their geometry and connections. L lanes, V stations, T lights, S stop signs; CSR = (offsets,
    values)."""

    town: str
    # geometry, ragged over lanes: lane i owns stations offsets[i]:offsets[i + 1], in driving direction
    offsets: IntArray  # [L + 1]
    center: FloatArray  # [V, 3] x, y, heading
    left: FloatArray  # [V, 2] left boundary
    right: FloatArray  # [V, 2] right boundary
    arc: FloatArray  # [V] metres from the lane's start
    elevation: FloatArray  # [V] metres: roads may cross over one another
    # per lane
    length: FloatArray  # [L] metres
    speed_limit: FloatArray  # [L] m/s
    junction: IntArray  # [L] junction id, or -1 outside junctions
    road: IntArray  # [L] a key that same-direction neighbouring lanes of one road section share (a "roadblock")
    left_lane: IntArray  # [L] neighbour driving in the same direction, or -1; its stations lie abreast, one by one
    right_lane: IntArray  # [L]
    names: tuple[str, ...]  # [L] "road/section/lane" of the OpenDRIVE file
    # what borders a lane, in driving direction
    left_change: BoolArray  # [L] the marks allow a change to left_lane somewhere along the lane (never inside a junction)
    right_change: BoolArray  # [L]
    opposite_lane: IntArray  # [L] driving lane right across the road's centre, or -1; its stations lie abreast in reverse order
    left_side: IntArray  # [L] index into SIDES
    right_side: IntArray  # [L]
    left_width: FloatArray  # [V] metres of the strip to the left where it is no driving lane, else 0
    right_width: FloatArray  # [V]
    # connections, CSR over lanes
    successor_offsets: IntArray  # [L + 1]
    successors: IntArray
    predecessor_offsets: IntArray  # [L + 1]
    predecessors: IntArray
    # traffic lights: one row per head and approach (the rare head that several approaches obey has several rows)
    light_pose: FloatArray  # [T, 3] x, y, heading of the head (it faces oncoming traffic)
    light_lane_offsets: IntArray  # [T + 1] CSR: the junction lanes (connectors) that the light governs
    light_lanes: IntArray
    light_junction: IntArray  # [T] the junction it belongs to
    light_group: IntArray  # [T] the controller that switches it: lights of one group show the same colour
    stop_lines: FloatArray  # [T, 2, 2] left and right end of the stop line, at the start of the governed lanes
    # stop signs
    stop_pose: FloatArray  # [S, 3] x, y, heading of the sign (it faces oncoming traffic)
    stop_lane_offsets: IntArray  # [S + 1] CSR: the lanes that the sign is for (mostly junction lanes, at their first metres)
    stop_lanes: IntArray  # [E]
    stop_arc: FloatArray  # [E] metres along the lane where the sign stands
    stop_box: FloatArray  # [E, 3] x, y, half extent of the square in which CARLA looks for cars that obey the sign
    # surfaces outside driving lanes, ragged polygons
    parking_offsets: IntArray  # [K + 1] parking lanes ("carpark" in NavSim's words)
    parking_vertices: FloatArray  # [W, 2]
    sidewalk_offsets: IntArray  # [S + 1]
    sidewalk_vertices: FloatArray  # [X, 2]
    shoulder_offsets: IntArray  # [B + 1] other street-level surface: shoulders, gutters, bike lanes, two-way turning lanes
    shoulder_vertices: FloatArray  # [Y, 2]
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

    def governed_lanes(self, light: int) -> IntArray:
        """Junction lanes that traffic light ``light`` opens and closes."""
        return self.light_lanes[self.light_lane_offsets[light] : self.light_lane_offsets[light + 1]]

    def lane_polygon(self, lane: int) -> FloatArray:
        """Ring of ``lane``'s surface, [2n, 2]: the left boundary forward, then the right one back."""
        s = self.stations(lane)
        return np.concatenate([self.left[s], self.right[s][::-1]])

    def save(self, path: Path) -> None:
        """Write the graph as one uncompressed .npz whose columns can be mapped; ``path`` appears whole or not at all."""
        with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            for f in fields(self):
                buffer = io.BytesIO()
                np.lib.format.write_array(buffer, np.asarray(getattr(self, f.name), order="C"), allow_pickle=False)
                info = zipfile.ZipInfo(f"{f.name}.npy")
                begin = archive.start_dir + _HEADER + len(info.filename) + 4  # start_dir: where the next member goes
                padding = -begin % _ALIGNMENT
                info.extra = struct.pack("<HH", _PADDING, padding) + bytes(padding)
                archive.writestr(info, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> LaneGraph:
        """Map what ``save`` wrote: processes share one copy, and what is written to an array stays in its process.

        A damaged file raises ``zipfile.BadZipFile``, ``ValueError``, ``KeyError`` or ``OSError``.
        """
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            members = {info.filename: info for info in archive.infolist()}
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        columns: dict[str, Any] = {f.name: _column(mapped, members[f"{f.name}.npy"]) for f in fields(cls)}
        return cls(**columns | {"town": str(columns["town"]), "names": tuple(columns["names"].tolist())})


_HEADER: Final = 30
"""Bytes of a zip member's header before its name."""
_ALIGNMENT: Final = 64
_PADDING: Final = 0x4C47
"""Id of the extra field that pads a member to ``_ALIGNMENT`` bytes."""


def _column(mapped: mmap.mmap, info: zipfile.ZipInfo) -> npt.NDArray[Any]:
    """A member's array, in place; its checksum is tested."""
    at = info.header_offset
    name, extra = struct.unpack("<HH", mapped[at + _HEADER - 4 : at + _HEADER].ljust(4, b"\0"))
    begin = at + _HEADER + name + extra
    with memoryview(mapped) as view, view[begin : begin + info.file_size] as data:
        if info.compress_type != zipfile.ZIP_STORED or zlib.crc32(data) != info.CRC:
            raise zipfile.BadZipFile(f"{info.filename} is damaged: its CRC is wrong")
        head = io.BytesIO(bytes(data[:_LONGEST_HEAD]))
    if np.lib.format.read_magic(head) != (1, 0):
        raise ValueError(f"{info.filename} is no array of version 1.0")
    shape, _, dtype = np.lib.format.read_array_header_1_0(head)
    return np.ndarray(shape, dtype, buffer=mapped, offset=begin + head.tell())


_LONGEST_HEAD: Final = 1024
"""Bytes in which an array's description surely ends."""


def csr(rows: npt.ArrayLike, values: npt.ArrayLike, count: int) -> tuple[IntArray, IntArray]:
    """Compressed rows: ``values`` grouped by ``rows`` (0 … count - 1), each group sorted -> offsets [count + 1], values."""
    r, v = np.asarray(rows, dtype=np.int64), np.asarray(values, dtype=np.int64)
    order = np.lexsort((v, r))
    return offsets_of(np.bincount(r, minlength=count)), v[order]


def offsets_of(counts: npt.ArrayLike) -> IntArray:
    """Offsets [n + 1] of ragged rows with ``counts`` [n] entries each."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(np.asarray(counts, dtype=np.int64))])
