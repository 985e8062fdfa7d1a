"""Leaves this folder out where verl is not installed; with VLA_MODELS_REQUIRE=verl (make test-verl) that is an error."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from vla_models.frameworks.verl.compat import installed

HERE = Path(__file__).parent
for place in (HERE, HERE.parent):
    if str(place) not in sys.path:
        sys.path.insert(0, str(place))

from runs import folder, launched  # noqa: E402, F401 - fixtures

if installed() is None:
    if "verl" in os.environ.get("VLA_MODELS_REQUIRE", "").split(","):
        raise pytest.UsageError("verl is not installed in this environment; make env-verl builds one that has it")
    collect_ignore_glob = ["test_*.py"]
else:
    import cpu_shim  # noqa: F401
