"""What every process of siiRL loads, so that it finds our worker, models and environments: ``setup`` is Ray's worker hook.

siiRL has a hook for the graph and for the reward. Where it has none, a name of one of its modules is given another value here,
and nowhere else: ``get_worker_classes`` (a fixed table), ``Tracking`` (so that its numbers also reach the run's folder), and a
stand-in for torchvision.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from vla_models.frameworks.siirl.compat import base_environment, before_import, check
from vla_models.frameworks.user_code import import_sources

HOOK: Final = "vla_models.frameworks.siirl.plugin.setup"
"""Ray's ``worker_process_setup_hook``."""
LOG: Final = "VLA_MODELS_SIIRL_LOG"
"""Environment variable: file that gets a row for each thing that siiRL logs."""


class _BeforeSiirl:
    """A finder of modules that finds none, but prepares for siiRL when somebody asks for it."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == "siirl":
            sys.meta_path.remove(self)
            before_import()


def setup() -> None:
    """Let siiRL be imported in this process. Nothing heavy is done before it is: Ray starts many processes that never do."""
    sys.meta_path.insert(0, _BeforeSiirl())


def register() -> None:
    """Put our worker, environments and log into siiRL, and import what a user's script registered.

    Raises ``MissingDependency`` where siiRL cannot run here, ``RegistryError`` where such a script cannot be imported.
    """
    check()
    before_import()
    import_sources()
    dagworker: Any = importlib.import_module("siirl.dag_worker.dagworker")
    from siirl.execution.dag import NodeRole

    from vla_models.frameworks.siirl.env import SiirlEnvAdapter
    from vla_models.frameworks.siirl.worker import DriveWorker

    base_environment().register(SiirlEnvAdapter)
    roles = (NodeRole.ROLLOUT, NodeRole.ACTOR, NodeRole.REFERENCE)
    dagworker.get_worker_classes = lambda config, strategy: dict.fromkeys(roles, DriveWorker)
    if LOG in os.environ:
        tracking: Any = importlib.import_module("siirl.utils.logger.tracking")
        if not issubclass(tracking.Tracking, _Marked):
            tracking.Tracking = _recording(tracking.Tracking, Path(os.environ[LOG]))


class _Marked:
    """Base of a ``Tracking`` that records."""


def _recording(base: type[Any], path: Path) -> type[Any]:
    class RecordingTracking(base, _Marked):
        """siiRL's ``Tracking`` that also appends to a file of JSON rows."""

        def log(self, data: Mapping[str, Any], step: int, **options: Any) -> None:
            super().log(data=data, step=step, **options)
            numbers = {key: float(value) for key, value in data.items() if not isinstance(value, (str, dict, list))}
            with path.open("a") as file:
                file.write(json.dumps({"step": int(step), **numbers}) + "\n")

    return RecordingTracking
