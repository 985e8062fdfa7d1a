"""AReaL's adapters without AReaL: tools, a crowd of episodes, faults, cancellation, and what is left of them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from typing import Any

import numpy as np
import pytest
from golden import visible_scenes
from gymnasium.vector import VectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_world import HORIZON, ToyDrive

from vla_models.config import VLAConfig
from vla_models.envs.navsim import NavSimEnv
from vla_models.errors import SceneError, VLAModelsError
from vla_models.frameworks.areal.blocking import EpisodeTimeout, Threads
from vla_models.frameworks.areal.env import AReaLBench2DriveAdapter, AReaLEnvAdapter, AReaLNavSimAdapter, EnvironmentPool
from vla_models.inputs import VLASpec
from vla_models.model_registry import VLAModelRegistry
from vla_models.training.routes import PLANS


class Broken(RuntimeError):
    pass


class Moody(ToyDrive):
    """A toy world whose ``step`` takes a random time and raises at random; it counts calls that run at the same time."""

    def __init__(self, num_envs: int, seed: int, crowd: dict[str, int], failing: float = 0.1) -> None:
        super().__init__(num_envs)
        self.random, self.crowd, self.failing = np.random.default_rng(seed), crowd, failing
        self.inside = threading.Lock()

    def step(self, actions: Any) -> Any:
        assert self.inside.acquire(blocking=False), "two calls into one environment at a time"
        try:
            self.crowd["now"] += 1
            self.crowd["most"] = max(self.crowd["most"], self.crowd["now"])
            time.sleep(float(self.random.uniform(0, 0.004)))
            if self.random.uniform() < self.failing:
                raise Broken
            return super().step(actions)
        finally:
            self.crowd["now"] -= 1
            self.inside.release()


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def plan(metres: float, rows: int = 1) -> Any:
    return np.tile(np.float32([metres, 0.0, 0.0]), (rows, HORIZON, 1))


def toys(environments: int = 4, limit: float = 30.0) -> EnvironmentPool:
    return EnvironmentPool(ToyDrive, environments=environments, threads=2, limit=limit)


def test_the_adapters_are_registered() -> None:
    assert VLAModelRegistry.get_env_adapter("navsim", "areal") is AReaLNavSimAdapter
    assert VLAModelRegistry.get_env_adapter("bench2drive", "areal") is AReaLBench2DriveAdapter
    assert (AReaLNavSimAdapter.decisions, AReaLBench2DriveAdapter.decisions) == (1, None)


def test_tools_drive_an_episode_to_its_end() -> None:
    async def episode() -> None:
        adapter = AReaLBench2DriveAdapter(toys())
        assert [tool["name"] for tool in adapter.list_tools()] == ["reset", "observe", "step", "score"]
        await adapter.ainitialize()
        seen = (await adapter.aexecute("reset", {"scene": "go3"}))["observation"]  # its goal is at 8 m
        assert seen["images"]["front"].shape == (1, 6, 8, 3)
        steps = [await adapter.aexecute("step", {"plan": plan(2.0)[0]})]
        observed = await adapter.aexecute("observe")
        assert observed["observation"] is steps[0]["observation"]
        while not steps[-1]["over"].all():
            steps.append(await adapter.aexecute("step", {"plan": plan(2.0)}))
        score = await adapter.aexecute("score", {})
        assert score["return"].tolist() == [sum(float(step["reward"][0]) for step in steps)]
        assert score["decisions"].tolist() == [len(steps)] == [4]
        assert score["term/nearer"].tolist() == score["return"].tolist()
        assert score["valid"].tolist() == [1.0]
        await adapter.aclose()
        await adapter.aclose()
        assert adapter.pool.counts == {"begun": 1, "closed": 1, "failed": 0, "timed_out": 0, "cancelled": 0}

    run(episode())


def test_a_group_is_scored_like_single_episodes() -> None:
    scenes = visible_scenes(6)
    rng = np.random.default_rng(0)
    plans = np.cumsum(rng.uniform(0, 2, (4, 8, 3)) * [1, 0.05, 0.005], axis=1)

    async def rewards(rows: int) -> list[float]:
        pool = EnvironmentPool(lambda n: NavSimEnv(n, scenes=scenes), environments=2, threads=1, limit=60)
        found: list[float] = []
        for first in range(0, 4, rows):
            async with AReaLNavSimAdapter(pool, rows) as adapter:
                await adapter.aexecute("reset", {"scene": scenes[1].token})
                step = await adapter.aexecute("step", {"plan": plans[first : first + rows]})
                assert step["over"].all()
                found += step["reward"].tolist()
        return found

    assert run(rewards(4)) == run(rewards(1))


def test_what_is_asked_wrongly_is_named() -> None:
    async def ask() -> None:
        pool = toys()
        adapter = AReaLBench2DriveAdapter(pool, 2)
        with pytest.raises(VLAModelsError, match=r"await ainitialize\(\) first"):
            await adapter.aexecute("reset", {"scene": "go0"})
        async with adapter:
            with pytest.raises(SceneError, match="there is no tool 'fly'; known: observe, reset, score, step"):
                await adapter.aexecute("fly")
            with pytest.raises(SceneError, match=r"tool 'reset' takes \['scene'\]; missing or unknown: \['scene', 'town'\]"):
                await adapter.aexecute("reset", {"town": "go0"})
            with pytest.raises(SceneError, match="execute reset first"):
                await adapter.aexecute("step", {"plan": plan(1.0, 2)})
            await adapter.aexecute("reset", {"scene": "go0"})
            with pytest.raises(SceneError, match=r"a plan of shape \[4, 3\] was given, not \[2, T, 3\]"):
                await adapter.aexecute("step", {"plan": plan(1.0)[0]})
            with pytest.raises(VLAModelsError, match="has begun already"):
                await adapter.ainitialize()
        assert pool.counts["closed"] == 1

    run(ask())


def test_a_crashed_world_is_no_error_but_invalid() -> None:
    async def episode() -> None:
        pool = EnvironmentPool(lambda n: ToyDrive(n, crashing=True), environments=1, threads=1, limit=30)
        async with AReaLBench2DriveAdapter(pool) as adapter:
            await adapter.aexecute("reset", {"scene": "crash0"})
            await adapter.aexecute("step", {"plan": plan(0.1)})
            step = await adapter.aexecute("step", {"plan": plan(0.1)})
            assert np.isnan(step["reward"]).all()
            assert (await adapter.aexecute("score"))["valid"].tolist() == [0.0]
        assert pool.counts["closed"] == 1

    run(episode())


@pytest.mark.parametrize("seed", range(3))
def test_256_episodes_with_delays_errors_and_cancellations_add_up(seed: int) -> None:
    """None is lost, none leaks, no more of them work at a time than there are threads."""
    crowd = {"now": 0, "most": 0}
    made: list[Moody] = []

    def make(rows: int) -> VectorEnv:
        made.append(Moody(rows, seed * 1000 + len(made), crowd))
        return made[-1]

    ended = {"done": 0, "broken": 0, "cancelled": 0}

    async def episode(pool: EnvironmentPool, number: int) -> None:
        rng = np.random.default_rng([seed, number])
        adapter = AReaLBench2DriveAdapter(pool)
        try:
            await adapter.ainitialize()
            await adapter.aexecute("reset", {"scene": f"go{number % 4}"})
            over = False
            while not over:
                await asyncio.sleep(float(rng.uniform(0, 0.002)))  # the model thinks
                over = bool((await adapter.aexecute("step", {"plan": plan(1.0)}))["over"].all())
            ended["done"] += 1
        except Broken:
            ended["broken"] += 1
        except asyncio.CancelledError:
            ended["cancelled"] += 1
            raise
        finally:
            await adapter.aclose()

    async def crowd_of_episodes() -> EnvironmentPool:
        pool = EnvironmentPool(make, environments=32, threads=4, limit=30)
        tasks = [asyncio.create_task(episode(pool, i)) for i in range(256)]
        rng = np.random.default_rng(seed)
        for victim in rng.permutation(256)[:64]:
            await asyncio.sleep(float(rng.uniform(0, 0.004)))
            tasks[victim].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert crowd["now"] == 0  # nothing runs when all have been closed
        return pool

    pool = run(crowd_of_episodes())
    assert sum(ended.values()) <= 256  # one that is cancelled before it starts never runs
    assert ended["done"] > 0
    assert ended["broken"] > 0
    counts = pool.counts
    assert counts["begun"] == sum(value for name, value in counts.items() if name != "begun")
    assert counts["failed"] >= ended["broken"]
    assert counts["timed_out"] == pool.threads.lost == 0
    assert 1 < crowd["most"] <= 4
    assert pool._places._value == 32  # every environment was given back
    idle = sum(len(envs) for envs in pool._idle.values())
    assert idle == pool.made - counts["failed"] <= 32  # what failed is not used again
    pool.close()
    deadline = time.monotonic() + 10
    while pool.threads.alive and time.monotonic() < deadline:
        time.sleep(0.01)
    assert pool.threads.alive == 0


def test_cancelling_waits_for_the_call_that_runs() -> None:
    class Slow(ToyDrive):
        running = False

        def step(self, actions: Any) -> Any:
            Slow.running = True
            time.sleep(0.3)
            Slow.running = False
            return super().step(actions)

    async def episode(adapter: AReaLEnvAdapter) -> None:
        try:
            await adapter.ainitialize()
            await adapter.aexecute("reset", {"scene": "go0"})
            await adapter.aexecute("step", {"plan": plan(1.0)})
        finally:
            await adapter.aclose()

    async def cancel() -> None:
        pool = EnvironmentPool(Slow, environments=1, threads=1, limit=30)
        task = asyncio.create_task(episode(AReaLBench2DriveAdapter(pool)))
        while not Slow.running:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not Slow.running
        assert pool.counts == {"begun": 1, "closed": 0, "failed": 0, "timed_out": 0, "cancelled": 1}
        await episode(AReaLBench2DriveAdapter(pool))  # the environment is as good as before
        assert pool.made == 1

    run(cancel())


def test_a_call_that_hangs_is_given_up_and_costs_no_thread() -> None:
    release = threading.Event()

    class Hanging(ToyDrive):
        hangs = True

        def step(self, actions: Any) -> Any:
            if Hanging.hangs:
                Hanging.hangs = False
                release.wait(30)
            return super().step(actions)

    async def episode(pool: EnvironmentPool) -> None:
        async with AReaLBench2DriveAdapter(pool) as adapter:
            await adapter.aexecute("reset", {"scene": "go0"})
            await adapter.aexecute("step", {"plan": plan(1.0)})

    async def hang() -> None:
        pool = EnvironmentPool(Hanging, environments=1, threads=1, limit=0.2)
        with pytest.raises(EpisodeTimeout, match=r"has not ended after 0.2 s and was given up"):
            await episode(pool)
        await episode(pool)  # with another environment, in another thread
        assert pool.counts == {"begun": 2, "closed": 1, "failed": 0, "timed_out": 1, "cancelled": 0}
        assert (pool.made, pool.threads.lost) == (2, 1)
        release.set()

    run(hang())


def test_the_limit_counts_from_when_a_call_begins() -> None:
    async def queue_up() -> list[int]:
        threads = Threads(1)
        jobs = [threads.submit(lambda i=i: (time.sleep(0.1), i)[1]) for i in range(5)]
        return [await threads.wait(job, 0.4) for job in jobs]  # the last begins after 0.4 s

    assert run(queue_up()) == [0, 1, 2, 3, 4]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=12), st.integers(1, 4))
def test_environments_are_shared_by_number_of_rows(rows: list[int], environments: int) -> None:
    async def episode(pool: EnvironmentPool, n: int) -> None:
        async with AReaLBench2DriveAdapter(pool, n) as adapter:
            seen = (await adapter.aexecute("reset", {"scene": "go1"}))["observation"]
            assert len(seen["text"]) == n

    async def all_of_them() -> EnvironmentPool:
        pool = toys(environments)
        await asyncio.gather(*(episode(pool, n) for n in rows))
        return pool

    pool = run(all_of_them())
    assert pool.counts["closed"] == len(rows)
    assert pool.made <= len(set(rows)) * environments
    pool.close()


def test_make_pool_makes_the_configured_environment() -> None:
    asked: list[Any] = []

    class Mine(AReaLNavSimAdapter):
        @classmethod
        def make_env(cls, config: VLAConfig, part: Any, num_envs: int, spec: VLASpec) -> VectorEnv:
            asked.append((config, part, num_envs, spec))
            return ToyDrive(num_envs)

    async def borrow() -> None:
        config = VLAConfig.from_dict({"reward": {"invalid": -2.0}})
        pool = Mine.make_pool(config, "heldout", PLANS, environments=1, threads=1, limit=1.0)
        async with Mine(pool, 3) as adapter:
            assert asked == [(config, "heldout", 3, PLANS)]
            await adapter.aexecute("reset", {"scene": "go1"})
            plans = plan(1.0, 3)
            plans[1] = np.nan  # an answer that is no plan
            rewards = (await adapter.aexecute("step", {"plan": plans}))["reward"]
            assert rewards.tolist() == [-1.0, -2.0, -1.0]
            assert (await adapter.aexecute("score"))["invalid_answers"].tolist() == [0.0, 1.0, 0.0]

    run(borrow())
