"""What differs from one family of vision-language models to the next: pictures, their place in the text, and positions.

A record keeps pictures as uint8 ``[B, N, H, W, 3]`` (N pictures a row, all of one size), so any framework can slice, shuffle
and send it. ``Family.pack`` makes of them what the model wants, for whichever rows are in the minibatch, without a loop over
rows.

Sources: the processors and ``get_rope_index`` of transformers 4.57.6, 5.3.0 and 5.9.0 (``models/<family>``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from vla_models.errors import ConfigError

CLIP_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Final = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
HALF: Final = (0.5, 0.5, 0.5)


class Family:
    """The common case: one square picture, ``pixel_values`` [pictures, 3, H, W], a fixed number of image tokens for each.

    Subclasses are chosen by the ``model_type`` of the base model's config (``family_of``); this one serves any other model,
    with the number of tokens measured on the model itself.
    """

    types: ClassVar[tuple[str, ...]] = ()
    """``model_type`` of the configs that it serves."""
    mean: ClassVar[Sequence[float]] = HALF
    std: ClassVar[Sequence[float]] = HALF
    """Normalisation where the checkpoint states none."""
    placeholder: str | None = None
    """What stands for a picture in text made without a chat template (None: the image token)."""

    def __init__(self, config: Any, tokenizer: Any, settings: Mapping[str, Any], image_size: Sequence[int] | None) -> None:
        self.config = config
        self.image_token_id = int(_first(config, "image_token_id", "image_token_index"))
        self.image_token: str = tokenizer.convert_ids_to_tokens(self.image_token_id)
        self._mean = torch.tensor(settings.get("image_mean") or self.mean).view(3, 1, 1)
        self._std = torch.tensor(settings.get("image_std") or self.std).view(3, 1, 1)
        self._scale = float(settings.get("rescale_factor") or 1 / 255)
        self.resample: int = int(settings.get("resample") or 3)  # bicubic, as nearly all of them
        self.image_size = self._choose_size(None if image_size is None else (int(image_size[0]), int(image_size[1])))
        self.tokens_per_image = self._count_tokens()
        """Image tokens of one picture."""

    # -- what a subclass states ------------------------------------------------------------------------------------------

    def _choose_size(self, wanted: tuple[int, int] | None) -> tuple[int, int]:
        """(height, width) of every picture: what the vision tower was made for, and nothing else."""
        own = self.config.vision_config.image_size
        size = (int(own[0]), int(own[1])) if isinstance(own, Sequence) else (int(own), int(own))
        if wanted is not None and wanted != size:
            raise ConfigError(
                f"model.options.image_size: {self.config.model_type} sees pictures of {list(size)} pixels, not {list(wanted)}"
            )
        return size

    def _count_tokens(self) -> int:
        return 0  # see prepare

    def prepare(self, model: Any) -> None:
        """Look at the model once it is there: count the tokens of a picture by asking it, where the config does not say."""
        if self.tokens_per_image:
            return
        blank = torch.zeros(1, 1, *self.image_size, 3, dtype=torch.uint8)
        with torch.no_grad():
            found = model.get_image_features(**self.pack(blank, next(model.parameters()).dtype, teacher=True))
        found = getattr(found, "pooler_output", found)
        parts = found if isinstance(found, (list, tuple)) else [found]
        self.tokens_per_image = sum(part[..., 0].numel() for part in parts)

    def expanded(self) -> str:
        """What one picture is in the text that is tokenized."""
        return self.image_token * self.tokens_per_image

    def compose(self, text: str, tokenizer: Any) -> str:
        """The whole text, one image token for each picture in it (what a chat template, or nothing, made of the message)."""
        return text

    def pack(self, pixels: Tensor, dtype: torch.dtype, *, teacher: bool) -> dict[str, Tensor]:
        """Pictures uint8 [B, N, H, W, 3] as arguments of the model.

        teacher: for a forward with explicit positions; otherwise for ``generate``, which computes positions by itself.
        """
        return {"pixel_values": self._normalise(pixels).flatten(0, 1).to(dtype)}

    def layout(self, ids: Tensor, mask: Tensor, prompt: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """Attention mask and positions of a forward: ``ids`` int64 and ``mask`` bool [B, L] (valid tokens), ``prompt`` bool
        [B, L] (those that the model did not write). Positions count valid tokens, so padding moves nothing."""
        return {"attention_mask": mask.long(), "position_ids": (mask.long().cumsum(1) - 1).clamp_min(0)}

    def generation(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Further arguments of ``generate`` for prompts [B, P]."""
        return {}

    # -- shared ----------------------------------------------------------------------------------------------------------

    def _normalise(self, pixels: Tensor) -> Tensor:
        """uint8 [B, N, H, W, 3] -> float32 [B, N, 3, H, W]."""
        x = pixels.movedim(-1, 2).float() * self._scale
        return (x - self._mean.to(x.device)) / self._std.to(x.device)


class Qwen(Family):
    """Qwen2-VL, Qwen2.5-VL, Qwen3-VL: pictures of any size in flattened patches, positions in three dimensions."""

    types = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
    mean, std = CLIP_MEAN, CLIP_STD
    default_size: ClassVar[tuple[int, int]] = (256, 448)

    def __init__(self, config: Any, tokenizer: Any, settings: Mapping[str, Any], image_size: Sequence[int] | None) -> None:
        vision = config.vision_config
        self.patch, self.merge, self.repeat = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
        if config.model_type.startswith("qwen3"):
            self.mean, self.std = HALF, HALF  # type: ignore[misc]
        super().__init__(config, tokenizer, settings, image_size)
        start = tokenizer.convert_ids_to_tokens(config.vision_start_token_id)
        end = tokenizer.convert_ids_to_tokens(config.vision_end_token_id)
        self.placeholder = f"{start}{self.image_token}{end}"

    def _choose_size(self, wanted: tuple[int, int] | None) -> tuple[int, int]:
        unit = self.patch * self.merge
        h, w = (max(1, round(s / unit)) * unit for s in wanted or self.default_size)
        if wanted is not None and (h, w) != wanted:
            raise ConfigError(
                f"model.options.image_size: {self.config.model_type} needs multiples of {unit} pixels; the nearest to "
                f"{list(wanted)} is {[h, w]}"
            )
        return h, w

    def prepare(self, model: Any) -> None:
        """transformers 5.3.0 puts Qwen2.5-VL's still pictures at several times their place in time (the frame interval of films
        is multiplied in); 4.57 and 5.9 do not, and nor did those who trained it."""
        if (original := getattr(model.model, "get_vision_position_ids", None)) is not None:
            model.model.get_vision_position_ids = _StillPictures(original)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches of a picture, (rows, columns)."""
        return self.image_size[0] // self.patch, self.image_size[1] // self.patch

    def _count_tokens(self) -> int:
        return int(self.grid[0] * self.grid[1] // self.merge**2)

    def pack(self, pixels: Tensor, dtype: torch.dtype, *, teacher: bool) -> dict[str, Tensor]:
        x = self._normalise(pixels).flatten(0, 1)
        (rows, columns), m, p, n = self.grid, self.merge, self.patch, len(x)
        x = x.view(n, 3, rows // m, m, p, columns // m, m, p).permute(0, 2, 5, 3, 6, 1, 4, 7)
        x = x.unsqueeze(6).expand(*x.shape[:6], self.repeat, p, p)  # a still picture fills the temporal patch
        flat = x.reshape(n * rows * columns, -1).to(dtype)
        # All pictures are of one size: to the vision tower, whose attention stays within a frame, they are the frames of one
        # film, and what it does for each picture in a Python loop it then does once.
        grids = [[n, rows, columns]] if teacher else [[1, rows, columns]] * n
        return {"pixel_values": flat, "image_grid_thw": torch.tensor(grids, device=pixels.device)}

    def layout(self, ids: Tensor, mask: Tensor, prompt: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """Positions [3, B, L]: text counts on, a picture's tokens share a time and have rows and columns, and what follows a
        picture begins after its longer side (``get_rope_index``, without its loop over rows)."""
        rows, columns = (side // self.merge for side in self.grid)
        seen = (ids == self.image_token_id) & mask & prompt
        number = seen.long().cumsum(1)
        within = (number - 1).remainder(self.tokens_per_image)
        before = torch.where(seen, number - 1, number) // self.tokens_per_image  # pictures that are complete
        text = (mask & ~seen).long()
        at = text.cumsum(1) - text + before * max(rows, columns)
        zero = torch.zeros_like(at)
        down, across = torch.where(seen, within // columns, zero), torch.where(seen, within % columns, zero)
        return {"attention_mask": mask.long(), "position_ids": torch.stack([at, at + down, at + across])}

    def generation(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        import transformers

        if int(transformers.__version__.split(".")[0]) < 5:
            return {}
        return {"mm_token_type_ids": (ids == self.image_token_id).int()}


class InternVL(Family):
    """InternVL (the ``-hf`` checkpoints): one tile a picture, between ``<img>`` and ``</img>``."""

    types = ("internvl",)
    mean, std = IMAGENET_MEAN, IMAGENET_STD

    def _count_tokens(self) -> int:
        vision, ratio = self.config.vision_config, self.config.downsample_ratio
        patch = vision.patch_size
        sides = patch if isinstance(patch, Sequence) else (patch, patch)
        return int(self.image_size[0] // sides[0] * ratio) * int(self.image_size[1] // sides[1] * ratio)

    def expanded(self) -> str:
        return f"<img>{super().expanded()}</img>"


class Idefics3(Family):
    """Idefics3 and SmolVLM: ``pixel_values`` [B, pictures, 3, H, W]; each picture is its "global image", undivided."""

    types = ("idefics3", "smolvlm")

    def _count_tokens(self) -> int:
        side = self.image_size[0] // self.config.vision_config.patch_size
        return int(side**2 // self.config.scale_factor**2)

    def expanded(self) -> str:
        return f"<fake_token_around_image><global-img>{super().expanded()}<fake_token_around_image>"

    def pack(self, pixels: Tensor, dtype: torch.dtype, *, teacher: bool) -> dict[str, Tensor]:
        return {"pixel_values": self._normalise(pixels).to(dtype)}


class PaliGemma(Family):
    """PaliGemma: pictures first, then ``<bos>``, the text and a line's end; attention over the prompt runs both ways."""

    types = ("paligemma",)

    def _count_tokens(self) -> int:
        return int((self.image_size[0] // self.config.vision_config.patch_size) ** 2)

    def compose(self, text: str, tokenizer: Any) -> str:
        pictures = text.count(self.image_token)
        said = text.replace(self.image_token, "").lstrip("\n")
        return f"{self.image_token * pictures}{tokenizer.bos_token}{said}\n"

    def layout(self, ids: Tensor, mask: Tensor, prompt: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """The mask as [B, 1, L, L], added to the scores: without labels, transformers 4.57 would let the prompt see the
        completion. Positions begin at 1."""
        length = ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        allowed = (causal | prompt[:, None, :]) & mask[:, None, :]
        added = torch.zeros(allowed.shape, dtype=dtype, device=ids.device).masked_fill(~allowed, torch.finfo(dtype).min)
        return {
            "attention_mask": added[:, None],
            "position_ids": mask.long().cumsum(1).clamp_min(1),
            "token_type_ids": (mask & ~prompt).long(),  # not read beside such a mask, but asked for in training mode
        }

    def generation(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {"token_type_ids": torch.zeros_like(ids)}


class LlavaOnevision(Family):
    """LLaVA-OneVision: each picture as its base view alone, followed by one line-break token (as for several pictures)."""

    types = ("llava_onevision",)

    def _count_tokens(self) -> int:
        return int((self.image_size[0] // self.config.vision_config.patch_size) ** 2) + 1

    def pack(self, pixels: Tensor, dtype: torch.dtype, *, teacher: bool) -> dict[str, Tensor]:
        x = self._normalise(pixels).flatten(0, 1)[:, None].to(dtype)
        sizes = torch.tensor([self.image_size] * len(x), device=x.device)
        # The model cuts a picture into tiles if its row has just one; told of one row with more pictures, it never does.
        return {"pixel_values": x, "image_sizes": sizes, "batch_num_images": torch.tensor([len(x) + 1])}


FAMILIES: Final[tuple[type[Family], ...]] = (Qwen, InternVL, Idefics3, PaliGemma, LlavaOnevision)


def family_of(config: Any, tokenizer: Any, settings: Mapping[str, Any], image_size: Sequence[int] | None) -> Family:
    """The family that serves a base model."""
    kind = next((f for f in FAMILIES if config.model_type in f.types), Family)
    return kind(config, tokenizer, settings, image_size)


class _StillPictures:
    """``get_vision_position_ids`` for pictures: they have no interval in time."""

    def __init__(self, original: Any) -> None:
        self._original = original

    def __call__(self, start: Any, grid: Any, temporal_merge: int = 1, merge: int = 1, interval: Any = 1, **more: Any) -> Any:
        more.pop("time_interval", None)
        return self._original(start, grid, temporal_merge, merge, **more)


def _first(config: Any, *names: str) -> Any:
    for name in names:
        if (value := getattr(config, name, None)) is not None:
            return value
    raise ConfigError(
        f"model.language_model.base_model: the config of {config.model_type} names no image token ({' or '.join(names)}); "
        "hf_vlm serves models that mark a picture's place by one token"
    )
