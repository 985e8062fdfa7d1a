"""NavSim-v0 as its users see it: a gymnasium vector environment whose rewards are the scorer's."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from golden import visible_scenes
from gymnasium.vector import AutoresetMode

import vla_models.envs  # noqa: F401  # registers NavSim-v0
from vla_models.envs.navsim import NavSimEnv, check_plans, observe
from vla_models.errors import ConfigError, PlanError, SceneError
from vla_models.inputs import INSTRUCTION, VLAInput
from vla_models.scoring.pdm import score
from vla_models.scoring.rewards import METRICS, Reward


def make(num_envs: int = 3, **options: Any) -> NavSimEnv:
    env = gymnasium.make_vec("NavSim-v0", num_envs=num_envs, scenes=visible_scenes(4), **options)
    assert isinstance(env, NavSimEnv)
    return env


def plans(rows: int, seed: int = 0) -> np.ndarray:
    """Straight plans of different speeds."""
    speed = np.random.default_rng(seed).uniform(0.0, 10.0, rows)
    out = np.zeros((rows, 8, 3), dtype=np.float32)
    out[:, :, 0] = speed[:, None] * 0.5 * np.arange(1, 9)
    return out


def test_it_is_a_gymnasium_environment() -> None:
    env = make()
    assert env.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    observation, info = env.reset(seed=1)
    assert env.observation_space.contains({**observation, "text": tuple(observation["text"])})
    assert env.action_space.contains(plans(3))
    assert info["scene"] == [env.tokens[i] for i in env._indices]
    observation, reward, terminated, truncated, info = env.step(plans(3))
    assert reward.shape == (3,)
    assert reward.dtype == np.float32
    assert terminated.all()
    assert not truncated.any()
    assert info["valid"].dtype == np.bool_
    assert info["valid"].all()
    assert set(info["metrics"]) == set(METRICS["v1"])
    assert "collision" in info["terms"]
    assert np.array_equal(reward, info["metrics"]["score"])


def test_observations_are_what_the_model_may_know() -> None:
    scene = visible_scenes(1)[0]
    observation = observe([scene])
    assert observation["images"]["front"].shape == (1, 96, 160, 3)
    assert np.allclose(observation["ego"][0], scene.ego[[3, 5, 6, 7, 9]], rtol=1e-6)
    assert np.allclose(observation["route"][0], scene.route, atol=1e-4)
    (given,) = VLAInput.batch(observation)
    assert given.text == INSTRUCTION
    assert given.ego_state is not None
    assert given.ego_state["speed"] == pytest.approx(scene.ego[3], rel=1e-6)


def test_rewards_are_those_of_the_scorer_whatever_the_order_of_rows() -> None:
    scenes = visible_scenes(4)
    rows = [2, 0, 2, 1, 2, 0]  # groups of unequal size, mixed
    env = make(len(rows))
    env.reset(options={"scenes": rows})
    given = plans(len(rows))
    _, reward, _, _, info = env.step(given)
    for row, index in enumerate(rows):
        alone = score(scenes[index], given[row : row + 1].astype(np.float64))
        assert reward[row] == np.float32(alone.score.reshape(-1)[0])
        assert info["metrics"]["ep"][row] == np.float32(alone.ep.reshape(-1)[0])
        assert info["scene"][row] == scenes[index].token


def test_scenes_are_named_by_token_or_index_and_drawn_without_repeats() -> None:
    env = make(4)
    tokens = list(reversed(env.tokens))
    _, info = env.reset(options={"scenes": tokens})
    assert info["scene"] == tokens
    _, info = env.reset(seed=3)
    assert sorted(info["scene"]) == sorted(env.tokens)


def test_same_seed_and_plans_give_the_same_bits() -> None:
    results = []
    for _ in range(2):
        env = make(6)
        observation, _ = env.reset(seed=5)
        results.append((observation["images"]["front"], env.step(plans(6))[1], env.reset()[1]["scene"]))
    assert np.array_equal(results[0][0], results[1][0])
    assert np.array_equal(results[0][1], results[1][1])
    assert results[0][2] == results[1][2]
    env.reset(seed=[5, None, 1, 2, 3, 4])


def test_snapshot_and_restore_go_back_exactly() -> None:
    env = make(3)
    assert env.restore(env.snapshot()) is None
    env.reset(seed=2)
    state = env.snapshot()
    first = env.step(plans(3))[1]
    following = env.reset()[1]["scene"]
    observation = env.restore(state)
    assert np.array_equal(env.step(plans(3))[1], first)
    assert env.reset()[1]["scene"] == following
    assert observation["ego"].shape == (3, 5)


def test_an_episode_is_one_decision() -> None:
    env = make(1)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(plans(1))
    env.reset(seed=0)
    env.step(plans(1))
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(plans(1))


def test_driving_reward_is_the_weighted_sum_and_terms_are_reported() -> None:
    env = make(3, reward={"type": "driving", "weights": {"collision": -10.0, "success": 10.0}})
    env.reset(seed=0)
    _, reward, _, _, info = env.step(plans(3))
    assert np.allclose(reward, -10 * info["terms"]["collision"] + 10 * info["terms"]["success"])


def test_version_2_has_its_own_sub_scores() -> None:
    env = make(2, score_version="v2")
    env.reset(seed=0)
    info = env.step(plans(2))[4]
    assert set(info["metrics"]) == set(METRICS["v2"])
    assert "red_light" in info["terms"]


@pytest.mark.parametrize("shape", [(3, 8, 3), (2, 10, 3), (2, 8, 2)])
def test_plans_of_a_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    env = make(2)
    env.reset(seed=0)
    with pytest.raises(PlanError, match=r"expected \(2, 8, 3\)"):
        env.step(np.zeros(shape))


def test_plans_that_are_not_finite_are_refused_by_row() -> None:
    bad = plans(4)
    bad[2, 3, 1] = np.nan
    with pytest.raises(PlanError, match=r"rows \[2\]"):
        check_plans(bad, 4)


def test_bad_scenes_and_options_are_named() -> None:
    with pytest.raises(SceneError, match="no scenes"):
        NavSimEnv(1, scenes=[])
    env = make(2)
    with pytest.raises(SceneError, match="'nowhere'"):
        env.reset(options={"scenes": ["nowhere", 0]})
    with pytest.raises(SceneError, match="index 9"):
        env.reset(options={"scenes": [9, 0]})
    with pytest.raises(SceneError, match="1 scenes for 2 episodes"):
        env.reset(options={"scenes": [0]})
    with pytest.raises(SceneError, match="Did you mean 'scenes'"):
        env.reset(options={"scene": [0, 1]})
    with pytest.raises(ConfigError, match="make them equal"):
        make(1, reward=Reward(version="v2"))


def test_scenes_that_cannot_be_seen_are_named() -> None:
    first, second = visible_scenes(2)
    with pytest.raises(SceneError, match=second.token):
        observe([first, second.with_(images={})])
    with pytest.raises(SceneError, match="route"):
        observe([first.with_(route=np.zeros((0, 2)))])
