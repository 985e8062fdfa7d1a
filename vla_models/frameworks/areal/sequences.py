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

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from vla_models.errors import VLAModelsError
from vla_models.frameworks.records import RecordLayout, from_words, to_words, unpack

PAYLOAD: Final = "multi_modal_input"
"""The key whose entries go with their sequences."""
_RECORD, _PROMPT = "record", "prompt"
"""In there, as words (``records.to_words``): what a decision has of its own, and what all decisions of its input share."""


@dataclass(frozen=True)
class Rows:
    """B decisions as sequences of S slots."""

    ids: Tensor
    """int64 [B, S]: the prompt's tokens and those that were written; zeros on the record route."""
    logprobs: Tensor
    """float32 [B, S] of what was decided; 0 elsewhere."""
    counts: Tensor
    """bool [B, S]: what is learned from."""
    versions: Tensor
    """int32 [B, S] weight version of what was decided; -1 elsewhere."""
    payload: Sequence[Mapping[str, Tensor]]
    """[B] what else the model needs to compute the log-probabilities again."""
    extra: Mapping[str, Tensor]
    """Further int64 [B, S] (the ``mm_token_type_ids`` of Qwen-VL)."""

    def __len__(self) -> int:
        return len(self.payload)

    def __getitem__(self, rows: slice | Tensor) -> Rows:
        """Some of them: a slice, or indices int64 [b]."""
        return Rows(
            self.ids[rows],
            self.logprobs[rows],
            self.counts[rows],
            self.versions[rows],
            self.payload[rows] if isinstance(rows, slice) else [self.payload[i] for i in rows.tolist()],
            {name: value[rows] for name, value in self.extra.items()},
        )


def join(parts: Sequence[Rows]) -> Rows:
    """All rows, in order, filled up on the right to the widest."""
    first = parts[0]
    keys = [(part.payload[0].keys(), part.extra.keys()) for part in parts]
    if any(own != keys[0] for own in keys):
        raise VLAModelsError("the decisions of a trajectory hold different keys; a record's keys must not change")
    if len(parts) == 1:
        return first
    width = max(part.ids.shape[1] for part in parts)

    def cat(values: Iterable[Tensor], fill: float = 0) -> Tensor:
        return torch.cat([pad(value, (0, width - value.shape[1]), value=fill) for value in values])

    return Rows(
        cat(part.ids for part in parts),
        cat(part.logprobs for part in parts),
        cat((part.counts for part in parts), False),
        cat((part.versions for part in parts), -1),
        [entry for part in parts for entry in part.payload],
        {name: cat(part.extra[name] for part in parts) for name in first.extra},
    )


def record_rows(
    layout: RecordLayout, record: Mapping[str, Tensor], logprobs: Tensor, mask: Tensor, version: int, samples: int = 1
) -> Rows:
    """B decisions of the record route.

    record: [B, …]; logprobs float32 [B, P]; mask bool [B, P]; version: of the weights that decided; samples: how many decisions
    side by side are of one input. What these share (``layout.prompt``) is there once, and each of them refers to it.
    """
    own, prompt = layout.pack_apart(record, samples)
    shared = {"pixel_values": torch.zeros(0)}
    prompts = [shared | entry for entry in _entries(prompt, _PROMPT)] if prompt else [shared] * (len(logprobs) // samples)
    payload = [prompts[i // samples] | entry for i, entry in enumerate(_entries(own, _RECORD, samples))]
    counts = pad(mask, (1, 0), value=False)
    return Rows(
        ids=torch.zeros(counts.shape, dtype=torch.int64),
        logprobs=pad(logprobs, (1, 0)).where(counts, torch.zeros(())),
        counts=counts,
        versions=torch.where(counts, version, -1).to(torch.int32),
        payload=payload,
        extra={},
    )


def _entries(packed: Mapping[str, Tensor], name: str, together: int = 1) -> list[dict[str, Tensor]]:
    """Each row of a packed record, as one tensor and its form: AReaL copies every tensor many times.

    So many rows are ``together`` in memory, and not all of them: what AReaL keeps or sends of one holds those with it.
    """
    words, form = to_words(packed)
    parts = [part.clone() for part in torch.split(words[:, None], together)]
    return [{name: row, f"{name}_form": form} for part in parts for row in part.unbind()]


def joined_record(payload: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The record [b, …] that the payloads of b decisions hold."""
    record = _joined(payload, _RECORD)
    if _PROMPT in payload[0]:
        record |= _joined(payload, _PROMPT)
    return record


def _joined(payload: Sequence[Mapping[str, Tensor]], name: str) -> dict[str, Tensor]:
    form = payload[0][f"{name}_form"]
    if not all(entry[f"{name}_form"] is form or torch.equal(entry[f"{name}_form"], form) for entry in payload):
        raise VLAModelsError("the decisions of a batch hold records of different forms; a record's types must not change")
    return unpack(from_words(torch.cat([entry[name] for entry in payload]), form))


def trajectory(rows: Rows, rewards: Tensor) -> dict[str, Any]:
    """AReaL's dict for one rollout: ``rows`` with a reward (float32 [B]) each. ``check`` says what it holds."""
    if not len(rows) or len(rows) != len(rewards):
        raise VLAModelsError(f"a trajectory needs a reward for each of its decisions: {len(rows)} and {len(rewards)}")
    counts = rows.counts.numpy()  # in NumPy, because a torch call costs more than these few numbers
    slots = np.arange(1, counts.shape[1] + 1)
    ends = np.where(counts, slots, 0).max(axis=1)
    ends[ends == 0] = len(slots)  # the prompt's slots are not cut off where nothing counts
    width = int(ends.max())
    there = torch.from_numpy(slots[:width] <= ends[:, None])
    whole = bool((ends == len(slots)).all())

    def cut(values: Tensor, fill: int = 0) -> Tensor:
        return values if whole else values[:, :width].masked_fill(~there, fill)

    made = {
        "input_ids": cut(rows.ids),
        "attention_mask": there,
        "loss_mask": torch.from_numpy(counts[:, :width].astype(np.int32)),
        "logprobs": cut(rows.logprobs),
        "versions": cut(rows.versions, -1),
        "rewards": rewards.float(),
        PAYLOAD: list(rows.payload),
        **{name: cut(value) for name, value in rows.extra.items()},
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
        if value.is_floating_point() and not np.isfinite(value.numpy()).all():
            raise VLAModelsError(f"trajectory: {name} is not finite")
    if made["rewards"].shape != shape[:1]:
        raise VLAModelsError(f"trajectory: rewards have shape {list(made['rewards'].shape)}, not one a sequence")
    counts, there = (made[name].numpy().astype(bool) for name in ("loss_mask", "attention_mask"))
    if (counts & ~there).any() or counts[:, 0].any():
        raise VLAModelsError("trajectory: loss_mask counts slots that attention_mask leaves out, or a first slot")
    if (counts & (made["versions"].numpy() < 0)).any():
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
