"""``vla-models train`` and ``vla-models sft``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vla_models.cli.app import app, console, log_to_terminal
from vla_models.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from vla_models.config import VLAConfig


@app.command(
    epilog="Examples:\n\n"
    "  vla-models train configs/navsim_quick.yaml\n\n"
    "  vla-models train my.yaml seed=1 training.optimizer.lr=1e-4\n\n"
    "  vla-models train --resume runs/local-navsim-grpo-20260101-120000"
)
def train(
    config: Annotated[str | None, typer.Argument(help="YAML file; not needed with --resume.", show_default=False)] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Replace values of the file.", show_default=False)
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run folder, exactly where it stopped.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the resolved YAML, start nothing.")
    ] = False,
) -> None:
    """Train a model online, and write a report.

    The run's folder gets config.yaml, metrics.jsonl, tensorboard/, checkpoints/, summary.json and report.html.
    """
    from vla_models.frameworks import get_dry_run, get_launcher

    file, changes = _config_and_overrides(config, overrides)
    if file is None:
        if resume is None:
            raise ConfigError("name a configuration: vla-models train configs/navsim_quick.yaml, or a run: --resume RUN")
        file = run_config(resume)
    settings = read_config(file, changes)
    launch = get_launcher(settings.framework)
    if dry_run:
        own = get_dry_run(settings.framework)
        if own is None:
            _dry_run(settings)
        else:
            typer.echo(own(settings))
        return
    log_to_terminal()
    try:
        run = launch(settings, resume=resume)
    except KeyboardInterrupt:
        console(stderr=True).print("\nstopped; [bold]vla-models train --resume RUN[/] goes on from the last checkpoint")
        raise typer.Exit(130) from None
    terminal = console()
    terminal.print(f"run     {run}", soft_wrap=True, highlight=False)
    if (run / "report.html").exists():
        terminal.print(f"report  {run / 'report.html'}", soft_wrap=True, highlight=False)


@app.command(
    epilog="Examples:\n\n"
    "  vla-models sft configs/navsim_quick.yaml\n\n"
    "  vla-models sft my.yaml --store my_scenes training.imitation.steps=2000"
)
def sft(
    config: Annotated[str | None, typer.Argument(help="YAML file, the same as for train.", show_default=False)] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Replace values of the file.", show_default=False)
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="A scene store to imitate on, instead of the scenes that the file describes.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run folder, exactly where it stopped.")] = None,
) -> None:
    """Imitate the expert plans of a scene store: a model for reinforcement learning to start from.

    The run's folder is that of train, without an RL part; its checkpoint is what model.checkpoint_path takes.
    """
    from vla_models.training.launch import launch

    file, changes = _config_and_overrides(config, overrides)
    if file is None and resume is not None:
        file = run_config(resume)
    else:
        changes = ["name=sft", *changes]
    if store is not None:
        changes.append(f"environment.train_store={store.resolve()}")
    settings = read_config(file, [*changes, "framework=local", "training.steps=0"])
    if settings.training.imitation.steps == 0:
        raise ConfigError("training.imitation.steps: 0 steps of imitation are none; vla-models sft needs some")
    log_to_terminal()
    run = launch(settings, resume=resume)
    terminal = console()
    model = run / "checkpoints" / "model"
    for name, value in (("run", run), ("report", run / "report.html"), ("model", model)):
        terminal.print(f"{name:<8}{value}", soft_wrap=True, highlight=False)
    terminal.print(
        f"RL from it: vla-models train CONFIG model.checkpoint_path={model} training.imitation.steps=0",
        soft_wrap=True,
        highlight=False,
    )


def _config_and_overrides(config: str | None, overrides: list[str] | None) -> tuple[Path | None, list[str]]:
    """With --resume the file may be left out, and then the first override stands in its place."""
    changes = list(overrides or [])
    if config is not None and "=" in config and not Path(config).exists():
        return None, [config, *changes]
    return (None if config is None else Path(config)), changes


def run_config(run: Path) -> Path:
    file = run / "config.yaml"
    if not file.is_file():
        raise CheckpointError(f"{str(run)!r} is no run folder: it has no config.yaml")
    return file


def read_config(file: Path | None, overrides: list[str]) -> VLAConfig:
    from vla_models.config import VLAConfig

    return VLAConfig.from_dict({}, overrides) if file is None else VLAConfig.from_yaml(file, overrides)


def _dry_run(config: VLAConfig) -> None:
    """Build the model, check that it and the configuration fit, print the resolved YAML."""
    from vla_models.model_registry import create_model
    from vla_models.yaml_source import dump

    model = create_model(config.model.name, model_path=config.model.checkpoint_path, **config.model.arguments())
    config.check_model(model)
    typer.echo(dump(config.to_dict()), nl=False)
    parameters = sum(p.numel() for p in model.parameters())
    plans = config.training.scenes_per_step * config.algorithm.group_size
    if config.environment.type == "bench2drive" and config.algorithm.name == "ppo":  # grpo samples the first of each row
        plans *= config.training.decisions_per_step
    typer.echo(
        f"# {config.model.name}: {parameters:,} parameters; {config.training.steps} updates of {plans} plans. Not started."
    )
