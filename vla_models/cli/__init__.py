"""``vla-models``: one module a group of commands. Everything heavy is imported inside the command that needs it."""

from vla_models.cli import installed, make, train
from vla_models.cli.app import app, main

__all__ = ["app", "installed", "main", "make", "train"]
