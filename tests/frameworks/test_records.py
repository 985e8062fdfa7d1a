"""Records survive packing bit for bit, in fixed shapes, and nothing of them is rounded on the way."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vla_models.errors import ConfigError, NotImplementedByModel
from vla_models.frameworks.records import RecordLayout, from_words, to_words, unpack

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool)


def record(rows: int, width: int, seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    numbers = torch.randn(rows, width, 2, generator=g) * 1000
    out = {str(dtype).removeprefix("torch."): numbers.to(dtype) for dtype in DTYPES if dtype not in (torch.uint8, torch.bool)}
    out |= {"uint8": (numbers.abs() % 256).to(torch.uint8), "bool": numbers > 0}
    return out | {"one": torch.randn(rows, generator=g), "id": torch.randint(-(2**62), 2**62, (rows,), generator=g)}


@given(rows=st.integers(1, 4), widths=st.lists(st.integers(1, 6), min_size=2, max_size=4), seed=st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_records_come_back_after_being_stacked_shuffled_and_rounded(rows: int, widths: list[int], seed: int) -> None:
    records = [record(rows, width, seed + i) for i, width in enumerate(widths)]
    layout = RecordLayout.of([(r, torch.zeros(rows, w)) for r, w in zip(records, widths, strict=True)])
    prompt = RecordLayout.of([(records[0], torch.zeros(rows, widths[0]))], ("one", "id", "other"))
    assert prompt.prompt == ("one", "id")
    for made in (layout, prompt):
        assert RecordLayout.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    packed = [layout.pack(r) for r in records]
    assert not any(value.is_floating_point() for part in packed for value in part.values())
    whole = {key: torch.stack([part[key] for part in packed]).flatten(0, 1) for key in packed[0]}
    order = torch.randperm(rows * len(widths), generator=torch.Generator().manual_seed(seed))
    words, form = to_words(whole)
    assert words.dtype == torch.int64
    back = unpack(from_words(words[order], form))
    widest = max(widths)
    for place, source in enumerate(order.tolist()):
        original = records[source // rows]
        for name, value in original.items():
            row, wanted = back[name][place], value[source % rows]
            assert row.dtype == wanted.dtype
            if wanted.ndim:
                assert row.shape == (widest, 2)
                assert not row[len(wanted) :].any()
                row = row[: len(wanted)]
            assert torch.equal(row, wanted)


def test_room_is_made_for_what_varies_and_for_nothing_else() -> None:
    layout = RecordLayout.of([(record(1, width), torch.zeros(1, width)) for width in (3, 5)])
    assert layout.sizes["int64"] == (8, 2)  # as much again as they differ by, rounded up to eights
    assert layout.sizes["one"] == ()
    assert layout.parts == 8


def test_what_does_not_fit_is_named() -> None:
    layout = RecordLayout.of([(record(1, 3), torch.zeros(1, 3))])
    with pytest.raises(ConfigError, match=r"the record's 'float32' has rows of \[4, 2\].*at most \[3, 2\].*framework_options"):
        layout.pack(record(2, 4))
    with pytest.raises(ConfigError, match=r"logprobs has rows of \[4\]"):
        layout.pack_logprobs(torch.zeros(2, 4))
    with pytest.raises(NotImplementedByModel, match=r"changed its keys: \['more'\]"):
        layout.pack({**record(1, 3), "more": torch.zeros(1)})
    with pytest.raises(NotImplementedByModel, match="complex64"):
        RecordLayout({"z": ()}, 1).pack({"z": torch.zeros(1, dtype=torch.complex64)})
