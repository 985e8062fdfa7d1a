"""Learning runs: the same configuration over several seeds, as one table.

    python benchmarks/learning.py configs/navsim_quick.yaml --seeds 0 1 2

    python benchmarks/learning.py configs/navsim_quick.yaml --framework rlinf      (in that framework's environment)

Each seed is a whole run of ``vla-models train`` in its own process; ``--jobs 2`` has two at a time, each with its share of the
cores (a small model gains little from a second core, so that is the quicker way through several seeds). Prints the held-out
means of every seed beside the baselines on the same scenes or routes, and writes
``benchmarks/results/learning_<config>.json`` (``…_<framework>.json`` with one named), which README and docs quote. Not part
of CI: it takes as long as the runs take. Where a framework has no CPU path and this machine no accelerator, the tests' shim
is used (tests/frameworks/<framework>/cpu_shim.py), and the result says so.

    python benchmarks/learning.py configs/navsim_quick.yaml --compare

runs nothing: it puts what was measured with this configuration in all frameworks into one table and one plot, and of
navsim_quick.yaml into docs/01_framework_comparison.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

import learning_compare
import memory
from documents import COMPARISON

from vla_models.training.metrics import read_metrics

RESULTS = Path(__file__).parent / "results"
SHIMS = RESULTS.parents[1] / "tests" / "frameworks"
COMPARED = "navsim_quick"
"""The configuration of which docs/01 has the comparison."""
LABELS = {"rl": "RL", "pdm_closed": "PDM-Closed", "rule_based": "rule-based"}


def run(config: Path, seed: int, overrides: list[str], output: Path) -> dict[str, Any]:
    """One training run; its summary.json, and what was seen of it besides."""
    framework = next((o.split("=")[1] for o in overrides if o.startswith("framework=")), "")
    name = "-".join(filter(None, ("learning", config.stem, framework, f"seed{seed}")))  # runs beside it have other names
    earlier = set(output.glob(f"{name}-*"))
    command = [sys.executable, "-m", "vla_models", "train", str(config), f"seed={seed}", f"name={name}", f"output_dir={output}"]
    memory_mib = memory.run([*command, *overrides])
    (folder,) = set(output.glob(f"{name}-*")) - earlier
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary | {"run": str(folder), "memory_mib": memory_mib} | learning_compare.of_run(read_metrics(folder))


def on_cpu(framework: str) -> bool:
    """Put the tests' shim in place if ``framework`` needs one here; whether it does."""
    import torch

    folder = SHIMS / framework
    if torch.cuda.is_available() or not (folder / "cpu_shim.py").exists():
        return False
    os.environ |= json.loads((folder / "cpu_shim.json").read_text())
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    return True


def table(summaries: list[dict[str, Any]]) -> str:
    """A Markdown table: a row a seed, and the means. NavSim's scores are 0 to 1, Bench2Drive's driving scores 0 to 100."""
    columns = list(summaries[0]["heldout"])
    digits = 1 if summaries[0]["env"] == "bench2drive" else 3
    lines = [
        "| seed | " + " | ".join(LABELS.get(c, c.replace("_", " ")) for c in columns) + " | RL - imitation | minutes |",
        "|---" * (len(columns) + 3) + "|",
    ]
    for label, rows in [*((str(s["seed"]), [s]) for s in summaries), ("mean", summaries)]:
        held = {c: mean(r["heldout"][c] for r in rows) for c in columns}
        cells = [f"{held[c]:.{digits}f}" for c in columns] + [f"{held['rl'] - held['imitation']:+.{digits}f}"]
        lines.append(f"| {label} | " + " | ".join(cells) + f" | {mean(r['wall_s'] for r in rows) / 60:.1f} |")
    return "\n".join(lines)


def compare(config: Path) -> None:
    """Print the table and draw the plot of all frameworks."""
    results = learning_compare.read(RESULTS, config.stem)
    if not results:
        raise SystemExit(f"nothing was measured with {config.name} yet: there is no {RESULTS}/learning_{config.stem}*.json")
    print(learning_compare.table(results))
    curves = {name: result for name, result in results.items() if any(seed.get("curve") for seed in result["seeds"])}
    if not curves:
        raise SystemExit("\nno plot: these results are from before learning curves were kept; measure again")
    path = RESULTS / f"learning_{config.stem}.svg"
    learning_compare.draw(curves, path, config.stem)
    print(f"\nwritten to {path}")
    if config.stem == COMPARED:
        for document in COMPARISON:
            text = document.read_text(encoding="utf-8")
            document.write_text(learning_compare.document(text, results, config.stem), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", default=[], help="key=value, as for vla-models train")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--output", type=Path, default=Path("runs"))
    parser.add_argument("--framework", help="train in this framework instead of the configuration's")
    parser.add_argument("--compare", action="store_true", help="compare what was measured, and run nothing")
    args = parser.parse_args()

    if args.compare:
        compare(args.config)
        return
    threads = max(1, len(os.sched_getaffinity(0)) // args.jobs)
    overrides = [*args.overrides, f"training.threads={threads}"]
    shim = False
    if args.framework:
        overrides.append(f"framework={args.framework}")
        shim = on_cpu(args.framework)
    with ThreadPoolExecutor(args.jobs) as pool:  # threads only wait for the processes
        summaries = list(pool.map(lambda seed: run(args.config, seed, overrides, args.output), args.seeds))
    print(table(summaries))
    RESULTS.mkdir(exist_ok=True)
    result = {
        "config": args.config.name,
        "overrides": overrides,
        "jobs": args.jobs,
        "cpu_shim": shim,
        "machine": {"cores": len(os.sched_getaffinity(0)), "processor": platform.processor() or platform.machine()},
        "seeds": summaries,
    }
    suffix = f"_{args.framework}" if args.framework else ""
    path = RESULTS / f"learning_{args.config.stem}{suffix}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
