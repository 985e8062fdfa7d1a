"""A decision's record among the fields of verl's rows.

Each field of each row costs verl a message and each tensor that comes from a server is pickled by torch, so a record is two
arrays (``frameworks.records.to_words``): of its fifteen tensors a step of 512 plans spent half its time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vla_models.frameworks.records import from_words, to_words

WORDS: Final = "record/words"
"""Key of the record, int64 [B, W]."""
FORM: Final = "record/form"
"""Key of what lies where in it, uint8 [B, F]; the same in each row of a run."""


def record_fields(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The fields of B packed records (``RecordLayout.pack``)."""
    words, form = to_words(packed)
    return {WORDS: words, FORM: form.expand(len(words), -1)}


def rows_of(fields: Mapping[str, Tensor]) -> list[dict[str, npt.NDArray[Any]]]:
    """The fields of each row, as arrays: those travel between processes without torch's pickling."""
    each = zip(*(value.numpy() for value in fields.values()), strict=True)
    return [{key: np.array(value) for key, value in zip(fields, row, strict=True)} for row in each]


def packed_records(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """The packed records of a batch of verl's. Rows of equal shape come back jagged from TransferQueue."""

    def dense(value: Tensor) -> Tensor:
        return value.values().reshape(value.shape[0], -1) if value.is_nested else value

    return from_words(dense(batch[WORDS]), dense(batch[FORM])[0])


def tensors_of(row: Mapping[str, npt.NDArray[Any]]) -> dict[str, Tensor]:
    """A row's fields as tensors."""
    return {key: torch.tensor(value) for key, value in row.items()}
