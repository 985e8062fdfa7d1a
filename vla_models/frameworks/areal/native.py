"""``VLAConfig`` -> AReaL's ``GRPOConfig`` as plain data, and the checks that AReaL makes too late, too tersely, or not at all.

The key ``vla`` is ours, beside AReaL's own: ``route`` (``record``, any model through our engines; ``tokens``, action tokens
through AReaL's own engine and an inference server) and the limits of the environment pool.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vla_models.errors import ConfigError, did_you_mean
from vla_models.frameworks.model_adapter import adapter_passed_by
from vla_models.frameworks.user_code import SOURCES
from vla_models.model_registry import VLAModelRegistry

if TYPE_CHECKING:
    from vla_models.config import VLAConfig

EXPERIMENT: Final = "vla-models"
TRIAL: Final = "run"
"""AReaL's names of a run; its folders are inside our run folder, so they need not differ."""
LIMIT_SECONDS: Final = 600.0
"""How long a call into an environment may take."""
ROUTES: Final = ("record", "tokens")
OURS: Final = ("route", "environments", "threads", "limit")
"""Keys of ``framework_options.vla``."""


def make(config: VLAConfig, folder: Path, start: Path, tokenizer: Path, devices: int) -> dict[str, Any]:
    """AReaL's configuration as plain data, ``framework_options`` merged in, not yet checked.

    Args:
        config: what the user wrote.
        folder: the run's folder.
        start: checkpoint that training starts from (on the token route a plain transformers checkpoint).
        tokenizer: folder with a Hugging Face tokenizer.
        devices: accelerators of this machine.
    """
    algorithm, training = config.algorithm, config.training
    names = {"experiment_name": EXPERIMENT, "trial_name": TRIAL}
    root = str((folder / "areal" / "run").resolve())
    late = int(_option(config, "rollout", "max_head_offpolicyness", 0))
    decoupled = late > 0
    accelerated, devices = devices > 0, max(1, devices)
    # what AReaL's workers need to find this package and the classes that a script registered
    variables = {name: os.environ[name] for name in (SOURCES, "PYTHONPATH") if os.environ.get(name)}
    server = f"{shlex.quote(sys.executable)} -m areal.infra.rpc.rpc_server"
    worker = {"cpu": 1, "gpu": int(accelerated), "mem": 4, "env_vars": variables, "cmd": server}
    optimizer = {
        "type": "sgd" if training.optimizer.type == "sgd" else "adam",
        "lr": training.optimizer.lr,
        "weight_decay": training.optimizer.weight_decay,
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-8,
        "gradient_clipping": training.optimizer.grad_clip,
        "lr_scheduler_type": "cosine",
        "min_lr_ratio": 0.02,
        "warmup_steps_proportion": (training.warmup_steps + 1e-6) / max(1, training.steps),
    }
    engine: dict[str, Any] = {
        **names,
        "path": str(start.resolve()),
        "backend": f"fsdp:d{devices}",
        "attn_impl": "flash_attention_2" if accelerated else "sdpa",
        "dtype": "float32",
        "temperature": algorithm.temperature,
        "weight_update_mode": "disk",
        "scheduling_spec": [worker],
        "mb_spec": {"n_mbs": 1},
    }
    made: dict[str, Any] = {
        **names,
        "seed": config.seed,
        "total_train_epochs": 1,
        "total_train_steps": training.steps,
        "tokenizer_path": str(tokenizer.resolve()),
        "cluster": {
            "fileroot": root,
            "n_nodes": 1,
            "n_gpus_per_node": devices,
            "name_resolve": {"type": "nfs", "nfs_record_root": str((folder / "areal" / "name_resolve").resolve())},
        },
        "scheduler": {"type": None},
        "gconfig": {
            "n_samples": 1,  # a rollout is a whole group
            "temperature": algorithm.temperature,
            "top_p": algorithm.top_p,
            "max_new_tokens": 512,
        },
        "rollout": {
            **names,
            "fileroot": root,
            "backend": f"sglang:d{devices}",
            "model": str(start.resolve()),
            "tokenizer_path": str(tokenizer.resolve()),
            "consumer_batch_size": training.scenes_per_step,
            "max_concurrent_rollouts": training.scenes_per_step * (late + 1),
            "max_head_offpolicyness": late,
            "check_trajectory_format": False,  # sequences.check looks closer
            "scheduling_spec": [worker],
        },
        "actor": {
            **engine,
            "optimizer": optimizer,
            "ppo_n_minibatches": algorithm.minibatches,
            "eps_clip": algorithm.clip_low,
            "eps_clip_higher": algorithm.clip_high,
            "kl_ctl": algorithm.kl_coef,
            "kl_estimator": "k1",
            "reward_norm": None,
            "adv_norm": None,
            "discount": 1.0,
            "gae_lambda": 1.0,
            "use_decoupled_loss": decoupled,
            "recompute_logprob": decoupled,
            "rejection_sampling": {"level": "token", "action": "mask", "metric": "ratio", "upper": 5.0} if decoupled else None,
        },
        "ref": {**engine, "optimizer": None} if algorithm.kl_coef else None,
        "train_dataset": {
            "path": "scenes",
            "type": "rl",
            "batch_size": training.scenes_per_step,
            "shuffle": False,
            "drop_last": True,
            "num_workers": 0,
        },
        "valid_dataset": {
            "path": "scenes",
            "type": "rl",
            "batch_size": training.scenes_per_step,
            "shuffle": False,
            "drop_last": False,
            "num_workers": 0,
        },
        "saver": {**names, "fileroot": root, "freq_epochs": None, "freq_steps": None, "freq_secs": None},
        "evaluator": {
            **names, "fileroot": root, "freq_epochs": None, "freq_steps": training.eval_every or None, "freq_secs": None,
        },
        "recover": {**names, "fileroot": root, "mode": "on", "freq_epochs": None, "freq_steps": 1, "freq_secs": None},
        "stats_logger": {
            **names,
            "fileroot": root,
            "wandb": {"mode": "disabled"},
            "swanlab": {"mode": "disabled"},
            "tensorboard": {"path": str((folder / "areal" / "tensorboard").resolve())},
        },
        "vla": {
            "route": "record",
            "environments": training.scenes_per_step * (late + 1) if config.environment.type == "navsim" else _threads(config),
            "threads": _threads(config),
            "limit": LIMIT_SECONDS,
        },
    }  # fmt: skip
    if made["valid_dataset"] and not training.eval_every and config.environment.type == "navsim":
        made["valid_dataset"] = None
    return merged(made, config.framework_options)


def route(config: VLAConfig) -> str:
    """``framework_options.vla.route``."""
    return str(_option(config, "vla", "route", "record"))


def _option(config: VLAConfig, section: str, key: str, default: Any) -> Any:
    inner = config.framework_options.get(section)
    return inner.get(key, default) if isinstance(inner, Mapping) else default


def _threads(config: VLAConfig) -> int:
    return config.training.threads or len(os.sched_getaffinity(0))


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` put over it, dict by dict."""
    out = dict(base)
    for key, value in changes.items():
        inner = out.get(key)
        out[key] = merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return out


def check_config(config: VLAConfig) -> None:
    """Refuse what AReaL cannot do, before anything else is done; ``ConfigError`` lists every problem with its key."""
    algorithm, optimizer = config.algorithm, config.training.optimizer
    problems = []
    if config.framework != "areal":
        problems.append(f"framework: {config.framework!r} has a launcher of its own; this one runs framework: areal")
    if config.training.steps < 1:
        problems.append("training.steps: AReaL needs at least one update; framework: local can stop after imitation")
    if algorithm.name == "ppo":
        problems.append("algorithm.name: ppo needs a critic, which in AReaL is a second model; use grpo, or framework: local")
    elif algorithm.name != "grpo":
        problems.append(f"algorithm.name: {algorithm.name} is not known here; use grpo")
    if algorithm.entropy_coef:
        problems.append("algorithm.entropy_coef: AReaL's loss has no entropy bonus; set it to 0, or use framework: local")
    if algorithm.epochs > 1:
        problems.append("algorithm.epochs: AReaL passes over a batch once; set it to 1, and use algorithm.minibatches")
    if optimizer.type == "adam" and optimizer.weight_decay:
        problems.append("training.optimizer.type: AReaL's adam is AdamW; use adamw")
    if "areal" not in VLAModelRegistry.list_env_adapters().get(config.environment.type, []):
        problems.append(f"environment.type: {config.environment.type!r} has no AReaL adapter; see docs/frameworks/areal.md")
    ours = config.framework_options.get("vla", {})
    if not isinstance(ours, Mapping):
        problems.append(f"framework_options.vla: give a mapping of {', '.join(OURS)}")
    else:
        problems += [f"framework_options.vla.{key}: no such key; {did_you_mean(key, OURS)}" for key in ours if key not in OURS]
        if route(config) == "tokens":
            problems += adapter_passed_by("areal", config.model.name, "framework_options.vla.route: tokens")
        elif route(config) not in ROUTES:
            problems.append(f"framework_options.vla.route: {route(config)!r}; {did_you_mean(route(config), ROUTES)}")
    if problems:
        raise ConfigError("\n".join(problems))


def check(native: Mapping[str, Any]) -> None:
    """Refuse a native configuration that AReaL would run wrongly; ``ConfigError`` names the keys."""
    actor, rollout, data = native["actor"], native["rollout"], native["train_dataset"]
    problems = []

    def must(section: str, key: str, value: Any, why: str) -> None:
        if native[section].get(key) != value:
            problems.append(f"framework_options.{section}.{key}: {native[section].get(key)!r}; it must be {value!r}: {why}")

    must("gconfig", "n_samples", 1, "a rollout drives a whole group (algorithm.group_size)")
    must("train_dataset", "shuffle", False, "the scenes of each update are laid out in the order that local takes")
    for key in ("reward_norm", "adv_norm"):
        must("actor", key, None, "advantages are compared within their groups before AReaL sees them")
    for key in ("discount", "gae_lambda"):
        must("actor", key, 1.0, "all parts of a decision share its advantage")
    if actor.get("overlong_reward_penalty") or actor.get("mask_no_eos_with_zero"):
        problems.append(
            "framework_options.actor: overlong_reward_penalty and mask_no_eos_with_zero are about texts; leave them out"
        )
    if rollout["consumer_batch_size"] != data["batch_size"]:
        problems.append(
            f"framework_options.rollout.consumer_batch_size: {rollout['consumer_batch_size']} rollouts are counted for an "
            f"update of {data['batch_size']} (training.scenes_per_step); AReaL's bound on staleness would be another"
        )
    if rollout["max_head_offpolicyness"] < 0:
        problems.append("framework_options.rollout.max_head_offpolicyness: give 0 (synchronous) or more")
    if rollout["max_concurrent_rollouts"] < 1 or native["vla"]["environments"] < 1 or native["vla"]["threads"] < 1:
        problems.append("framework_options: max_concurrent_rollouts, vla.environments and vla.threads are at least 1")
    if native["vla"]["route"] == "record":
        must("actor", "weight_update_mode", "disk", "weights go from our engine to our engine")
        if actor.get("use_lora"):
            problems.append(
                "framework_options.actor.use_lora: models do LoRA themselves; use model.language_model.lora_enabled"
            )
        if native.get("enable_offload"):
            problems.append("framework_options.enable_offload: the record route does not offload its model; leave it out")
        if not str(actor["backend"]).startswith("fsdp:d"):
            problems.append(f"framework_options.actor.backend: {actor['backend']!r}; on the record route give fsdp:d<number>")
    else:
        must("gconfig", "top_p", 1.0, "servers report log-probabilities of the whole distribution (algorithm.top_p)")
        if actor["attn_impl"] == "sdpa" and not actor["mb_spec"].get("max_tokens_per_mb"):
            problems.append(
                "framework_options.actor.attn_impl: with sdpa AReaL lets sequences that are packed together see each other; "
                "use flash_attention_2, or set actor.mb_spec.max_tokens_per_mb so low that no two fit together"
            )
    if native["recover"]["mode"] not in ("on", "auto"):
        problems.append("framework_options.recover.mode: without it no checkpoint is written; it must be on")
    if problems:
        raise ConfigError("\n".join(problems))
