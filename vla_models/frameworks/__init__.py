"""RL frameworks: which exist in this version, and how a run is started in one.

Each framework is a package ``vla_models.frameworks.<name>`` with a module ``launch``; ``local``, the embedded trainer, is
``vla_models.training``. All have ``launch(config, *, resume=None) -> Path``, which returns the run's folder, and those that
translate the configuration into one of their own have ``dry_run(config) -> str``, which writes that and says how to start it.
Others register the same two functions from outside (``register_framework``).

Modules directly in here are what such a framework needs whichever it is: observations and records in fixed shapes, episodes,
the run's folder, a Ray head, a user's own classes in other processes and a model's own adapters.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vla_models.errors import ConfigError
from vla_models.model_registry import VLAModelRegistry


def launch_module(framework: str) -> str | None:
    """Name of the module that starts runs in a built-in ``framework``, or None if this version has none (nothing heavy is
    imported)."""
    if framework == "local":
        return "vla_models.training.launch"
    package = f"vla_models.frameworks.{framework}"
    if importlib.util.find_spec(package) is None or importlib.util.find_spec(f"{package}.launch") is None:
        return None
    return f"{package}.launch"


def can_start(framework: str) -> bool:
    """Whether there is a launcher, built in or registered (the framework itself may not be installed)."""
    return VLAModelRegistry.get_framework(framework) is not None or launch_module(framework) is not None


def get_launcher(framework: str) -> Callable[..., Path]:
    """The ``launch`` function of a framework; ``ConfigError`` says which there are."""
    registered = VLAModelRegistry.get_framework(framework)
    if registered is not None:
        return registered.launch
    module = launch_module(framework)
    if module is None:
        raise ConfigError(
            f"framework: nothing can start {framework!r}; these can be started: {', '.join(available())}. One of your own "
            f'needs a function under @register_framework("{framework}") (docs/04_online_rl_interfaces.md)'
        )
    launcher: Any = importlib.import_module(module).launch
    return launcher  # type: ignore[no-any-return]


def get_dry_run(framework: str) -> Callable[..., str] | None:
    """The ``dry_run(config) -> str`` of a framework that has a configuration of its own to write, else None."""
    registered = VLAModelRegistry.get_framework(framework)
    if registered is not None:
        return registered.dry_run
    module = launch_module(framework)
    return None if module is None else getattr(importlib.import_module(module), "dry_run", None)


def available() -> list[str]:
    """Frameworks that can be started."""
    return [name for name in VLAModelRegistry.list_frameworks() if can_start(name)]
