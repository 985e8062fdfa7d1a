"""Errors that a user can act on. Each message names the thing and says what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class VLAModelsError(Exception):
    """Base of all errors that this package raises on purpose."""


class ConfigError(VLAModelsError, ValueError):
    """A configuration is wrong; the message has the YAML path, the value and what is allowed."""


class RegistryError(VLAModelsError, KeyError):
    """A name is unknown or taken; the message lists what exists."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0]) if self.args else ""


class SceneError(VLAModelsError, ValueError):
    """A scene, a map or a file with them cannot be used; the message names it."""


class PlanError(VLAModelsError, ValueError):
    """A plan has the wrong shape or is not finite; the message names the rows."""


class PromptError(VLAModelsError, ValueError):
    """A prompt is longer than the model reads; the message has both lengths."""


class CheckpointError(VLAModelsError, RuntimeError):
    """A checkpoint is missing, corrupt or belongs to another model."""


class ImageError(VLAModelsError, ValueError):
    """An image is missing or cannot be read."""


class NotImplementedByModel(VLAModelsError, NotImplementedError):
    """A model lacks a method that was asked for; the message names the class and the method."""


class MissingDependency(VLAModelsError, ImportError):
    """An optional package is not installed; the message has the command that installs it."""


class DivergenceError(VLAModelsError, ArithmeticError):
    """Training has produced a number that is not finite, or probabilities that do not replay; the message has the step."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """'; known: a, b, c. Did you mean a?' for an unknown ``name`` (the question only where something is near)."""
    names = sorted(known)
    listed = ", ".join(names) if names else "none"
    near = difflib.get_close_matches(name, names, n=1)
    return f"known: {listed}." + (f" Did you mean {near[0]!r}?" if near else "")
