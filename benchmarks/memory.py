"""Memory of a process and of all that it started, while it runs."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Sequence
from typing import Final

import psutil

SECONDS: Final = 5.0
"""Between two looks: short beside a run, and rare enough to cost it nothing."""


def run(command: Sequence[str]) -> float:
    """Run a command to its end and return the most memory that it and its descendants held together, in MiB.

    Pages that several processes share count once (PSS, Linux). Looked at every ``SECONDS``: a shorter peak can be missed.
    Raises ``subprocess.CalledProcessError`` if the command fails.
    """
    with subprocess.Popen(command) as process:
        most, ended = 0.0, threading.Event()

        def watch() -> None:
            nonlocal most
            while not ended.wait(SECONDS):
                most = max(most, held(process.pid))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        code = process.wait()
        ended.set()
        watcher.join()
    if code:
        raise subprocess.CalledProcessError(code, command)
    return most


def held(pid: int) -> float:
    """MiB that a process and its descendants hold now; those that end meanwhile count 0."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += one.memory_full_info().pss
    return total / 2**20
