"""The token route: a language model that writes its plans as tokens, served by verl's own servers (vLLM, SGLang).

verl trains and serves the exported transformers checkpoint; nothing of the model runs here but what asks for a plan and what
reads one. ``hf_vlm`` has that (``prompts``, ``parse``, ``export``); its grammar does not reach verl's servers, so an answer may
be no plan, and ``reward.invalid`` says what becomes of it.
"""

from __future__ import annotations

import asyncio
from itertools import takewhile
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, register
from verl.utils.tokenizer import get_processor_token_id
from verl.workers.rollout.replica import TokenOutput

from vla_models.errors import ConfigError
from vla_models.frameworks.observations import ObservationLayout
from vla_models.frameworks.verl.env import EpisodeFailed, Row
from vla_models.frameworks.verl.loop import DecisionOutput, EpisodeLoop
from vla_models.frameworks.verl.native import AGENTS
from vla_models.inputs import VLAInput
from vla_models.model_registry import create_model


@register(AGENTS["tokens"])
class DrivingAgentLoop(EpisodeLoop):
    """Asks a token server for plans; verl's processor makes prompts and pictures."""

    _speakers: ClassVar[dict[str, Any]] = {}
    """checkpoint -> the model without its weights, one a process."""

    async def ask(self, row: Row, sampling_params: dict[str, Any]) -> tuple[TokenOutput, DecisionOutput]:
        """See ``EpisodeLoop.ask``."""
        layout = ObservationLayout.from_dict(self.settings.observation)
        (given,) = VLAInput.batch(layout.unpack(row.observation))
        prompt, images = await asyncio.get_running_loop().run_in_executor(None, self.prompt, given)
        longest = self.rollout_config.prompt_length
        if len(prompt) > longest:
            raise EpisodeFailed(
                f"scene {row.scene}: its prompt has {len(prompt)} tokens, and there is room for {longest}; raise "
                "framework_options.data.max_prompt_length, or let the model look at smaller or fewer pictures"
            )
        most = self.rollout_config.response_length
        answer: TokenOutput = await self.server_manager.generate(
            uuid4().hex, prompt_ids=prompt, sampling_params={**sampling_params, "max_tokens": most}, image_data=images
        )
        said = self.replayable(answer.token_ids[:most])
        plans, valid = self.speaker().parse([said], [_speed(given)])
        answer.extra_fields |= {"plan": plans[0], "valid": bool(valid[0])}
        versions = {key: answer.extra_fields.get(key) for key in ("min_global_steps", "max_global_steps")}
        return (
            answer,
            DecisionOutput(
                prompt_ids=prompt,
                response_ids=said or [self.tokenizer.eos_token_id],  # verl wants a token, and gives none to a silent answer
                response_mask=[1] * len(said) or [0],
                response_logprobs=(answer.log_probs or [0.0] * len(said))[: len(said)] or [0.0],
                multi_modal_data={"images": images},
                metrics=AgentLoopMetrics(),
                extra_fields=versions,
                score=0.0,
            ),
        )

    def prompt(self, given: VLAInput) -> tuple[list[int], list[Any]]:
        """Token ids and pictures of a prompt, through verl's processor."""
        from PIL import Image

        if self.processor is None:
            raise ConfigError(
                "verl has no processor for this model, so pictures cannot reach it; transformers' processors need torchvision, "
                "and verl knows the Qwen-VL and GLM families"
            )
        speaker = self.speaker()
        images = [Image.fromarray(picture) for picture in speaker.prompts.pictures(given.images)]
        encoded = self.processor(text=[speaker.build_prompt(given)], images=images)
        return [int(i) for i in encoded["input_ids"][0]], images

    def replayable(self, said: list[int]) -> list[int]:
        """The tokens of an answer before the first that stands for a picture or a video.

        Servers sample from the whole vocabulary, these tokens included. verl and the model would look for a picture behind each
        of them, find none and raise: verl in ``AgentLoopWorker._compute_position_ids``, the model in its forward pass.
        """
        pictures = {get_processor_token_id(self.processor, kind) for kind in ("image", "video")}
        return list(takewhile(lambda token: token not in pictures, said))

    def speaker(self) -> Any:
        """The model as far as it is needed here: its base weights are let go of."""
        path = str(self.settings.speaker)
        if path not in self._speakers:
            model: Any = create_model(str(self.settings.model), model_path=path)
            model.backbone.to("meta")
            self._speakers[path] = model
        return self._speakers[path]


def trained(model: Any, folder: Path) -> Any:
    """``model`` with the weights of verl's checkpoint ``global_step_<n>``: ordinary ones of a transformers checkpoint.

    Adapters were merged when training began, so the copy has none. A value head is not trained here.
    """
    arguments = model.constructor_arguments()
    language = {k: v for k, v in (arguments.get("language_model") or {}).items() if not k.startswith("lora")}
    arguments |= {"language_model": {**language, "base_model": str(folder / "actor" / "huggingface")}}
    arguments |= {"dtype": str(model.backbone.dtype).removeprefix("torch.")}  # verl's config says bfloat16 whatever it wrote
    arguments.pop("model_path", None)
    copy = type(model)(**arguments)
    copy.statistics = model.statistics
    return copy


def _speed(given: VLAInput) -> float:
    """m/s at decision time."""
    return float((given.ego_state or {}).get("speed", 0.0))
