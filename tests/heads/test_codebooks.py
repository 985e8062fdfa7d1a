"""Codebooks beside the kinematic one: bins, and trajectories that k-means found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_models.errors import CheckpointError, PlanError
from vla_models.heads import make_codebook
from vla_models.heads.bins import BinCodebook
from vla_models.heads.codebook import Codebook, KinematicCodebook
from vla_models.heads.trajectories import TrajectoryCodebook, cluster

T = 8


def some_plans(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    speed = 10.0 * torch.rand(rows, generator=torch.Generator().manual_seed(seed))
    book = KinematicCodebook()
    generator = torch.Generator().manual_seed(seed)
    a = torch.randint(book.sizes[0], (rows, 1), generator=generator)
    c = torch.randint(8, 17, (rows, 1), generator=generator)  # gentle turns: no heading near half a circle
    return book.decode((a * book.sizes[1] + c).expand(-1, T), speed), speed


@pytest.mark.parametrize("name", ["kinematic", "bins"])
def test_a_language_model_can_say_every_plan(name: str) -> None:
    book = make_codebook(name, horizon=T, dt=0.5)
    tokens = torch.randint(book.vocabulary, (20, book.length), generator=torch.Generator().manual_seed(0))
    plans = book.decode(tokens, torch.full((20,), 5.0))
    assert plans.shape == (20, T, 3)
    assert torch.isfinite(plans).all()


def test_bins_are_fine_within_the_ranges_of_the_data() -> None:
    plans, speed = some_plans(200)
    book = BinCodebook()
    book.normalise(book.measure(plans, speed))
    tokens = book.encode(plans, speed)
    assert tokens.shape == (200, 24)
    assert 0 <= tokens.min() <= tokens.max() < 256
    again = book.decode(tokens, speed)
    half = ((book.high - book.low) / 512).float()
    assert ((again - plans).abs() <= half + 1e-5).all()
    assert torch.equal(book.encode(again, speed), tokens)
    state = BinCodebook()
    state.load_state_dict(book.state_dict())
    assert torch.equal(state.bfloat16().decode(tokens, speed), again)


def test_bins_step_by_step_are_bins_at_once() -> None:
    plans, speed = some_plans(30, 1)
    book = BinCodebook()
    steps = book.encode_steps(plans, speed)
    assert torch.equal(book.plans(book.states(steps, speed)[:, 1:]), book.decode(book.encode(plans, speed), speed))


def test_what_lies_outside_goes_to_the_nearest_bin() -> None:
    book = BinCodebook()
    far = torch.full((1, T, 3), 500.0)
    far[..., 2] = 0.0
    inside = book.decode(book.encode(far, torch.ones(1)), torch.ones(1))
    assert (inside[..., :2] <= book.high[:, :2].float()).all()
    with pytest.raises(CheckpointError, match="5 poses; the codebook has 8"):
        book.normalise({"low": [[0.0] * 3] * 5, "high": [[1.0] * 3] * 5})


@settings(max_examples=6, deadline=None)
@given(st.integers(2, 40), st.integers(0, 1000))
def test_clusters_are_where_their_plans_are(size: int, seed: int) -> None:
    plans = some_plans(60, seed)[0].numpy()
    if len(np.unique(plans, axis=0)) < size:
        return
    anchors = cluster(plans, size, seed)
    assert anchors.shape == (size, T, 3)
    book = TrajectoryCodebook(anchors)
    owner = book.encode(torch.from_numpy(plans), torch.ones(60))[:, 0].numpy()
    assert len(set(owner)) == size  # no trajectory that nobody drives
    for i in range(size):
        np.testing.assert_allclose(anchors[i], plans[owner == i].mean(0), atol=1e-3)
    counts = np.bincount(owner, minlength=size)
    assert (np.diff(counts) <= 0).all()
    assert np.array_equal(anchors, cluster(plans, size, seed))


def test_more_clusters_fit_better() -> None:
    plans, speed = some_plans(400, 2)
    errors = []
    for size in (4, 16, 64):
        book = TrajectoryCodebook(cluster(plans.numpy(), size))
        errors.append((book.decode(book.encode(plans, speed), speed) - plans)[..., :2].norm(dim=-1).mean().item())
    assert errors[0] > 1.4 * errors[1] > 1.4 * 1.4 * errors[2]


def test_a_codebook_file_is_read_back_and_others_are_refused(tmp_path: Path) -> None:
    book: Codebook = TrajectoryCodebook(some_plans(9)[0])
    assert isinstance(book, TrajectoryCodebook)
    again = make_codebook(str(book.save(tmp_path / "book.npz")), horizon=T, dt=0.5)
    assert isinstance(again, TrajectoryCodebook)
    assert torch.equal(again.anchors, book.anchors)
    assert (again.vocabulary, again.length) == (9, 1)
    np.savez(tmp_path / "other.npz", plans=np.zeros(3))
    np.savez(tmp_path / "pickle.npz", anchors=np.array([object()]), dt=0.5)
    (tmp_path / "broken.npz").write_bytes(b"PK")
    for name in ("other", "pickle", "broken", "absent"):
        with pytest.raises(CheckpointError, match=f"{name}.npz' is no trajectory codebook"):
            make_codebook(str(tmp_path / f"{name}.npz"), horizon=T, dt=0.5)
    with pytest.raises(PlanError, match="70 clusters cannot be had"):
        cluster(some_plans(60)[0].numpy(), 70)
