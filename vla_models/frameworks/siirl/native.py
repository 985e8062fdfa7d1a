"""``VLAConfig`` -> siiRL's arguments, and the checks that siiRL does not make.

siiRL reads its arguments from the command line and drops those that it does not know (siirl/params/parser.py). Most of those
that it knows belong to its own workers and would do nothing here. So ``make`` writes every argument that has an effect, and
``framework_options`` may change these and no others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vla_models.errors import ConfigError, did_you_mean
from vla_models.frameworks.options import merged
from vla_models.frameworks.siirl.policy import SETTINGS
from vla_models.model_registry import VLAModelRegistry
from vla_models.training.checkpoint import data_order

if TYPE_CHECKING:
    from vla_models.config import VLAConfig
    from vla_models.frameworks.records import RecordLayout

OURS: Final = "vla"
"""Section of ``framework_options`` that siiRL does not see."""
MOST_DECISIONS: Final = 512
"""Decisions that are replayed at once, unless ``framework_options`` says otherwise."""
_REWARD: Final = Path(__file__).with_name("reward.py")
_PIPELINE: Final = "vla_models.frameworks.siirl.pipeline"


def make(
    config: VLAConfig,
    folder: Path,
    start: Path,
    *,
    decisions: int,
    heldout: int,
    record: RecordLayout,
    devices: int,
    done: int = 0,
) -> dict[str, Any]:
    """siiRL's arguments as plain data and, under "vla", what they have no place for; ``framework_options`` merged in, checked.

    Args:
        config: what the user wrote.
        folder: the run's folder (it holds config.yaml).
        start: checkpoint that the model is loaded from.
        decisions: most decisions of an episode.
        heldout: scenes to validate on.
        record: the fixed shapes of records.
        devices: accelerators of a node.
        done: updates that the run to resume has had.
    """
    algorithm, training, env = config.algorithm, config.training, config.environment
    ppo, kl = algorithm.name == "ppo", algorithm.kl_coef > 0.0
    own, options = (folder / "siirl").resolve(), config.framework_options
    nodes, of_node = _ranks(options, devices)
    ranks = nodes * of_node
    plans = training.scenes_per_step * algorithm.group_size
    one_decision = decisions == 1
    made: dict[str, Any] = {
        "algorithm": {
            "workflow_type": "embodied",
            "adv_estimator": "gae" if ppo else "grpo",
            "norm_adv_by_std_in_grpo": algorithm.normalize_advantage,
            "gamma": 1.0 if one_decision else algorithm.gamma,
            "lam": 1.0 if one_decision else algorithm.gae_lambda,
        },
        "data": {
            "dataset_type": "embodied",
            "train_files": [str(own / "train.parquet")],
            "val_files": [str(own / "heldout.parquet")],
            "train_batch_size": training.scenes_per_step,
            # siiRL starts from the beginning with each batch, so there must be one; it repeats a rank's last row once more
            "val_batch_size": heldout // ranks + 1,
            "shuffle": False,  # the manifest is in order
            "num_loader_workers": 0,
        },
        "dag": {"custom_pipeline_fn": f"{_PIPELINE}:{'ppo' if ppo else 'group'}{'_kl' if kl else ''}", "enable_perf": False},
        "actor_rollout_ref": {
            "model": {"path": str(own / "model"), "model_type": "embodied"},
            "actor": {
                "strategy": "fsdp",  # the name of siiRL's table of workers; each rank has the whole model
                "ppo_mini_batch_size": plans // algorithm.minibatches,
                "ppo_micro_batch_size_per_gpu": MOST_DECISIONS,
                "ppo_epochs": algorithm.epochs,
                "clip_ratio_low": algorithm.clip_low,
                "clip_ratio_high": algorithm.clip_high,
                "clip_ratio_c": 3.0,
                "entropy_coeff": algorithm.entropy_coef,
                "use_kl_loss": kl,
                "kl_loss_coef": algorithm.kl_coef,
                "kl_loss_type": "low_var_kl",
                "grad_clip": training.optimizer.grad_clip,
                "optim": {
                    "lr": training.optimizer.lr,
                    "weight_decay": training.optimizer.weight_decay,
                    "betas": [0.9, 0.999],
                    "lr_warmup_steps": training.warmup_steps,
                },
            },
            "ref": {"log_prob_micro_batch_size_per_gpu": MOST_DECISIONS},
            "rollout": {
                "name": "hf",
                "mode": "sync",
                "n": algorithm.group_size,
                "temperature": algorithm.temperature,
                "top_p": algorithm.top_p,
                "log_prob_micro_batch_size_per_gpu": MOST_DECISIONS,
            },
            "embodied": {
                "env": {
                    "env_type": env.type,
                    "env_name": env.type,
                    "max_steps": decisions,
                    "num_envs": _rows(training.scenes_per_step // ranks, algorithm.group_size),
                },
                "embedding_model_class": None,
                "video_embedding_model_path": None,
                "embedding_img_size": 384,
                "embedding_enable_fp16": True,
            },
        },
        "reward_model": {"reward_manager": "embodied", "reward_kwargs": {"action_token_len": record.parts, "reward_coef": 1.0}},
        "custom_reward_function": {
            "path": None if algorithm.name == "srpo" else str(_REWARD),
            "name": "episode_return",
        },
        "trainer": {
            "nnodes": nodes,
            "n_gpus_per_node": of_node,
            "total_epochs": 1,
            "save_freq": training.checkpoint_every or max(1, training.steps),
            "test_freq": training.eval_every or (-1 if one_decision else max(1, training.steps)),
            "val_before_train": False,
            "logger": ["console"],
            "project_name": "vla_models",
            "experiment_name": folder.name or "run",
            "default_local_dir": str(own / "checkpoints"),
            "max_actor_ckpt_to_keep": 100,
            "resume_mode": "resume_path" if done else "disable",
            "resume_from_path": str(checkpoint_folder(folder, done).resolve()) if done else False,
            "seed": config.seed,
        },
        OURS: {
            "config": str((folder / "config.yaml").resolve()),
            "start": str(start.resolve()),
            "evaluations": str(own / "evaluations.jsonl"),
            "record": record.to_dict(),
            "success_score": 0.8,
        },
    }
    problems = list(_unknown(made, options, ()))
    if problems:
        raise ConfigError("\n".join(problems))
    whole = merged(made, options)
    check(whole, config, heldout)
    return whole


def _ranks(options: Mapping[str, Any], devices: int) -> tuple[int, int]:
    """Nodes and ranks of a node: this machine's devices, unless ``framework_options.trainer`` says otherwise."""
    trainer = options.get("trainer")
    given = trainer if isinstance(trainer, Mapping) else {}
    found = []
    for key, usual in (("nnodes", 1), ("n_gpus_per_node", max(1, devices))):
        value = given.get(key, usual)
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"framework_options.trainer.{key}: it must be a number of at least 1, not {value!r}")
        found.append(value)
    return found[0], found[1]


def _rows(scenes: int, group: int) -> int:
    """Episodes of a world: half of a rank's, in whole groups, for two worlds run side by side."""
    return group * max(1, -(-scenes // 2))


FIXED: Final = (
    "algorithm.workflow_type", "algorithm.adv_estimator", "data.dataset_type", "data.train_files", "data.val_files",
    "data.train_batch_size", "data.val_batch_size", "data.shuffle", "dag.custom_pipeline_fn", "actor_rollout_ref.model.path",
    "actor_rollout_ref.model.model_type", "actor_rollout_ref.actor.strategy", "actor_rollout_ref.actor.use_kl_loss",
    "actor_rollout_ref.rollout.name", "actor_rollout_ref.rollout.mode", "actor_rollout_ref.rollout.n",
    "actor_rollout_ref.embodied.env.env_type", "actor_rollout_ref.embodied.env.env_name", "reward_model.reward_manager",
    "reward_model.reward_kwargs.action_token_len", "trainer.total_epochs", "trainer.default_local_dir", "trainer.resume_mode",
    "trainer.resume_from_path", "trainer.seed", "trainer.val_before_train", "vla.config", "vla.start", "vla.evaluations",
    "vla.record",
)  # fmt: skip
"""Arguments that follow from the rest of the configuration: another value would contradict it, so it is refused."""


def _unknown(made: Mapping[str, Any], options: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[str]:
    """A problem for each of ``options`` that would do nothing, or contradict the configuration."""
    for key, value in options.items():
        path = ".".join((*above, key))
        inner = made.get(key)
        if key not in made:
            yield (
                f"framework_options.{path}: siiRL has no such argument, or nothing here reads it: it would be dropped without "
                f"a word; {did_you_mean(key, made)}"
            )
        elif path in FIXED:
            yield f"framework_options.{path}: it follows from the other sections of the configuration; change those"
        elif isinstance(inner, Mapping) and isinstance(value, Mapping):
            yield from _unknown(inner, value, (*above, key))
        elif isinstance(inner, Mapping) != isinstance(value, Mapping):
            yield f"framework_options.{path}: it is {'a section' if isinstance(inner, Mapping) else 'one value'}, not {value!r}"


def check_config(config: VLAConfig) -> None:
    """Refuse what cannot be done in siiRL, before anything else is done; ``ConfigError`` lists every problem with its key."""
    algorithm, optimizer = config.algorithm, config.training.optimizer
    problems = []
    if config.framework != "siirl":
        problems.append(f"framework: {config.framework!r} has a launcher of its own; this one runs framework: siirl")
    if config.training.steps < 1:
        problems.append("training.steps: siiRL needs at least one update; framework: local can stop after imitation")
    if optimizer.type == "sgd" or (optimizer.type == "adam" and optimizer.weight_decay):
        problems.append(f"training.optimizer.type: the siirl worker trains with adamw only, not with {optimizer.type}")
    if algorithm.name == "ppo" and not algorithm.normalize_advantage:
        problems.append("algorithm.normalize_advantage: siiRL always normalises the advantages of ppo; set it to true")
    if "siirl" not in VLAModelRegistry.list_env_adapters().get(config.environment.type, []):
        problems.append(f"environment.type: {config.environment.type!r} has no siiRL adapter; see docs/frameworks/siirl.md")
    if problems:
        raise ConfigError("\n".join(problems))


def check(native: Mapping[str, Any], config: VLAConfig, heldout: int) -> None:
    """Refuse arguments that siiRL would refuse later or run wrongly; ``ConfigError`` names our keys."""
    algorithm, trainer = config.algorithm, native["trainer"]
    ranks = int(trainer["nnodes"]) * int(trainer["n_gpus_per_node"])
    embodied, actor, ref, rollout = (native["actor_rollout_ref"][part] for part in ("embodied", "actor", "ref", "rollout"))
    plans = config.training.scenes_per_step * algorithm.group_size
    problems = []
    if config.training.scenes_per_step % ranks:
        problems.append(
            f"training.scenes_per_step: {config.training.scenes_per_step} scenes cannot be shared by {ranks} ranks; choose a "
            "multiple, or fewer in framework_options.trainer.n_gpus_per_node"
        )
    if heldout < ranks:
        problems.append(f"environment.heldout_scenes: {ranks} ranks need at least one each")
    if plans % algorithm.minibatches:
        problems.append(f"algorithm.minibatches: {plans} episodes of an update do not divide into {algorithm.minibatches}")
    rows = int(embodied["env"]["num_envs"])
    if rows < algorithm.group_size or rows % algorithm.group_size:
        problems.append(
            f"framework_options.actor_rollout_ref.embodied.env.num_envs: {rows} rows of a world do not hold whole groups of "
            f"{algorithm.group_size}"
        )
    batches = {
        "actor.ppo_micro_batch_size_per_gpu": actor["ppo_micro_batch_size_per_gpu"],
        "ref.log_prob_micro_batch_size_per_gpu": ref["log_prob_micro_batch_size_per_gpu"],
        "rollout.log_prob_micro_batch_size_per_gpu": rollout["log_prob_micro_batch_size_per_gpu"],
        "actor.ppo_mini_batch_size": actor["ppo_mini_batch_size"],
    }
    problems += [f"framework_options.actor_rollout_ref.{key}: must be at least 1" for key, n in batches.items() if int(n) < 1]
    if float(actor["clip_ratio_c"]) <= 1.0:
        problems.append("framework_options.actor_rollout_ref.actor.clip_ratio_c: siiRL needs more than 1")
    if embodied["embedding_model_class"] and algorithm.name != "srpo":
        problems.append(
            "framework_options.actor_rollout_ref.embodied.embedding_model_class: only srpo looks at embeddings; set "
            "algorithm.name: srpo"
        )
    if embodied["embedding_model_class"] and int(embodied["env"]["max_steps"]) == 1:
        problems.append(
            "framework_options.actor_rollout_ref.embodied.embedding_model_class: an episode of one decision is one picture "
            "and no video; leave it out (the driven trajectory is compared), or train in an environment with many decisions"
        )
    if problems:
        raise ConfigError("\n".join(problems))


def checkpoint_folder(run: Path, step: int) -> Path:
    """siiRL's own checkpoint after ``step`` updates (siirl/dag_worker/checkpoint_manager.py)."""
    return run / "siirl" / "checkpoints" / f"global_step_{step}"


# -- what siiRL reads ------------------------------------------------------------------------------------------------------


def arguments(native: Mapping[str, Any]) -> list[str]:
    """siiRL's command line: ``a.b.c=value`` for everything but our own section."""
    return [f"{key}={_written(value)}" for key, value in _flat({k: v for k, v in native.items() if k != OURS}, ())]


def _flat(data: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, (*above, key))
        else:
            yield ".".join((*above, key)), value


def _written(value: Any) -> str:
    """A value as OmegaConf reads it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_written(v) for v in value) + "]"
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z_/][\w./:-]*", value):
        return json.dumps(value)
    return str(value)


def write_inputs(native: Mapping[str, Any], config: VLAConfig, train: int, heldout: int) -> None:
    """Write what the arguments point to: the manifests, the settings of the policy, and a tokenizer.

    train, heldout: how many scenes the environment has of each. Training rows lie in the order of their use, which depends on
    the seed and the step alone (``data_order``), as in the local trainer.
    """
    trainer, folder = native["trainer"], Path(native["actor_rollout_ref"]["model"]["path"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SETTINGS).write_text(json.dumps(native[OURS], indent=1))
    write_tokenizer(folder)
    ranks, scenes = int(trainer["nnodes"]) * int(trainer["n_gpus_per_node"]), config.training.scenes_per_step
    steps = [data_order(config.seed, "rl", step, train, scenes) for step in range(config.training.steps)]
    # siiRL gives each rank a contiguous part of the manifest (PartitionedRLHFDataset)
    order = np.stack(steps).reshape(len(steps), ranks, scenes // ranks).transpose(1, 0, 2).ravel()
    _write_manifest(Path(native["data"]["train_files"][0]), config.environment.type, order.tolist())
    _write_manifest(Path(native["data"]["val_files"][0]), config.environment.type, list(range(heldout)))


def _write_manifest(path: Path, suite: str, scenes: Sequence[int]) -> None:
    """siiRL's input (``prepare_libero_train_valid_datasets`` writes LIBERO's)."""
    columns = {
        "task_suite_name": [suite] * len(scenes),
        "task_id": pa.array(scenes, pa.int64()),
        "trial_id": pa.array([0] * len(scenes), pa.int64()),
        "prompt_id": [f"{suite}_{i}" for i in scenes],
        "data_source": [suite] * len(scenes),
    }
    pq.write_table(pa.table(columns), path)


def write_tokenizer(folder: Path) -> None:
    """A tokenizer and a configuration that transformers can load: siiRL loads one before it knows what for. Nothing reads it,
    texts are the model's own affair."""
    words = {"<pad>": 0, "<eos>": 1}
    files: dict[str, Any] = {
        "config.json": {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": 1, "n_head": 1, "n_embd": 8,
                        "vocab_size": 2, "bos_token_id": 1, "eos_token_id": 1},
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "<eos>",
                                  "unk_token": "<eos>"},
        "tokenizer.json": {
            "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": None,
            "post_processor": None, "decoder": None,
            "added_tokens": [{"id": i, "content": w, "single_word": False, "lstrip": False, "rstrip": False,
                              "normalized": False, "special": True} for w, i in words.items()],
            "model": {"type": "WordLevel", "vocab": words, "unk_token": "<eos>"},
        },
    }  # fmt: skip
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
