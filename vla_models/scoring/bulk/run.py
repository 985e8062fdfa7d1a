"""``score_jobs``: all shares scored, those that an earlier, killed run has finished taken over.

A finished share lies in a file beside the results, named by a hash of all that its numbers depend on: contents of its scenes
and proposals, options, package version and scorer source. So a later run takes over what is the same and nothing else.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from vla_models.errors import OutputError
from vla_models.scenes.imports import scorer_version
from vla_models.scoring.bulk.engines import Engine, score_shares
from vla_models.scoring.bulk.sources import Job, source_digest
from vla_models.scoring.bulk.table import ScoreTable, joined, write_arrays
from vla_models.scoring.bulk.work import Columns, Options

DEFINITIONS: Final = {
    "v1": "NavSim v1.1: NC DAC (5 EP + 5 TTC + 2 C) / 12",
    "v2": "NavSim v2.2, column pdm_score: NC DAC DDC TLC (5 EP + 5 TTC + 2 LK + 2 HC) / 14, without EC and human filter",
}
"""What ``score`` means, by version."""

SHARE: Final = 32
"""Scenes a share: what a kill costs at most, for each worker."""


def score_jobs(
    jobs: Sequence[Job],
    options: Options,
    *,
    keep: Path | None = None,
    engine: Engine = "local",
    workers: int = 1,
    advance: Callable[[int], None] = lambda scenes: None,
) -> ScoreTable:
    """Score all ``jobs``; the rows come in the jobs' order, whoever scored them.

    Args:
        jobs: scenes with their proposals (``find_jobs``).
        options: version of the score and what else is wanted.
        keep: folder for finished shares; the caller removes it (``discard``) once the result is safe. None keeps nothing.
        engine: "local" (processes of this machine) or "ray".
        workers: processes.
        advance: told how many more scenes are finished.

    Raises:
        OutputError: ``keep`` cannot be written, or another run is at work on it.
        WorkerError: workers died again and again, or the Ray cluster cannot be reached.
        MissingDependency: Ray is asked for and not installed.
    """
    shares = {number: jobs[start : start + SHARE] for number, start in enumerate(range(0, len(jobs), SHARE))}
    done: dict[int, Columns] = {}
    with _kept(keep, shares, options) as kept:
        for number, share in shares.items():
            if (columns := kept.get(number)) is not None:
                done[number] = columns
                advance(len(share))
        missing = {number: share for number, share in shares.items() if number not in done}
        for number, columns in score_shares(missing, options, engine, workers):
            kept.put(number, columns)
            done[number] = columns
            advance(len(shares[number]))
    return ScoreTable(joined([done[number] for number in shares]), provenance(jobs, options))


def discard(keep: Path) -> None:
    """Remove a folder of finished shares."""
    shutil.rmtree(keep, ignore_errors=True)


def provenance(jobs: Sequence[Job], options: Options) -> dict[str, Any]:
    """What the numbers depend on, in words and hashes."""
    plans = hashlib.sha256("".join(job.plans.digest if job.plans else "-" for job in jobs).encode())
    return {
        "score": options.version,
        "definition": DEFINITIONS[options.version],
        "traffic": options.traffic,
        "human_filter": options.human_filter,
        "scorer": scorer_version(),
        "scenes": len(jobs),
        "source_sha256": source_digest(job.scene for job in jobs),
        "proposals_sha256": plans.hexdigest(),
    }


class _Kept:
    """Finished shares in a folder, or nowhere."""

    def __init__(self, folder: Path | None, keys: dict[int, str]) -> None:
        self.folder, self.keys = folder, keys

    def get(self, number: int) -> Columns | None:
        if self.folder is None:
            return None
        try:
            with np.load(self.folder / f"{self.keys[number]}.npz", allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except FileNotFoundError:
            return None
        except Exception:  # damaged, in one of many ways: score it again
            return None

    def put(self, number: int, columns: Columns) -> None:
        if self.folder is None:
            return
        write_arrays(self.folder / f"{self.keys[number]}.npz", columns)


@contextmanager
def _kept(folder: Path | None, shares: dict[int, Sequence[Job]], options: Options) -> Iterator[_Kept]:
    """The folder's shares, while nobody else works on it (the lock ends with the process, however that ends)."""
    if folder is None:
        yield _Kept(None, {})
        return
    keys = {number: _key(jobs, options) for number, jobs in shares.items()}
    try:
        folder.mkdir(exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise OutputError(f"finished work cannot be kept in {folder}: {error}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OutputError(f"another run is writing to {folder}; wait for it, or choose another --out") from None
        yield _Kept(folder, keys)


def _key(jobs: Sequence[Job], options: Options) -> str:
    """Hash of all that a share's rows depend on."""
    whole = hashlib.sha256(f"{scorer_version()} {options}\n".encode())
    for job in jobs:
        plans = job.problem if job.plans is None else f"{job.plans.digest} {job.plans.key} {job.plans.row}"
        whole.update(f"{job.scene.name} {job.scene.digest} {plans}\n".encode())
    return whole.hexdigest()
