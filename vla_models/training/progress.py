"""A progress bar for people; silence where nobody looks (no terminal)."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Bar:
    """One phase's progress: done and total steps, time left, and a note such as the mean reward.

    Args:
        title: what is going on.
        total: steps in all.
        done: steps that an earlier run did already.
    """

    def __init__(self, title: str, total: int, done: int = 0) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._task = self._progress.add_task(title, total=total, completed=done, note="")

    def __call__(self, done: int, total: int | None = None) -> None:
        """Set the number of steps done (the form in which scene generation reports)."""
        self._progress.update(self._task, completed=done, total=total)

    def advance(self, note: str = "") -> None:
        """One step more."""
        self._progress.update(self._task, advance=1, note=note)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()
