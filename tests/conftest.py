"""What all tests share: GPU tests are skipped without one; a registry, a model class and a picture to play with."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest


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
    return VLAModelRegistry


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A small PNG file."""
    import PIL.Image

    path = tmp_path / "camera_view.png"
    PIL.Image.fromarray(np.arange(8 * 12 * 3, dtype=np.uint8).reshape(8, 12, 3)).save(path)
    return path
