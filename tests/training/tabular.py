"""The smallest trainable model: a softmax over five straight plans, the same for every scene."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vla_models.interface import VLAForDriving, VLAPrediction, VLASpec

SPEEDS = (0.0, 1.0, 3.0, 6.0, 12.0)
"""m/s of its plans."""


def plan_table() -> torch.Tensor:
    """All plans, [5, 8, 3]."""
    table = torch.zeros(len(SPEEDS), 8, 3)
    table[:, :, 0] = torch.tensor(SPEEDS)[:, None] * 0.5 * torch.arange(1, 9)
    return table


class Tabular(VLAForDriving):
    """``replay_error`` is added to replayed log-probabilities: what a model does that does not replay its samples. Answers with
    one of the tokens ``no_plan`` are invalid."""

    def __init__(self, replay_error: float = 0.0, no_plan: tuple[int, ...] = ()) -> None:
        self.spec = VLASpec(head="tokens", horizon=8, dt=0.5, has_value=True)
        self.logits = torch.nn.Parameter(torch.zeros(len(SPEEDS)))
        self.value = torch.nn.Parameter(torch.zeros(1))
        self.replay_error = replay_error
        self.no_plan = no_plan
        self.calls: list[int] = []

    def predict(self, inputs: Any, *, deterministic: bool = False, num_samples: int = 1, **kwargs: Any) -> VLAPrediction:
        self.calls.append(len(inputs))
        rows = len(inputs) * num_samples
        temperature = torch.full((rows,), float(kwargs.get("temperature", 1.0)))
        logprobs = (self.logits / temperature[:, None]).log_softmax(-1).detach()
        if deterministic:
            tokens = logprobs.argmax(-1)
        else:
            tokens = torch.multinomial(logprobs.exp(), 1, generator=kwargs.get("generator"))[:, 0]
        return VLAPrediction(
            waypoints=plan_table()[tokens].numpy(),
            logprobs=logprobs.gather(1, tokens[:, None]),
            values=self.value.detach().expand(rows),
            record={"tokens": tokens, "temperature": temperature},
            valid=~torch.isin(tokens, torch.tensor(self.no_plan, dtype=torch.int64)).numpy(),
        )

    def evaluate_actions(
        self, record: Mapping[str, torch.Tensor], *, entropy: bool = False, values: bool = False
    ) -> dict[str, torch.Tensor]:
        logprobs = (self.logits / record["temperature"][:, None]).log_softmax(-1)
        chosen = logprobs.gather(1, record["tokens"][:, None]) + self.replay_error
        out = {"logprobs": chosen, "mask": torch.ones_like(chosen, dtype=torch.bool)}
        if entropy:
            out["entropy"] = -(logprobs.exp() * logprobs).sum(-1, keepdim=True)
        if values:
            out["values"] = self.value.expand(len(chosen))
        return out
