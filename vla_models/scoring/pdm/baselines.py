"""Plans without a model: what a score has to be compared with."""

from __future__ import annotations

import numpy as np

from vla_models.errors import SceneError
from vla_models.geometry import FloatArray
from vla_models.scenes.scene import PLAN_DT, PLAN_STEPS, Scene


def constant_velocity_plan(scene: Scene) -> FloatArray:
    """NavSim's ``ConstantVelocityAgent``: straight ahead at the present speed, [8, 3] in the ego frame at 0.5 s.

    The speed is the magnitude of the rear axle's velocity, so a reversing ego is carried forwards, as officially; unlike there
    the plan is not rounded to float32. Raises ``SceneError`` where the ego's velocity is not finite.
    """
    speed = float(np.hypot(scene.ego[3], scene.ego[4]))
    if not np.isfinite(speed):
        raise SceneError(f"scene {scene.token!r}: the ego's velocity {scene.ego[3:5].tolist()} is not finite.")
    plan = np.zeros((PLAN_STEPS, 3))
    plan[:, 0] = speed * PLAN_DT * np.arange(1, PLAN_STEPS + 1)
    return plan
