"""The model as a framework uses it: what the model's own adapter for that framework builds, or else the registered model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vla_models.errors import RegistryError
from vla_models.interface import VLAInterface
from vla_models.model_registry import VLAModelRegistry
from vla_models.pretrained import load_weights, read_config


def build_model(framework: str, native: Any, start: str | Path) -> VLAInterface:
    """The model of the checkpoint ``start``, to train or to decide in ``framework``.

    If somebody registered an adapter (``@register_framework_adapter(framework, name)``), it is called with ``native``, the
    framework's own arguments of the model, and the checkpoint's weights are put into what it returns. The run's evaluations and
    checkpoints are those of the registered model, so both must have the same weights by the same names.

    Raises:
        RegistryError: if the adapter returns no model.
        CheckpointError: if the checkpoint is missing or damaged, or its weights are not those of the model.
    """
    start = Path(start)
    config = read_config(start)
    name = config["model"]
    adapter = VLAModelRegistry.get_adapter(framework, name)
    if adapter is None:
        return VLAInterface.from_pretrained(start)
    model = adapter(native)
    if not isinstance(model, VLAInterface):
        raise RegistryError(
            f"the {framework} adapter of model {name!r} returned a {type(model).__name__}; it must return the model to train"
        )
    load_weights(model, start, model.value_prefix)
    model.statistics = dict(config.get("statistics", {}))
    return model


def adapter_passed_by(framework: str, model: str, setting: str) -> list[str]:
    """The problem, if ``model`` brings an adapter for ``framework``: with ``setting`` the framework trains the plain language
    model, and builds it itself."""
    if VLAModelRegistry.get_adapter(framework, model) is None:
        return []
    return [
        f"{setting}: {framework} builds the language model itself there and would never ask the {framework} adapter that is "
        f"registered for model {model!r}; use the route record, or do not register it"
    ]
