"""Learning from a batch: siiRL's own losses over the decisions of a rank, gradients averaged over all ranks.

The loss of a minibatch is the mean over all log-probabilities that count in it, on all ranks together, however it is cut into
pieces that fit the memory; so one rank and several, small pieces and large ones, give the same gradient.
"""

from __future__ import annotations

import math
from typing import Any, Final

import torch
import torch.distributed as dist
from siirl.dag_worker.core_algos import compute_policy_loss_vanilla, compute_value_loss, kl_penalty
from torch import Tensor

from vla_models.errors import ConfigError, DivergenceError, NotImplementedByModel, SceneError
from vla_models.frameworks.siirl.batch import RECORDS, decision_mask
from vla_models.frameworks.siirl.policy import Policy
from vla_models.training.checkpoint import random_stream
from vla_models.training.imitation import cosine
from vla_models.training.learner import HALF_TOLERANCE, REPLAY_TOLERANCE

_NO_CLIP: Final = math.inf
"""siiRL clips values by its critic's arguments; here the value head is the model's own, and its loss is plain."""


def update(policy: Policy, batch: Any, cfg: Any, group: Any = None) -> dict[str, float]:
    """All optimiser steps of one batch; returns what the log wants to know.

    Args:
        policy: what learns.
        batch: siiRL's batch with ``advantages`` and ``old_log_probs`` [B, D·A] (and ``ref_log_prob``, ``values``, ``returns``).
        cfg: siiRL's ``actor_rollout_ref`` arguments.
        group: process group of all ranks, or None for one rank.
    """
    actor, size = cfg.actor, cfg.rollout.n
    step, ranks = policy.updates, 1 if group is None else dist.get_world_size(group)
    records, finish = batch[RECORDS], batch["finish_step"]
    mask = _parts_mask(batch, policy.parts)
    if over_ranks(float(mask.sum()), group) == 0:
        raise SceneError(f"rl step {step + 1}: no episode can be compared with another; check the scenes, or raise group_size")
    rate = float(actor.optim.lr) * cosine(step, int(actor.optim.total_training_steps), int(actor.optim.lr_warmup_steps))
    for parameters in policy.optimizer.param_groups:
        parameters["lr"] = rate
    episodes = len(records)
    parts = max(1, episodes * ranks // int(actor.ppo_mini_batch_size))
    random = torch.Generator().manual_seed(random_stream(policy.config.seed, "update", step))
    terms: list[dict[str, float]] = []
    first = True
    for _ in range(int(actor.ppo_epochs)):
        groups = torch.randperm(episodes // size, generator=random)
        order = (groups[:, None] * size + torch.arange(size)).flatten()  # groups stay together: they share a prompt
        for rows in order.tensor_split(parts):
            active = decision_mask(finish[rows], records.shape[1]).nonzero()
            places = torch.stack([rows[active[:, 0]], active[:, 1]], dim=1)
            found = _one_step(policy, batch, cfg, mask, places, group, check=first)
            terms += [found] if found else []
            first = False
    policy.updates += 1
    means = {f"actor/{name}": sum(t[name] for t in terms) / len(terms) for name in terms[0]}
    return means | {"actor/lr": rate}


def _one_step(
    policy: Policy, batch: Any, cfg: Any, mask: Tensor, places: Tensor, group: Any, check: bool
) -> dict[str, float] | None:
    """One optimiser step on the decisions ``places`` int64 [n, 2]; None if nothing counts in them on any rank."""
    counted = mask[places[:, 0], places[:, 1]]
    tokens = over_ranks(float(counted.sum()), group)
    decisions = over_ranks(float(counted.any(dim=1).sum()), group)
    if tokens == 0:
        return None
    policy.optimizer.zero_grad(set_to_none=False)
    terms: dict[str, float] = {}
    for part in torch.split(places, int(cfg.actor.ppo_micro_batch_size_per_gpu)):
        loss, found = _loss(policy, batch, cfg, mask, part, tokens, decisions, check)
        if not torch.isfinite(loss):
            raise DivergenceError(
                f"rl step {policy.updates + 1}: the loss is {loss.item()}; lower training.optimizer.lr, or resume with another "
                "seed"
            )
        loss.backward()  # type: ignore[no-untyped-call]
        terms = {name: terms.get(name, 0.0) + value for name, value in found.items()}
    parameters = [p for g in policy.optimizer.param_groups for p in g["params"]]
    if group is not None:
        for p in parameters:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            dist.all_reduce(p.grad, group=group)
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, float(cfg.actor.grad_clip)))
    if not math.isfinite(norm):
        raise DivergenceError(f"rl step {policy.updates + 1}: the gradient's norm is {norm}; lower training.optimizer.lr")
    policy.optimizer.step()
    return {name: over_ranks(value, group) for name, value in terms.items()} | {"grad_norm": norm}


def _loss(
    policy: Policy, batch: Any, cfg: Any, mask: Tensor, places: Tensor, tokens: float, decisions: float, check: bool
) -> tuple[Tensor, dict[str, float]]:
    """The share that some decisions have in a minibatch's loss, and in the numbers for the log."""
    actor, device = cfg.actor, policy.device
    with_values = "values" in batch
    out = policy.replay(batch[RECORDS], places, entropy=float(actor.entropy_coeff) > 0.0, values=with_values)

    def at(name: str) -> Tensor:
        whole: Tensor = batch[name].view(len(batch[RECORDS]), -1, policy.parts)
        return whole[places[:, 0], places[:, 1]].to(device)

    counted = mask[places[:, 0], places[:, 1]].to(device)
    weights = counted.float()
    share = float(weights.sum()) / tokens
    logprobs = torch.where(counted, out["logprobs"], torch.zeros_like(out["logprobs"]))
    old = torch.where(counted, at("old_log_probs"), torch.zeros_like(logprobs))
    ratio = (logprobs - old).detach().exp()
    if check:
        _check_ratio(policy, ratio)
    policy_loss, clipped, _, _ = compute_policy_loss_vanilla(
        old_log_prob=old, log_prob=logprobs, advantages=at("advantages"), response_mask=weights, config=actor
    )
    loss = policy_loss * share
    approx_kl = ((ratio - 1.0 - (logprobs - old).detach()) * weights).sum() / tokens
    terms = {"policy_loss": loss.item(), "clip_fraction": clipped.item() * share, "approx_kl": approx_kl.item()}
    terms["ratio"] = (ratio * weights).sum().item() / tokens
    if float(actor.entropy_coeff) > 0.0:
        if "entropy" not in out:
            raise ConfigError(f"algorithm.entropy_coef: {type(policy.model).__name__} has no entropy; use 0")
        entropy = (out["entropy"] * weights).sum() / tokens
        loss = loss - float(actor.entropy_coeff) * entropy
        terms["entropy"] = entropy.item()
    if actor.use_kl_loss:
        reference = torch.where(counted, at("ref_log_prob"), torch.zeros_like(logprobs))
        kl = (kl_penalty(logprobs, reference, actor.kl_loss_type) * weights).sum() / tokens
        loss = loss + float(actor.kl_loss_coef) * kl
        terms["kl"] = kl.item()
    if with_values:
        if "values" not in out:
            raise NotImplementedByModel(f"{type(policy.model).__name__} cannot be trained with ppo: it gives no values")
        chosen = counted.any(dim=1).float()[:, None]
        error, _ = compute_value_loss(
            out["values"].float()[:, None], at("returns")[:, :1], at("values")[:, :1], chosen, _NO_CLIP
        )
        error = error * float(chosen.sum()) / decisions
        loss = loss + policy.config.algorithm.value_coef * error
        terms["value_loss"] = error.item()
    return loss, {"loss": loss.item(), **terms}


def _check_ratio(policy: Policy, ratio: Tensor) -> None:
    """Before any update the policy is the one that sampled; a ratio that is not 1 means that it does not replay."""
    half = any(p.dtype in (torch.bfloat16, torch.float16) for p in policy.model.parameters())
    deviation = float((ratio - 1.0).abs().max()) if ratio.numel() else 0.0
    if deviation > (HALF_TOLERANCE if half else REPLAY_TOLERANCE):
        raise DivergenceError(
            f"rl step {policy.updates + 1}: before any update the ratio differs from 1 by {deviation:.2g}; "
            f"{type(policy.model).__name__}.evaluate_actions does not recompute the same twice"
        )


def _parts_mask(batch: Any, parts: int) -> Tensor:
    """bool [B, D, A] what counts: decisions of counted episodes, without what the model's own mask leaves out."""
    mask: Tensor = batch["response_mask"].bool()
    return mask.view(len(mask), -1, parts)


def over_ranks(value: float, group: Any) -> float:
    """Sum of a number over all ranks."""
    if group is None:
        return value
    total = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(total, group=group)
    return float(total)
