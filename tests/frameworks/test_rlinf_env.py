"""RLinf's environment class without RLinf: what it calls, on golden NavSim scenes and in the toy world."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from golden import visible_scenes
from gymnasium.vector import VectorEnv
from toy_world import HORIZON, ToyDrive

from vla_models.config import VLAConfig
from vla_models.envs.navsim import NavSimEnv
from vla_models.errors import ConfigError
from vla_models.frameworks import environments
from vla_models.frameworks.environments import make_vector_env
from vla_models.frameworks.rlinf.env import RLinfBench2DriveAdapter, RLinfNavSimAdapter
from vla_models.inputs import VLASpec
from vla_models.model_registry import VLAModelRegistry
from vla_models.scoring.rewards import Reward


class GoldenNavSim(RLinfNavSimAdapter):
    @classmethod
    def make_env(cls, config: VLAConfig, part: Any, num_envs: int, spec: VLASpec) -> VectorEnv:
        return NavSimEnv(num_envs, scenes=visible_scenes(6))


class Toy(RLinfBench2DriveAdapter):
    @classmethod
    def make_env(cls, config: VLAConfig, part: Any, num_envs: int, spec: VLASpec) -> VectorEnv:
        return ToyDrive(num_envs)


def adapter(
    folder: Path, kind: Any = Toy, rows: int = 4, place: tuple[int, int] = (0, 1), part: str = "train", **changes: Any
) -> Any:
    path = VLAConfig.from_dict({"framework": "rlinf", "seed": 3}).to_yaml(folder / "config.yaml")
    init = SimpleNamespace(config=str(path), part=part, spec={}, first_round=changes.pop("first_round", 0))
    settings = {"group_size": 2, "auto_reset": False, "rollout_epoch": 1, **changes}
    return kind(SimpleNamespace(init_params=init, **settings), rows, *place)


def go(env: Any, metres: float) -> Any:
    return env.chunk_step(torch.tensor([metres, 0.0, 0.0]).repeat(env.num_envs, 1, HORIZON))


def test_navsim_is_one_decision(tmp_path: Path) -> None:
    env = adapter(tmp_path, GoldenNavSim)
    observation, _ = env.reset()
    assert set(observation) == {"main_images", "wrist_images", "extra_view_images", "states", "task_descriptions"}
    assert observation["main_images"].shape == (4, 96, 160, 3)
    assert observation["states"].shape == (4, 1 + env.layout.width)
    assert not observation["states"][:, 0].any()
    observations, rewards, terminated, truncated, infos = env.chunk_step(torch.zeros(4, 1, 24))
    assert rewards.shape == terminated.shape == truncated.shape == (4, 1)
    assert terminated.all()
    assert not truncated.any()
    assert observations[0]["states"][:, 0].all()
    torch.testing.assert_close(infos[0]["episode"]["score"], rewards[:, 0])
    assert rewards[0] == rewards[1]  # a group: the same scene and the same plan


def test_cameras_beyond_the_first_are_extra_views(tmp_path: Path) -> None:
    observation, _ = adapter(tmp_path).reset()
    assert observation["main_images"].shape == (4, 6, 8, 3)
    assert observation["extra_view_images"].shape == (4, 2, 5, 5, 3)


def test_groups_share_scenes_and_processes_share_a_round(tmp_path: Path) -> None:
    whole = adapter(tmp_path, rows=8)
    rounds = []
    for _ in range(3):
        names = whole.scenes()
        assert names[::2] == names[1::2]
        rounds.append(names)
        whole.update_reset_state_ids()
    assert sorted(rounds[0][::2]) == whole.env.tokens
    parts = [adapter(tmp_path, rows=4, place=(i, 2)) for i in range(2)]
    assert parts[0].scenes() + parts[1].scenes() == rounds[0]
    assert adapter(tmp_path, rows=8, first_round=2).scenes() == rounds[2]  # a resumed run goes on where it was


def test_evaluation_takes_every_scene_in_order_each_time(tmp_path: Path) -> None:
    env = adapter(tmp_path, rows=2, part="heldout", group_size=1, rollout_epoch=2)
    seen = []
    for _ in range(4):
        seen.append(env.scenes())
        env.update_reset_state_ids()
    assert seen[0] + seen[1] == env.env.tokens
    assert seen[2:] == seen[:2]


def test_rows_go_on_by_themselves_with_their_last_observation(tmp_path: Path) -> None:
    env = adapter(tmp_path, auto_reset=True, group_size=1)
    env.reset()
    env.episodes.begin(["go0", "go0", "go3", "go3"])
    observations, _, terminated, truncated, infos = go(env, 1.5)
    assert terminated[:, 0].tolist() == [True, True, False, False]
    info = infos[0]
    assert info["_final_observation"].tolist() == [True, True, False, False]
    assert info["final_info"]["episode"]["return"][:2].tolist() == [1.5, 1.5]
    assert not torch.equal(observations[0]["states"][:2], info["final_observation"]["states"][:2])
    for _ in range(3):
        _, _, terminated, truncated, _ = go(env, 0.1)
    assert truncated[2:, 0].all()
    streams = [adapter(tmp_path, auto_reset=True, first_round=n) for n in (0, 0, 5)]
    names = [[env._next_scene(0) for _ in range(8)] for env in streams]
    assert names[0] == names[1]
    assert names[0] != names[2]  # after a resume other scenes follow
    assert sorted(names[0][:4]) == sorted(names[0][4:]) == streams[0].env.tokens


def test_what_cannot_be_shared_or_understood_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.scenes_per_step: 3 rows of an env worker do not hold whole groups of 2"):
        adapter(tmp_path, rows=3)
    env = adapter(tmp_path)
    env.reset()
    with pytest.raises(ConfigError, match=r"RLinf sent actions of shape \(4, 2, 12\)"):
        env.chunk_step(np.zeros((4, 2, 12)))


def test_the_built_in_adapters_are_found_and_give_way_to_a_users(registry: Any) -> None:
    assert VLAModelRegistry.get_env_adapter("navsim", "rlinf") is RLinfNavSimAdapter
    assert VLAModelRegistry.get_env_adapter("bench2drive", "rlinf") is RLinfBench2DriveAdapter
    registry.register_env_adapter("navsim", "rlinf", GoldenNavSim)
    assert VLAModelRegistry.get_env_adapter("navsim", "rlinf") is GoldenNavSim


def test_the_configured_environment_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "build_scenes", lambda config, part: visible_scenes(6)[: 4 if part == "train" else 2])
    config = VLAConfig.from_dict({"reward": {"type": "driving", "weights": {"collision": -2.0}}})
    env = make_vector_env(config, "heldout", 3)
    assert isinstance(env, NavSimEnv)
    assert len(env.tokens) == 2
    assert env.reward == Reward("driving", {"collision": -2.0})


def test_an_environment_that_is_not_built_in_must_be_made_by_its_adapter(registry: Any) -> None:
    registry.register_env_adapter("my_city", "rlinf", GoldenNavSim)
    with pytest.raises(ConfigError, match=r"environment\.type: 'my_city' is not built in .*must override make_env"):
        make_vector_env(VLAConfig.from_dict({"environment": {"type": "my_city"}}), "train", 3)
