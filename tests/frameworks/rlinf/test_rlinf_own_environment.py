"""The environment of examples/bring_your_own_environment.py in RLinf's own data classes, advantages and loss."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import bring_your_own_environment  # registers parked_cars
import doc_blocks
import numpy as np
import torch
from loop import advantages, configuration, loss, rollout, setting, training_batch

from vla_models.frameworks.rlinf import plugin
from vla_models.model_registry import VLAModelRegistry


def test_an_environment_from_outside_is_driven_and_learned_from(tmp_path: Path) -> None:
    adapter = VLAModelRegistry.get_env_adapter("parked_cars", "rlinf")
    assert adapter is bring_your_own_environment.InRLinf
    plugin.register()
    s = setting(tmp_path, configuration("parked_cars", "my_vla"), adapter)
    assert s.decisions == 8
    batch, infos = rollout(s)
    assert batch["prev_logprobs"].shape[:2] == (8, 8)
    totals = infos[-1]["episode"]
    assert (totals["valid"] == 1).all()
    assert len(np.unique(totals["return"].round(decimals=4))) > 2  # plans were driven, and differ
    batch = advantages(s, batch)
    groups = batch["advantages"][0, :, 0].view(2, 4)
    torch.testing.assert_close(groups.sum(1), torch.zeros(2), atol=1e-4, rtol=0)
    value, metrics, _ = loss(s, training_batch(batch))
    assert abs(float(metrics["actor/ratio"]) - 1.0) < 1e-5
    value.backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in s.policy.parameters())


def test_the_guide_and_its_line_numbers_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of docs/02 for this framework, and every file and line of its package that the documents cite."""
    monkeypatch.chdir(tmp_path)
    assert doc_blocks.run(doc_blocks.ROOT / "docs" / "02_model_integration_guide.md", "rlinf") == 1
    doc_blocks.check_citations("rlinf")
