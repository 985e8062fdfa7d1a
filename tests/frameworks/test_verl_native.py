"""The translation into verl's configuration, without verl: what is refused, what is written, what is read back."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vla_models.config import VLAConfig
from vla_models.errors import CheckpointError, ConfigError, DivergenceError, MissingDependency
from vla_models.frameworks.observations import ObservationLayout
from vla_models.frameworks.probing import Layout
from vla_models.frameworks.records import RecordLayout
from vla_models.frameworks.verl import compat, native, runner
from vla_models.frameworks.verl.launch import dry_run, launch
from vla_models.training.routes import PLANS
from vla_models.yaml_source import YamlSource

LAYOUT = Layout(ObservationLayout({}, {}, True), RecordLayout({"input_ids": (40,)}, 8), 1, False)


def config(*overrides: str, environment: str = "navsim") -> VLAConfig:
    return VLAConfig.from_dict(
        {
            "framework": "verl", "environment": {"type": environment}, "algorithm": {"group_size": 4},
            "training": {"scenes_per_step": 4, "imitation": {"steps": 0}},
        },
        overrides,
    )  # fmt: skip


def made(settings: VLAConfig, decisions: int | None = 1, layout: Layout = LAYOUT, **more: Any) -> dict[str, Any]:
    return native.make(settings, Path("run"), Path("start"), PLANS, layout, decisions=decisions, **more)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("framework=rlinf", "framework: 'rlinf' has a launcher of its own"),
        ("training.steps=0", r"training\.steps: verl needs at least one update"),
        ("algorithm.minibatches=3", r"algorithm\.minibatches: .* 4 \(training\.scenes_per_step\) do not divide by 3"),
        ("framework_options.trainer.v1.trainer_mode=async", r"framework_options\.trainer\.v1\.trainer_mode: 'async'; known"),
    ],
)
def test_what_verl_cannot_do_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        native.check_config(config(override))


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as e:
        native.check_config(config("algorithm.name=ppo", "algorithm.normalize_advantage=false", "algorithm.minibatches=3"))
    assert [line.split(":")[0] for line in str(e.value).splitlines()] == [
        "algorithm.normalize_advantage", "algorithm.minibatches",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "actor_rollout_ref.rollout.agent.default_agent_loop=single_turn_agent",
            r"default_agent_loop: 'single_turn_agent' is not the agent loop that drives \('vla_models_record'\)",
        ),
        ("actor_rollout_ref.rollout.n=3", r"rollout\.n: set algorithm\.group_size instead"),
        ("algorithm.adv_estimator=rloo", r"adv_estimator: 'rloo' would take each decision for an episode"),
        ("trainer.use_v1=false", r"trainer\.use_v1: the trainer before V1"),
        ("actor_rollout_ref.rollout.top_k=50", r"rollout\.top_k: models have no top_k"),
        ("actor_rollout_ref.rollout.val_kwargs.temperature=0.6", "evaluation is deterministic"),
        ("actor_rollout_ref.rollout.name=vllm", r"rollout\.name: 'vllm' serves tokens"),
        ("actor_rollout_ref.model.lora_rank=8", "lora_enabled"),
        ("vla_models.max_dropped=2.0", r"vla_models\.max_dropped: 2\.0 is no share"),
        ("vla_models.rows=0", r"vla_models\.rows: 0 must be at least 1"),
        ("actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=5", "16 plans of a minibatch do not divide into 5"),
        ("trainer.n_gpus_per_node=3", "16 plans cannot be shared by 3 devices"),
    ],
)
def test_what_verl_would_train_wrongly_is_refused(override: str, message: str) -> None:
    settings = config(f"framework_options.{override}")
    with pytest.raises(ConfigError, match=message):
        native.check(made(settings), settings)


def test_refusals_come_before_a_folder_is_made(tmp_path: Path) -> None:
    for override, message in (("algorithm.minibatches=3", "minibatches"), ("framework_options.vla_models.route=text", "route")):
        for start in (launch, dry_run):
            with pytest.raises(ConfigError, match=message):
                start(config(override, f"output_dir={tmp_path}"))
    if compat.installed() is None:
        with pytest.raises(MissingDependency, match="make env-verl"):
            launch(config(f"output_dir={tmp_path}"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("found", ["0.7.1", "0.9.0", "0.10.0", "0.10.0.dev1", "1.0"])
def test_other_versions_are_refused_by_number(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "version", lambda name: found)
    with pytest.raises(MissingDependency, match=rf"verl {found} is installed, .* needs verl>=0\.9\.1,<0\.10; make env-verl"):
        compat.check_version()


@pytest.mark.parametrize("found", ["0.9.1", "0.9.1.post2", "0.9.7"])
def test_versions_that_fit_pass(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "version", lambda name: found)
    assert compat.check_version() == found


def test_no_verl_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(compat, "version", missing)
    with pytest.raises(MissingDependency, match="make env-verl"):
        compat.check_version()


# -- what is written -------------------------------------------------------------------------------------------------------


def test_grpo_compares_groups_and_samples_with_records() -> None:
    settings = config(
        "algorithm.kl_coef=0.1", "algorithm.entropy_coef=0.01", "algorithm.minibatches=2", "training.eval_every=0"
    )
    written = made(settings)
    actor, rollout = written["actor_rollout_ref"]["actor"], written["actor_rollout_ref"]["rollout"]
    assert (actor["use_kl_loss"], actor["kl_loss_coef"]) == (True, 0.1)
    assert (actor["entropy_coeff"], actor["calculate_entropy"]) == (0.01, True)
    assert (actor["ppo_mini_batch_size"], actor["ppo_micro_batch_size_per_gpu"]) == (2, 8)
    assert actor["fsdp_config"]["mixed_precision"]["param_dtype"] == "fp32"  # or the replay is off by 0.02
    assert (rollout["name"], rollout["n"]) == ("vla_models", 4)
    assert written["algorithm"]["adv_estimator"] == "grpo"
    assert written["trainer"]["v1"]["sampler"]["sampler_kwargs"]["grouped"]
    assert written["vla_models"]["gamma"] is None
    assert written["trainer"]["test_freq"] == -1  # the evaluation of all held-out scenes is ours
    assert "critic" not in written
    json.dumps(written)


def test_ppo_has_a_critic_of_ours_and_discounts_between_decisions() -> None:
    settings = config("algorithm.name=ppo", "algorithm.gamma=0.9", environment="bench2drive")
    many = made(settings, None, Layout(LAYOUT.observation, LAYOUT.record, 100, False))
    assert many["vla_models"]["gamma"] == 0.9
    assert many["algorithm"] | {"norm_adv_by_std_in_grpo": None} == {
        "adv_estimator": "gae", "gamma": 1.0, "lam": 1.0, "norm_adv_by_std_in_grpo": None,
    }  # fmt: skip
    assert many["critic"]["model"] == many["actor_rollout_ref"]["model"]
    assert not many["trainer"]["v1"]["sampler"]["sampler_kwargs"]["grouped"]
    assert many["trainer"]["test_freq"] == settings.training.eval_every
    assert not many["trainer"]["val_before_train"]
    assert made(config("algorithm.name=ppo"))["vla_models"]["gamma"] == 1.0


def test_the_first_step_has_the_configured_rate_or_the_first_part_of_the_warm_up() -> None:
    assert made(config("training.warmup_steps=0"))["actor_rollout_ref"]["actor"]["optim"]["zero_indexed_step"]
    assert not made(config("training.warmup_steps=5"))["actor_rollout_ref"]["actor"]["optim"]["zero_indexed_step"]


def test_tokens_go_to_verls_own_model_and_server() -> None:
    settings = config("framework_options.vla_models.route=tokens")
    written = made(settings, answer=9)
    native.check(written, settings)
    assert written["actor_rollout_ref"]["model"] == {"path": str(Path("run/verl/base").resolve())}
    assert written["actor_rollout_ref"]["rollout"]["name"] == "vllm"
    assert written["actor_rollout_ref"]["rollout"]["agent"]["default_agent_loop"] == "vla_models_tokens"
    assert (written["data"]["max_prompt_length"], written["data"]["max_response_length"]) == (40, 9)
    assert "hf_model" in written["actor_rollout_ref"]["actor"]["checkpoint"]["save_contents"]
    assert written["actor_rollout_ref"]["actor"]["ppo_micro_batch_size_per_gpu"] == 4
    with pytest.raises(ConfigError, match="writes no tokens"):
        made(settings, layout=Layout(LAYOUT.observation, RecordLayout({}, 8), 1, False))


@pytest.mark.parametrize("mode", ["colocate_async", "separate_async"])
def test_asynchronous_modes_count_with_their_own_buffer(mode: str) -> None:
    settings = config(f"framework_options.trainer.v1.trainer_mode={mode}")
    native.check_config(settings)
    written = made(settings)["trainer"]["v1"]
    assert written["trainer_mode"] == mode
    assert written["sampler"]["custom_sampler"]["name"] == "DrivingReplayBufferAsync"


def test_a_resumed_run_goes_on_from_its_checkpoint() -> None:
    trainer = made(config(), done=7)["trainer"]
    assert trainer["resume_mode"] == "resume_path"
    assert trainer["resume_from_path"].endswith("/run/verl/checkpoints/global_step_7")


def test_options_replace_keys_and_leave_their_neighbours() -> None:
    changed = made(config("framework_options.actor_rollout_ref.actor.clip_ratio_c=10.0"))["actor_rollout_ref"]["actor"]
    assert changed["clip_ratio_c"] == 10.0
    assert changed["clip_ratio_high"] == 0.28


def test_keys_that_nothing_reads_are_found() -> None:
    known = {"trainer": {"nnodes": 1, "v1": {"sampler": {"sampler_kwargs": {}}}}, "actor_rollout_ref": {"model": {"path": "x"}}}
    written = {
        "vla_models": {"anything": 1},
        "trainer": {"nnodes": 2, "nodes": 3, "v1": {"sampler": {"sampler_kwargs": {"group_size": 4}}}},
        "actor_rollout_ref": {"model": {"path": "y", "vla": {"name": "z"}, "paht": 1}},
    }
    assert native.unknown_keys(written, known) == ["trainer.nodes", "actor_rollout_ref.model.paht"]


def test_a_dry_run_writes_everything_and_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from golden import visible_scenes

    from vla_models.envs.navsim import NavSimEnv
    from vla_models.frameworks.verl.env import VerlNavSimAdapter

    env = classmethod(lambda cls, config, part, rows, spec: NavSimEnv(rows, scenes=visible_scenes(6)))
    monkeypatch.setattr(VerlNavSimAdapter, "make_env", env)
    small = "model.options={dim: 32, layers: 1, heads: 2}"
    said = dry_run(config(small, f"output_dir={tmp_path}", "training.imitation.steps=3", "environment.train_scenes=40"))
    (folder,) = tmp_path.iterdir()
    written = YamlSource.read(folder / "verl" / "native.yaml").data
    assert written["actor_rollout_ref"]["model"]["path"] == str(folder / "checkpoints" / "imitation")
    assert (folder / "checkpoints" / "imitation" / "config.json").is_file()
    scenes = json.loads((folder / "verl" / "train.json").read_text())
    assert scenes["agent_name"] == "vla_models_record"
    assert scenes["scenes"] == [scene.token for scene in visible_scenes(6)]
    assert f"python -m verl.trainer.main_ppo --config-path {folder / 'verl'} --config-name native" in said
    assert "VERL_USE_EXTERNAL_MODULES=vla_models.frameworks.verl.plugin" in said
    assert "The warm start (3 imitation steps) is not part of this" in said


# -- what comes back -------------------------------------------------------------------------------------------------------


def test_weights_are_read_from_a_whole_checkpoint_alone(tmp_path: Path) -> None:
    (tmp_path / "actor").mkdir()
    with pytest.raises(CheckpointError, match=r"has no actor/vla_models\.safetensors: it was not written to its end"):
        runner.read_weights(tmp_path)
    save_file({"head.weight": torch.ones(2)}, tmp_path / "actor" / runner.WEIGHTS)
    assert runner.read_weights(tmp_path)["head.weight"].tolist() == [1.0, 1.0]


def test_rows_have_our_names_and_divergence_is_told() -> None:
    logged = {
        "actor/pg_loss": 0.1, "actor/loss": 0.2, "actor/grad_norm": 1.5, "vla_models/return": 0.7, "vla_models/nc": 0.9,
        "vla_models/dropped": 2.0, "timing_s/step": 3.0, "perf/throughput": 8.0,
    }  # fmt: skip
    row = runner.row_of(logged, 4)
    assert row == {
        "loss": 0.2, "policy_loss": 0.1, "grad_norm": 1.5, "reward_mean": 0.7, "nc": 0.9, "invalid": 2.0, "step_s": 3.0,
    }  # fmt: skip
    for broken in ({"actor/grad_norm": 1.0}, {"actor/pg_loss": 0.1}, {"actor/pg_loss": 0.1, "actor/grad_norm": float("inf")}):
        with pytest.raises(DivergenceError, match="rl step 4: the loss is"):
            runner.row_of(broken, 4)


def test_an_evaluation_is_read_from_what_verl_logs() -> None:
    logged = {
        "val-core/navsim/reward/mean@1": 0.4, "val-aux/navsim/score/mean@1": 0.5, "val-aux/navsim/term/collision/mean@1": 0.0,
        "val-aux/num_turns/mean": 1.0, "val-aux/navsim/ep/mean@1": float("nan"), "training/global_step": 1.0,
    }  # fmt: skip
    assert runner.evaluation_of(logged) == {"score": 0.5, "term/collision": 0.0}
    assert runner.evaluation_of({"training/global_step": 1.0}) == {}


class Record:
    """The calls of a FrameworkRun that a listener makes."""

    def __init__(self) -> None:
        self.rows: list[Any] = []

    def done(self) -> int:
        return 0

    def write(self, phase: str, step: int, values: Any) -> None:
        self.rows.append((phase, step, values))


def listen(tmp_path: Path, lines: list[dict[str, Any]], saved: int = 0) -> tuple[Record, list[Any], runner.Listener]:
    record, kept = Record(), list[Any]()
    logged = tmp_path / "metrics.jsonl"
    with runner.Listener(record, logged, tmp_path, lambda step, folder: kept.append((step, folder.name))) as listener:  # type: ignore[arg-type]
        logged.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 9, "data": {"unfini')
        if saved:
            (tmp_path / "latest_checkpointed_iteration.txt").write_text(str(saved))
    return record, kept, listener


def test_a_listener_copies_whole_rows_and_new_checkpoints(tmp_path: Path) -> None:
    step = {"training/global_step": 1, "actor/pg_loss": 0.1, "actor/grad_norm": 1.0, "val-aux/navsim/score/mean@1": 0.5}
    record, kept, listener = listen(tmp_path, [{"step": 1, "data": step}], saved=1)
    assert [(phase, number) for phase, number, _ in record.rows] == [("eval", 1), ("rl", 1)]
    assert kept == [(1, "global_step_1")]
    assert listener.evaluation == {"score": 0.5}


def test_a_listener_stops_a_run_that_has_diverged(tmp_path: Path) -> None:
    with pytest.raises(DivergenceError, match="rl step 1"):
        listen(tmp_path, [{"step": 1, "data": {"training/global_step": 1, "actor/pg_loss": 0.1, "actor/grad_norm": 1e999}}])
