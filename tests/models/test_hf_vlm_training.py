"""hf_vlm in the embedded trainer: imitation, GRPO with a reference, checkpoints, and going on from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from golden import visible_scenes

from vla_models.config import VLAConfig
from vla_models.interface import VLAForDriving
from vla_models.model_registry import create_model
from vla_models.training.metrics import read_metrics
from vla_models.training.navsim_practice import NavSimPractice
from vla_models.training.trainer import Trainer

CONFIGS = Path(__file__).parents[2] / "configs"


def run(folder: Path, **model: Any) -> list[dict[str, Any]]:
    """Two steps of each phase on four scenes; the log without what a clock wrote."""
    config = VLAConfig.from_dict(
        {
            "model": {"name": "hf_vlm", **model},
            "environment": {"train_scenes": 4, "heldout_scenes": 2},
            "algorithm": {"group_size": 3, "kl_coef": 0.01, "minibatches": 2},
            "training": {
                "steps": 2, "scenes_per_step": 2, "warmup_steps": 0, "checkpoint_every": 1, "threads": 1, "eval_every": 0,
                "imitation": {"steps": 2, "batch_size": 3},
            },
        }
    )  # fmt: skip
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    scenes = visible_scenes(6)
    practice = NavSimPractice(config, scenes[:4], scenes[4:])
    Trainer(config, folder, create_model("hf_vlm", **config.model.arguments()), practice).run()
    return [{k: v for k, v in row.items() if not k.endswith("_s")} for row in read_metrics(folder)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        {"language_model": {"base_model": "tiny:smolvlm"}},
        {
            "language_model": {"base_model": "tiny:qwen2_5_vl", "lora_enabled": True},
            "policy_head": {"type": "gaussian"},
            "options": {"image_size": [56, 84]},
        },
        {"language_model": {"base_model": "tiny:internvl", "lora_enabled": True}, "options": {"dtype": "bfloat16"}},
    ],
)
def test_a_run_learns_is_kept_and_goes_on(model: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = run(tmp_path / "whole", **model)
    updates = [row for row in rows if row["phase"] == "rl"]
    assert len(updates) == 2
    half = model.get("options", {}).get("dtype") == "bfloat16"
    assert all(row["ratio_max_dev_first"] < (5e-2 if half else 1e-5) for row in updates)
    assert all(row["grad_norm"] > 0 and row["invalid_answers"] == 0 for row in updates)
    saved = VLAForDriving.from_pretrained(tmp_path / "whole" / "checkpoints" / "model")
    assert saved.spec.horizon == 8

    def interrupted(self: Trainer, *args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_enter_rl", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "broken", **model)
    assert run(tmp_path / "broken", **model) == rows


def test_the_configurations_that_come_with_it_are_read() -> None:
    tiny = VLAConfig.from_yaml(CONFIGS / "hf_vlm_tiny.yaml")
    model = create_model(tiny.model.name, **tiny.model.arguments())
    tiny.check_model(model)
    large = VLAConfig.from_yaml(CONFIGS / "hf_vlm_qwen2_5_vl_3b.yaml")
    assert large.model.language_model is not None
    assert large.model.language_model.base_model == "Qwen/Qwen2.5-VL-3B-Instruct"
    arguments = large.model.arguments()
    arguments["language_model"] = {**arguments["language_model"], "base_model": "tiny:qwen2_5_vl"}
    large.check_model(create_model(large.model.name, **arguments))
