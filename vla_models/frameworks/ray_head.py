"""A Ray head of one's own, for as long as a run lasts.

``ray.init(address="auto")``, which frameworks call, joins whatever Ray happens to run on the machine, a stranger's included.
``ray_head`` starts one on a free port and points ``RAY_ADDRESS`` to it. Who has a cluster sets ``RAY_ADDRESS`` and is left
alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from vla_models.errors import VLAModelsError
from vla_models.frameworks.variables import variables

log = logging.getLogger(__name__)

START_SECONDS: Final = 120.0
"""How long a head may take to answer."""
START_ATTEMPTS: Final = 3
"""How many heads are started, one after another, until one answers."""
STOP_SECONDS: Final = 15.0
"""How long it may take to end before it is killed, and what is killed to be gone."""
_NO_SPARE_WORKERS: Final = {"RAY_enable_worker_prestart": "false", "RAY_prestart_worker_first_driver": "false"}
"""Ray starts a worker for each CPU ahead of time, and again for the first driver. Frameworks' actors have an environment of
their own and cannot use these; each would import torch."""
_AUTH_MODE: Final = "RAY_AUTH_MODE"
"""Where it is unset, a head of Ray 2.60 asks for a token once ``~/.ray/auth_token`` exists (``ray.init`` without a cluster
writes one), and refuses the run's own driver, which sends none."""
_PR_SET_PDEATHSIG: Final = 1
"""From linux/prctl.h."""
_STORE_BYTES: Final = 2 * 2**30
"""Shared memory of the head's object store, at most; half of what /dev/shm has left if that is less."""


class RayError(VLAModelsError, RuntimeError):
    """Ray could not be started."""


@contextlib.contextmanager
def ray_head(environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """Yield the address of the Ray cluster to use; ``RAY_ADDRESS`` holds it meanwhile.

    environment: variables that Ray's processes, and through them all workers, get beside this process's own.

    With ``RAY_ADDRESS`` set (other than to "local") nothing is started and nothing is stopped. Otherwise a head is started with
    a session folder of its own, and it ends with the block, with everything that it started; also when this process is killed.
    If this process joined the cluster within the block, it leaves it with the block.
    """
    given = os.environ.get("RAY_ADDRESS")
    if given and given != "local":
        log.info("using the Ray cluster at RAY_ADDRESS=%s", given)
        with _left_at_the_end():
            yield given
        return
    with variables({_AUTH_MODE: os.environ.get(_AUTH_MODE, "disabled")}):
        head = _start(environment or {})
        try:
            with variables({"RAY_ADDRESS": head.address}), _left_at_the_end():
                log.info("started a Ray head at %s (its logs: %s)", head.address, head.folder)
                yield head.address
        finally:
            _stop(head)


@contextlib.contextmanager
def _left_at_the_end() -> Iterator[None]:
    joined = _joined()
    try:
        yield
    finally:
        if not joined and _joined():
            sys.modules["ray"].shutdown()


def _joined() -> bool:
    """Whether this process is connected to a cluster."""
    ray = sys.modules.get("ray")  # who is connected has imported it
    return ray is not None and ray.is_initialized()


@dataclasses.dataclass(frozen=True)
class _Head:
    process: subprocess.Popen[bytes]
    address: str
    folder: Path


def _start(environment: Mapping[str, str]) -> _Head:
    """A head that answers. Another is tried if one ends at once: its ports, free when chosen, may be taken by then."""
    attempt = 1
    while True:
        head = _launch(environment)
        try:
            _wait_until_up(head)
            return head
        except BaseException as error:
            _stop(head)
            if not isinstance(error, RayError) or attempt == START_ATTEMPTS:
                raise
            log.warning("attempt %d of %d to start Ray: %s", attempt, START_ATTEMPTS, error)
            attempt += 1


def _launch(environment: Mapping[str, str]) -> _Head:
    folder = Path(tempfile.mkdtemp(prefix="vla-ray-", dir="/tmp"))
    port, client_port = _free_ports(2)
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block",
        "--node-ip-address=127.0.0.1", f"--port={port}",
        f"--num-cpus={max(8, os.cpu_count() or 1)}", f"--object-store-memory={_store_bytes()}", "--include-dashboard=false",
        "--min-worker-port=0", "--max-worker-port=0",  # any that are free: two heads' workers would meet in Ray's usual range
        f"--ray-client-server-port={client_port}", f"--temp-dir={folder}", "--disable-usage-stats",
    ]  # fmt: skip
    with (folder / "head.log").open("wb") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**_NO_SPARE_WORKERS, **os.environ, **environment},
            preexec_fn=_end_with_parent,
        )
    return _Head(process, f"127.0.0.1:{port}", folder)


def _wait_until_up(head: _Head) -> None:
    """Return when the head says that it runs; ``RayError`` with its last words if it does not."""
    host, port = head.address.split(":")
    output = head.folder / "head.log"
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        said = output.read_text(errors="replace")
        if head.process.poll() is not None:
            raise RayError(f"Ray did not start (exit code {head.process.returncode}): {said[-2000:]}")
        if "Ray runtime started" in said:
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1.0):
                return
        time.sleep(0.2)
    raise RayError(f"Ray did not answer within {START_SECONDS:.0f} s: {output.read_text(errors='replace')[-2000:]}")


def _stop(head: _Head) -> None:
    """End the head, which ends what it started; then kill what is left of its group, and what names its session folder.

    Only the head is asked to end. After a signal to its whole group it waits half a minute for processes that have gone.
    """
    with contextlib.suppress(ProcessLookupError):
        head.process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        head.process.wait(STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(head.process.pid, signal.SIGKILL)
    deadline = time.monotonic() + STOP_SECONDS
    while (left := _processes_of(head.folder)) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)
    head.process.poll()
    shutil.rmtree(head.folder, ignore_errors=True)


def _processes_of(folder: Path) -> list[int]:
    """Processes whose command line or environment names the session folder."""
    mark, found = str(folder).encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        if process.name == str(os.getpid()):
            continue
        with contextlib.suppress(OSError):
            if mark in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


def _end_with_parent() -> None:
    """Ask Linux to end this process when its parent dies (``ray start --block`` then ends what it started)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _free_ports(count: int) -> list[int]:
    """Ports that differ and that nobody has at this moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [int(s.getsockname()[1]) for s in sockets]


def _store_bytes() -> int:
    shared = Path("/dev/shm")
    free = shutil.disk_usage(shared if shared.is_dir() else Path("/tmp")).free
    return max(100 * 2**20, min(_STORE_BYTES, free // 2))
