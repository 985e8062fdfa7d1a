"""``vla-models train`` and ``vla-models eval``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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


@app.command(
    "eval",
    epilog="Examples:\n\n"
    "  vla-models eval runs/local-navsim-grpo-20260101-120000\n\n"
    "  vla-models eval my_checkpoint environment.heldout_scenes=500 --output scores.json",
)
def evaluate(
    path: Annotated[
        Path, typer.Argument(metavar="RUN_OR_CHECKPOINT", help="A run's folder, or one that save_pretrained wrote.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Replace configuration values.", show_default=False)
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file with the environment; left out, the run's own, else the defaults.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Also write the means as JSON into this file.")] = None,
) -> None:
    """Score a model on the held-out scenes, beside constant velocity and PDM-Closed."""
    checkpoint = _checkpoint_in(path)
    file = config or next((p for p in (path / "config.yaml", path.parent.parent / "config.yaml") if p.is_file()), None)
    settings = read_config(file, overrides or [])
    log_to_terminal()

    from vla_models.interface import VLAForDriving
    from vla_models.training.evaluate import BASELINES, evaluate_baseline, evaluate_model
    from vla_models.training.scenes import build_scenes

    model = VLAForDriving.from_pretrained(checkpoint).eval()
    model.require("evaluated")
    scenes = build_scenes(settings, "heldout")
    threads = settings.training.threads or len(os.sched_getaffinity(0))
    options: dict[str, Any] = {"version": settings.environment.score_version, "threads": threads}
    results = {name: evaluate_baseline(name, scenes, **options).means() for name in BASELINES}
    results[str(checkpoint)] = evaluate_model(model, scenes, **options).means()
    _print_scores(results, len(scenes))
    if output is not None:
        from vla_models.files import atomic_path

        with atomic_path(output) as temporary:
            temporary.write_text(json.dumps({"scenes": len(scenes), "means": results}, indent=2) + "\n", encoding="utf-8")


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


def _checkpoint_in(path: Path) -> Path:
    """The model checkpoint that ``path`` means: itself, or the newest of a run (after RL, else after imitation)."""
    from vla_models.pretrained import is_checkpoint, read_config

    for folder in (path, path / "checkpoints" / "model", path / "checkpoints" / "imitation"):
        if is_checkpoint(folder):
            return folder
    if (path / "config.yaml").is_file():
        raise CheckpointError(f"run {str(path)!r} has no finished model yet; go on with it: vla-models train --resume {path}")
    read_config(path)  # says what is wrong with it
    raise CheckpointError(f"{str(path)!r} holds no model")


def _dry_run(config: VLAConfig) -> None:
    """Build the model, check that it and the configuration fit, print the resolved YAML."""
    from vla_models.model_registry import create_model
    from vla_models.yaml_source import dump

    model = create_model(config.model.name, model_path=config.model.checkpoint_path, **config.model.arguments())
    config.check_model(model)
    typer.echo(dump(config.to_dict()), nl=False)
    parameters = sum(p.numel() for p in model.parameters())
    plans = config.training.scenes_per_step * config.algorithm.group_size
    typer.echo(
        f"# {config.model.name}: {parameters:,} parameters; {config.training.steps} updates of {plans} plans. Not started."
    )


def _print_scores(results: dict[str, dict[str, float]], scenes: int) -> None:
    from rich.table import Table

    names = list(next(iter(results.values())))
    table = Table("", *names, title=f"held-out means over {scenes} scenes", title_justify="left", box=None, header_style="bold")
    for label, means in results.items():
        table.add_row(label, *(f"{means[name]:.3f}" for name in names))
    console().print(table)
