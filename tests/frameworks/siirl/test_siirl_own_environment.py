"""The environment of examples/bring_your_own_environment.py in siiRL's own graph, nodes, advantages and loss."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import bring_your_own_environment  # registers parked_cars
import doc_blocks
import loop
import torch

from vla_models.model_registry import VLAModelRegistry


def test_an_environment_from_outside_is_driven_and_learned_from(tmp_path: Path) -> None:
    assert VLAModelRegistry.get_env_adapter("parked_cars", "siirl") is bring_your_own_environment.InSiiRL
    r = loop.rank(tmp_path, loop.configuration("parked_cars", "my_vla"))
    batch = r.until("old_log_prob", [0, 5])
    assert len(batch["finish_step"]) == 8  # two groups of four episodes
    assert ((batch["finish_step"] >= 1) & (batch["finish_step"] <= 8)).all()
    assert (batch["advantages"] != 0).any()
    model = r.policy.model
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    r.node("train", batch)
    assert any(not torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_the_guide_and_its_line_numbers_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of docs/02 for this framework, and every file and line of its package that the documents cite."""
    monkeypatch.chdir(tmp_path)
    assert doc_blocks.run(doc_blocks.ROOT / "docs" / "02_model_integration_guide.md", "siirl") == 1
    doc_blocks.check_citations("siirl")
