"""RLinf: the stored batch through its trajectory builder, advantages and losses (tests/frameworks/rlinf/loop.py)."""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from parities.batch import TESTS, Batch, Replay, configuration, policy, read, rows_of
from parities.compare import (
    Difference,
    Outcome,
    apart,
    distance,
    gradients,
    local,
    objective,
    policy_apart,
    renormalised,
    standard_deviation,
    times,
    value_apart,
    where,
)

PACKAGES = ("rlinf",)
ALGORITHMS = ("grpo", "ppo")
EPS = 1e-5
"""What RLinf adds to the deviation that it divides PPO's advantages by."""


@contextmanager
def ready() -> Iterator[None]:
    """RLinf on this machine's CPU, with our plugin registered."""
    for folder in (TESTS / "frameworks" / "rlinf", TESTS.parent / "examples"):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    from cpu_shim import use_cpu

    from vla_models.frameworks.rlinf import plugin

    use_cpu()
    plugin.register()
    yield


def outcome(batch: Batch, algorithm: str, *, level: str = "chunk_level", clip_values: bool = False) -> Outcome:
    """What RLinf makes of the batch. ``level``: of log-probabilities; ``clip_values``: its value clip."""
    import loop

    with tempfile.TemporaryDirectory() as folder:
        s = loop.setting(Path(folder), configuration(batch.case, algorithm, "rlinf"))
    replay, model = Replay(batch), s.policy.model
    with replay.world(), patch.object(model, "predict", replay.predict):
        raw, _ = loop.rollout(s)
    model.load_state_dict(policy(batch.case).state_dict())
    s.cfg.algorithm.logprob_type = level
    if not clip_values:
        s.cfg.algorithm.value_clip = math.inf
    rows = loop.training_batch(loop.advantages(s, raw), shuffle=False)
    record = loop_record(rows)
    order = rows_of(batch, record).argsort()
    s.policy.value_coef = 1.0
    total, metrics, out = loop.loss(s, rows)
    mask = s.policy._pad(model.evaluate_actions(record)["mask"].flatten(1))
    log_ratio = (out["logprobs"] - rows["prev_logprobs"]).detach()
    if level == "chunk_level":
        ratio = log_ratio.sum(1, keepdim=True).exp()
    else:
        ratio = torch.where(mask, log_ratio.exp(), torch.nan)[:, : batch.logprobs.flatten(1).shape[1]]
    valid = batch.valid[:, None]
    advantages = torch.where(batch.valid, rows["advantages"].flatten()[order], torch.nan)
    ratio = torch.where(valid, ratio[order], torch.nan)
    policy_loss = float(metrics["actor/policy_loss"])
    if algorithm == "grpo":
        return Outcome(advantages, ratio, policy_loss, gradients(model, total))
    value_loss, learned = _critic(s, rows)
    both = gradients(model, total)
    return Outcome(advantages, ratio, policy_loss, {k: both[k] - learned[k] for k in both}, value_loss, learned)


def expected(batch: Batch, algorithm: str) -> Outcome:
    """``local``'s answer with RLinf's differences by design: ratios of decisions, failed ones in the mean, its eps."""
    advantages = local(batch, algorithm).advantages
    if algorithm == "ppo":
        advantages = renormalised(advantages, batch, standard_deviation(batch) + EPS)
    return objective(batch, algorithm, advantages, decisions=True, failed_count=True)


def loop_record(rows: dict[str, Any]) -> dict[str, Tensor]:
    """The record in RLinf's training rows."""
    from vla_models.frameworks.records import unpack

    return unpack(rows["forward_inputs"])


def _critic(s: Any, rows: dict[str, Any]) -> tuple[float, dict[str, Tensor]]:
    """RLinf's value loss alone, and its gradient: the loss without a policy's (its own ``critic_warmup``)."""
    import loop
    from rlinf.algorithms import registry

    whole = registry.policy_loss
    with patch.object(registry, "policy_loss", lambda **given: whole(**{**given, "critic_warmup": True})):
        total, metrics, _ = loop.loss(s, rows)
    return float(metrics["critic/value_loss"]), gradients(s.policy.model, total)


def differences() -> list[Difference]:
    """Where RLinf differs by design, measured on the stored batch."""
    from rlinf.algorithms import losses, utils
    from rlinf.utils import utils as shared

    found = []
    tokens = read("tokens")
    ours, theirs = local(tokens, "grpo"), outcome(tokens, "grpo")
    decision = objective(tokens, "grpo", ours.advantages, decisions=True, failed_count=True)
    found.append(
        Difference(
            "ratio of a decision",
            "one ratio for all parts of a decision (log-probabilities are added up), where local clips each part",
            where("rlinf", utils.preprocess_loss_inputs, 'elif logprob_type == "chunk_level"'),
            "none that keeps the loss's scale: logprob_type: token_level has the parts' ratios (next row)",
            policy_apart(ours, theirs),
            max(policy_apart(decision, theirs), distance(decision.ratio, theirs.ratio)),
            "against local's objective on summed log-probabilities, the failed decision counted",
        )
    )
    by_token = outcome(tokens, "grpo", level="token_level")
    parts = _padded_parts(tokens)
    counted = int(torch.isfinite(ours.ratio).sum())
    found.append(
        Difference(
            "ratio of a part",
            "token_level divides by all parts of all decisions, padding included (no mask of parts exists)",
            where("rlinf", shared.masked_mean_ratio, ".mean()"),
            "logprob_type: token_level (our launcher refuses it because of the scale)",
            apart(ours.gradients, by_token.gradients),
            max(
                apart(ours.gradients, times(by_token, len(tokens.valid) * parts / counted).gradients),
                distance(ours.ratio, by_token.ratio),
            ),
            f"gradient times {len(tokens.valid) * parts} places / {counted} parts that count",
        )
    )
    one = read("decision")
    share = float(one.valid.float().mean())
    ours, theirs = local(one, "grpo"), outcome(one, "grpo")
    found.append(
        Difference(
            "invalid episodes in the mean",
            "an invalid decision has advantage 0 but is counted in the loss's mean; local leaves it out",
            where("rlinf", losses.compute_ppo_actor_loss, "loss_agg_func = masked_mean_ratio"),
            "none; nothing where no world fails",
            policy_apart(ours, theirs),
            policy_apart(times(ours, share), theirs),
            f"local times {int(one.valid.sum())} valid / {len(one.valid)} decisions",
        )
    )
    ours, theirs = local(one, "ppo"), outcome(one, "ppo")
    divisor = standard_deviation(one) + EPS
    found.append(
        Difference(
            "PPO: eps of the normalisation",
            "advantages are divided by the deviation + 1e-5, local adds 1e-6",
            where("rlinf", utils.safe_normalize, "std + 1e-5"),
            "none",
            distance(ours.advantages, theirs.advantages),
            distance(renormalised(ours.advantages, one, divisor), theirs.advantages),
            "local's advantages over the other divisor",
        )
    )
    found.append(
        Difference(
            "PPO: an invalid episode's value",
            "its value is held at what it was when it was sampled, and it is counted in the mean; local leaves it out",
            where("rlinf", shared.masked_mean_ratio, ".mean()"),
            "none; nothing where no world fails",
            value_apart(ours, theirs),
            value_apart(objective(one, "ppo", ours.advantages, failed_count=True), theirs),
            "against local's loss with the invalid one counted, its own value of sampling as its target",
        )
    )
    whole = one.without_failure()
    ours, theirs, clipped = local(whole, "ppo"), outcome(whole, "ppo"), outcome(whole, "ppo", clip_values=True)
    found.append(
        Difference(
            "PPO: value clip and Huber",
            "values may move by value_clip (0.2) from those of sampling, and errors above huber_delta (10) count linearly",
            where("rlinf", losses.compute_ppo_critic_loss, "value_pred_clipped = "),
            "framework_options.algorithm.value_clip: .inf",
            value_apart(ours, clipped),
            value_apart(ours, theirs),
            "the switch",
        )
    )
    return found


def _padded_parts(batch: Batch) -> int:
    """Parts of a decision as RLinf pads them: a multiple of the plan's size."""
    size = batch.plans[0].size
    return -(-batch.logprobs.flatten(1).shape[1] // size) * size
