"""What a framework made of the stored batch, the local trainer's answer to it, and how far they are apart."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import torch
from torch import Tensor, nn

from parities.batch import CASES, SCENES, Batch, Replay, configuration, policy, rows_of, visible_scenes
from vla_models.training.learner import Learner
from vla_models.training.navsim_practice import NavSimPractice
from vla_models.training.objective import GROUP_EPS, policy_terms, value_loss

EQUAL: Final = 1e-5
"""Differences up to this are rounding."""


@dataclass(frozen=True)
class Outcome:
    """B = 16 decisions, in the stored order."""

    advantages: Tensor
    """[B]; NaN where the framework was given no such row."""
    ratio: Tensor
    """[B, P] policy over sampler, for each part of a decision (or one for all of it); NaN where a part does not count."""
    loss: float
    """Of the policy."""
    gradients: Mapping[str, Tensor]
    """Of the policy's loss, by weight."""
    value_loss: float | None = None
    value_gradients: Mapping[str, Tensor] = field(default_factory=dict)
    """PPO: of the value loss, without its coefficient."""


@dataclass(frozen=True)
class Difference:
    """One place where a framework differs by design, with its size on this batch."""

    name: str
    what: str
    where: str
    """File and line in the installed package."""
    switch: str
    """What makes it agree; "none" where nothing does."""
    before: float
    """Largest difference to ``local`` as the framework runs."""
    after: float
    """… with the switch, or after what is known of the difference was taken out."""
    how: str
    """How ``after`` was found."""

    @property
    def explained(self) -> bool:
        """Whether nothing is left of it."""
        return self.after <= EQUAL


def local(batch: Batch, algorithm: str) -> Outcome:
    """The local trainer: its own practice collects the stored decisions, its own learner has the loss."""
    config, model, replay = configuration(batch.case, algorithm), policy(batch.case), Replay(batch)
    scenes = visible_scenes(6)
    practice = NavSimPractice(config, scenes[:SCENES], scenes[SCENES:])
    with replay.world(), patch.object(model, "predict", replay.predict):
        collected = practice.collect(model, 0)
    order = rows_of(batch, collected.record).argsort()
    total, terms = Learner(config, model)._loss(collected, None, order)
    whole = gradients(model, total)
    out = model.evaluate_actions(collected.record)
    mask = out["mask"].flatten(1) & collected.valid[:, None]
    old = collected.logprobs.flatten(1)
    clip = {"clip_low": config.algorithm.clip_low, "clip_high": config.algorithm.clip_high}
    surrogate = policy_terms(out["logprobs"].flatten(1), old, collected.advantages, mask, **clip).loss
    ratio = torch.where(mask, (out["logprobs"].detach().flatten(1) - old).exp(), torch.nan)[order]
    found = gradients(model, surrogate)
    advantages = torch.where(collected.valid, collected.advantages, torch.nan)[order]
    if collected.returns is None:
        assert apart(whole, found) < EQUAL
        return Outcome(advantages, ratio, terms["policy_loss"], found)
    values = model.evaluate_actions(collected.record, values=True)["values"]
    learned = gradients(model, value_loss(values, collected.returns, collected.valid))
    coefficient = config.algorithm.value_coef
    assert apart(whole, {name: found[name] + coefficient * learned[name] for name in found}) < EQUAL
    return Outcome(advantages, ratio, terms["policy_loss"], found, terms["value_loss"], learned)


def objective(
    batch: Batch,
    algorithm: str,
    advantages: Tensor,
    *,
    decisions: bool = False,
    failed_count: bool = False,
    values_by_part: bool = False,
) -> Outcome:
    """``local``'s objective with what is known of a framework built in.

    Args:
        batch: the stored one.
        algorithm: grpo or ppo.
        advantages: [B]; NaN where a world failed.
        decisions: one ratio for a whole decision, its log-probabilities added up.
        failed_count: failed decisions are counted in means; their advantage is 0, and their value is held.
        values_by_part: the value loss of a decision counts as often as it has parts.
    """
    settings, model = configuration(batch.case, algorithm).algorithm, policy(batch.case)
    out = model.evaluate_actions(batch.record, values=algorithm == "ppo")
    mask, valid, nothing = out["mask"].flatten(1), batch.valid, torch.zeros(())
    new, old = out["logprobs"].flatten(1), batch.logprobs.flatten(1)
    parts = mask.sum(1)
    if decisions:
        new, old = (torch.where(mask, value, nothing).sum(1, keepdim=True) for value in (new, old))
        mask = torch.ones_like(new, dtype=torch.bool)
    counted = mask if failed_count else mask & valid[:, None]
    clip = {"clip_low": settings.clip_low, "clip_high": settings.clip_high}
    loss = policy_terms(new, old, advantages.nan_to_num(), counted, **clip).loss
    found = gradients(model, loss)
    ratio = torch.where(mask & valid[:, None], (new.detach() - old).exp(), torch.nan)
    if algorithm == "grpo":
        return Outcome(advantages, ratio, loss.item(), found)
    values = model.evaluate_actions(batch.record, values=True)["values"]
    target = torch.where(valid, batch.rewards, batch.values)
    weight = (valid | failed_count) * (parts if values_by_part else torch.ones_like(parts))
    error = 0.5 * ((values - target).square() * weight).sum() / weight.sum()
    return Outcome(advantages, ratio, loss.item(), found, error.item(), gradients(model, error))


def standard_deviation(batch: Batch) -> float:
    """Of rewards minus values, over the valid rows: what PPO's advantages are divided by."""
    return float((batch.rewards - batch.values)[batch.valid].std())


def renormalised(advantages: Tensor, batch: Batch, divisor: float) -> Tensor:
    """PPO's advantages of ``local`` as if they had been divided by ``divisor``."""
    return advantages * (standard_deviation(batch) + GROUP_EPS) / divisor


def gradients(model: nn.Module, loss: Tensor | None = None) -> dict[str, Tensor]:
    """Of ``loss``, or what ``backward`` has left, for every weight (zero where none came)."""
    names, weights = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
    if loss is None:
        found = [getattr(p.grad, "full_tensor", lambda p=p: p.grad)() if p.grad is not None else None for p in weights]
    else:
        found = list(torch.autograd.grad(loss, weights, allow_unused=True))
    shapes = [getattr(p, "full_tensor", lambda p=p: p)().shape for p in weights]
    return {
        name: torch.zeros(shape) if value is None else value.detach().clone()
        for name, shape, value in zip(names, shapes, found, strict=True)
    }


def apart(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Largest difference between two sets of gradients; both must name the same weights."""
    if a.keys() != b.keys():
        raise AssertionError(f"gradients of different weights: {sorted(a.keys() ^ b.keys())[:4]}")
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def distance(a: Tensor, b: Tensor) -> float:
    """Largest difference where both have a number."""
    if a.shape != b.shape:
        return float("inf")
    both = torch.isfinite(a) & torch.isfinite(b)
    return float((a - b)[both].abs().max())


def value_apart(a: Outcome, b: Outcome) -> float:
    """Largest difference between two value losses and their gradients."""
    if a.value_loss is None or b.value_loss is None:
        raise AssertionError("there is a value loss in PPO alone")
    return max(abs(a.value_loss - b.value_loss), apart(a.value_gradients, b.value_gradients))


def policy_apart(a: Outcome, b: Outcome) -> float:
    """Largest difference between two policy losses and their gradients."""
    return max(abs(a.loss - b.loss), apart(a.gradients, b.gradients))


def times(outcome: Outcome, factor: float) -> Outcome:
    """The same with losses and gradients times a number."""
    return replace(
        outcome,
        loss=outcome.loss * factor,
        gradients={name: value * factor for name, value in outcome.gradients.items()},
        value_loss=None if outcome.value_loss is None else outcome.value_loss * factor,
        value_gradients={name: value * factor for name, value in outcome.value_gradients.items()},
    )


def differences(reference: Outcome, found: Outcome) -> dict[str, float]:
    """Largest differences of each quantity; of ratios where they are of the same level, else infinite."""
    out = {
        "advantages": distance(reference.advantages, found.advantages),
        "ratio": distance(reference.ratio, found.ratio),
        "loss": abs(reference.loss - found.loss),
        "gradient": apart(reference.gradients, found.gradients),
    }
    if reference.value_loss is not None and found.value_loss is not None:
        out["value_loss"] = abs(reference.value_loss - found.value_loss)
        out["value_gradient"] = apart(reference.value_gradients, found.value_gradients)
    return out


def where(package: str, function: Callable[..., Any], contains: str) -> str:
    """``file:line`` of the first line of ``function`` with this text; an error if the package has changed."""
    function = inspect.unwrap(function)
    lines, first = inspect.getsourcelines(function)
    for number, line in enumerate(lines, first):
        if contains in line:
            file = Path(inspect.getsourcefile(function) or "")
            start = max(i for i, part in enumerate(file.parts) if part == package)
            return f"{'/'.join(file.parts[start:])}:{number}"
    raise AssertionError(f"{function.__module__}.{function.__qualname__} has no line with {contains!r} any more")


def versions(*packages: str) -> dict[str, str]:
    """Of what a result depends on."""
    return {name: version(name) for name in (*packages, "torch")}


def as_json(case: str, outcome: Outcome) -> dict[str, Any]:
    """The numbers of an outcome, with the gradient of the case's named weight."""

    def plain(value: Tensor) -> Any:
        return [None if not torch.isfinite(v) else float(f"{float(v):.9g}") for v in value.flatten()]

    weight = CASES[case].weight
    out = {
        "advantages": plain(outcome.advantages),
        "ratio": plain(outcome.ratio),
        "loss": outcome.loss,
        "weight": weight,
        "gradient": plain(outcome.gradients[weight]),
    }
    return out | ({} if outcome.value_loss is None else {"value_loss": outcome.value_loss})
