"""Names for models, frameworks, framework adapters and environment adapters, and the decorators that register them.

Registries are plain dicts by name, so a new framework or environment is one more key. Built-in models are imported when they
are first asked for; third-party packages announce a module under the entry-point group ``vla_models.plugins``, which is
imported once, before the first look-up, and registers whatever it wants with the same decorators.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from vla_models.errors import RegistryError, did_you_mean

if TYPE_CHECKING:
    from vla_models.interface import VLAInterface

PLUGIN_GROUP = "vla_models.plugins"
"""Entry-point group of third-party packages: each entry names a module (or an object in one) to import."""

BUILTIN_MODELS: Mapping[str, str] = {
    "tiny_vla": "vla_models.models.tiny_vla",
    "hf_vlm": "vla_models.models.hf_vlm",
}
"""Models of this package: name -> module whose import registers it."""

BUILTIN_FRAMEWORKS = ("local", "areal", "rlinf", "verl", "siirl")
"""Frameworks of this package (``vla_models.frameworks`` finds their launchers)."""

BUILTIN_ENV_ADAPTERS: Mapping[tuple[str, str], str] = {
    ("navsim", "areal"): "vla_models.frameworks.areal.env:AReaLNavSimAdapter",
    ("bench2drive", "areal"): "vla_models.frameworks.areal.env:AReaLBench2DriveAdapter",
    ("navsim", "rlinf"): "vla_models.frameworks.rlinf.env:RLinfNavSimAdapter",
    ("bench2drive", "rlinf"): "vla_models.frameworks.rlinf.env:RLinfBench2DriveAdapter",
    ("navsim", "siirl"): "vla_models.frameworks.siirl.env:NavSimVLAAdapter",
    ("bench2drive", "siirl"): "vla_models.frameworks.siirl.env:Bench2DriveVLAAdapter",
    ("navsim", "verl"): "vla_models.frameworks.verl.env:VerlNavSimAdapter",
    ("bench2drive", "verl"): "vla_models.frameworks.verl.env:VerlBench2DriveAdapter",
}
"""Environment adapters of this package: (environment, framework) -> ``module:class``; one that a user registers goes first."""

T = TypeVar("T")


@dataclass(frozen=True)
class Framework:
    """How runs are started in a framework that this package does not have."""

    launch: Callable[..., Path]
    """``launch(config, *, resume=None) -> Path``: trains, and returns the run's folder."""
    dry_run: Callable[..., str] | None = None
    """``dry_run(config) -> str``: what to tell the user instead of starting; None where the framework has nothing to write."""


class VLAModelRegistry:
    """The registries. Class-level: there is one for the whole process, and no instance of it."""

    _models: ClassVar[dict[str, type[VLAInterface]]] = {}
    """model name -> class."""
    _adapters: ClassVar[dict[str, dict[str, Any]]] = {}
    """framework -> model name -> adapter: what builds the model in one framework."""
    _env_adapters: ClassVar[dict[str, dict[str, Any]]] = {}
    """environment -> framework -> adapter class."""
    _frameworks: ClassVar[dict[str, Framework]] = {}
    """framework -> how it is started; built-in ones are not among them."""
    _plugin_errors: ClassVar[dict[str, str] | None] = None
    """plugin -> why it could not be imported; None until plugins were looked for."""
    _lock: ClassVar[threading.RLock] = threading.RLock()

    # -- registering -----------------------------------------------------------------------------------------------------

    @classmethod
    def register_model(cls, name: str, model: type[T], override: bool = False) -> type[T]:
        """Register a subclass of ``VLAInterface`` under ``name``."""
        if not (
            isinstance(model, type)
            and any(f"{b.__module__}.{b.__name__}" == "vla_models.interface.VLAInterface" for b in model.__mro__)
        ):
            raise RegistryError(
                f"cannot register {model!r} as model {name!r}: it is not a subclass of VLAInterface or VLAForDriving"
            )
        builtin = BUILTIN_MODELS.get(name)
        if builtin and model.__module__ != builtin and name not in cls._models and not override:
            raise RegistryError(f"model {name!r} is built in ({builtin}); choose another name or pass override=True")
        _put(cls._models, name, model, f"model {name!r}", override)
        return model

    @classmethod
    def register_adapter(cls, framework: str, model: str, adapter: T, override: bool = False) -> T:
        """Register what builds ``model`` in ``framework``. In the built-in frameworks it is called with the framework's own
        arguments of the model and returns the model (docs/02_model_integration_guide.md, section 5)."""
        if framework == "local":
            raise RegistryError(f"local trains the registered model itself; it would never ask an adapter of {model!r}")
        _put(cls._adapters.setdefault(framework, {}), model, adapter, f"{framework} adapter of model {model!r}", override)
        return adapter

    @classmethod
    def register_env_adapter(cls, env: str, framework: str, adapter: T, override: bool = False) -> T:
        """Register what translates environment ``env`` for ``framework``."""
        _put(cls._env_adapters.setdefault(env, {}), framework, adapter, f"{framework} adapter of environment {env!r}", override)
        return adapter

    @classmethod
    def register_framework(
        cls, name: str, launch: Callable[..., Path], dry_run: Callable[..., str] | None = None, override: bool = False
    ) -> None:
        """Register a framework: ``framework: <name>`` in a configuration then starts ``launch``."""
        if name in BUILTIN_FRAMEWORKS:
            raise RegistryError(f"framework {name!r} is built in; choose another name")
        _put(cls._frameworks, name, Framework(launch, dry_run), f"framework {name!r}", override)

    # -- looking up ------------------------------------------------------------------------------------------------------

    @classmethod
    def get_model(cls, name: str) -> type[VLAInterface]:
        """The class registered as ``name``; unknown names list what exists and the nearest."""
        cls.load_plugins()
        if name not in cls._models and name in BUILTIN_MODELS:
            importlib.import_module(BUILTIN_MODELS[name])
        if name not in cls._models:
            raise RegistryError(
                f"there is no model {name!r}; {did_you_mean(name, cls.list_models())} Import your own model first, "
                f"or let its package name the module under the entry-point group {PLUGIN_GROUP!r}.{cls._failed_plugins()}"
            )
        return cls._models[name]

    @classmethod
    def get_adapter(cls, framework: str, model: str) -> Any | None:
        """What builds ``model`` in ``framework``, or None: then the registered model itself is used."""
        cls.load_plugins()
        return cls._adapters.get(framework, {}).get(model)

    @classmethod
    def get_env_adapter(cls, env: str, framework: str) -> Any:
        """The adapter of environment ``env`` for ``framework``; ``RegistryError`` says what exists."""
        known = cls.list_env_adapters()
        if env not in known:
            raise RegistryError(f"no environment {env!r} has an adapter; {did_you_mean(env, known)}{cls._failed_plugins()}")
        if framework not in known[env]:
            raise RegistryError(
                f"environment {env!r} has no adapter for framework {framework!r}; {did_you_mean(framework, known[env])} "
                f'Write a class under @register_env_adapter("{env}", "{framework}"){cls._failed_plugins()}'
            )
        own = cls._env_adapters.get(env, {})
        if framework in own:
            return own[framework]
        module, name = BUILTIN_ENV_ADAPTERS[env, framework].split(":")
        return getattr(importlib.import_module(module), name)

    @classmethod
    def get_framework(cls, name: str) -> Framework | None:
        """How a registered framework is started; None for built-in and unknown ones."""
        cls.load_plugins()
        return cls._frameworks.get(name)

    @classmethod
    def list_frameworks(cls) -> list[str]:
        """Names of all frameworks, built-in ones first (they may be missing from this installation)."""
        cls.load_plugins()
        return [*BUILTIN_FRAMEWORKS, *sorted(cls._frameworks)]

    @classmethod
    def list_models(cls) -> list[str]:
        """Names of all models, built-in ones included (nothing heavy is imported)."""
        cls.load_plugins()
        return sorted({*cls._models, *BUILTIN_MODELS})

    @classmethod
    def list_adapters(cls) -> dict[str, list[str]]:
        """framework -> names of the models that bring an adapter of their own."""
        cls.load_plugins()
        return {framework: sorted(models) for framework, models in sorted(cls._adapters.items())}

    @classmethod
    def list_env_adapters(cls) -> dict[str, list[str]]:
        """environment -> frameworks that have an adapter of it, built-in ones included (nothing heavy is imported)."""
        cls.load_plugins()
        found: dict[str, set[str]] = {env: set(frameworks) for env, frameworks in cls._env_adapters.items()}
        for env, framework in BUILTIN_ENV_ADAPTERS:
            found.setdefault(env, set()).add(framework)
        return {env: sorted(frameworks) for env, frameworks in sorted(found.items())}

    @classmethod
    def name_of(cls, model: type) -> str | None:
        """The name under which a class is registered, or None."""
        return next((name for name, registered in cls._models.items() if registered is model), None)

    # -- plugins ---------------------------------------------------------------------------------------------------------

    @classmethod
    def load_plugins(cls) -> dict[str, str]:
        """Import the plugins of installed packages, once; returns {plugin: error} of those that failed (also warned about)."""
        with cls._lock:
            if cls._plugin_errors is None:
                errors = cls._plugin_errors = {}  # set first: a plugin may look something up while it is imported
                for entry in importlib.metadata.entry_points(group=PLUGIN_GROUP):
                    try:
                        entry.load()
                    except Exception as e:  # a stranger's package may fail in any way and must not stop ours
                        errors[entry.name] = f"{type(e).__name__}: {e}"
                        warnings.warn(
                            f"the vla_models plugin {entry.name!r} ({entry.value}) failed: {errors[entry.name]}", stacklevel=2
                        )
            return dict(cls._plugin_errors)

    @classmethod
    def _failed_plugins(cls) -> str:
        failed = [f"{name} ({error})" for name, error in (cls._plugin_errors or {}).items()]
        return f" Plugins that failed to load: {'; '.join(failed)}." if failed else ""


def _put(registry: dict[str, Any], name: str, value: Any, what: str, override: bool) -> None:
    if not isinstance(name, str) or not name:
        raise RegistryError(f"{what}: a name must be a non-empty string")
    present = registry.get(name, value)
    if present != value and not override:
        there = present.launch if isinstance(present, Framework) else present
        where = f"{getattr(there, '__module__', '?')}.{getattr(there, '__qualname__', there)}"
        raise RegistryError(f"{what} is already registered ({where}); choose another name or pass override=True")
    registry[name] = value


def register_vla_model(name: str, override: bool = False) -> Callable[[type[T]], type[T]]:
    """Class decorator: ``@register_vla_model("my_driving_vla")``; a name that is taken is an error unless ``override``."""
    return lambda model: VLAModelRegistry.register_model(name, model, override)


def register_framework_adapter(framework: str, model: str, override: bool = False) -> Callable[[T], T]:
    """Decorator of a function: ``@register_framework_adapter("siirl", "my_driving_vla")``; see ``register_adapter``."""
    return lambda adapter: VLAModelRegistry.register_adapter(framework, model, adapter, override)


def register_env_adapter(env: str, framework: str, override: bool = False) -> Callable[[T], T]:
    """Class decorator: ``@register_env_adapter("navsim", "areal")``."""
    return lambda adapter: VLAModelRegistry.register_env_adapter(env, framework, adapter, override)


def register_framework(
    name: str, dry_run: Callable[..., str] | None = None, override: bool = False
) -> Callable[[Callable[..., Path]], Callable[..., Path]]:
    """Decorator of a function ``launch(config, *, resume=None) -> Path``: ``@register_framework("my_trainer")``.

    ``framework: my_trainer`` in a configuration then starts it. ``dry_run(config) -> str`` answers ``train --dry-run``.
    """

    def register(launch: Callable[..., Path]) -> Callable[..., Path]:
        VLAModelRegistry.register_framework(name, launch, dry_run, override)
        return launch

    return register


def create_model(name: str, model_path: str | Path | None = None, **options: Any) -> VLAInterface:
    """Build a registered model.

    A ``model_path`` that ``save_pretrained`` wrote is loaded with ``from_pretrained`` (``options`` replace saved constructor
    arguments). Anything else goes to the constructor, as ``model_path=…`` beside ``options``: what it means is the model's
    affair. An option that the constructor does not take is an error that names those it takes.
    """
    from vla_models.pretrained import is_checkpoint

    model = VLAModelRegistry.get_model(name)
    _check_options(name, model, options)
    if model_path is not None and is_checkpoint(model_path):
        return model.from_pretrained(model_path, **options)
    parameters = inspect.signature(model).parameters
    if "model_path" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return model(model_path=model_path, **options)
    if model_path is not None:
        raise RegistryError(
            f"model {name!r} takes no model_path, and {str(model_path)!r} is no checkpoint that save_pretrained wrote"
        )
    return model(**options)


def _check_options(name: str, model: type, options: Mapping[str, Any]) -> None:
    parameters = inspect.signature(model).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for option in options:
        if option not in parameters:
            raise RegistryError(
                f"model {name!r} does not take {option!r}; {did_you_mean(option, set(parameters) - {'model_path'})}"
            )
