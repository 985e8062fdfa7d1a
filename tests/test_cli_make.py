"""``vla-models init``, ``codebook`` and ``sft``: what one makes before reinforcement learning."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from golden import visible_scenes
from typer.testing import CliRunner

from vla_models.cli import app
from vla_models.errors import ConfigError, SceneError
from vla_models.heads.trajectories import TrajectoryCodebook
from vla_models.model_registry import create_model
from vla_models.models.tiny_vla import TinyVLA
from vla_models.scenes.store import write_scenes
from vla_models.training.metrics import read_metrics

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "bring_your_own_model.py"


def invoke(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes") / "scenes.arrow", visible_scenes(6)).path


def test_the_example_and_the_new_package_are_the_same_model() -> None:
    lines = EXAMPLE.read_text().splitlines()
    assert len(lines) <= 60
    template = (
        (ROOT / "vla_models/cli/templates/model.py.txt").read_text().replace("<package>", "my_vla").replace("<class>", "MyVLA")
    )
    start = lines.index('@register_vla_model("my_vla")')
    end = lines.index('if __name__ == "__main__":')
    assert template.split('@register_vla_model("my_vla")')[1].strip() == "\n".join(lines[start + 1 : end]).strip()


@pytest.mark.slow
def test_a_new_package_is_found_and_passes_its_own_tests(tmp_path: Path) -> None:
    out = invoke("init", "my_new_vla", "--folder", tmp_path / "made")
    assert "my_new_vla/__init__.py" in out
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(site)]
    subprocess.run([*install, str(tmp_path / "made")], check=True, capture_output=True)
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}
    listed = "from vla_models import VLAModelRegistry; print(VLAModelRegistry.list_models())"
    found = subprocess.run([sys.executable, "-c", listed], env=env, check=True, capture_output=True, text=True, cwd=tmp_path)
    assert "my_new_vla" in found.stdout
    test = [sys.executable, "-m", "pytest", "-q", str(tmp_path / "made" / "tests")]
    ran = subprocess.run(test, env=env, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ran.returncode == 0, ran.stdout
    assert "3 passed" in ran.stdout
    yaml.safe_load((tmp_path / "made" / "config.yaml").read_text())


def test_what_cannot_be_made_is_named(tmp_path: Path) -> None:
    for name in ("My-VLA", "class", "3d"):
        with pytest.raises(ConfigError, match="no name for a package"):
            invoke("init", name, "--folder", tmp_path / "x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ConfigError, match="not empty"):
        invoke("init", "my_vla", "--folder", tmp_path / "full")


def test_a_codebook_of_a_store_serves_a_model(tmp_path: Path, store: Path) -> None:
    file = tmp_path / "plans.npz"
    assert "4 trajectories of 6 plans" in invoke("codebook", store, "--size", 4, "--output", file)
    assert len(TrajectoryCodebook.load(file).anchors) == 4
    head = {"type": "tokens", "codebook": str(file)}
    model = create_model("tiny_vla", dim=32, layers=1, heads=2, policy_head=head)
    model.save_pretrained(tmp_path / "saved")
    file.unlink()  # the trajectories are among the weights
    again = create_model("tiny_vla", model_path=tmp_path / "saved")
    assert isinstance(again, TinyVLA)
    np.testing.assert_array_equal(again.head.codebook.anchors, model.head.codebook.anchors)  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="npz"):
        invoke("codebook", store, "--output", tmp_path / "plans.bin")
    with pytest.raises(SceneError):
        invoke("codebook", tmp_path / "nowhere")


def test_imitation_alone_gives_what_rl_starts_from(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = visible_scenes(6)[4:]
    import vla_models.training.scenes as scenes

    build = scenes.build_scenes
    monkeypatch.setattr(scenes, "build_scenes", lambda config, part: held if part == "heldout" else build(config, part))
    config = tmp_path / "c.yaml"
    small = {"options": {"dim": 32, "layers": 1, "heads": 2}, "policy_head": {"type": "flow", "steps": 2}}
    training = {"steps": 2, "scenes_per_step": 2, "threads": 1, "imitation": {"steps": 3, "batch_size": 3}}
    content = {"output_dir": str(tmp_path), "model": small, "training": training, "algorithm": {"group_size": 3}}
    config.write_text(yaml.safe_dump(content))
    out = invoke("sft", config, "--store", store)
    (run,) = tmp_path.glob("sft-*")
    assert str(run / "checkpoints" / "model") in out
    assert {row["phase"] for row in read_metrics(run)} == {"imitation", "eval"}
    model = create_model("tiny_vla", model_path=run / "checkpoints" / "model")
    assert list(model.statistics) == [str(store.resolve())]
    changes = [f"model.checkpoint_path={run / 'checkpoints' / 'model'}", "training.imitation.steps=0", "name=rl"]
    invoke("train", config, *changes, f"environment.train_store={store}")
    (second,) = tmp_path.glob("rl-*")
    rows = read_metrics(second)
    scores = [next(row["score"] for row in read_metrics(folder) if row["phase"] == "eval") for folder in (run, second)]
    assert scores[0] == pytest.approx(scores[1])  # RL starts where imitation ended
    assert sum(row["phase"] == "rl" for row in rows) == 2
    with pytest.raises(ConfigError, match=r"training\.imitation\.steps"):
        invoke("sft", config, "training.imitation.steps=0")
