"""vla_models: bring a driving VLA or a driving environment once, and train it with any of the RL frameworks.

Names are loaded when they are first used (PEP 562): importing this package imports neither torch nor NumPy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vla_models.config import VLAConfig as VLAConfig
    from vla_models.inputs import VLAInput as VLAInput
    from vla_models.inputs import VLAOutput as VLAOutput
    from vla_models.inputs import VLAPrediction as VLAPrediction
    from vla_models.inputs import VLASpec as VLASpec
    from vla_models.interface import VLAForDriving as VLAForDriving
    from vla_models.interface import VLAInterface as VLAInterface
    from vla_models.model_registry import VLAModelRegistry as VLAModelRegistry
    from vla_models.model_registry import create_model as create_model
    from vla_models.model_registry import register_env_adapter as register_env_adapter
    from vla_models.model_registry import register_framework as register_framework
    from vla_models.model_registry import register_framework_adapter as register_framework_adapter
    from vla_models.model_registry import register_vla_model as register_vla_model

__version__ = "0.1.0"

_EXPORTS = {
    "VLAInterface": "interface",
    "VLAForDriving": "interface",
    "VLAInput": "inputs",
    "VLAPrediction": "inputs",
    "VLASpec": "inputs",
    "VLAOutput": "inputs",
    "VLAConfig": "config",
    "VLAModelRegistry": "model_registry",
    "register_vla_model": "model_registry",
    "register_framework": "model_registry",
    "register_framework_adapter": "model_registry",
    "register_env_adapter": "model_registry",
    "create_model": "model_registry",
}

__all__ = [*_EXPORTS, "__version__"]


def __getattr__(name: str) -> Any:
    """Import a public name's module when it is first used."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
