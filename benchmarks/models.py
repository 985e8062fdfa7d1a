"""What each head of ``tiny_vla`` costs, on one thread.

    python benchmarks/models.py [--prompts 16] [--samples 16] [--heads tokens gaussian …]

Each head runs in a process of its own: decisions/s (``predict``: pictures and text in, plans and records out), training
samples/s (``evaluate_actions``, backward, AdamW), peak memory, and two things that must hold: ``evaluate_actions`` costs no
more than one ``forward`` over the same rows, and the number of Python calls does not grow with the number of samples. Times are
CPU time of the thread, the best of several; ratios are to the default head, kinematic tokens. Writes
``benchmarks/results/models.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
HEADS: dict[str, dict[str, Any]] = {
    "tokens (kinematic)": {"type": "tokens"},
    "tokens (bins)": {"type": "tokens", "codebook": "bins"},
    "tokens (256 trajectories)": {"type": "tokens", "codebook": {"trajectories": 256}},
    "gaussian": {"type": "gaussian"},
    "waypoint": {"type": "waypoint"},
    "flow (5 steps)": {"type": "flow"},
    "flow (5 steps, 2 chosen)": {"type": "flow", "chosen_steps": 2},
    "ddim (5 steps)": {"type": "ddim"},
}
DEFAULT = "tokens (kinematic)"


def best(work: Callable[[], Any], repeats: int = 5) -> float:
    """Least CPU time of this thread that one call took, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        started = time.thread_time()
        work()
        times.append(time.thread_time() - started)
    return min(times)


def python_calls(work: Callable[[], Any]) -> int:
    """Python functions called in ``work``."""
    count = 0

    def counting(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(counting)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def measure(name: str, prompts: int, samples: int) -> dict[str, float]:
    """One head, in this process."""
    import numpy as np
    import torch

    from vla_models.inputs import EGO_FEATURES, VLAInput
    from vla_models.model_registry import create_model

    torch.set_num_threads(1)
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    model = create_model("tiny_vla", policy_head=HEADS[name])
    inputs = [
        VLAInput(
            text="Drive safely to the destination",
            images={"front": random.integers(0, 256, (96, 160, 3), dtype=np.uint8)},
            ego_state={feature: float(random.uniform(0, 5)) for feature in EGO_FEATURES},
            route=np.cumsum(random.uniform(0, 5, (10, 2)), axis=0).astype(np.float32),
            command="straight",
        )
        for _ in range(prompts)
    ]
    rows = prompts * samples
    drawn = model.predict(inputs, num_samples=samples, generator=torch.Generator().manual_seed(0))
    record: dict[str, torch.Tensor] = drawn.record or {}
    apart = {**record, "prompt_id": torch.arange(rows)}  # no row shares its prompt: what a forward over all rows computes
    seen = {key: record[key] for key in ("input_ids", "attention_mask", "pixel_values", "ego")}
    if model.codebook is not None:  # said step by step: forward sees all steps but the last
        seen["action_tokens"] = record["action_tokens"][:, :-1]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        (-model.evaluate_actions(record)["logprobs"].mean()).backward()
        optimizer.step()

    with torch.no_grad():
        forward, evaluate = best(lambda: model(**seen), 3), best(lambda: model.evaluate_actions(apart), 3)
    few = {key: part[: 2 * samples] for key, part in record.items()}
    calls = [python_calls(lambda r=r: model.evaluate_actions(r)) for r in (few, record)]
    calls += [python_calls(lambda n=n: model.predict(inputs, num_samples=n)) for n in (2, samples)]
    return {
        "decisions_per_s": rows / best(lambda: model.predict(inputs, num_samples=samples)),
        "training_samples_per_s": rows / best(train),
        "evaluate_over_forward": evaluate / forward,
        "calls_evaluate_few": calls[0],
        "calls_evaluate_all": calls[1],
        "calls_predict_few": calls[2],
        "calls_predict_all": calls[3],
        "parameters": float(sum(p.numel() for p in model.parameters())),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def table(results: dict[str, dict[str, float]]) -> str:
    """Markdown; ratios to the default head in brackets."""
    lines = [
        "| head | decisions/s | training samples/s | peak MiB | evaluate / forward | Python calls, evaluate 2 → all prompts | "
        "predict 2 → all samples |",
        "|---|---|---|---|---|---|---|",
    ]
    base = results.get(DEFAULT)
    for name, r in results.items():
        cells = []
        for key in ("decisions_per_s", "training_samples_per_s"):
            cells.append(f"{r[key]:,.0f}" + (f" ({r[key] / base[key]:.1f}×)" if base else ""))
        calls = [f"{r[f'calls_{kind}_few']:.0f} → {r[f'calls_{kind}_all']:.0f}" for kind in ("evaluate", "predict")]
        cells += [f"{r['peak_memory_mib']:.0f}", f"{r['evaluate_over_forward']:.2f}", *calls]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--samples", type=int, default=16, help="plans for each prompt")
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS), metavar="HEAD")
    parser.add_argument("--one", choices=HEADS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.prompts, args.samples)))
        return
    results: dict[str, dict[str, float]] = {}
    for name in args.heads:
        command = [sys.executable, __file__, "--one", name, "--prompts", str(args.prompts), "--samples", str(args.samples)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
        results[name] = json.loads(done.stdout.splitlines()[-1])
        print(name, "done", flush=True)
    print(table(results))
    RESULTS.mkdir(exist_ok=True)
    machine = {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()}
    content = {"prompts": args.prompts, "samples": args.samples, "threads": 1, "machine": machine, "heads": results}
    (RESULTS / "models.json").write_text(json.dumps(content, indent=2) + "\n")
    print(f"\nwritten to {RESULTS / 'models.json'}")


if __name__ == "__main__":
    main()
