"""Distances of shapes and the swept corridor, against shapely."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_models.geometry import box_corners
from vla_models.scoring.pdm.clearance import border_gap2, box_gap, gap, polygon_centroid, polygon_within
from vla_models.scoring.pdm.paths import corridor_blocks, corridor_ends, corridor_line, in_corridor, pose_at

coordinate = st.floats(-8.0, 8.0)
angle = st.floats(-np.pi, np.pi)
extent = st.floats(0.3, 9.0)
box = st.tuples(coordinate, coordinate, angle, extent, extent)

L_SHAPE = np.array([[0.0, 0.0], [6.0, 0.0], [6.0, 2.0], [2.0, 2.0], [2.0, 5.0], [0.0, 5.0]])


@settings(deadline=None, max_examples=200)
@given(box, box)
def test_gaps_of_boxes_are_those_of_shapely(a: tuple[float, ...], b: tuple[float, ...]) -> None:
    want = shapely.Polygon(box_corners(*a)).distance(shapely.Polygon(box_corners(*b)))
    assert box_gap(*a, *b) == pytest.approx(want, abs=1e-9)
    assert gap(box_corners(*a), box_corners(*b)) == pytest.approx(want, abs=1e-9)


@settings(deadline=None, max_examples=200)
@given(box)
def test_gap_to_a_polygon_that_is_not_convex_is_that_of_shapely(a: tuple[float, ...]) -> None:
    corners, shape = box_corners(*a), shapely.Polygon(L_SHAPE)
    assert gap(corners, L_SHAPE) == pytest.approx(shapely.Polygon(corners).distance(shape), abs=1e-9)
    line = shapely.LineString(L_SHAPE)
    assert np.sqrt(border_gap2(corners, L_SHAPE, False, np.inf)) == pytest.approx(
        shapely.LinearRing(corners).distance(line), abs=1e-9
    )


def test_within_needs_the_whole_box_inside() -> None:
    assert polygon_within(box_corners(1.0, 1.0, 0.3, 1.0, 0.5), L_SHAPE)
    assert not polygon_within(box_corners(2.0, 2.0, 0.0, 1.0, 1.0), L_SHAPE)  # one corner in the L's notch
    assert not polygon_within(box_corners(3.0, 3.0, -np.pi / 4, 5.5, 0.2), L_SHAPE)  # both ends inside, the middle outside


def test_centroid_is_that_of_the_area_whether_the_ring_is_closed_or_not() -> None:
    want = np.array(shapely.Polygon(L_SHAPE).centroid.coords[0])
    np.testing.assert_allclose(polygon_centroid(L_SHAPE), want, atol=1e-12)
    np.testing.assert_allclose(polygon_centroid(np.vstack([L_SHAPE, L_SHAPE[:1]])[::-1].copy()), want, atol=1e-12)
    np.testing.assert_allclose(polygon_centroid(np.array([[0.0, 0.0], [2.0, 0.0], [4.0, 0.0]])), [2.0, 0.0])


def _path(n: int, turn: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    heading = turn * np.arange(n, dtype=float)
    steps = np.stack([np.cos(heading[:-1] + turn / 2), np.sin(heading[:-1] + turn / 2)], axis=-1)
    points = np.vstack([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
    return points, heading, np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])


@settings(deadline=None, max_examples=150)
@given(box, st.floats(-0.04, 0.04), st.floats(-1.0, 41.0), st.floats(0.0, 45.0))
def test_corridor_is_the_buffered_line(a: tuple[float, ...], turn: float, start: float, length: float) -> None:
    points, heading, progress = _path(40, turn)
    line = corridor_line(points, heading, progress, start, start + length)
    middle = shapely.LineString(line) if len(line) > 1 else shapely.Point(line[0])
    corridor = middle.buffer(1.15, cap_style="square")
    centre = line[len(line) // 2] + np.array(a[:2]) * 2.0
    shape = box_corners(centre[0], centre[1], *a[2:])
    polygon = shapely.Polygon(shape)
    if corridor.distance(polygon) > 0.02:  # shapely rounds the rim of a buffer by about a centimetre
        assert not in_corridor(shape, line, corridor_blocks(line), corridor_ends(line, 1.15), 1.15)
    elif corridor.intersection(polygon).area > 0.02 * polygon.length:
        assert in_corridor(shape, line, corridor_blocks(line), corridor_ends(line, 1.15), 1.15)


def test_corridor_begins_at_the_next_vertex_or_is_cut_exactly() -> None:
    points, heading, progress = _path(10, 0.0)
    np.testing.assert_allclose(corridor_line(points, heading, progress, 2.5, 5.5), points[3:6])
    np.testing.assert_allclose(corridor_line(points, heading, progress, 2.5, 3.5), [[2.5, 0.0], [3.0, 0.0], [3.5, 0.0]])
    np.testing.assert_allclose(corridor_line(points, heading, progress, 2.2, 2.7), [[2.2, 0.0], [2.7, 0.0]])
    np.testing.assert_allclose(corridor_line(points, heading, progress, 20.0, 30.0), [[9.0, 0.0]])


def test_poses_beyond_the_ends_stand_still_and_repeated_vertices_are_passed() -> None:
    points, heading, progress = _path(10, 0.1)
    points, heading, progress = (np.repeat(v, 2, axis=0) for v in (points, heading, progress))
    pose = np.empty(3)
    pose_at(points, heading, progress, 99.0, pose)
    np.testing.assert_allclose(pose, [*points[-1], heading[-1]])
    pose_at(points, heading, progress, -1.0, pose)
    np.testing.assert_allclose(pose, [*points[0], heading[0]], atol=1e-4)
    pose_at(points, heading, progress, float(progress[6]), pose)
    np.testing.assert_allclose(pose, [*points[6], heading[6]])
