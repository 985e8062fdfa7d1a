"""The lane graph's columns: ragged rows, saving and loading."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_models.scenes.lanes import LaneGraph, csr, offsets_of


def small_graph() -> LaneGraph:
    """Two straight lanes, one after the other, with a light on the second."""
    center = np.array([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [2, 0, 0], [3, 0, 0]])
    none = np.zeros((0, 2))
    return LaneGraph(
        town="Here",
        offsets=np.array([0, 3, 5]),
        center=center,
        left=center[:, :2] + [0, 2],
        right=center[:, :2] - [0, 2],
        arc=np.array([0.0, 1, 2, 0, 1]),
        elevation=np.zeros(5),
        length=np.array([2.0, 1.0]),
        speed_limit=np.array([10.0, 10.0]),
        junction=np.array([-1, 7]),
        road=np.array([0, 1]),
        left_lane=np.array([-1, -1]),
        right_lane=np.array([-1, -1]),
        names=("1/0/-1", "2/0/-1"),
        left_change=np.zeros(2, bool),
        right_change=np.zeros(2, bool),
        opposite_lane=np.array([-1, -1]),
        left_side=np.zeros(2, np.int64),
        right_side=np.zeros(2, np.int64),
        left_width=np.zeros(5),
        right_width=np.zeros(5),
        successor_offsets=np.array([0, 1, 1]),
        successors=np.array([1]),
        predecessor_offsets=np.array([0, 0, 1]),
        predecessors=np.array([0]),
        light_pose=np.array([[9.0, 3, np.pi]]),
        light_lane_offsets=np.array([0, 1]),
        light_lanes=np.array([1]),
        light_junction=np.array([7]),
        light_group=np.array([3]),
        stop_lines=np.array([[[2.0, 2], [2, -2]]]),
        stop_pose=np.array([[2.0, -3, np.pi]]),
        stop_lane_offsets=np.array([0, 1]),
        stop_lanes=np.array([1]),
        stop_arc=np.array([0.0]),
        stop_box=np.array([[2.0, 0, 1.8]]),
        parking_offsets=np.zeros(1, np.int64),
        parking_vertices=none,
        sidewalk_offsets=np.zeros(1, np.int64),
        sidewalk_vertices=none,
        shoulder_offsets=np.zeros(1, np.int64),
        shoulder_vertices=none,
        crosswalks=np.zeros((0, 4, 2)),
    )


def test_rows_of_the_ragged_columns() -> None:
    graph = small_graph()
    assert len(graph) == 2
    assert graph.stations(1) == slice(3, 5)
    assert graph.next_lanes(0).tolist() == [1]
    assert graph.next_lanes(1).tolist() == []
    assert graph.previous_lanes(1).tolist() == [0]
    assert graph.governed_lanes(0).tolist() == [1]
    assert graph.lane_polygon(1).tolist() == [[2, 2], [3, 2], [3, -2], [2, -2]]


def test_saving_and_loading_keeps_everything(tmp_path: Path) -> None:
    graph = small_graph()
    graph.save(tmp_path / "deep" / "here.npz")
    again = LaneGraph.load(tmp_path / "deep" / "here.npz")
    for field in fields(LaneGraph):
        was, now = getattr(graph, field.name), getattr(again, field.name)
        if isinstance(was, np.ndarray):
            assert now.dtype == was.dtype
            np.testing.assert_array_equal(now, was)
        else:
            assert now == was
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["here.npz"]


def test_columns_are_mapped_in_place_and_writing_to_one_stays_here(tmp_path: Path) -> None:
    path = tmp_path / "here.npz"
    small_graph().save(path)
    graph = LaneGraph.load(path)
    for f in fields(LaneGraph):
        column = getattr(graph, f.name)
        if isinstance(column, np.ndarray):
            assert column.flags.aligned
            assert not column.flags.owndata
    graph.center[0, 0] = 77.0
    assert LaneGraph.load(path).center[0, 0] == 0.0
    with np.load(path) as archive:  # it is an ordinary .npz
        assert np.array_equal(archive["center"], small_graph().center)


def test_a_damaged_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "here.npz"
    small_graph().save(path)
    data = bytearray(path.read_bytes())
    at = data.find(np.float64(9.0).tobytes())  # the light's x
    data[at + 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(Exception, match="CRC"):
        LaneGraph.load(path)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), unique=True))
def test_csr_of_swapped_pairs_is_the_transpose(pairs: list[tuple[int, int]]) -> None:
    table = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    offsets, values = csr(table[:, 0], table[:, 1], 7)
    back_offsets, back = csr(table[:, 1], table[:, 0], 7)
    forward = {(i, int(j)) for i in range(7) for j in values[offsets[i] : offsets[i + 1]]}
    backward = {(int(i), j) for j in range(7) for i in back[back_offsets[j] : back_offsets[j + 1]]}
    assert forward == backward == set(pairs)
    assert offsets[-1] == back_offsets[-1] == len(pairs)


def test_offsets_of_counts() -> None:
    assert offsets_of([2, 0, 3]).tolist() == [0, 2, 2, 5]
    assert offsets_of([]).tolist() == [0]
