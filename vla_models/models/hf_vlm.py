"""``hf_vlm``: any transformers image-text-to-text model as a driving VLA, with any head.

The prompt is one user message with the cameras' pictures (``vlm.prompts``). The plan is either written by the language model,
as codes ``<action_i>`` or as numbers in words, or drawn by a head that reads the last hidden state. Before it the model may
write reasoning. Families of models differ in ``vlm.families`` only; nothing here knows them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from vla_models.errors import ConfigError, PlanError, VLAModelsError
from vla_models.heads import make_head, plan_horizon
from vla_models.heads.base import PlanHead, ValueHead, check_finite
from vla_models.heads.build import codebook_argument
from vla_models.heads.codebook import Codebook
from vla_models.heads.warpers import ACTION, TEXT, check_warpers, counted
from vla_models.interface import VLAForDriving, VLAInput, VLAOutput, VLAPrediction, VLASpec, as_batch, check_plan
from vla_models.lora import add_lora, lora_options, merge_lora
from vla_models.model_registry import register_vla_model
from vla_models.models.vlm.answers import Answers, add_tokens, plan_codebook
from vla_models.models.vlm.asking import PromptEncoder, pad, tokenize
from vla_models.models.vlm.backbone import ActionTokens, Backbone
from vla_models.models.vlm.base import Base, load_backbone, read_base
from vla_models.models.vlm.families import family_of
from vla_models.models.vlm.prompts import PromptTemplate
from vla_models.models.vlm.writing import GIVEN, Grammar, Writer, replay

BASE_FOLDER: Final = "base"
"""Folder in a checkpoint with the base model's config, tokenizer and picture settings."""
DEFAULT_BASE: Final = "tiny:smolvlm"
"""Base model where the configuration names none: it needs no download."""


@register_vla_model("hf_vlm")
class HFVLM(VLAForDriving):
    """A vision-language model that drives.

    Args:
        model_path: the base model, where ``language_model`` does not name one.
        language_model: the YAML's section: ``base_model`` (``tiny:<family>``, a folder, a name on the hub) and the LoRA keys.
        policy_head: the YAML's section. Type ``tokens``: the language model writes the plan, with ``codebook`` kinematic, bins
            or a file of trajectories as ``<action_i>`` tokens, with ``codebook: text`` as numbers. Other types read the last
            hidden state.
        prompt: the YAML's section: ``language``, ``template``, ``system`` (see ``PromptTemplate``).
        cameras, frames, frame_dt: cameras in order, frames of each (oldest first), seconds between them.
        image_size: (height, width) of every picture; None takes what the base model was made for.
        horizon, dt: poses of a plan, seconds between them.
        reasoning: most tokens of text before the plan; 0 asks for none.
        learn: which tokens count for learning: "all", or those of the plan ("action") or the text alone.
        max_prompt_tokens: longest prompt; None takes what the base model can read.
        dtype: of the base weights: "float32", "bfloat16", "float16", or "auto" for the checkpoint's own.
        freeze_vision: leave the vision tower as it is.
        gradient_checkpointing: compute activations twice instead of keeping them.
        base_folder: where a checkpoint keeps the base model's files (``from_pretrained`` passes it).
    """

    prompt_keys = ("pixel_values", "input_ids", "attention_mask", "speed")

    def __init__(
        self,
        model_path: str | Path | None = None,
        *,
        language_model: Mapping[str, Any] | None = None,
        policy_head: Mapping[str, Any] | None = None,
        prompt: Mapping[str, Any] | None = None,
        cameras: Sequence[str] = ("front",),
        frames: int = 1,
        frame_dt: float = 0.5,
        image_size: Sequence[int] | None = None,
        horizon: int = 8,
        dt: float = 0.5,
        reasoning: int = 0,
        learn: Literal["all", "action", "text"] = "all",
        max_prompt_tokens: int | None = None,
        dtype: str = "auto",
        freeze_vision: bool = False,
        gradient_checkpointing: bool = False,
        base_folder: str | Path | None = None,
    ) -> None:
        language_model, policy_head = dict(language_model or {}), dict(policy_head or {"type": "tokens"})
        if dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise ConfigError(f"model.options.dtype: {dtype!r} is not one of auto, float32, bfloat16, float16")
        if learn not in ("all", "action", "text"):
            raise ConfigError(f"model.options.learn: {learn!r} is not one of all, action, text")
        name = str(language_model.get("base_model") or model_path or DEFAULT_BASE)
        base = read_base(name if base_folder is None else str(base_folder))
        horizon = plan_horizon(policy_head, horizon)
        self.learn = learn
        kind, self.codebook = plan_codebook(policy_head, horizon, dt)
        self.tokenizer = base.tokenizer
        actions = add_tokens(self.tokenizer, self.codebook, reasoning)
        model = load_backbone(base, weights=base_folder is None, dtype=dtype)
        if len(self.tokenizer) > len(model.get_input_embeddings().weight):
            model.resize_token_embeddings(len(self.tokenizer), pad_to_multiple_of=64, mean_resizing=False)
        self._base = Base(base.name, model.config, base.tokenizer, base.settings)
        family = family_of(model.config, base.tokenizer, base.settings, image_size)
        family.prepare(model)
        rows, width = model.get_output_embeddings().weight.shape
        table = None
        if actions is not None:
            table = ActionTokens(*actions, model.get_input_embeddings().weight, model.get_output_embeddings().weight)
        if (adapters := lora_options(language_model)) is not None:
            model = add_lora(model, **adapters)
        self.backbone = Backbone(model, family, table, gradient_checkpointing=gradient_checkpointing)
        if freeze_vision:
            self.backbone.freeze_vision()
        self.head: PlanHead | None = make_head(policy_head, width, horizon=horizon, dt=dt) if kind == "head" else None
        self.value = ValueHead(width)
        self._answers: Answers | None = None
        if kind != "head" or reasoning:
            ids = None if actions is None else actions[0]
            self._answers = Answers(
                self.tokenizer, kind, self.codebook, ids,
                rows=rows, image_token=family.image_token_id, horizon=horizon, reasoning=reasoning,
            )  # fmt: skip
        template = PromptTemplate(**(prompt or {}), cameras=cameras, frames=frames, dt_frames=frame_dt)
        longest = int(getattr(base.config.get_text_config(), "max_position_embeddings", 0) or 32768)
        longest -= self.grammar.most if self.grammar else 0
        answer = template.answer(kind, horizon, dt, reasoning=reasoning > 0)
        self.prompts = PromptEncoder(self.tokenizer, family, template, answer, max_prompt_tokens or longest)
        self.spec = VLASpec(
            head=str(policy_head["type"]),
            horizon=horizon,
            dt=dt,
            cameras=tuple(cameras),
            image_size=family.image_size,
            history=frames,
            has_value=True,
        )
        self.eval()

    @property
    def grammar(self) -> Grammar | None:
        """What the language model may write; None if it writes nothing."""
        return self._answers.grammar if self._answers else None

    # -- text and pictures -----------------------------------------------------------------------------------------------

    def process_ego_state(self, position: Any, heading: float | None, velocity: Any) -> str:
        """In the prompt's language: ``speed 7.32 m/s``, and position and heading where given."""
        return self.prompts.template.ego(position, heading, velocity)

    def process_route(self, route: Any) -> str:
        """``(5.0, 0.1) (10.0, 0.4)``: metres, ego frame."""
        return self.prompts.template.points(route, 2)

    def build_messages(self, inputs: VLAInput) -> list[dict[str, Any]]:
        """The chat that asks for a plan, as chat templates and inference servers take it: pictures are {"type": "image"}."""
        return self.prompts.messages(inputs)

    def build_prompt(self, inputs: VLAInput) -> str:
        """The text that is tokenized, but for its pictures: each is still a single image token."""
        return self.prompts.text(inputs)

    def encode_text(self, text: str | list[str], max_length: int | None = None) -> dict[str, Tensor]:
        """Text as it is (no template) -> ``input_ids``, ``attention_mask`` int64 [B, L], padded left; cut to ``max_length``."""
        rows = tokenize(self.tokenizer, [text] if isinstance(text, str) else text)
        ids, mask = pad([row[:max_length] for row in rows], self.tokenizer.pad_token_id)
        return {"input_ids": ids.to(self.backbone.device), "attention_mask": mask.to(self.backbone.device)}

    def encode_image(self, images: Any, size: Any = None) -> dict[str, Tensor]:
        """Pictures of ONE input -> ``pixel_values`` uint8 [1, cameras × frames, H, W, 3]."""
        if size is not None and tuple(size) != self.spec.image_size:
            raise ConfigError(f"hf_vlm sees pictures of {list(self.spec.image_size)} pixels, not {list(size)}; set image_size")
        return {"pixel_values": torch.from_numpy(self.prompts.pictures(images))[None].to(self.backbone.device)}

    def encode_multimodal(self, text: str | list[str], images: Any) -> dict[str, Any]:
        """The whole prompt for one instruction and its pictures: what ``forward`` takes."""
        if not isinstance(text, str):
            raise VLAModelsError("encode_multimodal takes one text and its pictures; predict takes lists of VLAInput")
        record = self._encode([VLAInput(text=text, images=images)])
        return {key: record[key] for key in ("input_ids", "attention_mask", "pixel_values")}

    def _encode(self, inputs: Sequence[VLAInput]) -> dict[str, Tensor]:
        """The prompt's part of a record, one row per input."""
        return {name: part.to(self.backbone.device) for name, part in self.prompts.encode(inputs).items()}

    # -- deciding --------------------------------------------------------------------------------------------------------

    def forward(self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Any = None, **kwargs: Any) -> VLAOutput:
        """Logits [B, 1, V] of the next token after each prompt, hidden states [B, 1, D] there, and values [B]."""
        if pixel_values is None or kwargs:
            raise VLAModelsError(
                "hf_vlm.forward takes input_ids, attention_mask and pixel_values, as encode_multimodal makes them"
                + (f"; not {', '.join(kwargs)}" if kwargs else "")
            )
        hidden, logits = self.backbone.read(
            {"input_ids": input_ids, "attention_mask": attention_mask, "pixel_values": pixel_values}
        )
        return VLAOutput(logits=logits, values=self.value(hidden[:, 0]), hidden=hidden)

    @torch.no_grad()
    def predict(
        self,
        inputs: VLAInput | Sequence[VLAInput],
        *,
        deterministic: bool = False,
        num_samples: int = 1,
        generator: torch.Generator | None = None,
        max_new_tokens: int | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        **kwargs: Any,
    ) -> VLAPrediction:
        """See ``VLAInterface.predict``: one ``generate`` for all inputs and samples (or one forward if nothing is written).

        Tokens are drawn at ``temperature`` from the nucleus ``top_p``. Where an answer in words is no plan, ``valid`` is False
        and the plan is zeros.
        """
        if kwargs:
            raise VLAModelsError(f"hf_vlm.predict does not take {', '.join(sorted(kwargs))}")
        check_warpers(temperature, top_p)
        single = isinstance(inputs, VLAInput)
        batch = as_batch(inputs, num_samples)
        record = {name: part.repeat_interleave(num_samples, dim=0) for name, part in self._encode(batch).items()}
        record["temperature"] = torch.full_like(record["speed"], temperature)
        record["top_p"] = torch.full_like(record["speed"], top_p)
        logprobs, values = None, None
        if self.grammar is not None:
            writer = Writer(
                self.grammar.limit(max_new_tokens),
                record["temperature"],
                record["top_p"],
                deterministic=deterministic,
                generator=generator,
            )
            values = self.value(self.backbone.write(record, writer))
            record["completion_ids"], record["segment"], logprobs, record["kept"] = writer.written()
        if self.head is not None:
            hidden, _ = self.backbone.read(record)
            values = self.value(hidden[:, 0])
            decision = self.head.sample(
                _last(hidden, record),
                record["speed"],
                temperature=record["temperature"],
                top_p=record["top_p"] if self.grammar is None else torch.ones_like(record["top_p"]),  # the text had the nucleus
                deterministic=deterministic,
                generator=generator,
            )
            record |= decision.record
            own = decision.logprobs.flatten(1)
            logprobs = own if logprobs is None else torch.cat([logprobs, own], dim=1)
            plans, valid = decision.plans.cpu().numpy(), np.ones(len(own), dtype=bool)
        else:
            said = zip(record["completion_ids"], record["segment"], strict=True)
            plans, valid = self.parse([ids[there != 0].tolist() for ids, there in said], record["speed"].tolist())
        if self.grammar is not None and self.backbone.dtype != torch.float32:
            # Cached and whole forwards round differently: take the probabilities from the path that will replay them.
            logprobs = self.evaluate_actions(record)["logprobs"]
        return VLAPrediction(
            waypoints=plans[0] if single and num_samples == 1 else plans,
            dt=self.spec.dt,
            text=None if self._answers is None else self._answers.words(record, TEXT),
            logprobs=logprobs,
            values=values,
            record=record,
            valid=valid,
        )

    def parse(self, completions: Sequence[Sequence[int]], speed: Sequence[float]) -> tuple[Any, Any]:
        """Plans float32 [B, T, 3] that completions mean (token ids, from here or from an inference server, with or without what
        follows their end), and ``valid`` bool [B]: False, and a plan of zeros, where they mean none.

        speed: m/s at decision time, for codes that are driven from it.
        """
        if self._answers is None or self.head is not None:
            raise VLAModelsError("this model does not write its plans: a head draws them from the last hidden state")
        device = next(self.value.parameters()).device  # not the backbone's: who reads answers alone may have let go of it
        return self._answers.read(completions, torch.as_tensor(speed, dtype=torch.float32, device=device))

    def predict_waypoints(self, text: str, images: Any, num_waypoints: int = 5, **kwargs: Any) -> Any:
        """The first ``num_waypoints`` poses of the likeliest plan, float32 [N, 3].

        ``kwargs`` may hold what else ``VLAInput`` does: ego_state (without it the car stands still), route, command, history.
        """
        if not 1 <= num_waypoints <= self.spec.horizon:
            raise PlanError(f"this model plans {self.spec.horizon} poses; {num_waypoints} cannot be had")
        decided = self.predict(VLAInput(text=text, images=images, **kwargs), deterministic=True)
        if decided.valid is not None and not decided.valid.all():
            assert decided.record is not None
            assert self._answers is not None
            answer = self._answers.words(decided.record, ACTION)[0]
            raise PlanError(f"hf_vlm's answer is no plan of {self.spec.horizon} poses: {answer!r}")
        return decided.waypoints[:num_waypoints]

    # -- learning --------------------------------------------------------------------------------------------------------

    def evaluate_actions(
        self, record: Mapping[str, Tensor], *, entropy: bool = False, values: bool = False
    ) -> dict[str, Tensor]:
        """See ``VLAInterface.evaluate_actions``: one forward. S = the completion's tokens, then the head's parts."""
        record = {name: part.to(self.backbone.device) for name, part in record.items()}
        hidden, logits = self.backbone.read(record)
        logprobs, masks, entropies = [], [], []
        if self.grammar is not None:
            found, spread = replay(self.grammar, logits[:, :-1], record, entropy=entropy)
            logprobs.append(found)
            masks.append(counted(record["segment"], self.learn))
            entropies.append(spread)
        if self.head is not None:
            out = self.head.log_prob(_last(hidden, record), record, entropy=entropy)
            logprobs.append(out["logprobs"].flatten(1))
            masks.append(out["mask"].flatten(1) & (self.learn != "text"))
            entropies.append(out["entropy"].flatten(1) if "entropy" in out else None)
        result = {"logprobs": torch.cat(logprobs, dim=1), "mask": torch.cat(masks, dim=1)}
        if entropy and all(part is not None for part in entropies):
            result["entropy"] = torch.cat([part for part in entropies if part is not None], dim=1)
        if values:
            result["values"] = self.value(hidden[:, 0])
        return result

    def record_from_plans(self, inputs: Sequence[VLAInput], plans: Any) -> dict[str, Tensor]:
        """A record as if the model had decided on the plans [B, T, 3] at temperature 1, without a word before them."""
        record = self._encode(inputs)
        wanted = torch.from_numpy(check_plan(plans, self.spec.horizon)).to(self.backbone.device)
        if wanted.ndim != 3 or len(wanted) != len(inputs):
            raise PlanError(f"{len(inputs)} inputs need as many plans [{self.spec.horizon}, 3]; given {list(wanted.shape)}")
        record["temperature"] = torch.ones_like(record["speed"])
        record["top_p"] = torch.ones_like(record["speed"])
        if self._answers is not None:
            rows = self._answers.write(wanted, record["speed"])
            ids, there = (part.to(self.backbone.device) for part in pad(rows, self._answers.grammar.pad, left=False))
            segment = torch.where(there.bool(), ACTION, 0).to(torch.int8)
            if self._answers.grammar.marked:
                segment[:, 0] = GIVEN
            record |= {"completion_ids": ids, "segment": segment, "kept": torch.zeros_like(ids)}
        return record | ({} if self.head is None else self.head.record_from_plans(wanted, record["speed"]))

    def imitation_loss(self, record: Mapping[str, Tensor]) -> Tensor:
        """See ``VLAInterface.imitation_loss``; a head that reads the last hidden state has its own.

        A written plan is learnt among all tokens of the vocabulary, not among those that the grammar allows: inference servers
        sample without the grammar, and would hardly ever write a plan after the other loss.
        """
        record = {name: part.to(self.backbone.device) for name, part in record.items()}
        hidden, logits = self.backbone.read(record)
        if self.head is not None:
            return self.head.imitation_loss(_last(hidden, record), record).mean()
        learnt = counted(record["segment"], self.learn)
        if not learnt.any():  # learn: text, and plans are given without any
            return 0.0 * logits.float().mean()
        said = check_finite(logits[:, :-1][learnt].float(), "hf_vlm's logits")
        return nn.functional.cross_entropy(said, record["completion_ids"][learnt])

    def plan_normaliser(self) -> PlanHead | Codebook | None:
        """The head, or the codebook of a written plan."""
        return self.head or self.codebook

    # -- saving ----------------------------------------------------------------------------------------------------------

    def constructor_arguments(self) -> dict[str, Any]:
        """Those it was called with; trajectories of a codebook are among the weights, their file may go."""
        arguments = super().constructor_arguments()
        arguments.pop("base_folder", None)
        if self.codebook is not None and (head := arguments.get("policy_head")) and "codebook" in head:
            arguments["policy_head"] = {**head, "codebook": codebook_argument(self.codebook, head["codebook"])}
        return arguments

    def save_pretrained(self, folder: str | Path) -> Path:
        """As ``VLAInterface.save_pretrained``; ``base/`` holds the base model's config, tokenizer and picture settings."""
        written = super().save_pretrained(folder)
        self._base.save(written / BASE_FOLDER)
        return written

    def export(self, folder: str | Path) -> Path:
        """Write a plain transformers checkpoint for inference servers: adapters merged, action tokens in the tables.

        A head over the last hidden state and the value head have no place in it.
        """
        backbone = copy.deepcopy(self.backbone)
        merge_lora(backbone)
        model, actions = backbone.model, backbone.actions
        if actions is not None:
            into, out = model.get_input_embeddings(), model.get_output_embeddings()
            out.weight = nn.Parameter(out.weight.detach().clone())  # a row of each, even where the tables were one
            model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = False
            with torch.no_grad():
                into.weight[actions.ids] = actions.embedding.to(into.weight.dtype)
                out.weight[actions.ids] = actions.output.to(out.weight.dtype)
        model.save_pretrained(folder, safe_serialization=True)
        Base(self._base.name, model.config, self.tokenizer, self._base.settings).save(Path(folder))
        return Path(folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **changes: Any) -> Self:
        """The model that ``save_pretrained`` wrote; nothing else is read, from disk or the hub."""
        return super().from_pretrained(folder, base_folder=str(Path(folder) / BASE_FOLDER), **changes)


def _last(hidden: Tensor, record: Mapping[str, Tensor]) -> Tensor:
    """The hidden state [B, D] at the last token of prompt and completion, from states [B, C + 1, D]."""
    if "segment" not in record:
        return hidden[:, -1]
    at = (record["segment"] != 0).sum(1)
    return hidden[torch.arange(len(at), device=at.device), at]
