"""The comparison of learning runs over frameworks (benchmarks/learning_compare.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import parity_checks  # noqa: F401 - finds benchmarks/
import pytest
from documents import COMPARISON
from learning import COMPARED, RESULTS
from learning_compare import document, draw, lines_of_code, of_run, read, table

OVERRIDES = ["training.steps=9", "training.eval_every=3", "training.threads=1", "framework=verl"]


def rows(*learned: dict[str, Any]) -> list[dict[str, Any]]:
    """A warm start of 10 s, 30 s until the first update, and an update every 2 s."""
    at = [{"phase": "eval", "step": 0, "wall_s": 10.0, "score": 0.5}]
    at += [{"phase": "rl", "step": i + 1, "wall_s": 42.0 + 2.0 * i, **row} for i, row in enumerate(learned)]
    return [*at, {"phase": "eval", "step": len(learned), "wall_s": 60.0, "score": 0.7}]


def test_a_run_is_split_by_its_own_columns() -> None:
    local = of_run(rows(*[{"sample_s": 0.5, "score_s": 0.25, "update_s": 1.0}] * 3))
    assert local["curve"] == [[0, 0.5], [3, 0.7]]
    assert local["seconds"] == {"start_up": 30.0, "rollout": 2.25, "environment": 0.75, "training": 3.0, "sync": None}
    other = of_run(rows(*[{"rollout_s": 1.0, "sample_s": 0.9, "update_s": 0.5, "replay_s": 0.5, "sync_s": 0.125}] * 2))
    assert other["seconds"] == {"start_up": 30.0, "rollout": 2.0, "environment": None, "training": 2.0, "sync": 0.25}
    assert of_run([{"phase": "eval", "step": 0, "wall_s": 1.0, "score": 0.1}])["seconds"] == {}


def test_results_of_a_configuration_become_a_table_and_a_plot(tmp_path: Path) -> None:
    seed = {"heldout": {"imitation": 0.5, "rl": 0.7}, "wall_s": 120.0, **of_run(rows({"sample_s": 1.0}, {"sample_s": 2.0}))}
    for name, shim in (("", False), ("_verl", True)):
        seeds = [{**seed, "memory_mib": 900.0}, {**seed, "memory_mib": 1000.4}]
        result = {"seeds": [seed, seed] if shim else seeds, "cpu_shim": shim, "overrides": OVERRIDES}
        (tmp_path / f"learning_quick{name}.json").write_text(json.dumps(result))
    (tmp_path / "learning_quicker.json").write_text("{}")
    results = read(tmp_path, "quick")
    assert list(results) == ["local", "verl"]
    _, _, local, verl = table(results).splitlines()
    assert local == "| local | `steps=9` | 2 | 0.500 | 0.700 | 2.0 | 30 | 3 | not logged | not logged | not logged | 1000 | 0 |"
    assert verl.startswith("| verl (CPU shim) | `steps=9` | 2 | 0.500 |")
    assert "| not measured |" in verl  # results from before memory was looked at
    pytest.importorskip("matplotlib")
    draw(results, tmp_path / "plot.svg", "quick")
    drawn = (tmp_path / "plot.svg").read_text()
    for said in ("held-out score", "updates", "verl", "local"):
        assert said in drawn


def test_the_document_has_these_numbers() -> None:
    for path in COMPARISON:
        text = path.read_text(encoding="utf-8")
        assert document(text, read(RESULTS, COMPARED), COMPARED) == text, "run benchmarks/learning.py … --compare"


def test_only_code_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import learning_compare

    monkeypatch.setattr(learning_compare, "PACKAGE", tmp_path)
    (tmp_path / "some").mkdir()
    text = '''"""Two
lines."""

# why
x = (
    1,
)


def f():
    """Doc."""
    return "text"
'''
    (tmp_path / "some" / "a.py").write_text(text)
    assert lines_of_code("some") == 5
    assert lines_of_code("local") == 0
