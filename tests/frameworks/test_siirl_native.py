"""The translation into siiRL's arguments, without siiRL: what is refused, what is written, in which order scenes come."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from vla_models.config import VLAConfig
from vla_models.errors import ConfigError, MissingDependency
from vla_models.frameworks.records import RecordLayout
from vla_models.frameworks.siirl import compat, native, runner
from vla_models.frameworks.siirl.env import SiirlEnvAdapter
from vla_models.frameworks.siirl.launch import dry_run, launch
from vla_models.frameworks.siirl.policy import SETTINGS
from vla_models.frameworks.user_code import SOURCES
from vla_models.model_registry import register_env_adapter
from vla_models.training.checkpoint import data_order


def config(*overrides: str) -> VLAConfig:
    return VLAConfig.from_dict(
        {"framework": "siirl", "algorithm": {"group_size": 4}, "training": {"scenes_per_step": 4}}, overrides
    )


def made(
    settings: VLAConfig, decisions: int = 1, devices: int = 0, done: int = 0, folder: Path = Path("run")
) -> dict[str, Any]:
    return native.make(
        settings, folder, Path("start"), decisions=decisions, heldout=3, record=RecordLayout({}, 8), devices=devices, done=done
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("framework=verl", "framework: 'verl' has a launcher of its own"),
        ("training.optimizer.type=sgd", r"training\.optimizer\.type: the siirl worker trains with adamw only"),
        ("training.steps=0", r"training\.steps: siiRL needs at least one update"),
    ],
)
def test_what_siirl_cannot_do_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        native.check_config(config(override))


def test_srpo_belongs_to_siirl_and_needs_a_group() -> None:
    assert config("algorithm.name=srpo").algorithm.name == "srpo"
    with pytest.raises(ConfigError, match=r"algorithm\.name: .*srpo is siiRL's: set framework: siirl"):
        VLAConfig.from_dict({"algorithm": {"name": "srpo"}})
    with pytest.raises(ConfigError, match=r"group_size: .*srpo compares plans of one scene"):
        config("algorithm.name=srpo", "algorithm.group_size=1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bogus": {"key": 1}}, r"framework_options\.bogus: siiRL has no such argument, or nothing here reads it"),
        ({"trainer": {"nnode": 2}}, r"framework_options\.trainer\.nnode: .*Did you mean 'nnodes'\?"),
        ({"actor_rollout_ref": {"actor": {"fsdp_config": {}}}}, r"actor\.fsdp_config: siiRL has no such argument, or nothing"),
        ({"actor_rollout_ref": {"rollout": {"n": 8}}}, r"rollout\.n: it follows from the other sections"),
        ({"trainer": 3}, r"framework_options\.trainer: it is a section, not 3"),
        ({"trainer": {"nnodes": 0}}, r"trainer\.nnodes: it must be a number of at least 1, not 0"),
        ({"trainer": {"seed": 3}}, r"trainer\.seed: it follows from the other sections"),
        ({"trainer": {"n_gpus_per_node": 3}}, r"training\.scenes_per_step: 4 scenes cannot be shared by 3 ranks"),
        (
            {"actor_rollout_ref": {"embodied": {"env": {"num_envs": 6}}}},
            r"num_envs: 6 rows of a world do not hold whole groups",
        ),
        ({"actor_rollout_ref": {"actor": {"clip_ratio_c": 1.0}}}, r"clip_ratio_c: siiRL needs more than 1"),
        (
            {"actor_rollout_ref": {"actor": {"ppo_micro_batch_size_per_gpu": 0}}},
            r"micro_batch_size_per_gpu: must be at least 1",
        ),
        ({"actor_rollout_ref": {"embodied": {"embedding_model_class": "a.B"}}}, r"embedding_model_class: only srpo looks at"),
    ],
)
def test_options_that_would_do_nothing_or_contradict_are_refused(options: Any, message: str) -> None:
    settings = VLAConfig.from_dict({**config().to_dict(), "framework_options": options})
    with pytest.raises(ConfigError, match=message):
        made(settings)


def test_a_video_embedding_needs_a_video() -> None:
    options = {"actor_rollout_ref": {"embodied": {"embedding_model_class": "a.B"}}}
    settings = VLAConfig.from_dict({**config("algorithm.name=srpo").to_dict(), "framework_options": options})
    with pytest.raises(ConfigError, match="an episode of one decision is one picture and no video"):
        made(settings)
    assert made(settings, decisions=9)["actor_rollout_ref"]["embodied"]["embedding_model_class"] == "a.B"


def test_an_option_replaces_what_the_other_sections_say() -> None:
    options = {"actor_rollout_ref": {"actor": {"clip_ratio_c": 5.0}}, "vla": {"success_score": 0.5}}
    settings = VLAConfig.from_dict({**config().to_dict(), "framework_options": options})
    whole = made(settings)
    assert whole["actor_rollout_ref"]["actor"]["clip_ratio_c"] == 5.0
    assert whole["vla"]["success_score"] == 0.5
    assert whole["actor_rollout_ref"]["actor"]["clip_ratio_low"] == 0.2


@pytest.mark.parametrize(
    ("overrides", "pipeline", "estimator"),
    [
        ((), "group", "grpo"),
        (("algorithm.name=srpo",), "group", "grpo"),
        (("algorithm.kl_coef=0.1",), "group_kl", "grpo"),
        (("algorithm.name=ppo",), "ppo", "gae"),
        (("algorithm.name=ppo", "algorithm.kl_coef=0.1"), "ppo_kl", "gae"),
    ],
)
def test_the_algorithm_chooses_graph_and_reward(overrides: tuple[str, ...], pipeline: str, estimator: str) -> None:
    whole = made(config(*overrides))
    assert whole["dag"]["custom_pipeline_fn"] == f"vla_models.frameworks.siirl.pipeline:{pipeline}"
    assert whole["algorithm"]["adv_estimator"] == estimator
    assert (whole["custom_reward_function"]["path"] is None) == ("algorithm.name=srpo" in overrides)
    assert whole["actor_rollout_ref"]["actor"]["use_kl_loss"] == pipeline.endswith("_kl")


def test_discounts_are_those_of_many_decisions() -> None:
    assert made(config("algorithm.name=ppo"))["algorithm"]["gamma"] == 1.0
    many = made(config("algorithm.name=ppo", "algorithm.gamma=0.9", "algorithm.gae_lambda=0.8"), decisions=5)
    assert (many["algorithm"]["gamma"], many["algorithm"]["lam"]) == (0.9, 0.8)


def test_a_resumed_run_names_its_checkpoint() -> None:
    trainer = made(config(), done=3)["trainer"]
    assert trainer["resume_mode"] == "resume_path"
    assert trainer["resume_from_path"].endswith("run/siirl/checkpoints/global_step_3")
    assert made(config())["trainer"]["resume_mode"] == "disable"


def test_arguments_are_written_as_omegaconf_reads_them() -> None:
    written = native.arguments(made(config("training.optimizer.lr=1e-5"), folder=Path("a folder/run")))
    assert not any(a.startswith("vla.") for a in written)
    as_dict = dict(a.split("=", 1) for a in written)
    assert as_dict["actor_rollout_ref.actor.optim.lr"] == "1e-05"
    assert as_dict["custom_reward_function.path"].endswith("reward.py")
    assert as_dict["data.shuffle"] == "false"
    assert as_dict["actor_rollout_ref.embodied.embedding_model_class"] == "null"
    assert as_dict["data.train_files"] == f'["{Path("a folder/run/siirl/train.parquet").resolve()}"]'


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_manifest_has_the_local_trainers_scenes_in_their_order(ranks: int, tmp_path: Path) -> None:
    """Whoever reads it: siiRL gives each rank a contiguous part, and in each step takes its next scenes."""
    settings = config("training.steps=5", "environment.heldout_scenes=3")
    whole = made(settings, devices=ranks, folder=tmp_path / "run")
    native.write_inputs(whole, settings, train=9, heldout=3)
    rows = pq.read_table(whole["data"]["train_files"][0]).column("task_id").to_pylist()
    parts = [rows[i * len(rows) // ranks : (i + 1) * len(rows) // ranks] for i in range(ranks)]
    size = 4 // ranks
    for step in range(5):
        taken = [scene for part in parts for scene in part[step * size : (step + 1) * size]]
        assert taken == data_order(settings.seed, "rl", step, 9, 4).tolist()
    assert pq.read_table(whole["data"]["val_files"][0]).column("task_id").to_pylist() == [0, 1, 2]
    settled = json.loads((Path(whole["actor_rollout_ref"]["model"]["path"]) / SETTINGS).read_text())
    assert settled["success_score"] == 0.8


def test_the_stand_in_tokenizer_loads(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    native.write_tokenizer(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
    assert transformers.AutoConfig.from_pretrained(tmp_path).architectures == ["GPT2LMHeadModel"]


def test_launch_and_dry_run_refuse_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for start in (launch, dry_run):
        with pytest.raises(ConfigError, match="adamw only"):
            start(config("training.optimizer.type=sgd"))
    if compat.installed() is None:
        with pytest.raises(MissingDependency, match="make env-siirl"):
            launch(config())
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_writes_what_siirl_reads_and_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: Any
) -> None:
    """The whole way from a configuration to siiRL's inputs, with a model and an environment that nobody here knows."""
    import small_models  # noqa: F401 - registers models
    from toy_world import HORIZON, ToyDrive

    @register_env_adapter("my_city", "siirl")
    class MyCity(SiirlEnvAdapter):
        @classmethod
        def make_env(cls, config: VLAConfig, part: Any, num_envs: int, spec: Any) -> Any:
            return ToyDrive(num_envs, horizon=spec.horizon)

    monkeypatch.delenv(SOURCES, raising=False)
    settings = VLAConfig.from_dict(
        {
            "framework": "siirl", "output_dir": str(tmp_path), "name": "dry",
            "model": {"name": "small_gaussian", "options": {"horizon": HORIZON}},
            "environment": {"type": "my_city", "train_scenes": 4, "heldout_scenes": 2},
            "reward": {"type": "driving", "weights": {"success": 1.0}},
            "algorithm": {"name": "srpo", "group_size": 4},
            "training": {"steps": 3, "scenes_per_step": 2, "imitation": {"steps": 0}},
        }
    )  # fmt: skip
    said = dry_run(settings)
    monkeypatch.delenv(SOURCES)
    (folder,) = tmp_path.iterdir()
    assert f"sh {folder / 'siirl' / 'start.sh'}" in said
    assert {p.name for p in (folder / "siirl").iterdir()} == {
        "native.yaml", "start.sh", "train.parquet", "heldout.parquet", "model",
    }  # fmt: skip
    started = (folder / "siirl" / "start.sh").read_text()
    assert "dag.custom_pipeline_fn=vla_models.frameworks.siirl.pipeline:group" in started
    assert "small_models.py" in started  # siiRL's processes import what registered the model
    settled = json.loads((folder / "siirl" / "model" / SETTINGS).read_text())
    assert Path(settled["config"]).is_file()
    assert (Path(settled["start"]) / "config.json").is_file()
    assert pq.read_table(folder / "siirl" / "train.parquet").num_rows == 6
    assert pq.read_table(folder / "siirl" / "heldout.parquet").num_rows == 4


class Record:
    """The calls of a FrameworkRun that a listener makes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[tuple[str, int]] = []

    def done(self) -> int:
        return 0

    def write(self, phase: str, step: int, values: Any) -> None:
        self.rows.append((phase, step))


def test_an_evaluation_stands_behind_its_step_whichever_was_seen_first(tmp_path: Path) -> None:
    steps, evaluations = tmp_path / "log.jsonl", tmp_path / "evaluations.jsonl"
    record = Record(tmp_path)
    listener = runner.Listener({"vla": {"evaluations": str(evaluations)}}, record, steps)  # type: ignore[arg-type]

    def say(path: Path, step: int) -> None:
        with path.open("a") as file:
            file.write(json.dumps({"step": step, "actor/loss": 0.5, "score": 0.25 * step}) + "\n")

    say(evaluations, 1)
    listener.listen()
    assert record.rows == []
    for path, step in ((steps, 1), (steps, 2), (evaluations, 2)):
        say(path, step)
    listener.listen()
    assert record.rows == [("rl", 1), ("eval", 1), ("rl", 2), ("eval", 2)]
    assert listener.evaluation["score"] == 0.5
