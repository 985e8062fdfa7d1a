"""The part of a town around a route: a small lane graph that keeps everything a simulation there needs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_models.scenes.lanes import FloatArray, IntArray, LaneGraph, csr, offsets_of


def surroundings(graph: LaneGraph, points: npt.ArrayLike, radius: float = 150.0) -> tuple[LaneGraph, IntArray]:
    """The lanes (whole) and surfaces of ``graph`` that come within ``radius`` metres of a polyline [n, >=2].

    Also which lane of ``graph`` each lane of the result is, [l], ascending. Connections, lights' and signs' lanes that lead out
    are dropped; a light or a sign stays if any of its lanes does. Surfaces are kept or left out whole.
    """
    line = np.asarray(points, dtype=np.float64)[:, :2]
    lane_of = np.repeat(np.arange(len(graph)), np.diff(graph.offsets))
    lanes = np.unique(lane_of[_near(graph.center[:, :2], line, radius)])
    new = np.full(len(graph) + 1, -1, dtype=np.int64)  # the last entry answers for "no lane" (-1)
    new[lanes] = np.arange(len(lanes))
    stations, offsets = _rows(graph.offsets, lanes)
    columns: dict[str, Any] = {
        name: getattr(graph, name)[stations]
        for name in ("center", "left", "right", "arc", "elevation", "left_width", "right_width")
    }
    for name in ("length", "speed_limit", "junction", "left_change", "right_change", "left_side", "right_side"):
        columns[name] = getattr(graph, name)[lanes]
    for name in ("left_lane", "right_lane", "opposite_lane"):
        columns[name] = new[getattr(graph, name)[lanes]]
    columns["left_change"] = columns["left_change"] & (columns["left_lane"] >= 0)
    columns["right_change"] = columns["right_change"] & (columns["right_lane"] >= 0)
    _, columns["road"] = np.unique(graph.road[lanes], return_inverse=True)
    for name in ("successor", "predecessor"):
        at, values = getattr(graph, f"{name}_offsets"), getattr(graph, f"{name}s")
        source, target = new[np.repeat(np.arange(len(graph)), np.diff(at))], new[values]
        kept = (source >= 0) & (target >= 0)
        columns[f"{name}_offsets"], columns[f"{name}s"] = csr(source[kept], target[kept], len(lanes))
    for name, per_row in (("light", ("pose", "junction", "group")), ("stop", ("pose",))):
        at, values = getattr(graph, f"{name}_lane_offsets"), new[getattr(graph, f"{name}_lanes")]
        row_of = np.repeat(np.arange(len(at) - 1), np.diff(at))
        rows = np.unique(row_of[values >= 0])
        entries = np.flatnonzero((values >= 0) & np.isin(row_of, rows))
        columns[f"{name}_lanes"] = values[entries]
        columns[f"{name}_lane_offsets"] = offsets_of(np.bincount(np.searchsorted(rows, row_of[entries]), minlength=len(rows)))
        for part in per_row:
            columns[f"{name}_{part}"] = getattr(graph, f"{name}_{part}")[rows]
        if name == "light":
            columns["stop_lines"] = graph.stop_lines[rows]
        else:
            columns["stop_arc"], columns["stop_box"] = graph.stop_arc[entries], graph.stop_box[entries]
    for name in ("parking", "sidewalk", "shoulder"):
        at, vertices = getattr(graph, f"{name}_offsets"), getattr(graph, f"{name}_vertices")
        ring_of = np.repeat(np.arange(len(at) - 1), np.diff(at))
        kept_vertices, columns[f"{name}_offsets"] = _rows(at, np.unique(ring_of[_near(vertices, line, radius)]))
        columns[f"{name}_vertices"] = vertices[kept_vertices]
    middles = graph.crosswalks.mean(axis=1) if len(graph.crosswalks) else np.zeros((0, 2))
    columns["crosswalks"] = graph.crosswalks[_near(middles, line, radius)]
    columns |= {"offsets": offsets, "names": tuple(graph.names[i] for i in lanes.tolist())}
    return replace(graph, **columns), lanes


def _near(places: FloatArray, line: FloatArray, radius: float) -> npt.NDArray[np.bool_]:
    """[n] whether places [n, 2] come within ``radius`` metres of a vertex of ``line`` [m, 2], to within a tenth of ``radius``.

    A town has a million stations: the neighbourhood of the line is painted into a coarse grid, and the places look it up.
    """
    cell = radius / 16.0
    low = line.min(axis=0) - radius - cell
    shape = np.ceil((line.max(axis=0) + radius + cell - low) / cell).astype(np.int64) + 1
    grid = np.zeros(shape, dtype=bool)
    at = np.unique(((line - low) / cell).astype(np.int64), axis=0)
    reach = np.arange(-17, 18)
    dx, dy = (part.ravel() for part in np.meshgrid(reach, reach, indexing="ij"))
    disc = np.hypot(dx, dy) <= 16.5
    painted = at[:, None] + np.stack([dx[disc], dy[disc]], axis=-1)
    painted = painted[np.all((painted >= 0) & (painted < shape), axis=-1)]
    grid[painted[:, 0], painted[:, 1]] = True
    x, y = ((places[:, k] - low[k]) / cell for k in (0, 1))
    inside = np.flatnonzero((x >= 0.0) & (x < shape[0]) & (y >= 0.0) & (y < shape[1]))
    near = np.zeros(len(places), dtype=bool)
    near[inside] = grid[x[inside].astype(np.int64), y[inside].astype(np.int64)]
    return near


def _rows(offsets: IntArray, rows: IntArray) -> tuple[IntArray, IntArray]:
    """Positions of the entries of ragged ``rows``, and the new offsets."""
    counts = offsets[rows + 1] - offsets[rows]
    new = offsets_of(counts)
    return np.arange(new[-1]) + np.repeat(offsets[rows] - new[:-1], counts), new
