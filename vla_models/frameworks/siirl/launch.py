"""``launch``: from a configuration to a finished run folder, with siiRL doing the reinforcement learning.

In this order: what cannot be done in siiRL is refused; the warm start (imitation in NavSim) runs here, as in ``local``; the
configuration is translated, checked and written to ``siirl/``; siiRL trains; the result is evaluated here on all held-out
scenes.
"""

from __future__ import annotations

import logging
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import vla_models
from vla_models.errors import MissingDependency
from vla_models.frameworks.probing import lay_out
from vla_models.frameworks.records import RecordLayout
from vla_models.frameworks.run_folder import FrameworkRun
from vla_models.frameworks.siirl import native as native_config
from vla_models.frameworks.siirl.compat import installed
from vla_models.frameworks.user_code import SOURCES, remember_sources
from vla_models.model_registry import VLAModelRegistry
from vla_models.yaml_source import dump

if TYPE_CHECKING:
    from vla_models.config import VLAConfig

log = logging.getLogger(__name__)


def launch(config: VLAConfig, *, resume: str | Path | None = None) -> Path:
    """Train with siiRL; returns the run's folder.

    Beside what a ``local`` run writes there is ``siirl/`` (siiRL's arguments, manifests, log and checkpoints) and
    ``checkpoints/update-<n>``, a copy of each of siiRL's checkpoints that ``vla-models eval`` reads.

    Args:
        config: what to do; ``framework`` is "siirl".
        resume: folder of a run to go on with from its last checkpoint. ``config`` must be the run's own.

    Raises:
        ConfigError: for what cannot be done in siiRL; every problem is named before Ray is started.
        MissingDependency: if siiRL is not installed, cannot be loaded, or finds no device to train on.
        CheckpointError: if there is no such run, or its last checkpoint is damaged.
    """
    _check(config)
    if installed() is None:
        raise MissingDependency("framework: siirl is not installed in this environment; make env-siirl builds one that has it")
    from vla_models.frameworks.siirl import runner

    remember_sources(config)
    runner.prepare()
    record = FrameworkRun(config, resume)
    log.info("run folder: %s", record.path)
    record.prepare()
    steps, done = config.training.steps, record.done()
    evaluation: dict[str, float] = {}
    settings = translate(config, record)
    write(settings, record.path)
    if done < steps:
        evaluation = runner.run(settings, record)
    else:
        runner.read_weights(settings, record, done)
    return record.finish(steps, lambda: evaluation)


def dry_run(config: VLAConfig) -> str:
    """Check everything, write siiRL's arguments and inputs, start nothing; returns what to tell the user.

    The folder that is made holds config.yaml, the model to start from (the warm start is not part of a dry run) and ``siirl/``.
    """
    _check(config)
    remember_sources(config)
    record = FrameworkRun(config)
    settings = translate(config, record)
    record.model.save_pretrained(record.start)
    path = write(settings, record.path)
    warm = config.training.imitation.steps
    note = f"# The warm start ({warm} imitation steps) is not part of this: it starts from {record.start}.\n" if warm else ""
    how = f"# siiRL's arguments: {path}\n{note}# Start it with siiRL's own main program:\n#   sh {path.with_name('start.sh')}\n"
    return dump(settings) + how


def write(settings: dict[str, Any], run: Path) -> Path:
    """Write ``siirl/native.yaml`` and ``siirl/start.sh``, which starts siiRL with it."""
    path = run / "siirl" / "native.yaml"
    path.write_text(dump(settings), encoding="utf-8")
    variables = {"PYTHONPATH": str(Path(vla_models.__file__).resolve().parent.parent)}
    if os.environ.get(SOURCES, "[]") != "[]":
        variables[SOURCES] = os.environ[SOURCES]
    before = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    given = map(shlex.quote, native_config.arguments(settings))
    command = " \\\n  ".join(["python -m vla_models.frameworks.siirl.main", *given])
    path.with_name("start.sh").write_text(f"#!/bin/sh\n{before} {command}\n", encoding="utf-8")
    return path


def _check(config: VLAConfig) -> None:
    """Everything that can be refused before the model is built and a folder is made."""
    native_config.check_config(config)
    decisions = VLAModelRegistry.get_env_adapter(config.environment.type, "siirl").decisions
    native_config.make(
        config, Path(), Path(), decisions=decisions or 2, heldout=config.environment.heldout_scenes, record=RecordLayout({}, 1),
        devices=torch.cuda.device_count(),
    )  # fmt: skip


def translate(config: VLAConfig, record: FrameworkRun) -> dict[str, Any]:
    """siiRL's arguments, checked, with everything written that they point to."""
    adapter = VLAModelRegistry.get_env_adapter(config.environment.type, "siirl")
    scenes = 0

    def make_env(*given: Any) -> Any:
        nonlocal scenes
        env = adapter.make_env(*given)
        scenes = len(env.tokens)
        return env

    layout = lay_out(config, record.model, make_env)
    env = adapter.make_env(config, "heldout", 1, record.model.spec)
    heldout = len(env.tokens)
    env.close()
    settings = native_config.make(
        config, record.path, record.start, decisions=adapter.decisions or layout.max_decisions, heldout=heldout,
        record=layout.record,
        devices=torch.cuda.device_count(), done=record.done(),
    )  # fmt: skip
    native_config.write_inputs(settings, config, scenes, heldout)
    return settings
