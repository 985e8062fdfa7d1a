"""The ``vla-models`` application itself: its entry point and what all commands share."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from vla_models import __version__
from vla_models.errors import VLAModelsError

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    name="vla-models",
    help="Bring one driving VLA, train it online with any of the RL frameworks.",
    epilog="Start with:\n\n  vla-models doctor\n\n  vla-models train configs/navsim_quick.yaml",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
)


def main() -> None:
    """Entry point: an error that a user can act on is one message and exit code 2, never a traceback."""
    try:
        app()
    except VLAModelsError as e:
        from rich.markup import escape

        console(stderr=True).print(f"[bold red]error[/] {escape(str(e))}", soft_wrap=True, highlight=False)
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


def console(stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr)


def log_to_terminal() -> None:
    """Show the package's progress messages."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("vla_models").setLevel(logging.INFO)
