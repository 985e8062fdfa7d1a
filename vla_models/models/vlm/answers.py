"""What a language model answers: reasoning, a plan in codes or in words, or both. Writing answers, and reading them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vla_models.errors import ConfigError, PlanError
from vla_models.heads import make_codebook
from vla_models.heads.codebook import Codebook
from vla_models.models.vlm.asking import tokenize
from vla_models.models.vlm.text_plan import TOKENS_PER_POSE, read_plan, write_plan
from vla_models.models.vlm.writing import Grammar

Kind = Literal["codes", "text", "head"]
"""How a plan is said: as ``<action_i>`` tokens, as numbers, or not at all (a head reads the last hidden state)."""
MARKER: Final = "<plan>"
"""Token between reasoning and plan."""


def plan_codebook(policy_head: Mapping[str, Any], horizon: int, dt: float) -> tuple[Kind, Codebook | None]:
    """How the YAML's ``policy_head`` says a plan, and the codebook of codes."""
    if policy_head.get("type") != "tokens":
        return "head", None
    for key, value in policy_head.items():
        if value is not None and key not in ("type", "action_dim", "codebook"):
            raise ConfigError(f"model.policy_head.{key}: hf_vlm's tokens head does not take it; known: codebook")
    name = policy_head.get("codebook") or "kinematic"
    return ("text", None) if name == "text" else ("codes", make_codebook(name, horizon=horizon, dt=dt))


def add_tokens(tokenizer: Any, codebook: Codebook | None, reasoning: int) -> tuple[Tensor, Tensor] | None:
    """Add ``<plan>`` and ``<action_i>`` to the tokenizer; ids int64 [A] of the latter, and which of them are new bool [A]."""
    from tokenizers import AddedToken

    names = [f"<action_{i}>" for i in range(codebook.vocabulary)] if codebook is not None else []
    known = tokenizer.get_vocab()
    wanted = ([MARKER] if reasoning else []) + names
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in wanted if name not in known])
    if not names:
        return None
    ids = torch.tensor(tokenizer.convert_tokens_to_ids(names))
    return ids, torch.tensor([name not in known for name in names])


class Answers:
    """Answers in the vocabulary of ``tokenizer`` (``rows`` tokens), and the ``grammar`` that they keep.

    actions: int64 [A], token ids of the codebook's entries; image_token: what stands for a picture, which no answer has.
    """

    def __init__(
        self,
        tokenizer: Any,
        kind: Kind,
        codebook: Codebook | None,
        actions: Tensor | None,
        *,
        rows: int,
        image_token: int,
        horizon: int,
        reasoning: int,
    ) -> None:
        self.tokenizer, self.kind, self.codebook, self.horizon = tokenizer, kind, codebook, horizon
        text = torch.zeros(rows, dtype=torch.bool)
        text[: len(tokenizer)] = True
        special = [*tokenizer.all_special_ids, image_token, *([] if actions is None else actions.tolist())]
        special += [i for i, token in tokenizer.added_tokens_decoder.items() if token.special]
        marker = int(tokenizer.convert_tokens_to_ids(MARKER) if reasoning else tokenizer.eos_token_id)
        text[torch.tensor([*special, marker])] = False
        self.grammar = Grammar(
            text=text,
            marker=marker,
            end=int(tokenizer.eos_token_id),
            pad=int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id),
            marked=reasoning > 0,
            reasoning=reasoning,
            actions=actions,
            length=codebook.length if codebook is not None else horizon * TOKENS_PER_POSE if kind == "text" else 0,
        )

    def write(self, plans: Tensor, speed: Tensor) -> list[list[int]]:
        """Token ids of the answers that mean plans [B, T, 3] from speeds [B], without a word before them."""
        g = self.grammar
        before = [g.marker] if g.marked else []
        if self.codebook is not None and g.actions is not None:
            codes = self.codebook.encode(plans, speed).cpu()
            return [before + row for row in g.actions[codes].tolist()]
        if self.kind == "head":
            return [before for _ in plans]
        words = tokenize(self.tokenizer, [write_plan(plan) for plan in plans.cpu().numpy()])
        if (most := max(len(row) for row in words)) >= g.length:
            raise PlanError(f"a plan in words takes {most} tokens, and answers have room for {g.length}")
        return [[*before, *row, g.end] for row in words]

    def read(
        self, completions: Sequence[Sequence[int]], speed: Tensor
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Plans float32 [B, T, 3] from speeds [B]; ``valid`` bool [B]: False, and a plan of zeros, where an answer is none."""
        plans = np.zeros((len(completions), self.horizon, 3), dtype=np.float32)
        valid = np.zeros(len(plans), dtype=bool)
        answers = [self._plan_of(list(ids)) for ids in completions]
        if self.codebook is not None and self.grammar.actions is not None:
            code = {token: i for i, token in enumerate(self.grammar.actions.tolist())}
            coded = [[code.get(token, -1) for token in answer] for answer in answers]
            valid[:] = [len(row) == self.codebook.length and min(row) >= 0 for row in coded]
            if valid.any():
                rows = torch.tensor([row for row, good in zip(coded, valid, strict=True) if good], device=speed.device)
                plans[valid] = self.codebook.decode(rows, speed[torch.from_numpy(valid).to(speed.device)]).cpu().numpy()
            return plans, valid
        for i, words in enumerate(self.tokenizer.batch_decode(answers, skip_special_tokens=True)):
            plan = read_plan(words, self.horizon)
            if plan is not None:
                plans[i], valid[i] = plan, True
        return plans, valid

    def words(self, record: Mapping[str, Tensor], kind: int) -> list[str]:
        """The part of each completion whose segment is ``kind``, without the marker, in words."""
        rows = zip(record["completion_ids"], record["segment"] == kind, strict=True)
        parts = [ids[there & (ids != self.grammar.marker)] for ids, there in rows]
        texts: list[str] = self.tokenizer.batch_decode(parts, skip_special_tokens=True)
        return texts

    def _plan_of(self, ids: list[int]) -> list[int]:
        """The tokens of a completion that state the plan: behind the marker, up to the end."""
        g = self.grammar
        if g.marked:
            if g.marker not in ids:
                return []
            ids = ids[ids.index(g.marker) + 1 :]
        ends = [ids.index(token) for token in (g.end, g.pad) if token in ids]
        return ids[: min(ends, default=len(ids))]
