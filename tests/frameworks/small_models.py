"""Trainable models of a few lines, one for each kind of record: what a stranger writes, with the decorator and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vla_models.interface import VLAForDriving, VLAInput, VLAPrediction, VLASpec
from vla_models.model_registry import register_vla_model

BINS = 11
MAX_WORDS = 5


class Small(VLAForDriving):
    """Reads speed, route and the mean of a picture; ``_decide`` and ``_score`` make the head."""

    head = ""

    def __init__(self, horizon: int = 8, dim: int = 16) -> None:
        self.spec = VLASpec(head=self.head, horizon=horizon, dt=0.5, has_value=True)
        self.body = nn.Sequential(nn.Linear(4, dim), nn.Tanh(), nn.Linear(dim, dim), nn.Tanh(), nn.Dropout(0.3))
        self.value = nn.Linear(dim, 1)
        self.build(dim)

    def build(self, dim: int) -> None:
        raise NotImplementedError

    def predict(
        self, inputs: VLAInput | Sequence[VLAInput], *, deterministic: bool = False, num_samples: int = 1,
        generator: torch.Generator | None = None, temperature: float = 1.0, top_p: float = 1.0, **unused: Any,
    ) -> VLAPrediction:  # fmt: skip
        batch = [inputs] if isinstance(inputs, VLAInput) else list(inputs)
        rows = [[x.ego_state["speed"] / 10, *(x.route[0] / 10), np.mean(x.images["front"]) / 255] for x in batch]  # type: ignore[index]
        seen = torch.tensor(rows, dtype=torch.float32).repeat_interleave(num_samples, dim=0)
        with torch.no_grad():
            features = self.body(seen)
            plans, logprobs, record = self.decide(features, temperature, deterministic, generator)
        record |= {"seen": seen, "temperature": torch.full((len(seen),), temperature)}
        return VLAPrediction(plans.numpy(), 0.5, logprobs=logprobs, values=self.value(features)[:, 0].detach(), record=record)

    def evaluate_actions(
        self, record: Mapping[str, Tensor], *, entropy: bool = False, values: bool = False
    ) -> dict[str, Tensor]:
        features = self.body(record["seen"])
        out = self.score(features, record)
        if not entropy:
            out.pop("entropy")
        return out | ({"values": self.value(features)[:, 0]} if values else {})

    def decide(self, features: Tensor, temperature: float, deterministic: bool, generator: Any) -> Any:
        raise NotImplementedError

    def score(self, features: Tensor, record: Mapping[str, Tensor]) -> dict[str, Tensor]:
        raise NotImplementedError


@register_vla_model("small_tokens")
class SmallTokens(Small):
    """Says up to ``MAX_WORDS`` words, as many as it likes, then a token for each pose. Padding has a log-probability, too."""

    head = "tokens"

    def build(self, dim: int) -> None:
        self.length = nn.Linear(dim, MAX_WORDS + 1)
        self.words = nn.Linear(dim, 7)
        self.poses = nn.Linear(dim, self.spec.horizon * BINS)

    def _logits(self, features: Tensor, words: int) -> Tensor:
        """[B, 1 + words + T, BINS], short vocabularies filled up with -inf."""
        rows = len(features)
        parts = [self.length(features)[:, None], self.words(features)[:, None].expand(-1, words, -1)]
        parts = [nn.functional.pad(part, (0, BINS - part.shape[-1]), value=float("-inf")) for part in parts]
        return torch.cat([*parts, self.poses(features).view(rows, self.spec.horizon, BINS)], dim=1)

    def decide(self, features: Tensor, temperature: float, deterministic: bool, generator: Any) -> Any:
        logits = self._logits(features, MAX_WORDS) / temperature
        shape = logits.shape[:-1]
        sampled = torch.multinomial(logits.softmax(-1).flatten(0, 1), 1, generator=generator).view(shape)
        tokens = logits.argmax(-1) if deterministic else sampled
        words = int(tokens[:, 0].max())  # the longest of this batch: records differ in width
        kept = [0, *range(1, words + 1), *range(1 + MAX_WORDS, tokens.shape[1])]
        tokens, logits = tokens[:, kept], logits[:, kept]
        mask = torch.ones_like(tokens, dtype=torch.bool)
        mask[:, 1 : words + 1] = torch.arange(words) < tokens[:, :1]
        # poses first, so that what is filled up on the right is text
        order = [0, *range(words + 1, tokens.shape[1]), *range(1, words + 1)]
        tokens, logits, mask = tokens[:, order], logits[:, order], mask[:, order]
        logprobs = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
        steps = (tokens[:, 1 : self.spec.horizon + 1].float() - BINS // 2) * 0.4
        plans = torch.zeros(len(features), self.spec.horizon, 3)
        plans[..., 0] = steps.cumsum(1) + 2.0
        return plans, logprobs, {"tokens": tokens, "spoken": mask}

    def score(self, features: Tensor, record: Mapping[str, Tensor]) -> dict[str, Tensor]:
        tokens = record["tokens"]
        words, poses = tokens.shape[1] - 1 - self.spec.horizon, self.spec.horizon
        logits = self._logits(features, words) / record["temperature"][:, None, None]
        logits = torch.cat([logits[:, :1], logits[:, words + 1 :], logits[:, 1 : words + 1]], dim=1)
        assert logits.shape[1] == 1 + words + poses
        logp = logits.log_softmax(-1)
        entropy = -(logp.exp() * logp.clamp(min=-50)).sum(-1)
        return {"logprobs": logp.gather(-1, tokens[..., None])[..., 0], "mask": record["spoken"], "entropy": entropy}


@register_vla_model("small_gaussian")
class SmallGaussian(Small):
    """A normal distribution over every pose."""

    head = "gaussian"

    def build(self, dim: int) -> None:
        self.mean = nn.Linear(dim, 3 * self.spec.horizon)
        self.log_std = nn.Parameter(torch.full((self.spec.horizon, 3), -1.0))

    def _normal(self, features: Tensor, temperature: Tensor) -> torch.distributions.Normal:
        mean = self.mean(features).view(-1, self.spec.horizon, 3)
        return torch.distributions.Normal(mean, self.log_std.exp() * temperature[:, None, None])

    def decide(self, features: Tensor, temperature: float, deterministic: bool, generator: Any) -> Any:
        normal = self._normal(features, torch.full((len(features),), temperature))
        noise = torch.zeros_like(normal.mean) if deterministic else torch.randn(normal.mean.shape, generator=generator)
        plans = normal.mean + normal.stddev * noise
        return plans, normal.log_prob(plans).sum(-1), {"raw_action": plans}

    def score(self, features: Tensor, record: Mapping[str, Tensor]) -> dict[str, Tensor]:
        normal = self._normal(features, record["temperature"])
        logprobs = normal.log_prob(record["raw_action"]).sum(-1)
        return {"logprobs": logprobs, "mask": torch.ones_like(logprobs, dtype=torch.bool), "entropy": normal.entropy().sum(-1)}


@register_vla_model("small_flow")
class SmallFlow(Small):
    """Noise becomes a plan in three noisy steps; the record is the chain, a log-probability for each step and pose."""

    head = "flow"
    steps, sigma = 3, 0.3

    def build(self, dim: int) -> None:
        self.drift = nn.Linear(dim + 3, 3)

    def _mean(self, features: Tensor, x: Tensor) -> Tensor:
        around = features[:, None].expand(-1, self.spec.horizon, -1)
        moved: Tensor = x + self.drift(torch.cat([around, x], dim=-1)) / self.steps
        return moved

    def decide(self, features: Tensor, temperature: float, deterministic: bool, generator: Any) -> Any:
        shape = (len(features), self.spec.horizon, 3)
        x = torch.zeros(shape) if deterministic else torch.randn(shape, generator=generator)
        chain, logprobs = [x], []
        for _ in range(self.steps):
            normal = torch.distributions.Normal(self._mean(features, x), self.sigma * temperature)
            x = normal.mean + (0.0 if deterministic else normal.stddev * torch.randn(shape, generator=generator))
            chain.append(x)
            logprobs.append(normal.log_prob(x).sum(-1))
        return x, torch.stack(logprobs, 1), {"chain": torch.stack(chain, 1)}

    def score(self, features: Tensor, record: Mapping[str, Tensor]) -> dict[str, Tensor]:
        chain, scale = record["chain"], self.sigma * record["temperature"][:, None, None]
        normals = [torch.distributions.Normal(self._mean(features, chain[:, k]), scale) for k in range(self.steps)]
        logprobs = torch.stack([n.log_prob(chain[:, k + 1]).sum(-1) for k, n in enumerate(normals)], 1)
        entropy = torch.stack([n.entropy().sum(-1).expand_as(logprobs[:, 0]) for n in normals], 1)
        return {"logprobs": logprobs, "mask": torch.ones_like(logprobs, dtype=torch.bool), "entropy": entropy}


@register_vla_model("small_adapted")
class SmallAdapted(SmallGaussian):
    """The Gaussian one with low-rank adapters on its body, whose own weights stay as they are."""

    def build(self, dim: int) -> None:
        from vla_models.lora import add_lora

        super().build(dim)
        self.body = add_lora(self.body, rank=2)
