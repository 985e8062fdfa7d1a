"""Practice on routes: branches of one state, values that bootstrap, failed worlds left out, and exact resumption."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tabular import SPEEDS, Tabular

from vla_models import report
from vla_models.config import VLAConfig
from vla_models.errors import NotImplementedByModel, SceneError
from vla_models.frameworks.run_folder import FrameworkRun
from vla_models.interface import VLAForDriving, VLAInterface, VLAPrediction
from vla_models.models.tiny_vla import TinyVLA
from vla_models.scenes.bench2drive.made_routes import generate_route
from vla_models.scenes.bench2drive.routes import Route
from vla_models.simulation.tables import E_X
from vla_models.simulation.world import World
from vla_models.training import route_practice
from vla_models.training.learner import Learner
from vla_models.training.metrics import MetricsLog, read_metrics
from vla_models.training.route_imitation import expert_drives, expert_record
from vla_models.training.route_practice import RoutePractice
from vla_models.training.trainer import Trainer

SMALL: dict[str, Any] = {"dim": 16, "layers": 1, "heads": 2, "image_size": [16, 32]}


@lru_cache(maxsize=1)
def routes() -> tuple[Route, ...]:
    kinds = ("PedestrianCrossing", "StaticCutIn", "T_Junction")
    return tuple(generate_route("Town05", kind, seed) for seed, kind in enumerate(kinds))


@pytest.fixture(autouse=True)
def few_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three routes for training and two for evaluation, in the place of generated ones."""
    from vla_models.envs import bench2drive

    init = bench2drive.Bench2DriveEnv.__init__

    def made(self: Any, num_envs: int, *, routes: Any, **options: Any) -> None:
        init(self, num_envs, routes=chosen[routes.towns], **options)

    chosen = {("Town05",): routes(), ("Town03",): routes()[:2]}
    monkeypatch.setattr(bench2drive.Bench2DriveEnv, "__init__", made)


def config(*overrides: str) -> VLAConfig:
    return VLAConfig.from_dict(
        {
            "model": {"options": SMALL},
            "environment": {
                "type": "bench2drive", "train_towns": ["Town05"], "heldout_towns": ["Town03"], "train_scenes": 3,
                "heldout_scenes": 2, "camera": {"width": 32, "height": 16}, "max_ticks": 300,
            },
            "reward": {"type": "driving", "weights": {"progress": 1.0, "collision": -0.5}},
            "algorithm": {"group_size": 3, "gamma": 0.9, "minibatches": 2},
            "training": {
                "steps": 4, "scenes_per_step": 2, "decisions_per_step": 3, "warmup_steps": 0, "eval_every": 2,
                "checkpoint_every": 2, "threads": 1, "imitation": {"steps": 3, "batch_size": 4},
            },
        },
        overrides,
    )  # fmt: skip


PPO = ("algorithm.name=ppo", "algorithm.group_size=1", "training.scenes_per_step=3")


def practice(*overrides: str, model: VLAInterface | None = None) -> tuple[RoutePractice, VLAInterface]:
    settings = config(*overrides)
    torch.manual_seed(0)
    model = model or TinyVLA(**settings.model.options)
    return RoutePractice(settings, model.spec), model.eval()


def tables(made: RoutePractice) -> list[Any]:
    return list(made.env.world.tables)


# -- groups ----------------------------------------------------------------------------------------------------------------


def test_a_group_begins_in_one_state_and_goes_on_from_one_of_its_branches() -> None:
    made, model = practice()
    for step in range(3):
        before = made._driving and [made.env.world.ego[n].tolist() for n in range(6)]
        if before:
            assert before[0] == before[1] == before[2]
            assert before[3] == before[4] == before[5]
        batch = made.collect(model, step)
        assert (batch.log["decisions"], len(batch.valid)) == (18, 6), "one of three is learned from"
        assert batch.returns is None
    assert [len(driven) for driven in made._driving.plans] == [9] * 6  # type: ignore[union-attr]


def test_which_branch_goes_on_is_drawn_at_random(monkeypatch: pytest.MonkeyPatch) -> None:
    made, model = practice("algorithm.group_size=4", "training.scenes_per_step=1", "training.decisions_per_step=1")
    sources = []
    branch = route_practice.Driving.branch
    monkeypatch.setattr(route_practice.Driving, "branch", lambda self, rows: (sources.append(rows[0]), branch(self, rows)))
    for step in range(12):
        made.collect(model, step)
    assert len(set(sources)) > 1


def test_a_group_samples_once_and_drives_on_with_the_likeliest_plans() -> None:
    made, model = practice(model=Tabular())
    with torch.no_grad():
        model.logits[2] = 0.1  # type: ignore[index,operator]
    batch = made.collect(model, 0)
    assert model.calls == [2, 6, 6], "what a group sees at first is read once"
    assert len(set(batch.record["tokens"].tolist())) > 1
    driven = np.array(made._driving.plans)  # type: ignore[union-attr]
    assert np.allclose(driven[:, 1:, -1, 0], 4.0 * SPEEDS[2])


def test_advantages_compare_what_followed_the_first_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    made, model = practice("algorithm.normalize_advantage=false")
    seen = []
    drive = route_practice.drive_segment
    monkeypatch.setattr(route_practice, "drive_segment", lambda *a, **k: seen.append(drive(*a, **k)) or seen[-1])
    batch = made.collect(model, 0)
    (segment,) = seen
    rewards = segment.rewards.astype(np.float64)
    earned = (rewards[0] + 0.9 * rewards[1] + 0.81 * rewards[2]).reshape(2, 3)
    expected = (earned - earned.mean(axis=1, keepdims=True)).flatten()
    assert np.allclose(batch.advantages.numpy(), expected, atol=1e-6)
    assert batch.log["reward_mean"] == pytest.approx(rewards.mean(), abs=1e-7)
    assert batch.log["reward_mean"] == pytest.approx(batch.log["term/progress"] - 0.5 * batch.log["term/collision"], abs=1e-7)


# -- values ----------------------------------------------------------------------------------------------------------------


class Valued(Tabular):
    """Values are the speed: every state's is known. It can be told which token to drive."""

    token: int | None = None

    def predict(self, inputs: Any, **kwargs: Any) -> VLAPrediction:
        found = super().predict(inputs, **kwargs)
        found.values = torch.tensor([given.ego_state["speed"] for given in inputs])
        if self.token is not None:
            found.waypoints[:] = 0.0
            found.waypoints[..., 0] = SPEEDS[self.token] * 0.5 * np.arange(1, 9)
        return found


def test_limits_bootstrap_and_ends_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    made, model = practice(*PPO, "environment.max_ticks=25", "training.decisions_per_step=4", model=Valued())
    model.token = 3  # type: ignore[assignment]
    seen = []
    drive = route_practice.drive_segment
    monkeypatch.setattr(route_practice, "drive_segment", lambda *a, **k: seen.append(drive(*a, **k)) or seen[-1])
    batch = made.collect(model, 0)
    (segment,) = seen
    assert segment.ended[:, 0].tolist() == [False, False, True, False], "25 ticks are three decisions of 10"
    assert segment.values[0, 0] == segment.values[3, 0] == 0.0, "the next route began at once, from rest"
    assert np.array_equal(segment.next_values[0], segment.values[1])
    assert (segment.next_values[2] > segment.next_values[1]).all(), "still speeding up where the limit cut the drive off"
    assert (segment.next_values[3] > 0.0).all(), "and where the update ended"
    assert batch.log["episodes"] == 3
    assert batch.returns is not None
    assert len(batch.valid) == 12

    def completed(self: Any, actions: Any) -> Any:
        observation, reward, _, _, info = step(self, actions)
        return observation, reward, np.ones(self.num_envs, dtype=bool), np.zeros(self.num_envs, dtype=bool), info

    step = type(made.env).step
    monkeypatch.setattr(type(made.env), "step", completed)
    made.collect(model, 1)
    assert seen[-1].ended.all()
    assert not seen[-1].next_values.any()


def test_a_model_without_values_or_records_is_named() -> None:
    class Silent(Tabular):
        def predict(self, inputs: Any, **kwargs: Any) -> VLAPrediction:
            found = super().predict(inputs, **kwargs)
            found.values = None
            return found

    made, model = practice(*PPO, model=Silent())
    with pytest.raises(NotImplementedByModel, match="Silent cannot be trained with ppo"):
        made.collect(model, 0)

    class Forgetful(Tabular):
        def predict(self, inputs: Any, **kwargs: Any) -> VLAPrediction:
            found = super().predict(inputs, **kwargs)
            found.record = None
            return found

    made, model = practice(model=Forgetful())
    with pytest.raises(NotImplementedByModel, match="Forgetful cannot be trained: its predict returns no record"):
        made.collect(model, 0)


# -- what fails ------------------------------------------------------------------------------------------------------------


def broken(rows: tuple[int, ...], at: int) -> Callable[..., None]:
    """A ``World.step`` in which some rows get a number that is not finite at a step."""
    step, calls = World.step, 0

    def failing(self: World, plans: Any, **how: Any) -> None:
        nonlocal calls
        step(self, plans, **how)
        calls += 1
        if calls == at:
            self.tables.env[list(rows), E_X] = math.nan

    return failing


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_episodes_whose_world_failed_are_left_out_and_counted(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, model = practice(*(PPO if algorithm == "ppo" else ()))
    rows = made.env.num_envs
    with monkeypatch.context() as patch:
        patch.setattr(World, "step", broken((1,), at=2))
        batch = made.collect(model, 0)
    lost = 2 if algorithm == "ppo" else 1  # the decision in which it failed, and the one before, which alone grpo learns from
    assert batch.log["invalid"] == lost
    assert len(batch.valid) == (3 * rows if algorithm == "ppo" else rows)
    assert batch.log["decisions"] == (3 * rows if algorithm == "ppo" else 3 * rows - 1)  # grpo: the row waits
    assert not batch.advantages[~batch.valid].any()
    assert math.isfinite(batch.log["reward_mean"])
    after = made.collect(model, 1)
    assert after.valid.all(), "the row drives again"
    assert np.isfinite(made.env.world.ego).all()


def test_an_update_without_a_valid_decision_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    made, model = practice()
    monkeypatch.setattr(World, "step", broken(tuple(range(6)), at=1))
    with pytest.raises(SceneError, match=r"rl step 1: none of 6 decisions can be learned from: 0 answers .* the world failed"):
        made.collect(model, 0)


def test_answers_that_are_no_plans_brake_and_are_rewarded_as_configured() -> None:
    tokens = (1, 2, 4)
    made, model = practice("reward.invalid=-2.0", model=Tabular(no_plan=tokens))
    batch = made.collect(model, 0)
    bad = torch.isin(batch.record["tokens"], torch.tensor(tokens))
    assert batch.log["invalid_answers"] == int(bad.sum()) > 0
    assert batch.valid.all()
    assert batch.log["reward_mean"] < -2.0 * int(bad.sum()) / batch.log["decisions"] + 0.1
    made, model = practice("reward.invalid=exclude", model=Tabular(no_plan=tokens))
    batch = made.collect(model, 0)
    assert torch.equal(batch.valid, ~bad)
    assert batch.log["invalid"] == batch.log["invalid_answers"]


# -- going on --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_a_restored_practice_stands_exactly_where_it_stood(algorithm: str) -> None:
    overrides = (*(PPO if algorithm == "ppo" else ()), "environment.max_ticks=140")
    made, model = practice(*overrides)
    assert made.state() == {}
    for step in range(6):  # 18 decisions: on the second route
        made.collect(model, step)
    state = {name: part.clone() for name, part in made.state().items()}
    assert int(state["begun"]) > len(state["scenes"])
    assert state["decisions"].tolist() == [4 if algorithm == "ppo" else 3] * len(state["scenes"]), (
        "a group waits for the next update"
    )
    again, _ = practice(*overrides)
    again.restore(state)
    for mine, theirs in zip(tables(again), tables(made), strict=True):
        shape = tuple(slice(0, min(a, b)) for a, b in zip(mine.shape, theirs.shape, strict=True))
        assert np.array_equal(mine[shape], theirs[shape])
    first, second = made.collect(model, 6), again.collect(model, 6)
    assert torch.equal(first.advantages, second.advantages)
    assert torch.equal(first.logprobs, second.logprobs)
    assert first.log == second.log
    assert all(torch.equal(part, second.record[name]) for name, part in first.record.items())


def run(folder: Path, *overrides: str, init: int = 0) -> Path:
    settings = config(*overrides)
    folder.mkdir(exist_ok=True)
    torch.manual_seed(init)
    model = TinyVLA(**settings.model.options)
    Trainer(settings, folder, model, RoutePractice(settings, model.spec)).run()
    return folder


def comparable(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.endswith("_s")} for row in read_metrics(folder)]


@pytest.mark.parametrize("algorithm", ["grpo", pytest.param("ppo", marks=pytest.mark.slow)])
def test_an_interrupted_run_goes_on_to_the_same_end(algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = PPO if algorithm == "ppo" else ("algorithm.kl_coef=0.01",)
    whole = run(tmp_path / "whole", *overrides)
    write, count = MetricsLog.write, 0

    def interrupting(self: MetricsLog, row: dict[str, Any]) -> None:
        nonlocal count
        count += 1
        if count == 8:  # 3 of imitation, eval, 2 updates, eval: the third update
            raise KeyboardInterrupt
        write(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "write", interrupting)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "broken", *overrides)
    run(tmp_path / "broken", *overrides, init=99)
    assert comparable(tmp_path / "broken") == comparable(whole)
    rows = [row for row in comparable(whole) if row["phase"] == "rl"]
    assert all(row["ratio_max_dev_first"] < 1e-4 for row in rows)
    summary = json.loads((whole / "summary.json").read_text())
    assert list(summary["heldout"]) == ["constant_velocity", "imitation", "rl", "rule_based"]
    assert summary["heldout"]["rule_based"] == summary["subscores"]["rule_based"]["driving_score"]
    with np.load(whole / "heldout.npz") as arrays:
        assert arrays["tokens"].tolist() == [route.id for route in routes()[:2]]
        assert arrays["scenarios"].tolist() == ["PedestrianCrossing", "StaticCutIn"]
        assert arrays["rl_score"].mean() == pytest.approx(summary["heldout"]["rl"])
    assert isinstance(VLAForDriving.from_pretrained(whole / "checkpoints" / "model"), TinyVLA)


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_rl_learns_to_drive_on(algorithm: str) -> None:
    overrides = PPO if algorithm == "ppo" else ()
    made, model = practice(
        *overrides, "algorithm.minibatches=1", "training.decisions_per_step=4", "environment.max_ticks=120",
        "training.optimizer.lr=0.1", model=Tabular(),
    )  # fmt: skip
    learner = Learner(made.config, model)
    learner.optimizer = learner.make_optimizer("rl")
    progress = []
    for step in range(20):
        batch = made.collect(model, step)
        learner.learn(batch, step, np.random.default_rng(step))
        progress.append(batch.log["term/progress"])
    assert np.mean(progress[-5:]) > 1.3 * np.mean(progress[:5])


def test_a_frameworks_run_starts_and_ends_like_a_local_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "write_report", lambda run: None)  # its films have tests of their own
    settings = config(f"output_dir={tmp_path}", "framework=rlinf", "training.steps=1")
    framework = FrameworkRun(settings)
    framework.prepare()
    assert isinstance(VLAForDriving.from_pretrained(framework.start), TinyVLA)
    framework.write("rl", 1, {"reward_mean": 0.1})
    framework.keep_checkpoint(1, framework.model.state_dict())
    framework.finish(1, dict)
    assert [(row["phase"], row["step"]) for row in read_metrics(framework.path)] == [
        ("imitation", 1), ("imitation", 2), ("imitation", 3), ("eval", 0), ("rl", 1), ("eval", 1),
    ]  # fmt: skip
    summary = json.loads((framework.path / "summary.json").read_text())
    assert list(summary["heldout"]) == ["constant_velocity", "imitation", "rl", "rule_based"]
    assert summary["heldout"]["rl"] == summary["heldout"]["imitation"], "the weights were left as they are"


# -- the expert ------------------------------------------------------------------------------------------------------------


def test_the_expert_drives_every_route_and_its_undisturbed_decisions_are_its_own() -> None:
    made, model = practice()
    inputs, plans = expert_drives(made.env, seed=1, limit=10_000)
    assert len(inputs) == len(plans) > 3 * 15
    assert {given.images["front"].shape for given in inputs} == {(16, 32, 3)}  # type: ignore[index,union-attr]
    again, same = expert_drives(made.env, seed=1, limit=20)
    assert np.array_equal(same, plans[:20])
    assert all(np.array_equal(a.route, b.route) for a, b in zip(again, inputs, strict=False))
    assert not np.array_equal(expert_drives(made.env, seed=2, limit=20)[1], plans[:20])
    steady = expert_drives(practice()[0].env, seed=1, limit=len(plans))[1]
    assert np.array_equal(steady, plans), "whatever was driven before"

    record = expert_record(model, made.env, "routes", seed=1, limit=20)
    assert {len(part) for part in record.values()} == {20}
    decided = record["action_tokens"]
    assert torch.equal(decided, expert_record(model, made.env, "routes", seed=1, limit=20)["action_tokens"])


def test_disturbances_lead_off_the_experts_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from vla_models.training import route_imitation

    def lateral() -> float:
        inputs, _ = expert_drives(practice()[0].env, seed=3, limit=150)
        return float(np.mean([abs(given.route[0, 1]) for given in inputs]))  # type: ignore[index]

    disturbed = lateral()
    monkeypatch.setattr(route_imitation, "DISTURBED", 0.0)
    assert disturbed > 1.2 * lateral()


def test_a_model_that_cannot_imitate_is_named() -> None:
    made, model = practice(model=Tabular())
    with pytest.raises(NotImplementedByModel, match="Tabular cannot imitate"):
        made.imitation_record(model)
