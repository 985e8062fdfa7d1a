"""From a configuration to a run folder, and back into it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from golden import visible_scenes
from test_trainer import tiny_config

from vla_models.config import VLAConfig
from vla_models.errors import CheckpointError, ConfigError
from vla_models.scenes.scene import Scene
from vla_models.training import scenes as scenes_module
from vla_models.training.launch import launch
from vla_models.training.scenes import build_scenes


@pytest.fixture
def golden_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden scenes in the place of generated ones."""

    def build(config: VLAConfig, part: str) -> Sequence[Scene]:
        return visible_scenes(6)[:4] if part == "train" else visible_scenes(6)[4:]

    monkeypatch.setattr(scenes_module, "build_scenes", build)


@pytest.mark.usefixtures("golden_scenes")
def test_a_launched_run_is_complete_and_can_be_resumed(tmp_path: Path) -> None:
    small = ["training.steps=1", "training.imitation.steps=1", f"output_dir={tmp_path}", "name=try"]
    config = tiny_config(*small)
    run = launch(config)
    assert run.parent == tmp_path
    assert run.name.startswith("try-")
    assert VLAConfig.from_yaml(run / "config.yaml") == config
    for name in ("metrics.jsonl", "heldout.npz", "summary.json", "report.html", "checkpoints/model/model.safetensors"):
        assert (run / name).stat().st_size > 0, name
    summary = (run / "summary.json").read_text()
    assert launch(tiny_config(*small, "training.checkpoint_every=7"), resume=run) == run
    assert (run / "summary.json").read_text().split("wall_s")[0] == summary.split("wall_s")[0]
    with pytest.raises(ConfigError, match=r"algorithm.group_size \(was 3, now 4\)"):
        launch(tiny_config(*small, "algorithm.group_size=4"), resume=run)
    with pytest.raises(CheckpointError, match=r"is no run to resume"):
        launch(config, resume=tmp_path / "nothing")


def test_another_framework_or_backend_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="verl"):
        launch(tiny_config("framework=verl", f"output_dir={tmp_path}"))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="devkit"):
        build_scenes(tiny_config("environment.backend=devkit"), "train")


@pytest.mark.slow
def test_scenes_come_from_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config("environment.heldout_scenes=3", "environment.heldout_towns=[Town02]", "environment.camera.width=80")
    scenes = build_scenes(config, "heldout")
    assert len(scenes) == 3
    assert {scene.town for scene in scenes} == {"Town02"}
    assert scenes[0].images["front"].shape == (96, 80, 3)
    assert list(build_scenes(config, "heldout").tokens) == list(scenes.tokens)  # type: ignore[attr-defined]
