"""``vla-models``: train, eval, list, doctor. Everything heavy is imported inside the command that needs it."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vla_models import __version__
from vla_models.errors import CheckpointError, ConfigError, VLAModelsError

if TYPE_CHECKING:
    from rich.console import Console

    from vla_models.config import VLAConfig

app = typer.Typer(
    name="vla-models",
    help="Bring one driving VLA, train it online with any of the RL frameworks.",
    epilog="Start with:\n\n  vla-models doctor\n\n  vla-models train configs/navsim_quick.yaml",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
)

_STATUS = {"ok": "[green]✓[/]", "missing": "[red]✗[/]", "broken": "[red]✗[/]", "optional": "[dim]–[/]"}


def main() -> None:
    """Entry point: an error that a user can act on is one message and exit code 2, never a traceback."""
    try:
        app()
    except VLAModelsError as e:
        from rich.markup import escape

        _console(stderr=True).print(f"[bold red]error[/] {escape(str(e))}", soft_wrap=True, highlight=False)
        sys.exit(2)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


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
    from vla_models.frameworks import get_launcher

    file, changes = _config_and_overrides(config, overrides)
    if file is None:
        if resume is None:
            raise ConfigError("name a configuration: vla-models train configs/navsim_quick.yaml, or a run: --resume RUN")
        file = _run_config(resume)
    settings = _read_config(file, changes)
    launch = get_launcher(settings.framework)
    if dry_run:
        _dry_run(settings)
        return
    _log_to_terminal()
    try:
        run = launch(settings, resume=resume)
    except KeyboardInterrupt:
        _console(stderr=True).print("\nstopped; [bold]vla-models train --resume RUN[/] goes on from the last checkpoint")
        raise typer.Exit(130) from None
    console = _console()
    console.print(f"run     {run}", soft_wrap=True, highlight=False)
    if (run / "report.html").exists():
        console.print(f"report  {run / 'report.html'}", soft_wrap=True, highlight=False)


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
    settings = _read_config(file, overrides or [])
    _log_to_terminal()

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


@app.command("list")
def list_all() -> None:
    """Show models, frameworks and environments, which go together, and what is missing."""
    from rich.table import Table

    from vla_models.config import BACKENDS, FRAMEWORKS
    from vla_models.model_registry import VLAModelRegistry

    console = _console()
    models = Table("model", "class", "evaluate", "train", title="Models", title_justify="left", box=None, header_style="bold")
    for name in VLAModelRegistry.list_models():
        try:
            cls = VLAModelRegistry.get_model(name)
            lacking = [cls.missing("evaluated"), cls.missing("trained")]
            cells = ["[green]✓[/]" if not lack else f"[red]✗[/] needs {', '.join(lack)}" for lack in lacking]
            models.add_row(name, f"{cls.__module__}.{cls.__name__}", *cells)
        except ImportError as e:
            models.add_row(name, "[red]cannot be imported[/]", str(e), "")
    console.print(models, "")

    environments = sorted({*BACKENDS, *VLAModelRegistry.list_env_adapters()})
    frameworks = list(dict.fromkeys([*FRAMEWORKS, *VLAModelRegistry.list_adapters()]))
    pairs = Table(
        "framework", *environments, title="Frameworks × environments", title_justify="left", box=None, header_style="bold"
    )
    for framework in frameworks:
        pairs.add_row(framework, *(_pair(framework, env) for env in environments))
    console.print(pairs)
    for plugin, error in VLAModelRegistry.load_plugins().items():
        console.print(f"\n[red]✗[/] plugin {plugin}: {error}")


@app.command()
def doctor(quick: Annotated[bool, typer.Option("--quick", help="Only look, run nothing.")] = False) -> None:
    """Show what is installed, what works, and the command that mends the rest. Exit code 1 if something needed is missing."""
    from rich.markup import escape

    from vla_models.doctor import examine

    console = _console()
    group, bad = "", 0
    for check in examine(quick):
        if check.group != group:
            group = check.group
            console.print(f"\n[bold]{group}[/]")
        bad += check.status in ("missing", "broken")
        console.print(f"  {_STATUS[check.status]} {check.name:<18} {escape(check.detail)}", soft_wrap=True, highlight=False)
        if check.fix:
            console.print(f"    [yellow]→ {escape(check.fix)}[/]", soft_wrap=True, highlight=False)
    console.print(f"\n[bold red]{bad} to mend[/]" if bad else "\n[bold green]all well[/]")
    if bad:
        raise typer.Exit(1)


def _console(stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr)


def _log_to_terminal() -> None:
    """Show the package's progress messages."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("vla_models").setLevel(logging.INFO)


def _config_and_overrides(config: str | None, overrides: list[str] | None) -> tuple[Path | None, list[str]]:
    """With --resume the file may be left out, and then the first override stands in its place."""
    changes = list(overrides or [])
    if config is not None and "=" in config and not Path(config).exists():
        return None, [config, *changes]
    return (None if config is None else Path(config)), changes


def _read_config(file: Path | None, overrides: list[str]) -> VLAConfig:
    from vla_models.config import VLAConfig

    return VLAConfig.from_dict({}, overrides) if file is None else VLAConfig.from_yaml(file, overrides)


def _run_config(run: Path) -> Path:
    file = run / "config.yaml"
    if not file.is_file():
        raise CheckpointError(f"{str(run)!r} is no run folder: it has no config.yaml")
    return file


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
    _console().print(table)


def _pair(framework: str, env: str) -> str:
    """Whether ``framework`` can run ``env`` in this installation, and what is missing if not."""
    import importlib.util

    from vla_models.doctor import FRAMEWORK_PACKAGES, installed_version
    from vla_models.frameworks import launch_module
    from vla_models.model_registry import VLAModelRegistry

    if launch_module(framework) is None:
        return "[dim]– not in this version[/]"
    if framework != "local" and installed_version(FRAMEWORK_PACKAGES.get(framework, framework)) is None:
        return f"[yellow]{framework} is not installed: make env-{framework}[/]"
    known = framework in VLAModelRegistry.list_env_adapters().get(env, [])
    if known or (framework == "local" and importlib.util.find_spec(f"vla_models.envs.{env}") is not None):
        return "[green]✓[/]"
    return "[dim]– no adapter[/]"
