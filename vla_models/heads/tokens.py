"""Categorical heads whose samples can be replayed exactly.

A token has one or several *factors* (acceleration and curvature, say), each a softmax of its own; the log-probability of a
token is the sum over its factors. Sampling keeps, beside the token, which entries the nucleus left (``support``), so that
``log_prob`` replays the very same distribution from raw logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vla_models.heads.base import Decision, PlanHead, Record, check_finite
from vla_models.heads.codebook import Codebook
from vla_models.heads.warpers import entropy_of, log_softmax_within, nucleus


class TokenHead(nn.Module):
    """Logits of a token from a hidden state, and the distribution over tokens that they mean.

    ``sizes`` are the numbers of values of the token's factors: ``(V,)`` for an ordinary vocabulary,
    ``codebook.sizes`` for kinematic tokens. All probabilities are float32 whatever the weights are.
    """

    def __init__(self, dim: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.project = nn.Linear(dim, sum(self.sizes))
        nn.init.normal_(self.project.weight, std=0.02)
        nn.init.zeros_(self.project.bias)

    def logits(self, hidden: Tensor) -> Tensor:
        """Raw logits float32 ``[..., sum(sizes)]``, the factors one after the other."""
        out: Tensor = self.project(hidden).float()
        return out

    def sample(
        self,
        logits: Tensor,
        temperature: Tensor,
        top_p: Tensor,
        *,
        deterministic: bool = False,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draw one token per row of ``logits`` ``[N, sum(sizes)]``; ``temperature`` and ``top_p`` are ``[N]``.

        Returns tokens int64 ``[N]``, their log-probabilities ``[N]`` and the ``support`` bool ``[N, sum(sizes)]`` that they
        were drawn from. ``deterministic`` takes the most probable value of each factor instead.
        """
        support = nucleus(logits, temperature, top_p, self.sizes)
        choices = []
        for part in self._log_softmax(logits, temperature, support):
            if deterministic:
                choices.append(part.argmax(-1))
            else:
                p = part.exp() if generator is None else part.exp().to(generator.device)
                choices.append(torch.multinomial(p, 1, generator=generator)[:, 0].to(part.device))
        tokens = self._join(choices)
        return tokens, self.log_prob(logits, tokens, temperature, support), support

    def log_prob(self, logits: Tensor, tokens: Tensor, temperature: Tensor, support: Tensor) -> Tensor:
        """Log-probabilities float32 ``[...]`` of ``tokens`` ``[...]`` under ``logits`` ``[..., sum(sizes)]``.

        ``temperature`` is broadcast against ``[...]``; ``support`` ``[..., sum(sizes)]`` is what ``sample`` returned: the
        distribution is renormalised over those entries, with the present logits.
        """
        out = torch.zeros(tokens.shape, dtype=torch.float32, device=logits.device)
        parts = self._log_softmax(logits, temperature, support)
        for part, choice in zip(parts, self._split(tokens), strict=True):
            out = out + part.gather(-1, choice[..., None])[..., 0]
        return out

    def entropy(self, logits: Tensor, temperature: Tensor, support: Tensor) -> Tensor:
        """Entropies float32 ``[...]`` in nats of the distributions that ``log_prob`` speaks of."""
        return torch.stack([entropy_of(part) for part in self._log_softmax(logits, temperature, support)]).sum(0)

    def _log_softmax(self, logits: Tensor, temperature: Tensor, support: Tensor) -> list[Tensor]:
        """Normalised log-probabilities of each factor, minus infinity outside the support."""
        sizes = list(self.sizes)
        return [
            log_softmax_within(part, temperature, inside)
            for part, inside in zip(torch.split(logits, sizes, -1), torch.split(support, sizes, -1), strict=True)
        ]

    def _join(self, choices: list[Tensor]) -> Tensor:
        token = choices[0]
        for size, choice in zip(self.sizes[1:], choices[1:], strict=True):
            token = token * size + choice
        return token

    def _split(self, tokens: Tensor) -> list[Tensor]:
        choices = []
        for size in reversed(self.sizes):
            choices.append(tokens % size)
            tokens = tokens // size
        return choices[::-1]


class TokenPlanHead(PlanHead):
    """All tokens of a codebook at once from one feature vector, as OpenVLA-OFT does: independent given the features.

    Right for a codebook of whole trajectories (one token); for those that say a plan in parts, a model that says them one after
    the other knows more.
    """

    def __init__(self, dim: int, codebook: Codebook) -> None:
        super().__init__()
        self.codebook = codebook
        self.horizon, self.dt = codebook.horizon, codebook.dt
        self.token = TokenHead(dim, codebook.token_sizes)
        self.place = nn.Parameter(0.02 * torch.randn(codebook.length, dim))
        self.mix = nn.Sequential(nn.Linear(dim, dim), nn.GELU())

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
        """See ``PlanHead``; S = the codebook's length."""
        logits = self._logits(features)
        length = logits.shape[1]
        warp = temperature.repeat_interleave(length), top_p.repeat_interleave(length)
        drawn = self.token.sample(logits.flatten(0, 1), *warp, deterministic=deterministic, generator=generator)
        tokens, logprobs, support = (part.view(-1, length, *part.shape[1:]) for part in drawn)
        record = {"action_tokens": tokens, "support": support, "temperature": temperature, "top_p": top_p}
        return Decision(self.codebook.decode(tokens, speed), logprobs, record)

    def log_prob(self, features: Tensor, record: Record, *, entropy: bool = False) -> dict[str, Tensor]:
        """See ``PlanHead``."""
        logits, tokens = self._logits(features), record["action_tokens"]
        warp = record["temperature"][:, None], record["support"]
        out = {"logprobs": self.token.log_prob(logits, tokens, *warp), "mask": torch.ones_like(tokens, dtype=torch.bool)}
        return out | ({"entropy": self.token.entropy(logits, *warp)} if entropy else {})

    def record_from_plans(self, plans: Tensor, speed: Tensor) -> dict[str, Tensor]:
        """See ``PlanHead``: as if drawn at temperature 1."""
        return token_record(self.codebook.encode(plans, speed), sum(self.token.sizes))

    def measure(self, plans: Tensor, speed: Tensor) -> dict[str, Any]:
        """Those of the codebook."""
        return self.codebook.measure(plans, speed)

    def normalise(self, statistics: Mapping[str, Any]) -> None:
        """Those of the codebook."""
        self.codebook.normalise(statistics)

    def _logits(self, features: Tensor) -> Tensor:
        hidden = self.mix(check_finite(features, "the head's features")[:, None] + self.place)
        return check_finite(self.token.logits(hidden), "logits")


def token_record(tokens: Tensor, width: int) -> dict[str, Tensor]:
    """The record of tokens [B, L] that somebody else chose, as if drawn at temperature 1 from all ``width`` logits."""
    one = torch.ones(len(tokens), device=tokens.device)
    support = torch.ones(*tokens.shape, width, dtype=torch.bool, device=tokens.device)
    return {"action_tokens": tokens, "support": support, "temperature": one, "top_p": one.clone()}
