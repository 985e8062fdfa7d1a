"""What every head over a feature vector shares: ``PlanHead``, and the value head beside it.

A head is a distribution over plans given one feature vector a row (a model's last hidden state, say). ``sample`` draws and
returns, beside the plans, the part of the record from which ``log_prob`` recomputes the probabilities: both call the same code
on the same numbers, so unchanged weights give a ratio of exactly 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from vla_models.errors import DivergenceError, PlanError

Record = Mapping[str, Tensor]
"""Flat, batch first: everything that a head needs to replay a decision, sampling parameters included."""


@dataclass(frozen=True)
class Decision:
    """What ``PlanHead.sample`` drew for B rows."""

    plans: Tensor
    """float32 [B, T, 3]: x, y, heading, ego frame."""
    logprobs: Tensor
    """float32 [B, *S] under the sampling distribution; S differs from head to head."""
    record: dict[str, Tensor]
    """The head's part of the record."""


class PlanHead(nn.Module, ABC):
    """A distribution over plans of ``horizon`` poses, ``dt`` seconds apart, given features [B, dim].

    All probabilities are float32 and computed in float32, whatever type the weights have.
    """

    horizon: int
    dt: float

    @abstractmethod
    def sample(
        self,
        features: Tensor,
        speed: Tensor,
        *,
        temperature: Tensor,
        top_p: Tensor,
        deterministic: bool = False,
        generator: torch.Generator | None = None,
    ) -> Decision:
        """One plan per row.

        features: [B, dim]; speed: the ego's present speed [B] in m/s, from which plans start; temperature, top_p: [B].
        deterministic: the likeliest plan instead. generator: the source of all randomness, else torch's global one.
        """

    @abstractmethod
    def log_prob(self, features: Tensor, record: Record, *, entropy: bool = False) -> dict[str, Tensor]:
        """``logprobs`` float32 [B, *S] of what ``sample`` recorded, under the present features and weights, and ``mask``
        bool [B, *S]; on request ``entropy`` float32 [B, *S], where it has a closed form (else it is absent)."""

    @abstractmethod
    def record_from_plans(self, plans: Tensor, speed: Tensor) -> dict[str, Tensor]:
        """The record of plans [B, T, 3] that somebody else made from speeds [B]: what ``imitation_loss`` takes."""

    def imitation_loss(self, features: Tensor, record: Record) -> Tensor:
        """What imitation minimises, float32 [B]: the negative log-likelihood per action, unless a head has no likelihood."""
        out = self.log_prob(features, record)
        counted = torch.where(out["mask"], out["logprobs"], 0.0).flatten(1)
        return -counted.sum(1) / out["mask"].flatten(1).sum(1).clamp(min=1)

    def measure(self, plans: Tensor, speed: Tensor) -> dict[str, Any]:
        """Normalisation statistics of plans [N, T, 3] driven from speeds [N], as JSON values; empty where none are needed."""
        return {}

    def normalise(self, statistics: Mapping[str, Any]) -> None:
        """Take the statistics that ``measure`` found: they become buffers, saved with the weights."""


class Linear32(nn.Linear):
    """A linear layer that computes in float32 whatever its weights are: a bfloat16 mean would be half a metre off at 60 m."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        return nn.functional.linear(x.float(), self.weight.float(), bias)


class ExactBuffers(nn.Module):
    """A module whose buffers keep their type when the model is cast: ranges and anchors are geometry, not weights."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        kept = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in kept.items():
            moved = self._buffers[name]
            if value is not None and moved is not None and moved.dtype != value.dtype:
                self._buffers[name] = value.to(moved.device)
        return self


class ValueHead(nn.Module):
    """State values float32 [B] from features [B, dim]. Saved apart from the policy (``VLAInterface.value_prefix``)."""

    def __init__(self, dim: int, hidden: int | None = None) -> None:
        super().__init__()
        self.into, self.out = Linear32(dim, hidden or dim), Linear32(hidden or dim, 1)

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.out(nn.functional.gelu(self.into(features)))[:, 0]
        return out


def check_plans(plans: Any, horizon: int) -> Tensor:
    """``plans`` as a float64 tensor; ``PlanError`` unless it is [B, horizon, 3] and finite."""
    wanted = torch.as_tensor(plans)
    if wanted.ndim != 3 or wanted.shape[1:] != (horizon, 3):
        raise PlanError(f"plans must have shape [B, {horizon}, 3], not {list(wanted.shape)}")
    if bad := (~torch.isfinite(wanted).flatten(1).all(1)).nonzero().flatten().tolist():
        raise PlanError(f"plans have NaN or infinite numbers in rows {bad[:10]}; only finite plans can be encoded")
    return wanted.double()


def check_finite(values: Tensor, what: str) -> Tensor:
    """``values`` [B, …], unless a row is NaN or infinite: then a ``DivergenceError`` that names the rows."""
    if torch.isfinite(values).all():
        return values
    rows = (~torch.isfinite(values).flatten(1).all(1)).nonzero().flatten().tolist()
    hint = "" if values.dtype == torch.float32 else f" Weights are {values.dtype}: its range or precision ran out; use float32."
    raise DivergenceError(
        f"{what} are not finite in rows {rows[:10]} of {len(values)}: the weights diverged or overflowed; take an earlier "
        f"checkpoint and a lower learning rate.{hint}"
    )


def noise_like(values: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal float32 of the shape of ``values``, from ``generator`` wherever that lives."""
    device = values.device if generator is None else generator.device
    return torch.randn(values.shape, generator=generator, device=device).to(values.device)
