"""Low-rank adapters on any torch module, from the YAML's ``language_model.lora``. Needs peft (extra ``[hf]``).

Base weights are frozen and never touched. ``VLAInterface.reference`` switches the adapters off, so a LoRA model's reference
costs no copy; ``merge_lora`` folds them into the base for serving.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from vla_models.errors import ConfigError, MissingDependency

HEADS_STAY = ("lm_head", "embed_out")
"""Output layers over the vocabulary, which are often tied to the embedding: "all linear layers" leaves them out."""


def add_lora(
    module: nn.Module, *, rank: int = 8, alpha: float = 16.0, dropout: float = 0.0, targets: list[str] | None = None
) -> nn.Module:
    """``module`` with adapters on its linear layers: a peft model to put in its place. All else in it is frozen.

    rank, alpha, dropout: see ``LoraConfig`` in ``config_sections``.
    targets: ends of the names of layers that get an adapter; None or empty: every ``nn.Linear`` but an ``lm_head``.
    """
    try:
        import peft
    except ImportError as e:
        raise MissingDependency(f"language_model.lora_enabled needs peft: pip install 'vla_models[hf]' ({e})") from e
    linear = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    ends = tuple(targets or ())
    chosen = [n for n in linear if any(n == e or n.endswith(f".{e}") for e in ends)] if ends else []
    if not ends:
        chosen = [n for n in linear if n.rsplit(".", 1)[-1] not in HEADS_STAY]
    if not chosen:
        some = ", ".join(linear[:8]) or "no linear layer at all"
        raise ConfigError(
            f"model.language_model.lora.targets: nothing ends in {list(ends)}; {type(module).__name__} has {some}"
        )
    settings = peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=chosen)
    adapted: nn.Module = peft.get_peft_model(module, settings)
    return adapted


def lora_options(language_model: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Keyword arguments of ``add_lora`` from a model's ``language_model`` argument, or None where LoRA is not asked for."""
    settings = language_model or {}
    if settings.get("lora") and not settings.get("lora_enabled"):
        raise ConfigError("model.language_model.lora: set lora_enabled: true beside it, or leave it out")
    return dict(settings.get("lora") or {}) if settings.get("lora_enabled") else None


def merge_lora(model: nn.Module) -> int:
    """Fold all adapters inside ``model`` into the layers below them, in place; returns how many modules were adapted.

    A model that was built with ``language_model: {lora_enabled: true}`` is saved and loaded as one without, from then on.
    """
    merged = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if hasattr(child, "disable_adapter") and callable(merge := getattr(child, "merge_and_unload", None)):
                setattr(parent, name, merge())
                merged += 1
    remembered = getattr(model, "_constructor_arguments", {})
    if merged and isinstance(language_model := remembered.get("language_model"), dict):
        remembered["language_model"] = {k: v for k, v in language_model.items() if k != "lora"} | {"lora_enabled": False}
    return merged
