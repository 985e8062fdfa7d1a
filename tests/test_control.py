"""Plans to controls: Bench2Drive's rules in our frame, at any time step."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_models.control import CLIP_DELTA, MAX_THROTTLE, PID, WaypointController
from vla_models.errors import PlanError


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
