"""NavSim's agent input and trajectory in our words, and back: plain data, navsim is not needed.

What a model gets is what a scene of a metric cache would have given it (``scenes.navsim_logs``, ``envs.navsim.observe``), but
for the route: the official input has none.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vla_models.errors import ImageError, PlanError
from vla_models.inputs import EGO_FEATURES, INSTRUCTION, VLAInput, VLASpec, check_plan
from vla_models.scenes.navsim_logs import CAMERAS, HISTORY_FRAMES, driving_command
from vla_models.scenes.scene import COMMANDS, PLAN_DT, PLAN_STEPS

OFFICIAL_CAMERA: Final = {ours: theirs for theirs, ours in CAMERAS.items()}
"""Our camera names -> NavSim's."""


def check_spec(spec: VLASpec) -> None:
    """PlanError or ImageError where a model cannot drive in NavSim."""
    if (spec.horizon, spec.dt) != (PLAN_STEPS, PLAN_DT):
        raise PlanError(
            f"the model plans {spec.horizon} poses {spec.dt} s apart; NavSim takes {PLAN_STEPS} poses {PLAN_DT} s apart: train "
            "one with that horizon"
        )
    unknown = [camera for camera in spec.cameras if camera not in OFFICIAL_CAMERA]
    if unknown:
        raise ImageError(f"the model looks at {', '.join(unknown)}; NavSim has {', '.join(OFFICIAL_CAMERA)}")


def sensor_frames(spec: VLASpec) -> dict[str, list[int] | bool]:
    """The arguments of ``SensorConfig``: the model's cameras at the present frame, nothing else."""
    wanted = {OFFICIAL_CAMERA[camera] for camera in spec.cameras}
    cameras: dict[str, list[int] | bool] = {name: [HISTORY_FRAMES - 1] if name in wanted else False for name in CAMERAS}
    return {**cameras, "lidar_pc": False}


def to_input(agent_input: Any, spec: VLASpec) -> VLAInput:
    """What the model is told, of a NavSim ``AgentInput`` (or anything of its shape).

    Steering and yaw rate are 0, as in the ego states that NavSim itself makes of its logs. ImageError names a camera without
    a picture.
    """
    now = agent_input.ego_statuses[-1]
    (vx, _), (ax, ay) = (np.asarray(v, dtype=np.float64)[:2] for v in (now.ego_velocity, now.ego_acceleration))
    images = {camera: _picture(agent_input.cameras[-1], camera, spec.image_size) for camera in spec.cameras}
    return VLAInput(
        text=INSTRUCTION,
        images=images,
        ego_state=dict(zip(EGO_FEATURES, (float(vx), float(ax), float(ay), 0.0, 0.0), strict=True)),
        command=COMMANDS[driving_command(now.driving_command)],
        history=np.stack([np.asarray(status.ego_pose, dtype=np.float32)[:3] for status in agent_input.ego_statuses]),
    )


def _picture(cameras: Any, camera: str, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """The picture of one camera, brought to (height, width) ``size``."""
    from PIL import Image

    name = OFFICIAL_CAMERA[camera]
    pixels = getattr(cameras, name).image
    if pixels is None:
        raise ImageError(f"NavSim gave no picture of {name} ({camera!r}); the agent's sensor config asks for it")
    picture = Image.fromarray(np.asarray(pixels, dtype=np.uint8)[:, :, :3])
    return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR), dtype=np.uint8)


def to_poses(plan: Any, what: str = "the plan") -> npt.NDArray[np.float32]:
    """A plan as NavSim's poses: float32 [8, 3] x, y, heading in the ego frame at 0.5 … 4.0 s. PlanError for another shape or
    numbers that are not finite."""
    poses = check_plan(plan, horizon=PLAN_STEPS, what=what)
    if poses.ndim != 2:
        raise PlanError(f"{what} has shape {list(poses.shape)}; one plan [{PLAN_STEPS}, 3] is expected")
    return poses
