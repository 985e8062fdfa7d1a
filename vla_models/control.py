"""From a plan to steer, throttle and brake, by one of two rules that a model's spec names.

``pid``: the controller of Bench2Drive's own agents. Constants and rules are those of Bench2DriveZoo's ``pid_controller.py``
(which goes back to TCP and TransFuser), written anew for our frame (x forward, y left; theirs is y forward, x right) and for
plans of any time step (theirs assumes 2 Hz). It aims at a point 4 m ahead and slows down late.

``tracker``: follows the plan as well as the vehicle can, by inverting a model of it: what a plan is worth, not what the PID
makes of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from vla_models.errors import PlanError, did_you_mean
from vla_models.inputs import check_plan

PLAN_DT: Final = 0.5
"""Seconds between the waypoints that the rules below were tuned for; other plans are resampled to it."""
MAX_THROTTLE: Final = 0.75
BRAKE_SPEED: Final = 0.4
"""m/s: a plan slower than this is a plan to stand still."""
BRAKE_RATIO: Final = 1.1
"""Brake when faster than this many times the planned speed."""
CLIP_DELTA: Final = 0.25
"""m/s: the throttle sees no greater lack of speed than this."""
AIM_DISTANCE: Final = 4.0
"""Metres ahead at which the steering aims."""
TARGET_ANGLE: Final = 0.3
"""In quarter turns: where target and end of plan differ by more, the plan is an outlier and a near target is aimed at …"""
TARGET_DISTANCE: Final = 10.0
"""… if it is nearer ahead than this, metres."""

AIM_TIME: Final = 0.8
"""Seconds of driving ahead at which the tracker steers (and 1.5 m more) …"""
LEAST_REACH: Final = 3.0
"""… but at least this far, metres."""
SPEED_TIME: Final = 0.5
"""Seconds in which the tracker makes up for a lack of speed."""
LAG_GAIN: Final = 0.8
"""m/s² for each metre behind the plan, up to one metre."""
HOLD_GAIN: Final = 0.01
"""m/s² that each tick with 1 m/s too little adds to the effort, up to 0.5."""
STANDSTILL: Final = 0.15
"""m/s: the tracker takes a slower plan for one to stand still."""


class PID:
    """A PID controller over the last ``window`` errors: the integral is their mean, the derivative the last difference."""

    def __init__(self, proportional: float, integral: float, derivative: float, window: int = 40) -> None:
        self.gains = (proportional, integral, derivative)
        self.errors: deque[float] = deque(maxlen=window)
        self.reset()

    def reset(self) -> None:
        """Forget all errors (a full window of zeros, as in the original, so that the integral fades in)."""
        self.errors.extend([0.0] * (self.errors.maxlen or 0))

    def step(self, error: float) -> float:
        """Response to the next error."""
        self.errors.append(error)
        p, i, d = self.gains
        return p * error + i * sum(self.errors) / len(self.errors) + d * (self.errors[-1] - self.errors[-2])


class WaypointController:
    """Follows plans with one vehicle. Stateful: ``reset()`` when an episode starts, ``control()`` at each tick.

    Args:
        dt: seconds between the poses of the plans that it will be given.
    """

    def __init__(self, dt: float = PLAN_DT) -> None:
        if not dt > 0.0:
            raise PlanError(f"a plan's time step must be positive, not {dt}")
        self.dt = dt
        self.turn = PID(0.75, 0.75, 0.3, window=40)
        self.speed = PID(5.0, 0.5, 1.0, window=40)

    def reset(self) -> None:
        """Forget the errors of the past episode."""
        self.turn.reset()
        self.speed.reset()

    def control(self, waypoints: Any, current_state: Mapping[str, Any]) -> dict[str, float]:
        """Controls for this tick.

        Args:
            waypoints: plan [T, 2 or 3] (x forward, y left, metres, ego frame) at dt, 2·dt, … T·dt; at least 1 s of it.
            current_state: ``speed`` in m/s; optionally ``target`` (x, y): the next point of the route in the ego frame, which
                replaces a plan that steers more than the route does or points elsewhere.

        Returns {"steer": -1 (left) … 1 (right), "throttle": 0 … 0.75, "brake": 0 or 1}, CARLA's conventions.
        """
        points = resampled(waypoints, self.dt)
        speed = _number(current_state, "speed")
        segments = np.diff(points, axis=0)
        planned = float(np.hypot(segments[:, 0], segments[:, 1]).mean()) / PLAN_DT
        middles = np.linalg.norm((points[1:] + points[:-1]) / 2.0, axis=1)
        angle = _bearing(points[int(np.argmin(np.abs(middles - AIM_DISTANCE)))])
        target = current_state.get("target")
        if target is not None:
            toward = _bearing(target)
            astray = abs(toward - _bearing(segments[-1])) > TARGET_ANGLE and float(target[0]) < TARGET_DISTANCE
            if abs(toward) < abs(angle) or astray:
                angle = toward
        brake = planned < BRAKE_SPEED or speed > BRAKE_RATIO * planned
        throttle = self.speed.step(min(max(planned - speed, 0.0), CLIP_DELTA))
        return {
            "steer": min(max(self.turn.step(angle), -1.0), 1.0),
            "throttle": 0.0 if brake else min(max(throttle, 0.0), MAX_THROTTLE),
            "brake": 1.0 if brake else 0.0,
        }


@dataclass(frozen=True)
class Vehicle:
    """What the tracker must know of the vehicle. Defaults: CARLA's Lincoln MKZ; its turning and braking as fitted by World on
    Rails (Chen et al. 2021, ``ego_model``), throttle and drag such that 0.75 throttle reaches 50 km/h in 5 s."""

    wheelbase: float = 2.86
    """Metres."""
    full_lock: float = 0.65
    """Radians of the front wheels at steer 1."""
    full_throttle: float = 4.6
    full_brake: float = 4.95
    """m/s² at pedal 1."""
    drag: float = 0.08
    """1/s: m/s² lost per m/s."""


class PlanTracker:
    """Follows a plan with one vehicle, between two decisions too. Stateful: ``reset()`` when an episode starts.

    Speed: that which the plan has ahead, plus what is needed to make up for the lag behind it; what remains of the error is
    summed up, so that the speed is held uphill as well. Steering: pure pursuit (Coulter 1992) of a point on the plan.

    Args:
        dt: seconds between the poses of the plans that it will be given.
        vehicle: what it drives.
    """

    def __init__(self, dt: float = PLAN_DT, vehicle: Vehicle | None = None) -> None:
        if not dt > 0.0:
            raise PlanError(f"a plan's time step must be positive, not {dt}")
        self.dt, self.vehicle = dt, vehicle or Vehicle()
        self.reset()

    def reset(self) -> None:
        """Forget the errors of the past episode."""
        self._missing = 0.0

    def control(self, waypoints: Any, current_state: Mapping[str, Any]) -> dict[str, float]:
        """Controls for this tick.

        Args:
            waypoints: plan [T, 2 or 3] (x forward, y left, metres) at dt, 2·dt, … T·dt in the ego frame of the moment when it
                was made; at least 1 s of it.
            current_state: ``speed`` in m/s; for a plan made earlier also ``elapsed``, seconds since then, and ``pose`` (x, y,
                heading), where the vehicle now is in the plan's frame.

        Returns {"steer": -1 (left) … 1 (right), "throttle": 0 … 1, "brake": 0 … 1}, CARLA's conventions.
        """
        car = self.vehicle
        speed, elapsed = _number(current_state, "speed"), float(current_state.get("elapsed", 0.0))
        x, y, heading = (float(v) for v in current_state.get("pose", (0.0, 0.0, 0.0)))
        ahead = elapsed + np.concatenate([[0.0, 0.25, 0.75], 0.25 * np.arange(1, 25)])
        points = _extended(plan_points(waypoints, self.dt), self.dt, ahead) - (x, y)
        cosine, sine = np.cos(heading), np.sin(heading)
        points = points @ np.array([[cosine, -sine], [sine, cosine]])
        planned = float(np.hypot(*(points[2] - points[1]))) / 0.5
        if planned < STANDSTILL and speed < 1.0:
            self._missing = 0.0
            return {"steer": 0.0, "throttle": 0.0, "brake": 1.0}
        lack = planned - speed
        self._missing = min(max(self._missing + HOLD_GAIN * lack, -0.5), 0.5)
        pull = lack / SPEED_TIME + LAG_GAIN * min(max(float(points[0, 0]), -1.0), 1.0) + self._missing
        effort = pull + car.drag * speed
        return {
            "steer": self._steer(points[3:], speed),
            "throttle": min(max(effort / car.full_throttle, 0.0), 1.0),
            "brake": min(max(-effort / car.full_brake, 0.0), 1.0),
        }

    def _steer(self, points: npt.NDArray[np.float64], speed: float) -> float:
        """Towards the first of the plan's points [24, 2] (every 0.25 s) that is far enough away, along an arc."""
        squared = (points**2).sum(axis=1)
        reach = max(LEAST_REACH, AIM_TIME * speed + 1.5)
        far = np.flatnonzero(squared >= reach * reach)
        at = int(far[0]) if len(far) else len(points) - 1
        if squared[at] <= 1.0 or points[at, 0] <= 0.0:  # too near or behind: an arc to it would mean nothing
            return 0.0
        curvature = 2.0 * points[at, 1] / squared[at]
        return float(np.clip(-np.arctan(self.vehicle.wheelbase * curvature) / self.vehicle.full_lock, -1.0, 1.0))


CONTROLLERS: Final = {"pid": WaypointController, "tracker": PlanTracker}
"""Name in a model's spec -> controller."""


class Controller(Protocol):
    """What a controller is."""

    dt: float

    def reset(self) -> None:
        """Forget the past episode."""

    def control(self, waypoints: Any, current_state: Mapping[str, Any]) -> dict[str, float]:
        """Controls for this tick."""


def make_controller(name: str, dt: float) -> Controller:
    """A controller by name."""
    if name not in CONTROLLERS:
        raise PlanError(f"there is no controller {name!r}; {did_you_mean(name, CONTROLLERS)}")
    made: Controller = CONTROLLERS[name](dt)
    return made


def plan_points(waypoints: Any, dt: float) -> npt.NDArray[np.float64]:
    """A plan's points [T + 1, 2], the start first; ``PlanError`` if it is not one plan of at least a second."""
    plan = check_plan(waypoints, columns=2)
    if plan.ndim == 3 and len(plan) == 1:
        plan = plan[0]
    if plan.ndim != 2:
        raise PlanError(f"{len(plan)} plans were given to the controller of one vehicle; give it one, [T, 3]")
    if int(np.floor(len(plan) * dt / PLAN_DT + 1e-9)) < 2:
        raise PlanError(f"the plan covers {len(plan) * dt:.2f} s; the controller needs at least {2 * PLAN_DT} s of it")
    return np.vstack([np.zeros(2), plan[:, :2]]).astype(np.float64)


def resampled(waypoints: Any, dt: float) -> npt.NDArray[np.float64]:
    """The plan's points [n >= 2, 2] every ``PLAN_DT``."""
    whole = plan_points(waypoints, dt)
    times = np.arange(len(whole)) * dt
    at = PLAN_DT * np.arange(1, int(np.floor(times[-1] / PLAN_DT + 1e-9)) + 1)
    return np.stack([np.interp(at, times, whole[:, 0]), np.interp(at, times, whole[:, 1])], axis=1)


def _extended(points: npt.NDArray[np.float64], dt: float, at: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Where the plan is at times ``at`` [n] (past the end, its last segment goes on): [n, 2]."""
    index = np.clip((at / dt).astype(np.int64), 0, len(points) - 2)
    part = (at / dt - index)[:, None]
    return points[index] + part * (points[index + 1] - points[index])


def _bearing(point: Any) -> float:
    """Direction of a point in quarter turns, right positive; 0 for the origin, which has none."""
    return float(np.arctan2(-float(point[1]), float(point[0])) / (np.pi / 2.0))


def _number(state: Mapping[str, Any], key: str) -> float:
    value = state.get(key)
    if value is None or not np.isfinite(float(value)):
        raise PlanError(f"the controller needs the vehicle's {key} (a finite number); current_state has {dict(state)}")
    return float(value)
