"""Logs through the real navsim (1.1 or 2.2); skipped where it is not installed (docs/navsim.md).

nuPlan's maps cannot be had here: in their place stands a straight road with the part of the map API that navsim asks for.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("navsim.common.dataloader", reason="navsim is not installed", exc_type=ImportError)

import shapely
from nuplan.common.actor_state.state_representation import StateSE2
from nuplan.common.maps.maps_datatypes import SemanticMapLayer
from PIL import Image

from tests.scenes.navsim_files import CAMERAS, LOG_NAME
from vla_models.scenes.navsim import Devkit, scenes_of_log
from vla_models.scenes.navsim_logs import Logs
from vla_models.scoring.pdm import score
from vla_models.scoring.pdm.closed import plan_pdm_closed

X0, Y0 = 664_430.0, 3_997_650.0
SPEED = 6.0


class Line:
    """A lane's baseline: straight along x."""

    def __init__(self, start: float, end: float, y: float) -> None:
        self.start, self.y, self.length = start, y, end - start
        self.discrete_path = [StateSE2(x, y, 0.0) for x in np.linspace(start, end, int(end - start) + 1)]

    def get_nearest_arc_length_from_position(self, point: Any) -> float:
        return float(np.clip(point.x - self.start, 0.0, self.length))

    def get_nearest_pose_from_position(self, point: Any) -> StateSE2:
        return StateSE2(self.start + self.get_nearest_arc_length_from_position(point), self.y, 0.0)


class StraightRoad:
    """Four roadblocks one after the other, each with a lane and its left neighbour."""

    map_name = "us-nv-las-vegas-strip"

    def __init__(self) -> None:
        self.blocks: list[SimpleNamespace] = []
        for k in range(4):
            start, end = X0 - 40.0 + 60.0 * k, X0 + 20.0 + 60.0 * k
            block = SimpleNamespace(id=str(k), polygon=shapely.box(start, Y0 - 2.0, end, Y0 + 6.0), interior_edges=[])
            for side in (0, 1):
                y = Y0 + 4.0 * side
                lane = SimpleNamespace(
                    id=f"{k}{side}",
                    polygon=shapely.box(start, y - 2.0, end, y + 2.0),
                    baseline_path=Line(start, end, y),
                    speed_limit_mps=None,
                    get_roadblock_id=lambda k=k: str(k),
                    outgoing_edges=[],
                    incoming_edges=[],
                    parent=block,
                )
                block.interior_edges.append(lane)
            block.incoming_edges, block.outgoing_edges = self.blocks[-1:], []
            for before in self.blocks[-1:]:
                before.outgoing_edges.append(block)
                for a, b in zip(before.interior_edges, block.interior_edges, strict=True):
                    a.outgoing_edges.append(b)
                    b.incoming_edges.append(a)
            self.blocks.append(block)

    def _of(self, layer: SemanticMapLayer) -> list[Any]:
        if layer == SemanticMapLayer.ROADBLOCK:
            return self.blocks
        return [lane for block in self.blocks for lane in block.interior_edges] if layer == SemanticMapLayer.LANE else []

    def get_map_object(self, name: str, layer: SemanticMapLayer) -> Any:
        return next((found for found in self._of(layer) if found.id == name), None)

    def get_proximal_map_objects(self, point: Any, radius: float, layers: list[SemanticMapLayer]) -> dict[Any, Any]:
        patch = shapely.box(point.x - radius, point.y - radius, point.x + radius, point.y + radius)
        return {layer: [found for found in self._of(layer) if found.polygon.intersects(patch)] for layer in layers}

    def get_all_map_objects(self, point: Any, layer: SemanticMapLayer) -> list[Any]:
        return [found for found in self._of(layer) if found.polygon.contains(shapely.Point(point.x, point.y))]

    def is_in_layer(self, point: Any, layer: SemanticMapLayer) -> bool:
        return bool(self.get_all_map_objects(point, layer))


def frame(k: int) -> dict[str, Any]:
    """Frame k of a log: the ego at 6 m/s on the right lane, a slower car 40 m ahead, a cone beside the road."""
    gap = 40.0 - 0.5 * k
    return {
        "token": f"{k:016x}",
        "timestamp": 1_600_000_000_000_000 + 500_000 * k + (k % 3),
        "log_name": LOG_NAME,
        "scene_token": "s",
        "map_location": "us-nv-las-vegas-strip",
        "roadblock_ids": ["0", "1", "2", "3"],
        "traffic_lights": [],
        "lidar_path": "none.pcd",
        "ego2global_translation": [X0 - 9.0 + 0.5 * SPEED * k, Y0 + 0.1, 0.0],
        "ego2global_rotation": [1.0, 0.0, 0.0, 0.0],
        "ego_dynamic_state": [SPEED, 0.0, 0.0, 0.0],
        "driving_command": [0, 1, 0, 0],
        "cams": {
            name: {
                "data_path": f"{name}/{k}.jpg", "sensor2lidar_rotation": 0, "sensor2lidar_translation": 0,
                "cam_intrinsic": 0, "distortion": 0,
            }
            for name in CAMERAS
        },
        "anns": {
            "gt_boxes": np.array([[gap, 0.0, 0.0, 4.6, 1.9, 1.6, 0.0], [12.0, -6.0, 0.0, 0.4, 0.4, 0.8, 0.0]], np.float32),
            "gt_names": np.array(["vehicle", "traffic_cone"]),
            "gt_velocity_3d": np.array([[5.0, 0.0, 0.0], [0.0, 0.0, 0.0]], np.float32),
            "instance_tokens": [f"a{k}", f"b{k}"],
            "track_tokens": ["car", "cone"],
        },
    }  # fmt: skip


def test_a_log_becomes_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    road = StraightRoad()
    for module in ("navsim.common.dataclasses", "navsim.planning.scenario_builder.navsim_scenario"):
        monkeypatch.setattr(f"{module}.get_maps_api", lambda *_: road)
    path = tmp_path / f"{LOG_NAME}.pkl"
    path.write_bytes(pickle.dumps([frame(k) for k in range(30)]))
    for k in range(30):
        (tmp_path / "CAM_F0").mkdir(exist_ok=True)
        Image.new("RGB", (32, 18), (k, 0, 0)).save(tmp_path / "CAM_F0" / f"{k}.jpg")
    (tmp_path / "filter.yaml").write_text("num_history_frames: 4\nnum_future_frames: 10\nframe_interval: 4\n")
    images = Logs(tmp_path, tmp_path)
    scenes = list(scenes_of_log(path, Devkit(tmp_path, tmp_path / "filter.yaml", images)))
    assert [scene.token for scene in scenes] == [f"{k:016x}" for k in (3, 7, 11, 15, 19)]
    for scene in scenes:
        assert scene.town == road.map_name
        assert scene.tracks.ids == ("car", "cone")
        assert scene.images["front"].shape == (18, 32, 3)
        assert scene.ego_history_us is not None
        assert scene.human is not None
        np.testing.assert_allclose(scene.human[:, 0], 3.0 * np.arange(1, 9), atol=1e-6)
        assert scene.agent_paths is not None
        assert scene.agent_paths.in_lane.tolist() == [True, False]
        assert scene.reference is not None
        version = "v1" if scene.tracks.states.shape[1] and np.isfinite(scene.tracks.states[0, 50, 0]) else "v2"
        np.testing.assert_allclose(scene.reference, plan_pdm_closed(scene, version=version), atol=1e-5)
        scores = score(scene, scene.human[None], version=version)
        assert scores.score[0, 0] > 0.5
