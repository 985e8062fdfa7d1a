"""Learning runs of several frameworks side by side: ``python benchmarks/learning.py <config> --compare``.

Reads ``benchmarks/results/learning_<config>.json`` and ``…_<framework>.json`` (``benchmarks/learning.py`` writes them;
``…_local.json`` stands before ``learning_<config>.json``, which may be another number of updates), prints one table, and draws
the learning curves into ``benchmarks/results/learning_<config>.svg``. ``document`` puts the table into docs/01. Seconds come
from each run's own rows of metrics.jsonl, whose columns have the same names in all frameworks; where one has no such column,
the cell says so.
"""

from __future__ import annotations

import io
import json
import tokenize
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any, Final

from documents import fill

PACKAGE: Final = Path(__file__).parent.parent / "vla_models" / "frameworks"
PARTS: Final = ("start_up", "rollout", "environment", "training", "sync")
"""Of a run's reinforcement learning: until the first update could begin, sampling and driving together, of that the
environment, optimiser steps with what is recomputed for them, and handing over weights. Evaluations and checkpoints are in none
of them."""
COLUMNS: Final = {
    "rollout": ("rollout_s", "sample_s", "score_s"), "environment": ("score_s",), "training": ("update_s", "replay_s"),
    "sync": ("sync_s",),
}  # fmt: skip
"""Part -> columns that add up to it; ``rollout_s`` is both others together where it stands."""


def of_run(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Learning curve and seconds of a run, from the rows of its metrics.jsonl."""
    curve = [[row["step"], row["score"]] for row in rows if row["phase"] == "eval" and "score" in row]
    learned = [(i, row) for i, row in enumerate(rows) if row["phase"] == "rl"]
    return {"curve": curve, "seconds": {part: _seconds(part, rows, learned) for part in PARTS} if learned else {}}


def _seconds(part: str, rows: Sequence[Mapping[str, Any]], learned: Sequence[tuple[int, Mapping[str, Any]]]) -> float | None:
    if part == "start_up":
        first, row = learned[0]
        before = rows[first - 1]["wall_s"] if first else 0.0
        usual = [b["wall_s"] - rows[i - 1]["wall_s"] for i, b in learned[1:] if rows[i - 1]["phase"] == "rl"]
        return max(0.0, row["wall_s"] - before - (median(usual) if usual else 0.0))
    names = COLUMNS[part]
    if part == "rollout":
        names = names[:1] if names[0] in learned[0][1] else names[1:]
    given = [row[name] for _, row in learned for name in names if name in row]
    return float(sum(given)) if given else None


def lines_of_code(framework: str) -> int:
    """Lines of our adapter that hold code: without blank lines, comments and docstrings. 0 for ``local``, which needs none."""
    return sum(_code(file.read_text()) for file in sorted((PACKAGE / framework).glob("*.py"))) if framework != "local" else 0


def _code(text: str) -> int:
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    fresh = True  # at the beginning of a statement
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in skipped:
            fresh = fresh or token.type == tokenize.NEWLINE
        elif not (fresh and token.type == tokenize.STRING):
            lines.update(range(token.start[0], token.end[0] + 1))
            fresh = False
    return len(lines)


def read(results: Path, config: str) -> dict[str, dict[str, Any]]:
    """What was measured with a configuration, by framework: ``local`` first."""
    found = {}
    for file in sorted(results.glob(f"learning_{config}*.json")):
        suffix = file.stem.removeprefix(f"learning_{config}")
        if not suffix or suffix.startswith("_"):
            found[suffix.removeprefix("_") or "local"] = json.loads(file.read_text())
    return dict(sorted(found.items(), key=lambda item: (item[0] != "local", item[0])))


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: a row a framework, means over its seeds."""
    head = [
        "framework",
        "changed",
        "seeds",
        "held-out before",
        "after",
        "minutes",
        *(f"{p.replace('_', '-')} s" for p in PARTS),
    ]
    head += ["memory MiB", "adapter lines"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, result in results.items():
        seeds = result["seeds"]
        cells = [name + (" (CPU shim)" if result.get("cpu_shim") else ""), _changed(result), str(len(seeds))]
        cells += [f"{mean(s['heldout'][when] for s in seeds):.3f}" for when in ("imitation", "rl")]
        cells.append(f"{mean(s['wall_s'] for s in seeds) / 60:.1f}")
        for part in PARTS:
            given = [s["seconds"][part] for s in seeds if s.get("seconds", {}).get(part) is not None]
            cells.append(f"{mean(given):.0f}" if given else "not logged")
        memory = [s["memory_mib"] for s in seeds if "memory_mib" in s]
        cells += [f"{max(memory):.0f}" if memory else "not measured", str(round(lines_of_code(name), -2))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _changed(result: Mapping[str, Any]) -> str:
    """What of the configuration was changed, but for what decides nothing about learning."""
    silent = ("framework=", "training.threads=", "training.eval_every=", "training.checkpoint_every=")
    said = [override.removeprefix("training.") for override in result["overrides"] if not override.startswith(silent)]
    return ", ".join(f"`{override}`" for override in said)


def document(text: str, results: Mapping[str, Mapping[str, Any]], config: str) -> str:
    """``docs/01_framework_comparison.md`` with the table as it is now."""
    return fill(text, "runs", f"python benchmarks/learning.py configs/{config}.yaml --compare", table(results))


def draw(results: Mapping[str, Mapping[str, Any]], path: Path, title: str) -> None:
    """Learning curves of all frameworks: thin lines are seeds, the thick one is their mean where all have been evaluated."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": title})  # text as text, and the same file each time
    figure, axes = plt.subplots(figsize=(7.0, 4.0))
    for colour, (name, result) in enumerate(results.items()):
        curves = [dict(map(tuple, seed["curve"])) for seed in result["seeds"] if seed.get("curve")]
        for curve in curves:
            axes.plot(list(curve), list(curve.values()), color=f"C{colour}", linewidth=0.7, alpha=0.5)
        steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
        if steps:
            heights = [mean(curve[step] for curve in curves) for step in steps]
            axes.plot(steps, heights, color=f"C{colour}", linewidth=2.0, marker="o", markersize=3, label=name)
    axes.set_xlabel("updates")
    axes.set_ylabel("held-out score")
    axes.set_title(title)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
