"""Files in NavSim's own form, made of the golden scenes: a log with its images, as the official loader reads them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vla_models.geometry import from_frame
from vla_models.scenes.scene import Scene

LOG_NAME = "2026.11.24.made"
CAMERAS = ("CAM_F0", "CAM_L0", "CAM_L1", "CAM_L2", "CAM_R0", "CAM_R1", "CAM_R2", "CAM_B0")


def frames_of(scene: Scene, command: int = 1) -> list[dict[str, Any]]:
    """14 frames of a log, 0.5 s apart, the scene's token at the fourth: past, now, the human's future (else straight on)."""
    to_global = np.array([*scene.origin, 0.0])
    pose = scene.ego[:3] + to_global
    past = np.stack([from_frame([2.0 * k, 0.0, 0.0], pose) for k in (-3, -2, -1, 0)])
    if scene.ego_history is not None:
        past = scene.ego_history[:, :3] + to_global
    ahead = scene.human if scene.human is not None else np.array([[2.0 * k, 0.0, 0.0] for k in range(1, 9)])
    future = from_frame(np.concatenate([ahead, ahead[-1:], ahead[-1:]]), pose)
    return [_frame(scene, k, at, command) for k, at in enumerate(np.concatenate([past, future]))]


def _frame(scene: Scene, k: int, pose: np.ndarray, command: int) -> dict[str, Any]:
    token = scene.token if k == 3 else f"{scene.token}_{k}"
    one_hot = np.zeros(4, dtype=int)
    one_hot[command] = 1
    cameras = {
        name: {
            "data_path": f"{LOG_NAME}/{name}/{token}.jpg",
            "sensor2lidar_rotation": np.eye(3),
            "sensor2lidar_translation": np.zeros(3),
            "cam_intrinsic": np.eye(3),
            "distortion": np.zeros(5),
        }
        for name in CAMERAS
    }
    return {
        "token": token,
        "frame_idx": k,
        "timestamp": scene.time_us + 500_000 * (k - 3) - 7 * (k < 3),
        "log_name": LOG_NAME,
        "log_token": "l",
        "scene_name": "s",
        "scene_token": "s",
        "map_location": "us-nv-las-vegas-strip",
        "roadblock_ids": ["1", "2"],
        "vehicle_name": "v",
        "can_bus": np.zeros(18),
        "lidar_path": f"{LOG_NAME}/MergedPointCloud/{token}.pcd",
        "ego2global_translation": np.array([pose[0], pose[1], 600.0]),
        "ego2global_rotation": [np.cos(pose[2] / 2), 0.0, 0.0, np.sin(pose[2] / 2)],
        "ego_dynamic_state": [*scene.ego[3:7]],
        "driving_command": one_hot,
        "traffic_lights": [("66043", True)],
        "cams": cameras,
        "anns": {
            "gt_boxes": np.zeros((0, 7), dtype=np.float32),
            "gt_names": np.zeros(0, dtype="U10"),
            "gt_velocity_3d": np.zeros((0, 3), dtype=np.float32),
            "instance_tokens": [],
            "track_tokens": [],
        },
    }


def write_log(folder: Path, scenes: list[Scene], protocol: int = 4) -> tuple[Path, Path]:
    """``navsim_logs`` and ``sensor_blobs`` under ``folder``: one log with all scenes, an image a camera (its shade tells)."""
    logs, sensors = folder / "navsim_logs", folder / "sensor_blobs"
    frames = [frame for n, scene in enumerate(scenes) for frame in frames_of(scene, n % 4)]
    logs.mkdir(parents=True, exist_ok=True)
    (logs / f"{LOG_NAME}.pkl").write_bytes(pickle.dumps(frames, protocol))
    for scene in scenes:
        for k, camera in enumerate(CAMERAS):
            path = sensors / LOG_NAME / camera / f"{scene.token}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (192, 108), (20 * k, 100, 0)).save(path)
    return logs, sensors
