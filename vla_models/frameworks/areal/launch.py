"""``launch``: from a configuration to a finished run folder, with AReaL doing the reinforcement learning.

In this order: what AReaL cannot do is refused; the warm start (imitation in NavSim) runs here, as in ``local``; the model is
tried on a few scenes; the configuration is translated, checked and written to ``areal/native.yaml``; AReaL trains; the result
is evaluated here on all held-out scenes.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import vla_models
from vla_models.files import atomic_path
from vla_models.frameworks.areal import compat, runner
from vla_models.frameworks.areal import native as native_config
from vla_models.frameworks.probing import lay_out
from vla_models.frameworks.run_folder import FrameworkRun
from vla_models.frameworks.user_code import SOURCES, remember_sources
from vla_models.interface import VLAForDriving
from vla_models.model_registry import VLAModelRegistry
from vla_models.training.checkpoint import data_order
from vla_models.yaml_source import dump

if TYPE_CHECKING:
    from vla_models.config import VLAConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Translated:
    """What AReaL is started with."""

    native: dict[str, Any]
    train_scenes: list[str]
    """In the order in which they are driven."""
    heldout_scenes: list[str]
    """Empty where AReaL does not evaluate."""


def launch(config: VLAConfig, *, resume: str | Path | None = None) -> Path:
    """Train with AReaL; returns the run's folder.

    Beside what a ``local`` run writes there is ``areal/`` (AReaL's configuration, TensorBoard and checkpoints) and
    ``checkpoints/update-<n>``, a copy of each of AReaL's checkpoints that ``vla-models eval`` reads.

    Args:
        config: what to do; ``framework`` is "areal".
        resume: folder of a run to go on with from its last checkpoint. ``config`` must be the run's own.

    Raises:
        ConfigError: for what AReaL cannot do; every problem is named before anything is started.
        MissingDependency: if AReaL is not installed, or in another version.
        CheckpointError: if there is no such run, or its last checkpoint is damaged.
        SceneError: if nothing can be learned, because every group of episodes is rejected.
    """
    _check(config)
    compat.require()
    remember_sources(config)
    record = FrameworkRun(config, resume)
    log.info("run folder: %s", record.path)
    if native_config.route(config) == "record":
        runner.adopt(record)
    record.prepare()
    steps, done = config.training.steps, record.done()
    evaluation: dict[str, float] = {}
    if done < steps:
        made = _translate(config, record)
        write(made.native, record.path)
        evaluation = runner.run(made.native, record, made.train_scenes, made.heldout_scenes)
    else:
        record.replace_model(VLAForDriving.from_pretrained(record.path / "checkpoints" / f"update-{done:07d}"))
    return record.finish(steps, lambda: evaluation)


def dry_run(config: VLAConfig) -> str:
    """Check everything, write AReaL's native configuration, start nothing; returns what to tell the user.

    The folder that is made holds config.yaml, the model to start from (the warm start is not part of a dry run) and
    ``areal/native.yaml``.
    """
    _check(config)
    remember_sources(config)
    record = FrameworkRun(config)
    record.model.save_pretrained(record.start)
    made = _translate(config, record)
    if compat.installed() is not None:
        runner.structured(made.native)
    path = write(made.native, record.path)
    warm = config.training.imitation.steps
    note = f"# The warm start ({warm} imitation steps) is not part of this: it starts from {record.start}.\n" if warm else ""
    return (
        dump(made.native)
        + f"# AReaL's native configuration: {path}\n{note}# Start it, as it is or changed:\n#   {command(path)}"
    )


def command(path: Path) -> str:
    """The command that starts a native configuration."""
    variables = {"PYTHONPATH": str(Path(vla_models.__file__).resolve().parent.parent)}
    if os.environ.get(SOURCES, "[]") != "[]":
        variables[SOURCES] = os.environ[SOURCES]
    before = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    return f"{before} python -m vla_models.frameworks.areal.start {shlex.quote(str(path.resolve()))}"


def write(settings: Mapping[str, Any], run: Path) -> Path:
    """Write ``areal/native.yaml`` into the run's folder."""
    path = run / "areal" / "native.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(dump(dict(settings)), encoding="utf-8")
    return path


def _check(config: VLAConfig) -> None:
    """Everything that can be refused before the model is built and a folder is made."""
    native_config.check_config(config)
    native_config.check(native_config.make(config, Path(), Path(), Path(), torch.cuda.device_count()))


def _translate(config: VLAConfig, record: FrameworkRun) -> Translated:
    """The native configuration, checked, and the scenes; also writes what the workflow needs."""
    adapter = VLAModelRegistry.get_env_adapter(config.environment.type, "areal")
    tokens: list[str] = []

    def make(*args: Any) -> Any:
        env = adapter.make_env(*args)
        tokens[:] = env.tokens
        return env

    layout = lay_out(config, record.model, make)
    folder = record.path / "areal"
    start, tokenizer = record.start, folder / "tokenizer"
    if native_config.route(config) == "tokens":
        start = tokenizer = _plain(config, record)
    settings = native_config.make(config, record.path, start, tokenizer, torch.cuda.device_count())
    native_config.check(settings)
    spec = record.model.spec
    ours = settings["vla"]
    folder.mkdir(exist_ok=True)
    what = {
        "config": str((record.path / "config.yaml").resolve()),
        "route": ours["route"],
        "record": layout.record.to_dict(),
        "spec": {key: value for key, value in asdict(spec).items() if key in ("horizon", "dt", "controller")},
        "environments": {key: ours[key] for key in ("environments", "threads", "limit")},
        "model": str((folder / "model" if ours["route"] == "tokens" else record.start).resolve()),
    }
    (folder / runner.SETTINGS).write_text(json.dumps(what, indent=1) + "\n", encoding="utf-8")
    each = config.training.scenes_per_step
    order = [i for step in range(config.training.steps) for i in data_order(config.seed, "rl", step, len(tokens), each)]
    heldout: list[str] = []
    if settings["valid_dataset"] is not None:
        env = adapter.make_env(config, "heldout", 1, spec)
        heldout = list(env.tokens)
        env.close()
    made = Translated(settings, [tokens[i] for i in order], heldout)
    scenes = {"train": made.train_scenes, "heldout": made.heldout_scenes}
    (folder / runner.SCENES).write_text(json.dumps(scenes) + "\n", encoding="utf-8")
    return made


def _plain(config: VLAConfig, record: FrameworkRun) -> Path:
    """The checkpoint that the token route starts from; the run's model is the one around it from now on."""
    from vla_models.frameworks.areal import tokens

    plain = record.path / "areal" / "start"
    if not plain.exists():
        with atomic_path(plain) as temporary:
            tokens.export(record.model, temporary)
    record.replace_model(tokens.adopt(config, plain))
    record.model.save_pretrained(record.path / "areal" / "model")
    return plain
