"""``vla-models list`` and ``vla-models doctor``: what is there, what goes together, what is missing."""

from __future__ import annotations

from typing import Annotated

import typer

from vla_models.cli.app import app, console

_STATUS = {"ok": "[green]✓[/]", "missing": "[red]✗[/]", "broken": "[red]✗[/]", "optional": "[dim]–[/]"}


@app.command("list")
def list_all() -> None:
    """Show models, frameworks and environments, which go together, and what is missing."""
    from rich.table import Table

    from vla_models.config import BACKENDS
    from vla_models.model_registry import VLAModelRegistry

    terminal = console()
    models = Table("model", "class", "evaluate", "train", title="Models", title_justify="left", box=None, header_style="bold")
    for name in VLAModelRegistry.list_models():
        try:
            cls = VLAModelRegistry.get_model(name)
            lacking = [cls.missing("evaluated"), cls.missing("trained")]
            cells = ["[green]✓[/]" if not lack else f"[red]✗[/] needs {', '.join(lack)}" for lack in lacking]
            models.add_row(name, f"{cls.__module__}.{cls.__name__}", *cells)
        except ImportError as e:
            models.add_row(name, "[red]cannot be imported[/]", str(e), "")
    terminal.print(models, "")

    environments = sorted({*BACKENDS, *VLAModelRegistry.list_env_adapters()})
    frameworks = list(dict.fromkeys([*VLAModelRegistry.list_frameworks(), *VLAModelRegistry.list_adapters()]))
    pairs = Table(
        "framework", *environments, title="Frameworks × environments", title_justify="left", box=None, header_style="bold"
    )
    for framework in frameworks:
        pairs.add_row(framework, *(_pair(framework, env) for env in environments))
    terminal.print(pairs)
    for plugin, error in VLAModelRegistry.load_plugins().items():
        terminal.print(f"\n[red]✗[/] plugin {plugin}: {error}")


@app.command()
def doctor(quick: Annotated[bool, typer.Option("--quick", help="Only look, run nothing.")] = False) -> None:
    """Show what is installed, what works, and the command that mends the rest. Exit code 1 if something needed is missing."""
    from rich.markup import escape

    from vla_models.doctor import examine

    terminal = console()
    group, bad = "", 0
    for check in examine(quick):
        if check.group != group:
            group = check.group
            terminal.print(f"\n[bold]{group}[/]")
        bad += check.status in ("missing", "broken")
        terminal.print(f"  {_STATUS[check.status]} {check.name:<18} {escape(check.detail)}", soft_wrap=True, highlight=False)
        if check.fix:
            terminal.print(f"    [yellow]→ {escape(check.fix)}[/]", soft_wrap=True, highlight=False)
    terminal.print(f"\n[bold red]{bad} to mend[/]" if bad else "\n[bold green]all well[/]")
    if bad:
        raise typer.Exit(1)


def _pair(framework: str, env: str) -> str:
    """Whether ``framework`` can run ``env`` in this installation, and what is missing if not."""
    import importlib.util

    from vla_models.doctor import FRAMEWORK_PACKAGES, installed_version
    from vla_models.frameworks import can_start
    from vla_models.model_registry import VLAModelRegistry

    if not can_start(framework):
        return "[dim]– not in this version[/]"
    if framework in FRAMEWORK_PACKAGES and installed_version(FRAMEWORK_PACKAGES[framework]) is None:
        return f"[yellow]{framework} is not installed: make env-{framework}[/]"
    known = framework in VLAModelRegistry.list_env_adapters().get(env, [])
    if known or (framework == "local" and importlib.util.find_spec(f"vla_models.envs.{env}") is not None):
        return "[green]✓[/]"
    return "[dim]– no adapter[/]"
