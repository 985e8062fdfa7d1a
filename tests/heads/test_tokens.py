"""The kinematic codebook and the token head: what can be driven, and what can be replayed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_models.errors import PlanError
from vla_models.heads.codebook import KinematicCodebook
from vla_models.heads.kinematics import MAX_LATERAL, MAX_YAW_RATE
from vla_models.heads.tokens import TokenHead
from vla_models.heads.warpers import nucleus

BOOK = KinematicCodebook()
T = BOOK.horizon


def some_tokens(rows: int, seed: int) -> torch.Tensor:
    return torch.randint(BOOK.vocabulary, (rows, T), generator=torch.Generator().manual_seed(seed))


def smooth_plans(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Plans of a car with continuous acceleration and curvature, integrated finely: nothing that the codebook made."""
    rng = np.random.default_rng(seed)
    speed = rng.uniform(0, 15, rows)
    fine = np.linspace(0, T * BOOK.dt, 401)[1:]
    dt = fine[1] - fine[0]
    a = rng.uniform(-2.5, 1.5, (rows, 1)) + rng.uniform(-1.0, 1.0, (rows, 1)) * np.sin(fine * rng.uniform(0, 1.5, (rows, 1)))
    v = np.maximum(speed[:, None] + np.cumsum(a, 1) * dt, 0.0)
    most = np.minimum(0.15, 2.5 / np.maximum(v, 1.0) ** 2)
    kappa = most * np.sin(rng.uniform(0, 6, (rows, 1)) + fine * rng.uniform(-1, 1, (rows, 1)))
    heading = np.cumsum(kappa * v, 1) * dt
    xy = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], -1) * v[..., None], 1) * dt
    plans = np.concatenate([xy, np.arctan2(np.sin(heading), np.cos(heading))[..., None]], -1)[:, 49::50]
    return torch.from_numpy(plans), torch.from_numpy(speed)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 30))
def test_every_token_row_can_be_driven(seed: int, speed: float) -> None:
    states = BOOK.states(some_tokens(64, seed), torch.full((64,), speed))
    v = states[..., 3]
    assert (v >= 0).all()
    change = (v[:, 1:] - v[:, :-1]) / BOOK.dt
    assert change.min() >= BOOK.accelerations[0] - 1e-9
    assert change.max() <= BOOK.accelerations[-1] + 1e-9
    step = states[:, 1:, :2] - states[:, :-1, :2]
    turn = states[:, 1:, 2] - states[:, :-1, 2]
    top = torch.maximum(v[:, 1:], v[:, :-1])
    length = step.norm(dim=-1) / torch.sinc(turn / (2 * torch.pi))
    assert (length <= top * BOOK.dt + 1e-9).all()
    assert (turn.abs() <= MAX_YAW_RATE * BOOK.dt + 1e-9).all()
    assert (turn.abs() * top <= MAX_LATERAL * length / top.clamp_min(1e-9) + 1e-9).all()
    middle = states[:, :-1, 2] + turn / 2  # the chord of an arc points half the turn ahead
    across = step[..., 1] * middle.cos() - step[..., 0] * middle.sin()
    assert across.abs().max() < 1e-9


def test_a_constant_token_is_an_exact_arc() -> None:
    a, c = BOOK.accelerations.index(0.0), BOOK.curvatures.index(0.028)
    plan = BOOK.decode(torch.full((1, T), a * BOOK.sizes[1] + c), torch.tensor([5.0]))[0]
    angle = 0.028 * 5.0 * 0.5 * torch.arange(1, T + 1)
    expected = torch.stack([angle.sin() / 0.028, (1 - angle.cos()) / 0.028, angle], -1)
    torch.testing.assert_close(plan, expected, atol=1e-5, rtol=1e-5)


def test_braking_ends_at_a_standstill() -> None:
    plan = BOOK.decode(torch.full((1, T), BOOK.curvatures.index(0.0)), torch.tensor([2.0]))[0]
    assert plan[:, :2].norm(dim=-1)[-1].item() == pytest.approx(2.0**2 / (2 * -BOOK.accelerations[0]), abs=1e-5)
    assert (plan[1:] == plan[:1]).all()


def test_encoding_smooth_plans_loses_little() -> None:
    plans, speed = smooth_plans(256, 1)
    again = BOOK.decode(BOOK.encode(plans, speed), speed)
    error = (again - plans)[..., :2].norm(dim=-1)
    turn = again[..., 2] - plans[..., 2]
    assert error.mean() < 0.1
    assert error.max() < 0.6
    assert torch.atan2(turn.sin(), turn.cos()).abs().mean() < 0.02


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_what_the_codebook_made_it_finds_again(seed: int) -> None:
    speed = torch.rand(32, generator=torch.Generator().manual_seed(seed)) * 12
    a = torch.randint(3, 10, (32, 1), generator=torch.Generator().manual_seed(seed + 1))
    c = torch.randint(8, 17, (32, 1), generator=torch.Generator().manual_seed(seed + 2))
    plans = BOOK.decode((a * BOOK.sizes[1] + c).expand(32, T), speed)
    again = BOOK.decode(BOOK.encode(plans, speed), speed)
    assert (again - plans)[..., :2].norm(dim=-1).max() < 0.2


def test_encoding_rows_alone_or_together_is_the_same() -> None:
    plans, speed = smooth_plans(8, 2)
    together = BOOK.encode(plans, speed)
    alone = torch.cat([BOOK.encode(plans[i : i + 1], speed[i : i + 1]) for i in range(8)])
    assert torch.equal(together, alone)


def test_bad_plans_are_refused() -> None:
    plans, speed = smooth_plans(4, 3)
    with pytest.raises(PlanError, match=r"\[B, 8, 3\], not \[4, 5, 3\]"):
        BOOK.encode(plans[:, :5], speed)
    plans[2, 3, 1] = torch.nan
    with pytest.raises(PlanError, match=r"rows \[2\]"):
        BOOK.encode(plans, speed)
    with pytest.raises(ValueError, match="accelerations"):
        KinematicCodebook(accelerations=(1.0, 0.0))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.2, 3.0), st.floats(0.05, 1.0))
def test_samples_are_replayed_exactly(seed: int, temperature: float, top_p: float) -> None:
    torch.manual_seed(seed)
    head = TokenHead(16, (5, 7))
    logits = head.logits(torch.randn(40, 16) * 8)
    warp = torch.full((40,), temperature), torch.full((40,), top_p)
    tokens, logprob, support = head.sample(logits, *warp, generator=torch.Generator().manual_seed(seed))
    assert ((tokens >= 0) & (tokens < 35)).all()
    assert torch.isfinite(logprob).all()
    torch.testing.assert_close(head.log_prob(logits, tokens, warp[0], support), logprob, atol=1e-6, rtol=0)
    again, *_ = head.sample(logits, *warp, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(tokens, again)
    # The probabilities of all tokens sum to one, and the entropy is that of this distribution.
    every = torch.arange(35)[:, None].expand(35, 40)
    logp = head.log_prob(logits.expand(35, -1, -1), every, warp[0], support.expand(35, -1, -1))
    torch.testing.assert_close(logp.exp().sum(0), torch.ones(40), atol=1e-5, rtol=0)
    entropy = -(logp.exp() * logp.clamp_min(-1e9)).sum(0)
    torch.testing.assert_close(head.entropy(logits, warp[0], support), entropy, atol=1e-4, rtol=1e-4)


def test_samples_follow_the_distribution() -> None:
    head = TokenHead(4, (3, 4))
    logits = head.logits(torch.randn(1, 4, generator=torch.Generator().manual_seed(3)) * 40).detach()
    one = torch.ones(20000)
    tokens, *_ = head.sample(logits.expand(20000, -1), one, one, generator=torch.Generator().manual_seed(0))
    seen = torch.bincount(tokens, minlength=12) / 20000
    logp = head.log_prob(logits.expand(12, -1), torch.arange(12), one[:12], torch.ones(12, 7, dtype=torch.bool))
    torch.testing.assert_close(seen, logp.exp(), atol=0.015, rtol=0)


def test_the_nucleus_is_the_smallest_set_that_reaches_top_p() -> None:
    p = torch.tensor([[0.5, 0.3, 0.15, 0.05]])
    one = torch.ones(1)
    for top_p, kept in ((0.1, 1), (0.5, 1), (0.6, 2), (0.9, 3), (0.99, 4), (1.0, 4)):
        support = nucleus(p.log(), one, torch.tensor([top_p]), (4,))
        assert support[0].tolist() == [i < kept for i in range(4)], top_p


def test_deterministic_takes_the_most_probable_value_of_each_factor() -> None:
    head = TokenHead(4, (3, 4))
    logits = torch.tensor([[0.0, 2.0, 1.0, 0.0, 0.0, 5.0, 1.0]])
    one = torch.ones(1)
    assert head.sample(logits, one, one, deterministic=True)[0].item() == 1 * 4 + 2


def test_gradients_are_finite_under_a_narrow_support() -> None:
    head = TokenHead(8, (5, 7))
    logits = head.logits(torch.randn(10, 8) * 30)
    warp = torch.full((10,), 0.7), torch.full((10,), 0.3)
    tokens, _, support = head.sample(logits.detach(), *warp)
    (head.log_prob(logits, tokens, warp[0], support).sum() + head.entropy(logits, warp[0], support).sum()).backward()
    assert torch.isfinite(head.project.weight.grad).all()
