"""What siiRL 0.2.0 (PyPI) is, needs and lacks on the machine at hand, and its one import that driving can do without."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from vla_models.errors import MissingDependency
from vla_models.files import cache_dir

BASE: Final = "siirl.environment.embodied.base"
"""Module of ``BaseVLAEnvironment``."""
_TRANSFORMS: Final = "torchvision.transforms.functional"


def installed() -> str | None:
    """Version of the installed siiRL, or None."""
    try:
        return version("siirl")
    except PackageNotFoundError:
        return None


def check() -> None:
    """Raise ``MissingDependency`` where this environment cannot run siiRL's trainer; the message says what to install."""
    if installed() is None:
        raise MissingDependency("framework: siirl is not installed in this environment; make env-siirl builds one that has it")
    transformers = importlib.import_module("transformers")
    if not hasattr(transformers, "AutoModelForVision2Seq"):
        raise MissingDependency(
            f"siiRL {installed()} imports AutoModelForVision2Seq, which transformers {transformers.__version__} no longer has; "
            "install transformers below 5: make env-siirl"
        )


def check_rebalancing(wanted: bool) -> None:
    """Raise ``MissingDependency`` if siiRL is to move samples between ranks and this Ray lacks what it frees them with.

    siiRL calls ``ray.internal.free`` at a step's end if samples went through its data coordinator (dagworker.py,
    ``_cleanup_step_buffers``), that is with ``algorithm.filter_groups.enable``.
    """
    ray = importlib.import_module("ray")
    if wanted and not hasattr(getattr(ray, "internal", None), "free"):
        raise MissingDependency(
            f"algorithm.filter_groups.enable: siiRL {installed()} then calls ray.internal.free, which Ray {ray.__version__} "
            "does not have; leave it off, or install a Ray that has it"
        )


def base_environment() -> Any:
    """siiRL's ``BaseVLAEnvironment``, without its package's other imports: they end the process where LIBERO is missing."""
    if BASE in sys.modules:
        return sys.modules[BASE].BaseVLAEnvironment
    found = importlib.util.find_spec("siirl")
    if found is None or found.origin is None:
        raise MissingDependency("siiRL is not installed in this environment: make env-siirl")
    path = Path(found.origin).parent.joinpath(*BASE.split(".")[1:]).with_suffix(".py")
    spec = importlib.util.spec_from_file_location(BASE, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise MissingDependency(f"siiRL {installed()} has no {BASE}; install siirl==0.2.0: make env-siirl")
    module = sys.modules[BASE] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[BASE]
        raise
    return module.BaseVLAEnvironment


def before_import() -> None:
    """Prepare this process for an import of siiRL: what that needs, and where its log goes (else into the present folder)."""
    os.environ.setdefault("SIIRL_LOG_DIRECTORY", str(cache_dir() / "siirl_logs"))
    _without_torchvision()


def _without_torchvision() -> None:
    """Let siiRL be imported where torchvision is not installed.

    Its trainer imports InternVL's picture transforms (siirl/models/transformers/internvl.py), which nothing here calls, and
    torchvision's wheels do not match CPU builds of torch. The stand-in has that module's names; who uses one gets an error.
    """
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is not None:
        return
    importlib.import_module("transformers").utils.import_utils.is_torchvision_available()  # it remembers: no torchvision here
    for name in ("torchvision", "torchvision.transforms", _TRANSFORMS):
        module = sys.modules[name] = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None, is_package=True)
        module.__path__ = []
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
        module.__getattr__ = _absent(name)  # type: ignore[method-assign]


def _absent(module: str) -> Any:
    class Absent:
        """Any name of a module that is not installed: may be imported and looked into, not used."""

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return self

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            raise MissingDependency(f"{module} is not installed, and siiRL wants to use it; pip install torchvision")

    def get(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent()

    return get
