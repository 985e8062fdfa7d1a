"""``launch``: from a configuration to a finished run folder."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vla_models.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from vla_models.config import VLAConfig

log = logging.getLogger(__name__)

MAY_CHANGE: Final = ("output_dir", "name", "training.threads", "training.checkpoint_every")
"""Keys that a resumed run may have otherwise than it began: they do not touch the results (threads only in the last bits)."""


def launch(config: VLAConfig, *, resume: str | Path | None = None) -> Path:
    """Train with the embedded trainer and write the report; returns the run's folder.

    The folder ``<output_dir>/<name>-<time>`` holds config.yaml, metrics.jsonl, tensorboard/, checkpoints/, heldout.npz,
    summary.json and report.html.

    Args:
        config: what to do; ``framework`` is "local".
        resume: folder of a run to go on with, bit-exactly, from its last checkpoint (from the start if it has none).
            ``config`` must be the run's own.

    Raises:
        ConfigError: if ``config`` differs from that of the run to resume, or asks for what the local trainer does not do.
        CheckpointError: if there is no such run, or its last checkpoint is damaged.
    """
    if config.framework != "local":
        raise ConfigError(f"framework: {config.framework!r} has a launcher of its own; this one runs framework: local")
    if config.framework_options:
        raise ConfigError("framework_options: the local trainer has none; remove them, or choose another framework")
    if resume is None:
        run_dir = new_run_dir(config)
        config.to_yaml(run_dir / "config.yaml")
    else:
        run_dir = Path(resume)
        check_same(config, run_dir)

    # Idle OpenMP threads sleep instead of spinning (read when torch is loaded; a value that the user set stays): the model's
    # operations are short, and beside any other process spinning made sampling ten times slower (measured on two cores).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    from vla_models.model_registry import create_model
    from vla_models.report import write_report
    from vla_models.training.practice import make_practice
    from vla_models.training.scenes import build_scenes
    from vla_models.training.trainer import Trainer

    log.info("run folder: %s", run_dir)
    torch.manual_seed(config.seed)  # initial weights
    model = create_model(config.model.name, model_path=config.model.checkpoint_path, **config.model.arguments())
    config.check_model(model)  # before scenes are made
    Trainer(config, run_dir, model, make_practice(config, model.spec, build_scenes)).run()
    write_report(run_dir)
    return run_dir


def new_run_dir(config: VLAConfig) -> Path:
    """Make ``<output_dir>/<name>-<time>``; a second run in the same second gets a number."""
    name = config.name or f"{config.framework}-{config.environment.type}-{config.algorithm.name}"
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for number in range(1000):
        path = Path(config.output_dir) / (f"{name}-{stamp}" + (f"-{number}" if number else ""))
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        return path
    raise ConfigError(f"output_dir: {config.output_dir!r} is full of runs named {name}-{stamp}; set another name")


def check_same(config: VLAConfig, run_dir: Path) -> None:
    """Refuse to resume a run under another configuration."""
    path = run_dir / "config.yaml"
    if not path.exists():
        raise CheckpointError(f"{run_dir} is no run to resume: {path} does not exist; name a folder under {config.output_dir}/")
    before, now = _flat(type(config).from_yaml(path).to_dict()), _flat(config.to_dict())
    changed = [key for key in before.keys() | now.keys() if before.get(key) != now.get(key) and key not in MAY_CHANGE]
    if changed:
        listed = ", ".join(f"{key} (was {before.get(key)!r}, now {now.get(key)!r})" for key in sorted(changed)[:5])
        raise ConfigError(f"{run_dir} cannot be resumed with another configuration: {listed}. Use {path}, or start a new run")


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
