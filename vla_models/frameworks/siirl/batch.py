"""What a rollout gave, as the tensors that siiRL's nodes pass on, and back.

siiRL moves samples between ranks through a fixed list of keys (siirl/data_coordinator/sample.py, ``Dict2Samples``); others are
dropped without a word. So the records of all decisions travel in ``pixel_values``, as words, and what only siiRL's sampling and
reward nodes read, before anything is moved, has names of its own. ``responses`` holds zeros: its shape [B, D, A] (D decisions
of A log-probabilities each) is what siiRL counts with. ``finish_step`` is in decisions and ``action_token_len`` is A, so that
the mask of its advantages and the place of its rewards agree (in its own embodied path they do not).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vla_models.frameworks.records import RecordLayout, from_words, to_words, unpack

RECORDS: Final = "pixel_values"
"""Key of the packed records, int64 [B, D, words]."""
SURVIVING: Final = (
    "responses", "input_ids", "attention_mask", "response_mask", RECORDS, "finish_step", "values", "advantages", "returns",
    "token_level_rewards", "token_level_scores", "old_log_probs", "ref_log_prob", "uid",
)  # fmt: skip
"""Keys that learning reads after siiRL may have moved samples; all of them pass ``Dict2Samples``."""
NAME_BYTES: Final = 50
"""Width of ``task_file_name``."""


class RecordWords:
    """Records of a run as rows of 64-bit words, and back. Their form is found with the first one; all of a run are alike.

    Args:
        layout: the fixed shapes of records.
    """

    def __init__(self, layout: RecordLayout) -> None:
        self.layout = layout
        self.width = 0
        """Words of a row; 0 before there was one."""
        self._form = torch.zeros(0, dtype=torch.uint8)

    @property
    def parts(self) -> int:
        """A, log-probabilities of a decision."""
        return self.layout.parts

    def pack(self, record: Mapping[str, Tensor], logprobs: Tensor) -> Tensor:
        """The record [B rows] as int64 [B, width]; ``ConfigError`` where it is larger than the run was laid out for."""
        self.layout.pack_logprobs(logprobs)
        words, self._form = to_words(self.layout.pack(record))
        self.width = words.shape[1]
        return words

    def unpack(self, words: Tensor, places: Tensor) -> dict[str, Tensor]:
        """The records at ``places`` (int64 [n, 2]) of words [B, D, width]."""
        return unpack(from_words(words[places[:, 0], places[:, 1]], self._form))


@dataclass(frozen=True)
class Driven:
    """B episodes of at most D decisions, all in the caller's order."""

    records: Tensor
    """int64 [B, D, words]; zeros where nothing was decided; no words in evaluation."""
    rewards: Tensor
    """f32 [B, D] reward of each decision; 0 where nothing was decided and in invalid episodes."""
    values: Tensor | None
    """f32 [B, D] state values where the model has them."""
    decisions: Tensor
    """int64 [B] decisions that were made; the first ``decisions[b]`` entries of a row are filled."""
    valid: Tensor
    """bool [B]: the world did not fail, and no answer has to be left out."""
    success: Tensor
    """bool [B]."""
    embedding: Tensor
    """f32 [B, E]; zeros in invalid episodes."""
    totals: Mapping[str, npt.NDArray[np.float32]]
    """[B] each: what ``Episodes`` counted."""
    model_s: float
    """Seconds that the model took."""
    world_s: float
    """Seconds that the worlds took, summed over all that ran side by side."""
    wall_s: float
    """Seconds from beginning to end."""

    @property
    def returns(self) -> Tensor:
        """f32 [B] sum of rewards."""
        return self.rewards.sum(dim=1)

    def means(self) -> dict[str, float]:
        """Means of all totals over the valid episodes."""
        counted = self.valid.numpy()
        if not counted.any():
            return {}
        names = self.totals.keys() - {"valid", "invalid_answers"}
        return {name: float(self.totals[name][counted].mean(dtype=np.float64)) for name in sorted(names)}

    @property
    def invalid_answers(self) -> int:
        """Answers that were no plan."""
        return int(self.totals["invalid_answers"].sum())


def counted_groups(valid: Tensor, group: int) -> Tensor:
    """bool [B]: valid episodes with at least one valid companion in their group of ``group`` neighbours.

    An episode alone in its group says nothing about which plan is better, and siiRL would take its bare reward for its
    advantage (``compute_grpo_outcome_advantage``).
    """
    members = valid.view(-1, group).sum(dim=1).repeat_interleave(group)
    return valid & (members > 1)


def training_batch(driven: Driven, parts: int, names: Sequence[str], counted: Tensor, uid: Tensor) -> dict[str, Tensor]:
    """The tensors of siiRL's training batch.

    Args:
        driven: the episodes.
        parts: A, log-probabilities of a decision.
        names: scene of each episode.
        counted: bool [B] episodes to learn from. The others get ``finish_step`` 0, so nothing of theirs is masked in, and a
            ``uid`` of their own, so they are in no group's statistics.
        uid: int64 [B] group of each episode, from 0.
    """
    rows, longest = driven.rewards.shape
    finish = torch.where(counted, driven.decisions, torch.zeros_like(driven.decisions))
    active = (torch.arange(longest) < finish[:, None]).repeat_interleave(parts, dim=1)
    alone = int(uid.max()) + 1 + torch.arange(rows)
    batch = {
        "responses": torch.zeros(rows, longest, parts, dtype=torch.int64),
        "input_ids": torch.zeros(rows, 1, dtype=torch.int64),
        # siiRL takes the last D·A columns for the mask of the responses, and sums the whole for its throughput
        "attention_mask": torch.cat([torch.ones(rows, 1, dtype=torch.int64), active.long()], dim=1),
        "response_mask": active,
        RECORDS: driven.records,
        "finish_step": finish,
        "complete": driven.success & driven.valid,
        "task_file_name": encode_names(names),
        "vjepa_embedding": driven.embedding,
        "episode_return": driven.returns,
        "decision_rewards": driven.rewards,
        "uid": torch.where(counted, uid, alone) + 1,  # Dict2Samples loses all ids where the first one is 0
    }
    if driven.values is not None:
        batch["values"] = driven.values.repeat_interleave(parts, dim=1)
    return batch


def encode_names(names: Sequence[str]) -> Tensor:
    """Scene names as uint8 [B, 50], as siiRL's SRPO reward reads them; what differs after byte 50 is told apart by a hash."""
    out = np.zeros((len(names), NAME_BYTES), dtype=np.uint8)
    for row, name in zip(out, names, strict=True):
        whole = name.encode()
        if len(whole) > NAME_BYTES:
            whole = hashlib.sha256(whole).hexdigest()[:NAME_BYTES].encode()
        row[: len(whole)] = np.frombuffer(whole, dtype=np.uint8)
    return torch.from_numpy(out)


def decision_mask(finish: Tensor, longest: int) -> Tensor:
    """bool [B, D] from ``finish_step``."""
    return torch.arange(longest, device=finish.device) < finish[:, None]
