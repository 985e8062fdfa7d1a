"""Low-rank adapters on any module: the base stays, the reference is the base, merging keeps the plans."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vla_models.errors import ConfigError, MissingDependency
from vla_models.interface import VLAForDriving, VLASpec
from vla_models.lora import add_lora, lora_options, merge_lora


class Adapted(VLAForDriving):
    """Two linear layers, adapted where ``language_model`` says so, and a head of its own."""

    def __init__(self, language_model: dict[str, Any] | None = None) -> None:
        torch.manual_seed(0)
        self.spec = VLASpec(horizon=2, dt=0.5)
        self.language_model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 8))
        self.head = torch.nn.Linear(8, 6)
        if (options := lora_options(language_model)) is not None:
            self.language_model = add_lora(self.language_model, **options)  # type: ignore[assignment]

    def predict_waypoints(self, text: str, images: Any, num_waypoints: int = 2, **kwargs: Any) -> torch.Tensor:
        return self.head(self.language_model(torch.ones(1, 4))).view(2, 3)  # type: ignore[no-any-return]


LORA = {"base_model": "x", "lora_enabled": True, "lora": {"rank": 2, "alpha": 4.0}}


def train(model: Adapted) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.05)
    for _ in range(5):
        optimizer.zero_grad()
        model.predict_waypoints("", None).square().sum().backward()
        optimizer.step()


@pytest.fixture
def adapted() -> Adapted:
    pytest.importorskip("peft")
    return Adapted(LORA)


def test_the_base_is_not_touched_and_the_reference_is_the_base(adapted: Adapted) -> None:
    plain = Adapted()
    torch.testing.assert_close(adapted.predict_waypoints("", None), plain.predict_waypoints("", None))
    base = {n: p.detach().clone() for n, p in adapted.named_parameters() if "lora" not in n and "head" not in n}
    adapted.make_reference()
    assert set(adapted.reference_weights()) == {"head.weight", "head.bias"}  # the adapters need no copy
    train(adapted)
    assert all(torch.equal(p, base[n]) for n, p in adapted.named_parameters() if n in base)
    moved = adapted.predict_waypoints("", None)
    assert not torch.allclose(moved, plain.predict_waypoints("", None))
    with adapted.reference():
        torch.testing.assert_close(adapted.predict_waypoints("", None), plain.predict_waypoints("", None))
    torch.testing.assert_close(adapted.predict_waypoints("", None), moved)


def test_adapters_are_saved_and_loaded_and_merged(adapted: Adapted, tmp_path: Path) -> None:
    train(adapted)
    plan = adapted.predict_waypoints("", None).detach()
    again = Adapted.from_pretrained(adapted.save_pretrained(tmp_path / "adapters"))
    torch.testing.assert_close(again.predict_waypoints("", None), plan, atol=0, rtol=0)
    assert merge_lora(again) == 1
    torch.testing.assert_close(again.predict_waypoints("", None), plan)
    assert not any("lora" in name for name in again.state_dict())
    merged = Adapted.from_pretrained(again.save_pretrained(tmp_path / "merged"))
    torch.testing.assert_close(merged.predict_waypoints("", None), plan)
    assert merge_lora(merged) == 0


def test_targets_choose_the_layers(adapted: Adapted) -> None:
    names = [n for n, _ in adapted.named_parameters() if "lora_A" in n]
    assert len(names) == 2
    one = Adapted({**LORA, "lora": {"targets": ["2"]}})
    assert len([n for n, _ in one.named_parameters() if "lora_A" in n]) == 1
    with pytest.raises(ConfigError, match=r"lora\.targets: nothing ends in \['q_proj'\]; Sequential has 0, 2"):
        Adapted({**LORA, "lora": {"targets": ["q_proj"]}})


def test_settings_without_lora_are_refused() -> None:
    assert lora_options(None) is None
    assert lora_options({"base_model": "x", "lora_enabled": False}) is None
    assert lora_options({"base_model": "x", "lora_enabled": True}) == {}
    with pytest.raises(ConfigError, match="lora_enabled: true"):
        lora_options({"base_model": "x", "lora": {"rank": 2}})


def test_without_peft_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingDependency, match=r"pip install 'vla_models\[hf\]'"):
        Adapted(LORA)
    assert np.isfinite(Adapted().predict_waypoints("", None).detach().numpy()).all()
