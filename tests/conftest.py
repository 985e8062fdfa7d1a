"""What all tests share: GPU tests are skipped without one; the command line, a registry and a picture to play with."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

Run = Callable[..., tuple[int, str, str]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` where there is no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """The registry, with what a test registers forgotten afterwards."""
    from vla_models.model_registry import BUILTIN_MODELS, VLAModelRegistry

    for name in BUILTIN_MODELS:  # so that their registration does not happen inside a test and get lost
        VLAModelRegistry.get_model(name)
    monkeypatch.setattr(VLAModelRegistry, "_models", dict(VLAModelRegistry._models))
    monkeypatch.setattr(VLAModelRegistry, "_adapters", copy.deepcopy(VLAModelRegistry._adapters))
    monkeypatch.setattr(VLAModelRegistry, "_env_adapters", copy.deepcopy(VLAModelRegistry._env_adapters))
    monkeypatch.setattr(VLAModelRegistry, "_frameworks", dict(VLAModelRegistry._frameworks))
    return VLAModelRegistry


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A small PNG file."""
    import PIL.Image

    path = tmp_path / "camera_view.png"
    PIL.Image.fromarray(np.arange(8 * 12 * 3, dtype=np.uint8).reshape(8, 12, 3)).save(path)
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run ``vla-models …`` in this process -> exit code, stdout, stderr."""
    from vla_models.cli import main

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vla-models", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        code = 0
        try:
            main()
        except SystemExit as e:
            code = int(e.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call
