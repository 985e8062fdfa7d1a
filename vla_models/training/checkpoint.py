"""Checkpoints that survive ``kill -9`` at any moment: a folder appears whole or not at all.

``step-<phase>-<step>/`` holds ``model.safetensors``, ``optimizer.safetensors``, ``reference.safetensors`` (frozen weights of
the KL term), ``practice.safetensors`` (where the environment's episodes stand) and ``state.json`` (the trainer's progress and
the SHA-256 of the others). No pickle. There are no random states to save: the trainer draws every number from (seed, phase,
step), see ``random_stream``.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vla_models.errors import CheckpointError
from vla_models.files import atomic_path

PHASES: Final = ("imitation", "rl")
"""Phases of training in order; checkpoints sort by (phase, step)."""

_FORMAT: Final = "vla-checkpoint/1"


def random_stream(seed: int, phase: str, step: int) -> int:
    """A seed for everything random in one step, the same whenever the step is done: what makes a resumed run bit-exact."""
    digest = hashlib.sha256(f"{seed}/{phase}/{step}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1  # torch wants it below 2**63


def data_order(seed: int, phase: str, step: int, size: int, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Which ``count`` of ``size`` items step number ``step`` takes: epochs of random permutations laid end to end, [count]."""
    first = step * count
    out = np.empty(count, dtype=np.int64)
    permutation, epoch = np.empty(0, dtype=np.int64), -1
    for i in range(count):
        at, place = divmod(first + i, size)
        if at != epoch:
            epoch, permutation = at, np.random.default_rng(random_stream(seed, f"{phase}-order", at)).permutation(size)
        out[i] = permutation[place]
    return out


@dataclass(frozen=True)
class Restored:
    """What ``load_checkpoint`` found, beside the weights that it put into the model."""

    phase: str
    step: int
    """Steps of the phase that were done."""
    optimizer: torch.optim.Optimizer
    reference: dict[str, Tensor]
    """Frozen weights of the KL term by name; empty if there were none."""
    practice: dict[str, Tensor]
    """``Practice.state``; empty if there was none."""
    state: dict[str, Any]
    """The trainer's own plain JSON."""


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    phase: str,
    step: int,
    state: Mapping[str, Any],
    *,
    reference: Mapping[str, Tensor] | None = None,
    practice: Mapping[str, Tensor] | None = None,
    keep: int = 2,
) -> Path:
    """Write a checkpoint under ``folder`` and remove all but the newest ``keep``; see ``Restored``. Returns its path."""
    path = Path(folder) / f"step-{PHASES.index(phase)}-{step:07d}"
    optimizer_tensors, groups = _optimizer_tensors(optimizer)
    with atomic_path(path) as temporary:
        temporary.mkdir()
        frozen = {name: tensor.contiguous() for name, tensor in (reference or {}).items()}
        files = {
            "model": _model_tensors(model),
            "optimizer": optimizer_tensors,
            "reference": frozen,
            "practice": dict(practice or {}),
        }
        for name, tensors in files.items():
            save_file(tensors, temporary / f"{name}.safetensors")
        sums = {name: _sha256(temporary / f"{name}.safetensors") for name in files}
        progress = {"phase": phase, "step": step, "state": dict(state)}
        manifest = {"format": _FORMAT, **progress, "sha256": sums, "optimizer": groups}
        (temporary / "state.json").write_text(json.dumps(manifest, indent=1))
    for old in _checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return path


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint under ``folder``, or None; remains of a killed run are removed."""
    for leftover in [*Path(folder).glob(".*.tmp"), *Path(folder).glob(".*.old")]:
        shutil.rmtree(leftover, ignore_errors=True)
    found = _checkpoints(folder)
    return found[-1] if found else None


def load_checkpoint(path: Path, model: nn.Module, make_optimizer: Callable[[str], torch.optim.Optimizer]) -> Restored:
    """Put a checkpoint's weights into ``model`` and its state into the optimiser that ``make_optimizer(phase)`` makes.

    Raises CheckpointError, naming the file, if one is missing, damaged, or belongs to another model. Nothing is changed then.
    """
    manifest_path = Path(path) / "state.json"
    try:
        manifest = json.loads(manifest_path.read_text())
        if manifest["format"] != _FORMAT:
            raise ValueError(f"its format is {manifest['format']!r}, not {_FORMAT!r}")
        phase, step, sums = PHASES[PHASES.index(manifest["phase"])], int(manifest["step"]), dict(manifest["sha256"])
        groups, state = list(manifest["optimizer"]), dict(manifest["state"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(_damaged(manifest_path, error)) from error
    loaded: dict[str, dict[str, Tensor]] = {}
    for name in ("model", "optimizer", "reference", "practice"):
        file = Path(path) / f"{name}.safetensors"
        try:
            if _sha256(file) != sums[name]:
                raise ValueError("its SHA-256 is not the one in state.json")
            loaded[name] = load_file(file)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise CheckpointError(_damaged(file, error)) from error
    own, weights = _model_tensors(model), loaded["model"]
    different = sorted(own.keys() ^ weights.keys())
    different += [name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape]
    if different:
        raise CheckpointError(
            f"{path}/model.safetensors belongs to another model: {len(different)} tensors differ in name or shape, "
            f"for example {different[0]!r}; resume with the configuration of that run"
        )
    optimizer = make_optimizer(phase)
    if [len(group["params"]) for group in optimizer.param_groups] != [len(group["params"]) for group in groups]:
        raise CheckpointError(f"{path}/optimizer.safetensors belongs to another optimiser; resume with its configuration")
    model.load_state_dict(weights, strict=False)  # tied weights were saved once
    optimizer.load_state_dict({"state": _optimizer_state(loaded["optimizer"], optimizer), "param_groups": groups})
    parameters = dict(model.named_parameters())
    reference = {k: _laid_out_like(parameters[k], v) if k in parameters else v for k, v in loaded["reference"].items()}
    return Restored(phase, step, optimizer, reference, loaded["practice"], state)


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(p for p in Path(folder).glob("step-*-*") if p.is_dir())


def _damaged(file: Path, error: Exception) -> str:
    return (
        f"{file} is missing or damaged ({error}). Remove the folder {file.parent} to go on from the checkpoint before it, "
        "or start a new run"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, shared storage once (safetensors refuses aliases); names in a fixed order."""
    out: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        if tensor.numel() and tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        out[name] = tensor.detach().contiguous()
    return out


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    whole = optimizer.state_dict()
    tensors = {
        f"{index}.{key}": value.contiguous() if isinstance(value, Tensor) else torch.tensor(value)
        for index, entries in whole["state"].items()
        for key, value in entries.items()
        if value is not None
    }
    return tensors, whole["param_groups"]


def _optimizer_state(tensors: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Tensor]]:
    """State by parameter index."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        parameter = parameters[int(index)]
        if tensor.shape == parameter.shape:
            tensor = _laid_out_like(parameter, tensor)
        state.setdefault(int(index), {})[key] = tensor
    return state


def _laid_out_like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """``tensor`` in the memory order of ``parameter`` (channels last, say): other orders are other sums, in the last bits."""
    return torch.empty_like(parameter, dtype=tensor.dtype, requires_grad=False).copy_(tensor)
