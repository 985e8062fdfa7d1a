"""Every family of vision-language models × (tokens, gaussian): decisions replay, all of it learns, and it is saved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from vlm_cases import CASES, FAMILIES, draw, make, shared, some_inputs, vision

from vla_models.interface import VLAForDriving

each = pytest.mark.parametrize(("family", "head"), CASES)


@each
def test_unchanged_weights_give_ratio_one(family: str, head: str) -> None:
    model = shared(family, head)
    for options in ({}, {"temperature": 0.6}, *([{"temperature": 1.5, "top_p": 0.7}] if head == "tokens" else [])):
        drawn = draw(model, some_inputs(3), num_samples=2, **options)
        assert drawn.waypoints.shape == (6, 8, 3)
        assert all(torch.equal(drawn.record[name][::2], drawn.record[name][1::2]) for name in model.prompt_keys)
        assert drawn.valid is not None
        assert drawn.valid.all()
        again = model.evaluate_actions(drawn.record, values=True)
        assert again["logprobs"].dtype == torch.float32
        assert again["mask"].all()
        assert drawn.logprobs.std() > 0.05
        torch.testing.assert_close(again["logprobs"], drawn.logprobs, atol=1e-5, rtol=0)
        torch.testing.assert_close(again["values"], drawn.values, atol=1e-5, rtol=0)


@each
def test_bfloat16_gives_ratio_one_within_its_precision(family: str, head: str) -> None:
    model = make(family, head, dtype="bfloat16")
    drawn = draw(model, some_inputs(3), num_samples=2)
    assert model.backbone.dtype == torch.bfloat16
    assert drawn.logprobs.dtype == drawn.values.dtype == torch.float32
    parts = [{key: value[rows] for key, value in drawn.record.items()} for rows in (slice(0, 2), slice(2, 6))]
    again = torch.cat([model.evaluate_actions(part)["logprobs"] for part in parts])
    torch.testing.assert_close((again - drawn.logprobs).exp(), torch.ones_like(again), atol=2e-2, rtol=0)


def padded(record: dict[str, Tensor], left: int, right: int) -> dict[str, Tensor]:
    """The record with more padding around its prompts, as after joining records of several calls."""
    wide = {key: torch.nn.functional.pad(record[key], (left, right)) for key in ("input_ids", "attention_mask")}
    return {**record, **wide}


@each
def test_padding_batch_order_and_minibatch_split_change_nothing(family: str, head: str) -> None:
    model = shared(family, head)
    drawn = draw(model, some_inputs(3), num_samples=2, temperature=1.3)
    whole = model.evaluate_actions(drawn.record, entropy=True, values=True)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    mixed = padded({key: part[order] for key, part in drawn.record.items()}, 7, 5)
    for sizes in ([6], [1, 3, 2]):
        pieces = zip(*(part.split(sizes) for part in mixed.values()), strict=True)
        results = [model.evaluate_actions(dict(zip(mixed, part, strict=True)), entropy=True, values=True) for part in pieces]
        assert results[0].keys() == whole.keys()
        for key, value in whole.items():
            joined = torch.cat([result[key] for result in results])
            torch.testing.assert_close(joined, value[order], atol=1e-5, rtol=0)


@each
def test_gradients_reach_vision_text_and_head(family: str, head: str) -> None:
    model = make(family, head)
    drawn = draw(model, some_inputs(2))
    out = model.evaluate_actions(drawn.record, values=True)
    (out["logprobs"].sum() + out["values"].sum()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert all(g.isfinite().all() for g in gradients.values())
    moved = {name for name, g in gradients.items() if g.abs().max() > 0}
    assert moved & set(vision(model))
    assert any("language_model" in name or "text_model" in name for name in moved)
    assert any(name.startswith("value.") for name in moved)
    assert any(name.startswith("backbone.actions." if head == "tokens" else "head.") for name in moved)


@each
def test_lora_leaves_the_base_weights_untouched(family: str, head: str) -> None:
    model = make(family, head, language_model={"lora_enabled": True})
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    drawn = draw(model, some_inputs(2), num_samples=2)
    model.make_reference()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model.evaluate_actions(drawn.record)["logprobs"].mean().backward()
    optimizer.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert any("lora_" in name for name in changed)
    assert all("lora_" in name or name.startswith(("head.", "backbone.actions.")) for name in changed)
    now = model.evaluate_actions(drawn.record)["logprobs"]
    assert (now - drawn.logprobs).abs().max() > 1e-4
    with model.reference():
        torch.testing.assert_close(model.evaluate_actions(drawn.record)["logprobs"], drawn.logprobs, atol=1e-5, rtol=0)


@each
def test_saving_and_loading_keeps_the_plan(family: str, head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = shared(family, head)
    model.save_pretrained(tmp_path / "saved")
    loaded = VLAForDriving.from_pretrained(tmp_path / "saved")
    assert loaded.spec == model.spec
    inputs = some_inputs(2)
    for options in ({"deterministic": True}, {"num_samples": 2}):
        before, after = draw(model, inputs, **options), draw(loaded, inputs, **options)
        assert np.array_equal(before.waypoints, after.waypoints)
        torch.testing.assert_close(before.logprobs, after.logprobs, atol=1e-6, rtol=0)
        torch.testing.assert_close(before.values, after.values, atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_more_codes_than_the_vocabulary_has_room_for(family: str, tmp_path: Path) -> None:
    model = make(family, {"type": "tokens", "codebook": {"trajectories": 1500}})
    assert len(model.backbone.model.get_input_embeddings().weight) > 2000
    with torch.no_grad():
        model.codebook.anchors.copy_(torch.randn(1500, 8, 3))
    drawn = draw(model, some_inputs(2), num_samples=3)
    assert drawn.record["completion_ids"].shape == (6, 1)
    torch.testing.assert_close(model.evaluate_actions(drawn.record)["logprobs"], drawn.logprobs, atol=1e-5, rtol=0)
    model.save_pretrained(tmp_path / "saved")
    loaded = VLAForDriving.from_pretrained(tmp_path / "saved")
    assert np.array_equal(draw(loaded, some_inputs(2), num_samples=3).waypoints, drawn.waypoints)
