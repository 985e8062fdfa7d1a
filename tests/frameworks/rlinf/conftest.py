"""Leaves this folder out where RLinf is not installed; with VLA_MODELS_REQUIRE=rlinf (make test-rlinf) that is an error."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from vla_models.frameworks.rlinf.compat import installed

HERE = Path(__file__).parent
for place in (HERE, HERE.parent, HERE.parent.parent.parent / "examples"):
    if str(place) not in sys.path:
        sys.path.insert(0, str(place))

from runs import folder, launched  # noqa: E402, F401 - fixtures

if installed() is None:
    if "rlinf" in os.environ.get("VLA_MODELS_REQUIRE", "").split(","):
        raise pytest.UsageError("RLinf is not installed in this environment; make env-rlinf builds one that has it")
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def on_cpu() -> None:
    """RLinf's metric code asks for a device, too."""
    from cpu_shim import use_cpu

    use_cpu()
