"""``tiny_vla``: a whole driving VLA of 1-3 million parameters that two CPU cores train in minutes.

It sees a camera picture, a text and the ego's own motion, and says a plan token by token (``heads.tokens``). All that it is
told about the way ahead is in the text, to 0.1 m, as a language model would be told.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from vla_models.errors import PlanError, SceneError, VLAModelsError
from vla_models.heads.codebook import KinematicCodebook
from vla_models.heads.tokens import TokenHead
from vla_models.interface import (
    EGO_FEATURES,
    VLAForDriving,
    VLAInput,
    VLAOutput,
    VLAPrediction,
    VLASpec,
    check_plan,
    load_images,
)
from vla_models.model_registry import register_vla_model
from vla_models.models.byte_text import WIDTH, ByteText, encode_bytes
from vla_models.models.image_stem import ImageStem
from vla_models.models.transformer import Past, Prefix, PrefixTransformer

EGO_SCALE = (10.0, 2.0, 2.0, 0.2, 0.3)
"""What ``EGO_FEATURES`` are divided by before the network: typical sizes in town."""
STATE_SCALE = (20.0, 10.0, 0.5, 10.0)
"""The same for the decoder's x, y, heading and speed."""


@register_vla_model("tiny_vla")
class TinyVLA(VLAForDriving):
    """Camera, text and ego state -> a prefix; a plan of eight kinematic tokens, one after the other, conditioned on it.

    dim, layers, heads, mlp: the transformer's width, depth, attention heads and MLP ratio.
    image_size: (height, width) that every picture is brought to; cameras: their names, in order.
    max_text: most bytes of a prompt.
    """

    def __init__(
        self,
        dim: int = 128,
        layers: int = 4,
        heads: int = 4,
        mlp: float = 3.0,
        image_size: Sequence[int] = (96, 160),
        cameras: Sequence[str] = ("front",),
        max_text: int = 480,
    ) -> None:
        super().__init__()
        self.codebook = KinematicCodebook()
        self.spec = VLASpec(
            head="tokens",
            horizon=self.codebook.horizon,
            dt=self.codebook.dt,
            cameras=tuple(cameras),
            image_size=(int(image_size[0]), int(image_size[1])),
            history=1,
            has_value=True,
        )
        self.max_text = max_text - max_text % WIDTH
        self.image = ImageStem(dim, len(self.spec.cameras), self.spec.image_size)
        self.text = ByteText(dim, self.max_text)
        self.ego = nn.Sequential(nn.Linear(len(EGO_FEATURES), dim), nn.GELU(), nn.Linear(dim, dim))
        self.summary = nn.Parameter(0.02 * torch.randn(dim))
        self.transformer = PrefixTransformer(dim, layers, heads, mlp)
        self.acceleration = nn.Embedding(self.codebook.sizes[0] + 1, dim)  # the last one: nothing was said yet
        self.curvature = nn.Embedding(self.codebook.sizes[1] + 1, dim)
        self.state = nn.Sequential(nn.Linear(6, dim), nn.GELU(), nn.Linear(dim, dim))
        self.step = nn.Parameter(0.02 * torch.randn(self.codebook.horizon, dim))
        self.head = TokenHead(dim, self.codebook.sizes)
        self.value = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, 1))
        for embedding in (self.acceleration, self.curvature):
            nn.init.normal_(embedding.weight, std=0.1)

    # -- text: fields at multiples of the patch width, so that digits sit where they always sit ---------------------------

    def process_ego_state(self, position: Any, heading: float | None, velocity: Any) -> str:
        """``"speed  +7.32"`` and, where given, position and heading: 12 bytes a number."""
        speed = float(np.linalg.norm(np.asarray(velocity, dtype=np.float64))) if np.ndim(velocity) else float(velocity)
        fields = [] if position is None else [f"at x  {_fit(float(position[0]))}", f"at y  {_fit(float(position[1]))}"]
        if heading is not None:
            fields.append(f"head  {_fit(float(np.degrees(heading)))}")
        return "".join([*fields, f"speed {np.clip(speed, -99.99, 99.99):+06.2f}"])

    def process_route(self, route: Any) -> str:
        """``"+05.0 +00.1 "`` for each point [R, 2] (metres, ego frame): one patch of text, one token."""
        points = np.asarray(route, dtype=np.float64)
        if points.ndim != 2 or points.shape[1] != 2 or len(points) == 0 or not np.isfinite(points).all():
            raise SceneError(f"a route of shape {list(points.shape)} cannot be read; expected finite points [R, 2] or None")
        return "".join(f"{x:+05.1f} {y:+05.1f} " for x, y in np.clip(points, -99.9, 99.9))

    def build_prompt(self, inputs: VLAInput) -> str:
        """Ego state, command, route, then the instruction; what is unknown is left out, but for speed and command."""
        ego = inputs.ego_state or {}
        velocity = ego.get("velocity", ego.get("speed"))
        said = "speed n/a   " if velocity is None else self.process_ego_state(ego.get("position"), ego.get("heading"), velocity)
        route = "" if inputs.route is None else self.process_route(inputs.route)
        return said + f"go {inputs.command or 'unknown'}".ljust(WIDTH)[:WIDTH] + route + inputs.text

    # -- encoding --------------------------------------------------------------------------------------------------------

    def encode_text(self, text: str | list[str], max_length: int | None = None) -> dict[str, Tensor]:
        """UTF-8 bytes: ``input_ids`` (byte + 1; 0 pads) and ``attention_mask``, int64 [B, L] with L a multiple of 12.

        Without ``max_length`` (bytes) a text longer than ``max_text`` is an error, with it the text is cut.
        """
        texts = [text] if isinstance(text, str) else list(text)
        limit = self.max_text if max_length is None else min(max_length, self.max_text)
        ids, mask = encode_bytes(texts, limit, truncate=max_length is not None)
        return {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}

    def encode_image(self, images: Any, size: Any = None) -> dict[str, Tensor]:
        """Pictures of ONE input (file, PIL, array, list, dict) -> ``pixel_values`` uint8 [1, cameras, H, W, 3]."""
        return {"pixel_values": torch.from_numpy(self._pixels(images, size or self.spec.image_size))[None].to(self.device)}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.summary.device

    def _pixels(self, images: Any, size: tuple[int, int]) -> Any:
        loaded = load_images(images, self.spec.cameras)
        return np.stack([_resize(loaded[camera], size) for camera in self.spec.cameras])

    def _encode_inputs(self, inputs: Sequence[VLAInput]) -> dict[str, Tensor]:
        """The prompt part of a record, one row per input. Equal prompts get equal ids, in this call and in any other."""
        text = self.encode_text([self.build_prompt(given) for given in inputs])
        pixels = np.stack([self._pixels(given.images, self.spec.image_size) for given in inputs])
        ego = np.array([[float((x.ego_state or {}).get(k, 0.0)) for k in EGO_FEATURES] for x in inputs], dtype=np.float32)
        if not np.isfinite(ego).all():
            bad = np.flatnonzero(~np.isfinite(ego).all(1))
            raise SceneError(f"the ego state of inputs {bad[:10].tolist()} has NaN or infinite numbers")
        ids = []
        for i in range(len(inputs)):
            digest = hashlib.blake2b(pixels[i].tobytes(), digest_size=8)
            digest.update(ego[i].tobytes())
            digest.update(text["input_ids"][i].cpu().numpy().tobytes().rstrip(b"\0"))
            ids.append(int.from_bytes(digest.digest(), "little", signed=True))
        return {
            "pixel_values": torch.from_numpy(pixels).to(self.device),
            **text,
            "ego": torch.from_numpy(ego).to(self.device),
            "prompt_id": torch.tensor(ids, device=self.device),
        }

    # -- the network -----------------------------------------------------------------------------------------------------

    def _prefix(self, prompt: Mapping[str, Tensor]) -> Prefix:
        """Encode prompts (one row each): image tokens, ego state, text, and a place where the summary gathers."""
        image = self.image(prompt["pixel_values"])
        text, has_text = self.text(prompt["input_ids"], prompt["attention_mask"])
        ego = self.ego(prompt["ego"] / prompt["ego"].new_tensor(EGO_SCALE))
        rows = len(image)
        x = torch.cat([image, ego[:, None], text, self.summary.expand(rows, 1, -1)], dim=1)
        valid = torch.ones(rows, x.shape[1], dtype=torch.bool, device=x.device)
        valid[:, image.shape[1] + 1 : -1] = has_text
        return self.transformer.encode(x, valid)

    def _embed(self, tokens: Tensor, states: Tensor, first: int) -> Tensor:
        """Inputs [..., n, dim] of plan steps ``first`` …: the token before (-1: none), where it led, and which step it is."""
        columns = self.codebook.sizes[1]
        none = tokens < 0
        a = self.acceleration(torch.where(none, self.codebook.sizes[0], tokens // columns))
        c = self.curvature(torch.where(none, columns, tokens % columns))
        x, y, h, v = (states / states.new_tensor(STATE_SCALE)).unbind(-1)
        angle = states[..., 2]
        where = torch.stack([x, y, h, angle.cos(), angle.sin(), v], dim=-1).to(a.dtype)
        return cast(Tensor, a + c + self.state(where) + self.step[first : first + tokens.shape[-1]])

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor | None = None,
        ego: Tensor | None = None,
        action_tokens: Tensor | None = None,
        **kwargs: Any,
    ) -> VLAOutput:
        """Logits [B, n + 1, accelerations + curvatures] after ``action_tokens`` [B, n] (default: none yet), and values [B].

        ``ego`` [B, 5] are the ``EGO_FEATURES``; without it the car stands still.
        """
        if pixel_values is None:
            raise VLAModelsError("tiny_vla looks at pictures: pass pixel_values (see encode_image)")
        rows = len(input_ids)
        ego = torch.zeros(rows, len(EGO_FEATURES), device=self.device) if ego is None else ego
        tokens = torch.empty(rows, 0, dtype=torch.int64, device=self.device) if action_tokens is None else action_tokens
        prompt = {"pixel_values": pixel_values, "input_ids": input_ids, "attention_mask": attention_mask, "ego": ego}
        prefix = self._prefix(prompt)
        hidden = self._teacher_force(prefix, tokens[:, None], ego[:, 0, None])[:, 0]
        return VLAOutput(logits=self.head.logits(hidden), values=self._values(prefix), hidden=hidden)

    def _values(self, prefix: Prefix) -> Tensor:
        return cast(Tensor, self.value(prefix.summary)[:, 0].float())

    def _teacher_force(self, prefix: Prefix, tokens: Tensor, speed: Tensor) -> Tensor:
        """Hidden states [U, G, n + 1, dim] after given tokens [U, G, n], driven from speeds [U, G]."""
        before = nn.functional.pad(tokens, (1, 0), value=-1)
        states = self.codebook.states(tokens.flatten(0, 1), speed.flatten()).view(*before.shape, -1)
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
        """See ``VLAInterface.predict``; the plan's tokens are drawn at ``temperature`` from the nucleus ``top_p``.

        A plan always has eight tokens and no text is written, so ``max_new_tokens`` changes nothing.
        """
        if kwargs:
            raise VLAModelsError(f"tiny_vla.predict does not take {', '.join(sorted(kwargs))}")
        if temperature <= 0.0 or not 0.0 < top_p <= 1.0:
            raise VLAModelsError(f"temperature must be above 0 and top_p in (0, 1], not {temperature} and {top_p}")
        single = isinstance(inputs, VLAInput)
        batch = [inputs] if isinstance(inputs, VLAInput) else list(inputs)
        if not batch or num_samples < 1:
            raise VLAModelsError(f"nothing to predict: {len(batch)} inputs × {num_samples} samples")
        prompt = self._encode_inputs(batch)
        prefix = self._prefix(prompt)
        rows = len(batch) * num_samples
        warp = torch.full((rows,), temperature, device=self.device), torch.full((rows,), top_p, device=self.device)
        state = self.codebook.start(prompt["ego"][:, 0].repeat_interleave(num_samples))
        token = torch.full((rows,), -1, dtype=torch.int64, device=self.device)
        past: Past | None = None
        steps: list[tuple[Tensor, ...]] = []
        for k in range(self.codebook.horizon):
            x = self._embed(token[:, None], state[:, None], k).view(len(batch), num_samples, 1, -1)
            hidden, past = self.transformer.extend(x, prefix, past)
            logits = self.head.logits(hidden.flatten(0, 2))
            token, logprob, support = self.head.sample(logits, *warp, deterministic=deterministic, generator=generator)
            state = self.codebook.advance(state, token, k)
            steps.append((token, logprob, support, state))
        action_tokens, logprobs, supports, states = (torch.stack(part, dim=1) for part in zip(*steps, strict=True))
        record = {name: part.repeat_interleave(num_samples, dim=0) for name, part in prompt.items()}
        record |= {"action_tokens": action_tokens, "support": supports}
        record |= {"temperature": warp[0], "top_p": warp[1]}
        waypoints = self.codebook.plans(states).cpu().numpy()
        return VLAPrediction(
            waypoints=waypoints[0] if single and num_samples == 1 else waypoints,
            dt=self.spec.dt,
            logprobs=logprobs,
            values=self._values(prefix).repeat_interleave(num_samples),
            record=record,
        )

    def predict_waypoints(self, text: str, images: Any, num_waypoints: int = 5, **kwargs: Any) -> Any:
        """The first ``num_waypoints`` (at most 8) poses of the likeliest plan, float32 [N, 3].

        ``kwargs`` may hold what else ``VLAInput`` does: ego_state, route, command.
        """
        if not 1 <= num_waypoints <= self.spec.horizon:
            raise PlanError(f"tiny_vla plans {self.spec.horizon} poses; {num_waypoints} cannot be had")
        inputs = VLAInput(text=text, images=images, **kwargs)
        return self.predict(inputs, deterministic=True).waypoints[:num_waypoints]

    # -- learning --------------------------------------------------------------------------------------------------------

    def record_from_plans(self, inputs: Sequence[VLAInput], plans: Any) -> dict[str, Tensor]:
        """A record as if the model had drawn the plans [B, 8, 3] at temperature 1: ``-evaluate_actions(record)["logprobs"]``
        is then the imitation loss. The tokens are those whose plan lies nearest."""
        record = self._encode_inputs(inputs)
        wanted = torch.from_numpy(check_plan(plans, self.spec.horizon)).to(self.device)
        if wanted.ndim != 3 or len(wanted) != len(inputs):
            raise PlanError(f"{len(inputs)} inputs need as many plans [8, 3]; given {list(wanted.shape)}")
        tokens = self.codebook.encode(wanted, record["ego"][:, 0])
        one = torch.ones(len(inputs), device=self.device)
        support = torch.ones(*tokens.shape, sum(self.codebook.sizes), dtype=torch.bool, device=self.device)
        return {**record, "action_tokens": tokens, "support": support, "temperature": one, "top_p": one.clone()}

    def evaluate_actions(
        self, record: Mapping[str, Tensor], *, entropy: bool = False, values: bool = False
    ) -> dict[str, Tensor]:
        """See ``VLAInterface.evaluate_actions``; S = 8 plan tokens. Rows with equal ``prompt_id`` share one encoded prompt."""
        record = {name: part.to(self.device) for name, part in record.items()}
        tokens = record["action_tokens"]
        first, prompt_of_row, slot = _group(record["prompt_id"])
        prefix = self._prefix({k: record[k][first] for k in ("pixel_values", "input_ids", "attention_mask", "ego")})
        groups, size = len(first), int(slot.max()) + 1
        # Samples of a prompt sit side by side; where a prompt has fewer than the others, an empty place computes for nothing.
        placed = tokens.new_zeros(groups, size, tokens.shape[1] - 1)
        placed[prompt_of_row, slot] = tokens[:, :-1]
        speed = record["ego"][first, 0, None].expand(groups, size)
        hidden = self._teacher_force(prefix, placed, speed)[prompt_of_row, slot]
        logits = self.head.logits(hidden)
        temperature, support = record["temperature"][:, None], record["support"]
        out = {
            "logprobs": self.head.log_prob(logits, tokens, temperature, support),
            "mask": torch.ones_like(tokens, dtype=torch.bool),
        }
        if entropy:
            out["entropy"] = self.head.entropy(logits, temperature, support)
        if values:
            out["values"] = self._values(prefix)[prompt_of_row]
        return out


def _group(prompt_id: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """First row of each different id [U]; for each row its prompt (0 … U-1) and its place among the rows of that prompt."""
    _, prompt_of_row, counts = torch.unique(prompt_id, return_inverse=True, return_counts=True)
    order = torch.argsort(prompt_of_row, stable=True)
    starts = counts.cumsum(0) - counts
    slot = torch.empty_like(order)
    slot[order] = torch.arange(len(order), device=order.device) - starts.repeat_interleave(counts)
    return order[starts], prompt_of_row, slot


def _fit(number: float) -> str:
    """A number in six bytes, ``+012.3``, cut to what fits."""
    return f"{np.clip(number, -999.9, 999.9):+06.1f}"


def _resize(picture: Any, size: tuple[int, int]) -> Any:
    """RGB uint8 [H, W, 3] of ``size``; a picture that already fits is returned as it is."""
    if picture.shape[:2] == tuple(size):
        return picture
    import PIL.Image

    return np.asarray(PIL.Image.fromarray(picture).resize((size[1], size[0]), PIL.Image.Resampling.BILINEAR))
