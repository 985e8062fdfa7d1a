"""``VLAConfig`` -> RLinf's full configuration, and the checks that RLinf makes too late, too tersely, or not at all.

RLinf's own checks run inside a Ray cluster and speak of its keys; ``check`` runs first and names ours. It also refuses what
would train silently wrong: mixed levels of reward and log-probability (the loss is scaled by the number of parts), group
advantages without the mask of ended episodes, sampled evaluation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vla_models.errors import ConfigError
from vla_models.frameworks.options import merged
from vla_models.inputs import VLASpec
from vla_models.model_registry import VLAModelRegistry

if TYPE_CHECKING:
    from vla_models.config import VLAConfig
    from vla_models.frameworks.observations import ObservationLayout
    from vla_models.frameworks.records import RecordLayout

ADVANTAGES: Final = ("vla_grpo", "vla_grpo_centred", "gae")
"""adv_types that leave invalid episodes out (``advantages``)."""
PPO_NUMBERS: Final = {"value_clip": 0.2, "huber_delta": 10.0}
"""What RLinf's own examples use for PPO (examples/embodiment/config)."""


def make(
    config: VLAConfig,
    folder: Path,
    start: Path,
    *,
    spec: VLASpec,
    max_decisions: int,
    observation: ObservationLayout,
    record: RecordLayout,
    devices: int,
    resume: Path | None = None,
    done: int = 0,
) -> dict[str, Any]:
    """RLinf's configuration as plain data, ``framework_options`` merged in, not yet checked.

    Args:
        config: what the user wrote.
        folder: the run's folder (it holds config.yaml).
        start: checkpoint that the model is loaded from.
        spec: the model's.
        max_decisions: most decisions of an episode.
        observation: how observations are packed.
        record: the fixed shapes of records.
        devices: accelerators of this machine (0: RLinf's placement counts nodes).
        resume: RLinf's checkpoint to go on from; done: updates that it had.
    """
    algorithm, training = config.algorithm, config.training
    ppo, one_decision = algorithm.name == "ppo", max_decisions == 1
    plans = training.scenes_per_step * algorithm.group_size
    decisions = max_decisions if one_decision or not ppo else min(training.decisions_per_step, max_decisions)
    everywhere = f"0-{devices - 1}" if devices else "0:0-0"
    heldout_rows = config.environment.heldout_scenes if one_decision else plans

    def environment(part: str, rows: int, rounds: int, group: int, steps: int, auto_reset: bool) -> dict[str, Any]:
        return {
            "env_type": "isaaclab",  # its table of tasks is RLinf's only open one, see plugin.ENV_PREFIX
            "init_params": {
                "id": f"vla_models/{config.environment.type}",
                "config": str((folder / "config.yaml").resolve()),
                "part": part,
                "spec": {"horizon": spec.horizon, "dt": spec.dt, "controller": spec.controller},
                "first_round": done if part == "train" else 0,
            },
            "total_num_envs": rows,
            "rollout_epoch": rounds,
            "group_size": group,
            "auto_reset": auto_reset,
            "ignore_terminations": False,
            "max_episode_steps": max_decisions,
            "max_steps_per_rollout_epoch": steps,
            "seed": config.seed,
            "enable_offload": False,
            "video_cfg": {"save_video": False},
        }

    model = {"model_path": str(start.resolve()), "precision": "fp32"}
    every_eval, every_save = training.eval_every, training.checkpoint_every
    last = max(1, training.steps)
    made: dict[str, Any] = {
        "cluster": {"num_nodes": 1, "component_placement": {"actor": everywhere, "env": everywhere, "rollout": everywhere}},
        "runner": {
            "task_type": "embodied",
            "logger": {
                "log_path": str((folder / "rlinf").resolve()),
                "project_name": "vla_models",
                "experiment_name": "run",
                "logger_backends": ["tensorboard"],
            },
            "max_epochs": training.steps,
            "max_steps": -1,
            "only_eval": False,
            "val_check_interval": every_eval or -1,
            # RLinf saves at the last update whatever the interval, but wants one that evaluation divides
            "save_interval": every_save or (math.ceil(last / every_eval) * every_eval if every_eval else last),
            "resume_dir": None if resume is None else str(resume.resolve()),
            "ckpt_path": None,
        },
        "algorithm": {
            "adv_type": "gae" if ppo else "vla_grpo" if algorithm.normalize_advantage else "vla_grpo_centred",
            "loss_type": "actor_critic" if ppo else "actor",
            "group_size": algorithm.group_size,
            "reward_type": "chunk_level",
            "logprob_type": "chunk_level",
            "entropy_type": "chunk_level",
            "update_epoch": algorithm.epochs,
            "normalize_advantages": algorithm.normalize_advantage,
            "bootstrap_type": "standard",
            "entropy_bonus": algorithm.entropy_coef,
            "clip_ratio_low": algorithm.clip_low,
            "clip_ratio_high": algorithm.clip_high,
            **PPO_NUMBERS,
            "gamma": 1.0 if one_decision else algorithm.gamma,
            "gae_lambda": 1.0 if one_decision else algorithm.gae_lambda,
        },
        "env": {
            "group_name": "EnvGroup",
            "train": environment("train", plans, 1, algorithm.group_size, decisions, auto_reset=ppo and not one_decision),
            "eval": environment(
                "heldout", heldout_rows, math.ceil(config.environment.heldout_scenes / heldout_rows), 1, max_decisions, False
            ),
        },
        "rollout": {
            "group_name": "RolloutGroup",
            "backend": "huggingface",
            "generation_backend": "huggingface",
            "enable_offload": False,
            "pipeline_stage_num": 1,
            "model": model,
            "sampling_params": {
                "do_sample": True,
                "temperature_train": algorithm.temperature,
                "temperature_eval": -1.0,
                "top_k": 0,
                "top_p": algorithm.top_p,
                "max_new_tokens": None,
            },
        },
        "actor": {
            "group_name": "ActorGroup",
            "training_backend": "fsdp",
            "global_batch_size": plans * decisions // algorithm.minibatches,
            "micro_batch_size": plans * decisions // algorithm.minibatches // max(1, devices),
            "seed": config.seed,
            "enable_offload": False,
            "model": {
                **model,
                "model_type": "vla_models",
                "is_lora": False,
                "add_value_head": ppo,
                "num_action_chunks": 1,
                "action_dim": 3 * spec.horizon,
                "vla": {
                    "seed": config.seed,
                    "value_coef": algorithm.value_coef,
                    "observation": observation.to_dict(),
                    "record": record.to_dict(),
                },
            },
            "optim": {
                "lr": training.optimizer.lr,
                "value_lr": training.optimizer.lr,
                "adam_beta1": 0.9,
                "adam_beta2": 0.999,
                "adam_eps": 1e-8,
                "weight_decay": training.optimizer.weight_decay,
                "clip_grad": training.optimizer.grad_clip,
                "lr_scheduler": "cosine",
                "lr_warmup_steps": training.warmup_steps,
                "total_training_steps": training.steps,
                "min_lr_rate": 0.02,
            },
            "fsdp_config": {
                "strategy": "fsdp2",
                "sharding_strategy": "full_shard" if devices > 1 else "no_shard",
                "gradient_checkpointing": False,
                "save_full_model_weights": True,
                "mixed_precision": {"param_dtype": None, "reduce_dtype": None, "buffer_dtype": None},
            },
        },
        # a missing syncer is an assertion in RLinf; instant loading needs an accelerator
        "weight_syncer": {
            "type": "bucket",
            "bucket": {"bucket_size": 128 * 2**20, "bucket_dtype": None, "is_agent": False, "load_instant": devices > 0},
        },
        "reward": {"use_reward_model": False},
        "critic": {"use_critic_model": False},
    }
    options = config.framework_options
    cluster = options.get("cluster")
    if isinstance(cluster, Mapping) and "component_placement" in cluster:  # its keys can be lists of parts: not mergeable
        made["cluster"]["component_placement"] = {}
    return merged(made, options)


def check_config(config: VLAConfig) -> None:
    """Refuse what RLinf cannot do, before anything else is done; ``ConfigError`` lists every problem with its key."""
    algorithm, optimizer = config.algorithm, config.training.optimizer
    problems = []
    if config.framework != "rlinf":
        problems.append(f"framework: {config.framework!r} has a launcher of its own; this one runs framework: rlinf")
    if config.training.steps < 1:
        problems.append("training.steps: RLinf needs at least one update; framework: local can stop after imitation")
    if algorithm.kl_coef:
        problems.append("algorithm.kl_coef: RLinf's embodied trainer has no KL term; set it to 0, or use framework: local")
    if optimizer.type == "sgd" or (optimizer.type == "adam" and optimizer.weight_decay):
        problems.append(f"training.optimizer.type: RLinf trains with adamw only, not with {optimizer.type}")
    if algorithm.name == "ppo" and not algorithm.normalize_advantage:
        problems.append("algorithm.normalize_advantage: RLinf always normalises the advantages of ppo; set it to true")
    every_eval, every_save = config.training.eval_every, config.training.checkpoint_every
    if every_eval and every_save and every_save % every_eval:
        problems.append(
            f"training.checkpoint_every: {every_save} is no multiple of training.eval_every ({every_eval}), which RLinf demands"
        )
    if "rlinf" not in VLAModelRegistry.list_env_adapters().get(config.environment.type, []):
        problems.append(f"environment.type: {config.environment.type!r} has no RLinf adapter; see docs/frameworks/rlinf.md")
    if problems:
        raise ConfigError("\n".join(problems))


def check(native: Mapping[str, Any], devices: int) -> None:
    """Refuse a native configuration that RLinf would refuse later or run wrongly; ``ConfigError`` names our keys."""
    problems = [*_traps(native), *_batches(native, devices)]
    if problems:
        raise ConfigError("\n".join(problems))


def _traps(native: Mapping[str, Any]) -> list[str]:
    """What RLinf would accept and train wrongly."""
    algorithm, train, model = native["algorithm"], native["env"]["train"], native["actor"]["model"]
    problems = []
    for key in ("reward_type", "logprob_type", "entropy_type"):
        if algorithm[key] != "chunk_level":
            problems.append(
                f"framework_options.algorithm.{key}: {algorithm[key]!r} would scale the loss by the parts of a plan without a "
                "word; a plan has one reward, so all levels are chunk_level"
            )
    if algorithm["adv_type"] not in ADVANTAGES:
        problems.append(
            f"framework_options.algorithm.adv_type: {algorithm['adv_type']!r} knows no invalid episodes; "
            f"use {', '.join(ADVANTAGES)}"
        )
    if algorithm["adv_type"] != "gae" and (train["auto_reset"] or train["ignore_terminations"]):
        problems.append(
            "framework_options.env.train: auto_reset and ignore_terminations must be false with grpo, or RLinf makes no mask "
            "of what comes after an episode's end"
        )
    if model["num_action_chunks"] != 1:
        problems.append("framework_options.actor.model.num_action_chunks: a plan is one action here; it must be 1")
    if model["is_lora"]:
        problems.append(
            "framework_options.actor.model.is_lora: models do LoRA themselves; use model.language_model.lora_enabled"
        )
    if native["rollout"]["sampling_params"]["temperature_eval"] > 0:
        problems.append("framework_options.rollout.sampling_params.temperature_eval: evaluation is deterministic; set -1")
    if native["rollout"]["sampling_params"]["top_k"] > 0:
        problems.append("framework_options.rollout.sampling_params.top_k: models have no top_k; use algorithm.top_p")
    return problems


def _batches(native: Mapping[str, Any], devices: int) -> list[str]:
    """Sizes that do not divide."""
    placement = native["cluster"]["component_placement"]
    world = {part: processes(placement, part, devices) for part in ("actor", "env", "rollout")}
    stages, problems = native["rollout"]["pipeline_stage_num"], []
    train, actor = native["env"]["train"], native["actor"]
    rows, group = train["total_num_envs"], train["group_size"]
    if world["env"] and rows % (world["env"] * stages * group):
        problems.append(
            f"training.scenes_per_step: {rows // group} groups cannot be shared by {world['env']} env workers × "
            f"{stages} pipeline stages; take {world['env'] * stages}, or fewer workers in framework_options.cluster"
        )
    if world["rollout"] and rows % (world["rollout"] * stages):
        problems.append(
            f"training.scenes_per_step × algorithm.group_size: {rows} plans cannot be shared by "
            f"{world['rollout']} rollout workers"
        )
    if world["env"] and native["env"]["eval"]["total_num_envs"] % (world["env"] * stages):
        problems.append(
            f"environment.heldout_scenes: {native['env']['eval']['total_num_envs']} rows cannot be shared by "
            f"{world['env']} env workers × {stages} pipeline stages"
        )
    samples = rows * train["rollout_epoch"] * train["max_steps_per_rollout_epoch"]
    whole, micro = actor["global_batch_size"], actor["micro_batch_size"]
    if whole < 1 or samples % whole:
        problems.append(
            f"algorithm.minibatches: {samples} decisions of an update do not divide into batches of {whole}; choose a divisor"
        )
    if world["actor"] and (micro < 1 or whole % (micro * world["actor"])):
        problems.append(
            f"framework_options.actor.micro_batch_size: batches of {whole} do not divide into {micro} × {world['actor']} actor "
            "workers; set it to a divisor of global_batch_size / workers"
        )
    return problems


def processes(placement: Mapping[str, Any], part: str, devices: int) -> int | None:
    """How many workers RLinf's ``component_placement`` starts for a part; None where it is written in a form not known here."""
    for names, where in placement.items():
        if part not in [name.strip() for name in str(names).split(",")]:
            continue
        text = str(where).strip().split(":")[-1]
        if text == "all":
            return devices or None
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
        return None if match is None else int(match[2] or match[1]) - int(match[1]) + 1
    return None
