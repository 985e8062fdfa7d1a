"""NavSim's log files: what a metric cache lacks. Cameras, the driving command, the ego's past and the human's future.

A log (``navsim_logs/SPLIT/LOG.pkl``) is a pickled list of frames, 0.5 s apart, each a dict of lists and arrays; images lie
beside (``sensor_blobs/SPLIT/LOG/CAM_F0/*.jpg``). Logs are read through ``scenes.restricted``, without navsim. The fields and
the frames before and after a token are those of navsim/common/dataclasses.py (``AgentInput.from_scene_dict_list``, ``Scene``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vla_models.errors import ImageError, SceneError, did_you_mean
from vla_models.geometry import to_frame
from vla_models.scenes.pickled import LOG
from vla_models.scenes.restricted import read_pickle
from vla_models.scenes.scene import COMMANDS, PLAN_STEPS, Scene

FloatArray = npt.NDArray[np.float64]

CAMERAS: Final = {
    "cam_f0": "front", "cam_l0": "front_left", "cam_r0": "front_right", "cam_l1": "left", "cam_r1": "right",
    "cam_l2": "back_left", "cam_r2": "back_right", "cam_b0": "back",
}  # fmt: skip
"""NavSim's eight cameras -> the names in ``Scene.images`` and ``VLASpec.cameras``."""
MAP_NAMES: Final = {"las_vegas": "us-nv-las-vegas-strip"}
"""A map's name in the logs -> its name among nuPlan's maps, where they differ (navsim_scenario.py)."""
HISTORY_FRAMES: Final = 4
"""Frames up to now, 0.5 s apart (NavSim's scene filters)."""
_FAR: Final = 0.5
"""Metres between a log's ego and a metric cache's, at most: more means another frame."""


@dataclass(frozen=True)
class Logs:
    """Where logs and images lie, and which cameras are wanted at which size."""

    logs: Path
    """Folder with LOG.pkl files."""
    sensors: Path | None = None
    """Folder to which a log's image paths are relative; None: no images."""
    cameras: tuple[str, ...] = ("cam_f0",)
    """Of ``CAMERAS``."""
    size: tuple[int, int] | None = None
    """Width and height of the images in the scene; None: as they are (1920 x 1080)."""

    def check(self) -> None:
        """SceneError for a folder or a camera that does not exist."""
        for camera in self.cameras:
            if camera not in CAMERAS:
                raise SceneError(f"NavSim has no camera {camera!r}; {did_you_mean(camera, CAMERAS)}")
        for folder in (self.logs, self.sensors):
            if folder is not None and not folder.is_dir():
                raise SceneError(f"there is no folder {folder}")


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The frames of a log file. SceneError, naming it, if it is damaged or no log; UnsafePickleError if it is hostile."""
    frames = read_pickle(Path(path), LOG)
    if not isinstance(frames, list) or not frames or not all(isinstance(f, dict) and "token" in f for f in frames):
        raise SceneError(f"{path} is no NavSim log: a list of frames with tokens is expected")
    return frames


@lru_cache(maxsize=1)
def _log(path: Path) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """A log and where its tokens are; the last one is kept, for scenes come log by log."""
    frames = read_log(path)
    return frames, {str(frame["token"]): k for k, frame in enumerate(frames)}


def log_file(folder: Path, name: str) -> Path:
    """The file of log ``name`` in ``folder`` or one of its splits (trainval, test, …)."""
    found = [p for p in (folder / f"{name}.pkl", *folder.glob(f"*/{name}.pkl")) if p.is_file()]
    if not found:
        raise SceneError(f"{folder} has no log {name}.pkl")
    return found[0]


def attach_log(scene: Scene, log_name: str, source: Logs) -> Scene:
    """``scene`` with what the log knows of its token: images, driving command, and, where the scene lacks them, the ego's past
    and the human's plan. Raises SceneError or ImageError, naming file and token, for what is missing or does not fit."""
    path = log_file(source.logs, log_name)
    frames, index = _log(path)
    if scene.token not in index:
        raise SceneError(f"{path} has no frame {scene.token!r}")
    now = index[scene.token]
    try:
        changes = _changes(scene, frames, now)
        images = {} if source.sensors is None else _images(frames[now]["cams"], source)
    except (KeyError, TypeError, IndexError) as error:
        raise SceneError(f"{path}: frame {scene.token!r} lacks something ({type(error).__name__}: {error})") from error
    return scene.with_(**changes, images=images)


def ego_pose(frame: dict[str, Any]) -> FloatArray:
    """Global x, y, heading [3] of the rear axle (``ego2global``; the yaw is pyquaternion's, as in the official loader)."""
    w, x, y, z = (float(part) for part in frame["ego2global_rotation"])
    n = w * w + x * x + y * y + z * z
    yaw = np.arctan2(2.0 * (w * z - x * y) / n, 1.0 - 2.0 * (y * y + z * z) / n)
    translation = frame["ego2global_translation"]
    return np.array([translation[0], translation[1], yaw], dtype=np.float64)


def driving_command(one_hot: Any) -> int:
    """Index into ``COMMANDS`` of NavSim's one-hot driving command (left, straight, right, unknown)."""
    flags = np.asarray(one_hot).astype(bool).ravel()
    if flags.shape != (len(COMMANDS),) or flags.sum() > 1:
        raise SceneError(f"driving command {np.asarray(one_hot).tolist()} is no one-hot of {', '.join(COMMANDS)}")
    return int(np.argmax(flags)) if flags.any() else COMMANDS.index("unknown")


def _changes(scene: Scene, frames: list[dict[str, Any]], now: int) -> dict[str, Any]:
    pose = ego_pose(frames[now])
    off = np.linalg.norm(pose[:2] - scene.origin - scene.ego[:2])
    if off > _FAR:
        raise SceneError(f"scene {scene.token!r}: its log has the ego {off:.1f} m away from where the metric cache has it")
    changes: dict[str, Any] = {
        "command": driving_command(frames[now]["driving_command"]),
        "town": scene.town or MAP_NAMES.get(frames[now]["map_location"], str(frames[now]["map_location"])),
    }
    past = frames[max(0, now - HISTORY_FRAMES + 1) : now + 1]
    if scene.ego_history is None and len(past) == HISTORY_FRAMES:
        rows = np.zeros((HISTORY_FRAMES, 11))
        for row, frame in zip(rows, past, strict=True):
            row[:3] = ego_pose(frame)
            row[3:7] = np.asarray(frame["ego_dynamic_state"], dtype=np.float64)[:4]
        rows[:, :2] -= scene.origin
        at = np.array([int(frame["timestamp"]) for frame in past], dtype=np.int64)
        changes |= {"ego_history": rows, "ego_history_us": at - at[-1]}
    future = frames[now + 1 : now + 1 + PLAN_STEPS]
    if scene.human is None and len(future) == PLAN_STEPS:
        changes["human"] = to_frame(np.array([ego_pose(frame) for frame in future]), pose)
    return changes


def _images(cameras: dict[str, Any], source: Logs) -> dict[str, npt.NDArray[np.uint8]]:
    from PIL import Image, UnidentifiedImageError

    assert source.sensors is not None
    by_name = {str(name).lower(): camera for name, camera in cameras.items()}
    found = {}
    for camera in source.cameras:
        path = source.sensors / str(by_name[camera]["data_path"])
        try:
            with Image.open(path) as image:
                picture = image.convert("RGB")
        except (OSError, UnidentifiedImageError) as error:
            raise ImageError(f"{path} cannot be read: {error}") from error
        if source.size is not None:
            picture = picture.resize(source.size, Image.Resampling.BILINEAR)
        found[CAMERAS[camera]] = np.asarray(picture, dtype=np.uint8).copy()
    return found
