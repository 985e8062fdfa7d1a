"""What the tests of real trainers ask of a run that has ended (tests/frameworks/<framework>/test_<framework>_run.py)."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file


def finished(done: subprocess.CompletedProcess[str]) -> Path:
    """The folder of a run that a ``small_run.py`` started and that ended well."""
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return Path(done.stdout.strip().splitlines()[-1].removeprefix("RUN "))


def weights(folder: Path) -> dict[str, Any]:
    """All of a checkpoint, the value head included."""
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def changed(a: dict[str, Any], b: dict[str, Any]) -> float:
    """The largest difference of two checkpoints' weights."""
    return max(float(np.abs(a[name].astype(np.float64) - b[name]).max()) for name in a if a[name].size)
