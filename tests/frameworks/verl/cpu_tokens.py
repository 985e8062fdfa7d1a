"""A token server for tests: what vLLM is to verl on a GPU, with transformers on a CPU. Loaded beside ``cpu_shim``.

It completes token by token, without a cache, and samples from the whole vocabulary, as verl's own servers do: also tokens that
stand for pictures. A model with random weights writes one in some hundred tokens; so that every test sees one, the first answer
to each version of the weights that samples has one for its third token. transformers'
processor for Qwen2.5-VL needs torchvision because of its videos; here its class is built by hand from the real parts for
pictures.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.models.qwen2_5_vl import Qwen2_5_VLModel, Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from verl.workers.rollout.base import _ROLLOUT_REGISTRY
from verl.workers.rollout.replica import RolloutReplicaRegistry, TokenOutput

from vla_models.frameworks.verl.rollout import DrivingReplica, DrivingRollout

NAME = "cpu_tokens"


class NoVideos:
    """Stands in the processor's place for videos."""


class PicturesProcessor(Qwen2_5_VLProcessor):  # type: ignore[misc]
    """transformers' own, for text and pictures."""

    def check_argument_for_proper_class(self, *_: Any) -> None:
        pass

    def save_pretrained(self, folder: str, *_: Any, **__: Any) -> None:
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)


def processor(path: str, **_: Any) -> Any:
    """As verl.utils.hf_processor."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    pictures = Qwen2VLImageProcessorPil.from_pretrained(path)
    made = PicturesProcessor(pictures, tokenizer, NoVideos(), chat_template=tokenizer.chat_template)
    made.config = transformers.AutoConfig.from_pretrained(path)
    for name in ("get_rope_index", "get_vision_position_ids"):
        if hasattr(Qwen2_5_VLModel, name):
            setattr(made, name, getattr(Qwen2_5_VLModel, name).__get__(made))
    return made


def positions(made: Any, ids: Tensor, grid: Tensor) -> Tensor:
    """[4, 1, L] positions of the text and of the pictures, as verl computes them (AgentLoopWorker._compute_position_ids)."""
    mask = torch.ones_like(ids)
    kinds = (ids == made.image_token_id).long()
    seen, _ = made.get_rope_index(ids, mm_token_type_ids=kinds, image_grid_thw=grid, attention_mask=mask)
    return torch.cat([torch.arange(ids.shape[1]).view(1, 1, -1), seen])


class TokenServer:
    """Completes prompts with a transformers model."""

    def __init__(self, path: str, seed: int = 0) -> None:
        self.model = transformers.AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
        self.processor = processor(path)
        self.generator = torch.Generator().manual_seed(seed)
        self.pictures = [self.model.config.image_token_id, self.model.config.video_token_id]
        self.version: int | None = None
        self.owed = True
        """Whether an answer with a picture's token is still to come."""

    async def generate(
        self, request_id: str, prompt_ids: list[int], sampling_params: Mapping[str, Any], image_data: Any = None, **_: Any
    ) -> TokenOutput:
        pictures = [2] if self.owed and sampling_params["temperature"] else []
        self.owed = self.owed and not pictures
        return await asyncio.to_thread(self._complete, prompt_ids, sampling_params, image_data, pictures)

    @torch.no_grad()
    def _complete(self, prompt_ids: list[int], sampling: Mapping[str, Any], images: Any, pictures: list[int]) -> TokenOutput:
        seen = self.processor.image_processor(images=images, return_tensors="pt")
        ids, logprobs = list(prompt_ids), []
        for written in range(sampling["max_tokens"]):
            row = torch.tensor([ids])
            places = positions(self.processor, row, seen["image_grid_thw"])
            out = self.model(input_ids=row, position_ids=places, use_cache=False, **seen)
            logits = out.logits[0, -1].float()
            found = (logits / (sampling["temperature"] or 1.0)).log_softmax(-1)
            if not sampling["temperature"]:
                ids.append(int(logits.argmax()))
            elif written in pictures:
                ids.append(self.pictures[0])
            else:
                ids.append(int(torch.multinomial(found.exp(), 1, generator=self.generator)))
            logprobs.append(float(found[ids[-1]]))
            if ids[-1] in (self.processor.tokenizer.eos_token_id, *self.pictures):
                break  # vLLM would write on behind a picture's token; transformers would look for the picture
        return TokenOutput(
            token_ids=ids[len(prompt_ids) :], log_probs=logprobs, stop_reason="completed",
            extra_fields={"global_steps": self.version},
        )  # fmt: skip

    async def load(self, weights: Mapping[str, Tensor], version: int | None) -> None:
        missing, unexpected = self.model.load_state_dict(dict(weights), strict=False)
        assert not unexpected, unexpected[:3]
        assert set(missing) <= {"lm_head.weight"}, missing[:3]
        self.version, self.owed = version, True

    async def state(self) -> dict[str, Any]:
        return {"version": self.version}

    async def nothing(self, *_: Any, **__: Any) -> None:
        pass

    sleep = wake_up = abort_all_requests = resume_generation = clear_kv_cache = release_kv_cache = resume_kv_cache = nothing
    start_profile = stop_profile = nothing


class TokenReplica(DrivingReplica):
    server_class = TokenServer

    def server_arguments(self) -> tuple[Any, ...]:
        return (self.model_config.path,)


class TokenRollout(DrivingRollout):
    names = staticmethod(dict)


def register() -> None:
    import verl.workers.config.model as config

    config.hf_processor = processor
    _ROLLOUT_REGISTRY[NAME, "async"] = "cpu_tokens.TokenRollout"
    RolloutReplicaRegistry.register(NAME, lambda: TokenReplica)


register()
