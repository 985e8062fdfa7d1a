"""The token route: a vision-language model writes its plan through AReaL's own engine, on SGLang or vLLM.

``hf_vlm`` says how a scene is asked (its prompt and pictures) and what an answer means (``parse``); generation,
log-probabilities and weight versions, one for each token, are AReaL's. Answers are free here: an inference server knows nothing
of the grammar that ``predict`` keeps, so some are no plans, and are rewarded as ``reward.invalid`` says.

The weights live in plain transformers checkpoints (``HFVLM.export``), in which action tokens are rows of the usual tables.
"""

from __future__ import annotations

import asyncio
import base64
import io
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from areal.api import ModelRequest
from areal.api.cli_args import GenerationHyperparameters
from areal.engine.core.model import VALID_VISION_MODELS
from torch import Tensor

from vla_models.errors import ConfigError
from vla_models.frameworks.areal.recording import plain_folder
from vla_models.frameworks.areal.sequences import Rows, join
from vla_models.inputs import VLAInput
from vla_models.interface import VLAForDriving, VLAInterface
from vla_models.model_registry import create_model
from vla_models.models.vlm.base import SETTINGS

if TYPE_CHECKING:
    import numpy.typing as npt

    from vla_models.config import VLAConfig
    from vla_models.models.hf_vlm import HFVLM


class TokenPolicy:
    """A model that writes its plans, through AReaL's inference engine.

    settings: ``model`` is a checkpoint that ``save_pretrained`` wrote; its weights are not used for deciding.
    """

    def __init__(self, config: VLAConfig, settings: Mapping[str, Any]) -> None:
        self.model = writer(VLAForDriving.from_pretrained(settings["model"]))
        self.tokenizer = self.model.tokenizer
        grammar = self.model.grammar
        assert grammar is not None
        self.generation = GenerationHyperparameters(
            n_samples=1,
            max_new_tokens=grammar.most,
            temperature=config.algorithm.temperature,
            stop_token_ids=[grammar.end],
            skip_special_tokens=False,
        )

    async def decide(
        self, engine: Any, inputs: list[VLAInput], samples: int, *, deterministic: bool
    ) -> tuple[Any, Rows | None]:
        """See ``driving.Policy``."""
        asked = [self.ask(given) for given in inputs for _ in range(samples)]
        options = self.generation.new(greedy=True) if deterministic else self.generation
        answers = await asyncio.gather(*(engine.agenerate(self._request(prompt, options)) for prompt in asked))
        speed = [prompt["speed"] for prompt in asked]
        kept = [self._replayable(answer.output_tokens) for answer in answers]
        plans, valid = self.model.parse([answer.output_tokens[:n] for answer, n in zip(answers, kept, strict=True)], speed)
        plans = np.where(np.asarray(valid)[:, None, None], np.asarray(plans, dtype=np.float32), np.float32(np.nan))
        if deterministic:
            return plans, None
        return plans, join([self.row(prompt, answer, n) for prompt, answer, n in zip(asked, answers, kept, strict=True)])

    def ask(self, given: VLAInput) -> dict[str, Any]:
        """A prompt: ``ids`` (a token for each patch of a picture), ``pictures`` uint8 [N, H, W, 3], ``messages``, ``speed``."""
        encoded = self.model.prompts.encode([given])
        return {
            "ids": encoded["input_ids"][0][encoded["attention_mask"][0].bool()],
            "pictures": encoded["pixel_values"],
            "messages": self.model.build_messages(given),
            "speed": float(encoded["speed"][0]),
        }

    def row(self, prompt: Mapping[str, Any], answer: Any, kept: int) -> Rows:
        """The first ``kept`` tokens of AReaL's answer to a prompt as one sequence."""
        ids: Tensor = prompt["ids"]
        written = torch.tensor(answer.output_tokens[:kept], dtype=torch.int64)
        nothing = torch.zeros(len(ids))
        family = self.model.backbone.family
        packed = family.pack(prompt["pictures"], torch.float32, teacher=False)
        return Rows(
            ids=torch.cat([ids, written])[None],
            logprobs=torch.cat([nothing, torch.tensor(answer.output_logprobs[:kept], dtype=torch.float32)])[None],
            counts=torch.cat([nothing, torch.ones(len(written))]).bool()[None],
            versions=torch.cat([nothing.int() - 1, torch.tensor(answer.output_versions[:kept], dtype=torch.int32)])[None],
            payload=[packed],
            extra={"mm_token_type_ids": torch.cat([(ids == family.image_token_id).long(), torch.zeros_like(written)])[None]},
        )

    def _replayable(self, written: list[int]) -> int:
        """Tokens of an answer before the first that stands for a picture or a video.

        Servers sample from the whole vocabulary, these included, and the model would look for a picture behind each of them.
        """
        settings = self.model.backbone.model.config
        pictures = {getattr(settings, f"{kind}_token_id", None) for kind in ("image", "video")}
        return next((n for n, token in enumerate(written) if token in pictures), len(written))

    def _request(self, prompt: Mapping[str, Any], options: Any) -> ModelRequest:
        return ModelRequest(
            rid=uuid.uuid4().hex,
            input_ids=prompt["ids"].tolist(),
            image_data=[_png(picture) for picture in prompt["pictures"][0].numpy()],
            vision_msg_vllm=[prompt["messages"]],
            gconfig=options.new(),
            tokenizer=self.tokenizer,
        )


def writer(model: VLAInterface) -> HFVLM:
    """``model``, if AReaL's engines can train what it writes; ``ConfigError`` says what else to do."""
    from vla_models.models.hf_vlm import HFVLM

    problem = None
    if not isinstance(model, HFVLM):
        problem = f"{type(model).__name__} is no hf_vlm"
    elif model.head is not None or model.grammar is None:
        problem = f"its {model.spec.head} head draws plans from the hidden state, which no inference server does"
    elif model.learn != "all":
        problem = f"model.options.learn is {model.learn!r}, and AReaL learns from all that was written"
    else:
        kind = model.backbone.model.config.model_type
        if kind not in VALID_VISION_MODELS:
            problem = f"AReaL trains {', '.join(VALID_VISION_MODELS)}, not {kind}"
    if problem is not None:
        raise ConfigError(f"framework_options.vla.route: tokens cannot be used: {problem}; use route: record")
    return cast("HFVLM", model)


def export(model: VLAInterface, folder: Path) -> Path:
    """What AReaL's engine and an inference server load: a plain transformers checkpoint."""
    return writer(model).export(folder)


def adopt(config: VLAConfig, folder: Path) -> VLAInterface:
    """The driving model around a plain checkpoint: ``export`` the other way round."""
    arguments = config.model.arguments()
    language = {"base_model": str(folder)}  # adapters were merged
    arguments = {**arguments, "language_model": language}
    return create_model(config.model.name, **arguments)


def read_weights(config: VLAConfig, run: Path, step: int) -> dict[str, Tensor]:
    """The driving model's weights after ``step`` updates, from what ``TokenTrainer`` wrote; the checkpoints before it go."""
    folder = plain_folder(run, step)
    shutil.copy(run / "areal" / "start" / SETTINGS, folder)  # how pictures are prepared: AReaL does not know it
    weights: dict[str, Tensor] = adopt(config, folder).state_dict()
    for older in sorted((run / "areal").glob("plain-*"))[:-1]:
        shutil.rmtree(older)
    return weights


def _png(picture: npt.NDArray[np.uint8]) -> str:
    import PIL.Image

    buffer = io.BytesIO()
    PIL.Image.fromarray(picture).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()
