"""The command line: what it says, how it fails, what it starts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vla_models.training.launch
from vla_models import VLAConfig, cli, create_model

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("training: {steps: 2}\n")
    return path


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[VLAConfig, Any]]:
    """What would have been trained: the trainer itself is tested elsewhere."""
    calls: list[tuple[VLAConfig, Any]] = []

    def launch(config: VLAConfig, *, resume: Path | None = None) -> Path:
        calls.append((config, resume))
        (tmp_path / "report.html").touch()
        return tmp_path

    monkeypatch.setattr(vla_models.training.launch, "launch", launch)
    return calls


# -- help and version ------------------------------------------------------------------------------------------------------


def test_help_names_every_command_and_loads_nothing_heavy() -> None:
    result = subprocess.run([sys.executable, "-m", "vla_models", "--help"], capture_output=True, text=True, check=True)
    assert all(command in result.stdout for command in ("train", "eval", "score", "list", "doctor", "--version"))
    assert "vla-models doctor" in result.stdout
    code = "import sys, vla_models.cli; sys.exit(any(m in sys.modules for m in ('torch', 'numba', 'gymnasium', 'pydantic')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("command", ["train", "eval", "view"])
def test_commands_show_examples(run: Run, command: str) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"vla-models {command} " in out
    assert "KEY=VALUE" in out


def test_version(run: Run) -> None:
    assert run("--version")[:2] == (0, vla_models.__version__ + "\n")


# -- train -----------------------------------------------------------------------------------------------------------------


def test_train_launches_the_resolved_configuration(run: Run, config_file: Path, launched: list[Any]) -> None:
    code, out, _ = run("train", config_file, "seed=7", "training.optimizer.lr=1e-5")
    assert code == 0
    ((config, resume),) = launched
    assert (config.seed, config.training.steps, config.training.optimizer.lr, resume) == (7, 2, 1e-5, None)
    assert str(config_file.parent / "report.html") in out


@pytest.mark.parametrize("overrides", [[], ["training.threads=1"]])
def test_train_resumes_a_run_with_its_own_configuration(
    run: Run, tmp_path: Path, launched: list[Any], overrides: list[str]
) -> None:
    VLAConfig.from_dict({"seed": 5}).to_yaml(tmp_path / "old" / "config.yaml")
    assert run("train", *overrides, "--resume", tmp_path / "old")[0] == 0
    ((config, resume),) = launched
    assert (config.seed, resume) == (5, tmp_path / "old")
    assert config.training.threads == len(overrides)


def test_train_dry_run_starts_nothing(run: Run, config_file: Path, launched: list[Any], tmp_path: Path) -> None:
    code, out, _ = run("train", config_file, "--dry-run")
    assert code == 0
    assert not launched
    assert "2 updates of 256 plans" in out
    (tmp_path / "resolved.yaml").write_text(out)
    assert VLAConfig.from_yaml(tmp_path / "resolved.yaml") == VLAConfig.from_yaml(config_file)


def test_train_says_how_to_go_on_when_it_is_interrupted(run: Run, config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(vla_models.training.launch, "launch", interrupted)
    code, _, err = run("train", config_file)
    assert code == 130
    assert "--resume RUN" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "name a configuration"),
        (["train", "nowhere.yaml"], "there is no configuration file 'nowhere.yaml'"),
        (["train", "--resume", "nowhere"], "'nowhere' is no run folder"),
        (["train", "CONFIG", "training.stps=3"], "training.stps: unknown key"),
        (["train", "CONFIG", "framework=verl"], "verl is not installed in this environment; make env-verl builds one"),
        (["train", "CONFIG", "model.name=tiny"], None),
        (["eval", "nowhere"], "there is no checkpoint folder 'nowhere'"),
        (["eval", "TMP"], "is no model checkpoint"),
    ],
)
def test_an_error_is_one_message_without_a_traceback(
    run: Run, config_file: Path, tmp_path: Path, arguments: list[str], message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if message is None:
        arguments, message = [*arguments, "--dry-run"], "Did you mean 'tiny_vla'?"
    known = {"CONFIG": config_file, "TMP": tmp_path}
    code, out, err = run(*(known.get(a, a) for a in arguments))
    assert code == 2
    assert out == ""
    assert err.startswith("error ")
    assert message in err
    assert "Traceback" not in err


def test_a_wrong_option_is_explained(run: Run) -> None:
    code, _, err = run("train", "--bogus")
    assert code == 2
    assert "--bogus" in err


# -- eval ------------------------------------------------------------------------------------------------------------------


class _Result:
    def __init__(self, score: float) -> None:
        self.score = score

    def means(self) -> dict[str, float]:
        return {"score": self.score, "nc": 1.0}


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Evaluation without scenes and scorer, which have tests of their own."""
    import vla_models.training.evaluate
    import vla_models.training.scenes

    asked: list[Any] = []
    monkeypatch.setattr(vla_models.training.scenes, "build_scenes", lambda config, part: asked.append(config) or [1, 2, 3])
    monkeypatch.setattr(vla_models.training.evaluate, "evaluate_baseline", lambda name, scenes, **_: _Result(0.25))
    monkeypatch.setattr(vla_models.training.evaluate, "evaluate_model", lambda model, scenes, **_: _Result(0.75))
    return asked


def test_eval_of_a_run_uses_its_model_and_its_configuration(run: Run, tmp_path: Path, evaluated: list[Any]) -> None:
    folder = tmp_path / "run"
    VLAConfig.from_dict({"environment": {"heldout_scenes": 7}}).to_yaml(folder / "config.yaml")
    code, _, err = run("eval", folder)
    assert code == 2
    assert f"has no finished model yet; go on with it: vla-models train --resume {folder}" in err
    create_model("tiny_vla", dim=20, layers=1).save_pretrained(folder / "checkpoints" / "imitation")
    output = tmp_path / "scores.json"
    code, out, _ = run("eval", folder, "--output", output)
    assert code == 0
    assert evaluated[0].environment.heldout_scenes == 7
    assert "held-out means over 3 scenes" in out
    assert "0.750" in out
    means = json.loads(output.read_text())["means"]
    assert means.keys() == {"constant_velocity", "pdm_closed", str(folder / "checkpoints" / "imitation")}
    assert run("eval", folder / "checkpoints" / "imitation", "environment.heldout_scenes=9")[0] == 0
    assert evaluated[1].environment.heldout_scenes == 9, "the run's configuration, with the override"


def test_eval_of_a_lone_checkpoint_uses_the_defaults_or_a_file(
    run: Run, tmp_path: Path, config_file: Path, evaluated: list[Any]
) -> None:
    folder = create_model("tiny_vla", dim=20, layers=1).save_pretrained(tmp_path / "saved" / "model")
    assert run("eval", folder)[0] == 0
    assert run("eval", folder, "--config", config_file)[0] == 0
    assert [config.training.steps for config in evaluated] == [VLAConfig().training.steps, 2]


# -- list and doctor -------------------------------------------------------------------------------------------------------


def test_list_shows_what_goes_together_and_what_is_missing(run: Run, registry: Any) -> None:
    from vla_models import VLAForDriving, register_vla_model

    @register_vla_model("half_a_model")
    class Half(VLAForDriving):
        def predict_waypoints(self, *args: Any, **kwargs: Any) -> Any:
            return np.zeros((5, 3))

    code, out, _ = run("list")
    assert code == 0
    lines = {line.split()[0]: line for line in out.splitlines() if line.split()}
    assert lines["tiny_vla"].count("✓") == 2
    assert "✗ needs predict, evaluate_actions" in lines["half_a_model"]
    assert "✓" in lines["local"]
    assert all(framework in lines for framework in ("areal", "rlinf", "verl", "siirl"))


def test_doctor_lists_checks_and_the_commands_that_mend(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = run("doctor", "--quick")
    assert code == 0, out
    assert "all well" in out
    import vla_models.doctor

    monkeypatch.setattr(vla_models.doctor, "installed_version", lambda name: None)
    code, out, _ = run("doctor", "--quick")
    assert code == 1
    assert "→ pip install torch" in out
    assert "→ pip install --no-deps py123d" in out
    assert "to mend" in out


def test_main_is_the_entry_point() -> None:
    import vla_models.__main__

    assert vla_models.__main__.main is cli.main
