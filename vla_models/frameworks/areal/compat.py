"""Which AReaL is installed. Nothing heavy is imported: AReaL takes many seconds."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Final

from vla_models.errors import MissingDependency

TESTED: Final = "1.0.4"
"""The version that our tests run with; others differ in what is subclassed here."""


def installed() -> str | None:
    """Version of the installed AReaL, or None."""
    try:
        return version("areal")
    except PackageNotFoundError:
        return None


def require() -> None:
    """Raise ``MissingDependency`` unless the AReaL that is installed is the one that this package was tested with."""
    found = installed()
    if found is None:
        raise MissingDependency("framework: areal is not installed in this environment; make env-areal builds one that has it")
    if found != TESTED:
        raise MissingDependency(
            f"framework: areal {found} is installed, and this package knows the inside of {TESTED}; make env-areal builds an "
            "environment with that"
        )
