"""Plans to controls: Bench2Drive's rules in our frame, at any time step."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_models.control import CLIP_DELTA, MAX_THROTTLE, PID, PlanTracker, Vehicle, WaypointController
from vla_models.errors import PlanError
from vla_models.interface import VLAForDriving, VLASpec


def straight(speed: float, steps: int = 8, dt: float = 0.5, bend: float = 0.0) -> npt.NDArray[np.float64]:
    t = dt * np.arange(1, steps + 1)
    heading = bend * speed * t
    return np.stack([speed * t, 0.5 * bend * (speed * t) ** 2, heading], axis=1)


def test_first_tick_by_hand() -> None:
    """4 m/s planned, 3.9 driven: nothing to steer, throttle from the first error alone."""
    controls = WaypointController().control(straight(4.0), {"speed": 3.9})
    error = 0.1
    assert controls["steer"] == 0.0
    assert controls["brake"] == 0.0
    assert controls["throttle"] == pytest.approx(min(5.0 * error + 0.5 * error / 40 + 1.0 * error, MAX_THROTTLE), abs=1e-6)


def test_steering_by_hand() -> None:
    """The aim is the point whose segment's middle is nearest 4 m; its bearing in quarter turns goes through the PID."""
    plan = straight(4.0, bend=-0.05)  # to the right: points at 2, 4, 6 m …, middles at 3, 5, 7 m: the point at 2 m or 4 m
    points = plan[:, :2]
    middles = np.linalg.norm((points[1:] + points[:-1]) / 2, axis=1)
    aim = points[np.argmin(np.abs(middles - 4.0))]
    error = np.degrees(np.arctan2(-aim[1], aim[0])) / 90
    steer = WaypointController().control(plan, {"speed": 4.0})["steer"]
    assert steer > 0.0
    assert steer == pytest.approx(0.75 * error + 0.75 * error / 40 + 0.3 * error, rel=1e-5)


@given(speed=st.floats(1.0, 15.0), bend=st.floats(0.001, 0.05), now=st.floats(0.0, 20.0))
def test_left_and_right_mirror(speed: float, bend: float, now: float) -> None:
    left = WaypointController().control(straight(speed, bend=bend), {"speed": now})
    right = WaypointController().control(straight(speed, bend=-bend), {"speed": now})
    assert left["steer"] == pytest.approx(-right["steer"])
    assert left["steer"] < 0.0 < right["steer"]
    assert (left["throttle"], left["brake"]) == (right["throttle"], right["brake"])
    assert left["throttle"] * left["brake"] == 0.0
    assert 0.0 <= left["throttle"] <= MAX_THROTTLE


def test_brakes_when_too_fast_or_to_stand() -> None:
    controller = WaypointController()
    assert controller.control(straight(5.0), {"speed": 5.6})["brake"] == 1.0
    assert controller.control(straight(5.0), {"speed": 5.4})["brake"] == 0.0
    assert controller.control(straight(0.3), {"speed": 0.0}) == {"steer": pytest.approx(0.0), "throttle": 0.0, "brake": 1.0}
    assert controller.control(np.zeros((8, 3)), {"speed": 3.0})["brake"] == 1.0


@pytest.mark.parametrize("dt", [0.1, 0.2, 0.25, 1.0])
def test_the_time_step_of_the_plan_does_not_matter(dt: float) -> None:
    """A straight plan says the same at any rate, where a controller that takes 2 Hz for granted would not."""
    controls = WaypointController(dt).control(straight(6.0, steps=round(4.0 / dt), dt=dt), {"speed": 5.9})
    assert controls == pytest.approx(WaypointController().control(straight(6.0), {"speed": 5.9}), abs=1e-5)


def test_a_near_target_replaces_an_astray_plan() -> None:
    plan = straight(5.0, bend=0.08)
    alone = WaypointController().control(plan, {"speed": 5.0})["steer"]
    with_target = WaypointController().control(plan, {"speed": 5.0, "target": (20.0, 0.0)})["steer"]
    astray = WaypointController().control(plan, {"speed": 5.0, "target": (3.0, -3.0)})["steer"]
    assert alone < 0.0
    assert with_target == 0.0, "the route steers less than the plan"
    assert astray > 0.0, "the plan ends elsewhere than the near target"


def test_reset_forgets() -> None:
    controller = WaypointController()
    first = controller.control(straight(5.0, bend=0.03), {"speed": 2.0})
    second = controller.control(straight(5.0, bend=0.03), {"speed": 2.0})
    controller.reset()
    assert second != first
    assert controller.control(straight(5.0, bend=0.03), {"speed": 2.0}) == first


def test_pid_integral_is_a_mean_over_the_window() -> None:
    pid = PID(0.0, 1.0, 0.0, window=4)
    assert [pid.step(1.0) for _ in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert CLIP_DELTA == 0.25


@pytest.mark.parametrize(
    ("plan", "state", "message"),
    [
        (np.full((8, 3), np.nan), {"speed": 1.0}, "not finite"),
        (np.zeros((8, 5)), {"speed": 1.0}, r"shape \[8, 5\]"),
        (np.zeros((2, 8, 3)), {"speed": 1.0}, "2 plans"),
        (np.zeros((1, 3)), {"speed": 1.0}, "at least 1.0 s"),
        (np.zeros((8, 3)), {}, "needs the vehicle's speed"),
        (np.zeros((8, 3)), {"speed": float("nan")}, "needs the vehicle's speed"),
    ],
)
def test_bad_input_is_named(plan: npt.NDArray[np.float64], state: dict[str, float], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        WaypointController().control(plan, state)


def test_a_time_step_must_be_positive() -> None:
    with pytest.raises(PlanError, match="positive"):
        WaypointController(0.0)


def test_plans_may_be_batched_by_one_or_lack_headings() -> None:
    want = WaypointController().control(straight(5.0), {"speed": 4.0})
    assert WaypointController().control(straight(5.0)[None], {"speed": 4.0}) == want
    assert WaypointController().control(straight(5.0)[:, :2], {"speed": 4.0}) == want


# -- the tracker -----------------------------------------------------------------------------------------------------------


def drive(
    plan: npt.NDArray[np.float64], speed: float, seconds: float, dt: float = 0.5, slope: float = 0.0
) -> npt.NDArray[np.float64]:
    """Poses and speeds [n, 4] of a kinematic bicycle every 0.1 s, which one plan leads all the way; ``slope`` in m/s²."""
    car, tracker = Vehicle(), PlanTracker(dt)
    x = y = heading = 0.0
    rows = []
    for k in range(round(seconds / 0.1)):
        state = {"speed": speed, "elapsed": 0.1 * k, "pose": (x, y, heading)}
        c = tracker.control(plan, state)
        pull = c["throttle"] * car.full_throttle - c["brake"] * car.full_brake - car.drag * speed - slope
        curvature = -np.tan(c["steer"] * car.full_lock) / car.wheelbase
        speed = max(speed + 0.1 * pull, 0.0)
        heading += 0.1 * speed * curvature
        x, y = x + 0.1 * speed * np.cos(heading), y + 0.1 * speed * np.sin(heading)
        rows.append((x, y, heading, speed))
    return np.array(rows)


@pytest.mark.parametrize("dt", [0.25, 0.5])
@pytest.mark.parametrize("bend", [0.0, 0.04, -0.08])
def test_the_tracker_stays_near_the_plan(bend: float, dt: float) -> None:
    t = dt * np.arange(1, round(4 / dt) + 1)
    s = 5.0 * t
    plan = np.stack([s * np.sinc(bend * s / 2 / np.pi) * f(bend * s / 2) for f in (np.cos, np.sin)], axis=1)
    driven = drive(plan, 5.0, 4.0, dt)
    at = np.stack([np.interp(0.1 * np.arange(1, 41), [0, *t], [0, *plan[:, j]]) for j in (0, 1)], axis=1)
    assert np.linalg.norm(driven[:, :2] - at, axis=1).max() < 0.5


def test_the_tracker_changes_speed_as_planned_and_holds_it_uphill() -> None:
    assert drive(straight(8.0, steps=16), 4.0, 8.0)[-1, 3] == pytest.approx(8.0, abs=0.3)
    stopping = np.stack([np.array([3.0, 4.5, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0]), np.zeros(8)], axis=1)
    assert drive(stopping, 6.0, 4.0)[-1, 3] < 0.05
    uphill = drive(np.vstack([straight(5.0, steps=16)]), 5.0, 8.0, slope=0.6)
    assert uphill[-1, 3] == pytest.approx(5.0, abs=0.25)


def test_the_tracker_stands_where_the_plan_does_and_forgets() -> None:
    tracker = PlanTracker()
    assert tracker.control(straight(0.0), {"speed": 0.2}) == {"steer": 0.0, "throttle": 0.0, "brake": 1.0}
    first = tracker.control(straight(5.0), {"speed": 3.0})
    assert tracker.control(straight(5.0), {"speed": 3.0}) != first
    tracker.reset()
    assert tracker.control(straight(5.0), {"speed": 3.0}) == first


@given(st.floats(0, 30), st.lists(st.tuples(st.floats(-50, 50), st.floats(-50, 50)), min_size=2, max_size=8))
def test_the_tracker_gives_controls_that_a_car_takes(speed: float, points: list[tuple[float, float]]) -> None:
    controls = PlanTracker().control(np.array(points), {"speed": speed})
    assert -1.0 <= controls["steer"] <= 1.0
    assert 0.0 <= controls["throttle"] <= 1.0
    assert 0.0 <= controls["brake"] <= 1.0
    assert controls["throttle"] * controls["brake"] == 0.0


def test_the_spec_names_the_controller() -> None:
    class Driver(VLAForDriving):
        def __init__(self, controller: str) -> None:
            self.spec = VLASpec(horizon=8, dt=0.5, controller=controller)

    state = {"speed": 4.0}
    for name, made in (("pid", WaypointController()), ("tracker", PlanTracker())):
        assert Driver(name).waypoints_to_controls(straight(6.0), state) == made.control(straight(6.0), state)
    with pytest.raises(PlanError, match="Did you mean 'tracker'"):
        Driver("traker").waypoints_to_controls(straight(6.0), state)
    with pytest.raises(PlanError, match="at least"):
        PlanTracker().control(straight(6.0)[:1], state)
