"""CPU time by function, and what a step is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

Step = Callable[[], float]
"""One training step; returns the CPU seconds that were spent in our adapter."""


class Clock:
    """CPU seconds spent inside the functions that it wraps (not counted twice where one calls another in the same thread).

    timer: ``time.thread_time``, or ``time.process_time`` for functions that let other threads work.
    """

    def __init__(self, timer: Callable[[], float] = time.thread_time) -> None:
        self.seconds, self._timer = 0.0, timer
        self._here, self._adding = threading.local(), threading.Lock()

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started, depth = self._timer(), getattr(self._here, "depth", 0)
            self._here.depth = depth + 1
            try:
                return function(*args, **kwargs)
            finally:
                self._here.depth = depth
                if not depth:
                    with self._adding:
                        self.seconds += self._timer() - started

        return timed


def take(outer: Clock, inner: Clock) -> float:
    """Seconds in the adapter's calls without the model and the environment inside them; both clocks start again."""
    seconds = outer.seconds - inner.seconds
    outer.seconds = inner.seconds = 0.0
    return seconds
