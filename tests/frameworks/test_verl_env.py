"""Episodes for verl's agent loops without verl: waves of trajectories in shared environments."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from golden import visible_scenes
from gymnasium.vector import VectorEnv
from toy_world import HORIZON, ToyDrive

from vla_models.config import VLAConfig
from vla_models.envs.navsim import NavSimEnv
from vla_models.frameworks.episodes import Episodes
from vla_models.frameworks.verl.env import EpisodeFailed, EpisodePool, VerlBench2DriveAdapter, VerlNavSimAdapter
from vla_models.model_registry import VLAModelRegistry
from vla_models.training.routes import PLANS


class CountedToy(ToyDrive):
    """Knows how many there are, and raises at the decision and scene that it is told."""

    made = 0
    raises: tuple[str, int] | None = None

    def __init__(self, rows: int) -> None:
        super().__init__(rows, crashing=True)
        type(self).made += 1

    def step(self, actions: Any) -> Any:
        if self.raises is not None:
            scene, at = self.raises
            if any(name == scene and k == at for name, k in zip(self.names, self.decided, strict=True)):
                raise OSError("the disk is gone")
        return super().step(actions)


@pytest.fixture
def toy() -> type[CountedToy]:
    return type("Toy", (CountedToy,), {})


def forward(metres: float) -> Any:
    return np.tile(np.float32([metres, 0.0, 0.0]), (HORIZON, 1))


async def drive(pool: EpisodePool, scene: str, metres: float, decisions: int = 100) -> Any:
    """One trajectory; what it was told last, or its error."""
    try:
        async with pool.episode(scene) as row:
            for _ in range(decisions):
                told = await row.decide(forward(metres))
                if told.over:
                    break
            return told
    except EpisodeFailed as e:
        return e


def run(pool_of: Any, scenes: list[str], metres: list[float], **settings: Any) -> list[Any]:
    async def everyone() -> list[Any]:
        pool = EpisodePool(pool_of, settings.get("rows", 4), settings.get("environments", 2))
        jobs = [drive(pool, s, m, settings.get("decisions", 100)) for s, m in zip(scenes, metres, strict=True)]
        return list(await asyncio.gather(*jobs))

    return asyncio.run(asyncio.wait_for(everyone(), 30))


def test_trajectories_share_environments_and_get_their_own_world(toy: type[CountedToy]) -> None:
    scenes = [f"go{i % 4}" for i in range(21)]
    told = run(lambda: Episodes(toy(4)), scenes, [1.5 if i % 2 else 0.0 for i in range(21)])
    assert toy.made <= 2
    for i, (scene, last) in enumerate(zip(scenes, told, strict=True)):
        alone = ToyDrive(1)
        alone.reset(options={"scenes": [scene]})
        total, steps, over = 0.0, 0, False
        while not over:
            _, reward, ended, limit, _ = alone.step(forward(1.5 if i % 2 else 0.0)[None])
            total, steps, over = total + float(reward[0]), steps + 1, bool(ended[0] | limit[0])
        assert last.over
        assert last.totals["return"] == pytest.approx(total)
        assert last.totals["decisions"] == steps
        assert last.totals["term/count"] == steps
        assert last.observation.states.shape == (1, 5 + 6 + 6 + 1)


def test_a_failed_world_ends_its_trajectory_alone(toy: type[CountedToy]) -> None:
    told = run(lambda: Episodes(toy(4)), ["go3", "crash0", "go3", "crash0"], [1.0] * 4)
    assert [isinstance(t, EpisodeFailed) for t in told] == [False, True, False, True]
    assert str(told[1]) == "scene crash0: its world failed"
    assert told[0].totals["decisions"] == 4


def test_an_environment_that_raises_is_replaced_and_its_trajectories_say_why(toy: type[CountedToy]) -> None:
    toy.raises = ("go3", 1)
    told = run(lambda: Episodes(toy(1)), ["go3", "go1", "go1"], [0.5] * 3, rows=1, environments=1)
    assert str(told[0]) == "scene go3: OSError: the disk is gone"
    assert [t.totals["decisions"] for t in told[1:]] == [4, 4]
    assert toy.made == 2
    (error,) = run(lambda: 1 / 0, ["go1"], [0.0])
    assert "ZeroDivisionError" in str(error)


def test_who_leaves_keeps_nobody_waiting(toy: type[CountedToy]) -> None:
    async def everyone() -> list[Any]:
        pool = EpisodePool(lambda: Episodes(toy(4)), 4, 1)
        stays = [asyncio.create_task(drive(pool, "go3", 0.1)) for _ in range(3)]
        leaves = asyncio.create_task(drive(pool, "go3", 0.1, decisions=1))
        return list(await asyncio.gather(*stays, leaves, drive(pool, "go0", 2.0)))

    *stayed, left, later = asyncio.run(asyncio.wait_for(everyone(), 30))
    assert [t.totals["decisions"] for t in stayed] == [4.0] * 3
    assert not left.over
    assert later.over


def test_a_plan_of_another_shape_is_refused_with_its_scene(toy: type[CountedToy]) -> None:
    async def wrong() -> Any:
        pool = EpisodePool(lambda: Episodes(toy(2)), 2, 1)
        async with pool.episode("go1") as row:
            await row.decide(np.zeros((3, 3)))

    with pytest.raises(EpisodeFailed, match=r"scene go1: a plan of shape \(3, 3\); the environment takes \(4, 3\)"):
        asyncio.run(asyncio.wait_for(wrong(), 30))


@pytest.mark.parametrize("invalid", [-2.0, "exclude"])
def test_an_answer_that_is_no_plan_brakes_and_is_rewarded_or_left_out(toy: type[CountedToy], invalid: Any) -> None:
    async def everyone() -> list[Any]:
        pool = EpisodePool(lambda: Episodes(toy(2), invalid=invalid), 2, 1)

        async def speechless() -> Any:
            try:
                async with pool.episode("go1") as row:
                    return await row.decide(None)
            except EpisodeFailed as e:
                return e

        return list(await asyncio.gather(speechless(), drive(pool, "go3", 0.5)))

    answer, other = asyncio.run(asyncio.wait_for(everyone(), 30))
    assert other.totals["decisions"] == 4.0
    if invalid == "exclude":
        assert str(answer) == "scene go1: the answer is no plan, and reward.invalid is exclude"
    else:
        assert (answer.reward, answer.totals["invalid_answers"]) == (-2.0, 1.0)


def test_navsim_is_one_decision_and_scored_like_the_environment() -> None:
    scenes = visible_scenes(6)

    class Golden(VerlNavSimAdapter):
        @classmethod
        def make_env(cls, config: VLAConfig, part: Any, num_envs: int, spec: Any) -> VectorEnv:
            return NavSimEnv(num_envs, scenes=scenes)

    plan = np.cumsum(np.tile(np.float32([2.0, 0.0, 0.0]), (8, 1)), axis=0)

    async def everyone() -> list[Any]:
        pool = Golden(VLAConfig(), "train", PLANS, rows=4, environments=1).pool

        async def one(scene: str) -> Any:
            async with pool.episode(scene) as row:
                return await row.decide(plan)

        return list(await asyncio.gather(*(one(scene.token) for scene in scenes)))

    told = asyncio.run(asyncio.wait_for(everyone(), 60))
    alone = NavSimEnv(6, scenes=scenes)
    alone.reset(options={"scenes": [scene.token for scene in scenes]})
    _, rewards, *_ = alone.step(np.repeat(plan[None], 6, axis=0))
    assert [t.reward for t in told] == pytest.approx(rewards.tolist())
    assert all(t.over for t in told)
    assert [t.totals["score"] for t in told] == pytest.approx(rewards.tolist())


def test_the_built_in_adapters_are_found() -> None:
    assert VLAModelRegistry.get_env_adapter("navsim", "verl") is VerlNavSimAdapter
    assert VLAModelRegistry.get_env_adapter("bench2drive", "verl") is VerlBench2DriveAdapter
    assert (VerlNavSimAdapter.decisions, VerlBench2DriveAdapter.decisions) == (1, None)
