"""A cluster that the user named is used as it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vla_models.frameworks import ray_head as heads
from vla_models.frameworks.ray_head import RayError, ray_head


def test_a_given_cluster_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("nothing may be started")

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(subprocess, "Popen", refuse)
    with ray_head() as address:
        assert address == "10.0.0.1:6379"
    assert os.environ["RAY_ADDRESS"] == "10.0.0.1:6379"


def test_a_head_of_ones_own_asks_for_no_token_unless_told_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ended = subprocess.Popen(["true"], start_new_session=True)
    monkeypatch.setattr(heads, "_start", lambda environment: heads._Head(ended, "127.0.0.1:1", tmp_path))
    for told, meanwhile in ((None, "disabled"), ("token", "token")):
        if told is None:
            monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
        else:
            monkeypatch.setenv("RAY_AUTH_MODE", told)
        with ray_head():
            assert os.environ["RAY_AUTH_MODE"] == meanwhile
        assert os.environ.get("RAY_AUTH_MODE") == told
        assert "RAY_ADDRESS" not in os.environ


def test_a_head_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    real = subprocess.Popen

    def fail(command: list[str], **options: Any) -> Any:
        return real(["sh", "-c", "echo the port is taken; exit 3"], **options)

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(subprocess, "Popen", fail)
    with pytest.raises(RayError, match=r"exit code 3.*the port is taken"), ray_head():
        pass
    assert "RAY_ADDRESS" not in os.environ


def test_another_head_is_tried_when_one_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    real, ports = subprocess.Popen, list[str]()

    def taken_once(command: list[str], **options: Any) -> Any:
        ports.append(next(part.removeprefix("--port=") for part in command if part.startswith("--port=")))
        if len(ports) == 1:
            return real(["sh", "-c", "echo the port is taken; exit 3"], **options)
        serve = f"echo Ray runtime started; exec {sys.executable} -m http.server {ports[-1]} --bind 127.0.0.1"
        return real(["sh", "-c", serve], **options)

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(subprocess, "Popen", taken_once)
    with ray_head() as address:
        assert address == f"127.0.0.1:{ports[1]}"
    assert len(ports) == 2


@pytest.mark.parametrize("before", [False, True])
def test_who_joined_within_the_block_leaves_with_it(before: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class FakeRay:
        joined = before

        def is_initialized(self) -> bool:
            return self.joined

        def shutdown(self) -> None:
            self.joined = False

    ray = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with ray_head():
        ray.joined = True
    assert ray.joined is before
