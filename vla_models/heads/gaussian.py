"""A Gaussian over actions, optionally squashed: what a regression head is when it must explore."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from vla_models.errors import ConfigError, VLAModelsError
from vla_models.heads.base import Decision, Linear32, PlanHead, Record, check_finite, noise_like
from vla_models.heads.spaces import ActionSpace

BOX: Final = 4.0
"""A squashed action lies within this many standard deviations of the data: ``BOX * tanh(raw / BOX)``."""
LOG_SIGMA: Final = (-4.0, 0.5)
"""Range of a learned log sigma, in units of the data's standard deviation."""


class GaussianHead(PlanHead):
    """Independent Gaussians over the T × D numbers of an action, their mean (and sigma) from a small network.

    sigma: a fixed standard deviation in units of the data's, or None: learned, and a function of the features.
    squash: actions are ``BOX * tanh(raw / BOX)``; ``raw`` is recorded, and the log-determinant is exact.

    S = [T]: the log-probability of a step is that of its D numbers. Temperature multiplies sigma. Entropy is closed without
    squashing only.
    """

    def __init__(self, dim: int, space: ActionSpace, sigma: float | None = None, squash: bool = True) -> None:
        super().__init__()
        if sigma is not None and not sigma > 0.0:
            raise ConfigError(f"model.policy_head.sigma: {sigma} is not above 0")
        self.space, self.sigma, self.squash = space, sigma, squash
        self.horizon, self.dt = space.horizon, space.dt
        numbers = space.horizon * space.dim
        self.hidden = Linear32(dim, 2 * dim)
        self.mean = Linear32(2 * dim, numbers)
        self.log_sigma = None if sigma is not None else Linear32(2 * dim, numbers)
        for out in (self.mean, self.log_sigma):
            if out is not None:
                nn.init.normal_(out.weight, std=0.1 * (2 * dim) ** -0.5)
                nn.init.constant_(out.bias, 0.0 if out is self.mean else -0.7)

    @torch.no_grad()
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
        """See ``PlanHead``."""
        whole_distribution(top_p, "a Gaussian")
        mean, sigma = self._distribution(features, temperature)
        raw = mean if deterministic else mean + sigma * noise_like(mean, generator)
        record = {"raw_action": raw, "temperature": temperature}
        return Decision(self.space.decode(self._squashed(raw), speed), self._log_prob(raw, mean, sigma), record)

    def log_prob(self, features: Tensor, record: Record, *, entropy: bool = False) -> dict[str, Tensor]:
        """See ``PlanHead``."""
        mean, sigma = self._distribution(features, record["temperature"])
        logprobs = self._log_prob(record["raw_action"], mean, sigma)
        out = {"logprobs": logprobs, "mask": torch.ones_like(logprobs, dtype=torch.bool)}
        if entropy and not self.squash:
            out["entropy"] = (sigma.log() + 0.5 * math.log(2.0 * math.pi * math.e)).sum(-1)
        return out

    def record_from_plans(self, plans: Tensor, speed: Tensor) -> dict[str, Tensor]:
        """See ``PlanHead``."""
        actions = self.space.encode(plans, speed)
        if self.squash:
            actions = BOX * torch.atanh((actions / BOX).clamp(-0.999, 0.999))
        return {"raw_action": actions, "temperature": torch.ones(len(actions), device=actions.device)}

    def measure(self, plans: Tensor, speed: Tensor) -> dict[str, Any]:
        """Those of the action space."""
        return self.space.measure(plans, speed)

    def normalise(self, statistics: Mapping[str, Any]) -> None:
        """Those of the action space."""
        self.space.normalise(statistics)

    def _distribution(self, features: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and sigma of the raw action, float32 [B, T, D]."""
        hidden = nn.functional.gelu(self.hidden(check_finite(features, "the head's features")))
        shape = (-1, self.space.horizon, self.space.dim)
        mean = check_finite(self.mean(hidden), "means").view(shape)
        if self.log_sigma is None:
            sigma = torch.full_like(mean, float(self.sigma or 0.0))
        else:
            sigma = self.log_sigma(hidden).view(shape).clamp(*LOG_SIGMA).exp()
        return mean, sigma * temperature[:, None, None]

    def _squashed(self, raw: Tensor) -> Tensor:
        return BOX * torch.tanh(raw / BOX) if self.squash else raw

    def _log_prob(self, raw: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
        """Log-density [B, T] of the action that ``raw`` gives."""
        density = gaussian_log_density(raw, mean, sigma)
        if self.squash:  # log d(BOX tanh(r / BOX)) / dr = log(1 - tanh²), in a form that does not underflow
            r = raw / BOX
            density = density - 2.0 * (math.log(2.0) - r - softplus(-2.0 * r))
        return density.sum(-1)


def gaussian_log_density(x: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
    """Log of the normal density, element by element."""
    return -0.5 * ((x - mean) / sigma).square() - sigma.log() - 0.5 * math.log(2.0 * math.pi)


def whole_distribution(top_p: Tensor, what: str) -> None:
    """Refuse a nucleus where there are no tokens to leave out."""
    if (top_p < 1.0).any():
        raise VLAModelsError(f"{what} has no nucleus: algorithm.top_p must be 1, not {float(top_p.min()):g}; lower temperature")
