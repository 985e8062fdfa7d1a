"""Model checkpoints: a folder with ``model.safetensors`` and ``config.json``, and ``value_head.safetensors``. Never pickle.

``config.json`` has the format's name, the class, the registered name, the constructor's arguments and the normalisation
statistics of each data set; loading calls the constructor and then demands that weights and model agree key by key. The value
head lies apart: who only drives does not need it, and the folder can be published without.
"""

from __future__ import annotations

import inspect
import json
import os
import tempfile
import uuid
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vla_models.errors import CheckpointError, MissingDependency
from vla_models.files import atomic_path

FORMAT = "vla-model/1"
"""Value of "format" in config.json; other folders are not ours."""
WEIGHTS = "model.safetensors"
VALUE_WEIGHTS = "value_head.safetensors"
CONFIG = "config.json"


class NotSaved:
    """Stands for a constructor argument that config.json cannot hold."""

    def __init__(self, kind: str) -> None:
        self.kind = kind


def remember_arguments(cls: type, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a constructor call by name, with defaults, as JSON values (what JSON cannot hold becomes ``NotSaved``)."""
    signature = inspect.signature(cls.__init__)  # type: ignore[misc]
    try:
        bound = signature.bind(None, *args, **kwargs)
    except TypeError:  # the constructor itself will say what is wrong; copying calls __new__ without arguments
        return {}
    bound.apply_defaults()
    arguments: dict[str, Any] = {}
    for name, value in list(bound.arguments.items())[1:]:
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            arguments.update(value)
        elif kind is not inspect.Parameter.VAR_POSITIONAL or value:
            arguments[name] = value
    return {name: _plain(value) for name, value in arguments.items()}


def _plain(value: Any) -> Any:
    try:
        return json.loads(json.dumps(str(value) if isinstance(value, Path) else value, allow_nan=False))
    except (TypeError, ValueError):
        return NotSaved(type(value).__name__)


def is_checkpoint(folder: str | Path) -> bool:
    """Whether ``folder`` was written by ``save_pretrained`` (other folders with a config.json, say Hugging Face's, are not)."""
    try:
        return bool(json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8")).get("format") == FORMAT)
    except (OSError, ValueError, AttributeError):
        return False


def write_model(
    model: torch.nn.Module,
    folder: Path,
    name: str | None,
    arguments: Mapping[str, Any],
    *,
    statistics: Mapping[str, Any],
    value_prefix: str,
) -> Path:
    """Write ``model`` into ``folder`` (made if missing; other files in it are left alone). Returns ``folder``.

    name: under which the class is registered, or None; arguments: of the constructor; statistics: of normalisation, by data
    set; value_prefix: how the names of the value head's weights begin.
    """
    kind = type(model).__name__
    for argument, value in arguments.items():
        if isinstance(value, NotSaved):
            raise CheckpointError(
                f"{kind} cannot be saved: its constructor's argument {argument!r} is a {value.kind}, which config.json cannot "
                "hold; override constructor_arguments() to return JSON values"
            )
    config = {"format": FORMAT, "model": name, "class": kind, "arguments": dict(arguments)}
    config |= {"statistics": dict(statistics)} if statistics else {}
    tensors, aliases = _tensors(model)
    value = {name: tensors.pop(name) for name in list(tensors) if name.startswith(value_prefix)}
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"cannot save into {str(folder)!r}: it is a file")

    def write(into: Path, mark: str = "") -> list[str]:
        save_file(tensors, into / (WEIGHTS + mark), {"format": "pt", "aliases": json.dumps(aliases)})
        if value:
            save_file(value, into / (VALUE_WEIGHTS + mark), {"format": "pt"})
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (into / (CONFIG + mark)).write_text(text, encoding="utf-8")
        return [WEIGHTS, *([VALUE_WEIGHTS] if value else []), CONFIG]

    if not folder.exists():
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            write(temporary)
        return folder
    mark = f".{uuid.uuid4().hex[:8]}.tmp"  # all files are complete before one takes its place
    try:
        written = write(folder, mark)
        for file in written:
            os.replace(folder / (file + mark), folder / file)
        if not value:
            (folder / VALUE_WEIGHTS).unlink(missing_ok=True)  # of the model that was here before
    finally:
        for file in (WEIGHTS, VALUE_WEIGHTS, CONFIG):
            (folder / (file + mark)).unlink(missing_ok=True)
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint, checked."""
    path = folder / CONFIG
    if not folder.is_dir():
        raise CheckpointError(f"there is no checkpoint folder {str(folder)!r} (looked in {Path.cwd()})")
    if not path.is_file():
        inside = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise CheckpointError(f"{str(folder)!r} is no model checkpoint: it has no {CONFIG} (it has {inside})")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise CheckpointError(f"{str(path)!r} is corrupt: {e}") from e
    if not isinstance(config, dict) or config.get("format") != FORMAT or not {"model", "class", "arguments"} <= config.keys():
        raise CheckpointError(
            f"{str(folder)!r} was not written by vla_models' save_pretrained (no format {FORMAT!r} in {CONFIG})"
        )
    return config


def load_weights(model: torch.nn.Module, folder: Path, value_prefix: str) -> None:
    """Fill ``model`` with the weights in ``folder``; ``CheckpointError`` with all differing keys unless they fit exactly.

    A checkpoint without a value head is loaded with a warning: the model keeps its fresh one.
    """
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise CheckpointError(f"there are no weights {str(path)!r}")
    loaded, aliases = _read(path)
    value_path = Path(folder) / VALUE_WEIGHTS
    if value_path.is_file():
        loaded |= _read(value_path)[0]
    loaded.update({alias: loaded[kept] for alias, kept in aliases.items() if kept in loaded})
    own = model.state_dict()
    fresh = {name: value for name, value in own.items() if name.startswith(value_prefix)}
    if fresh and not fresh.keys() & loaded.keys():
        warnings.warn(f"{str(folder)!r} holds no value head; {type(model).__name__} starts with a fresh one", stacklevel=3)
        loaded |= fresh
    missing = sorted(own.keys() - loaded.keys())
    unexpected = sorted(loaded.keys() - own.keys())
    shapes = [
        f"{k} {list(loaded[k].shape)} instead of {list(own[k].shape)}"
        for k in own.keys() & loaded.keys()
        if loaded[k].shape != own[k].shape
    ]
    if missing or unexpected or shapes:
        parts = [("missing", missing), ("unexpected", unexpected), ("of another shape", sorted(shapes))]
        lists = "; ".join(f"{len(keys)} {what}: {_some(keys)}" for what, keys in parts if keys)
        raise CheckpointError(f"the weights in {str(path)!r} do not fit {type(model).__name__}: {lists}")
    model.load_state_dict(loaded)


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors of a safetensors file, and {name: name of the same tensor} for tied weights."""
    try:
        with safe_open(path, framework="pt") as file:
            aliases: dict[str, str] = json.loads((file.metadata() or {}).get("aliases", "{}"))
            return {key: file.get_tensor(key) for key in file.keys()}, aliases  # noqa: SIM118 - no dict, it has no iterator
    except (SafetensorError, ValueError, OSError) as e:
        raise CheckpointError(f"{str(path)!r} is corrupt: {e}. Take an earlier checkpoint") from e


def upload_model(save: Callable[[Path], Any], repository: str, *, private: bool, message: str) -> str:
    """Upload the folder that ``save`` writes to the Hugging Face Hub; returns its address."""
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
    except ImportError as e:
        raise MissingDependency(f"push_to_hub needs huggingface_hub: pip install 'vla_models[hf]' ({e})") from e
    api = HfApi()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        save(folder)
        try:
            address = api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
        except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as e:
            raise CheckpointError(f"the model could not be uploaded to {repository!r}: {e}. Try: hf auth login") from e
    return str(address)


def _some(keys: list[str], most: int = 10) -> str:
    return ", ".join(keys[:most]) + (f", … ({len(keys) - most} more)" if len(keys) > most else "")


def _tensors(model: torch.nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The state dict as tensors that share no memory, and {name: name of the same tensor} for tied weights."""
    tensors: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"{type(model).__name__} cannot be saved: {name!r} in its state dict is a {type(value).__name__}, not a tensor"
            )
        same = (value.device, value.data_ptr(), value.storage_offset(), tuple(value.shape), value.stride(), value.dtype)
        if value.numel() and same in seen:
            aliases[name] = seen[same]
            continue
        seen[same] = name
        own = value.detach().cpu().contiguous()
        views_more = own.untyped_storage().nbytes() != own.numel() * own.element_size()
        tensors[name] = own.clone() if views_more else own
    return tensors, aliases
