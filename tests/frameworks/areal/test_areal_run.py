"""AReaL's real trainer on a CPU, from a configuration to a finished run folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import loop
import numpy as np
import pytest
import torch
from golden import visible_scenes
from runs import changed, weights

from vla_models.config import VLAConfig
from vla_models.errors import CheckpointError, ConfigError, SceneError
from vla_models.frameworks import get_dry_run, get_launcher, run_folder
from vla_models.frameworks.areal import runner
from vla_models.interface import VLAForDriving
from vla_models.model_registry import VLAModelRegistry
from vla_models.training.metrics import read_metrics

ROOT = Path(__file__).parents[3]
Launch = Callable[..., Path]


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launch:
    """``launch`` on golden scenes and in the toy world."""
    golden = visible_scenes(6)
    monkeypatch.setattr(run_folder, "build_scenes", lambda config, part: golden[:4] if part == "train" else golden[4:])

    def run(settings: VLAConfig, adapter: Any = None, **options: Any) -> Path:
        kind = settings.environment.type
        monkeypatch.setitem(VLAModelRegistry._env_adapters, kind, {"areal": adapter or loop.ENVIRONMENTS[kind]})
        settings = settings.model_copy(update={"output_dir": str(tmp_path / "runs")})
        return get_launcher("areal")(settings, **options)

    return run


WEIGHTED = (
    "reward.type=driving",
    "reward.weights={progress: 1.0, off_road: -1.0, wrong_way: -1.0, collision: -0.5, ttc: 0.5, comfort: 0.3}",
)
"""A reward that the plans of a group hardly ever share: samples differ from run to run, and equal ones teach nothing."""


def configuration(environment: str, model: str, *overrides: str) -> VLAConfig:
    every = ["training.steps=2", "training.eval_every=1", "training.checkpoint_every=1", "algorithm.minibatches=2"]
    return loop.configuration(environment, model, *every, *overrides)


@pytest.mark.slow
def test_grpo_in_navsim_saves_resumes_and_evaluates(launch: Launch) -> None:
    settings = configuration("navsim", "tiny_vla", "training.imitation.steps=2", *WEIGHTED)
    folder = launch(settings)
    names = ("config.yaml", "metrics.jsonl", "heldout.npz", "summary.json", "report.html", "areal/native.yaml")
    for name in (*names, "areal/settings.json", "areal/scenes.json"):
        assert (folder / name).stat().st_size > 0, name
    rows = read_metrics(folder)
    learned = [row for row in rows if row["phase"] == "rl"]
    assert [row["step"] for row in learned] == [1, 2]
    for row in learned:
        assert abs(row["ratio"] - 1.0) < 0.2
        assert (row["invalid"], row["staleness_max"], row["too_old"]) == (0, 0, 0)
        assert row["parts"] == 2 * 4 * 8
    assert any(row["grad_norm"] > 0 for row in learned)
    start, last = (weights(folder / "checkpoints" / name) for name in ("imitation", "update-0000002"))
    assert changed(start, last) > 1e-5
    assert changed(weights(folder / "checkpoints" / "model"), last) == 0.0
    VLAForDriving.from_pretrained(folder / "checkpoints" / "update-0000002")  # what vla-models eval reads
    evaluated = [row for row in rows if row["phase"] == "eval"]
    assert [(row["name"], row["step"]) for row in evaluated] == [("imitation", 0), ("rl", 1), ("rl", 2)]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["heldout"]["rl"] == pytest.approx(evaluated[-1]["score"])

    # as if it had been killed when AReaL had written its second checkpoint, and we had not yet copied it
    shutil.rmtree(folder / "checkpoints" / "update-0000002")
    shutil.rmtree(folder / "checkpoints" / "model")
    assert launch(settings, resume=folder) == folder
    assert changed(weights(folder / "checkpoints" / "update-0000002"), last) == 0.0

    # as if it had been killed while AReaL wrote it
    root = runner.checkpoints(folder)
    shutil.rmtree(folder / "checkpoints" / "update-0000002")
    shutil.rmtree(root / "default" / "recover_checkpoint" / "version-0000002")
    info = root / "recover_info" / "step_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"global_step": 0, "epoch_step": 0}))
    assert launch(settings, resume=folder) == folder
    again = read_metrics(folder)
    assert [(row["phase"], row["step"]) for row in again] == [(row["phase"], row["step"]) for row in rows]
    assert changed(start, weights(folder / "checkpoints" / "update-0000002")) > 1e-5

    # and as if what AReaL goes on from had been lost
    shutil.rmtree(folder / "checkpoints" / "update-0000002")
    shutil.rmtree(root / "recover_info")
    with pytest.raises(CheckpointError, match="AReaL would go on after 0 updates, and the last whole checkpoint is that of 1"):
        launch(settings, resume=folder)


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["local", "ray"])
def test_the_model_learns_in_workers_of_areals_schedulers(scheduler: str, tmp_path: Path) -> None:
    """Single-controller mode: train engine and inference engine in a process each, weights through files. The workers build
    their scenes themselves, so these are the quick start's own."""
    few = ["train_towns=[Town01]", "train_scenes=16", "heldout_towns=[Town02]", "heldout_scenes=8"]
    training = ["steps=2", "scenes_per_step=4", "eval_every=0", "checkpoint_every=1", "threads=1"]
    overrides = [
        *(f"environment.{option}" for option in few),
        *(f"training.{option}" for option in (*training, "imitation.steps=3", "imitation.batch_size=8")),
        *("framework=areal", "algorithm.group_size=4", f"framework_options.scheduler.type={scheduler}", *WEIGHTED),
    ]
    command = [sys.executable, "-m", "vla_models", "train", "configs/navsim_quick.yaml", f"output_dir={tmp_path}", *overrides]
    environment = {k: v for k, v in os.environ.items() if k != "VLA_MODELS_SOURCES"}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr[-3000:]
    (folder,) = tmp_path.iterdir()
    learned = [row for row in read_metrics(folder) if row["phase"] == "rl"]
    assert [row["step"] for row in learned] == [1, 2]
    assert all(abs(row["ratio"] - 1.0) < 0.2 and row["invalid"] == 0 for row in learned)
    assert any(row["grad_norm"] > 0 for row in learned)
    start, last = (weights(folder / "checkpoints" / name) for name in ("imitation", "update-0000002"))
    assert changed(start, last) > 1e-6
    VLAForDriving.from_pretrained(folder / "checkpoints" / "model")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["small_tokens", "tiny_vla/gaussian", "small_flow", "small_adapted"])
def test_every_head_learns_asynchronously_in_many_decisions(model: str, launch: Launch) -> None:
    """Decoupled loss; episodes are driven while weights change, and go on with the new ones."""

    class Slow(loop.ToyDrive):
        def step(self, actions: Any) -> Any:
            import time

            time.sleep(0.25 if self.names[0] in ("go1", "go3") else 0.0)  # waiting longer than AReaL polls
            return super().step(0.05 * np.asarray(actions))  # the toy cuts ways off at 2 m, and all long plans would be alike

    adapter = type("SlowBench2Drive", (loop.ToyBench2Drive,), {"kind": Slow})
    options = ["framework_options.rollout.max_head_offpolicyness=1", "training.steps=4", "framework_options.vla.threads=4"]
    folder = launch(
        configuration("toy_drive", model, "training.eval_every=2", "framework_options.vla.environments=4", *options), adapter
    )
    learned = [row for row in read_metrics(folder) if row["phase"] == "rl"]
    assert [row["step"] for row in learned] == [1, 2, 3, 4]
    assert max(row["staleness_max"] for row in learned) >= 1
    assert all(np.isfinite(row["behave_ratio"]) for row in learned)
    start, last = (weights(folder / "checkpoints" / name) for name in ("imitation", "update-0000004"))
    assert changed(start, last) > 1e-6
    if model == "small_adapted":
        assert all(changed({name: start[name]}, last) == 0.0 for name in start if "base_layer" in name)
    assert "score" in json.loads((folder / "summary.json").read_text())["subscores"]["rl"]


@pytest.mark.slow
def test_a_strangers_model_trains_as_it_is(launch: Launch) -> None:
    """examples/bring_your_own_model.py, with a reference (its KL penalty needs a second engine)."""
    settings = configuration("navsim", "my_vla", "training.imitation.steps=2", "algorithm.kl_coef=0.01", *WEIGHTED)
    folder = launch(settings)
    start, last = (weights(folder / "checkpoints" / name) for name in ("imitation", "update-0000002"))
    assert changed(start, last) > 1e-6


@pytest.mark.slow
def test_a_run_in_which_nothing_can_be_learned_ends(launch: Launch) -> None:
    class Crashing(loop.ToyDrive):
        def step(self, actions: Any) -> Any:
            raise RuntimeError("the simulator is gone")

    adapter = type("GoneBench2Drive", (loop.ToyBench2Drive,), {"kind": Crashing})
    with pytest.raises(SceneError, match=r"rejected in a row .* last reason: RuntimeError: the simulator is gone"):
        launch(configuration("toy_drive", "small_gaussian"), adapter)


@pytest.mark.slow
def test_a_dry_run_is_started_by_its_command(tmp_path: Path) -> None:
    """In another process, with a script that registered model and environment."""
    script, parts = tmp_path / "mine.py", ("tests", "tests/frameworks", "tests/frameworks/areal", "examples")
    script.write_text(
        "import sys\n"
        f"sys.path[:0] = {[str(ROOT / part) for part in parts]!r}\n"
        "import loop\n"
        "from vla_models.model_registry import register_env_adapter\n"
        "register_env_adapter('my_world', 'areal')(type('Mine', (loop.ToyBench2Drive,), {'__module__': __name__}))\n"
    )
    settings = configuration("toy_drive", "small_gaussian", f"output_dir={tmp_path / 'runs'}", "training.eval_every=0")
    written = settings.to_yaml(tmp_path / "config.yaml")
    written.write_text(written.read_text().replace("type: toy_drive", "type: my_world"))  # which only the script knows
    code = (
        "import mine\nfrom vla_models.config import VLAConfig\nfrom vla_models.frameworks import get_dry_run\n"
        f"print(get_dry_run('areal')(VLAConfig.from_yaml({str(tmp_path / 'config.yaml')!r})))\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("AREAL_", "VLA_MODELS_SOURCES"))}
    environment |= {"PYTHONPATH": f"{ROOT}:{tmp_path}", "OMP_NUM_THREADS": "1"}
    dry = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert dry.returncode == 0, dry.stderr[-3000:]
    command = dry.stdout.strip().splitlines()[-1].removeprefix("#   ").replace(" python ", f" {sys.executable} ")
    ran = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stderr[-3000:]
    folder = Path(ran.stdout.strip().splitlines()[-1])
    assert [row["step"] for row in read_metrics(folder) if row["phase"] == "rl"] == [1, 2]


# -- before anything is started ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("framework_options.actor.no_such_key=1", "AReaL does not take this configuration: Key 'no_such_key'"),
        ("framework_options.actor.eps_clip=wide", "AReaL does not take this configuration"),
        ("framework_options.rollout.max_head_offpolicyness=-1", "give 0 \\(synchronous\\) or more"),
    ],
)
def test_what_areal_does_not_take_is_named_by_a_dry_run(
    override: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(VLAModelRegistry._env_adapters, "toy_drive", {"areal": loop.ToyBench2Drive})
    settings = configuration("toy_drive", "small_gaussian", f"output_dir={tmp_path}", override)
    dry_run = get_dry_run("areal")
    assert dry_run is not None
    with pytest.raises(ConfigError, match=message):
        dry_run(settings)


def test_names_of_another_run_are_named(tmp_path: Path) -> None:
    resolve = type("Resolve", (), {"type": "nfs", "nfs_record_root": str(tmp_path / "shared")})()
    left = tmp_path / "shared" / "user" / "vla-models" / "run" / "gen_servers"
    left.mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"nfs_record_root: .* is left from another run"):
        runner._clean_names(resolve, tmp_path / "run")
    own = type("Resolve", (), {"type": "nfs", "nfs_record_root": str(tmp_path / "run" / "areal" / "name_resolve")})()
    (tmp_path / "run" / "areal" / "name_resolve" / "x").mkdir(parents=True)
    runner._clean_names(own, tmp_path / "run")
    assert not (tmp_path / "run" / "areal" / "name_resolve").exists()


def test_the_translation_becomes_areals_configuration() -> None:
    settings = configuration(
        "navsim", "tiny_vla", "framework_options.rollout.max_head_offpolicyness=2", "algorithm.kl_coef=0.1"
    )
    native = loop.native_config.make(settings, Path("run"), Path("start"), Path("tokenizer"), 0)
    areal = runner.structured(native)
    assert areal.actor.use_decoupled_loss
    assert areal.actor.should_compute_prox_logp()
    assert areal.ref is not None
    assert areal.ref.optimizer is None
    assert areal.rollout.consumer_batch_size == areal.train_dataset.batch_size == 2
    assert areal.actor.optimizer.warmup_steps_proportion * settings.training.steps < 1
    assert torch.isclose(torch.tensor(areal.actor.eps_clip_higher), torch.tensor(settings.algorithm.clip_high))
