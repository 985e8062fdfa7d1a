"""Blocking work of many coroutines in a bounded number of threads.

Unlike ``concurrent.futures.ThreadPoolExecutor``: a job that never ends does not keep its thread's place (another thread takes
it) and does not keep the process from ending, and a time limit counts from when a job begins, not from when it was asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from vla_models.errors import VLAModelsError


class EpisodeTimeout(VLAModelsError, TimeoutError):
    """A call into an environment took longer than it may; the message has the limit."""


class Job:
    """One call. ``future`` has its result; ``started`` is when it began (``time.monotonic``), None before."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call
        self.future: Future[Any] = Future()
        self.started: float | None = None
        self.gave_up = False
        """Nobody waits for it any more, and its thread has been replaced."""

    def run(self) -> None:
        """Do it (in a worker's thread), unless it was cancelled."""
        if not self.future.set_running_or_notify_cancel():
            return
        self.started = time.monotonic()
        try:
            result = self.call()
        except BaseException as e:
            self.future.set_exception(e)
        else:
            self.future.set_result(result)


class Threads:
    """At most ``count`` jobs at a time; the rest wait in order. Threads are daemons and are made when they are needed."""

    def __init__(self, count: int, name: str = "areal-env") -> None:
        self.count, self.name = count, name
        self.lost = 0
        """Threads that were replaced because their job did not end."""
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self.alive = self._busy = 0  # threads; jobs that are asked for and not done

    def submit(self, call: Callable[[], Any]) -> Job:
        """Have ``call`` done in a thread."""
        job = Job(call)
        with self._lock:
            self._busy += 1
            if self.alive < min(self.count, self._busy):
                self._start()
        self._jobs.put(job)
        return job

    async def wait(self, job: Job, limit: float) -> Any:
        """Result of a job that was submitted here; ``EpisodeTimeout`` if it runs for longer than ``limit`` seconds.

        Cancelling this takes the job back if it has not begun. One that has begun goes on to its end.
        """
        loop = asyncio.get_running_loop()
        in_time: asyncio.Future[bool] = loop.create_future()
        watch: asyncio.TimerHandle

        def say(ended: bool) -> None:
            if not in_time.done():
                in_time.set_result(ended)

        def tell(_: Future[Any]) -> None:
            with contextlib.suppress(RuntimeError):  # nobody waits any more: the loop is closed
                loop.call_soon_threadsafe(say, True)

        def look() -> None:
            nonlocal watch
            left = limit if job.started is None else job.started + limit - time.monotonic()
            if left > 0:
                watch = loop.call_later(left, look)
            else:
                say(False)

        watch = loop.call_later(limit, look)
        job.future.add_done_callback(tell)
        try:
            if await in_time:
                return job.future.result()
        except asyncio.CancelledError:
            job.future.cancel()  # takes the job back, unless it runs
            raise
        finally:
            watch.cancel()
        self._replace(job)
        raise EpisodeTimeout(f"a call into the environment has not ended after {limit:g} s and was given up")

    def close(self) -> None:
        """End the threads when they have done what was asked for."""
        with self._lock:
            for _ in range(self.alive):
                self._jobs.put(None)

    def _replace(self, job: Job) -> None:
        with self._lock:
            job.gave_up = True
            self.lost += 1
            self._start()

    def _start(self) -> None:
        self.alive += 1
        threading.Thread(target=self._work, name=self.name, daemon=True).start()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            with contextlib.suppress(Exception):
                job.run()
            with self._lock:
                self._busy -= 1
                if job.gave_up:  # another thread has this one's place
                    self.alive -= 1
                    return
        with self._lock:
            self.alive -= 1
