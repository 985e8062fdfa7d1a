"""From a plan to steer, throttle and brake: the PID controller of Bench2Drive's own agents.

Constants and rules are those of Bench2DriveZoo's ``pid_controller.py`` (which goes back to TCP and TransFuser), written anew
for our frame (x forward, y left; theirs is y forward, x right) and for plans of any time step (theirs assumes 2 Hz).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vla_models.errors import PlanError
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
        points = self._resampled(waypoints)
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

    def _resampled(self, waypoints: Any) -> npt.NDArray[np.float64]:
        """The plan's points [n >= 2, 2] every ``PLAN_DT``."""
        plan = check_plan(waypoints, columns=2)
        if plan.ndim == 3 and len(plan) == 1:
            plan = plan[0]
        if plan.ndim != 2:
            raise PlanError(f"{len(plan)} plans were given to the controller of one vehicle; give it one, [T, 3]")
        times = np.arange(len(plan) + 1) * self.dt
        count = int(np.floor(times[-1] / PLAN_DT + 1e-9))
        if count < 2:
            raise PlanError(f"the plan covers {times[-1]:.2f} s; the controller needs at least {2 * PLAN_DT} s of it")
        at = PLAN_DT * np.arange(1, count + 1)
        whole = np.vstack([np.zeros(2), plan[:, :2]]).astype(np.float64)
        return np.stack([np.interp(at, times, whole[:, 0]), np.interp(at, times, whole[:, 1])], axis=1)


def _bearing(point: Any) -> float:
    """Direction of a point in quarter turns, right positive; 0 for the origin, which has none."""
    return float(np.arctan2(-float(point[1]), float(point[0])) / (np.pi / 2.0))


def _number(state: Mapping[str, Any], key: str) -> float:
    value = state.get(key)
    if value is None or not np.isfinite(float(value)):
        raise PlanError(f"the controller needs the vehicle's {key} (a finite number); current_state has {dict(state)}")
    return float(value)
