"""Checkpoints: exact, atomic, and loud about damage."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from vla_models.errors import CheckpointError
from vla_models.training.checkpoint import (
    data_order,
    latest_checkpoint,
    load_checkpoint,
    random_stream,
    save_checkpoint,
)


class Net(nn.Module):
    """Two layers with tied weights and a buffer, as language models have."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)
        self.b.weight = self.a.weight
        self.image = nn.Conv2d(3, 2, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.register_buffer("seen", torch.zeros(()))


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        picture = model.image(torch.linspace(0, 1, 3 * 5 * 5).reshape(1, 3, 5, 5))
        (model.b(model.a(torch.ones(1, 4))).square().sum() + picture.square().sum()).backward()
        optimizer.step()
        model.seen += 1


def test_going_on_from_a_checkpoint_gives_the_same_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Net()
    optimizer = optimizer_of(model)
    train(model, optimizer, 3)
    optimizer.param_groups[0]["lr"] = 0.05
    reference = {"image.weight": model.image.weight.detach().clone()}
    save_checkpoint(tmp_path, model, optimizer, "rl", 3, {"wall_s": 1.5}, reference=reference)
    train(model, optimizer, 4)

    other = Net()
    found = latest_checkpoint(tmp_path)
    assert found is not None
    restored = load_checkpoint(found, other, lambda phase: optimizer_of(other))
    assert (restored.phase, restored.step, restored.state) == ("rl", 3, {"wall_s": 1.5})
    assert torch.equal(restored.reference["image.weight"], reference["image.weight"])
    assert restored.reference["image.weight"].stride() == reference["image.weight"].stride()
    train(other, restored.optimizer, 4)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_a_fresh_optimizer_without_state_can_be_saved(tmp_path: Path) -> None:
    model = Net()
    path = save_checkpoint(tmp_path, model, optimizer_of(model), "imitation", 0, {})
    assert load_checkpoint(path, model, lambda phase: optimizer_of(model)).optimizer.state_dict()["state"] == {}


def test_only_the_newest_are_kept_and_rl_comes_after_imitation(tmp_path: Path) -> None:
    model = Net()
    optimizer = optimizer_of(model)
    for phase, step in (("imitation", 9), ("imitation", 10), ("rl", 0), ("rl", 5)):
        save_checkpoint(tmp_path, model, optimizer, phase, step, {})
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step-1-0000000", "step-1-0000005"]
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.name == "step-1-0000005"


def test_what_a_killed_run_left_half_written_is_removed(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "nothing") is None
    (tmp_path / ".step-0-0000001.abcd.tmp").mkdir()
    (tmp_path / ".step-0-0000001.abcd.tmp" / "model.safetensors").write_bytes(b"half")
    assert latest_checkpoint(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "reference.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "flipped"])
def test_damage_is_named_and_never_passed_over(tmp_path: Path, name: str, damage: str) -> None:
    model = Net()
    save_checkpoint(tmp_path, model, optimizer_of(model), "rl", 1, {})
    path = save_checkpoint(tmp_path, model, optimizer_of(model), "rl", 2, {})
    file = path / name
    data = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 0xFF
        file.write_bytes(data)
    found = latest_checkpoint(tmp_path)
    assert found == path
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=f"step-1-0000002/{name}|step-1-0000002/state.json"):
        load_checkpoint(found, model, lambda phase: optimizer_of(model))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_checkpoint_of_another_model_or_optimizer_is_refused(tmp_path: Path) -> None:
    model = Net()
    path = save_checkpoint(tmp_path, model, optimizer_of(model), "rl", 1, {})
    other = Net(5)
    with pytest.raises(CheckpointError, match="another model"):
        load_checkpoint(path, other, lambda phase: optimizer_of(other))
    with pytest.raises(CheckpointError, match="another optimiser"):
        load_checkpoint(path, model, lambda phase: torch.optim.AdamW([model.a.weight]))
    manifest = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**manifest, "format": "vla-checkpoint/9"}))
    with pytest.raises(CheckpointError, match="vla-checkpoint/9"):
        load_checkpoint(path, model, lambda phase: optimizer_of(model))


@given(st.integers(1, 20), st.integers(1, 12), st.integers(0, 5), st.integers(0, 99))
def test_data_order_is_epochs_of_permutations_and_depends_on_nothing_else(size: int, count: int, step: int, seed: int) -> None:
    laid = np.concatenate([data_order(seed, "rl", i, size, count) for i in range(step + 1)])
    for epoch in range(len(laid) // size):
        assert sorted(laid[epoch * size : (epoch + 1) * size]) == list(range(size))
    assert np.array_equal(laid[step * count :], data_order(seed, "rl", step, size, count))


def test_random_streams_differ_by_everything_they_come_from() -> None:
    streams = {random_stream(seed, phase, step) for seed in range(4) for phase in ("imitation", "rl") for step in range(50)}
    assert len(streams) == 400
    assert all(0 <= stream < 2**63 for stream in streams)
    assert random_stream(1, "rl", 2) == random_stream(1, "rl", 2)
