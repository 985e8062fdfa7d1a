"""Records of any model in fixed shapes, so that a framework can stack, cut, shuffle and send them.

A record's tensors are padded on the right with zeros up to the sizes of a ``RecordLayout`` and travel as integers: floating
point numbers as their own bits, because mixed-precision wrappers round every float that they meet, and a rounded record no
longer replays. The packed form describes itself: ``unpack`` needs no layout and cuts the padding that all rows share. Where
each tensor of a row costs something (a copy, a message, a key), ``to_words`` makes one of all of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import torch
from torch import Tensor

from vla_models.errors import ConfigError, NotImplementedByModel

_BITS: Final = {torch.float64: torch.int64, torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
"""Floating type -> the integer of its width."""
_DTYPES: Final = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (*_BITS, torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool)
}
_RECORD, _SIZES = "record", "sizes"
_WORD: Final = 8
"""Bytes; rows of words are copied faster than rows of bytes."""
_ROUND: Final = 8
"""Sizes with room to spare are rounded up to a multiple of this."""


@dataclass(frozen=True)
class RecordLayout:
    """Largest size of every tensor of a record, and of the log-probabilities that go with it."""

    sizes: Mapping[str, tuple[int, ...]]
    """tensor -> shape of one row."""
    parts: int
    """Log-probabilities of one decision."""
    prompt: tuple[str, ...] = ()
    """Tensors that all samples of an input share."""

    @classmethod
    def of(cls, samples: Sequence[tuple[Mapping[str, Tensor], Tensor]], prompt: Sequence[str] = ()) -> Self:
        """Layout with room for records like these (record, log-probabilities).

        prompt: ``VLAInterface.prompt_keys``; a name that the records do not have is ignored.
        Dimensions that are the same in all samples stay as they are; where they differ, as much room again is added as they
        differ by.
        """
        if not samples:
            raise ConfigError("no sample of the model's records was given")
        names = samples[0][0].keys()
        if any(record.keys() != names for record, _ in samples):
            raise NotImplementedByModel("the model's records have other keys each time; a record's keys must not change")
        return cls(
            {name: _room([tuple(record[name].shape[1:]) for record, _ in samples], name) for name in names},
            _room([(logprobs[0].numel(),) for _, logprobs in samples], "logprobs")[0],
            tuple(name for name in names if name in prompt),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data; ``from_dict`` reads it."""
        sizes = {name: list(size) for name, size in self.sizes.items()}
        return {"sizes": sizes, "parts": self.parts, "prompt": list(self.prompt)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """What ``to_dict`` wrote."""
        sizes = {name: tuple(int(n) for n in size) for name, size in data["sizes"].items()}
        return cls(sizes, int(data["parts"]), tuple(data["prompt"]))

    def pack(self, record: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The record [B rows] in fixed shapes, integers only, on the CPU."""
        self._check_keys(record)
        return self._pack(record)

    def pack_apart(self, record: Mapping[str, Tensor], samples: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """``pack`` in two: what each row [B] has of its own, and what the ``samples`` rows of an input share, [B / samples]."""
        self._check_keys(record)
        own = {name: value for name, value in record.items() if name not in self.prompt}
        # copies: a single row that was cut out counts as contiguous to torch, with strides that it cannot view otherwise
        prompt = {name: record[name][::samples].clone(memory_format=torch.contiguous_format) for name in self.prompt}
        return self._pack(own), self._pack(prompt)

    def _check_keys(self, record: Mapping[str, Tensor]) -> None:
        if record.keys() != self.sizes.keys():
            differing = sorted(record.keys() ^ self.sizes.keys())
            raise NotImplementedByModel(f"the model's record has changed its keys: {differing}")

    def _pack(self, record: Mapping[str, Tensor]) -> dict[str, Tensor]:
        packed: dict[str, Tensor] = {}
        for name, value in record.items():
            kind = str(value.dtype).removeprefix("torch.")
            if kind not in _DTYPES or "/" in name:
                raise NotImplementedByModel(
                    f"the record's {name!r} ({value.dtype}) cannot be sent; known: {', '.join(_DTYPES)}"
                )
            value = value.detach().cpu().contiguous()
            bits = value.view(_BITS[value.dtype]) if value.dtype in _BITS and value.ndim else value
            packed[f"{_RECORD}/{kind}/{name}"] = pad(bits, self.sizes[name], f"the record's {name!r}")
            if value.ndim > 1:
                size = torch.tensor(value.shape[1:], dtype=torch.int32)
                packed[f"{_SIZES}/{kind}/{name}"] = size.expand(len(value), -1).contiguous()
        return packed

    def pack_logprobs(self, logprobs: Tensor) -> Tensor:
        """Log-probabilities [B, *S] as float32 [B, parts], zeros on the right."""
        return pad(logprobs.detach().float().flatten(1).cpu(), (self.parts,), "logprobs")


def unpack(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The record in a dict that ``RecordLayout.pack`` made (other keys are ignored), each tensor as wide as its widest row."""
    record: dict[str, Tensor] = {}
    for key, value in packed.items():
        if not key.startswith(f"{_RECORD}/"):
            continue
        _, kind, name = key.split("/", 2)
        sizes = packed.get(f"{_SIZES}/{kind}/{name}")
        if sizes is not None and len(sizes):
            value = value[(slice(None), *(slice(int(n)) for n in sizes.amax(dim=0)))]
        dtype = _DTYPES[kind]
        record[name] = value.contiguous().view(dtype) if dtype in _BITS else value
    return record


def to_words(packed: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """A packed record as one tensor, int64 [B, W], and its form: what lies where, as the bytes (uint8) of a JSON text.

    ``packed`` holds integers [B, …] alone, as ``RecordLayout.pack`` makes them. Records of one run have one form.
    """
    form = [[key, str(value.dtype).removeprefix("torch."), list(value.shape[1:])] for key, value in sorted(packed.items())]
    rows = len(next(iter(packed.values())))
    places, width = _places(form)
    words = torch.zeros(rows, width, dtype=torch.int64)
    whole = words.view(torch.uint8)
    for key, _, _, at, size in places:
        whole[:, at : at + size] = packed[key].contiguous().view(rows, -1).view(torch.uint8)
    return words, torch.frombuffer(bytearray(json.dumps(form).encode()), dtype=torch.uint8)


def from_words(words: Tensor, form: Tensor) -> dict[str, Tensor]:
    """The packed record in words int64 [B, W] of that form, as views of them; ``unpack`` goes on from it."""
    whole, packed = words.contiguous().view(torch.uint8), {}
    for key, kind, shape, at, size in _places(json.loads(bytes(form.tolist())))[0]:
        packed[key] = whole[:, at : at + size].view(kind).view(len(words), *shape)
    return packed


def _places(form: Sequence[Sequence[Any]]) -> tuple[list[tuple[str, torch.dtype, tuple[int, ...], int, int]], int]:
    """(key, type, shape, first byte, bytes) of each tensor in a row, and the row's words."""
    places, at = [], 0
    for key, name, shape in form:
        kind: torch.dtype = getattr(torch, name)
        size = math.prod(shape) * kind.itemsize
        places.append((key, kind, tuple(shape), at, size))
        at += -(-size // _WORD) * _WORD
    return places, at // _WORD


def pad(value: Tensor, size: tuple[int, ...], what: str) -> Tensor:
    """``value`` [B, *s] filled up with zeros to [B, *size]; ``ConfigError`` if it is larger."""
    own = tuple(value.shape[1:])
    if own == size:
        return value
    if len(own) != len(size) or any(n > most for n, most in zip(own, size, strict=True)):
        raise ConfigError(
            f"{what} has rows of {list(own)}, and the run was laid out for at most {list(size)} (seen on the first training "
            "scenes). Let the model bound its texts (max_text, max_new_tokens), or raise this size in framework_options"
        )
    whole = value.new_zeros(len(value), *size)
    whole[(slice(None), *(slice(n) for n in own))] = value
    return whole


def _room(shapes: Sequence[tuple[int, ...]], name: str) -> tuple[int, ...]:
    if len({len(shape) for shape in shapes}) != 1:
        raise NotImplementedByModel(f"the record's {name!r} has another number of dimensions each time: {sorted(set(shapes))}")
    room = []
    for axis in zip(*shapes, strict=True):
        low, high = min(axis), max(axis)
        room.append(high if low == high else -(-(2 * high - low) // _ROUND) * _ROUND)
    return tuple(room)
