"""Temperature, top-p and logit masks as plain functions of raw logits, so that sampling and replay apply the very same ones.

Rollouts keep what the nucleus left (``support``), not the warped scores: probabilities are always recomputed from raw logits
and renormalised over that support. The scores that ``generate`` returns are renormalised already and do not replay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import torch
from torch import Tensor

from vla_models.errors import VLAModelsError

TEXT: Final = 1
"""In a record's ``segment`` int8 [B, L]: a token of reasoning text (0 is padding) …"""
ACTION: Final = 2
"""… or of the plan."""


def check_warpers(temperature: float, top_p: float) -> None:
    """VLAModelsError unless one can sample at ``temperature`` from the nucleus ``top_p``."""
    if temperature <= 0.0 or not 0.0 < top_p <= 1.0:
        raise VLAModelsError(f"temperature must be above 0 and top_p in (0, 1], not {temperature} and {top_p}")


def nucleus(logits: Tensor, temperature: Tensor, top_p: Tensor, sizes: Sequence[int]) -> Tensor:
    """Support bool ``[N, sum(sizes)]`` of top-p sampling, factor by factor.

    Per factor: the fewest most probable values whose probabilities add up to ``top_p`` (never none; ``top_p`` = 1 keeps all).
    """
    kept = []
    for part in torch.split(logits / temperature[..., None], list(sizes), -1):
        p, order = part.softmax(-1).sort(dim=-1, descending=True)
        before = p.cumsum(-1) - p  # mass of the values that are more probable than this one
        inside = (before < top_p[..., None]) | (top_p[..., None] >= 1.0)
        inside[..., 0] = True
        kept.append(torch.zeros_like(inside).scatter(-1, order, inside))
    return torch.cat(kept, dim=-1)


def log_softmax_within(logits: Tensor, temperature: Tensor, support: Tensor) -> Tensor:
    """Log-probabilities float32 [..., V] of raw ``logits`` at ``temperature`` [...], renormalised over ``support`` (bool,
    broadcast to [..., V]: a nucleus, a logit mask, or both); minus infinity outside."""
    warped = logits.float() / temperature[..., None]
    return torch.log_softmax(warped.masked_fill(~support, -torch.inf), dim=-1)


def entropy_of(logp: Tensor) -> Tensor:
    """Entropy in nats [...] of log-probabilities [..., V]; minus infinity counts as probability 0, in the gradient too."""
    return -(logp.exp() * logp.masked_fill(logp == -torch.inf, 0.0)).sum(-1)


def pack_mask(mask: Tensor) -> Tensor:
    """bool [..., V] as bits in uint8 [..., ceil(V / 8)]: a support over a whole vocabulary, small enough for a record."""
    extra = -mask.shape[-1] % 8
    bits = torch.nn.functional.pad(mask, (0, extra)).to(torch.uint8).view(*mask.shape[:-1], -1, 8)
    return (bits << torch.arange(8, dtype=torch.uint8, device=mask.device)).sum(-1, dtype=torch.uint8)


def unpack_mask(packed: Tensor, size: int) -> Tensor:
    """The bool [..., size] that ``pack_mask`` packed."""
    bits = (packed[..., None] >> torch.arange(8, dtype=torch.uint8, device=packed.device)) & 1
    return bits.flatten(-2)[..., :size].bool()


def counted(segment: Tensor, which: Literal["action", "text", "all"] = "all") -> Tensor:
    """Which tokens of ``segment`` int8 [B, L] learning counts: those of the plan, of the reasoning, or both (bool [B, L])."""
    return segment > 0 if which == "all" else segment == (ACTION if which == "action" else TEXT)
