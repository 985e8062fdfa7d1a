"""What RLinf loads in each of its processes: ``RLINF_EXT_MODULE=vla_models.frameworks.rlinf.plugin``.

RLinf calls ``register()`` once a worker and only warns when that fails; the run would then die far from the cause. Here a
failure ends the worker with its reason.

    python -m vla_models.frameworks.rlinf.plugin TRAIN_EMBODIED_AGENT.py [ARGUMENTS]

registers in this process and then runs RLinf's own launcher, which does not load extensions itself.
"""

from __future__ import annotations

import runpy
import sys
from typing import Final

from vla_models.errors import VLAModelsError

EXT_MODULE: Final = "vla_models.frameworks.rlinf.plugin"
ENV_PREFIX: Final = "vla_models/"
"""Environments appear in RLinf's table of Isaac Lab tasks as ``vla_models/<environment.type>``: its only table that is open
(rlinf/envs/__init__.py), and one that needs nothing of Isaac."""


class PluginFailed(SystemExit):
    """Not an ``Exception``, because RLinf catches those and goes on."""


def register() -> None:
    """Register the model type, all environments and the advantages with RLinf; ``PluginFailed`` says why if that cannot be."""
    try:
        _register()
    except (VLAModelsError, ImportError, AttributeError) as e:
        raise PluginFailed(f"vla_models could not register with RLinf: {type(e).__name__}: {e}") from e


def _register() -> None:
    from vla_models.frameworks.rlinf import advantages
    from vla_models.frameworks.rlinf.compat import find
    from vla_models.frameworks.rlinf.model import MODEL_TYPE, build
    from vla_models.frameworks.user_code import import_sources
    from vla_models.model_registry import VLAModelRegistry

    import_sources()
    find("register_model")(MODEL_TYPE, build, category="embodied", force=True)
    advantages.register()
    environments = find("ENVIRONMENTS")
    for name, frameworks in VLAModelRegistry.list_env_adapters().items():
        if "rlinf" in frameworks:
            environments[ENV_PREFIX + name] = VLAModelRegistry.get_env_adapter(name, "rlinf")


if __name__ == "__main__":
    register()
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
