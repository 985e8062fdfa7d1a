"""Skips this folder where RLinf is not installed; ``make test-rlinf`` sets VLA_MODELS_REQUIRE=rlinf, and then it must be
there."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
for folder in (HERE, HERE.parent):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

INSTALLED = importlib.util.find_spec("rlinf") is not None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mine = [item for item in items if HERE in item.path.parents]
    if INSTALLED or not mine:
        return
    if "rlinf" in os.environ.get("VLA_MODELS_REQUIRE", "").split(","):
        raise pytest.UsageError("RLinf is not installed in this environment; make env-rlinf builds one that has it")
    for item in mine:
        if item.get_closest_marker("without_rlinf") is None:
            item.add_marker(pytest.mark.skip(reason="needs RLinf: make test-rlinf"))


@pytest.fixture(autouse=True)
def on_cpu(request: pytest.FixtureRequest) -> None:
    """RLinf's metric code asks for a device, too."""
    if INSTALLED and request.node.get_closest_marker("without_rlinf") is None:
        from cpu_shim import use_cpu

        use_cpu()
