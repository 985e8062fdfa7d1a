"""How much of a training step our adapters take: ``python benchmarks/frameworks.py rlinf`` (in that framework's environment).

One step is sampled, scored, replayed and differentiated in this process through the framework's adapter, without the
framework's own transport between processes, so the share that is printed is an upper bound of the share in a run. CPU time is
measured: what the model and the environment take is inside the adapter's calls and is taken off. Writes
``benchmarks/results/frameworks_<framework>.json``.
"""

from __future__ import annotations

import argparse
import json
import os
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
    """CPU seconds spent inside the functions that it wraps (not counted twice where one calls another in the same thread).

    timer: ``time.thread_time``, or ``time.process_time`` for functions that let other threads work.
    """

    def __init__(self, timer: Callable[[], float] = time.thread_time) -> None:
        self.seconds, self._timer, self._of_thread = 0.0, timer, threading.local()

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            depth = getattr(self._of_thread, "depth", 0)
            started, self._of_thread.depth = self._timer(), depth + 1
            try:
                return function(*args, **kwargs)
            finally:
                self._of_thread.depth = depth
                if not depth:
                    self.seconds += self._timer() - started

        return timed


def rlinf_step(config: VLAConfig, folder: Path) -> tuple[Callable[[], None], Clock, Clock]:
    """One step through RLinf's adapters; the clocks of adapter calls and of model and environment inside them."""
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

    def once() -> None:
        seen, _ = reset()
        actions, result = predict(env_obs=seen, do_sample=True, temperature=config.algorithm.temperature)
        _, rewards, *_ = step(actions.numpy())
        out = forward(forward_inputs=result["forward_inputs"], compute_logprobs=True)
        (out["logprobs"].sum(1) * rewards[:, 0]).mean().backward()
        env.update_reset_state_ids()

    return once, outer, inner


def siirl_step(config: VLAConfig, folder: Path) -> tuple[Callable[[], None], Clock, Clock]:
    """One step of siiRL's worker (rollout, log-probabilities, update), whose worlds and model run in threads of their own."""
    from vla_models.frameworks.siirl import native, plugin
    from vla_models.frameworks.siirl.compat import before_import

    before_import()
    plugin.register()
    os.environ |= {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    from dacite import Config as DaciteConfig
    from dacite import from_dict
    from siirl.params import ActorRolloutRefArguments
    from tensordict import TensorDict

    from vla_models.frameworks.probing import lay_out
    from vla_models.frameworks.siirl.worker import DriveWorker

    config.to_yaml(folder / "config.yaml")
    torch.manual_seed(config.seed)
    model = create_model(config.model.name, **config.model.arguments())
    model.save_pretrained(folder / "start")
    kind = VLAModelRegistry.get_env_adapter(config.environment.type, "siirl")
    layout = lay_out(config, model, kind.make_env)
    settings = native.make(
        config, folder, folder / "start", decisions=layout.max_decisions, heldout=1, record=layout.record, devices=1
    )
    native.write_inputs(settings, config, config.environment.train_scenes, 1)
    given = from_dict(ActorRolloutRefArguments, settings["actor_rollout_ref"], DaciteConfig(check_types=False))
    given.actor.optim.total_training_steps = 1000
    worker = DriveWorker(given, None)
    worker.init_model()
    policy, worlds = worker.policy, worker._rollout("train").worlds
    outer, inner = Clock(time.process_time), Clock()
    policy.model.predict = inner.wrap(policy.model.predict)  # type: ignore[method-assign]
    policy.model.evaluate_actions = inner.wrap(policy.model.evaluate_actions)  # type: ignore[method-assign]
    policy.optimizer.step = inner.wrap(policy.optimizer.step)  # type: ignore[method-assign]
    torch.autograd.backward = inner.wrap(torch.autograd.backward)
    for world in worlds:
        world.env.step, world.env.reset = inner.wrap(world.env.step), inner.wrap(world.env.reset)
    generate, replay, update = (
        outer.wrap(f) for f in (worker.generate_sequences, worker.compute_log_prob, worker.update_actor)
    )
    group, scenes = config.algorithm.group_size, config.training.scenes_per_step
    ids = torch.arange(scenes).repeat_interleave(group)

    def once() -> None:
        batch = generate(TensorDict({"task_id": ids}, batch_size=len(ids)))
        returns = batch["episode_return"].view(scenes, group)
        advantages = (returns - returns.mean(dim=1, keepdim=True)).reshape(-1, 1)
        batch["advantages"] = advantages * batch["response_mask"]
        update(replay(batch))

    return once, outer, inner


STEPS = {"rlinf": rlinf_step, "siirl": siirl_step}


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
        once, outer, inner = STEPS[args.framework](config, Path(folder))
        once()  # compiles
        for _ in range(args.steps):
            outer.seconds = inner.seconds = 0.0
            started = time.process_time()
            once()
            rows.append({"step_s": time.process_time() - started, "adapter_s": outer.seconds - inner.seconds})
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
