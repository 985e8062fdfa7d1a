"""What a saved model's folder holds beside the weights: the value head apart, statistics, and its way to the Hub."""

from __future__ import annotations

import json
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vla_models.errors import CheckpointError, MissingDependency
from vla_models.heads.base import ValueHead
from vla_models.interface import VLAForDriving


class Valued(VLAForDriving):
    def __init__(self, width: int = 4) -> None:
        self.body = torch.nn.Linear(width, width)
        self.value = ValueHead(width)


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_the_value_head_lies_apart(tmp_path: Path) -> None:
    model = Valued()
    folder = model.save_pretrained(tmp_path / "model")
    assert set(load_file(folder / "model.safetensors")) == {"body.weight", "body.bias"}
    assert all(name.startswith("value.") for name in load_file(folder / "value_head.safetensors"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(Valued.from_pretrained(folder), model)


def test_a_policy_without_value_head_is_loaded_with_a_warning(tmp_path: Path) -> None:
    model = Valued()
    folder = model.save_pretrained(tmp_path / "model")
    (folder / "value_head.safetensors").unlink()
    with pytest.warns(UserWarning, match="no value head; Valued starts with a fresh one"):
        loaded = Valued.from_pretrained(folder)
    assert same(loaded.body, model.body)
    assert not same(loaded.value, model.value)


def test_a_damaged_or_foreign_value_head_is_refused(tmp_path: Path) -> None:
    folder = Valued().save_pretrained(tmp_path / "model")
    (folder / "value_head.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"value_head\.safetensors' is corrupt"):
        Valued.from_pretrained(folder)
    Valued(5).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "value_head.safetensors").replace(folder / "value_head.safetensors")
    with pytest.raises(CheckpointError, match=r"of another shape: value\.into\.bias \[5\] instead of \[4\]"):
        Valued.from_pretrained(folder)


def test_saving_over_a_model_takes_its_value_head_away(tmp_path: Path) -> None:
    class Bare(VLAForDriving):
        def __init__(self) -> None:
            self.body = torch.nn.Linear(4, 4)

    Valued().save_pretrained(tmp_path / "model")
    Bare().save_pretrained(tmp_path / "model")
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]
    assert isinstance(Bare.from_pretrained(tmp_path / "model"), Bare)


def test_statistics_are_saved_by_data_set(tmp_path: Path) -> None:
    model = Valued()
    model.statistics = {"navsim-procedural": {"mean": [[0.1, 0.2]]}}
    folder = model.save_pretrained(tmp_path / "model")
    assert json.loads((folder / "config.json").read_text())["statistics"] == model.statistics
    assert Valued.from_pretrained(folder).statistics == model.statistics


# -- the Hub ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """A stand-in for huggingface_hub that remembers what it was asked; "offline/…" cannot be reached."""
    asked: list[tuple[str, Any]] = []

    class HfApi:
        def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> str:
            if repo_id.startswith("offline/"):
                raise errors.OfflineModeIsEnabled("HF_HUB_OFFLINE=1")  # type: ignore[attr-defined]
            asked.append(("create", (repo_id, private, exist_ok)))
            return f"https://huggingface.co/{repo_id}"

        def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
            asked.append(("upload", {p.name: p.read_bytes() for p in Path(folder_path).iterdir()}))

    errors = types.ModuleType("huggingface_hub.errors")
    for name in ("HfHubHTTPError", "HFValidationError", "OfflineModeIsEnabled"):
        setattr(errors, name, type(name, (Exception,), {}))
    package = types.ModuleType("huggingface_hub")
    package.HfApi = HfApi  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", package)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    return asked


def test_a_model_is_pushed_as_it_is_saved(hub: list[tuple[str, Any]], tmp_path: Path) -> None:
    model = Valued()
    assert model.push_to_hub("me/driver", private=True) == "https://huggingface.co/me/driver"
    (created, files) = hub[0][1], hub[1][1]
    assert created == ("me/driver", True, True)
    assert sorted(files) == ["config.json", "model.safetensors", "value_head.safetensors"]
    (tmp_path / "down").mkdir()
    for name, content in files.items():
        (tmp_path / "down" / name).write_bytes(content)
    assert same(Valued.from_pretrained(tmp_path / "down"), model)


def test_what_keeps_a_model_from_the_hub_is_named(hub: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=r"'offline/driver'.*HF_HUB_OFFLINE.*hf auth login"):
        Valued().push_to_hub("offline/driver")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingDependency, match=r"pip install 'vla_models\[hf\]'"):
        Valued().push_to_hub("me/driver")


def test_the_real_client_is_called_as_it_wants_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against huggingface_hub itself, offline: it must come to the network, not stumble over our arguments."""
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="could not be uploaded to 'me/driver'"):
        Valued().push_to_hub("me/driver")
