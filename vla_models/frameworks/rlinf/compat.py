"""Where RLinf keeps what we need, in 0.3.0 (PyPI) and in 0.4.0 (its main branch, August 2026).

0.3.0 is what is installed and run in our tests. For 0.4.0 only names and signatures are checked, against a list recorded from
commit a3816b5 (tests/frameworks/rlinf/test_compat.py): it was never run.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from vla_models.errors import MissingDependency

PLACES: Final[dict[str, tuple[str, ...]]] = {
    "register_model": ("rlinf.models:register_model",),
    "BasePolicy": ("rlinf.models.embodiment.base_policy:BasePolicy",),
    "ForwardType": ("rlinf.models.embodiment.base_policy:ForwardType",),
    "ENVIRONMENTS": ("rlinf.envs.isaaclab:REGISTER_ISAACLAB_ENVS",),
    "register_advantage": ("rlinf.algorithms.registry:register_advantage",),
    "get_adv_and_returns": ("rlinf.algorithms.registry:get_adv_and_returns",),
    "validate_cfg": ("rlinf.config:validate_cfg",),
    "Cluster": ("rlinf.scheduler:Cluster",),
    "Worker": ("rlinf.scheduler:Worker",),
    "HybridComponentPlacement": ("rlinf.utils.placement:HybridComponentPlacement",),
    "EmbodiedRunner": ("rlinf.runners.embodied_runner:EmbodiedRunner",),
    "EnvWorker": ("rlinf.workers.env.env_worker:EnvWorker",),
    "RolloutWorker": ("rlinf.workers.rollout.hf.huggingface_worker:MultiStepRolloutWorker",),
    "Actor": (
        "rlinf.workers.actor.fsdp_actor_worker:EmbodiedFSDPActor",
        "rlinf.workers.actor.embodied_fsdp_actor_worker:EmbodiedFSDPActor",
    ),
    "EnvOutput": ("rlinf.data.embodied_io_struct:EnvOutput", "rlinf.data.schema.embodied_types:EnvOutput"),
    "ChunkStepResult": ("rlinf.data.embodied_io_struct:ChunkStepResult", "rlinf.data.schema.embodied_types:ChunkStepResult"),
    "PolicyOutput": ("rlinf.data.embodied_io_struct:RolloutResult", "rlinf.data.schema.embodied_types:PolicyOutput"),
    "TrajectoryBuilder": (
        "rlinf.data.embodied_io_struct:EmbodiedRolloutResult",
        "rlinf.data.schema.embodied_trajectory_builder:EmbodiedTrajectoryBuilder",
    ),
    "convert_trajectories_to_batch": (
        "rlinf.data.embodied_io_struct:convert_trajectories_to_batch",
        "rlinf.data.schema.embodied_types:convert_trajectories_to_batch",
    ),
}
"""Name here -> ``module:name`` in RLinf, oldest version first."""


def find(name: str) -> Any:
    """The thing that ``PLACES`` calls ``name``. Raises ``MissingDependency`` if RLinf is not installed or has moved it."""
    for place in PLACES[name]:
        module, attribute = place.split(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as e:
            if e.name is None or not module.startswith(e.name):  # something that RLinf itself needs
                raise MissingDependency(
                    f"RLinf's {module} cannot be imported: {e}. Rebuild its environment: make env-rlinf"
                ) from e
        except AttributeError:
            continue
    if installed() is None:
        raise MissingDependency("RLinf is not installed in this environment: make env-rlinf")
    raise MissingDependency(f"RLinf {installed()} has none of {', '.join(PLACES[name])}; install rlinf==0.3.0: make env-rlinf")


def installed() -> str | None:
    """Version of the installed RLinf, or None."""
    try:
        return version("rlinf")
    except PackageNotFoundError:
        return None
