"""Frames, boxes and polylines: properties that hold for any input, and shapely's answers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import LineString, Point, Polygon

from vla_models.geometry import arc_lengths, box_corners, from_frame, project, to_frame, wrap_angle

coordinate = st.integers(-1_000_000, 1_000_000).map(lambda mm: mm / 1000.0)  # millimetres: shapely stumbles over 1e-247 m
angle = st.floats(-20.0, 20.0)
pose = st.tuples(coordinate, coordinate, angle)
line = st.lists(st.tuples(coordinate, coordinate), min_size=2, max_size=8)


@given(angle)
def test_a_wrapped_angle_points_the_same_way(a: float) -> None:
    wrapped = float(wrap_angle(a))
    assert -np.pi <= wrapped <= np.pi
    assert np.allclose([np.cos(wrapped), np.sin(wrapped)], [np.cos(a), np.sin(a)], atol=1e-9)


@given(st.lists(pose, min_size=1, max_size=6), pose)
def test_frames_are_each_others_inverse(poses: list[tuple[float, float, float]], frame: tuple[float, float, float]) -> None:
    given_poses = np.array(poses)
    back = from_frame(to_frame(given_poses, frame), frame)
    assert np.allclose(back[:, :2], given_poses[:, :2], atol=1e-9)
    assert np.allclose(wrap_angle(back[:, 2] - given_poses[:, 2]), 0.0, atol=1e-9)
    assert np.array_equal(to_frame(given_poses[:, :2], frame), to_frame(given_poses, frame)[:, :2])


def test_a_frame_looks_along_x_with_y_to_the_left() -> None:
    north = (10.0, 20.0, np.pi / 2)
    assert to_frame([10.0, 25.0], north) == pytest.approx([5.0, 0.0])
    assert to_frame([7.0, 20.0, np.pi], north) == pytest.approx([0.0, 3.0, np.pi / 2])


@settings(deadline=None)  # the first call compiles
@given(line, coordinate, coordinate)
def test_projection_finds_the_nearest_point(points: list[tuple[float, float]], x: float, y: float) -> None:
    vertices = np.array(points)
    at, offset = project(vertices, x, y)
    shape = LineString(points)
    assert abs(offset) == pytest.approx(shape.distance(Point(x, y)), abs=1e-6)
    assert shape.interpolate(at).distance(Point(x, y)) == pytest.approx(abs(offset), abs=1e-6)
    assert arc_lengths(vertices)[-1] == pytest.approx(shape.length)


def test_left_of_a_line_is_positive() -> None:
    east = np.array([[0.0, 0.0], [10.0, 0.0]])
    assert project(east, 4.0, 2.0) == pytest.approx((4.0, 2.0))
    assert project(east, 4.0, -2.0) == pytest.approx((4.0, -2.0))


@settings(deadline=None)  # the first call compiles
@given(pose, st.floats(0.1, 20.0), st.floats(0.1, 5.0))
def test_box_corners_are_those_of_the_box(at: tuple[float, float, float], length: float, width: float) -> None:
    corners = box_corners(*at, length, width)
    wanted = np.array([[length, width], [-length, width], [-length, -width], [length, -width]]) / 2.0
    assert np.allclose(to_frame(corners, at), wanted, atol=1e-9)
    assert Polygon(corners).area == pytest.approx(length * width)
