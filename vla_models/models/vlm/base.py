"""What ``hf_vlm`` takes from a transformers checkpoint: config, tokenizer, chat template and picture settings.

transformers' own processors need torchvision for several families (SmolVLM, Idefics3, everything with a video processor), so
none is used: the settings are read from the checkpoint's JSON files, and ``families`` prepares pictures with torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vla_models.errors import ConfigError, MissingDependency
from vla_models.models.vlm.tiny import PREFIX, tiny_config, tiny_tokenizer

SETTINGS: Final = "preprocessor_config.json"
"""File of the picture settings in a checkpoint."""


@dataclass
class Base:
    """A base model, but for its weights."""

    name: str
    """What the user called it."""
    config: Any
    """transformers config."""
    tokenizer: Any
    """transformers tokenizer; its ``chat_template`` is the model's, or None."""
    settings: dict[str, Any]
    """preprocessor_config.json: ``image_mean``, ``image_std``, ``rescale_factor``, ``resample`` and the like, or {}."""

    def save(self, folder: Path) -> None:
        """Write config, tokenizer, chat template and picture settings into ``folder``; ``read_base`` reads them offline."""
        from transformers.utils import logging

        folder.mkdir(parents=True, exist_ok=True)
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # it compares with the defaults of the config's class, and complains about those
        try:
            self.config.save_pretrained(folder)
        finally:
            logging.set_verbosity(verbosity)
        self.tokenizer.save_pretrained(folder)
        (folder / SETTINGS).write_text(json.dumps(self.settings, indent=2) + "\n", encoding="utf-8")


def require_transformers() -> None:
    """``MissingDependency`` with the command that installs it, unless transformers is there."""
    try:
        import transformers  # noqa: F401
    except ImportError as e:
        raise MissingDependency("hf_vlm needs transformers: pip install 'vla_models[hf]'") from e


def read_base(name: str) -> Base:
    """Everything of a base model but its weights.

    name: ``tiny:<family>``, a folder, or a name on the Hugging Face hub (looked up in the local cache first).
    """
    require_transformers()
    import transformers
    from transformers.image_processing_utils import BaseImageProcessor

    if name.startswith(PREFIX):
        return Base(name, tiny_config(name), tiny_tokenizer(name), {})
    try:
        config = transformers.AutoConfig.from_pretrained(name)
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        settings, _ = BaseImageProcessor.get_image_processor_dict(name)
    except (OSError, ValueError, KeyError) as e:
        raise ConfigError(
            f"model.language_model.base_model: {name!r} cannot be read: {_first_line(e)} Give a folder that holds a "
            f"transformers checkpoint, download it first (hf download {name}), or try a tiny one ({PREFIX}smolvlm)"
        ) from e
    if tokenizer.chat_template is None:
        tokenizer.chat_template = _chat_template(name)
    return Base(name, config, tokenizer, dict(settings.get("image_processor", settings)))


def _chat_template(name: str) -> Any:
    """The processor's chat template where the tokenizer has none, or None."""
    from transformers.processing_utils import ProcessorMixin

    try:
        arguments, _ = ProcessorMixin.get_processor_dict(name)
    except OSError:
        return None
    return arguments.get("chat_template")


def load_backbone(base: Base, *, weights: bool, dtype: str) -> Any:
    """The model of ``base``.

    weights: load them (safetensors only: pickle is never read); otherwise, and for tiny models, they are random.
    dtype: "float32", "bfloat16", "float16", or "auto" for the checkpoint's own.
    """
    import torch
    import transformers

    kind = None if dtype == "auto" else getattr(torch, dtype)
    auto = transformers.AutoModelForImageTextToText
    try:
        if weights and not base.name.startswith(PREFIX):
            model = auto.from_pretrained(base.name, dtype=kind or "auto", use_safetensors=True)
        else:
            model = auto.from_config(base.config, dtype=kind or getattr(base.config, "dtype", None) or torch.float32)
    except (OSError, ValueError, KeyError) as e:
        raise ConfigError(
            f"model.language_model.base_model: {base.name!r} ({base.config.model_type}) cannot be loaded as an "
            f"image-text-to-text model: {_first_line(e)}"
        ) from e
    # A checkpoint's own sampling defaults (repetition penalty, temperature) would hide in every later call of generate.
    model.generation_config = transformers.GenerationConfig()
    return model


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".") + "."
