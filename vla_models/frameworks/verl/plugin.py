"""What verl loads in each of its processes: ``VERL_USE_EXTERNAL_MODULES=vla_models.frameworks.verl.plugin``.

The entry point ``verl.plugins`` of an installed vla_models does the same, but verl swallows what goes wrong there
(verl/__init__.py), so a run sets the variable and asks ``check`` whether everything is in its place.
"""

from __future__ import annotations

from typing import Any, Final

from vla_models.errors import MissingDependency
from vla_models.frameworks.user_code import import_sources
from vla_models.frameworks.verl.compat import MODEL_TYPE, NAME, PLUGIN, check_version

ROLLOUT: Final = "vla_models.frameworks.verl.rollout.DrivingRollout"


def register() -> None:
    """Register engines, rollout and agent loops with verl, and import the user's own classes. Twice is once."""
    check_version()
    import_sources()
    from verl.workers.engine import EngineRegistry
    from verl.workers.rollout.base import _ROLLOUT_REGISTRY
    from verl.workers.rollout.replica import RolloutReplicaRegistry

    import vla_models.frameworks.verl.tokens  # noqa: F401 - registers an agent loop, as the module does that it imports
    from vla_models.frameworks.verl.engine import DrivingCritic, DrivingEngine

    _ROLLOUT_REGISTRY[NAME, "async"] = ROLLOUT
    RolloutReplicaRegistry.register(NAME, _replica)
    devices = ["cuda", "npu", "cpu"]
    if MODEL_TYPE not in EngineRegistry._engines:
        EngineRegistry.register(MODEL_TYPE, ["fsdp", "fsdp2"], device=devices)(DrivingEngine)
        # The trainer asks for model_type "value_model" whatever the actor is; the vendor tells ours from verl's own.
        EngineRegistry.register("value_model", ["fsdp", "fsdp2"], device=devices, vendor=NAME)(DrivingCritic)


def check() -> None:
    """Raise ``MissingDependency`` unless verl knows everything that ``register`` registers."""
    import verl  # noqa: F401 - loads the plugin
    from verl.experimental.agent_loop.agent_loop import _agent_loop_registry
    from verl.workers.engine import EngineRegistry
    from verl.workers.rollout.base import _ROLLOUT_REGISTRY
    from verl.workers.rollout.replica import RolloutReplicaRegistry

    from vla_models.frameworks.verl.native import AGENTS

    known = {
        "engine": MODEL_TYPE in EngineRegistry._engines,
        "rollout": (NAME, "async") in _ROLLOUT_REGISTRY,
        "rollout replica": NAME in RolloutReplicaRegistry._registry,
        "agent loops": set(AGENTS.values()) <= _agent_loop_registry.keys(),
    }
    if missing := [name for name, there in known.items() if not there]:
        raise MissingDependency(
            f"verl has not loaded vla_models: it lacks our {', '.join(missing)}. Set VERL_USE_EXTERNAL_MODULES={PLUGIN} before "
            "verl is imported (vla-models train does)"
        )


def _replica() -> Any:
    from vla_models.frameworks.verl.rollout import DrivingReplica

    return DrivingReplica


register()
