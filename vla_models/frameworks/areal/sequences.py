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

from vla_models.errors import VLAModelsError
from vla_models.frameworks.records import RecordLayout

PAYLOAD: Final = "multi_modal_input"
"""The key whose entries go with their sequences."""


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
    packed = layout.pack(record)
    payload = {"pixel_values": torch.zeros(0)}
    rows = []
    for i in range(len(logprobs)):
        counts = torch.cat([torch.zeros(1, dtype=torch.bool), mask[i]])
        rows.append(
            Row(
                ids=torch.zeros(len(counts), dtype=torch.int64),
                logprobs=torch.cat([torch.zeros(1), logprobs[i]]).where(counts, torch.zeros(())),
                counts=counts,
                versions=torch.where(counts, version, -1).to(torch.int32),
                payload={**payload, **{name: value[i : i + 1].clone() for name, value in packed.items()}},
                extra={},
            )
        )
    return rows


def trajectory(rows: Sequence[Row], rewards: Sequence[float]) -> dict[str, Any]:
    """AReaL's dict for one rollout: ``rows`` with a reward each. ``check`` says what it holds."""
    if not rows or len(rows) != len(rewards):
        raise VLAModelsError(f"a trajectory needs a reward for each of its decisions: {len(rows)} and {len(rewards)}")
    if any(row.payload.keys() != rows[0].payload.keys() or row.extra.keys() != rows[0].extra.keys() for row in rows):
        raise VLAModelsError("the decisions of a trajectory hold different keys; a record's keys must not change")
    length = max(_end(row) for row in rows)

    def stack(values: Sequence[Tensor], dtype: torch.dtype, fill: float = 0) -> Tensor:
        out = torch.full((len(values), length), fill, dtype=dtype)
        for i, (row, value) in enumerate(zip(rows, values, strict=True)):
            end = _end(row)
            out[i, :end] = value[:end].to(dtype)
        return out

    made = {
        "input_ids": stack([row.ids for row in rows], torch.int64),
        "attention_mask": stack([torch.ones(len(row.counts)) for row in rows], torch.bool),
        "loss_mask": stack([row.counts for row in rows], torch.int32),
        "logprobs": stack([row.logprobs for row in rows], torch.float32),
        "versions": stack([row.versions for row in rows], torch.int32, -1),
        "rewards": torch.tensor(list(rewards), dtype=torch.float32),
        PAYLOAD: [dict(row.payload) for row in rows],
        **{name: stack([row.extra[name] for row in rows], torch.int64) for name in rows[0].extra},
    }
    check(made)
    return made


def _end(row: Row) -> int:
    """Slots of a row up to the last one that counts (one more than the prompt if none does)."""
    at = torch.nonzero(row.counts)
    return int(at[-1]) + 1 if len(at) else len(row.counts)


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
