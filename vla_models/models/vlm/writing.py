"""What a language model may write, token by token, and with which probability it did.

``Grammar`` says which tokens may follow; ``Writer`` is a logits processor that draws them inside one call of ``generate``;
``replay`` recomputes the log-probabilities of what was written from raw logits. Both apply the same warpers to the same
logits: the grammar's mask, the temperature, the nucleus.

A record keeps of the nucleus only how many tokens it held (``kept``). Replay takes that many of the most probable tokens, and
the one that was written: with unchanged weights the very same set, and two tokens at its edge that change places because a
batch was cut otherwise also change hardly any mass. A set of bits would take 19 kB for each token of a large vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

from vla_models.errors import VLAModelsError
from vla_models.heads.base import check_finite
from vla_models.heads.warpers import ACTION, TEXT, entropy_of, log_softmax_within, nucleus

GIVEN: Final = -1
"""In ``segment``: a token that the grammar left no choice about. It is read on, but no decision and counts for nothing."""


@dataclass(frozen=True)
class Grammar:
    """Completions ``[text <plan>] action``: up to ``reasoning`` tokens of text, the marker, then the plan.

    Without ``marked`` the plan comes at once.
    """

    text: Tensor
    """bool [V]: tokens that free text may have (no padding, no pictures, no action tokens)."""
    marker: int
    """Token that ends the text."""
    end: int
    """Token that ends a plan in words."""
    pad: int
    marked: bool
    """Whether text and a marker stand before the plan."""
    reasoning: int
    """Most tokens of text before the marker, which is then given."""
    actions: Tensor | None
    """int64 [A]: token ids of the codebook's entries; None where the plan is in words, or is not written at all."""
    length: int
    """Tokens of a plan: exactly with a codebook, at most in words (its end included), 0 if it is not written."""

    @property
    def most(self) -> int:
        """Most tokens of a completion."""
        return self.length + (self.reasoning + 1 if self.marked else 0)

    def limit(self, max_new_tokens: int | None) -> Grammar:
        """The grammar for at most that many tokens: the text gives way first, then a plan in words; a plan in codes never."""
        if max_new_tokens is None or max_new_tokens >= self.most:
            return self
        rest = max_new_tokens - int(self.marked)
        length = self.length if self.actions is not None else min(self.length, rest)
        if rest < length or (self.length > 0 and length < 1) or rest < 0:
            raise VLAModelsError(f"max_new_tokens={max_new_tokens} leaves no room for a plan of {self.length} tokens")
        return replace(self, length=length, reasoning=min(self.reasoning, rest - length))

    def plan_mask(self) -> Tensor:
        """bool [V]: tokens that a plan may have."""
        if self.actions is None:
            mask = self.text.clone()
            mask[self.end] = True
            return mask
        return torch.zeros_like(self.text).index_fill(0, self.actions, True)

    def text_mask(self) -> Tensor:
        """bool [V]: tokens that may stand where text is written."""
        mask = self.text.clone()
        mask[self.marker] = True
        return mask


class Writer:
    """Draws each next token of R rows: pass it to ``generate`` as logits processor and as stopping criterion.

    It gets raw logits and returns scores that leave just its choice, so ``generate`` decodes greedily. ``temperature`` and
    ``top_p`` are [R]; ``deterministic`` takes the most probable token instead of drawing. ``generator`` may live anywhere.
    """

    def __init__(
        self,
        grammar: Grammar,
        temperature: Tensor,
        top_p: Tensor,
        *,
        deterministic: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        self.grammar, self.temperature, self.top_p = grammar, temperature, top_p
        self._deterministic, self._generator = deterministic, generator
        device = temperature.device
        self._text_mask, self._plan_mask = grammar.text_mask().to(device), grammar.plan_mask().to(device)
        self._planning = torch.full(temperature.shape, not grammar.marked, device=device)
        self._count = torch.zeros_like(self._planning, dtype=torch.int64)
        self.done = torch.zeros_like(self._planning)
        self._written: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [R, V] -> minus infinity but for the chosen token."""
        g = self.grammar
        logits = check_finite(scores.float(), "hf_vlm's logits")
        allowed = torch.where(self._planning[:, None], self._plan_mask, self._text_mask)
        support = allowed
        kept = torch.zeros_like(self._count)
        if bool((self.top_p < 1.0).any()):
            inside = logits.masked_fill(~allowed, -torch.inf)
            support = allowed & nucleus(inside, self.temperature, self.top_p, [logits.shape[1]])
            kept = torch.where(self.top_p < 1.0, support.sum(-1), kept)
        logp = log_softmax_within(logits, self.temperature, support)
        if self._deterministic:
            token = logp.argmax(-1)
        else:
            p = logp.exp() if self._generator is None else logp.exp().to(self._generator.device)
            token = torch.multinomial(p, 1, generator=self._generator)[:, 0].to(logp.device)
        segment = torch.where(self._planning, ACTION, TEXT)
        given = ~self._planning & (self._count >= g.reasoning)
        token = torch.where(given, g.marker, token)
        segment = torch.where(given, GIVEN, segment)
        token = torch.where(self.done, g.pad, token)
        segment = torch.where(self.done, 0, segment)
        chosen = logp.gather(-1, token[:, None])[:, 0]
        self._written.append((token, segment, torch.where(segment > 0, chosen, 0.0), torch.where(segment > 0, kept, 0)))
        self._advance(token)
        return torch.full_like(scores, -torch.inf).scatter(1, token[:, None], 0.0)

    def _advance(self, token: Tensor) -> None:
        g = self.grammar
        marker = ~self._planning & (token == g.marker)
        self._count = torch.where(marker, 0, self._count + 1)
        ended = self._planning & ((self._count >= g.length) | ((token == g.end) & (g.actions is None)))
        self.done = self.done | ended | (marker & (g.length == 0))
        self._planning = self._planning | marker

    def stop(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        """bool [R]: rows that are complete."""
        return self.done

    def written(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens int64, ``segment`` int8, log-probabilities float32 and ``kept`` int64, each [R, C]."""
        token, segment, logprob, kept = (torch.stack(part, dim=1) for part in zip(*self._written, strict=True))
        return token, segment.to(torch.int8), logprob, kept


def replay(
    grammar: Grammar, logits: Tensor, record: dict[str, Tensor], *, entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities float32 [B, C] of a record's ``completion_ids``, and entropies on request, from raw logits [B, C, V].

    0 where nothing was chosen.
    """
    ids, segment, kept = record["completion_ids"], record["segment"], record["kept"]
    temperature = record["temperature"][:, None].expand(ids.shape)
    logprobs = torch.zeros(ids.shape, device=logits.device)
    entropies = torch.zeros_like(logprobs) if entropy else None
    for kind in (TEXT, ACTION):
        here = segment == kind
        if kind == TEXT and not grammar.marked:
            continue
        rows, columns = here.nonzero(as_tuple=True)
        if not len(rows):
            continue
        raw, token, size = logits[rows, columns], ids[rows, columns], kept[rows, columns]
        if kind == ACTION and grammar.actions is not None:  # a softmax over the codebook alone
            actions = grammar.actions.to(raw.device)
            raw = raw[:, actions]
            token = (token[:, None] == actions).long().argmax(-1)
            support = torch.ones_like(raw, dtype=torch.bool)
        else:
            mask = grammar.text_mask() if kind == TEXT else grammar.plan_mask()
            support = mask.to(raw.device).expand_as(raw)
        if bool((size > 0).any()):
            support = support & _largest(raw.detach().float().masked_fill(~support, -torch.inf), size, token)
        logp = log_softmax_within(raw, temperature[rows, columns], support)
        logprobs = logprobs.index_put((rows, columns), logp.gather(-1, token[:, None])[:, 0])
        if entropies is not None:
            entropies = entropies.index_put((rows, columns), entropy_of(logp))
    return logprobs, entropies


def _largest(logits: Tensor, size: Tensor, token: Tensor) -> Tensor:
    """bool [n, V]: the ``size`` [n] largest of each row (all of them where it is 0), and ``token`` [n]."""
    order = logits.argsort(dim=-1, descending=True)
    rank = torch.empty_like(order).scatter_(-1, order, torch.arange(logits.shape[-1], device=logits.device).expand_as(order))
    size = torch.where(size > 0, size, logits.shape[-1])
    return (rank < size[:, None]).scatter(-1, token[:, None], True)
