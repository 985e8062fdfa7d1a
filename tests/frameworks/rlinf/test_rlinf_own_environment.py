"""The environment of examples/bring_your_own_environment.py in RLinf's own data classes, advantages and loss."""

from __future__ import annotations

from pathlib import Path

import bring_your_own_environment  # registers parked_cars
import numpy as np
import torch
from loop import advantages, configuration, loss, rollout, setting, training_batch

from vla_models.model_registry import VLAModelRegistry


def test_an_environment_from_outside_is_driven_and_learned_from(tmp_path: Path) -> None:
    adapter = VLAModelRegistry.get_env_adapter("parked_cars", "rlinf")
    assert adapter is bring_your_own_environment.InRLinf
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
