"""The translation into RLinf's configuration, without RLinf: what is refused, what is written, what 0.4.0 should have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vla_models.config import VLAConfig
from vla_models.errors import CheckpointError, ConfigError, DivergenceError, MissingDependency
from vla_models.frameworks.observations import ObservationLayout
from vla_models.frameworks.records import RecordLayout
from vla_models.frameworks.rlinf import compat, native, runner
from vla_models.frameworks.rlinf.launch import launch
from vla_models.inputs import VLASpec

RECORDED = json.loads((Path(__file__).parent.parent / "data" / "rlinf" / "names_0.4.0.json").read_text())


def config(*overrides: str) -> VLAConfig:
    return VLAConfig.from_dict(
        {"framework": "rlinf", "algorithm": {"group_size": 4}, "training": {"scenes_per_step": 4}}, overrides
    )


def made(settings: VLAConfig, decisions: int = 1, devices: int = 0) -> dict[str, Any]:
    return native.make(
        settings, Path("run"), Path("start"), spec=VLASpec(horizon=8), max_decisions=decisions,
        observation=ObservationLayout({}, {}, True), record=RecordLayout({}, 8), devices=devices,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("framework=verl", "framework: 'verl' has a launcher of its own"),
        ("algorithm.kl_coef=0.1", r"algorithm\.kl_coef: RLinf's embodied trainer has no KL term"),
        ("training.optimizer.type=sgd", r"training\.optimizer\.type: RLinf trains with adamw only"),
        ("training.steps=0", r"training\.steps: RLinf needs at least one update"),
        ("training.checkpoint_every=30", r"training\.checkpoint_every: 30 is no multiple of training\.eval_every \(25\)"),
    ],
)
def test_what_rlinf_cannot_do_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        native.check_config(config(override))


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as e:
        native.check_config(config("algorithm.kl_coef=0.1", "training.optimizer.type=sgd", "algorithm.name=ppo",
                                   "algorithm.normalize_advantage=false"))  # fmt: skip
    assert [line.split(":")[0] for line in str(e.value).splitlines()] == [
        "algorithm.kl_coef", "training.optimizer.type", "algorithm.normalize_advantage",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "algorithm.logprob_type=action_level",
            r"framework_options\.algorithm\.logprob_type: 'action_level' would scale the loss",
        ),
        ("algorithm.reward_type=action_level", r"algorithm\.reward_type"),
        ("algorithm.adv_type=grpo", "knows no invalid episodes"),
        ("env.train.auto_reset=true", "must be false with grpo"),
        ("env.train.ignore_terminations=true", "must be false with grpo"),
        ("rollout.sampling_params.temperature_eval=0.6", "evaluation is deterministic"),
        ("rollout.sampling_params.top_k=50", "models have no top_k"),
        ("actor.model.num_action_chunks=8", "a plan is one action"),
        ("actor.model.is_lora=true", "lora_enabled"),
        ("actor.micro_batch_size=5", r"actor\.micro_batch_size: batches of 16 do not divide into 5 × 1 actor workers"),
        ("env.train.total_num_envs=6", r"training\.scenes_per_step: 1 groups cannot be shared"),
    ],
)
def test_what_rlinf_would_train_wrongly_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        native.check(made(config(f"framework_options.{override}")), 0)


@pytest.mark.parametrize(
    ("overrides", "devices", "message"),
    [
        (["training.scenes_per_step=3"], 2, r"training\.scenes_per_step: 3 groups cannot be shared by 2 env workers"),
        (["environment.heldout_scenes=201"], 2, r"environment\.heldout_scenes: 201 rows cannot be shared by 2 env"),
        (["algorithm.minibatches=3"], 0, r"algorithm\.minibatches: 16 decisions of an update do not divide"),
        (["algorithm.minibatches=16"], 2, r"framework_options\.actor\.micro_batch_size: batches of 1 do not divide"),
    ],
)
def test_sizes_that_do_not_divide_are_refused_by_the_users_keys(overrides: list[str], devices: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        native.check(made(config(*overrides), devices=devices), devices)


def test_refusals_come_before_a_folder_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="minibatches"):
        launch(config("algorithm.minibatches=3", f"output_dir={tmp_path}"))
    if compat.installed() is None:
        with pytest.raises(MissingDependency, match="make env-rlinf"):
            launch(config(f"output_dir={tmp_path}"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("steps", [1, 7, 25, 40])
@pytest.mark.parametrize("every_eval", [0, 5, 25])
@pytest.mark.parametrize("every_save", [0, 25])
def test_the_last_update_is_saved_and_intervals_divide(steps: int, every_eval: int, every_save: int) -> None:
    """By RLinf's rule (rlinf/utils/runner_utils.py, check_progress): at a multiple, and at the end whatever the interval."""
    settings = config(f"training.steps={steps}", f"training.eval_every={every_eval}", f"training.checkpoint_every={every_save}")
    run = made(settings)["runner"]
    assert run["save_interval"] > 0
    assert run["val_check_interval"] == (every_eval or -1)
    assert not every_eval or run["save_interval"] % every_eval == 0
    if not every_save:
        assert not any(step % run["save_interval"] == 0 for step in range(1, steps))


def test_ppo_with_many_decisions_resets_itself_and_bootstraps() -> None:
    settings = config("algorithm.name=ppo")
    many, one = made(settings, decisions=100), made(settings)
    assert many["env"]["train"]["auto_reset"]
    assert not many["env"]["eval"]["auto_reset"]
    assert many["env"]["train"]["max_steps_per_rollout_epoch"] == 8
    assert many["algorithm"]["adv_type"] == "gae"
    assert many["actor"]["model"]["add_value_head"]
    assert many["actor"]["global_batch_size"] == 16 * 8
    assert not one["env"]["train"]["auto_reset"]
    assert one["algorithm"]["gamma"] == 1.0
    grpo = made(config(), decisions=100)
    assert not grpo["env"]["train"]["auto_reset"]
    assert grpo["env"]["train"]["max_steps_per_rollout_epoch"] == 100


def test_placement_counts_workers() -> None:
    for text, expected in (("0", 1), ("0-7", 8), ("0:0-3", 4), ("all", 2), ("0-1,4", None)):
        assert native.processes({"actor, env": text}, "env", 2) == expected
    assert native.processes({"actor": "0"}, "env", 2) is None
    whole = made(config("framework_options.cluster.component_placement={'actor,env,rollout': '0-1'}"), devices=2)
    assert whole["cluster"]["component_placement"] == {"actor,env,rollout": "0-1"}


def test_options_replace_keys_and_leave_their_neighbours() -> None:
    changed = made(config("framework_options.actor.fsdp_config.strategy=fsdp"))
    assert changed["actor"]["fsdp_config"]["strategy"] == "fsdp"
    assert changed["actor"]["fsdp_config"]["save_full_model_weights"]


# -- what comes back -------------------------------------------------------------------------------------------------------


def test_means_are_taken_over_valid_episodes() -> None:
    data = {"env/score": 0.3, "env/return": 0.6, "env/valid": 0.75, "env/invalid_answers": 0.5, "env/num_trajectories": 8}
    means = runner.episode_means(data, "env/")
    assert means == {"score": pytest.approx(0.4), "return": pytest.approx(0.8), "invalid": 2, "invalid_answers": 4}
    data |= {"train/actor/total_loss": 1.0}
    row = runner.row_of({**data, "train/actor/entropy_loss": 0.0, "train/critic/value_loss": 0.5, "time/step": 3.0}, 1)
    spent = {"generate_rollouts": 2.0, "rollout/predict": 1.5, "env/env_interact_step": 0.25, "actor/run_training": 0.5}
    timed = runner.row_of({**data, **{f"time/{name}": value for name, value in spent.items()}}, 1)
    assert [timed[name] for name in ("rollout_s", "sample_s", "score_s", "update_s")] == [2.0, 1.5, 0.25, 0.5]
    assert row["reward_mean"] == pytest.approx(0.8)
    assert row["value_loss"] == 0.5
    assert row["step_s"] == 3.0
    assert "entropy" not in row
    nothing = {"env/score": 0.0, "env/valid": 0.0, "env/num_trajectories": 4}
    assert runner.episode_means(nothing, "env/") == {"invalid": 4, "invalid_answers": 0}


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    with pytest.raises(DivergenceError, match="rl step 7: the loss is nan"):
        runner.row_of({"train/actor/total_loss": float("nan")}, 7)


def test_weights_come_out_of_rlinfs_checkpoint_under_their_own_names(tmp_path: Path) -> None:
    file = runner.checkpoint_folder(tmp_path, 3) / "actor" / "model_state_dict" / "full_weights.pt"
    with pytest.raises(CheckpointError, match=r"global_step_3 has no actor/model_state_dict/full_weights\.pt"):
        runner.read_weights(runner.checkpoint_folder(tmp_path, 3))
    file.parent.mkdir(parents=True)
    torch.save({"model.body.weight": torch.ones(2), "model.model.x": torch.zeros(1)}, file)
    assert runner.read_weights(runner.checkpoint_folder(tmp_path, 3)).keys() == {"body.weight", "model.x"}


# -- 0.4.0, which was never run ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(compat.PLACES))
def test_rlinf_0_4_has_it(name: str) -> None:
    """Recorded from its source (commit in the file): each thing is at one of the places where we look."""
    assert any(place in RECORDED["names"] for place in compat.PLACES[name])


def test_rlinf_0_4_takes_our_arguments() -> None:
    def recorded(name: str, method: str | None = None) -> set[str]:
        entry = next(RECORDED["names"][place] for place in compat.PLACES[name] if place in RECORDED["names"])
        return set((entry["methods"][method] if method else entry)["args"])

    assert {"model_type", "model_builder", "category", "force"} <= recorded("register_model")
    assert recorded("register_advantage") == {"name"}
    assert {"cluster_cfg", "distributed_log_dir"} <= recorded("Cluster", "__init__")
    assert {"cfg", "actor", "rollout", "env"} <= recorded("EmbodiedRunner", "__init__")
    assert recorded("EmbodiedRunner", "_save_checkpoint") == {"self"}
    assert {"env_cls", "env_cfg", "num_envs_per_stage"} <= recorded("EnvWorker", "_setup_env_and_wrappers")
    entry = RECORDED["names"]["rlinf.data.schema.embodied_types:EnvOutput"]
    assert {"obs", "final_obs", "dones", "terminations", "truncations", "rewards"} <= set(entry["fields"])
