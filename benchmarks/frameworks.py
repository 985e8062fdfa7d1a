"""How much of a training step our adapters take: ``python benchmarks/frameworks.py rlinf`` (in that framework's environment).

One step is sampled, scored, replayed and differentiated in this process through the framework's adapter, without the
framework's own transport between processes, so the share that is printed is an upper bound of the share in a run. CPU time of
this thread is measured: what the model and the environment take is inside the adapter's calls and is taken off. Writes
``benchmarks/results/frameworks_<framework>.json``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
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
    """CPU seconds spent inside the functions that it wraps (not counted twice where one calls another)."""

    def __init__(self) -> None:
        self.seconds, self._depth = 0.0, 0

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started, self._depth = time.thread_time(), self._depth + 1
            try:
                return function(*args, **kwargs)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds += time.thread_time() - started

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


STEPS = {"rlinf": rlinf_step}


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
            started = time.thread_time()
            once()
            rows.append({"step_s": time.thread_time() - started, "adapter_s": outer.seconds - inner.seconds})
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
