"""Traffic: what drivers do behind, beside and before others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_models.simulation.traffic import AGENT_COLUMNS, SCRIPTED, STANDING, TICK, Motion, column, new_agents, simulate

POINTS = 200


def line(x: float, y: float, heading: float) -> np.ndarray:
    s = np.arange(POINTS, dtype=np.float64)
    return np.stack([x + s * np.cos(heading), y + s * np.sin(heading), np.full(POINTS, heading)], -1)


def drive(
    paths: list[np.ndarray], steps: int = 100, limit: float = 12.0, lights: tuple | None = None, **columns: list[float]
) -> Motion:
    agents = new_agents(len(paths))
    for name, values in columns.items():
        agents[:, column(name)] = values
    extra = lights or ()
    return simulate(
        np.stack(paths), np.full((len(paths), POINTS), limit), np.full(len(paths), POINTS - 1.0), agents, steps, *extra
    )


def test_a_free_car_reaches_the_limit_and_keeps_it() -> None:
    motion = drive([line(0, 0, 0)], 150, speed_factor=[1.0])
    assert 11.0 < motion.speed[-1, 0] <= 12.0
    assert np.all(np.diff(motion.travelled[:, 0]) >= 0.0)


def test_the_rear_axle_follows_the_path() -> None:
    motion = drive([line(3.0, -2.0, 0.7)], 50, speed=[8.0])
    s = motion.travelled[:, 0]
    expected = np.stack([3.0 + s * np.cos(0.7), -2.0 + s * np.sin(0.7)], -1)
    np.testing.assert_allclose(motion.pose[:, 0, :2], expected, atol=1e-9)
    np.testing.assert_allclose(np.diff(s), motion.speed[:-1, 0] * TICK, atol=0.02)


def test_a_tight_curve_is_taken_slowly() -> None:
    s = np.arange(POINTS, dtype=np.float64)
    heading = np.clip((s - 60.0) / 10.0, 0.0, np.pi / 2)  # a right angle with a radius of 10 m
    path = np.stack([np.cumsum(np.cos(heading)), np.cumsum(np.sin(heading)), heading], -1)
    motion = drive([path], 150, speed=[10.0], lateral_accel=[2.0])
    inside = (motion.travelled[:, 0] > 62.0) & (motion.travelled[:, 0] < 73.0)
    assert inside.any()
    assert motion.speed[inside, 0].max() < 1.15 * np.sqrt(2.0 * 10.0)


@settings(max_examples=25, deadline=None)
@given(gap=st.floats(12.0, 60.0), behind=st.floats(0.0, 11.0), ahead=st.floats(0.0, 11.0), decel=st.floats(1.0, 4.5))
def test_nobody_drives_into_a_car_that_brakes_to_a_stop(gap: float, behind: float, ahead: float, decel: float) -> None:
    if behind > ahead and gap < 8.0 + (behind**2 - ahead**2) / 6.0 + 1.5 * behind:
        gap += 40.0
    motion = drive(
        [line(0, 0, 0), line(gap, 0, 0)], 150, speed=[behind, ahead], brake_time=[np.inf, 2.0], brake_decel=[4.0, decel]
    )
    rear_of_leader = motion.pose[:, 1, 0] + 1.3 - 2.3
    nose_of_follower = motion.pose[:, 0, 0] + 1.3 + 2.3
    assert np.all(nose_of_follower < rear_of_leader)
    assert motion.speed[-1, 1] == 0.0


def test_a_car_waits_behind_a_standing_one_and_passes_one_beside_the_lane() -> None:
    motion = drive([line(0, 0, 0), line(60, 0, 0)], 150, speed=[8.0, 0.0], role=[0, STANDING])
    assert motion.speed[-1, 0] < 0.2
    assert 50.0 < motion.pose[-1, 0, 0] + 1.3 + 2.3 < 60.0
    beside = drive([line(0, 0, 0), line(60, 2.6, 0)], 150, speed=[8.0, 0.0], role=[0, STANDING])
    assert beside.speed[-1, 0] > 8.0


def test_a_car_lets_a_pedestrian_cross() -> None:
    walker = line(45.0, -6.0, np.pi / 2)
    motion = drive(
        [line(0, 0, 0), walker],
        120,
        speed=[8.0, 1.3],
        role=[0, SCRIPTED],
        length=[4.6, 0.6],
        width=[1.9, 0.6],
        hold_until=[0, 1.0],
    )
    distance = np.hypot(*(motion.pose[:, 0, :2] + [1.3, 0.0] - motion.pose[:, 1, :2]).T)
    assert distance.min() > 2.6
    assert motion.speed[:10, 1].max() == 0.0
    assert motion.speed[20, 1] == pytest.approx(1.3)


@pytest.mark.parametrize(("state", "stops"), [(0, False), (1, True), (2, True)])
def test_lights(state: int, stops: bool) -> None:
    lights = (np.array([[70.0]]), np.array([[0]]), np.full((150, 1), state, dtype=np.int8))
    motion = drive([line(0, 0, 0)], 150, lights=lights, speed=[9.0])
    nose = motion.pose[-1, 0, 0] + 1.3 + 2.3
    assert (nose < 70.5) == stops
    if stops:
        assert nose > 66.0


def test_yellow_is_crossed_when_it_is_too_late_to_stop_gently() -> None:
    lights = (np.array([[15.0]]), np.array([[0]]), np.full((60, 1), 1, dtype=np.int8))
    motion = drive([line(0, 0, 0)], 60, lights=lights, speed=[11.0])
    assert motion.speed[-1, 0] > 9.0


def test_crossing_cars_do_not_meet() -> None:
    motion = drive([line(-50, 0, 0), line(0, -52, np.pi / 2)], 150, speed=[9.0, 9.0])
    one = motion.pose[:, 0, :2] + 1.3 * np.array([1.0, 0.0])
    two = motion.pose[:, 1, :2] + 1.3 * np.array([0.0, 1.0])
    assert np.abs(one - two).max(axis=1).min() > 2.3 + 0.95  # boxes across each other never overlap
    assert motion.travelled[-1].min() > 55.0  # and both get through


def test_a_car_leaves_where_its_path_ends() -> None:
    agents = new_agents(1)
    agents[:, column("speed")] = 10.0
    motion = simulate(line(0, 0, 0)[None], np.full((1, POINTS), 12.0), np.array([30.0]), agents, 60)
    assert np.isfinite(motion.pose[0]).all()
    assert np.isnan(motion.pose[-1]).all()
    assert np.isnan(motion.speed[-1, 0])


def test_it_is_deterministic() -> None:
    paths = [line(0, 0, 0), line(20, 0, 0), line(30, -30, np.pi / 2)]
    one, two = (drive(paths, 80, speed=[8.0, 5.0, 8.0]) for _ in range(2))
    np.testing.assert_array_equal(one.pose, two.pose)
    np.testing.assert_array_equal(one.acceleration, two.acceleration)


def test_agent_columns_have_names() -> None:
    assert [column(name) for name in AGENT_COLUMNS] == list(range(len(AGENT_COLUMNS)))
    assert new_agents(3).shape == (3, len(AGENT_COLUMNS))
