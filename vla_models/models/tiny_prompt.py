"""What ``tiny_vla`` reads: text laid out in fields of fixed width, pictures of one size, the ego's motion."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla_models.errors import SceneError
from vla_models.interface import EGO_FEATURES, VLAForDriving, VLAInput, load_images
from vla_models.models.byte_text import WIDTH, encode_bytes


class TinyPrompt(VLAForDriving):
    """From inputs to tensors; what the network makes of them is its subclass's affair."""

    max_text: int
    """Most bytes of a prompt."""
    sentences: Callable[[Sequence[str]], Tensor] | None
    """Instructions -> embeddings [B, D], where a frozen encoder reads them as well."""

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
        return next(self.parameters()).device

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
        embedded = (
            {} if self.sentences is None else {"sentence": self.sentences([given.text for given in inputs]).to(self.device)}
        )
        return {
            **embedded,
            "pixel_values": torch.from_numpy(pixels).to(self.device),
            **text,
            "ego": torch.from_numpy(ego).to(self.device),
            "prompt_id": torch.tensor(ids, device=self.device),
        }


def _fit(number: float) -> str:
    """A number in six bytes, ``+012.3``, cut to what fits."""
    return f"{np.clip(number, -999.9, 999.9):+06.1f}"


def _resize(picture: Any, size: tuple[int, int]) -> Any:
    """RGB uint8 [H, W, 3] of ``size``; a picture that already fits is returned as it is."""
    if picture.shape[:2] == tuple(size):
        return picture
    import PIL.Image

    return np.asarray(PIL.Image.fromarray(picture).resize((size[1], size[0]), PIL.Image.Resampling.BILINEAR))
