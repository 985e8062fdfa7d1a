"""What asynchrony buys and costs in AReaL: ``python benchmarks/staleness.py`` (in AReaL's environment: make env-areal).

The same training in NavSim with ``max_head_offpolicyness`` 0 (synchronous), 1, 2 and 4 (asynchronous, decoupled loss), in an
environment whose episodes take unevenly long, as those of a simulator do: each scoring waits for a time drawn from a log-normal
distribution, so that a batch's slowest group takes several times the mean. Prints for each bound the wall-clock time, the
reward at the end, how old the decisions were that were trained on, and how many of their parts were older than the bound: AReaL
bounds how many rollouts are begun, not how old each of them is. Writes ``benchmarks/results/staleness_areal.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv

from vla_models.config import VLAConfig
from vla_models.frameworks import get_launcher
from vla_models.frameworks.areal.env import AReaLNavSimAdapter
from vla_models.inputs import VLASpec
from vla_models.model_registry import register_env_adapter
from vla_models.training.metrics import read_metrics

RESULTS = Path(__file__).parent / "results"
BOUNDS = (0, 1, 2, 4)
MEAN_SECONDS, SPREAD = 0.4, 1.2
"""Of the wait: its mean, and the standard deviation of its logarithm."""
LAST = 10
"""Updates over which the reward at the end is averaged."""


@register_env_adapter("navsim", "areal")
class Uneven(AReaLNavSimAdapter):
    """NavSim, slowly."""

    @classmethod
    def make_env(cls, config: VLAConfig, part: Any, num_envs: int, spec: VLASpec) -> VectorEnv:
        env = super().make_env(config, part, num_envs, spec)
        if part == "train":
            random, score = np.random.default_rng(id(env) % 2**32), env.step

            def step(actions: Any) -> Any:
                time.sleep(float(random.lognormal(np.log(MEAN_SECONDS) - SPREAD**2 / 2, SPREAD)))
                return score(actions)

            env.step = step
        return env


def measure(config: VLAConfig) -> dict[str, Any]:
    """One run: its updates, and how long they took together."""
    folder = get_launcher("areal")(config)
    rows = [row for row in read_metrics(folder) if row["phase"] == "rl"]
    keys = ("step", "wall_s", "reward_mean", "staleness_mean", "staleness_max", "too_old", "parts", "ratio", "behave_ratio")
    summary = json.loads((folder / "summary.json").read_text())
    return {
        "wall_s": rows[-1]["wall_s"] - rows[0]["wall_s"],
        "reward": mean(row["reward_mean"] for row in rows[-LAST:]),
        "heldout": summary["heldout"],
        "staleness_mean": mean(row["staleness_mean"] for row in rows),
        "staleness_max": max(row["staleness_max"] for row in rows),
        "too_old": sum(row["too_old"] for row in rows) / sum(row["parts"] for row in rows),
        "updates": [{key: row[key] for key in keys if key in row} for row in rows],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/navsim_quick.yaml"))
    parser.add_argument("--bounds", type=int, nargs="+", default=list(BOUNDS))
    parser.add_argument("overrides", nargs="*", default=[], help="key=value, as for vla-models train")
    args = parser.parse_intermixed_args()
    base = ["framework=areal", "training.eval_every=0", "training.threads=1", "framework_options.vla.threads=64"]
    results = {}
    print("| bound | wall-clock (s) | reward of the last updates | held-out score | age, mean | age, most | too old |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as runs:
        for bound in args.bounds:
            late = f"framework_options.rollout.max_head_offpolicyness={bound}"
            found = measure(VLAConfig.from_yaml(args.config, [*base, late, f"output_dir={runs}", *args.overrides]))
            results[bound] = found
            print(
                f"| {bound} | {found['wall_s']:.0f} | {found['reward']:.3f} | {found['heldout']['rl']:.3f} "
                f"| {found['staleness_mean']:.2f} | {found['staleness_max']} | {found['too_old']:.1%} |",
                flush=True,
            )
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "staleness_areal.json"
    written = {
        "config": args.config.name,
        "overrides": args.overrides,
        "latency": {"mean_s": MEAN_SECONDS, "log_sigma": SPREAD},
        "machine": {"cores": os.cpu_count()},
        "versions": {"areal": version("areal"), "torch": torch.__version__},
        "bounds": results,
    }
    path.write_text(json.dumps(written, indent=2) + "\n")
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
