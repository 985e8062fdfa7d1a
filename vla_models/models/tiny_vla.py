"""``tiny_vla``: a whole driving VLA of 1-3 million parameters that two CPU cores train in minutes.

It sees a camera picture, a text and the ego's own motion. All that it is told about the way ahead is in the text, to 0.1 m, as
a language model would be told. How it decides is the head's affair (``policy_head``): by default it says a plan token by token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from vla_models.errors import PlanError, VLAModelsError
from vla_models.heads.base import Decision, PlanHead, ValueHead, check_finite
from vla_models.heads.build import codebook_argument, head_options, make_codebook, make_head, plan_horizon
from vla_models.heads.codebook import StepCodebook
from vla_models.heads.tokens import TokenHead, TokenPlanHead, token_record
from vla_models.heads.warpers import check_warpers
from vla_models.interface import EGO_FEATURES, VLAInput, VLAOutput, VLAPrediction, VLASpec, as_batch, check_plan
from vla_models.model_registry import register_vla_model
from vla_models.models.byte_text import WIDTH, ByteText
from vla_models.models.frozen import SENTENCE, FrozenImages, FrozenSentences, check_encoders
from vla_models.models.image_stem import ImageStem
from vla_models.models.tiny_prompt import TinyPrompt
from vla_models.models.transformer import Past, Prefix, PrefixTransformer

EGO_SCALE = (10.0, 2.0, 2.0, 0.2, 0.3)
"""What ``EGO_FEATURES`` are divided by before the network: typical sizes in town."""
PROMPT = ("pixel_values", "input_ids", "attention_mask", "ego", "sentence")
"""Parts of a record that the prefix is computed from (the last one with a ``language_model`` only)."""
STATE_SCALE = (20.0, 10.0, 0.5, 10.0)
"""The same for the decoder's x, y, heading and speed."""


@register_vla_model("tiny_vla")
class TinyVLA(TinyPrompt):
    """Camera, text and ego state -> a prefix, and from it a plan of eight poses.

    dim, layers, heads, mlp: the transformer's width, depth, attention heads and MLP ratio.
    image_size: (height, width) that every picture is brought to; cameras: their names, in order.
    max_text: most bytes of a prompt.
    policy_head: as in the YAML (``PolicyHeadConfig``); None: kinematic tokens. Codebooks that grow a plan pose by pose
        (kinematic, bins) are said step by step, each step seeing where the last one led. All other heads decide at once, from
        the prefix's summary.
    controller: what ``waypoints_to_controls`` uses, "pid" or "tracker".
    vision_encoder: {"type": "efficientnet_lite0"} sees with frozen ImageNet features instead of a stem of its own.
    language_model: {"base_model": "minilm"} also reads the instruction with a frozen sentence encoder (``models.frozen``).
    """

    prompt_keys = (*PROMPT, "prompt_id")

    def __init__(
        self,
        dim: int = 128,
        layers: int = 4,
        heads: int = 4,
        mlp: float = 3.0,
        image_size: Sequence[int] = (96, 160),
        cameras: Sequence[str] = ("front",),
        max_text: int = 480,
        policy_head: Mapping[str, Any] | None = None,
        controller: str = "pid",
        vision_encoder: Mapping[str, Any] | None = None,
        language_model: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        settings = {"type": "tokens"} if policy_head is None else dict(policy_head)
        self.spec = VLASpec(
            head=settings["type"],
            horizon=plan_horizon(settings, 8),
            dt=0.5,
            cameras=tuple(cameras),
            image_size=(int(image_size[0]), int(image_size[1])),
            history=1,
            controller=controller,
            has_value=True,
        )
        self.max_text = max_text - max_text % WIDTH
        frozen_vision, frozen_language = check_encoders(vision_encoder, language_model)
        self.image = (FrozenImages if frozen_vision else ImageStem)(dim, len(self.spec.cameras), self.spec.image_size)
        self.text = ByteText(dim, self.max_text)
        self.ego = nn.Sequential(nn.Linear(len(EGO_FEATURES), dim), nn.GELU(), nn.Linear(dim, dim))
        self.summary = nn.Parameter(0.02 * torch.randn(dim))
        self.transformer = PrefixTransformer(dim, layers, heads, mlp)
        self.codebook = self._step_codebook(settings)
        self.said = nn.ModuleList()
        if self.codebook is not None:
            self.said.extend(nn.Embedding(size + 1, dim) for size in self.codebook.sizes)  # the last one: nothing was said yet
            self.state = nn.Sequential(nn.Linear(6, dim), nn.GELU(), nn.Linear(dim, dim))
            self.step = nn.Parameter(0.02 * torch.randn(self.codebook.horizon, dim))
            self.head: TokenHead | PlanHead = TokenHead(dim, self.codebook.sizes)
        else:
            self.head = make_head(settings, dim, horizon=self.spec.horizon, dt=self.spec.dt)
        self.value = ValueHead(dim)
        self.sentence = nn.Linear(SENTENCE, dim) if frozen_language else None
        self.sentences = FrozenSentences() if frozen_language else None
        for embedding in self.said:
            nn.init.normal_(cast(nn.Embedding, embedding).weight, std=0.1)

    def _step_codebook(self, settings: Mapping[str, Any]) -> StepCodebook | None:
        """The codebook whose steps are said one after the other, or None where the head decides at once."""
        kind, options = head_options(settings)
        if kind != "tokens":
            return None
        codebook = make_codebook(options.get("codebook", "kinematic"), horizon=self.spec.horizon, dt=self.spec.dt)
        return codebook if isinstance(codebook, StepCodebook) else None

    def constructor_arguments(self) -> dict[str, Any]:
        """See ``VLAInterface``; a trajectory codebook is saved with the weights, its file is not needed again."""
        arguments = super().constructor_arguments()
        if isinstance(self.head, TokenPlanHead):
            settings = arguments["policy_head"]
            kept = codebook_argument(self.head.codebook, settings.get("codebook"))
            arguments["policy_head"] = {**settings, "codebook": kept}
        return arguments

    def plan_normaliser(self) -> Any:
        """See ``VLAInterface``."""
        return self.codebook or self.head

    # -- the network -----------------------------------------------------------------------------------------------------

    def _prefix(self, prompt: Mapping[str, Tensor]) -> Prefix:
        """Encode prompts (one row each): image tokens, ego state, text, and a place where the summary gathers."""
        image = self.image(prompt["pixel_values"])
        text, has_text = self.text(prompt["input_ids"], prompt["attention_mask"])
        ego = self.ego((prompt["ego"] / prompt["ego"].new_tensor(EGO_SCALE)).to(image.dtype))
        rows = len(image)
        parts = [image, ego[:, None], text, self.summary.expand(rows, 1, -1)]
        if self.sentence is not None:
            parts.insert(0, self.sentence(prompt["sentence"].to(image.dtype))[:, None])
        x = torch.cat(parts, dim=1)
        valid = torch.ones(rows, x.shape[1], dtype=torch.bool, device=x.device)
        valid[:, -1 - text.shape[1] : -1] = has_text
        return self.transformer.encode(x, valid)

    def _embed(self, steps: Tensor, states: Tensor, first: int) -> Tensor:
        """Inputs [..., n, dim] of plan steps ``first`` …: the step before (-1: none), where it led, and which step it is."""
        spoken, rest = [], steps
        for size, embedding in zip(reversed(cast(TokenHead, self.head).sizes), reversed(self.said), strict=True):
            spoken.append(embedding(torch.where(steps < 0, size, rest % size)))
            rest = rest // size
        x, y, h, v = (states / states.new_tensor(STATE_SCALE)).unbind(-1)
        angle = states[..., 2]
        where = torch.stack([x, y, h, angle.cos(), angle.sin(), v], dim=-1).to(spoken[0].dtype)
        said = sum(reversed(spoken[:-1]), spoken[-1])
        return cast(Tensor, said + self.state(where) + self.step[first : first + steps.shape[-1]])

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor | None = None,
        ego: Tensor | None = None,
        action_tokens: Tensor | None = None,
        **kwargs: Any,
    ) -> VLAOutput:
        """Values [B]; and where a plan is said step by step, logits [B, n + 1, all factors] after the steps ``action_tokens``
        [B, n] (default: none yet), with any other head ``hidden`` [B, 1, dim], what it decides from.

        ``ego`` [B, 5] are the ``EGO_FEATURES``; without it the car stands still.
        """
        if pixel_values is None:
            raise VLAModelsError("tiny_vla looks at pictures: pass pixel_values (see encode_image)")
        rows = len(input_ids)
        ego = torch.zeros(rows, len(EGO_FEATURES), device=self.device) if ego is None else ego
        prompt = {"pixel_values": pixel_values, "input_ids": input_ids, "attention_mask": attention_mask, "ego": ego}
        if self.sentence is not None:
            prompt["sentence"] = kwargs["sentence"] if "sentence" in kwargs else torch.zeros(rows, SENTENCE, device=self.device)
        prefix = self._prefix(prompt)
        values = self.value(prefix.summary)
        if self.codebook is None:
            return VLAOutput(values=values, hidden=prefix.summary[:, None])
        steps = torch.empty(rows, 0, dtype=torch.int64, device=self.device) if action_tokens is None else action_tokens
        hidden = self._teacher_force(prefix, steps[:, None], ego[:, 0, None])[:, 0]
        return VLAOutput(logits=self._logits(hidden), values=values, hidden=hidden)

    def _logits(self, hidden: Tensor) -> Tensor:
        check_finite(hidden, "tiny_vla's hidden states")
        return check_finite(cast(TokenHead, self.head).logits(hidden), "tiny_vla's logits")

    def _teacher_force(self, prefix: Prefix, steps: Tensor, speed: Tensor) -> Tensor:
        """Hidden states [U, G, n + 1, dim] after given steps [U, G, n], driven from speeds [U, G]."""
        before = nn.functional.pad(steps, (1, 0), value=-1)
        states = cast(StepCodebook, self.codebook).states(steps.flatten(0, 1), speed.flatten()).view(*before.shape, -1)
        return self.transformer.extend(self._embed(before, states, 0), prefix)[0]

    # -- deciding --------------------------------------------------------------------------------------------------------

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
        """See ``VLAInterface.predict``. ``temperature`` and ``top_p`` (tokens only) are the head's; no text is written, so
        ``max_new_tokens`` changes nothing."""
        if kwargs:
            raise VLAModelsError(f"tiny_vla.predict does not take {', '.join(sorted(kwargs))}")
        check_warpers(temperature, top_p)
        single = isinstance(inputs, VLAInput)
        batch = as_batch(inputs, num_samples)
        prompt = self._encode_inputs(batch)
        prefix = self._prefix(prompt)
        rows = len(batch) * num_samples
        options: dict[str, Any] = {
            "temperature": torch.full((rows,), temperature, device=self.device),
            "top_p": torch.full((rows,), top_p, device=self.device),
            "deterministic": deterministic,
            "generator": generator,
        }
        speed = prompt["ego"][:, 0].repeat_interleave(num_samples)
        if isinstance(self.head, PlanHead):
            decision = self.head.sample(prefix.summary.repeat_interleave(num_samples, dim=0), speed, **options)
        else:
            decision = self._say(prefix, num_samples, speed, **options)
        record = {name: part.repeat_interleave(num_samples, dim=0) for name, part in prompt.items()}
        waypoints = decision.plans.cpu().numpy()
        return VLAPrediction(
            waypoints=waypoints[0] if single and num_samples == 1 else waypoints,
            dt=self.spec.dt,
            logprobs=decision.logprobs,
            values=self.value(prefix.summary).repeat_interleave(num_samples),
            record=record | decision.record,
        )

    def _say(
        self,
        prefix: Prefix,
        num_samples: int,
        speed: Tensor,
        *,
        temperature: Tensor,
        top_p: Tensor,
        deterministic: bool,
        generator: torch.Generator | None,
    ) -> Decision:
        """A plan a row, step by step; arguments as in ``PlanHead.sample``."""
        codebook, head = cast(StepCodebook, self.codebook), cast(TokenHead, self.head)
        state = codebook.start(speed)
        step = torch.full_like(speed, -1, dtype=torch.int64)
        past: Past | None = None
        made: list[tuple[Tensor, ...]] = []
        for k in range(codebook.horizon):
            x = self._embed(step[:, None], state[:, None], k).view(-1, num_samples, 1, self.summary.shape[0])
            hidden, past = self.transformer.extend(x, prefix, past)
            logits = self._logits(hidden.flatten(0, 2))
            step, logprob, support = head.sample(logits, temperature, top_p, deterministic=deterministic, generator=generator)
            state = codebook.advance(state, step, k)
            made.append((step, logprob, support, state))
        steps, logprobs, supports, states = (torch.stack(part, dim=1) for part in zip(*made, strict=True))
        record = {"action_tokens": steps, "support": supports, "temperature": temperature, "top_p": top_p}
        return Decision(codebook.plans(states), logprobs, record)

    def predict_waypoints(self, text: str, images: Any, num_waypoints: int = 5, **kwargs: Any) -> Any:
        """The first ``num_waypoints`` poses of the likeliest plan, float32 [N, 3]; at most all of it.

        ``kwargs`` may hold what else ``VLAInput`` does: ego_state, route, command.
        """
        if not 1 <= num_waypoints <= self.spec.horizon:
            raise PlanError(f"tiny_vla plans {self.spec.horizon} poses; {num_waypoints} cannot be had")
        inputs = VLAInput(text=text, images=images, **kwargs)
        return self.predict(inputs, deterministic=True).waypoints[:num_waypoints]

    # -- learning --------------------------------------------------------------------------------------------------------

    def record_from_plans(self, inputs: Sequence[VLAInput], plans: Any) -> dict[str, Tensor]:
        """The record of plans [B, T, 3] that somebody else decided on, for ``imitation_loss``. Tokens are those whose plan lies
        nearest, as if drawn at temperature 1."""
        record = self._encode_inputs(inputs)
        wanted = torch.from_numpy(check_plan(plans, self.spec.horizon)).to(self.device)
        if wanted.ndim != 3 or len(wanted) != len(inputs):
            raise PlanError(f"{len(inputs)} inputs need as many plans [{self.spec.horizon}, 3]; given {list(wanted.shape)}")
        speed = record["ego"][:, 0]
        if isinstance(self.head, PlanHead):
            return record | self.head.record_from_plans(wanted, speed)
        steps = cast(StepCodebook, self.codebook).encode_steps(wanted, speed)
        return record | token_record(steps, sum(self.head.sizes))

    def imitation_loss(self, record: Mapping[str, Tensor]) -> Tensor:
        """See ``VLAInterface``; heads without a likelihood have a loss of their own."""
        if not isinstance(self.head, PlanHead):
            return super().imitation_loss(record)
        record = {name: part.to(self.device) for name, part in record.items()}
        prefix, prompt_of_row, _ = self._prefix_of(record)
        return self.head.imitation_loss(prefix.summary[prompt_of_row], record).mean()

    def evaluate_actions(
        self, record: Mapping[str, Tensor], *, entropy: bool = False, values: bool = False
    ) -> dict[str, Tensor]:
        """See ``VLAInterface.evaluate_actions``; S is the head's. Rows with equal ``prompt_id`` share one encoded prompt."""
        record = {name: part.to(self.device) for name, part in record.items()}
        prefix, prompt_of_row, slot = self._prefix_of(record)
        if isinstance(self.head, PlanHead):
            out = self.head.log_prob(prefix.summary[prompt_of_row], record, entropy=entropy)
        else:
            out = self._replay(prefix, prompt_of_row, slot, record, entropy)
        if values:
            out["values"] = self.value(prefix.summary)[prompt_of_row]
        return out

    def _prefix_of(self, record: Mapping[str, Tensor]) -> tuple[Prefix, Tensor, Tensor]:
        """The different prompts of a record, encoded; for each row its prompt, and its place among the rows of that prompt."""
        first, prompt_of_row, slot = _group(record["prompt_id"])
        prompt = {k: record[k][first] for k in PROMPT if k in record}
        return self._prefix(prompt), prompt_of_row, slot

    def _replay(
        self, prefix: Prefix, prompt_of_row: Tensor, slot: Tensor, record: Mapping[str, Tensor], entropy: bool
    ) -> dict[str, Tensor]:
        """Log-probabilities [B, T] of plans that were said step by step."""
        head, steps = cast(TokenHead, self.head), record["action_tokens"]
        groups, size = len(prefix.summary), int(slot.max()) + 1
        # Samples of a prompt sit side by side; where a prompt has fewer than the others, an empty place computes for nothing.
        placed = steps.new_zeros(groups, size, steps.shape[1] - 1)
        placed[prompt_of_row, slot] = steps[:, :-1]
        speed = torch.zeros(groups, size, device=self.device)
        speed[prompt_of_row, slot] = record["ego"][:, 0]
        logits = self._logits(self._teacher_force(prefix, placed, speed)[prompt_of_row, slot])
        temperature, support = record["temperature"][:, None], record["support"]
        out = {
            "logprobs": head.log_prob(logits, steps, temperature, support),
            "mask": torch.ones_like(steps, dtype=torch.bool),
        }
        return out | ({"entropy": head.entropy(logits, temperature, support)} if entropy else {})


def _group(prompt_id: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """First row of each different id [U]; for each row its prompt (0 … U-1) and its place among the rows of that prompt."""
    _, prompt_of_row, counts = torch.unique(prompt_id, return_inverse=True, return_counts=True)
    order = torch.argsort(prompt_of_row, stable=True)
    starts = counts.cumsum(0) - counts
    slot = torch.empty_like(order)
    slot[order] = torch.arange(len(order), device=order.device) - starts.repeat_interleave(counts)
    return order[starts], prompt_of_row, slot
