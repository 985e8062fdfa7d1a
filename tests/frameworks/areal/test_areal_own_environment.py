"""The environment of examples/bring_your_own_environment.py in AReaL's own executor, actor and loss."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("areal")
sys.path.insert(0, str(Path(__file__).parent.parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent.parent.parent / "examples"))

import bring_your_own_environment  # registers parked_cars
import bring_your_own_model  # noqa: F401 - registers my_vla
import doc_blocks
import loop
import torch

from vla_models.model_registry import VLAModelRegistry


def test_an_environment_from_outside_is_driven_and_learned_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = VLAModelRegistry.get_env_adapter("parked_cars", "areal")
    assert adapter is bring_your_own_environment.InAReaL
    monkeypatch.setitem(loop.SCENES, "parked_cars", ["train-12-left", "train-24-right"])
    s = loop.setting(tmp_path, loop.configuration("parked_cars", "my_vla"), adapter, monkeypatch)
    try:
        batch = s.batch()
        assert len(batch) == 2  # a group each
        for group in batch:
            mask = group["loss_mask"].bool()
            assert mask.any()
            replay = s.actor.compute_logp([group])[0]
            assert (torch.roll(replay, 1, dims=-1)[mask] - group["logprobs"][mask]).abs().max() < 1e-5
        before = {name: value.detach().clone() for name, value in s.actor.model.named_parameters()}
        s.update(batch)
        assert any(not torch.equal(value, before[name]) for name, value in s.actor.model.named_parameters())
    finally:
        s.close()


def test_the_guide_and_its_line_numbers_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of docs/02 for this framework, and every file and line of its package that the documents cite."""
    monkeypatch.chdir(tmp_path)
    assert doc_blocks.run(doc_blocks.ROOT / "docs" / "02_model_integration_guide.md", "areal") == 1
    doc_blocks.check_citations("areal")
