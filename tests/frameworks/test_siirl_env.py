"""siiRL's environment class without siiRL: its two coroutines, on golden NavSim scenes and in the toy world."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import pytest
from golden import visible_scenes
from gymnasium.vector import VectorEnv
from toy_world import HORIZON, ToyDrive

from vla_models.config import VLAConfig
from vla_models.envs.navsim import NavSimEnv
from vla_models.errors import ConfigError, SceneError
from vla_models.frameworks.siirl.env import Bench2DriveVLAAdapter, NavSimVLAAdapter
from vla_models.inputs import VLASpec
from vla_models.model_registry import VLAModelRegistry


class GoldenNavSim(NavSimVLAAdapter):
    @classmethod
    def make_env(cls, config: VLAConfig, part: Any, num_envs: int, spec: VLASpec) -> VectorEnv:
        return NavSimEnv(num_envs, scenes=visible_scenes(6))


class Toy(Bench2DriveVLAAdapter):
    @classmethod
    def make_env(cls, config: VLAConfig, part: Any, num_envs: int, spec: VLASpec) -> VectorEnv:
        return ToyDrive(num_envs, crashing=True, horizon=spec.horizon)


def adapter(kind: Any = Toy, rows: int = 4, *overrides: str) -> Any:
    config = VLAConfig.from_dict({"framework": "siirl", "reward": {"invalid": -2.0}}, overrides)
    return kind(config, "train", rows, VLASpec(horizon=8 if kind is GoldenNavSim else HORIZON))


def go(metres: float, rows: int) -> Any:
    return np.tile(np.float32([metres, 0.0, 0.0]), (rows, HORIZON, 1))


def test_the_adapters_are_registered_by_name() -> None:
    assert VLAModelRegistry.get_env_adapter("navsim", "siirl") is NavSimVLAAdapter
    assert VLAModelRegistry.get_env_adapter("bench2drive", "siirl") is Bench2DriveVLAAdapter


def test_navsim_is_one_decision() -> None:
    env = adapter(GoldenNavSim)

    async def episode() -> Any:
        first = await env.reset([0, 0, 1, 2], trial_ids=[0, 1, 0, 0])
        return first, await env.step({"actions": np.zeros((4, 1, 24), np.float32)})

    first, (_, rewards, terminated, truncated, info) = asyncio.run(episode())
    assert first["images"]["front"].shape[0] == 4
    assert rewards.shape == (4,)
    assert terminated.all()
    assert not truncated.any()
    assert info["over"].all()
    assert info["totals"]["score"].tolist() == pytest.approx(rewards.tolist())


def test_rows_drive_wait_and_end_each_for_itself() -> None:
    """Fewer ids than rows leave rows over; rows that are not named gave no plan; a crash is NaN, never 0."""
    env = adapter()

    async def drive() -> None:
        await env.reset([0, 4, 3])  # a goal at 2 m, a crash at the second decision, a goal at 8 m
        assert env.over.tolist() == [False, False, False, True]
        plans = np.concatenate([go(1.5, 1), go(0.5, 1)])
        _, rewards, terminated, _, info = await env.step({"indices": [0, 1], "actions": plans})
        assert rewards.tolist() == [1.5, 0.5, -2.0, 0.0]  # reward.invalid for the row without a plan
        assert terminated.tolist() == [True, False, False, False]
        assert info["totals"]["invalid_answers"].tolist() == [0, 0, 1, 0]
        _, rewards, terminated, _, info = await env.step({"indices": [1, 2], "actions": go(0.5, 2)})
        assert np.isnan(rewards[1])
        assert info["totals"]["valid"].tolist() == [1, 0, 1, 1]
        assert info["over"].tolist() == [True, True, False, True]

    asyncio.run(drive())


def test_what_does_not_fit_is_named() -> None:
    env = adapter()

    async def wrong(which: str) -> None:
        await env.reset([0, 1, 2, 3])
        if which == "scene":
            await env.reset([0, 1, 2, 9])
        elif which == "ids":
            await env.reset([0] * 5)
        elif which == "actions":
            await env.step({"indices": [0, 1], "actions": go(1.0, 3)})
        else:
            await env.step({"indices": [7], "actions": go(1.0, 1)})

    for which, kind, message in (
        ("scene", SceneError, "there is no scene number 9; the environment has 5"),
        ("ids", ConfigError, "5 task ids do not fit 4 rows"),
        ("actions", ConfigError, r"actions of shape \[3, 4, 3\] for rows \[0, 1\] of 4"),
        ("row", ConfigError, r"rows \[7\] of 4"),
    ):
        with pytest.raises(kind, match=message):
            asyncio.run(wrong(which))


def test_a_slow_world_does_not_hold_the_event_loop() -> None:
    """Both coroutines are awaited for real: two worlds of 0.2 s a step take little more than one."""
    worlds = [adapter(), adapter()]
    for world in worlds:
        step = world.env.step

        def slowly(plans: Any, step: Any = step) -> Any:
            time.sleep(0.2)
            return step(plans)

        world.env.step = slowly

    async def both() -> float:
        for world in worlds:
            await world.reset([0, 1, 2, 3])
        started = time.perf_counter()
        await asyncio.gather(*(world.step({"actions": go(0.5, 4)}) for world in worlds))
        return time.perf_counter() - started

    assert asyncio.run(both()) < 0.35
    for world in worlds:
        world.close()
