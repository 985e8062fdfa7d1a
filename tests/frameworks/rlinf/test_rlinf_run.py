"""RLinf's real runner, from a configuration to a finished run folder, on a CPU (with the shim, which only tests have)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import loop
import numpy as np
import pytest
from runs import Done, changed, finished, weights

from vla_models.config import VLAConfig
from vla_models.training.metrics import read_metrics

HERE = Path(__file__).parent
ROOT = HERE.parent.parent.parent

pytestmark = pytest.mark.slow


def config(environment: str, algorithm: str) -> VLAConfig:
    navsim = environment == "navsim"
    return VLAConfig.from_dict(
        {
            "framework": "rlinf",
            "name": "small",
            "model": {"name": "tiny_vla", "options": {"dim": 32, "layers": 1, "heads": 2, "image_size": [32, 64]}},
            "environment": {"type": environment, "train_scenes": 4, "heldout_scenes": 2} | ({} if navsim else loop.BENCH2DRIVE),
            "algorithm": {"name": algorithm, "group_size": 4, "minibatches": 2, "entropy_coef": 0.001},
            "training": {
                "steps": 2, "scenes_per_step": 2, "warmup_steps": 0, "eval_every": 1, "checkpoint_every": 1, "threads": 1,
                "optimizer": {"lr": 1e-3}, "imitation": {"steps": 2 if navsim else 0, "batch_size": 4},
            },
        }
    )  # fmt: skip


def run(settings: VLAConfig, folder: Path, *arguments: str, extension: str = "cpu_shim") -> Done:
    settings.model_copy(update={"output_dir": str(folder / "runs")}).to_yaml(folder / "config.yaml")
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "VLA_MODELS_SOURCES")}
    environment |= {"RLINF_EXT_MODULE": extension, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{HERE}"}
    command = [sys.executable, str(HERE / "small_run.py"), str(folder / "config.yaml"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800, check=False)


def strangers() -> VLAConfig:
    """examples/bring_your_own_model.py: 60 lines outside the package, known by its decorator alone."""
    settings = config("bench2drive", "grpo")
    model = settings.model.model_copy(update={"name": "my_vla", "options": {"dim": 16}})
    training = settings.training.model_copy(update={"steps": 1, "eval_every": 0})
    algorithm = settings.algorithm.model_copy(update={"entropy_coef": 0.0})
    return settings.model_copy(update={"model": model, "training": training, "algorithm": algorithm})


STARTS = {
    "test_grpo_in_navsim_saves_resumes_and_evaluates": partial(run, config("navsim", "grpo")),
    "test_ppo_in_bench2drive": partial(run, config("bench2drive", "ppo")),
    "test_a_strangers_model_trains_without_an_adapter_of_its_own": partial(run, strangers()),
}


def test_grpo_in_navsim_saves_resumes_and_evaluates(folder: Path) -> None:
    for name in ("config.yaml", "metrics.jsonl", "heldout.npz", "summary.json", "report.html", "rlinf/native.yaml"):
        assert (folder / name).stat().st_size > 0, name
    rows = read_metrics(folder)
    learned = [row for row in rows if row["phase"] == "rl"]
    assert [row["step"] for row in learned] == [1, 2]
    for row in learned:
        assert abs(row["ratio"] - 1.0) < 0.2
        assert row["invalid"] == 0
        assert row["grad_norm"] > 0
    start, first, last = (weights(folder / "checkpoints" / n) for n in ("imitation", "update-0000001", "update-0000002"))
    assert changed(start, first) > 1e-5
    assert changed(first, last) > 1e-5
    assert changed(weights(folder / "checkpoints" / "model"), last) == 0.0
    evaluated = [row for row in rows if row["phase"] == "eval"]
    assert [(row["name"], row["step"]) for row in evaluated] == [("imitation", 0), ("rl", 1), ("rl", 2)]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["heldout"]["rl"] == pytest.approx(evaluated[-1]["score"])

    # as if it had been killed while the second checkpoint was written
    shutil.rmtree(folder / "checkpoints" / "update-0000002")
    shutil.rmtree(folder / "checkpoints" / "model")
    assert finished(run(config("navsim", "grpo"), folder.parents[1], "--resume", str(folder))) == folder
    again = read_metrics(folder)
    assert [(row["phase"], row["step"]) for row in again] == [(row["phase"], row["step"]) for row in rows]
    assert changed(weights(folder / "checkpoints" / "update-0000002"), last) < 1e-6


def test_ppo_in_bench2drive(folder: Path) -> None:
    learned = [row for row in read_metrics(folder) if row["phase"] == "rl"]
    assert [row["step"] for row in learned] == [1, 2]
    assert all(np.isfinite(row["value_loss"]) for row in learned)
    start, last = (weights(folder / "checkpoints" / name) for name in ("imitation", "update-0000002"))
    assert changed(start, last) > 1e-5
    assert any(name.startswith("value.") and changed({name: start[name]}, last) > 1e-5 for name in start)
    assert "driving_score" in json.loads((folder / "summary.json").read_text())["subscores"]["rl"]


def test_a_strangers_model_trains_without_an_adapter_of_its_own(folder: Path) -> None:
    assert [row["step"] for row in read_metrics(folder) if row["phase"] == "rl"] == [1]
    start, last = (weights(folder / "checkpoints" / name) for name in ("imitation", "update-0000001"))
    assert changed(start, last) > 1e-5


def test_an_extension_that_cannot_be_loaded_stops_the_run(tmp_path: Path) -> None:
    done = run(config("navsim", "grpo"), tmp_path, extension="no_such_plugin")
    assert done.returncode != 0
    assert "RLINF_EXT_MODULE=no_such_plugin cannot be loaded" in done.stderr
    assert not (tmp_path / "runs").exists()
