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

from vla_models.errors import ConfigError, PlanError, SceneError, VLAModelsError
from vla_models.heads import make_codebook, make_head, plan_horizon
from vla_models.heads.base import PlanHead, ValueHead
from vla_models.heads.build import codebook_argument
from vla_models.heads.codebook import Codebook
from vla_models.heads.warpers import ACTION, TEXT, counted
from vla_models.interface import VLAForDriving, VLAInput, VLAOutput, VLAPrediction, VLASpec, check_plan
from vla_models.lora import add_lora, lora_options, merge_lora
from vla_models.model_registry import register_vla_model
from vla_models.models.vlm.backbone import ActionTokens, Backbone
from vla_models.models.vlm.base import Base, load_backbone, read_base
from vla_models.models.vlm.families import Family, family_of
from vla_models.models.vlm.pictures import load_frames
from vla_models.models.vlm.prompts import PromptTemplate
from vla_models.models.vlm.text_plan import TOKENS_PER_POSE, read_plan, write_plan
from vla_models.models.vlm.writing import GIVEN, Grammar, Writer, replay

BASE_FOLDER: Final = "base"
"""Folder in a checkpoint with the base model's config, tokenizer and picture settings."""
MARKER: Final = "<plan>"
"""Token between reasoning and plan."""
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
        self.template = PromptTemplate(**(prompt or {}), cameras=cameras, frames=frames, dt_frames=frame_dt)
        self.codebook, self._answer = _codebook(policy_head, horizon, dt)
        self.tokenizer = base.tokenizer
        actions = self._add_tokens(reasoning, base_folder is None)
        model = load_backbone(base, weights=base_folder is None, dtype=dtype)
        if len(self.tokenizer) > len(model.get_input_embeddings().weight):
            model.resize_token_embeddings(len(self.tokenizer), pad_to_multiple_of=64, mean_resizing=False)
        self._base = Base(base.name, model.config, base.tokenizer, base.settings)
        family = family_of(model.config, base.tokenizer, base.settings, image_size)
        table = None
        if actions is not None:
            table = ActionTokens(*actions, model.get_input_embeddings().weight, model.get_output_embeddings().weight)
        family.prepare(model)
        if (adapters := lora_options(language_model)) is not None:
            model = add_lora(model, **adapters)
        self.backbone = Backbone(model, family, table, gradient_checkpointing=gradient_checkpointing)
        if freeze_vision:
            self.backbone.freeze_vision()
        width = model.get_output_embeddings().weight.shape[1]
        self.head: PlanHead | None = make_head(policy_head, width, horizon=horizon, dt=dt) if self._answer == "head" else None
        self.value = ValueHead(width)
        self.grammar = self._make_grammar(None if actions is None else actions[0], horizon, reasoning)
        self.spec = VLASpec(
            head=str(policy_head["type"]),
            horizon=horizon,
            dt=dt,
            cameras=tuple(cameras),
            image_size=family.image_size,
            history=frames,
            has_value=True,
        )
        longest = int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 32768)
        self.max_prompt_tokens = max_prompt_tokens or longest - (self.grammar.most if self.grammar else 0)
        self.eval()

    # -- building --------------------------------------------------------------------------------------------------------

    @property
    def family(self) -> Family:
        """What is particular to this kind of base model."""
        return self.backbone.family

    def _add_tokens(self, reasoning: int, fresh_allowed: bool) -> tuple[Tensor, Tensor] | None:
        """Add ``<plan>`` and ``<action_i>`` to the tokenizer; ids int64 [A] of the latter and which are new bool [A]."""
        from tokenizers import AddedToken

        names = [f"<action_{i}>" for i in range(self.codebook.vocabulary)] if self.codebook is not None else []
        known = self.tokenizer.get_vocab()
        wanted = ([MARKER] if reasoning else []) + names
        self.tokenizer.add_tokens([AddedToken(n, normalized=False) for n in wanted if n not in known])
        if not names:
            return None
        ids = torch.tensor(self.tokenizer.convert_tokens_to_ids(names))
        return ids, torch.tensor([name not in known for name in names])

    def _make_grammar(self, actions: Tensor | None, horizon: int, reasoning: int) -> Grammar | None:
        """What the language model may write, or None if it writes nothing."""
        if self._answer == "head" and not reasoning:
            return None
        tokenizer, rows = self.tokenizer, len(self.backbone.model.get_output_embeddings().weight)
        text = torch.zeros(rows, dtype=torch.bool)
        text[: len(tokenizer)] = True
        special = [*tokenizer.all_special_ids, self.family.image_token_id, *([] if actions is None else actions.tolist())]
        special += [i for i, token in tokenizer.added_tokens_decoder.items() if token.special]
        text[torch.tensor(special)] = False
        marker = tokenizer.convert_tokens_to_ids(MARKER) if reasoning else tokenizer.eos_token_id
        text[marker] = False
        length = {"codes": self.codebook.length if self.codebook else 0, "text": horizon * TOKENS_PER_POSE, "head": 0}
        return Grammar(
            text=text,
            marker=int(marker),
            end=int(tokenizer.eos_token_id),
            pad=int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id),
            marked=reasoning > 0,
            reasoning=reasoning,
            actions=actions,
            length=length[self._answer],
        )

    # -- text ------------------------------------------------------------------------------------------------------------

    def process_ego_state(self, position: Any, heading: float | None, velocity: Any) -> str:
        """In the prompt's language: ``speed 7.32 m/s``, and position and heading where given."""
        return self.template.ego(position, heading, velocity)

    def process_route(self, route: Any) -> str:
        """``(5.0, 0.1) (10.0, 0.4)``: metres, ego frame."""
        return self.template.points(route, 2)

    def build_messages(self, inputs: VLAInput) -> list[dict[str, Any]]:
        """The chat that asks for a plan, as chat templates and inference servers take it: pictures are {"type": "image"}."""
        answer = self.template.answer(self._answer, self.spec.horizon, self.spec.dt, bool(self.grammar and self.grammar.marked))
        system = (
            [{"role": "system", "content": [{"type": "text", "text": self.template.system}]}] if self.template.system else []
        )
        return [*system, {"role": "user", "content": self.template.parts(inputs, answer)}]

    def build_prompt(self, inputs: VLAInput) -> str:
        """The text that is tokenized, but for its pictures: each is still a single image token."""
        messages, family = self.build_messages(inputs), self.family
        if self.tokenizer.chat_template:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        else:
            picture = family.placeholder or family.image_token
            parts = [part.get("text", picture) for message in messages for part in message["content"]]
            text = "".join(parts)
        return family.compose(text, self.tokenizer)

    def encode_text(self, text: str | list[str], max_length: int | None = None) -> dict[str, Tensor]:
        """Text as it is (no template) -> ``input_ids``, ``attention_mask`` int64 [B, L], padded left; cut to ``max_length``."""
        texts = [text] if isinstance(text, str) else list(text)
        return self._pad([ids[:max_length] for ids in self._tokenize(texts)])

    def encode_image(self, images: Any, size: Any = None) -> dict[str, Tensor]:
        """Pictures of ONE input -> ``pixel_values`` uint8 [1, cameras × frames, H, W, 3]."""
        if size is not None and tuple(size) != self.spec.image_size:
            raise ConfigError(f"hf_vlm sees pictures of {list(self.spec.image_size)} pixels, not {list(size)}; set image_size")
        return {"pixel_values": torch.from_numpy(self._pictures(images))[None].to(self.backbone.device)}

    def encode_multimodal(self, text: str | list[str], images: Any) -> dict[str, Any]:
        """The whole prompt for one instruction and its pictures: what ``forward`` takes."""
        if not isinstance(text, str):
            raise VLAModelsError("encode_multimodal takes one text and its pictures; predict takes lists of VLAInput")
        record = self._encode([VLAInput(text=text, images=images)])
        return {key: record[key] for key in ("input_ids", "attention_mask", "pixel_values")}

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        encoded: list[list[int]] = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return encoded

    def _pad(self, rows: Sequence[Sequence[int]], *, left: bool = True) -> dict[str, Tensor]:
        length = max(1, max(len(row) for row in rows))
        ids = torch.full((len(rows), length), int(self.tokenizer.pad_token_id or 0))
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            place = slice(length - len(row), length) if left else slice(0, len(row))
            ids[i, place], mask[i, place] = torch.tensor(row, dtype=torch.int64), 1
        device = self.backbone.device
        return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}

    def _pictures(self, images: Any) -> Any:
        return load_frames(images, self.spec.cameras, self.spec.history, self.spec.image_size, self.family.resample)

    def _encode(self, inputs: Sequence[VLAInput]) -> dict[str, Tensor]:
        """The prompt's part of a record, one row per input."""
        pixels = np.stack([self._pictures(given.images) for given in inputs])
        texts, token, expanded = [], self.family.image_token, self.family.expanded()
        for i, given in enumerate(inputs):
            text = self.build_prompt(given)
            if text.count(token) != pixels.shape[1]:
                raise SceneError(
                    f"input {i}: the prompt has {text.count(token)} places for {pixels.shape[1]} pictures; leave {token!r} out "
                    "of its text, and check that the base model's chat template takes pictures"
                )
            texts.append(text.replace(token, expanded))
        rows = self._tokenize(texts)
        for i, row in enumerate(rows):
            if len(row) > self.max_prompt_tokens:
                raise SceneError(
                    f"input {i}: its prompt has {len(row)} tokens, and this model reads {self.max_prompt_tokens} "
                    f"({pixels.shape[1]} × {self.family.tokens_per_image} of them are pictures); shorten text or route, use "
                    "smaller or fewer pictures, or raise max_prompt_tokens"
                )
        device = self.backbone.device
        return {
            "pixel_values": torch.from_numpy(pixels).to(device),
            **self._pad(rows),
            "speed": torch.tensor([_speed(given, i) for i, given in enumerate(inputs)], device=device),
        }

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
        if temperature <= 0.0 or not 0.0 < top_p <= 1.0:
            raise VLAModelsError(f"temperature must be above 0 and top_p in (0, 1], not {temperature} and {top_p}")
        single = isinstance(inputs, VLAInput)
        batch = [inputs] if isinstance(inputs, VLAInput) else list(inputs)
        if not batch or num_samples < 1:
            raise VLAModelsError(f"nothing to predict: {len(batch)} inputs × {num_samples} samples")
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
            text=self._said(record, TEXT) if self.grammar is not None else None,
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
        if self.grammar is None or self.head is not None:
            raise VLAModelsError("this model does not write its plans: a head draws them from the last hidden state")
        plans = np.zeros((len(completions), self.spec.horizon, 3), dtype=np.float32)
        valid = np.zeros(len(plans), dtype=bool)
        answers = [self._answer_of(list(ids)) for ids in completions]
        if self.codebook is not None and self.grammar.actions is not None:
            code = {token: i for i, token in enumerate(self.grammar.actions.tolist())}
            coded = [[code.get(token, -1) for token in answer] for answer in answers]
            valid[:] = [len(row) == self.codebook.length and min(row) >= 0 for row in coded]
            if valid.any():
                rows = torch.tensor([row for row, good in zip(coded, valid, strict=True) if good], device=self.backbone.device)
                at = torch.tensor(np.asarray(speed, dtype=np.float32)[valid], device=self.backbone.device)
                plans[valid] = self.codebook.decode(rows, at).cpu().numpy()
            return plans, valid
        for i, answer in enumerate(self.tokenizer.batch_decode(answers, skip_special_tokens=True)):
            plan = read_plan(answer, self.spec.horizon)
            if plan is not None:
                plans[i], valid[i] = plan, True
        return plans, valid

    def _answer_of(self, ids: list[int]) -> list[int]:
        """The tokens of a completion that state the plan: behind the marker, up to the end."""
        assert self.grammar is not None
        if self.grammar.marked:
            if self.grammar.marker not in ids:
                return []
            ids = ids[ids.index(self.grammar.marker) + 1 :]
        ends = [ids.index(token) for token in (self.grammar.end, self.grammar.pad) if token in ids]
        return ids[: min(ends, default=len(ids))]

    def _said(self, record: Mapping[str, Tensor], kind: int) -> list[str]:
        """The part of each completion that is TEXT (without its marker) or ACTION, in words."""
        assert self.grammar is not None
        rows = zip(
            record["completion_ids"], record["segment"].where(record["completion_ids"] != self.grammar.marker, 0), strict=True
        )
        texts: list[str] = self.tokenizer.batch_decode([ids[where == kind] for ids, where in rows], skip_special_tokens=True)
        return texts

    def predict_waypoints(self, text: str, images: Any, num_waypoints: int = 5, **kwargs: Any) -> Any:
        """The first ``num_waypoints`` poses of the likeliest plan, float32 [N, 3].

        ``kwargs`` may hold what else ``VLAInput`` does: ego_state (without it the car stands still), route, command, history.
        """
        if not 1 <= num_waypoints <= self.spec.horizon:
            raise PlanError(f"this model plans {self.spec.horizon} poses; {num_waypoints} cannot be had")
        decided = self.predict(VLAInput(text=text, images=images, **kwargs), deterministic=True)
        if decided.valid is not None and not decided.valid.all():
            assert decided.record is not None
            raise PlanError(
                f"hf_vlm's answer is no plan of {self.spec.horizon} poses: {self._said(decided.record, ACTION)[0]!r}"
            )
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
        if self.grammar is not None:
            completion = self._pad(self._written(wanted, record["speed"]), left=False)
            ids, there = completion["input_ids"], completion["attention_mask"].bool()
            segment = torch.where(there, ACTION, 0).to(torch.int8)
            if self.grammar.marked:
                segment[:, 0] = GIVEN
            record |= {"completion_ids": ids, "segment": segment, "kept": torch.zeros_like(ids)}
        return record | ({} if self.head is None else self.head.record_from_plans(wanted, record["speed"]))

    def _written(self, plans: Tensor, speed: Tensor) -> list[list[int]]:
        """Token ids of the completions that mean the plans."""
        assert self.grammar is not None
        before = [self.grammar.marker] if self.grammar.marked else []
        if self.grammar.actions is not None and self.codebook is not None:
            codes = self.codebook.encode(plans, speed).cpu()
            return [before + row for row in self.grammar.actions[codes].tolist()]
        if self.head is not None:
            return [before for _ in plans]
        words = self._tokenize([write_plan(plan) for plan in plans.cpu().numpy()])
        if (most := max(len(row) for row in words)) >= self.grammar.length:
            raise PlanError(f"a plan in words takes {most} tokens, and answers have room for {self.grammar.length}")
        return [[*before, *row, self.grammar.end] for row in words]

    def imitation_loss(self, record: Mapping[str, Tensor]) -> Tensor:
        """See ``VLAInterface.imitation_loss``; a head that reads the last hidden state has its own."""
        if self.head is None:
            return super().imitation_loss(record)
        record = {name: part.to(self.backbone.device) for name, part in record.items()}
        hidden, _ = self.backbone.read(record)
        return self.head.imitation_loss(_last(hidden, record), record).mean()

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


def _codebook(
    policy_head: Mapping[str, Any], horizon: int, dt: float
) -> tuple[Codebook | None, Literal["codes", "text", "head"]]:
    """The codebook of a written plan, if it has one, and how the model answers."""
    if policy_head.get("type") != "tokens":
        return None, "head"
    for key, value in policy_head.items():
        if value is not None and key not in ("type", "action_dim", "codebook"):
            raise ConfigError(f"model.policy_head.{key}: hf_vlm's tokens head does not take it; known: codebook")
    name = policy_head.get("codebook") or "kinematic"
    return (None, "text") if name == "text" else (make_codebook(name, horizon=horizon, dt=dt), "codes")


def _last(hidden: Tensor, record: Mapping[str, Tensor]) -> Tensor:
    """The hidden state [B, D] at the last token of prompt and completion, from states [B, C + 1, D]."""
    if "segment" not in record:
        return hidden[:, -1]
    at = (record["segment"] != 0).sum(1)
    return hidden[torch.arange(len(at), device=at.device), at]


def _speed(given: VLAInput, row: int) -> float:
    """Speed in m/s from the ego state; a car of which nothing is known stands still."""
    ego = given.ego_state or {}
    velocity = ego.get("velocity", ego.get("speed", 0.0))
    speed = float(np.linalg.norm(np.asarray(velocity, dtype=np.float64))) if np.ndim(velocity) else float(velocity)
    if not np.isfinite(speed):
        raise SceneError(f"input {row}: the ego state's speed is {speed}; expected a finite number")
    return speed
