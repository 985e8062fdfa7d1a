"""``launch``: from a configuration to a finished run folder, with verl doing the reinforcement learning.

In this order: what verl cannot do is refused; the warm start (imitation in NavSim) runs here, as in ``local``; the
configuration is translated, checked and written to ``verl/native.yaml``; verl trains; the result is evaluated here on all
held-out scenes.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import vla_models
from vla_models.errors import ConfigError
from vla_models.frameworks.observations import ObservationLayout
from vla_models.frameworks.probing import Layout, lay_out
from vla_models.frameworks.records import RecordLayout
from vla_models.frameworks.run_folder import FrameworkRun
from vla_models.frameworks.user_code import SOURCES, remember_sources
from vla_models.frameworks.verl import native as native_config
from vla_models.frameworks.verl import runner
from vla_models.frameworks.verl.compat import NAME, PLUGIN, check_version
from vla_models.model_registry import VLAModelRegistry
from vla_models.training.routes import PLANS
from vla_models.yaml_source import dump

if TYPE_CHECKING:
    from vla_models.config import VLAConfig
    from vla_models.inputs import VLASpec
    from vla_models.interface import VLAInterface

log = logging.getLogger(__name__)


def launch(config: VLAConfig, *, resume: str | Path | None = None) -> Path:
    """Train with verl; returns the run's folder.

    Beside what a ``local`` run writes there is ``verl/`` (verl's configuration, log, checkpoints, and the trajectories that
    were dropped) and ``checkpoints/update-<n>``, a copy of each of verl's checkpoints that ``vla-models eval`` reads.

    Args:
        config: what to do; ``framework`` is "verl".
        resume: folder of a run to go on with from its last checkpoint. ``config`` must be the run's own.

    Raises:
        ConfigError: for what verl cannot do; every problem is named before Ray is started.
        MissingDependency: if verl is not installed or another version, cannot load this package, or finds no device.
        CheckpointError: if there is no such run, or its last checkpoint is damaged.
    """
    _check(config)
    check_version()
    remember_sources(config)
    runner.load_plugin()
    record = FrameworkRun(config, resume)
    log.info("run folder: %s", record.path)
    record.prepare()
    steps, done = config.training.steps, record.done()
    evaluation: dict[str, float] = {}
    if done < steps:
        variables = _variables(record.path, done)
        path = write(_translate(config, record, variables), record.path)
        write_scenes(config, record.path, record.model.spec)
        logged = Path(variables["VERL_FILE_LOGGER_PATH"])
        evaluation = runner.run(path, record, logged, lambda step, saved: record.keep_model(step, _trained(record, saved)))
    else:
        record.keep_model(done, _trained(record, runner.checkpoints(record.path) / f"global_step_{done}"))
    return record.finish(steps, lambda: evaluation)


def _trained(record: FrameworkRun, saved: Path) -> VLAInterface:
    """The run's model with the weights of verl's checkpoint ``saved``."""
    if native_config.route_of(record.config) == "tokens":
        from vla_models.frameworks.verl.tokens import trained

        return trained(record.model, saved)  # type: ignore[no-any-return]
    record.load(runner.read_weights(saved))
    return record.model


def dry_run(config: VLAConfig) -> str:
    """Check everything, write verl's native configuration, start nothing; returns what to tell the user.

    The folder that is made holds config.yaml, the model to start from (the warm start is not part of a dry run) and
    ``verl/``.
    """
    _check(config)
    remember_sources(config)
    record = FrameworkRun(config)
    settings = _translate(config, record, _variables(record.path, 0))
    record.model.save_pretrained(record.start)
    path = write(settings, record.path)
    write_scenes(config, record.path, record.model.spec)
    warm = config.training.imitation.steps
    note = f"# The warm start ({warm} imitation steps) is not part of this: it starts from {record.start}.\n" if warm else ""
    how = f"# verl's native configuration: {path}\n{note}# Start it with verl's own launcher:\n#   {command(path, settings)}"
    return dump(settings) + how


def command(path: Path, settings: Mapping[str, Any]) -> str:
    """The command that starts a native configuration with verl's own launcher."""
    variables = settings["ray_kwargs"]["ray_init"]["runtime_env"]["env_vars"]
    before = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    folder = shlex.quote(str(path.resolve().parent))
    return f"{before} python -m verl.trainer.main_ppo --config-path {folder} --config-name {path.stem}"


def write(settings: Mapping[str, Any], run: Path) -> Path:
    """Write ``verl/native.yaml`` into the run's folder."""
    path = run / "verl" / "native.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(dump(dict(settings)), encoding="utf-8")
    return path


def write_scenes(config: VLAConfig, run: Path, spec: VLASpec) -> None:
    """Write the names of the training and held-out scenes, which verl's dataset reads."""
    adapter = VLAModelRegistry.get_env_adapter(config.environment.type, "verl")
    for part in ("train", "heldout"):
        env = adapter.make_env(config, part, 1, spec)
        data = {
            "part": part,
            "source": config.environment.type,
            "agent_name": native_config.AGENTS[native_config.route_of(config)],
            "scenes": list(env.tokens),
        }
        env.close()
        (run / "verl" / f"{part}.json").write_text(json.dumps(data), encoding="utf-8")


def _check(config: VLAConfig) -> None:
    """Everything that can be refused before the model is built and a folder is made."""
    native_config.check_config(config)
    nothing = Layout(ObservationLayout({}, {}, False), RecordLayout({"input_ids": (1,)}, 1), 1, False)
    native_config.check(
        native_config.make(config, Path(), Path(), PLANS, nothing, decisions=None, machine=_machine({})), config
    )


def _translate(config: VLAConfig, record: FrameworkRun, variables: Mapping[str, str]) -> dict[str, Any]:
    """The native configuration, checked."""
    adapter = VLAModelRegistry.get_env_adapter(config.environment.type, "verl")
    model: Any = record.model
    tokens = native_config.route_of(config) == "tokens"
    if tokens and (lacking := [name for name in native_config.WRITERS_HAVE if getattr(model, name, None) is None]):
        raise ConfigError(
            f"framework_options.vla_models.route: tokens need a model that writes its plans, with {', '.join(lacking)} "
            f"(hf_vlm has them, with policy_head type tokens); {config.model.name} can take the route record"
        )
    layout = lay_out(config, model, adapter.make_env)
    if tokens:
        model.export(record.path / "verl" / "base")
    settings = native_config.make(
        config,
        record.path,
        record.start,
        model.spec,
        layout,
        decisions=adapter.decisions,
        answer=model.grammar.most if tokens else 0,
        machine=_machine(variables),
        done=record.done(),
    )
    native_config.check(settings, config)
    return settings


def _machine(variables: Mapping[str, str]) -> native_config.Machine:
    return native_config.Machine(torch.cuda.device_count(), os.cpu_count() or 1, variables)


def _variables(run: Path, done: int) -> dict[str, str]:
    """What verl's processes are told by their environment."""
    folder = run.resolve()
    here = str(Path(vla_models.__file__).resolve().parent.parent)
    python_path = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p != here]
    modules = [name for name in os.environ.get(runner.EXTERNAL, "").split(",") if name and name != PLUGIN]
    variables = {
        runner.EXTERNAL: ",".join([*modules, PLUGIN]),
        runner.VENDOR: os.environ.get(runner.VENDOR, NAME),
        "PYTHONPATH": os.pathsep.join([here, *python_path]),
        "VERL_FILE_LOGGER_PATH": str(folder / "verl" / f"metrics-{done}.jsonl"),
        "TENSORBOARD_DIR": str(folder / "verl" / "tensorboard"),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
    }
    return variables | {
        name: os.environ[name] for name in (SOURCES, "VERL_PLATFORM", "VERL_ENGINE_DEVICE") if name in os.environ
    }
