"""A prefix transformer whose prefix is computed once and shared by many continuations.

The prefix (image, text, ego state) attends to itself in both directions. Each of the G continuations of a prefix (the plan
tokens of one sample) attends to the prefix and, causally, to itself. A group of samples therefore pays for its prompt once,
in sampling and in training alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


@dataclass
class Prefix:
    """An encoded prefix of U prompts."""

    keys: list[Tensor]
    """Per layer [U, H, P, D]."""
    values: list[Tensor]
    """Per layer [U, H, P, D]."""
    valid: Tensor
    """bool [U, P]: which positions are not padding."""
    summary: Tensor
    """[U, dim] final hidden state of the last position."""


@dataclass
class Past:
    """Keys and values [U, H, G, n, D], per layer, of the continuation's n tokens so far."""

    keys: list[Tensor]
    values: list[Tensor]


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, dim: int, heads: int, mlp: float, layers: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim, bias=False)
        self.key_value = nn.Linear(dim, 2 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        hidden = int(mlp * dim)
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))
        for linear in (self.query, self.key_value, self.mlp[1]):
            nn.init.normal_(linear.weight, std=dim**-0.5)  # type: ignore[arg-type]
        for linear in (self.out, self.mlp[3]):  # residual branches start small, the more so the more layers there are
            nn.init.normal_(linear.weight, std=(2 * layers * linear.in_features) ** -0.5)  # type: ignore

    def split(self, x: Tensor) -> Tensor:
        """[..., n, dim] -> [..., n, H, D]."""
        return x.view(*x.shape[:-1], self.heads, -1)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Residual stream [..., dim] after the attention's result [..., dim] and the MLP."""
        x = x + self.out(attended)
        out: Tensor = x + self.mlp(x)
        return out


class PrefixTransformer(nn.Module):
    """``layers`` blocks; ``encode`` for the prefix, ``extend`` for continuations."""

    blocks: Sequence[Block]

    def __init__(self, dim: int, layers: int, heads: int, mlp: float) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} is not a multiple of heads {heads}")
        self.blocks = nn.ModuleList(Block(dim, heads, mlp, layers) for _ in range(layers))  # type: ignore[assignment]
        self.norm = nn.LayerNorm(dim)

    def encode(self, x: Tensor, valid: Tensor) -> Prefix:
        """Prefix embeddings [U, P, dim] and their validity bool [U, P] (the last position must be valid).

        In the last block only the last position is carried on: of the others, nothing but keys and values is ever used.
        """
        keys, values = [], []
        mask = valid[:, None, None, :]
        for i, block in enumerate(self.blocks):
            normed = block.norm(x)
            k, v = (block.split(part).transpose(1, 2) for part in block.key_value(normed).chunk(2, -1))
            if i + 1 == len(self.blocks):
                x, normed = x[:, -1:], normed[:, -1:]
            q = block.split(block.query(normed)).transpose(1, 2)
            attended = scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
            x = block.finish(x, attended)
            keys.append(k)
            values.append(v)
        return Prefix(keys, values, valid, self.norm(x[:, -1]))

    def extend(self, x: Tensor, prefix: Prefix, past: Past | None = None) -> tuple[Tensor, Past]:
        """Continue U prefixes with G sequences each: embeddings [U, G, n, dim] -> final hidden states [U, G, n, dim].

        ``past`` is what the tokens before left behind; the second result has these n tokens appended.
        """
        grown = Past([], [])
        for i, block in enumerate(self.blocks):
            normed = block.norm(x)
            q, k, v = (
                block.split(part).permute(0, 3, 1, 2, 4)
                for part in (block.query(normed), *block.key_value(normed).chunk(2, -1))
            )
            if past is not None:
                k, v = torch.cat([past.keys[i], k], dim=3), torch.cat([past.values[i], v], dim=3)
            grown.keys.append(k)
            grown.values.append(v)
            attended = _shared_attention(q, k, v, prefix.keys[i], prefix.values[i], prefix.valid)
            x = block.finish(x, attended.permute(0, 2, 3, 1, 4).flatten(3))
        return self.norm(x), grown


def _shared_attention(q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor, valid: Tensor) -> Tensor:
    """Attention of q [U, H, G, n, D] over a prefix [U, H, P, D] that G sequences share and, causally, their own k, v.

    One softmax over both parts: the same numbers as with the prefix copied for every sequence, without the copies.
    """
    n, total = q.shape[3], k.shape[3]
    q = q * q.shape[-1] ** -0.5
    on_prefix = (q.flatten(2, 3) @ prefix_k.transpose(-1, -2)).masked_fill(~valid[:, None, None], -torch.inf)
    on_own = q @ k.transpose(-1, -2)
    if n > 1:
        later = torch.ones(n, total, dtype=torch.bool, device=q.device).triu(total - n + 1)
        on_own = on_own.masked_fill(later, -torch.inf)
    weights = torch.cat([on_prefix.view(*q.shape[:4], -1), on_own], dim=-1).softmax(-1)
    from_prefix, from_own = torch.split(weights, [prefix_k.shape[2], total], dim=-1)
    attended: Tensor = (from_prefix.flatten(2, 3) @ prefix_v).view(q.shape) + from_own @ v
    return attended
