"""``vla-models``: one module a group of commands. Everything heavy is imported inside the command that needs it."""

from vla_models.cli import evaluate, installed, make, scenes, score, train, view
from vla_models.cli.app import app, main

__all__ = ["app", "evaluate", "installed", "main", "make", "scenes", "score", "train", "view"]
