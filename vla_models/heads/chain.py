"""Heads that turn noise into a plan step by step: what flow matching and diffusion share.

Both describe states x = alpha · data + beta · noise on a way of ``steps`` from pure noise to data, and a network that tells the
two apart. A step takes the data and noise that the network sees and mixes them anew at the next level, with a part ``s`` of
the noise drawn afresh:

    x' = alpha' · data + sqrt(beta'² - s²) · noise + s · z,    s = max(eta · beta', SIGMA_MIN),  z ~ N(0, 1)

which is DDIM's generalised sampler (Song et al. 2021, equation 12) and, with flow matching's alpha = t, beta = 1 - t, the
coefficient-preserving sampler of Flow-CPS (Wang et al. 2025): whatever eta is, x' has the marginal of its level. So each step
is a Gaussian with a known mean, and a decision's probability is that of its chain (DPPO, Ren et al. 2024).

The chain is recorded. Sampling and scoring take the mean and the SAME s from one function; where they differ (ReCogDrive
samples with s ≥ 0.04 and scores with s ≥ 0.1), ratios are not those of any policy.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from vla_models.errors import ConfigError
from vla_models.heads.base import Decision, Linear32, PlanHead, Record, check_finite, noise_like
from vla_models.heads.gaussian import gaussian_log_density, whole_distribution
from vla_models.heads.spaces import ActionSpace

SIGMA_MIN: Final = 0.08
"""Of a stochastic step, in units of the data's standard deviation: even the last step explores, and has a density."""
DATA_MAX: Final = 5.0
"""Estimates of the data are cut to this many standard deviations: at pure noise the network has little to go by."""


class ChainHead(PlanHead):
    """A chain of ``steps`` denoising steps over T × D actions.

    steps: K, network calls in a decision. eta: share of the noise that a stochastic step draws afresh (0 < eta <= 1).
    chosen_steps: how many of the K steps are stochastic (None: all); which ones is drawn for each decision and recorded as
    ``chosen``. The others follow the mean, and cost nothing when a record is scored.

    S = [C, T]: chosen steps × steps of the plan. Temperature multiplies s. The record holds ``chain`` float32 [B, K + 1, T, D],
    pure noise first. There is no closed entropy. The likeliest plan starts at noise 0 and follows the mean.
    """

    def __init__(
        self, dim: int, space: ActionSpace, steps: int = 5, eta: float = 0.5, chosen_steps: int | None = None, hidden: int = 256
    ) -> None:
        super().__init__()
        for name, given, fine in (
            ("steps", steps, steps >= 1),
            ("eta", eta, 0.0 < eta <= 1.0),
            ("chosen_steps", chosen_steps, chosen_steps is None or 1 <= chosen_steps <= steps),
        ):
            if not fine:
                raise ConfigError(f"model.policy_head.{name}: {given} does not go with {steps} steps and eta in (0, 1]")
        self.space, self.steps, self.eta = space, steps, eta
        self.chosen_steps = steps if chosen_steps is None else chosen_steps
        self.horizon, self.dt = space.horizon, space.dt
        numbers = space.horizon * space.dim
        self.condition = Linear32(dim, hidden)
        self.action = Linear32(numbers, hidden)
        self.time = nn.Sequential(Linear32(16, hidden), nn.GELU(), Linear32(hidden, hidden))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(hidden, elementwise_affine=False),
                Linear32(hidden, 2 * hidden),
                nn.GELU(),
                Linear32(2 * hidden, hidden),
            )
            for _ in range(3)
        )
        self.out = Linear32(hidden, numbers)
        nn.init.normal_(self.out.weight, std=0.1 * hidden**-0.5)
        nn.init.zeros_(self.out.bias)

    # -- what a kind of chain says -----------------------------------------------------------------------------------------

    @abstractmethod
    def level(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and beta at times 0 (pure noise) … 1 (data)."""

    @abstractmethod
    def split(self, x: Tensor, out: Tensor, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        """Data and noise that the network's output means at states x."""

    @abstractmethod
    def target(self, data: Tensor, noise: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        """What the network should have said."""

    # -- deciding ----------------------------------------------------------------------------------------------------------

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
        whole_distribution(top_p, "a chain of denoising steps")
        condition, rows = self._condition(features), len(features)
        x = torch.zeros(rows, self.space.horizon, self.space.dim, device=features.device)
        chosen = torch.arange(self.chosen_steps, device=x.device).expand(rows, -1)
        if not deterministic:
            x = noise_like(x, generator)
            order = noise_like(x.new_empty(rows, self.steps), generator).argsort(dim=1)
            chosen = order[:, : self.chosen_steps].sort(dim=1).values
        chain = [x]
        for k in range(self.steps):
            index = torch.full((rows, 1), k, device=x.device)
            straight, mean, sigma = (part[:, 0] for part in self._step(x[:, None], condition, index, temperature))
            x = straight
            if not deterministic:
                stochastic = (chosen == k).any(1)[:, None, None]
                x = torch.where(stochastic, mean + sigma * noise_like(mean, generator), straight)
            chain.append(x)
        record = {"chain": torch.stack(chain, dim=1), "chosen": chosen, "temperature": temperature}
        return Decision(self.space.decode(x, speed), self.log_prob(features, record)["logprobs"], record)

    def log_prob(self, features: Tensor, record: Record, *, entropy: bool = False) -> dict[str, Tensor]:
        """See ``PlanHead``; one pass of the small network over the chosen steps, all at once."""
        chain, chosen = record["chain"], record["chosen"]
        at = chosen[:, :, None, None].expand(-1, -1, *chain.shape[2:])
        _, mean, sigma = self._step(chain.gather(1, at), self._condition(features), chosen, record["temperature"])
        logprobs = gaussian_log_density(chain.gather(1, at + 1), mean, sigma).sum(-1)
        return {"logprobs": logprobs, "mask": torch.ones_like(logprobs, dtype=torch.bool)}

    # -- imitation ---------------------------------------------------------------------------------------------------------

    def record_from_plans(self, plans: Tensor, speed: Tensor) -> dict[str, Tensor]:
        """See ``PlanHead``: the plans' actions as ``target``; a chain has no likelihood of its result."""
        return {"target": self.space.encode(plans, speed)}

    def imitation_loss(self, features: Tensor, record: Record) -> Tensor:
        """Squared error [B] of the network's output at a random time of each row (from torch's global generator)."""
        data = record["target"]
        noise, time = torch.randn_like(data), torch.rand(len(data), device=data.device)
        alpha, beta = (part[:, None, None] for part in self.level(time))
        x = (alpha * data + beta * noise)[:, None]
        out = self._network(x, self._condition(features), time[:, None])[:, 0]
        return (out - self.target(data, noise, alpha, beta)).square().flatten(1).mean(1)

    def measure(self, plans: Tensor, speed: Tensor) -> dict[str, Any]:
        """Those of the action space."""
        return self.space.measure(plans, speed)

    def normalise(self, statistics: Mapping[str, Any]) -> None:
        """Those of the action space."""
        self.space.normalise(statistics)

    # -- the network -------------------------------------------------------------------------------------------------------

    def _condition(self, features: Tensor) -> Tensor:
        out: Tensor = self.condition(check_finite(features, "the head's features"))
        return out

    def _step(self, x: Tensor, condition: Tensor, index: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Steps number ``index`` [B, C] from states x [B, C, T, D]: where they lead without fresh noise, and the mean and s of
        a stochastic step; each [B, C, T, D]."""
        times = torch.arange(self.steps + 1, device=x.device) / self.steps
        now = times[index]
        alpha, beta = (part[..., None, None] for part in self.level(now))
        after, left = (part[..., None, None] for part in self.level(times[index + 1]))
        data, noise = self.split(x, self._network(x, condition, now), alpha, beta)
        cut = data.clamp(-DATA_MAX, DATA_MAX)
        noise = torch.where(cut == data, noise, (x - alpha * cut) / beta.clamp_min(1e-3))
        sigma = (self.eta * left).clamp_min(SIGMA_MIN)
        mean = after * cut + (left.square() - sigma.square()).clamp_min(0.0).sqrt() * noise
        return after * cut + left * noise, mean, (sigma * temperature[:, None, None, None]).expand_as(mean)

    def _network(self, x: Tensor, condition: Tensor, time: Tensor) -> Tensor:
        """Output [B, C, T, D] at states x and times [B, C]; each row has one condition."""
        angles = time[..., None] * (math.pi * 2.0 ** torch.arange(8, device=x.device) / 4.0)
        clock = self.time(torch.cat([angles.sin(), angles.cos()], dim=-1))
        hidden = self.action(x.flatten(2)) + condition[:, None] + clock
        for block in self.blocks:
            hidden = hidden + block(hidden)
        out: Tensor = check_finite(self.out(nn.functional.gelu(hidden)), "denoising outputs").view(x.shape)
        return out


class FlowHead(ChainHead):
    """Flow matching (Lipman et al. 2023, rectified: straight ways from noise to data); the network says the velocity."""

    def level(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """See ``ChainHead``: alpha = t, beta = 1 - t."""
        return time, 1.0 - time

    def split(self, x: Tensor, out: Tensor, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        """See ``ChainHead``: x + (1 - t) v and x - t v."""
        return x + beta * out, x - alpha * out

    def target(self, data: Tensor, noise: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        """See ``ChainHead``: the velocity."""
        return data - noise


class DDIMHead(ChainHead):
    """Diffusion with a cosine schedule (Nichol & Dhariwal 2021) and DDIM's sampler; the network says v = alpha · noise - beta ·
    data (Salimans & Ho 2022), from which both follow without a division, at pure noise too."""

    def level(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """See ``ChainHead``: sine and cosine of the time."""
        angle = time * (math.pi / 2.0)
        return angle.sin(), angle.cos().clamp_min(0.0)

    def split(self, x: Tensor, out: Tensor, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        """See ``ChainHead``."""
        return alpha * x - beta * out, beta * x + alpha * out

    def target(self, data: Tensor, noise: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        """See ``ChainHead``: v."""
        return alpha * noise - beta * data
