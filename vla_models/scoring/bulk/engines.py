"""Who scores the shares: this process, several processes of this machine, or Ray on one machine or many.

Each engine yields (number of the share, its rows) as shares are finished, in any order, every share once. A worker that dies
costs unfinished shares again, nothing else.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Final, Literal

from vla_models.errors import MissingDependency, WorkerError
from vla_models.scoring.bulk.sources import Job
from vla_models.scoring.bulk.work import Columns, Options, score_share
from vla_models.workers import end_with_parent

Engine = Literal["local", "ray"]
Shares = Mapping[int, Sequence[Job]]

_DEATHS: Final = 3
"""Deaths of workers in a row, without a share finished in between, that end the run."""
_KNOCK_S: Final = 10.0
"""Seconds that the Ray cluster may take to answer at all."""
_AHEAD: Final = 4
"""Shares that are handed out for each worker; the rest stay here."""


def score_shares(shares: Shares, options: Options, engine: Engine, workers: int) -> Iterator[tuple[int, Columns]]:
    """Score ``shares`` with ``workers`` processes (Ray on a cluster: as many as it has processors)."""
    if engine == "ray":
        return _on_ray(shares, options, workers)
    if workers == 1 or len(shares) <= 1:
        return ((number, score_share(jobs, options)) for number, jobs in shares.items())
    return _in_processes(shares, options, min(workers, len(shares)))


def _in_processes(shares: Shares, options: Options, workers: int) -> Iterator[tuple[int, Columns]]:
    # forked from a server that has imported and loaded all the code, so a worker starts in no time and without our threads
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vla_models.scoring.bulk.work"])
    waiting = dict(shares)
    suspects: list[int] = []  # unfinished when a worker died: scored one by one, so that the next death names its share
    deaths = 0
    while waiting:
        numbers, width, ahead = (suspects, 1, 1) if suspects else (list(waiting), workers, _AHEAD * workers)
        with ProcessPoolExecutor(width, mp_context=context, initializer=end_with_parent) as pool:
            running: dict[Future[Columns], int] = {}
            try:
                for number, columns in _finished(pool, shares, numbers, ahead, options, running):
                    del waiting[number]
                    deaths = 0
                    yield number, columns
            except BrokenProcessPool:
                deaths += 1
                if deaths == _DEATHS:
                    raise _died(min(running.values(), default=min(waiting)), shares) from None
                suspects = suspects or sorted(running.values())
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
        suspects = [number for number in suspects if number in waiting]


def _finished(
    pool: ProcessPoolExecutor,
    shares: Shares,
    numbers: Iterable[int],
    ahead: int,
    options: Options,
    running: dict[Future[Columns], int],
) -> Iterator[tuple[int, Columns]]:
    """Hand out ``numbers``, ``ahead`` at a time; ``running`` holds what is unfinished, also when a worker has died."""
    following = iter(numbers)
    while True:
        for number in itertools.islice(following, ahead - len(running)):
            running[pool.submit(score_share, shares[number], options)] = number
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            columns = future.result()
            yield running.pop(future), columns


def _on_ray(shares: Shares, options: Options, workers: int) -> Iterator[tuple[int, Columns]]:
    try:
        import ray
    except ImportError as error:
        raise MissingDependency(f"--engine ray needs Ray ({error}): pip install 'vla_models[ray]'") from error
    ours = not ray.is_initialized()
    if ours:
        _start(ray, workers)
    try:
        remote = ray.remote(max_retries=_DEATHS)(score_share)
        ahead = _AHEAD * max(1, int(ray.cluster_resources().get("CPU", workers)))
        following = iter(shares.items())
        running: dict[Any, int] = {}
        while True:
            for number, jobs in itertools.islice(following, ahead - len(running)):
                running[remote.remote([job.carried() for job in jobs], options)] = number
            if not running:
                return
            done, _ = ray.wait(list(running), num_returns=1)
            number = running.pop(done[0])
            try:
                columns = ray.get(done[0])
            except ray.exceptions.RayTaskError:  # a mistake of ours, not of a machine
                raise
            except ray.exceptions.RayError as error:
                raise _died(number, shares) from error
            yield number, columns
    finally:
        if ours:
            ray.shutdown()


def _start(ray: Any, workers: int) -> None:
    """Join the cluster of RAY_ADDRESS, or start a head of our own ("local": never one that happens to run here)."""
    address = os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no reports to anybody
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # no advice about GPUs, which are not used
    try:
        if address:
            _knock(address)
            ray.init(address=address, log_to_driver=False, logging_level="warning")
        else:
            ray.init(address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="warning")
    except (OSError, RuntimeError, ValueError) as error:
        where = f"the cluster of RAY_ADDRESS={address!r} cannot be reached" if address else "Ray does not start on this machine"
        raise WorkerError(f"{where}: {error}") from error


def _knock(address: str) -> None:
    """OSError if nobody listens at ``address`` ("host:port", "ray://host:port"): Ray itself would try for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()


def _died(number: int, shares: Shares) -> WorkerError:
    names = [job.scene.name for job in shares[number]]
    return WorkerError(
        f"{_DEATHS} workers in a row died, the last one over scenes {names[0]!r} to {names[-1]!r}: look for a lack of "
        "memory (fewer --threads need less); what is finished is kept, so the same command goes on from there"
    )
