"""Decisions as a verl ``DataProto`` and back, for people who work with that instead of the V1 trainer's queue.

Rows are as ``DecisionOutput`` makes them: one prompt token, and a response token for each part of the decision that counts.
Padding is explicit: the width of responses is the layout's, and rows that fill a batch up to a multiple count nothing and are
known by number (``DataProto``'s own ``auto_padding`` fails in ``chunk`` where rows do not divide).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor
from verl.protocol import DataProto

from vla_models.errors import ConfigError
from vla_models.frameworks.records import RecordLayout, unpack
from vla_models.frameworks.verl.fields import packed_records, record_fields
from vla_models.frameworks.verl.model import ACTION, OBSERVATION, TOKENS

PADDING: Final = "vla_models_padding"
"""In ``meta_info``: rows at the end that are padding."""


@dataclass(frozen=True)
class Decisions:
    """B decisions, as a model and an environment made them."""

    record: Mapping[str, Tensor]
    """[B, …] what ``evaluate_actions`` replays."""
    logprobs: Tensor
    """float32 [B, R] of the parts that count, in order, zeros on the right."""
    mask: Tensor
    """bool [B, R]: where ``logprobs`` has one."""
    rewards: Tensor
    """float32 [B]."""
    scenes: Sequence[str]
    """Decisions of a scene are a group."""


def to_dataproto(decisions: Decisions, layout: RecordLayout, *, multiple: int = 1) -> DataProto:
    """The decisions, filled up to ``multiple`` rows and to the layout's shapes.

    ``decisions.logprobs`` and ``mask`` may be a prediction's own [B, S], with parts that do not count anywhere. The group of a
    row is in ``uid``, as verl's advantages read it.
    """
    mask = decisions.mask.flatten(1).bool()
    rows, counts = len(mask), mask.sum(dim=1)
    if len(decisions.scenes) != rows or len(decisions.rewards) != rows:
        raise ConfigError(f"{rows} decisions with {len(decisions.scenes)} scenes and {len(decisions.rewards)} rewards")
    if multiple < 1 or rows == 0:
        raise ConfigError(f"{rows} decisions cannot be filled up to a multiple of {multiple}")
    fill = -rows % multiple
    take = torch.cat([torch.arange(rows), torch.zeros(fill, dtype=torch.int64)])
    there = torch.arange(layout.parts) < counts[:, None]
    logprobs = torch.zeros(rows, layout.parts)
    logprobs[there] = decisions.logprobs.detach().float().cpu().flatten(1)[mask.cpu()]
    scores = torch.zeros_like(logprobs)
    scores[torch.arange(rows), counts.clamp(min=1) - 1] = decisions.rewards.float().cpu()
    real = torch.arange(rows + fill) < rows
    response = torch.where(there, ACTION, TOKENS["<pad>"])
    prompt = torch.full((rows, 1), OBSERVATION)
    attention = torch.cat([torch.ones_like(prompt), there.long()], dim=1)
    tensors = {
        "prompts": prompt,
        "responses": response,
        "response_mask": there.long(),
        "input_ids": torch.cat([prompt, response], dim=1),
        "attention_mask": attention,
        "position_ids": (attention.cumsum(dim=1) - 1).clamp(min=0),
        "rollout_log_probs": logprobs,
        "rm_scores": scores,
        **record_fields(layout.pack(decisions.record)),
    }
    filled = {name: value[take] for name, value in tensors.items()}
    for name in ("response_mask", "rollout_log_probs", "rm_scores"):
        filled[name] = filled[name] * real[:, None]
    scenes = np.array([decisions.scenes[i] for i in take.tolist()], dtype=object)
    uid = np.array(
        [scene if r else f"padding-{i}" for i, (scene, r) in enumerate(zip(scenes, real, strict=True))], dtype=object
    )
    return DataProto.from_dict(tensors=filled, non_tensors={"scene": scenes, "uid": uid}, meta_info={PADDING: fill})


def from_dataproto(data: DataProto) -> Decisions:
    """What ``to_dataproto`` was given, without the padding; parts that do not count are gone."""
    rows = len(data) - int(data.meta_info.get(PADDING, 0))
    batch = {name: data.batch[name][:rows] for name in set(data.batch.keys())}
    return Decisions(
        record=unpack(packed_records(batch)),
        logprobs=batch["rollout_log_probs"],
        mask=batch["response_mask"].bool(),
        rewards=batch["rm_scores"].sum(dim=1),
        scenes=[str(scene) for scene in data.non_tensor_batch["scene"][:rows]],
    )
