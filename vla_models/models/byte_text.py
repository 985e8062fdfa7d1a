"""Text as fixed-width patches of UTF-8 bytes: no vocabulary, any language, and numbers stay where the layout puts them.

A patch of ``WIDTH`` bytes is one token, so that a field laid out at a multiple of ``WIDTH`` is always read by the same weights
in the same place: ``"+12.3 -04.5 "`` is one route point and one token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn

from vla_models.errors import PromptError

WIDTH: Final = 12
"""Bytes in a patch."""


def encode_bytes(texts: Sequence[str], limit: int, truncate: bool = False) -> tuple[Tensor, Tensor]:
    """``input_ids`` (byte + 1, 0 is padding) and ``attention_mask``: int64 [B, L], L a multiple of ``WIDTH``, padded right.

    A text of more than ``limit`` bytes is cut when ``truncate`` is set (never inside a character), else a ``PromptError``.
    """
    rows = [text.encode("utf-8") for text in texts]
    for i, row in enumerate(rows):
        if len(row) > limit:
            if not truncate:
                raise PromptError(f"prompt {i} has {len(row)} bytes; this model reads {limit}. Shorten it or raise max_text")
            rows[i] = row[:limit].decode("utf-8", errors="ignore").encode("utf-8")
    length = WIDTH * max(1, max(-(-len(row) // WIDTH) for row in rows))
    padded = torch.frombuffer(bytearray(b"".join(row.ljust(length, b"\0") for row in rows)), dtype=torch.uint8)
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(length) < lengths[:, None]
    return (padded.view(len(rows), length).long() + 1) * mask, mask.long()


class ByteText(nn.Module):
    """Bytes [B, L] -> token embeddings [B, L / WIDTH, dim] and which of them hold text."""

    def __init__(self, dim: int, max_text: int, byte_dim: int = 16) -> None:
        super().__init__()
        self.max_tokens = max_text // WIDTH
        self.byte = nn.Embedding(257, byte_dim)
        self.mix = nn.Sequential(nn.Linear(WIDTH * byte_dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.position = nn.Parameter(0.02 * torch.randn(self.max_tokens, dim))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings [B, N, dim] and bool [B, N]."""
        rows, length = input_ids.shape
        if length % WIDTH:  # somebody else's padding: bring it to whole patches
            extra = WIDTH - length % WIDTH
            input_ids = nn.functional.pad(input_ids, (0, extra))
            attention_mask = nn.functional.pad(attention_mask, (0, extra))
        patches = input_ids.view(rows, -1, WIDTH)
        valid = attention_mask.view(rows, -1, WIDTH).any(-1)
        if patches.shape[1] > self.max_tokens:
            raise PromptError(f"{length} bytes of text; this model reads {self.max_tokens * WIDTH}")
        tokens: Tensor = self.mix(self.byte(patches).flatten(2))
        return tokens + self.position[: tokens.shape[1]], valid
