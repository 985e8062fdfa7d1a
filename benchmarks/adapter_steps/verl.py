"""verl: its agent loops, rollout server and replay, without its engine and queue."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from adapter_steps.clock import Clock, Step
from vla_models.config import VLAConfig
from vla_models.model_registry import VLAModelRegistry, create_model


def step(config: VLAConfig, folder: Path) -> Step:
    """Steps through verl's adapters: everything but model, environment and backward pass, in all threads.

    The agent loops' outputs are made and stacked here; verl's engine around the replay is left out, and so is its queue.
    """
    from vla_models.frameworks.probing import lay_out
    from vla_models.frameworks.verl import runner
    from vla_models.training.checkpoint import data_order

    runner.load_plugin()
    from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics

    from vla_models.frameworks.verl.fields import FORM, WORDS, packed_records
    from vla_models.frameworks.verl.loop import DecisionOutput, score
    from vla_models.frameworks.verl.model import OBSERVATION, Replay
    from vla_models.frameworks.verl.rollout import DrivingServer

    torch.manual_seed(config.seed)
    model = create_model(config.model.name, **config.model.arguments())
    model.save_pretrained(folder / "start")
    kind = VLAModelRegistry.get_env_adapter(config.environment.type, "verl")
    layout = lay_out(config, model, kind.make_env)
    vla = {"seed": config.seed, "masked": layout.masked}
    vla |= {"observation": layout.observation.to_dict(), "record": layout.record.to_dict()}
    server, replay, inner = DrivingServer(SimpleNamespace(path=folder / "start", vla=vla), 0), Replay(model), Clock()
    server.model.predict = inner.wrap(server.model.predict)  # type: ignore[method-assign]
    model.evaluate_actions = inner.wrap(model.evaluate_actions)  # type: ignore[method-assign]
    make_env = kind.make_env

    class Timed(kind):  # type: ignore[misc, valid-type]
        @classmethod
        def make_env(cls, *args: Any) -> Any:
            env = inner.wrap(make_env)(*args)
            env.step, env.reset = inner.wrap(env.step), inner.wrap(env.reset)
            return env

    loop, group = asyncio.new_event_loop(), config.algorithm.group_size
    pool = Timed(config, "train", model.spec, rows=group, environments=8).pool
    scenes = make_env(config, "train", 1, model.spec).tokens
    sampling, done = {"temperature": config.algorithm.temperature, "top_p": config.algorithm.top_p}, 0

    async def trajectory(scene: str) -> dict[str, Any]:
        async with pool.episode(scene) as row:
            answer = await server.generate(scene, [OBSERVATION], sampling, observation=row.observation)
            told = await row.decide(answer.extra_fields["plan"])
        output = DecisionOutput(
            prompt_ids=[OBSERVATION], response_ids=answer.token_ids, response_mask=[1] * len(answer.token_ids),
            response_logprobs=answer.log_probs, metrics=AgentLoopMetrics(), score=told.reward,
            extra_fields={"record": answer.extra_fields["record"], "reward_extra_info": told.totals},
        )  # fmt: skip
        score([output], None)
        return output.as_dict()

    async def rollout(names: list[str]) -> list[dict[str, Any]]:
        return list(await asyncio.gather(*(trajectory(name) for name in names for _ in range(group))))

    def once() -> float:
        nonlocal done
        inner.seconds, started = 0.0, time.process_time()
        order = data_order(config.seed, "rl", done, len(scenes), config.training.scenes_per_step)
        done += 1
        rows = loop.run_until_complete(rollout([scenes[i] for i in order]))
        packed = packed_records({name: torch.stack([row[name] for row in rows]) for name in (WORDS, FORM)})
        rewards = torch.stack([row["rm_scores"].sum() for row in rows])
        loss = (replay(packed=packed)["logprobs"].sum(1) * rewards).mean()
        inner.wrap(loss.backward)()
        return time.process_time() - started - inner.seconds

    return once
