"""Leaves this folder out where AReaL is not installed; with VLA_MODELS_REQUIRE=areal (make test-areal) that is an error."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from vla_models.frameworks.areal.compat import installed

HERE = Path(__file__).parent
for folder in (HERE, HERE.parent, HERE.parents[2] / "examples"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

if installed() is None:
    if "areal" in os.environ.get("VLA_MODELS_REQUIRE", "").split(","):
        raise pytest.UsageError("AReaL is not installed in this environment; make env-areal builds one that has it")
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session", autouse=True)
def alone() -> None:
    """One process, as AReaL's SPMD mode starts it."""
    os.environ |= {"AREAL_SPMD_MODE": "1", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"TORCHDYNAMO_DISABLE": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        os.environ["MASTER_PORT"] = str(s.getsockname()[1])
