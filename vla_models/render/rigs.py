"""Camera rigs: where a benchmark's cameras sit and how wide they look; the image size is the model's choice.

Source: Bench2Drive 0.0.4, ``tools/data_collect.py`` (sensors ``CAM_*``; the agents of its zoo use the same). CARLA measures
from the middle of the car with y to the right and yaw clockwise; here it is the rear axle, y to the left, yaw
counter-clockwise.
"""

from __future__ import annotations

from typing import Final

from vla_models.render.camera import CameraSpec

LINCOLN_REAR_AXLE: Final = 1.43
"""Metres from the rear axle to the middle of Bench2Drive's ego (Lincoln MKZ 2020): half its wheelbase of 2.86 m."""

_CAMERAS: Final = {  # ahead, left (metres, from the box centre), yaw, field of view (degrees)
    "front": (0.80, 0.0, 0.0, 70.0),
    "front_left": (0.27, 0.55, 55.0, 70.0),
    "front_right": (0.27, -0.55, -55.0, 70.0),
    "back": (-2.0, 0.0, 180.0, 110.0),
    "back_left": (-0.32, 0.55, 110.0, 70.0),
    "back_right": (-0.32, -0.55, -110.0, 70.0),
}
_HEIGHT: Final = 1.60


def bench2drive_cameras(
    width: int = 1600, height: int = 900, names: tuple[str, ...] = tuple(_CAMERAS), rear_axle: float = LINCOLN_REAR_AXLE
) -> tuple[CameraSpec, ...]:
    """Bench2Drive's cameras ``names`` (of its six), each ``width`` x ``height`` pixels (its own size by default).

    ``rear_axle``: metres from the rear axle to the box centre of the car that carries them. An unknown name raises
    ``KeyError``.
    """
    specs = []
    for name in names:
        ahead, left, yaw, fov = _CAMERAS[name]
        specs.append(CameraSpec(name, width, height, fov, position=(ahead + rear_axle, left, _HEIGHT), pitch=0.0, yaw=yaw))
    return tuple(specs)
