"""What the tests of real trainers ask of a run that has ended (tests/frameworks/<framework>/test_<framework>_run.py)."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

Done = subprocess.CompletedProcess[str]


@contextmanager
def two_at_a_time(
    starts: Mapping[str, Callable[[Path], Done]], request: pytest.FixtureRequest, folders: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Done]]]:
    """Runs by the name of the test that is about them, those of the chosen tests alone, started two at a time: most of a
    launch is a framework's dozen processes importing torch, one after another."""
    chosen = {item.name for item in request.session.items}
    with ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(start, folders.mktemp("run")) for name, start in starts.items() if name in chosen}


def finished(done: Done) -> Path:
    """The folder of a run that a ``small_run.py`` started and that ended well."""
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return Path(done.stdout.strip().splitlines()[-1].removeprefix("RUN "))


def weights(folder: Path) -> dict[str, Any]:
    """All of a checkpoint, the value head included."""
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def changed(a: dict[str, Any], b: dict[str, Any]) -> float:
    """The largest difference of two checkpoints' weights."""
    return max(float(np.abs(a[name].astype(np.float64) - b[name]).max()) for name in a if a[name].size)
