"""How much of a training step our adapters take: ``python benchmarks/frameworks.py rlinf`` (in that framework's environment).

One step is sampled, scored, replayed and differentiated in this process through the framework's adapter, without the
framework's own transport between processes, so the share that is printed is an upper bound of the share in a run. CPU time is
measured: what the model and the environment take is inside the adapter's calls and is taken off. Writes
``benchmarks/results/frameworks_<framework>.json``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch

from vla_models.config import VLAConfig
from vla_models.model_registry import VLAModelRegistry, create_model

RESULTS = Path(__file__).parent / "results"


class Clock:
    """CPU seconds spent inside the functions that it wraps, in any thread (not counted twice where one calls another)."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._here, self._adding = threading.local(), threading.Lock()

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started, depth = time.thread_time(), getattr(self._here, "depth", 0)
            self._here.depth = depth + 1
            try:
                return function(*args, **kwargs)
            finally:
                self._here.depth = depth
                if not depth:
                    with self._adding:
                        self.seconds += time.thread_time() - started

        return timed


Step = Callable[[], float]
"""One training step; returns the CPU seconds that were spent in our adapter."""


def rlinf_step(config: VLAConfig, folder: Path) -> Step:
    """Steps through RLinf's adapters: their calls, without model and environment inside them."""
    from vla_models.frameworks.probing import lay_out
    from vla_models.frameworks.rlinf.model import RLinfPolicy

    config.to_yaml(folder / "config.yaml")
    torch.manual_seed(config.seed)
    model = create_model(config.model.name, **config.model.arguments())
    kind = VLAModelRegistry.get_env_adapter(config.environment.type, "rlinf")
    layout = lay_out(config, model, kind.make_env)
    group, plans = config.algorithm.group_size, config.training.scenes_per_step * config.algorithm.group_size
    init = SimpleNamespace(config=str(folder / "config.yaml"), part="train", first_round=0)
    env = kind(SimpleNamespace(init_params=init, group_size=group, auto_reset=False, rollout_epoch=1), plans, 0, 1)
    policy = RLinfPolicy(model, layout.observation, layout.record)
    outer, inner = Clock(), Clock()
    model.predict = inner.wrap(model.predict)  # type: ignore[method-assign]
    model.evaluate_actions = inner.wrap(model.evaluate_actions)  # type: ignore[method-assign]
    env.env.step, env.env.reset = inner.wrap(env.env.step), inner.wrap(env.env.reset)
    reset, step, predict, forward = (outer.wrap(f) for f in (env.reset, env.chunk_step, policy.predict_action_batch, policy))

    def once() -> float:
        outer.seconds = inner.seconds = 0.0
        seen, _ = reset()
        actions, result = predict(env_obs=seen, do_sample=True, temperature=config.algorithm.temperature)
        _, rewards, *_ = step(actions.numpy())
        out = forward(forward_inputs=result["forward_inputs"], compute_logprobs=True)
        (out["logprobs"].sum(1) * rewards[:, 0]).mean().backward()
        env.update_reset_state_ids()
        return outer.seconds - inner.seconds

    return once


def verl_step(config: VLAConfig, folder: Path) -> Step:
    """Steps through verl's adapters: everything but model, environment and backward pass, in all threads.

    The agent loops' outputs are made and stacked here; verl's engine around the replay is left out, and so is its queue.
    """
    from vla_models.frameworks.probing import lay_out
    from vla_models.frameworks.verl import runner
    from vla_models.training.checkpoint import data_order

    runner.load_plugin()
    from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics

    from vla_models.frameworks.verl.loop import DecisionOutput, score
    from vla_models.frameworks.verl.model import OBSERVATION, Replay
    from vla_models.frameworks.verl.rollout import DrivingServer

    torch.manual_seed(config.seed)
    model = create_model(config.model.name, **config.model.arguments())
    model.save_pretrained(folder / "start")
    kind = VLAModelRegistry.get_env_adapter(config.environment.type, "verl")
    layout = lay_out(config, model, kind.make_env)
    vla = {"name": config.model.name, "seed": config.seed, "masked": layout.masked}
    vla |= {"observation": layout.observation.to_dict(), "record": layout.record.to_dict()}
    server, replay, inner = DrivingServer(str(folder / "start"), vla, 0), Replay(model), Clock()
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
        packed = {name: torch.stack([row[name] for row in rows]) for name in rows[0] if name.startswith(("record/", "sizes/"))}
        rewards = torch.stack([row["rm_scores"].sum() for row in rows])
        loss = (replay(packed=packed)["logprobs"].sum(1) * rewards).mean()
        inner.wrap(loss.backward)()
        return time.process_time() - started - inner.seconds

    return once


STEPS: dict[str, Callable[[VLAConfig, Path], Step]] = {"rlinf": rlinf_step, "verl": verl_step}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("framework", choices=sorted(STEPS))
    parser.add_argument("--config", type=Path, default=Path("configs/navsim_quick.yaml"))
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("overrides", nargs="*", default=[], help="key=value, as for vla-models train")
    args = parser.parse_intermixed_args()
    config = VLAConfig.from_yaml(args.config, [f"framework={args.framework}", "training.threads=1", *args.overrides])
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        once = STEPS[args.framework](config, Path(folder))
        once()  # compiles
        for _ in range(args.steps):
            started = time.process_time()
            adapter_s = once()
            rows.append({"step_s": time.process_time() - started, "adapter_s": adapter_s})
    shares = [row["adapter_s"] / row["step_s"] for row in rows]
    print("| framework | plans | step (CPU s) | in our adapter (CPU s) | share |")
    print("|---|---|---|---|---|")
    plans = config.training.scenes_per_step * config.algorithm.group_size
    middle = {key: median(row[key] for row in rows) for key in ("step_s", "adapter_s")}
    print(f"| {args.framework} | {plans} | {middle['step_s']:.2f} | {middle['adapter_s']:.3f} | {median(shares):.1%} |")
    RESULTS.mkdir(exist_ok=True)
    result = {"config": args.config.name, "plans": plans, "steps": rows, "share": median(shares)}
    result["versions"] = {args.framework: version(args.framework), "torch": torch.__version__}
    path = RESULTS / f"frameworks_{args.framework}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
