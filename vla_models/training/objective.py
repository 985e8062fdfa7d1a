"""What the optimiser minimises: GRPO and PPO for decisions of several tokens, as pure functions of tensors.

Shapes: S scenes, G plans per scene (a group), B = S·G decisions with a scene's plans in consecutive rows, L actions (tokens)
per decision. ``mask`` [B, L] says which actions count; ``valid`` says which decisions do. Invalid decisions take part in
nothing: not in a group's mean, not in the loss.

Sources: PPO (Schulman 2017), GRPO (DeepSeekMath 2024, equations 3 and 4), clip-higher and the token mean (DAPO 2025), the k3
estimator (Schulman, "Approximating KL divergence", 2020).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
GROUP_EPS = 1e-6
"""Added to a group's standard deviation; groups that all scored the same within it have advantage 0."""


@dataclass(frozen=True)
class PolicyTerms:
    """Means over the counted actions, scalars; ``loss`` has a gradient, the others are for the log."""

    loss: Tensor
    clip_fraction: Tensor
    """Share of actions whose ratio left [1 - clip_low, 1 + clip_high] on the side where clipping stops the gradient."""
    ratio_deviation: Tensor
    """Largest |ratio - 1| of a counted action."""
    approx_kl: Tensor
    """k3 estimate of KL(old || new): how far this update has moved from the policy that sampled."""


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``values`` where ``mask`` is true (0 where nothing counts); uncounted entries may be NaN and get no gradient."""
    return torch.where(mask, values, torch.zeros_like(values)).sum() / mask.sum().clamp(min=1)


def group_advantages(rewards: Tensor, valid: Tensor, *, normalize: bool = True) -> Tensor:
    """GRPO's advantages [S, G]: reward minus its group's mean, over the group's standard deviation if ``normalize``.

    Means and deviations run over the valid decisions only. Invalid decisions, groups with fewer than two valid ones, and groups
    whose rewards are all equal get 0: they say nothing about which plan is better.
    """
    counted, zero = valid.cpu().numpy(), np.float32(0.0)  # in NumPy, because a torch call costs more than so few numbers
    earned = np.where(counted, rewards.cpu().numpy(), zero)
    count = counted.sum(axis=1, keepdims=True, dtype=np.float32)
    mean = earned.sum(axis=1, keepdims=True) / np.maximum(count, 1)
    centred = np.where(counted & (count > 1), earned - mean, zero)
    if normalize:
        std = np.sqrt(np.square(centred).sum(axis=1, keepdims=True) / np.maximum(count - 1, 1))
        centred = np.where(std > GROUP_EPS, centred / (std + np.float32(GROUP_EPS)), zero)
    return torch.from_numpy(centred).to(rewards)


def value_advantages(rewards: Tensor, values: Tensor, valid: Tensor, *, normalize: bool = True) -> Tensor:
    """PPO's advantages for one-decision episodes, [B]: reward minus predicted value, normalised over the batch; invalid: 0."""
    advantages = torch.where(valid, rewards - values, torch.zeros_like(rewards))
    return normalised(advantages, valid) if normalize else advantages


def normalised(advantages: Tensor, valid: Tensor) -> Tensor:
    """Advantages with mean 0 and deviation 1 over those that are ``valid``; the others are 0."""
    count = valid.sum().clamp(min=1)
    mean = torch.where(valid, advantages, torch.zeros_like(advantages)).sum() / count
    centred = torch.where(valid, advantages - mean, torch.zeros_like(advantages))
    std = (centred.square().sum() / (count - 1).clamp(min=1)).sqrt()
    return centred / (std + GROUP_EPS)


def discounted_returns(rewards: FloatArray, ended: BoolArray, gamma: float) -> FloatArray:
    """[T, N] what each row earned from a decision on, until its episode or the T decisions were over."""
    returns = rewards.copy()
    for t in reversed(range(len(rewards) - 1)):
        returns[t] += gamma * np.where(ended[t], 0.0, returns[t + 1]).astype(np.float32)
    return returns


def generalised_advantages(
    rewards: FloatArray, values: FloatArray, next_values: FloatArray, ended: BoolArray, gamma: float, lam: float
) -> FloatArray:
    """Advantages [T, N] of T decisions of N rows (GAE: Schulman et al. 2016, equation 16).

    Args:
        rewards: [T, N].
        values: [T, N] of the states in which the decisions were taken.
        next_values: [T, N] of those to which they led; 0 where the task has ended.
        ended: [T, N] whether an episode was over with the decision, also at a limit: what follows is another one's.
        gamma: the discount.
        lam: from 0 (one reward and the next value) to 1 (all rewards of the segment, and the last value).
    """
    advantages: FloatArray = rewards + np.float32(gamma) * next_values - values
    for t in reversed(range(len(rewards) - 1)):
        advantages[t] += np.float32(gamma * lam) * np.where(ended[t], 0.0, advantages[t + 1]).astype(np.float32)
    return advantages


def policy_terms(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, *, clip_low: float, clip_high: float
) -> PolicyTerms:
    """PPO's clipped surrogate per action, averaged over all counted actions.

    Args:
        logprobs: [B, L] of the policy being trained.
        old_logprobs: [B, L] of the policy that sampled; no gradient.
        advantages: [B], one per decision, shared by its actions.
        mask: bool [B, L] actions that count.
        clip_low: the ratio is clipped below at 1 - clip_low.
        clip_high: … and above at 1 + clip_high.
    """
    log_ratio = torch.where(mask, logprobs - old_logprobs, torch.zeros_like(logprobs))
    ratio = log_ratio.exp()
    weight = advantages[:, None]
    unclipped = ratio * weight
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * weight
    with torch.no_grad():
        deviation = (ratio - 1.0).abs().max() if ratio.numel() else torch.zeros(())
        clip_fraction = masked_mean((clipped < unclipped).float(), mask)
        approx_kl = masked_mean(ratio - 1.0 - log_ratio, mask)
    return PolicyTerms(-masked_mean(torch.minimum(unclipped, clipped), mask), clip_fraction, deviation, approx_kl)


def kl_to_reference(logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor) -> Tensor:
    """k3 estimate of KL(policy || reference) per action, averaged: exp(r) - r - 1, r = reference - policy; never negative."""
    r = torch.where(mask, reference_logprobs - logprobs, torch.zeros_like(logprobs))
    return masked_mean(r.exp() - r - 1.0, mask)


def value_loss(values: Tensor, rewards: Tensor, valid: Tensor) -> Tensor:
    """Half the mean squared error of predicted values [B] against rewards [B] (the return of a one-decision episode)."""
    target = torch.where(valid, rewards, torch.zeros_like(rewards))  # an invalid reward is NaN: keep it out of the gradient
    return 0.5 * masked_mean((values - target).square(), valid)
