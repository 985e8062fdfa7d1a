"""Driven groups as AReaL's trajectories: a dict of tensors [N, S], one sequence for each decision.

AReaL (1.0.4) was made for text. A decision of the record route is put into its shape like this: S = 1 + P; slot 0 stands for
the prompt, slot i for the decision's i-th part. ``input_ids`` are zeros, the record travels in ``multi_modal_input``, whose
entries AReaL cuts, shuffles and sends along with their sequences without looking into them (all other tensors that are not
[N, S] it silently does not cut: ``utils/data.py``, split_padded_tensor_dict_into_mb_list). Only there is a ``pixel_values``
demanded; it is empty.

``attention_mask`` ends at a sequence's last part that counts: AReaL adds the reward at the last part that it covers
(``trainer/ppo/actor.py``, _compute_advantages), and forgets it if that part does not count.

``rewards`` are advantages: a group is compared within itself here, because AReaL can compare only groups of a fixed number of
sequences, and in Bench2Drive each episode has its own number of decisions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vla_models.errors import VLAModelsError
from vla_models.frameworks.records import RecordLayout, from_words, to_words, unpack

PAYLOAD: Final = "multi_modal_input"
"""The key whose entries go with their sequences."""
_WORDS, _FORM = "words", "form"
"""Of a record in there, see ``records.to_words``: one tensor, because AReaL copies each of them many times."""


@dataclass(frozen=True)
class Row:
    """One decision as a sequence of S slots."""

    ids: Tensor
    """int64 [S]: the prompt's tokens and those that were written; zeros on the record route."""
    logprobs: Tensor
    """float32 [S] of what was decided; 0 elsewhere."""
    counts: Tensor
    """bool [S]: what is learned from."""
    versions: Tensor
    """int32 [S] weight version of what was decided; -1 elsewhere."""
    payload: Mapping[str, Tensor]
    """What else the model needs to compute the log-probabilities again."""
    extra: Mapping[str, Tensor]
    """Further int64 [S] (the ``mm_token_type_ids`` of Qwen-VL)."""


def record_rows(layout: RecordLayout, record: Mapping[str, Tensor], logprobs: Tensor, mask: Tensor, version: int) -> list[Row]:
    """B decisions of the record route.

    record: [B, …]; logprobs float32 [B, P]; mask bool [B, P]; version: of the weights that decided.
    """
    words, form = to_words(layout.pack(record))
    rows = len(words)
    counts = torch.cat([torch.zeros(rows, 1, dtype=torch.bool), mask], dim=1)
    decided = torch.cat([torch.zeros(rows, 1), logprobs], dim=1).where(counts, torch.zeros(()))
    versions = torch.where(counts, version, -1).to(torch.int32)
    nothing, no_ids = torch.zeros(0), torch.zeros(counts.shape[1], dtype=torch.int64)
    each = zip(decided.unbind(), counts.unbind(), versions.unbind(), words[:, None].unbind(), strict=True)
    return [
        Row(no_ids, logprob, counted, made_by, {"pixel_values": nothing, _WORDS: own.clone(), _FORM: form}, {})
        for logprob, counted, made_by, own in each
    ]


def joined_record(payload: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The record [b, …] that the payloads of b decisions hold."""
    form = payload[0][_FORM]
    if not all(entry[_FORM] is form or torch.equal(entry[_FORM], form) for entry in payload):
        raise VLAModelsError("the decisions of a batch hold records of different forms; a record's types must not change")
    return unpack(from_words(torch.cat([entry[_WORDS] for entry in payload]), form))


def trajectory(rows: Sequence[Row], rewards: Sequence[float]) -> dict[str, Any]:
    """AReaL's dict for one rollout: ``rows`` with a reward each. ``check`` says what it holds."""
    if not rows or len(rows) != len(rewards):
        raise VLAModelsError(f"a trajectory needs a reward for each of its decisions: {len(rows)} and {len(rewards)}")
    if any(row.payload.keys() != rows[0].payload.keys() or row.extra.keys() != rows[0].extra.keys() for row in rows):
        raise VLAModelsError("the decisions of a trajectory hold different keys; a record's keys must not change")
    counts = pad_sequence([row.counts for row in rows], batch_first=True)
    slots = torch.tensor([len(row.counts) for row in rows])
    numbers = torch.arange(counts.shape[1])
    last = torch.where(counts, numbers, -1).amax(dim=1)
    ends = torch.where(last < 0, slots, last + 1)  # the prompt's slot is not cut off where nothing counts
    there = numbers[: int(ends.max())] < ends[:, None]

    def stack(values: Sequence[Tensor], dtype: torch.dtype, fill: float = 0) -> Tensor:
        whole = pad_sequence(list(values), batch_first=True, padding_value=fill)[:, : there.shape[1]]
        return whole.to(dtype).masked_fill(~there, fill)

    made = {
        "input_ids": stack([row.ids for row in rows], torch.int64),
        "attention_mask": there,
        "loss_mask": stack([row.counts for row in rows], torch.int32),
        "logprobs": stack([row.logprobs for row in rows], torch.float32),
        "versions": stack([row.versions for row in rows], torch.int32, -1),
        "rewards": torch.tensor(list(rewards), dtype=torch.float32),
        PAYLOAD: [dict(row.payload) for row in rows],
        **{name: stack([row.extra[name] for row in rows], torch.int64) for name in rows[0].extra},
    }
    check(made)
    return made


def check(made: Mapping[str, Any]) -> None:
    """Raise ``VLAModelsError`` where AReaL would take a trajectory and train something else.

    AReaL's own check only warns of wrong shapes. Here every tensor must be one that AReaL cuts into minibatches, or hold one
    number a sequence; what else a decision needs belongs into ``multi_modal_input``, one entry a sequence.
    """
    shape = made["input_ids"].shape
    for name, value in made.items():
        if name.startswith(PAYLOAD):
            if not isinstance(value, list) or len(value) != shape[0]:
                raise VLAModelsError(f"trajectory: {name} must be a list with one entry for each of {shape[0]} sequences")
            continue
        if not isinstance(value, Tensor):
            raise VLAModelsError(f"trajectory: {name} is a {type(value).__name__}; put it into {PAYLOAD}")
        if value.shape not in (shape, shape[:1]):
            raise VLAModelsError(
                f"trajectory: {name} has shape {list(value.shape)}, and AReaL would not cut it into minibatches with its "
                f"sequences {list(shape)}, without a word; put it into {PAYLOAD}, one entry a sequence"
            )
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise VLAModelsError(f"trajectory: {name} is not finite")
    if made["rewards"].shape != shape[:1]:
        raise VLAModelsError(f"trajectory: rewards have shape {list(made['rewards'].shape)}, not one a sequence")
    counts, there = made["loss_mask"].bool(), made["attention_mask"].bool()
    if bool((counts & ~there).any()) or bool(counts[:, 0].any()):
        raise VLAModelsError("trajectory: loss_mask counts slots that attention_mask leaves out, or a first slot")
    if bool((counts & (made["versions"] < 0)).any()):
        raise VLAModelsError("trajectory: a part that counts has no weight version")


@dataclass(frozen=True)
class Staleness:
    """How old the weights were that decided what a batch is made of. Parts (tokens) that count for learning."""

    parts: int
    mean: float
    """Updates between deciding and training."""
    most: int
    too_old: int
    """Parts that are older than the bound (``max_head_offpolicyness``), which AReaL keeps on average and not for each."""


def staleness(batch: Sequence[Mapping[str, Any]], version: int, bound: int) -> Staleness:
    """Of a batch that is trained on at weight version ``version``. AReaL pads ``versions`` with 0: only what counts is looked
    at."""
    ages = [version - d["versions"][d["loss_mask"].bool() & d["attention_mask"].bool()] for d in batch]
    age = torch.cat(ages).float() if ages else torch.zeros(0)
    if not len(age):
        return Staleness(0, 0.0, 0, 0)
    return Staleness(len(age), float(age.mean()), int(age.max()), int((age > bound).sum()))
