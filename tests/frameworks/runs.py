"""The real runs that the tests of trainers (tests/frameworks/<framework>/test_<framework>_run.py) are about."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def launched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Done]]]:
    """The runs of a module's ``STARTS``, by the name of the test that is about them: those of the chosen tests alone, started
    two at a time, because most of a launch is a framework's dozen processes importing torch, one after another."""
    starts: dict[str, Callable[[Path], Done]] = request.module.STARTS
    chosen = {item.name for item in request.session.items}
    with ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(start, tmp_path_factory.mktemp("run")) for name, start in starts.items() if name in chosen}


@pytest.fixture
def folder(launched: dict[str, Future[Done]], request: pytest.FixtureRequest) -> Path:
    """Of the test's run, which has ended well."""
    return finished(launched[request.node.name].result())


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
