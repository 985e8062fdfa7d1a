"""GRPO and PPO as formulas: values worked out by hand, and properties that hold for any batch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vla_models.training.objective import (
    discounted_returns,
    generalised_advantages,
    group_advantages,
    kl_to_reference,
    masked_mean,
    normalised,
    policy_terms,
    value_advantages,
    value_loss,
)


def test_group_advantages_by_hand() -> None:
    rewards = torch.tensor([[0.0, 1.0], [3.0, 3.0]])
    valid = torch.ones(2, 2, dtype=torch.bool)
    assert torch.allclose(group_advantages(rewards, valid, normalize=False), torch.tensor([[-0.5, 0.5], [0.0, 0.0]]))
    half = 1 / math.sqrt(2)
    assert torch.allclose(group_advantages(rewards, valid), torch.tensor([[-half, half], [0.0, 0.0]]), atol=1e-5)


def test_invalid_decisions_count_for_nothing() -> None:
    rewards = torch.tensor([[1.0, 3.0, math.nan], [5.0, math.nan, math.nan]])
    valid = torch.isfinite(rewards)
    assert torch.equal(group_advantages(rewards, valid, normalize=False), torch.tensor([[-1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))
    assert torch.isfinite(group_advantages(rewards, valid)).all()
    flat = value_advantages(rewards.flatten(), torch.zeros(6), valid.flatten(), normalize=False)
    assert torch.equal(flat, torch.tensor([1.0, 3.0, 0.0, 5.0, 0.0, 0.0]))


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 8), st.floats(0.1, 50.0), st.floats(-20.0, 20.0), st.integers(0, 10**6))
def test_group_advantages_ignore_scale_and_offset(size: int, scale: float, offset: float, seed: int) -> None:
    rewards = torch.rand(3, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assume((rewards.std(dim=1) > 0.01).all())  # for nearly equal rewards the constant beside the deviation is not small
    valid = torch.ones_like(rewards, dtype=torch.bool)
    plain = group_advantages(rewards, valid)
    assert torch.allclose(plain, group_advantages(scale * rewards + offset, valid), atol=1e-3)
    assert torch.allclose(plain.mean(dim=1), torch.zeros(3, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(plain.std(dim=1), torch.ones(3, dtype=torch.float64), atol=1e-2)


def test_on_policy_gradient_is_the_policy_gradient() -> None:
    logprobs = torch.tensor([[-1.0, -2.0], [-0.5, -3.0]], requires_grad=True)
    advantages = torch.tensor([2.0, -1.0])
    mask = torch.tensor([[True, True], [True, False]])
    terms = policy_terms(logprobs, logprobs.detach(), advantages, mask, clip_low=0.2, clip_high=0.28)
    terms.loss.backward()
    assert torch.allclose(logprobs.grad, torch.tensor([[-2.0, -2.0], [1.0, 0.0]]) / 3)
    assert terms.ratio_deviation == 0
    assert terms.clip_fraction == 0
    assert terms.approx_kl == 0


@pytest.mark.parametrize(
    ("ratio", "advantage", "clipped"),
    [(1.27, 1.0, False), (1.29, 1.0, True), (1.29, -1.0, False), (0.79, -1.0, True), (0.79, 1.0, False)],
)
def test_clipping_is_asymmetric_and_one_sided(ratio: float, advantage: float, clipped: bool) -> None:
    logprobs = torch.tensor([[math.log(ratio)]], requires_grad=True)
    terms = policy_terms(
        logprobs, torch.zeros(1, 1), torch.tensor([advantage]), torch.ones(1, 1, dtype=torch.bool), clip_low=0.2, clip_high=0.28
    )
    terms.loss.backward()
    assert terms.clip_fraction == float(clipped)
    assert (logprobs.grad == 0).item() == clipped


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_kl_is_never_negative_and_zero_only_for_equal_policies(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    a, b = torch.randn(4, 8, generator=g), torch.randn(4, 8, generator=g)
    mask = torch.rand(4, 8, generator=g) > 0.3
    assert kl_to_reference(a, b, mask) >= 0
    assert kl_to_reference(a, a, mask) == 0


def test_k3_estimates_the_true_divergence() -> None:
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.5, 0.3])
    sampled = torch.multinomial(p, 200_000, replacement=True, generator=torch.Generator().manual_seed(0))
    estimate = kl_to_reference(p.log()[sampled][:, None], q.log()[sampled][:, None], torch.ones(200_000, 1, dtype=torch.bool))
    assert abs(estimate - (p * (p / q).log()).sum()) < 5e-3


def test_masked_entries_may_be_nan_without_poisoning_the_gradient() -> None:
    values = torch.tensor([1.0, math.nan], requires_grad=True)
    mean = masked_mean(values, torch.tensor([True, False]))
    mean.backward()
    assert mean == 1.0
    assert torch.equal(values.grad, torch.tensor([1.0, 0.0]))
    assert masked_mean(values, torch.zeros(2, dtype=torch.bool)) == 0.0


def test_value_loss_and_its_advantages() -> None:
    values = torch.tensor([0.0, 1.0, 9.0], requires_grad=True)
    rewards = torch.tensor([1.0, 1.0, math.nan])
    valid = torch.tensor([True, True, False])
    loss = value_loss(values, rewards, valid)
    loss.backward()
    assert loss == 0.25
    assert torch.equal(values.grad, torch.tensor([-0.5, 0.0, 0.0]))
    normal = value_advantages(torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3), torch.ones(3, dtype=torch.bool))
    assert torch.allclose(normal, torch.tensor([-1.0, 0.0, 1.0]), atol=1e-5)


def decisions(seed: int, steps: int, rows: int) -> tuple[Any, ...]:
    random = np.random.default_rng(seed)
    numbers = [random.normal(size=(steps, rows)).astype(np.float32) for _ in range(3)]
    return (*numbers, random.random((steps, rows)) < 0.25)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 7), st.floats(0.1, 1.0), st.floats(0.0, 1.0))
def test_generalised_advantages_are_the_weighted_sum_of_the_definition(seed: int, steps: int, gamma: float, lam: float) -> None:
    rewards, values, following, ended = decisions(seed, steps, 3)
    found = generalised_advantages(rewards, values, following, ended, gamma, lam)
    for row in range(3):
        for t in range(steps):
            total, weight = 0.0, 1.0
            for k in range(t, steps):
                total += weight * float(rewards[k, row] + gamma * following[k, row] - values[k, row])
                if ended[k, row]:
                    break
                weight *= gamma * lam
            assert found[t, row] == pytest.approx(total, abs=1e-4)


def test_with_lambda_one_and_zero_values_the_advantage_is_the_return() -> None:
    rewards, values, _, ended = decisions(0, 6, 4)
    nothing = np.zeros_like(values)
    returns = discounted_returns(rewards, ended, 0.9)
    assert np.allclose(generalised_advantages(rewards, nothing, nothing, ended, 0.9, 1.0), returns, atol=1e-5)
    whole = discounted_returns(np.ones((3, 1), np.float32), np.zeros((3, 1), bool), 0.5)
    assert whole[:, 0].tolist() == [1.75, 1.5, 1.0]
    cut = discounted_returns(np.ones((3, 1), np.float32), np.array([[True], [False], [True]]), 0.5)
    assert cut[:, 0].tolist() == [1.0, 1.5, 1.0]


def test_normalised_leaves_out_what_is_invalid() -> None:
    valid = torch.tensor([True, False, True, True])
    found = normalised(torch.tensor([1.0, math.nan, 2.0, 3.0]), valid)
    assert torch.allclose(found, torch.tensor([-1.0, 0.0, 0.0, 1.0]), atol=1e-5)
