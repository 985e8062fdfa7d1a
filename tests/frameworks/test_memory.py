"""Memory of a run and all its processes (benchmarks/memory.py)."""

from __future__ import annotations

import subprocess
import sys

import parity_checks  # noqa: F401 - finds benchmarks/
import pytest

import memory  # isort: skip

CHILD = "import time; held = bytearray(96 << 20); time.sleep(1.5)"
PARENT = f"import subprocess, sys; held = bytearray(128 << 20); subprocess.run([sys.executable, '-c', {CHILD!r}], check=True)"


def test_what_processes_hold_is_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "SECONDS", 0.1)
    assert 224 < memory.run([sys.executable, "-c", PARENT]) < 300


def test_a_command_that_fails_is_said() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        memory.run([sys.executable, "-c", "raise SystemExit(3)"])
