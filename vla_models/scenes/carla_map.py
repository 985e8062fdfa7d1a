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

from vla_models.scenes.carla_lanes import NARROWEST, SHORTEST, driving_lanes, lane_strips
from vla_models.scenes.carla_lights import lights
from vla_models.scenes.carla_sides import sides, stop_signs
from vla_models.scenes.lanes import FloatArray, IntArray, LaneGraph, offsets_of
from vla_models.scenes.opendrive import Network, read_network

SURFACE_STEP: Final = 2.0
"""Metres between the cross-sections of surfaces that are not driving lanes, at most."""
SURFACES: Final = {"parking": {"parking"}, "sidewalk": {"sidewalk"}, "shoulder": {"shoulder", "biking", "bidirectional"}}
"""Surface of the lane graph -> OpenDRIVE lane types that make it."""
MOST_CORNERS: Final = 12
"""Corners of a crosswalk's outline, at most (the towns have 4 to 6)."""


def convert(town: str, xodr: bytes) -> LaneGraph:
    """The lane graph of an OpenDRIVE file's text. Raises ``SceneError`` where the file contradicts itself."""
    import carla

    carla_map = carla.Map(town, xodr.decode("utf-8"))
    network = read_network(xodr)
    lanes = driving_lanes(carla_map, network)
    columns: dict[str, Any] = {
        **lanes.columns,
        **sides(carla_map, network, lanes),
        **lights(carla_map, network, lanes),
        **stop_signs(carla_map, network, lanes),
        "crosswalks": crosswalks(carla_map),
    }
    for name, kinds in SURFACES.items():
        columns[f"{name}_offsets"], columns[f"{name}_vertices"] = _surfaces(carla_map, network, kinds)
    return LaneGraph(town=town, **columns)


def crosswalks(carla_map: Any) -> FloatArray:
    """[Z, 4, 2] quadrilaterals. CARLA lists the corners of all of them in one row, each closed by its first corner; a longer
    outline loses the corners that matter least, lines that are never closed are not crosswalks."""
    row = [(place.x, -place.y) for place in carla_map.get_crosswalks()]
    found = []
    i = 0
    while i < len(row):
        closing = next((j for j in range(i + 4, min(i + MOST_CORNERS + 1, len(row))) if row[j] == row[i]), None)
        if closing is None:
            i += 1
            continue
        ring = np.array(row[i:closing])
        while len(ring) > 4:
            before, after = np.roll(ring, 1, axis=0) - ring, np.roll(ring, -1, axis=0) - ring
            ring = np.delete(ring, np.argmin(np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0])), axis=0)
        found.append(ring)
        i = closing + 1
    return np.array(found).reshape(-1, 4, 2)


def _surfaces(carla_map: Any, network: Network, kinds: set[str]) -> tuple[IntArray, FloatArray]:
    """Outlines of all lanes of the given types, as ragged rings."""
    rings = []
    for road in network.roads.values():
        for section in road.sections:
            length = section.end - section.start
            ids = [i for i, lane in section.lanes.items() if lane.kind in kinds]
            if not ids or length < SHORTEST:
                continue
            for _, left, right, _ in lane_strips(carla_map, road, section, ids, max(1, math.ceil(length / SURFACE_STEP))):
                if np.hypot(*(left - right).T).max() > NARROWEST:
                    rings.append(np.concatenate([left, right[::-1]]))
    return offsets_of([len(ring) for ring in rings]), np.concatenate([np.zeros((0, 2)), *rings])


def main() -> None:
    """Convert ``SOURCE`` (.xodr or .xodr.gz) to ``TARGET`` (.npz)."""
    town, source, target = sys.argv[1:]
    data = Path(source).read_bytes()
    convert(town, gzip.decompress(data) if source.endswith(".gz") else data).save(Path(target))


if __name__ == "__main__":
    main()
