"""How much of a training step our adapters take: ``python benchmarks/frameworks.py rlinf`` (in that framework's environment).

One step is sampled, scored, replayed and differentiated in this process through the framework's adapter, without the
framework's own transport between processes, so the share that is printed is an upper bound of the share in a run. CPU time is
measured: what the model and the environment take is inside the adapter's calls and is taken off. Writes
``benchmarks/results/frameworks_<framework>.json``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch
from learning import SHIMS, on_cpu

from vla_models.config import VLAConfig

RESULTS = Path(__file__).parent / "results"
FRAMEWORKS = ("areal", "rlinf", "siirl", "verl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("framework", choices=FRAMEWORKS)
    parser.add_argument("--config", type=Path, default=Path("configs/navsim_quick.yaml"))
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("overrides", nargs="*", default=[], help="key=value, as for vla-models train")
    args = parser.parse_intermixed_args()
    config = VLAConfig.from_yaml(args.config, [f"framework={args.framework}", "training.threads=1", *args.overrides])
    torch.set_num_threads(1)
    if on_cpu(args.framework):  # this process is a worker as well
        sys.path.insert(0, str(SHIMS / args.framework))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        once = importlib.import_module(f"adapter_steps.{args.framework}").step(config, Path(folder))
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
