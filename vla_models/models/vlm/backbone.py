"""A transformers vision-language model as ``hf_vlm`` uses it: one forward over prompt and completion, one ``generate``.

``<action_i>`` tokens have small tables of their own (``ActionTokens``) that stand in for their rows of the embedding and of the
output layer. So they can be trained where everything else is frozen under LoRA, and no base weight is touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vla_models.models.vlm.families import Family
from vla_models.models.vlm.writing import Writer

VISION_TOWERS = ("visual", "vision_tower", "vision_model")
"""Names of the vision tower in the families' models."""


class ActionTokens(nn.Module):
    """Embedding and output rows of the tokens ``ids`` [A], in place of the base model's own.

    New tokens (``fresh`` bool [A]) begin at the mean of the table with a little noise; others as the base model has them. The
    tables are float32 whatever the base weights are, so that small steps of learning are not lost.
    """

    slot: Tensor
    ids: Tensor

    def __init__(self, ids: Tensor, fresh: Tensor, embedding: Tensor, output: Tensor) -> None:
        super().__init__()
        self.register_buffer("ids", ids, persistent=False)
        slot = torch.full((len(embedding),), -1, dtype=torch.int64)
        slot[ids] = torch.arange(len(ids))
        self.register_buffer("slot", slot, persistent=False)
        self.embedding = nn.Parameter(_rows(embedding, ids, fresh))
        self.output = nn.Parameter(_rows(output, ids, fresh))

    def embed(self, module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        """Forward hook of the embedding."""
        slot = self.slot[args[0]]
        own = nn.functional.embedding(slot.clamp_min(0), self.embedding).to(out.dtype)
        return torch.where((slot >= 0)[..., None], own, out)

    def unembed(self, module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        """Forward hook of the output layer."""
        own = nn.functional.linear(args[0], self.output.to(args[0].dtype)).to(out.dtype)
        return out.index_copy(-1, self.ids, own)


class Backbone(nn.Module):
    """The base model ``model`` (peft-wrapped or not) of a ``family``, and its action tokens if it has any."""

    def __init__(self, model: Any, family: Family, actions: ActionTokens | None, *, gradient_checkpointing: bool) -> None:
        super().__init__()
        self.model, self.actions = model, actions
        self.family = family
        self._seen: list[Tensor] | None = None
        if actions is not None:
            model.get_input_embeddings().register_forward_hook(actions.embed)
            model.get_output_embeddings().register_forward_hook(actions.unembed)
        model.get_output_embeddings().register_forward_hook(self._see)
        self._checkpointed: list[nn.Module] = []
        if gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            from transformers.modeling_layers import GradientCheckpointingLayer

            self._checkpointed = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]

    @property
    def dtype(self) -> torch.dtype:
        """Type of the base weights."""
        weight: Tensor = self.model.get_input_embeddings().weight
        return weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the base weights are."""
        weight: Tensor = self.model.get_input_embeddings().weight
        return weight.device

    def read(self, record: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """One forward over prompts and, where the record has them, completions of C tokens.

        Returns hidden states [B, C + 1, D], first that of the prompt's last token, and logits [B, C + 1, V]: entry k is what
        the model knows before it writes token k.
        """
        ids, mask, prompt = join(record)
        keep = 1 + (record["completion_ids"].shape[1] if "completion_ids" in record else 0)
        layout = self.family.layout(ids, mask, prompt, self.dtype)
        pictures = self.family.pack(record["pixel_values"], self.dtype, teacher=True)
        with self._watch() as seen, self._checkpointing():
            logits = self.model(input_ids=ids, **layout, **pictures, use_cache=False, logits_to_keep=keep).logits
        return seen[0][:, -keep:], logits[:, -keep:]

    @torch.no_grad()
    def write(self, record: Mapping[str, Tensor], writer: Writer) -> Tensor:
        """One ``generate`` that lets ``writer`` complete every prompt; returns hidden states [B, D] at the prompts' ends."""
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        ids, mask, _ = join({k: record[k] for k in ("input_ids", "attention_mask")})
        options = GenerationConfig(do_sample=False, max_new_tokens=writer.grammar.most, pad_token_id=writer.grammar.pad)
        with self._watch() as seen:
            self.model.generate(
                input_ids=ids,
                attention_mask=mask.long(),
                generation_config=options,
                logits_processor=LogitsProcessorList([writer]),
                stopping_criteria=StoppingCriteriaList([writer.stop]),
                **self.family.pack(record["pixel_values"], self.dtype, teacher=False),
                **self.family.generation(ids, mask),
            )
        return seen[0][:, -1]

    def freeze_vision(self) -> None:
        """Let the vision tower, adapters in it included, be as it is."""
        for name, parameter in self.model.named_parameters():
            if any(part in VISION_TOWERS for part in name.split(".")):
                parameter.requires_grad_(False)

    def _see(self, module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        if self._seen is not None:
            self._seen.append(args[0])

    @contextmanager
    def _watch(self) -> Iterator[list[Tensor]]:
        """What the output layer reads within: hidden states, call by call."""
        seen: list[Tensor] = []
        self._seen = seen
        try:
            yield seen
        finally:
            self._seen = None

    @contextmanager
    def _checkpointing(self) -> Iterator[None]:
        """transformers checkpoints only in training mode; here the layers alone are in it, so that dropout stays off in
        evaluation mode and replayed probabilities are those that were sampled."""
        waking = [m for m in self._checkpointed if not m.training] if torch.is_grad_enabled() else []
        for module in waking:
            module.training = True
        try:
            yield
        finally:
            for module in waking:
                module.training = False


def join(record: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Prompt and completion of a record as ids, valid mask and prompt mask [B, L]: prompts end in one column, padding before.

    Prompts may be padded on either side or both, as happens when records of several calls are joined.
    """
    ids, mask = record["input_ids"], record["attention_mask"].bool()
    order = mask.long().argsort(dim=1, stable=True)  # what is padding goes first
    longest = max(1, int(mask.sum(1).max()))
    ids, mask = ids.gather(1, order)[:, -longest:], mask.gather(1, order)[:, -longest:]
    prompt = mask
    if "completion_ids" in record:
        written = record["segment"] != 0
        ids = torch.cat([ids, record["completion_ids"]], dim=1)
        prompt = torch.cat([mask, torch.zeros_like(written)], dim=1)
        mask = torch.cat([mask, written], dim=1)
    return ids, mask, prompt


def _rows(table: Tensor, ids: Tensor, fresh: Tensor) -> Tensor:
    """Rows ``ids`` of a table [V, D]; fresh ones are drawn around the mean of the others."""
    known = torch.ones(len(table), dtype=torch.bool)
    known[ids[fresh]] = False
    known = known.to(table.device)
    rows = table.detach()[ids.to(table.device)].float()
    mean = table.detach()[known].float().mean(0)
    spread = table.detach()[known].float().std(0, correction=0).mean()
    drawn = mean + 0.5 * spread * torch.randn(int(fresh.sum()), table.shape[1]).to(table.device)
    rows[fresh.to(table.device)] = drawn
    return rows
