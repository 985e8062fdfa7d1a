"""AReaL: groups of episodes, and its actor's update around our replay."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from adapter_steps.clock import Clock, Step, take
from vla_models.config import VLAConfig
from vla_models.model_registry import VLAModelRegistry, create_model


def step(config: VLAConfig, folder: Path) -> Step:
    """One step through AReaL's adapters, its groups beside each other as in a run; AReaL's actor learns.

    Groups are asked in one thread, the model works in another and environments in a third. What is not theirs is ours.
    """
    import uvloop
    from areal.api import FinetuneSpec

    from vla_models.frameworks.areal import native, runner
    from vla_models.frameworks.areal.deciding import Decider
    from vla_models.frameworks.areal.driving import drive
    from vla_models.frameworks.areal.engine import VLAPPOActor
    from vla_models.frameworks.areal.env import EnvironmentPool
    from vla_models.frameworks.areal.policies import RecordPolicy
    from vla_models.frameworks.probing import lay_out

    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29610"}
    torch.manual_seed(config.seed)
    model = create_model(config.model.name, **config.model.arguments())
    kind = VLAModelRegistry.get_env_adapter(config.environment.type, "areal")
    layout = lay_out(config, model, kind.make_env)
    start = model.save_pretrained(folder / "start")
    settings = runner.structured(native.make(config, folder, start, folder, 0))
    actor = VLAPPOActor(settings.actor)
    actor.create_process_group()
    actor.initialize(ft_spec=FinetuneSpec(1, config.training.scenes_per_step * 100, config.training.scenes_per_step))
    outer, inner = Clock(time.process_time), Clock()
    decider = Decider(model, seed=config.seed, most_rows=256)
    actor.replay = outer.wrap(actor.replay)  # type: ignore[method-assign]
    for part in (model, actor.model):
        part.evaluate_actions = inner.wrap(part.evaluate_actions)  # type: ignore[method-assign]
    model.predict = inner.wrap(model.predict)  # type: ignore[method-assign]
    scenes: list[str] = []

    def make(rows: int) -> Any:
        env = kind.make_env(config, "train", rows, model.spec)
        scenes[:] = env.tokens
        env.step, env.reset = inner.wrap(env.step), inner.wrap(env.reset)
        return env

    async def decide(inputs: Any, sampling: Any) -> Any:
        return await asyncio.wrap_future(decider.decide(inputs, sampling))

    engine, policy = SimpleNamespace(adecide=decide), RecordPolicy(config, {"record": layout.record.to_dict()})
    make(1)
    loop = asyncio.Runner(loop_factory=uvloop.new_event_loop)  # as AReaL's infra/async_task_runner.py
    made: list[Any] = []

    async def make_pool() -> EnvironmentPool:
        return EnvironmentPool(make, environments=config.training.scenes_per_step, threads=1, limit=600.0)

    pool = loop.run(make_pool())

    async def group(scene: str) -> Any:
        async with kind(pool, config.algorithm.group_size) as adapter:
            driven = await drive(adapter, policy, engine, scene)
        return driven.trajectory(normalize=config.algorithm.normalize_advantage)

    async def groups() -> None:
        made[:] = await asyncio.gather(*(group(scene) for scene in scenes[: config.training.scenes_per_step]))

    rollout = outer.wrap(lambda: loop.run(groups()))

    def once() -> float:
        rollout()
        actor.ppo_update(actor.compute_advantages([group for group in made if group is not None]))
        return take(outer, inner)

    return once
