"""From ``VLAInput`` to the prompt's part of a record: the chat, its tokens, and the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vla_models.errors import SceneError
from vla_models.inputs import VLAInput
from vla_models.models.vlm.families import Family
from vla_models.models.vlm.pictures import load_frames
from vla_models.models.vlm.prompts import PromptTemplate


@dataclass
class PromptEncoder:
    """Asks a base model for plans. All tensors are made on the CPU."""

    tokenizer: Any
    family: Family
    template: PromptTemplate
    answer: str
    """The sentence that says how to answer."""
    max_tokens: int
    """Longest prompt."""

    def messages(self, given: VLAInput) -> list[dict[str, Any]]:
        """The chat that asks for a plan, as chat templates and inference servers take it: pictures are {"type": "image"}."""
        said = self.template.system
        system = [{"role": "system", "content": [{"type": "text", "text": said}]}] if said else []
        return [*system, {"role": "user", "content": self.template.parts(given, self.answer)}]

    def text(self, given: VLAInput) -> str:
        """The text that is tokenized, but for its pictures: each is still a single image token."""
        messages = self.messages(given)
        if self.tokenizer.chat_template:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        else:
            picture = self.family.placeholder or self.family.image_token
            text = "".join(part.get("text", picture) for message in messages for part in message["content"])
        return self.family.compose(text, self.tokenizer)

    def pictures(self, images: Any) -> npt.NDArray[np.uint8]:
        """Pictures of one input, uint8 [cameras × frames, H, W, 3]."""
        template, family = self.template, self.family
        return load_frames(images, template.cameras, template.frames, family.image_size, family.resample)

    def encode(self, inputs: Sequence[VLAInput]) -> dict[str, Tensor]:
        """One row for each input: ``pixel_values`` uint8 [B, N, H, W, 3], ``input_ids`` and ``attention_mask`` int64 [B, P],
        ``speed`` float32 [B]. ``SceneError`` and ``ImageError`` name what cannot be used."""
        pixels = np.stack([self.pictures(given.images) for given in inputs])
        rows = tokenize(self.tokenizer, [self._expanded(given, i, pixels.shape[1]) for i, given in enumerate(inputs)])
        for i, row in enumerate(rows):
            if len(row) > self.max_tokens:
                raise SceneError(
                    f"input {i}: its prompt has {len(row)} tokens, and this model reads {self.max_tokens} "
                    f"({pixels.shape[1]} × {self.family.tokens_per_image} of them are pictures); shorten text or route, use "
                    "smaller or fewer pictures, or raise max_prompt_tokens"
                )
        ids, mask = pad(rows, self.tokenizer.pad_token_id)
        speed = torch.tensor([_speed(given, i) for i, given in enumerate(inputs)])
        return {"pixel_values": torch.from_numpy(pixels), "input_ids": ids, "attention_mask": mask, "speed": speed}

    def _expanded(self, given: VLAInput, row: int, pictures: int) -> str:
        text, token = self.text(given), self.family.image_token
        if text.count(token) != pictures:
            raise SceneError(
                f"input {row}: the prompt has {text.count(token)} places for {pictures} pictures; leave {token!r} out of its "
                "text, and check that the base model's chat template takes pictures"
            )
        return text.replace(token, self.family.expanded())


def tokenize(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts that hold their special tokens already."""
    encoded: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return encoded


def pad(rows: Sequence[Sequence[int]], token: int | None, *, left: bool = True) -> tuple[Tensor, Tensor]:
    """Rows of ids as ``ids`` and ``mask`` int64 [B, L], padded with ``token`` on one side."""
    length = max(1, max(len(row) for row in rows))
    ids = torch.full((len(rows), length), token or 0)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(length - len(row), length) if left else slice(0, len(row))
        ids[i, place], mask[i, place] = torch.tensor(row, dtype=torch.int64), 1
    return ids, mask


def _speed(given: VLAInput, row: int) -> float:
    """Speed in m/s from the ego state; a car of which nothing is known stands still."""
    ego = given.ego_state or {}
    velocity = ego.get("velocity", ego.get("speed", 0.0))
    speed = float(np.linalg.norm(np.asarray(velocity, dtype=np.float64))) if np.ndim(velocity) else float(velocity)
    if not np.isfinite(speed):
        raise SceneError(f"input {row}: the ego state's speed is {speed}; expected a finite number")
    return speed
