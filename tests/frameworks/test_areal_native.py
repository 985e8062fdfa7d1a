"""The translation into AReaL's configuration, without AReaL: what is refused, what is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vla_models.config import VLAConfig
from vla_models.errors import CheckpointError, ConfigError, DivergenceError, MissingDependency
from vla_models.frameworks.areal import compat, native, runner
from vla_models.frameworks.areal.launch import command, launch
from vla_models.frameworks.areal.recording import episode_means, row_of
from vla_models.frameworks.areal.sequences import Staleness


def config(*overrides: str) -> VLAConfig:
    return VLAConfig.from_dict(
        {"framework": "areal", "algorithm": {"group_size": 4}, "training": {"scenes_per_step": 4, "threads": 2}}, overrides
    )


def made(*overrides: str, devices: int = 0) -> dict[str, Any]:
    return native.make(config(*overrides), Path("run"), Path("start"), Path("tokenizer"), devices)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("framework=verl", "framework: 'verl' has a launcher of its own"),
        ("algorithm.name=ppo", r"algorithm\.name: ppo needs a critic, which in AReaL is a second model"),
        ("algorithm.entropy_coef=0.1", r"algorithm\.entropy_coef: AReaL's loss has no entropy bonus"),
        ("algorithm.epochs=2", r"algorithm\.epochs: AReaL passes over a batch once"),
        ("training.steps=0", r"training\.steps: AReaL needs at least one update"),
        ("framework_options.vla.rout=tokens", r"framework_options\.vla\.rout: no such key; .* Did you mean 'route'"),
        ("framework_options.vla.route=token", r"framework_options\.vla\.route: 'token'; known: record, tokens"),
        ("framework_options.vla=record", r"framework_options\.vla: give a mapping of route, environments, threads, limit"),
    ],
)
def test_what_areal_cannot_do_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        native.check_config(config(override))


def test_adam_with_decay_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"training\.optimizer\.type: AReaL's adam is AdamW; use adamw"):
        native.check_config(config("training.optimizer.type=adam", "training.optimizer.weight_decay=0.1"))


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as e:
        native.check_config(config("algorithm.epochs=2", "algorithm.entropy_coef=0.1", "framework_options.vla.x=1"))
    assert [line.split(":")[0] for line in str(e.value).splitlines()] == [
        "algorithm.entropy_coef", "algorithm.epochs", "framework_options.vla.x",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("gconfig.n_samples=4", r"gconfig\.n_samples: 4; it must be 1: a rollout drives a whole group"),
        ("train_dataset.shuffle=true", r"train_dataset\.shuffle: True; it must be False"),
        ("actor.discount=0.9", r"actor\.discount: 0\.9; it must be 1\.0: all parts of a decision share"),
        ("actor.gae_lambda=0.9", r"actor\.gae_lambda"),
        (
            "actor.mask_no_eos_with_zero=true",
            r"mask_no_eos_with_zero are about texts; leave them out",
        ),
        ("rollout.consumer_batch_size=3", r"consumer_batch_size: 3 rollouts are counted for an update of 4"),
        ("rollout.max_head_offpolicyness=-1", r"give 0 \(synchronous\) or more"),
        ("rollout.max_concurrent_rollouts=0", r"max_concurrent_rollouts, vla\.environments and vla\.threads are at least 1"),
        ("actor.weight_update_mode=xccl", r"actor\.weight_update_mode: 'xccl'; it must be 'disk'"),
        ("actor.use_lora=true", r"actor\.use_lora: models do LoRA themselves"),
        ("enable_offload=true", r"enable_offload: the record route does not offload"),
        ("actor.backend=megatron:d1", r"actor\.backend: 'megatron:d1'; on the record route give fsdp:d"),
        ("recover.mode=disabled", r"recover\.mode: without it no checkpoint is written"),
    ],
)
def test_what_areal_would_train_wrongly_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        native.check(made(f"framework_options.{override}"))


def test_advantages_are_not_normalised_twice() -> None:
    settings = made()
    settings["actor"]["adv_norm"] = {"mean_level": "batch", "std_level": "batch"}
    with pytest.raises(ConfigError, match=r"actor\.adv_norm: .* it must be None: advantages are compared within their groups"):
        native.check(settings)


def test_the_token_route_has_traps_of_its_own() -> None:
    tokens = "framework_options.vla.route=tokens"
    with pytest.raises(ConfigError, match="with sdpa AReaL lets sequences that are packed together see each other"):
        native.check(made(tokens))
    native.check(made(tokens, "framework_options.actor.mb_spec.max_tokens_per_mb=2000"))
    native.check(made(tokens, devices=1))  # flash attention
    with pytest.raises(ConfigError, match=r"gconfig\.top_p: 0\.9; it must be 1\.0: servers report"):
        native.check(made(tokens, "algorithm.top_p=0.9", devices=1))


def test_synchronous_and_asynchronous() -> None:
    native.check(now := made())
    assert not now["actor"]["use_decoupled_loss"]
    assert now["actor"]["rejection_sampling"] is None
    assert now["rollout"]["max_concurrent_rollouts"] == 4
    native.check(late := made("framework_options.rollout.max_head_offpolicyness=2"))
    assert late["actor"]["use_decoupled_loss"]
    assert late["actor"]["rejection_sampling"]["upper"] == 5.0
    assert late["rollout"]["max_concurrent_rollouts"] == 12
    assert late["vla"]["environments"] == 12


def test_what_is_configured_arrives() -> None:
    settings = made(
        "seed=7", "algorithm.clip_low=0.1", "algorithm.clip_high=0.3", "algorithm.temperature=0.8", "algorithm.minibatches=2",
        "training.optimizer.lr=0.01", "training.steps=20", "training.warmup_steps=5", "training.eval_every=10",
        "algorithm.kl_coef=0.02", "framework_options.actor.optimizer.beta2=0.95",
    )  # fmt: skip
    actor = settings["actor"]
    assert (settings["seed"], settings["total_train_steps"]) == (7, 20)
    assert (actor["eps_clip"], actor["eps_clip_higher"], actor["ppo_n_minibatches"]) == (0.1, 0.3, 2)
    assert (actor["temperature"], settings["gconfig"]["temperature"]) == (0.8, 0.8)
    assert (actor["optimizer"]["lr"], actor["optimizer"]["beta2"]) == (0.01, 0.95)
    assert int(actor["optimizer"]["warmup_steps_proportion"] * 20) == 5
    assert (actor["kl_ctl"], settings["ref"]["path"]) == (0.02, actor["path"])
    assert settings["evaluator"]["freq_steps"] == 10
    assert made()["ref"] is None


def test_threads_bound_the_many_decision_environments() -> None:
    settings = native.make(
        VLAConfig.from_dict({"framework": "areal", "environment": {"type": "bench2drive"}, "training": {"threads": 3}}),
        Path("run"), Path("start"), Path("tokenizer"), 0,
    )  # fmt: skip
    assert settings["vla"] == {"route": "record", "environments": 3, "threads": 3, "limit": 600.0}


def test_without_areal_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compat, "installed", lambda: None)
    with pytest.raises(MissingDependency, match="make env-areal builds one that has it"):
        launch(config(f"output_dir={tmp_path}"))
    monkeypatch.setattr(compat, "installed", lambda: "0.5.3")
    with pytest.raises(MissingDependency, match=r"areal 0\.5\.3 is installed, and this package knows the inside of 1\.0\.4"):
        launch(config(f"output_dir={tmp_path}"))
    assert not list(tmp_path.iterdir())


def test_the_command_starts_the_native_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLA_MODELS_SOURCES", '[{"module": "mine", "file": "/x y.py"}]')
    said = command(Path("/runs/a b/areal/native.yaml"))
    assert said.startswith("PYTHONPATH=")
    assert said.endswith("python -m vla_models.frameworks.areal.start '/runs/a b/areal/native.yaml'")
    assert "VLA_MODELS_SOURCES='[" in said


# -- what comes back ---------------------------------------------------------------------------------------------------------

COMMITTED = {
    "ppo_actor/update/actor_loss/avg": 0.5,
    "ppo_actor/update/importance_weight/avg": 1.0,
    "ppo_actor/update/grad_norm": 2.0,
    "rollout/return": 0.7,
    "rollout/invalid": 0.5,
    "rollout/invalid__count": 4,
    "rollout/rejected_failed": 1.0,
    "rollout/rejected_failed__count": 3,
    "rollout/accepted": 1.0,
    "rollout/rejected": 1.0,
    "eval-rollout/score": 0.9,
}


def test_rows_have_the_names_that_local_uses() -> None:
    row = row_of(COMMITTED, Staleness(parts=10, mean=0.5, most=2, too_old=3), 4)
    assert row == {
        "loss": 0.5, "reward_mean": 0.7, "invalid": 2.0, "rejected_failed": 3.0, "ratio": 1.0, "grad_norm": 2.0,
        "staleness_mean": 0.5, "staleness_max": 2, "too_old": 3, "parts": 10,
    }  # fmt: skip
    assert episode_means(COMMITTED, "eval-rollout/") == {"score": 0.9}


def test_a_loss_that_is_no_number_ends_the_run() -> None:
    with pytest.raises(DivergenceError, match="rl step 4: the loss is nan"):
        row_of({}, None, 4)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"areal/run/checkpoints has no checkpoint of AReaL's"):
        runner.read_weights(tmp_path, 3)
    (tmp_path / "areal" / "run" / "checkpoints" / "somebody" / "vla-models" / "run").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"version-0000003/weights\.safetensors is missing: it was not written"):
        runner.read_weights(tmp_path, 3)
