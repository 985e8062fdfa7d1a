"""The embedded trainer on a handful of scenes: what it writes, what it learns, and that it survives being killed."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import visible_scenes
from tabular import Tabular

from vla_models.config import VLAConfig
from vla_models.errors import CheckpointError, ConfigError, DivergenceError, NotImplementedByModel, SceneError
from vla_models.interface import VLAForDriving, VLAInterface
from vla_models.models.tiny_vla import TinyVLA
from vla_models.scoring.rewards import METRICS, Reward
from vla_models.training.metrics import MetricsLog, read_metrics
from vla_models.training.navsim_practice import NavSimPractice
from vla_models.training.trainer import Trainer

IMITATION, STEPS = 5, 4


def tiny_config(*overrides: str) -> VLAConfig:
    """A few steps of each phase, a checkpoint every second."""
    return VLAConfig.from_dict(
        {
            "model": {"options": {"dim": 32, "layers": 1, "heads": 2}},
            "environment": {"train_scenes": 4, "heldout_scenes": 2},
            "algorithm": {"group_size": 3, "kl_coef": 0.01, "entropy_coef": 0.001, "epochs": 2, "minibatches": 2},
            "training": {
                "steps": STEPS, "scenes_per_step": 2, "warmup_steps": 2, "eval_every": 2, "checkpoint_every": 2, "threads": 1,
                "imitation": {"steps": IMITATION, "batch_size": 3},
            },
        },
        overrides,
    )  # fmt: skip


def trainer(run_dir: Path, *overrides: str, model: VLAInterface | None = None, init: int = 0) -> Trainer:
    config = tiny_config(*overrides)
    run_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(init)
    scenes = visible_scenes(6)
    return Trainer(config, run_dir, model or TinyVLA(**config.model.options), NavSimPractice(config, scenes[:4], scenes[4:]))


def comparable(run_dir: Path) -> list[dict[str, Any]]:
    """The log without what a clock wrote."""
    return [{k: v for k, v in row.items() if not k.endswith("_s")} for row in read_metrics(run_dir)]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("unbroken")
    trainer(run_dir).run()
    return run_dir


def test_a_run_leaves_what_the_report_reads(unbroken: Path) -> None:
    summary = json.loads((unbroken / "summary.json").read_text())
    assert list(summary["heldout"]) == ["constant_velocity", "imitation", "rl", "pdm_closed"]
    assert (summary["framework"], summary["env"], summary["seed"]) == ("local", "navsim", 0)
    assert summary["wall_s"] > 0
    assert "torch" in summary["versions"]
    assert set(summary["subscores"]["rl"]) == set(METRICS["v1"]) - {"score"}
    with np.load(unbroken / "heldout.npz") as arrays:
        assert arrays["tokens"].tolist() == [scene.token for scene in visible_scenes(6)[4:]]
        assert arrays["rl_plans"].shape == (2, 8, 3)
        assert arrays["imitation_score"].mean() == pytest.approx(summary["heldout"]["imitation"])
    model = VLAForDriving.from_pretrained(unbroken / "checkpoints" / "model")
    assert isinstance(model, TinyVLA)
    assert list((unbroken / "tensorboard").iterdir())


def test_every_head_trains_and_a_resumed_run_keeps_its_statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = "algorithm.entropy_coef=0"
    monkeypatch.setattr(Trainer, "_reinforce", lambda self, done: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, head, model=TinyVLA(dim=32, layers=1, heads=2, policy_head={"type": "flow", "steps": 2})).run()
    monkeypatch.undo()
    resumed = trainer(tmp_path, head, model=TinyVLA(dim=32, layers=1, heads=2, policy_head={"type": "flow", "steps": 2}))
    resumed.run()
    saved = VLAForDriving.from_pretrained(tmp_path / "checkpoints" / "model")
    before = VLAForDriving.from_pretrained(tmp_path / "checkpoints" / "imitation")
    assert list(saved.statistics) == ["navsim-procedural"]
    assert saved.statistics == before.statistics
    rows = [row for row in read_metrics(tmp_path) if row["phase"] == "rl"]
    assert len(rows) == STEPS
    assert all(row["ratio_max_dev_first"] < 1e-4 for row in rows)
    assert all("entropy" not in row for row in rows)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("algorithm.top_p=0.9", "algorithm.top_p: a gaussian head has no tokens to leave out"),
        ("algorithm.entropy_coef=0.01", "algorithm.entropy_coef: the gaussian head of TinyVLA has no entropy"),
    ],
)
def test_what_a_head_cannot_do_is_named(tmp_path: Path, override: str, message: str) -> None:
    model = TinyVLA(dim=32, layers=1, heads=2, policy_head={"type": "gaussian"})
    with pytest.raises(ConfigError, match=message):
        trainer(tmp_path, "training.imitation.steps=0", override, model=model).run()


def test_a_run_without_updates_ends_with_imitation(tmp_path: Path) -> None:
    summary = trainer(tmp_path, "training.steps=0").run()
    assert list(summary["heldout"]) == ["constant_velocity", "imitation", "pdm_closed"]
    assert isinstance(VLAForDriving.from_pretrained(tmp_path / "checkpoints" / "model"), TinyVLA)


def test_the_log_has_a_row_for_every_step(unbroken: Path) -> None:
    rows = read_metrics(unbroken)
    assert [(row["phase"], row["step"]) for row in rows] == [
        *(("imitation", i + 1) for i in range(IMITATION)),
        ("eval", 0), ("rl", 1), ("rl", 2), ("eval", 2), ("rl", 3), ("rl", 4), ("eval", 4),
    ]  # fmt: skip
    wall = [row["wall_s"] for row in rows]
    assert wall == sorted(wall)
    for row in rows:
        if row["phase"] == "rl":
            assert row["ratio_max_dev_first"] < 1e-5
            assert {
                "loss",
                "reward_mean",
                "reward_std",
                "kl",
                "entropy",
                "clip_fraction",
                "grad_norm",
                "nc",
                "invalid",
            } <= row.keys()


@pytest.mark.parametrize("interrupted_at", [2, 4, 5, 7, 9, 11])
def test_an_interrupted_run_goes_on_to_the_same_end(
    unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted_at: int
) -> None:
    write, count = MetricsLog.write, 0

    def interrupting(self: MetricsLog, row: dict[str, Any]) -> None:
        nonlocal count
        count += 1
        if count == interrupted_at:
            raise KeyboardInterrupt
        write(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "write", interrupting)
        with pytest.raises(KeyboardInterrupt):
            trainer(tmp_path).run()
    # Another initialisation shows that all weights come back; before the first checkpoint there is nothing to come back to.
    trainer(tmp_path, init=0 if interrupted_at <= 2 else 99).run()
    assert comparable(tmp_path) == comparable(unbroken)
    results = [json.loads((run / "summary.json").read_text())["heldout"] for run in (tmp_path, unbroken)]
    assert results[0] == results[1]


KILLED = """
import sys
sys.path[:0] = [{tests!r}, {here!r}]
from pathlib import Path
from test_trainer import trainer
trainer(Path(sys.argv[1]), "training.steps=30", "training.imitation.steps=30", "training.checkpoint_every=3").run()
"""


@pytest.mark.slow
def test_kill_9_at_random_moments_changes_nothing(tmp_path: Path) -> None:
    here = Path(__file__).parent
    code = KILLED.format(tests=str(here.parent), here=str(here))

    def start(run_dir: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", code, str(run_dir)])

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert start(whole).wait() == 0
    moments, kills = random.Random(0), 0
    for target in sorted(moments.sample(range(3, 60), 3)):  # rows in the log at which to strike, in both phases
        process = start(broken)
        while process.poll() is None and len(read_metrics(broken)) < target:
            time.sleep(0.01)
        time.sleep(moments.uniform(0.0, 0.1))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills == 3
    assert start(broken).wait() == 0
    assert comparable(broken) == comparable(whole)
    summaries = [json.loads((run / "summary.json").read_text()) for run in (whole, broken)]
    assert summaries[0]["heldout"] == summaries[1]["heldout"]
    assert summaries[0]["subscores"] == summaries[1]["subscores"]


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_rl_finds_the_better_plans(tmp_path: Path, algorithm: str) -> None:
    trainer(
        tmp_path,
        f"algorithm.name={algorithm}",
        "algorithm.kl_coef=0.0", "algorithm.group_size=16",
        "training.imitation.steps=0", "training.steps=25", "training.scenes_per_step=4", "training.eval_every=0",
        "training.optimizer.lr=0.05",
        model=Tabular(),
    ).run()  # fmt: skip
    rewards = [row["reward_mean"] for row in read_metrics(tmp_path) if row["phase"] == "rl"]
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.05


def test_each_optimizer_and_the_driving_reward_run(tmp_path: Path) -> None:
    for kind in ("sgd", "adam"):
        trainer(
            tmp_path / kind,
            f"training.optimizer.type={kind}", "training.imitation.steps=0", "training.steps=2", "algorithm.kl_coef=0.0",
            "reward.type=driving", "reward.weights={collision: -10.0, success: 10.0}",
            model=Tabular(),
        ).run()  # fmt: skip
        assert comparable(tmp_path / kind)[1]["reward_mean"] != comparable(tmp_path / kind)[1]["score"]


def test_divergence_stops_with_the_step(tmp_path: Path) -> None:
    def run(name: str, model: VLAInterface, *overrides: str) -> None:
        trainer(tmp_path / name, "training.imitation.steps=0", "algorithm.kl_coef=0.0", *overrides, model=model).run()

    with pytest.raises(DivergenceError, match=r"rl step 1: before any update the ratio differs from 1 .*Tabular"):
        run("replay", Tabular(replay_error=0.01))

    class Lost(Tabular):
        def evaluate_actions(self, record: Any, **wanted: Any) -> dict[str, torch.Tensor]:
            return {
                name: value * math.nan if name == "logprobs" else value
                for name, value in super().evaluate_actions(record, **wanted).items()
            }

    with pytest.raises(DivergenceError, match=r"rl step 1: the loss is nan"):
        run("nan", Lost())

    class Exploding(Tabular):
        def evaluate_actions(self, record: Any, **wanted: Any) -> dict[str, torch.Tensor]:
            out = super().evaluate_actions(record, **wanted)
            out["logprobs"].register_hook(lambda gradient: gradient * math.inf)
            return out

    with pytest.raises(DivergenceError, match=r"rl step 1: the gradient's norm is"):
        run("gradient", Exploding(), "algorithm.group_size=16")


class Failing(Reward):
    """Has no number for every ``nth`` plan of a scene."""

    nth = 3

    def __call__(self, scores: Any) -> Any:
        reward, terms = super().__call__(scores)
        reward = reward.copy()
        reward[:, :: self.nth] = np.nan
        return reward, terms


def test_invalid_episodes_are_left_out_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("training.imitation.steps=0", "algorithm.kl_coef=0.0", "algorithm.group_size=6")
    some = trainer(tmp_path / "some", *options, model=Tabular())
    some.practice.env.reward = Failing()
    some.run()
    rows = [row for row in read_metrics(tmp_path / "some") if row["phase"] == "rl"]
    assert [row["invalid"] for row in rows] == [4] * STEPS
    assert all(math.isfinite(row["reward_mean"]) for row in rows)

    monkeypatch.setattr(Failing, "nth", 1)
    none = trainer(tmp_path / "none", *options, model=Tabular())
    none.practice.env.reward = Failing()
    with pytest.raises(SceneError, match="rl step 1: the scorer had a number for none of 12 plans"):
        none.run()


def test_answers_that_are_no_plans_are_rewarded_as_configured_and_counted(tmp_path: Path) -> None:
    options = ("training.imitation.steps=0", "algorithm.kl_coef=0.0", "algorithm.group_size=6")
    trainer(tmp_path / "some", *options, "reward.invalid=-1.0", model=Tabular(no_plan=(1, 4))).run()
    rows = [row for row in read_metrics(tmp_path / "some") if row["phase"] == "rl"]
    assert all(row["invalid"] == 0 for row in rows)
    assert sum(row["invalid_answers"] for row in rows) > 0
    assert all(row["reward_mean"] < row["score"] for row in rows if row["invalid_answers"])
    trainer(tmp_path / "left", *options, "reward.invalid=exclude", model=Tabular(no_plan=(1, 4))).run()
    rows = [row for row in read_metrics(tmp_path / "left") if row["phase"] == "rl"]
    assert sum(row["invalid_answers"] for row in rows) > 0
    assert all(row["invalid"] == row["invalid_answers"] for row in rows)
    mute = trainer(tmp_path / "none", *options, "reward.invalid=exclude", model=Tabular(no_plan=(0, 1, 2, 3, 4)))
    with pytest.raises(SceneError, match=r"rl step 1: none of 12 answers was a plan.*reward.invalid"):
        mute.run()


def test_a_number_that_is_not_finite_never_reaches_the_log(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log, pytest.raises(DivergenceError, match="rl step 3: kl is not finite"):
        log.write({"phase": "rl", "step": 3, "kl": math.inf})
    assert read_metrics(tmp_path) == []
    assert read_metrics(tmp_path / "nowhere") == []


def test_what_cannot_be_trained_is_named_before_anything_is_done(tmp_path: Path) -> None:
    scenes = visible_scenes(6)
    with pytest.raises(SceneError, match="train_scenes"):
        NavSimPractice(tiny_config(), [], scenes)
    with pytest.raises(SceneError, match="heldout_scenes"):
        NavSimPractice(tiny_config(), scenes, [])
    with pytest.raises(NotImplementedByModel, match="Tabular cannot imitate"):
        trainer(tmp_path, model=Tabular()).run()

    class Mute(VLAForDriving):
        pass

    with pytest.raises(ConfigError, match="cannot be trained"):
        trainer(tmp_path, model=Mute())


def test_a_damaged_checkpoint_stops_the_resumed_run(unbroken: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "step-1-0000002"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"step-1-0000002/state\.json"):
        trainer(tmp_path).run()
