"""The agent and the submission inside the real navsim (1.1 or 2.2); skipped where it is not installed (docs/navsim.md)."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("navsim.agents.abstract_agent", reason="navsim is not installed", exc_type=ImportError)

import torch
from navsim.agents.abstract_agent import AbstractAgent
from navsim.common.dataclasses import AgentInput, Camera, Cameras, EgoStatus, Lidar, Trajectory

from vla_models import VLAForDriving, register_vla_model
from vla_models.inputs import VLAPrediction, VLASpec
from vla_models.leaderboard.agent import VLANavSimAgent
from vla_models.leaderboard.submission import Team, write_submission

CONFIG = Path(__file__).parent.parent.parent / "configs" / "leaderboard" / "agent" / "vla_agent.yaml"


@register_vla_model("steady_in_navsim")
class Steady(VLAForDriving):
    """Drives on as fast as it is told that it drives, and a little to the left where it is commanded to."""

    spec = VLASpec(horizon=8, cameras=("front", "back"), image_size=(27, 48))

    def __init__(self, model_path: str | None = None) -> None:
        self.gain = torch.nn.Parameter(torch.ones(()))

    def predict(self, inputs, *, deterministic=False, **kwargs):
        assert deterministic
        assert inputs.images["front"].shape == (27, 48, 3)
        plan = np.zeros((8, 3), dtype=np.float32)
        plan[:, 0] = 0.5 * np.arange(1, 9) * inputs.ego_state["speed"] * float(self.gain)
        plan[:, 1] = 0.1 if inputs.command == "left" else 0.0
        return VLAPrediction(plan)


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    Steady().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def agent_input() -> AgentInput:
    picture = np.zeros((1080, 1920, 3), dtype=np.uint8)
    names = ("cam_f0", "cam_l0", "cam_l1", "cam_l2", "cam_r0", "cam_r1", "cam_r2", "cam_b0")
    cameras = Cameras(**{name: Camera(image=picture if name in ("cam_f0", "cam_b0") else None) for name in names})
    status = EgoStatus(np.zeros(3), np.array([6.0, 0.0], np.float32), np.zeros(2, np.float32), np.array([1, 0, 0, 0]))
    return AgentInput([status] * 4, [cameras] * 4, [Lidar()] * 4)


def test_hydra_makes_the_agent_and_it_drives(checkpoint: str) -> None:
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    config = OmegaConf.load(CONFIG)
    config.checkpoint = checkpoint
    agent = instantiate(config)
    assert isinstance(agent, AbstractAgent)
    assert agent.name() == "VLANavSimAgent"
    assert agent.requires_scene is False
    assert agent.get_sensor_config().get_sensors_at_iteration(3) == ["cam_f0", "cam_b0"]
    assert agent.get_sensor_config().get_sensors_at_iteration(2) == []
    agent.initialize()
    trajectory = agent.compute_trajectory(agent_input())
    assert isinstance(trajectory, Trajectory)
    assert trajectory.trajectory_sampling.num_poses == 8
    np.testing.assert_allclose(trajectory.poses[:, 0], 3.0 * np.arange(1, 9))
    np.testing.assert_allclose(trajectory.poses[:, 1], 0.1)


def test_it_can_travel_to_a_worker(checkpoint: str) -> None:
    agent = VLANavSimAgent(checkpoint)
    agent.initialize()
    again = pickle.loads(pickle.dumps(agent))
    np.testing.assert_array_equal(again.compute_trajectory(agent_input()).poses, agent.compute_trajectory(agent_input()).poses)


def test_the_submission_is_what_the_official_script_writes(tmp_path: Path) -> None:
    path = tmp_path / "submission.pkl"
    plans = {"a": np.zeros((8, 3)), "b": np.ones((8, 3))}
    write_submission(path, Team("t", "a", "e@x", "i", "c"), plans, {"b_": np.ones((8, 3))})
    found = pickle.loads(path.read_bytes())
    assert list(found) == [
        "team_name", "authors", "email", "institution", "country / region",
        "first_stage_predictions", "second_stage_predictions",
    ]  # fmt: skip
    assert isinstance(found["first_stage_predictions"][0]["b"], Trajectory)
    assert found["first_stage_predictions"][0]["b"].poses.dtype == np.float32
    write_submission(path, Team("t", "a", "e@x", "i", "c"), plans)
    assert list(pickle.loads(path.read_bytes())["predictions"][0]) == ["a", "b"]
