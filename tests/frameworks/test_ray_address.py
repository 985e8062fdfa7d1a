"""A cluster that the user named is used as it is."""

from __future__ import annotations

import os
import subprocess
from typing import Any

import pytest

from vla_models.frameworks.ray_head import RayError, ray_head


def test_a_given_cluster_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("nothing may be started")

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(subprocess, "Popen", refuse)
    with ray_head() as address:
        assert address == "10.0.0.1:6379"
    assert os.environ["RAY_ADDRESS"] == "10.0.0.1:6379"


def test_a_head_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    real = subprocess.Popen

    def fail(command: list[str], **options: Any) -> Any:
        return real(["sh", "-c", "echo the port is taken; exit 3"], **options)

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(subprocess, "Popen", fail)
    with pytest.raises(RayError, match=r"exit code 3.*the port is taken"), ray_head():
        pass
    assert "RAY_ADDRESS" not in os.environ
