"""A framework's run in the folder of a ``local`` one: warm start, log, checkpoints, resuming, results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import visible_scenes

from vla_models.config import VLAConfig
from vla_models.errors import CheckpointError, ConfigError
from vla_models.frameworks import run_folder
from vla_models.frameworks.run_folder import FrameworkRun
from vla_models.interface import VLAForDriving
from vla_models.training.metrics import read_metrics

SMALL = {"dim": 16, "layers": 1, "heads": 2, "image_size": [32, 64]}


@pytest.fixture(autouse=True)
def golden_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        run_folder, "build_scenes", lambda config, part: visible_scenes(6)[:4] if part == "train" else visible_scenes(6)[4:]
    )


def config(folder: Path, *overrides: str) -> VLAConfig:
    return VLAConfig.from_dict(
        {
            "framework": "rlinf", "output_dir": str(folder), "model": {"options": SMALL},
            "environment": {"train_scenes": 4, "heldout_scenes": 2}, "algorithm": {"group_size": 2},
            "training": {"steps": 3, "scenes_per_step": 2, "threads": 1, "imitation": {"steps": 2, "batch_size": 2}},
        },
        overrides,
    )  # fmt: skip


def test_a_run_is_complete_and_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    settings = config(tmp_path)
    run = FrameworkRun(settings)
    run.prepare()
    assert run.done() == 0
    start = {name: value.clone() for name, value in run.model.state_dict().items()}
    for step in (1, 2):
        run.write("rl", step, {"reward_mean": 0.1 * step, "nothing": float("nan")})
        with torch.no_grad():
            moved = {k: v + 0.01 * step if v.is_floating_point() else v for k, v in run.model.state_dict().items()}
        if step == 1:
            kept = run.keep_checkpoint(step, moved)
            run.write("eval", step, {"name": "rl", "score": 0.5})
    saved = VLAForDriving.from_pretrained(kept).state_dict()
    assert all(torch.allclose(saved[name], value + 0.01) for name, value in start.items() if value.is_floating_point())

    # the process ends after the second update, whose checkpoint was never written
    again = FrameworkRun(settings, run.path)
    assert again.done() == 1
    again.prepare()
    rows = [(row["phase"], row["step"]) for row in read_metrics(run.path)]
    assert rows == [("imitation", 1), ("imitation", 2), ("eval", 0), ("rl", 1), ("eval", 1)]
    assert "nothing" not in read_metrics(run.path)[3]
    assert all(torch.equal(again.model.state_dict()[name], value) for name, value in start.items())
    again.write("rl", 3, {"reward_mean": 0.3})
    again.keep_checkpoint(3, saved)
    again.write("eval", 3, {"name": "rl", "score": 0.9})  # left to the evaluation on all scenes
    assert again.finish(3, dict) == run.path
    evaluated = [row for row in read_metrics(run.path) if row["phase"] == "eval"]
    assert [row["step"] for row in evaluated] == [0, 1, 3]
    assert evaluated[-1]["score"] != 0.9
    summary = json.loads((run.path / "summary.json").read_text())
    assert summary["framework"] == "rlinf"
    assert summary["heldout"].keys() == {"constant_velocity", "imitation", "rl", "pdm_closed"}
    assert (run.path / "report.html").stat().st_size > 0


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    run = FrameworkRun(config(tmp_path))
    with pytest.raises(CheckpointError, match="does not fit TinyVLA: 1 tensors have no counterpart, for example 'stranger'"):
        run.keep_checkpoint(1, {**run.model.state_dict(), "stranger": torch.zeros(1)})
    assert run.done() == 0


def test_other_environments_start_from_a_model_and_keep_the_frameworks_evaluation(tmp_path: Path, registry: Any) -> None:
    registry.register_env_adapter("my_city", "rlinf", object)
    toy = ["environment.type=my_city"]
    with pytest.raises(ConfigError, match=r"training\.imitation\.steps: there is nobody to imitate in my_city"):
        FrameworkRun(config(tmp_path, *toy)).prepare()
    settings = config(tmp_path, *toy, "training.imitation.steps=0")
    run = FrameworkRun(settings)
    run.prepare()
    run.write("rl", 1, {"reward_mean": 1.0})
    run.keep_checkpoint(1, run.model.state_dict())
    again = FrameworkRun(settings, run.path)
    again.prepare()
    assert [(row["phase"], row["step"]) for row in read_metrics(run.path)] == [("rl", 1)]
    again.finish(3, lambda: {"score": 0.25, "return": 2.0})
    assert json.loads((run.path / "summary.json").read_text())["heldout"] == {"rl": 0.25}
    VLAForDriving.from_pretrained(run.path / "checkpoints" / "model")


def test_a_run_is_resumed_with_its_own_configuration(tmp_path: Path) -> None:
    run = FrameworkRun(config(tmp_path))
    with pytest.raises(ConfigError, match="seed"):
        FrameworkRun(config(tmp_path, "seed=1"), run.path)
