"""The example that brings a model of its own, run as a user runs it (with fewer scenes and steps)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "bring_your_own_model.py"


@pytest.mark.slow
def test_the_example_trains_from_nothing(tmp_path: Path) -> None:
    code = EXAMPLE.read_text()
    for full, small in (
        ('"train_scenes": 256, "heldout_scenes": 60', '"train_scenes": 32, "heldout_scenes": 4'),
        ('"imitation": {"steps": 150}, "steps": 40', '"imitation": {"steps": 4}, "steps": 3'),
    ):
        assert full in code
        code = code.replace(full, small)
    (tmp_path / "example.py").write_text(code)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    run = tmp_path / ran.stdout.splitlines()[-1]
    assert (run / "report.html").is_file()
    assert set(json.loads((run / "summary.json").read_text())["heldout"]) >= {"imitation", "rl"}
