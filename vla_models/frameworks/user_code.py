"""How other processes get the classes that a user's script registered in this one.

A plugin's classes are known everywhere. A class that a script registered with a decorator is known in that script alone,
until a worker imports the script's module again: ``VLA_MODELS_SOURCES`` tells it which.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vla_models.errors import RegistryError
from vla_models.model_registry import VLAModelRegistry

if TYPE_CHECKING:
    from vla_models.config import VLAConfig

SOURCES: Final = "VLA_MODELS_SOURCES"
"""Environment variable: JSON list of {"module", "file"}."""
_GIVEN: Final[list[dict[str, Any]]] = json.loads(os.environ.get(SOURCES) or "[]")
"""What this process was started with."""


def sources_of(*classes: Any) -> str:
    """Value of ``SOURCES`` with which a worker finds these classes; those of this package are left out."""
    sources = []
    for cls in classes:
        if cls.__module__.split(".")[0] == "vla_models":
            continue
        file = getattr(sys.modules.get(cls.__module__), "__file__", None)
        source = {"module": cls.__module__, "file": None if file is None else str(Path(file).resolve())}
        if source not in sources:
            sources.append(source)
    return json.dumps(sources)


def remember_sources(config: VLAConfig) -> None:
    """Set ``SOURCES`` so that the processes that this one starts find the model of ``config``, its adapter for the framework,
    and the environment's, beside what was given to this one. What an earlier run named is forgotten: its files may be gone."""
    framework, model = config.framework, config.model.name
    parts = [
        VLAModelRegistry.get_model(model),
        VLAModelRegistry.get_adapter(framework, model),
        VLAModelRegistry.get_env_adapter(config.environment.type, framework),
    ]
    own = [source for source in json.loads(sources_of(*filter(None, parts))) if source not in _GIVEN]
    os.environ[SOURCES] = json.dumps(_GIVEN + own)


def import_sources() -> None:
    """Import what ``SOURCES`` names, once. Raises ``RegistryError`` where that fails.

    A module is imported by its name if that can be found here, else from its file. A script is imported under another name than
    ``__main__``, so what stands behind ``if __name__ == "__main__"`` does not run.
    """
    for source in json.loads(os.environ.get(SOURCES) or "[]"):
        name, file = str(source["module"]), source["file"]
        loaded = sys.modules.get(name)
        if loaded is not None and (file is None or getattr(loaded, "__file__", None) == file):
            continue
        try:
            _import(name, file)
        except Exception as e:  # a user's module may fail in any way; what matters is which one and why
            raise RegistryError(
                f"{name} ({file}), which registered a model or an environment in the process that started the run, cannot be "
                f"imported by a worker: {type(e).__name__}: {e}"
            ) from e


def _import(name: str, file: str | None) -> None:
    top = name.split(".")[0]
    if top not in ("__main__", "conftest") and importlib.util.find_spec(top) is not None:
        importlib.import_module(name)
        return
    if file is None or not Path(file).is_file():
        raise FileNotFoundError(f"there is no file {file}")
    # under its own name, so that a script which imports it, too, finds it loaded; a script's name is taken here
    alias = f"vla_models_user_{Path(file).stem}" if top in ("__main__", "conftest") else name
    if alias in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(alias, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no Python file")
    module = sys.modules[alias] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[alias]
        raise
