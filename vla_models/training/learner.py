"""The optimiser's side of training: from a batch of decisions with advantages to new weights."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor

from vla_models.errors import ConfigError, DivergenceError
from vla_models.training.objective import kl_to_reference, masked_mean, policy_terms, value_loss
from vla_models.training.practice import Batch
from vla_models.training.rollout import select

if TYPE_CHECKING:
    from vla_models.config import VLAConfig
    from vla_models.interface import VLAInterface

REPLAY_TOLERANCE: Final = 1e-3
"""A batch's first update is on-policy, so its ratios are 1; further off than this, the model does not replay its samples."""
HALF_TOLERANCE: Final = 5e-2
"""The same for models with weights of half precision, whose rounding differs from one minibatch to another."""


class Learner:
    """A model and its optimiser.

    Args:
        config: the run's configuration.
        model: what learns.

    Raises:
        DivergenceError: (its methods) if a loss or gradient is not finite, or a log-probability cannot be reproduced.
    """

    def __init__(self, config: VLAConfig, model: VLAInterface) -> None:
        self.config, self.model = config, model
        self.optimizer: torch.optim.Optimizer = self.make_optimizer("imitation")

    def make_optimizer(self, phase: str) -> torch.optim.Optimizer:
        """A new optimiser for a phase; only matrices decay."""
        settings, imitation = self.config.training.optimizer, self.config.training.imitation
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": settings.weight_decay},
            {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
        ]
        lr = imitation.lr if phase == "imitation" else settings.lr
        if settings.type == "sgd":
            return torch.optim.SGD(groups, lr=lr)
        return (torch.optim.AdamW if settings.type == "adamw" else torch.optim.Adam)(groups, lr=lr, fused=True)

    def set_lr(self, lr: float) -> None:
        """Learning rate of the next updates."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    @property
    def uses_reference(self) -> bool:
        """Whether the loss has a KL term, and the model a frozen reference."""
        return self.config.algorithm.kl_coef > 0.0

    def update(self, loss: Tensor, phase: str, step: int) -> float:
        """One optimiser step; returns the gradient's length before clipping."""
        if not torch.isfinite(loss):
            raise DivergenceError(f"{phase} step {step + 1}: the loss is {loss.item()}; lower the learning rate ({phase})")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.training.optimizer.grad_clip).item()
        if not np.isfinite(norm):
            raise DivergenceError(f"{phase} step {step + 1}: the gradient's norm is {norm}; lower the learning rate ({phase})")
        self.optimizer.step()
        return norm

    def learn(self, batch: Batch, step: int, random: np.random.Generator) -> dict[str, Any]:
        """All optimiser steps of a batch; returns what the log wants to know about them."""
        algorithm = self.config.algorithm
        started = time.perf_counter()
        reference = self._reference_logprobs(batch)
        half = any(p.dtype in (torch.bfloat16, torch.float16) for p in self.model.parameters())
        tolerance = HALF_TOLERANCE if half else REPLAY_TOLERANCE
        parts: list[dict[str, float]] = []
        for _ in range(algorithm.epochs):
            shuffled = torch.as_tensor(random.permutation(len(batch.valid) // batch.together))
            rows = (shuffled[:, None] * batch.together + torch.arange(batch.together)).flatten()
            for part in rows.tensor_split(algorithm.minibatches):
                loss, terms = self._loss(batch, reference, part)
                if not parts and terms["ratio_max_dev"] > tolerance:
                    raise DivergenceError(
                        f"rl step {step + 1}: before any update the ratio differs from 1 by {terms['ratio_max_dev']:.2g}; "
                        f"{type(self.model).__name__}.evaluate_actions does not recompute what predict sampled with"
                    )
                terms["grad_norm"] = self.update(loss, "rl", step)
                parts.append(terms)
        return {
            **{name: float(np.mean([terms[name] for terms in parts])) for name in parts[0] if name != "ratio_max_dev"},
            "ratio_max_dev_first": parts[0]["ratio_max_dev"],
            "lr": self.optimizer.param_groups[0]["lr"],
            "update_s": time.perf_counter() - started,
        }

    def _loss(self, batch: Batch, reference: Tensor | None, rows: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Loss of some rows of a batch, and what the log wants to know about it."""
        algorithm = self.config.algorithm
        ppo = batch.returns is not None
        out = self.model.evaluate_actions(select(batch.record, rows), entropy=True, values=ppo)
        valid = batch.valid[rows].to(out["mask"].device)
        mask = out["mask"].flatten(1) & valid[:, None]
        logprobs, old = out["logprobs"].flatten(1), batch.logprobs.flatten(1)[rows]
        policy = policy_terms(
            logprobs, old, batch.advantages[rows], mask, clip_low=algorithm.clip_low, clip_high=algorithm.clip_high
        )
        loss = policy.loss
        terms = {"policy_loss": policy.loss.item(), "clip_fraction": policy.clip_fraction.item()}
        terms |= {"approx_kl": policy.approx_kl.item(), "ratio_max_dev": policy.ratio_deviation.item()}
        if reference is not None:
            kl = kl_to_reference(logprobs, reference.flatten(1)[rows], mask)
            loss = loss + algorithm.kl_coef * kl
            terms["kl"] = kl.item()
        if algorithm.entropy_coef > 0.0 and "entropy" not in out:
            raise ConfigError(
                f"algorithm.entropy_coef: the {self.model.spec.head} head of {type(self.model).__name__} has no entropy in "
                "closed form, so there is nothing to add a bonus for; use 0"
            )
        if "entropy" in out:
            entropy = masked_mean(out["entropy"].flatten(1), mask)
            loss = loss - algorithm.entropy_coef * entropy
            terms["entropy"] = entropy.item()
        if batch.returns is not None:
            error = value_loss(out["values"], batch.returns[rows], valid)
            loss = loss + algorithm.value_coef * error
            terms["value_loss"] = error.item()
        return loss, {"loss": loss.item(), **terms}

    def _reference_logprobs(self, batch: Batch) -> Tensor | None:
        """Log-probabilities [B, *S] under the frozen reference, or None where nothing asks for them."""
        if not self.uses_reference:
            return None
        with self.model.reference(), torch.no_grad():
            logprobs: Tensor = self.model.evaluate_actions(batch.record)["logprobs"]
        return logprobs
