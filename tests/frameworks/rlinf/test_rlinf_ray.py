"""A Ray head of one's own: started, not shared, and gone afterwards, even when its owner is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

OWNER = """
import os, sys, time
from vla_models.frameworks.ray_head import ray_head
with ray_head() as address:
    print(address, os.environ["RAY_ADDRESS"], flush=True)
    time.sleep(600 if sys.argv[1] == "wait" else 0)
print(os.environ.get("RAY_ADDRESS"), flush=True)
"""


def processes(port: str) -> list[str]:
    """Command lines that name the head's port."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if f":{port}" in line or f"port={port}" in line:
            found.append(line)
    return found


def start(how: str) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    command = [sys.executable, "-c", OWNER, how]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def address_of(owner: subprocess.Popen[str]) -> str:
    """What the owner printed of its head; its error, if it has none."""
    assert owner.stdout is not None
    assert owner.stderr is not None
    printed = owner.stdout.readline().split()
    assert len(printed) == 2, owner.stderr.read()
    address, shown = printed
    assert address == shown
    return address


def test_a_head_ends_with_its_block_and_with_its_owner() -> None:
    for how in ("leave", "wait"):
        owner = start(how)
        port = address_of(owner).split(":")[1]
        if how == "leave":
            assert owner.stdout is not None
            assert owner.stdout.readline().strip() == "None"
            assert owner.wait(60) == 0
        else:
            assert processes(port)
            owner.send_signal(signal.SIGKILL)
            owner.wait(60)
        deadline = time.monotonic() + 60
        while processes(port) and time.monotonic() < deadline:
            time.sleep(0.5)
        assert processes(port) == []
