"""verl's real trainer, from a configuration to a finished run folder, on a CPU (with the shim, which only tests have)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import cpu_shim
import numpy as np
import pytest
import torch
from golden import visible_scenes
from runs import Done, changed, finished, weights

from vla_models.config import VLAConfig
from vla_models.model_registry import create_model
from vla_models.training.metrics import read_metrics

HERE = Path(__file__).parent
ROOT = HERE.parent.parent.parent
BENCH2DRIVE = {
    "train_towns": ["Town01"], "heldout_towns": ["Town02"], "max_ticks": 40, "camera": {"width": 32, "height": 24},
    "scenario_types": ["DynamicObjectCrossing", "VanillaSignalizedTurnEncounterRedLight"],
}  # fmt: skip
"""Short episodes of four decisions on real routes."""
WEIGHTS = {"progress": 1.0, "off_road": -1.0, "wrong_way": -1.0, "collision": -0.5, "ttc": 0.5, "comfort": 0.3}
"""Of a reward that the plans of a group hardly ever share: samples differ from run to run, and equal ones teach nothing."""
TOKENS = {
    "vla_models": {"route": "tokens"},
    "actor_rollout_ref": {
        "model": {
            "use_remove_padding": False, "enable_gradient_checkpointing": False,
            "override_config": {"attn_implementation": "sdpa"},
        },
        "actor": {"fsdp_config": {"mixed_precision": {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}}},
        "rollout": {"name": "cpu_tokens", "free_cache_engine": False},
    },
}  # fmt: skip

PLANNER: dict[str, Any] = {
    "language_model": {"base_model": "tiny:qwen2_5_vl"}, "policy_head": {"type": "tokens"}, "options": {"image_size": [56, 56]},
}  # fmt: skip

pytestmark = pytest.mark.slow


def config(environment: str, kind: str, model: dict[str, Any], **more: Any) -> VLAConfig:
    navsim = environment == "navsim"
    return VLAConfig.from_dict(
        {
            "framework": "verl",
            "name": "small",
            "model": model,
            "environment": {"type": environment, "train_scenes": 4, "heldout_scenes": 2} | ({} if navsim else BENCH2DRIVE),
            "algorithm": {"name": kind, "group_size": 4, "minibatches": 2, **more.pop("algorithm", {})},
            "training": {
                "steps": 2, "scenes_per_step": 2, "warmup_steps": 0, "eval_every": 1, "checkpoint_every": 1, "threads": 1,
                "optimizer": {"lr": 1e-3}, "imitation": {"steps": 2 if navsim else 0, "batch_size": 4},
            },
            **more,
        }
    )  # fmt: skip


def planner(folder: Path) -> Path:
    """A checkpoint that writes plans, any of them, with next to no other token between: random weights never write one."""
    model: Any = create_model("hf_vlm", **config("navsim", "grpo", {"name": "hf_vlm", **PLANNER}).model.arguments())
    actions = model.backbone.actions
    with torch.no_grad():  # one coordinate of the hidden state is large wherever text was read, and speaks for action tokens
        model.backbone.model.get_input_embeddings().weight[:, 0] += 1.0
        actions.embedding[:, 0] += 1.0
        actions.output[:, 0] += 2.0
    return Path(model.save_pretrained(folder))


def run(settings: VLAConfig, folder: Path, *arguments: str, modules: str = "cpu_shim", **environment: str) -> Done:
    settings.model_copy(update={"output_dir": str(folder / "runs")}).to_yaml(folder / "config.yaml")
    variables = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "VLA_MODELS_SOURCES", "RANK", "WORLD_SIZE")}
    variables |= cpu_shim.ENVIRONMENT | {"VERL_USE_EXTERNAL_MODULES": modules, "HF_HUB_OFFLINE": "1", **environment}
    variables |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{HERE}"}
    command = [sys.executable, str(HERE / "small_run.py"), str(folder / "config.yaml"), *arguments]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=1800, check=False)


def logged(folder: Path) -> list[dict[str, float]]:
    """What verl itself logged, step by step."""
    rows = [json.loads(line)["data"] for line in (folder / "verl" / "metrics-0.jsonl").read_text().splitlines()]
    return [row for row in rows if "training/global_step" in row]


def weights_arrived(folder: Path) -> None:
    """Every step was sampled with the weights of the step before it, and replayed to the same probabilities."""
    rows = logged(folder)
    assert [row["training/global_step"] for row in rows] == [1, 2]
    for row in rows:
        assert row["training/off_policy/trajectory_staleness_worst/max"] == 0
        assert row["training/rollout_probs_diff_max"] < 1e-5
        assert row["timing_s/update_weights"] > 0


BROKEN = visible_scenes(6)[0].token
"""The scene whose environment raises."""


def record_run(folder: Path, *arguments: str) -> Done:
    model = {"name": "my_vla", "options": {"dim": 32}}  # examples/bring_your_own_model.py, which knows nothing of verl
    settings = config("navsim", "grpo", model, framework_options={"vla_models": {"max_dropped": 0.5}},
                      algorithm={"kl_coef": 0.01}, reward={"type": "driving", "weights": WEIGHTS})  # fmt: skip
    return run(settings, folder, *arguments, VLA_TEST_RAISES=BROKEN)


def token_run(environment: str, folder: Path) -> Done:
    model = {"name": "hf_vlm", "checkpoint_path": str(planner(folder / "planner")), **PLANNER}
    terms = WEIGHTS if environment == "navsim" else {"progress": 1.0, "off_road": -1.0, "comfort": 0.3}
    settings = config(environment, "grpo", model, framework_options=TOKENS, reward={"type": "driving", "weights": terms})
    return run(settings, folder, modules="cpu_shim,cpu_tokens")


STARTS = {
    "test_grpo_in_navsim_saves_resumes_evaluates_and_survives_an_environment_that_raises": record_run,
    "test_ppo_in_bench2drive": partial(
        run, config("bench2drive", "ppo", {"name": "small_gaussian", "options": {"horizon": 8}})
    ),
    "test_tokens_through_verls_own_engine[navsim]": partial(token_run, "navsim"),
    "test_tokens_through_verls_own_engine[bench2drive]": partial(token_run, "bench2drive"),
}


def test_grpo_in_navsim_saves_resumes_evaluates_and_survives_an_environment_that_raises(folder: Path) -> None:
    for name in ("config.yaml", "metrics.jsonl", "heldout.npz", "summary.json", "report.html", "verl/native.yaml"):
        assert (folder / name).stat().st_size > 0, name
    weights_arrived(folder)
    rows = read_metrics(folder)
    learned = [row for row in rows if row["phase"] == "rl"]
    assert [row["step"] for row in learned] == [1, 2]
    assert sorted(row["invalid"] for row in learned) == [0, 4]  # the group of the scene that raises
    notes = [json.loads(line) for line in (folder / "verl" / "dropped.jsonl").read_text().splitlines()]
    assert {note["scene"] for note in notes} == {BROKEN}
    assert all("OSError: the disk is gone" in note["reason"] for note in notes)
    assert all(row["grad_norm"] > 0 for row in learned)
    assert [row["kl"] for row in learned] == pytest.approx([0.0, 0.0], abs=0.1)
    start, first, last = (weights(folder / "checkpoints" / n) for n in ("imitation", "update-0000001", "update-0000002"))
    assert changed(start, first) > 1e-5
    assert changed(first, last) > 1e-5
    assert changed(weights(folder / "checkpoints" / "model"), last) == 0.0
    evaluated = [row for row in rows if row["phase"] == "eval"]
    assert [(row["name"], row["step"]) for row in evaluated] == [("imitation", 0), ("rl", 1), ("rl", 2)]
    assert json.loads((folder / "summary.json").read_text())["heldout"]["rl"] == pytest.approx(evaluated[-1]["score"])

    # as if it had been killed while the second checkpoint was written
    shutil.rmtree(folder / "checkpoints" / "update-0000002")
    shutil.rmtree(folder / "checkpoints" / "model")
    assert finished(record_run(folder.parents[1], "--resume", str(folder))) == folder
    again = read_metrics(folder)
    assert [(row["phase"], row["step"]) for row in again] == [(row["phase"], row["step"]) for row in rows]
    before = next(row for row in rows if (row["phase"], row["step"]) == ("rl", 1))
    assert next(row for row in again if (row["phase"], row["step"]) == ("rl", 1)) == before
    resumed = weights(folder / "checkpoints" / "update-0000002")
    assert changed(first, resumed) > 1e-5
    # the same scenes in the same order; samples are drawn anew, because requests meet in other batches
    assert [row["invalid"] for row in again if row["phase"] == "rl"] == [row["invalid"] for row in learned]


def test_ppo_in_bench2drive(folder: Path) -> None:
    weights_arrived(folder)
    learned = [row for row in read_metrics(folder) if row["phase"] == "rl"]
    assert all(np.isfinite(row["value_loss"]) for row in learned)
    assert all(1.0 < row["decisions"] <= 4.0 for row in learned)
    start, last = (weights(folder / "checkpoints" / name) for name in ("imitation", "update-0000002"))
    assert changed(start, last) > 1e-5
    assert "driving_score" in json.loads((folder / "summary.json").read_text())["subscores"]["rl"]


@pytest.mark.parametrize("environment", ["navsim", "bench2drive"])
def test_tokens_through_verls_own_engine(environment: str, folder: Path) -> None:
    """``environment`` chooses the run."""
    weights_arrived(folder)
    learned = [row for row in read_metrics(folder) if row["phase"] == "rl"]
    for row in learned:
        assert row["invalid"] == 0
        assert 1 / 8 <= row["invalid_answers"] < row["decisions"] / 2  # of 8 episodes one has a picture's token (cpu_tokens)
        assert row["grad_norm"] > 0
    saved = [folder / "verl" / "checkpoints" / f"global_step_{n}" / "actor" / "huggingface" for n in (1, 2)]
    start, first, last = (weights(path) for path in (folder / "verl" / "base", *saved))
    assert changed(start, first) > 1e-5
    assert changed(first, last) > 1e-5
    driven: Any = create_model("hf_vlm", model_path=folder / "checkpoints" / "update-0000002")
    table = driven.backbone.model.get_output_embeddings().weight
    np.testing.assert_array_equal(table.detach().numpy(), last["lm_head.weight"])
    assert "heldout" in json.loads((folder / "summary.json").read_text())


def test_a_module_that_cannot_be_loaded_stops_the_run(tmp_path: Path) -> None:
    settings = config("navsim", "grpo", {"name": "small_gaussian"})
    done = run(settings, tmp_path, modules="cpu_shim,no_such_plugin")
    assert done.returncode != 0
    assert "no_such_plugin" in done.stderr
    assert not (tmp_path / "runs").exists()
