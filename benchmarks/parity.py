"""One stored batch through each framework's own advantage and policy-loss code, by way of our adapters.

    python benchmarks/parity.py store         (framework local: samples, scores, and writes benchmarks/parities/batch.npz)
    python benchmarks/parity.py local         (the reference's numbers)
    python benchmarks/parity.py rlinf         (in that framework's environment; also verl, areal, siirl)
    python benchmarks/parity.py table         (merges benchmarks/results/parity_*.json into docs/01 and its twin)

The documented setting (``parities.batch.configuration``): GRPO with groups of four, normalised advantages, clip 0.2/0.28, one
minibatch and one pass, no KL, no entropy bonus, no dual clip, no value clip, old log-probabilities of sampling. All is compared
with ``local`` in the same process: advantages, ratios, loss and the gradient of every weight. Where a framework differs by
design it is measured twice, as it runs and with its switch, or with what is known of the difference taken out.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

from documents import COMPARISON, fill  # noqa: E402

RESULTS: Final = HERE / "results"
EQUAL: Final = 1e-5
"""As in ``parities.compare``, which needs torch; ``table`` does not."""
FRAMEWORKS: Final = ("rlinf", "verl", "areal", "siirl")


def run(framework: str) -> dict[str, Any]:
    """Everything that is compared, in that framework's environment."""
    from parities import batch, compare

    module = importlib.import_module(f"parities.{framework}")
    cases: dict[str, Any] = {}
    with module.ready():
        for case, failed in [*((name, True) for name in batch.CASES), ("decision", False)]:
            stored = batch.read(case) if failed else batch.read(case).without_failure()
            for algorithm in module.ALGORITHMS:
                found = module.outcome(stored, algorithm)
                apart = compare.differences(compare.local(stored, algorithm), found)
                left = compare.differences(module.expected(stored, algorithm), found)
                numbers = compare.as_json(case, found) if failed else {}
                key = f"{case}/{'failed' if failed else 'whole'}/{algorithm}"
                cases[key] = {"apart": _finite(apart), "left": left, **numbers}
                print(f"{key}: {apart}, left {left}", flush=True)
        found_differences = module.differences()
    return {
        "framework": framework,
        "versions": compare.versions(*module.PACKAGES),
        "cases": cases,
        "differences": [asdict(d) | {"explained": d.explained} for d in found_differences],
    }


def run_local() -> dict[str, Any]:
    """The reference's own numbers."""
    from parities import batch, compare

    cases = {
        f"{case}/failed/{algorithm}": compare.as_json(case, compare.local(batch.read(case), algorithm))
        for case in batch.CASES
        for algorithm in ("grpo", "ppo")
    }
    return {"framework": "local", "versions": compare.versions("vla_models"), "cases": cases}


def _finite(apart: dict[str, float]) -> dict[str, float | None]:
    """None where two things are of different shapes, and cannot be compared."""
    return {name: value if math.isfinite(value) else None for name, value in apart.items()}


def agreement(results: dict[str, dict[str, Any]]) -> str:
    """Markdown: the largest difference to ``local`` of every quantity, and what is left of it beside what is by design."""
    lines = ["| case | algorithm | quantity | " + " | ".join(results) + " |", "|---|---|---|" + "---|" * len(results)]
    keys = list(dict.fromkeys(key for r in results.values() for key in r["cases"]))
    for key in keys:
        case, kind, algorithm = key.split("/")
        label = f"{case}{', no world failed' if kind == 'whole' else ''}"
        for quantity in dict.fromkeys(q for r in results.values() for q in r["cases"].get(key, {}).get("apart", {})):
            cells = [_cell(r["cases"].get(key), quantity) for r in results.values()]
            lines.append(f"| {label} | {algorithm} | {quantity.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(case: dict[str, Any] | None, quantity: str) -> str:
    if case is None:
        return "refused"
    apart, left = case["apart"][quantity], _number(case["left"][quantity])
    if apart is None:
        return f"other level → {left}"
    return f"{_number(apart)} → {left}" if apart > EQUAL else _number(apart)


def _number(value: float) -> str:
    return "0" if value == 0 else f"{value:.0e}"


def by_design(results: dict[str, dict[str, Any]]) -> str:
    """Markdown: every difference, its place and its size."""
    lines = ["| framework | difference | where | what makes it agree | as it runs | then |", "|---|---|---|---|---|---|"]
    for name, r in results.items():
        for d in r["differences"]:
            lines.append(
                f"| {name} {r['versions'][name]} | **{d['name']}**: {d['what']} | `{d['where']}` | {d['switch']} | "
                f"{d['before']:.1e} | {d['after']:.1e} ({d['how']}) |"
            )
    return "\n".join(lines)


def document(text: str, results: dict[str, dict[str, Any]]) -> str:
    """``docs/01_framework_comparison.md`` with both tables as they are now."""
    for name, made in (("agreement", agreement(results)), ("differences", by_design(results))):
        text = fill(text, name, "python benchmarks/parity.py table", made)
    return text


def stored_results() -> dict[str, dict[str, Any]]:
    """What was written, by framework."""
    files = {name: RESULTS / f"parity_{name}.json" for name in FRAMEWORKS}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("store", "local", *FRAMEWORKS, "table"))
    what = parser.parse_args().what
    if what == "table":
        for path in COMPARISON:
            path.write_text(document(path.read_text(encoding="utf-8"), stored_results()), encoding="utf-8")
            print(f"written to {path}")
        return
    if what == "store":
        from parities import batch

        batch.write()
        print(f"written to {batch.STORE} ({batch.STORE.stat().st_size / 1000:.0f} kB)")
        return
    result = run_local() if what == "local" else run(what)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"parity_{what}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
