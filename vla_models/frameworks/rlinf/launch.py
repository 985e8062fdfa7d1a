"""``launch``: from a configuration to a finished run folder, with RLinf doing the reinforcement learning.

In this order: what RLinf cannot do is refused; the warm start (imitation in NavSim) runs here, as in ``local``; the
configuration is translated, checked and written to ``rlinf/native.yaml``; RLinf trains; the result is evaluated here on all
held-out scenes.
"""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import vla_models
from vla_models.errors import MissingDependency
from vla_models.frameworks.observations import ObservationLayout
from vla_models.frameworks.probing import lay_out
from vla_models.frameworks.records import RecordLayout
from vla_models.frameworks.rlinf import native as native_config
from vla_models.frameworks.rlinf import runner
from vla_models.frameworks.rlinf.compat import installed
from vla_models.frameworks.rlinf.plugin import EXT_MODULE
from vla_models.frameworks.run_folder import FrameworkRun
from vla_models.frameworks.user_code import SOURCES, remember_sources
from vla_models.model_registry import VLAModelRegistry
from vla_models.training.routes import PLANS
from vla_models.yaml_source import dump

if TYPE_CHECKING:
    from vla_models.config import VLAConfig

log = logging.getLogger(__name__)


def launch(config: VLAConfig, *, resume: str | Path | None = None) -> Path:
    """Train with RLinf; returns the run's folder.

    Beside what a ``local`` run writes there is ``rlinf/`` (RLinf's configuration, TensorBoard and checkpoints) and
    ``checkpoints/update-<n>``, a copy of each of RLinf's checkpoints that ``vla-models eval`` reads.

    Args:
        config: what to do; ``framework`` is "rlinf".
        resume: folder of a run to go on with from its last checkpoint. ``config`` must be the run's own.

    Raises:
        ConfigError: for what RLinf cannot do; every problem is named before Ray is started.
        MissingDependency: if RLinf is not installed, cannot load this package, or finds no device to train on.
        CheckpointError: if there is no such run, or its last checkpoint is damaged.
    """
    _check(config)
    if installed() is None:
        raise MissingDependency("framework: rlinf is not installed in this environment; make env-rlinf builds one that has it")
    remember_sources(config)
    runner.load_extension()
    record = FrameworkRun(config, resume)
    log.info("run folder: %s", record.path)
    record.prepare()
    steps, done = config.training.steps, record.done()
    evaluation: dict[str, float] = {}
    if done < steps:
        settings = _translate(config, record)
        write(settings, record.path)
        evaluation = runner.run(settings, record)
    else:
        record.load(runner.read_weights(runner.checkpoint_folder(record.path, done)))
    return record.finish(steps, lambda: evaluation)


def dry_run(config: VLAConfig) -> str:
    """Check everything, write RLinf's native configuration, start nothing; returns what to tell the user.

    The folder that is made holds config.yaml, the model to start from (the warm start is not part of a dry run) and
    ``rlinf/native.yaml``.
    """
    _check(config)
    remember_sources(config)
    record = FrameworkRun(config)
    settings = _translate(config, record)
    record.model.save_pretrained(record.start)
    path = write(settings, record.path)
    warm = config.training.imitation.steps
    note = f"# The warm start ({warm} imitation steps) is not part of this: it starts from {record.start}.\n" if warm else ""
    how = f"# RLinf's native configuration: {path}\n{note}# Start it with RLinf's own launcher:\n#   {command(path)}"
    return dump(settings) + how


def command(path: Path) -> str:
    """The command that starts a native configuration with RLinf's own launcher (in its repository, not in its wheel)."""
    variables = {"RLINF_EXT_MODULE": EXT_MODULE, "PYTHONPATH": str(Path(vla_models.__file__).resolve().parent.parent)}
    if os.environ.get(SOURCES, "[]") != "[]":
        variables[SOURCES] = os.environ[SOURCES]
    before = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    return (
        f"{before} python -m {EXT_MODULE} RLinf/examples/embodiment/train_embodied_agent.py "
        f"--config-path {shlex.quote(str(path.resolve().parent))} --config-name {path.stem}"
    )


def write(settings: Mapping[str, Any], run: Path) -> Path:
    """Write ``rlinf/native.yaml`` into the run's folder."""
    path = run / "rlinf" / "native.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(dump(dict(settings)), encoding="utf-8")
    return path


def _check(config: VLAConfig) -> None:
    """Everything that can be refused before the model is built and a folder is made."""
    native_config.check_config(config)
    decisions = VLAModelRegistry.get_env_adapter(config.environment.type, "rlinf").decisions
    devices = torch.cuda.device_count()
    settings = native_config.make(
        config,
        Path(),
        Path(),
        spec=PLANS,
        max_decisions=decisions or config.training.decisions_per_step,
        observation=ObservationLayout({}, {}, False),
        record=RecordLayout({}, 1),
        devices=devices,
    )
    native_config.check(settings, devices)


def _translate(config: VLAConfig, record: FrameworkRun) -> dict[str, Any]:
    """The native configuration, checked."""
    adapter = VLAModelRegistry.get_env_adapter(config.environment.type, "rlinf")
    layout = lay_out(config, record.model, adapter.make_env)
    devices, done = torch.cuda.device_count(), record.done()
    settings = native_config.make(
        config,
        record.path,
        record.start,
        spec=record.model.spec,
        max_decisions=adapter.decisions or layout.max_decisions,
        observation=layout.observation,
        record=layout.record,
        devices=devices,
        resume=runner.checkpoint_folder(record.path, done) if done else None,
        done=done,
    )
    native_config.check(settings, devices)
    return settings
