"""Leaves this folder out where siiRL is not installed; with VLA_MODELS_REQUIRE=siirl (make test-siirl) that is an error."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from vla_models.frameworks.siirl.compat import installed

HERE = Path(__file__).parent
for place in (HERE, HERE.parent, HERE.parent.parent.parent / "examples"):
    if str(place) not in sys.path:
        sys.path.insert(0, str(place))

from runs import folder, launched  # noqa: E402, F401 - fixtures

if installed() is None:
    if "siirl" in os.environ.get("VLA_MODELS_REQUIRE", "").split(","):
        raise pytest.UsageError("siiRL is not installed in this environment; make env-siirl builds one that has it")
    collect_ignore_glob = ["test_*.py"]
