"""Which verl this is: the versions that the adapter was written against, a clear word about others, and our names in it."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from vla_models.errors import MissingDependency

PLUGIN: Final = "vla_models.frameworks.verl.plugin"
"""Module that verl loads in each of its processes."""
NAME: Final = "vla_models"
"""Our name for rollout servers, and the vendor under which our critic is registered (``VERL_ENGINE_VENDOR``)."""
MODEL_TYPE: Final = "driving_vla"
"""verl's ``model_type`` of our models: which engine trains them."""
WANTED: Final = "verl>=0.9.1,<0.10"
"""Run in our tests: 0.9.1. The trainer's private names that we use may move with every minor version."""
_FIRST, _BELOW = (0, 9, 1), (0, 10, 0)


def installed() -> str | None:
    """Version of the installed verl, or None."""
    try:
        return version("verl")
    except PackageNotFoundError:
        return None


def check_version() -> str:
    """The installed version; ``MissingDependency`` if there is none or it is not ``WANTED``."""
    found = installed()
    if found is None:
        raise MissingDependency("framework: verl is not installed in this environment; make env-verl builds one that has it")
    parts = tuple(int(n) for n in re.findall(r"\d+", found)[:3])
    if not _FIRST <= parts + (0,) * (3 - len(parts)) < _BELOW:
        raise MissingDependency(
            f"framework: verl {found} is installed, and this version of vla_models needs {WANTED}; make env-verl builds an "
            "environment with the version that is tested"
        )
    return found
