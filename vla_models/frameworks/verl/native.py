"""``VLAConfig`` -> verl's configuration, and the checks that verl makes too late, too tersely, or not at all.

What is made is the part of verl's Hydra configuration that differs from its own ``ppo_trainer`` (verl/trainer/config), so it is
readable, and verl's launcher takes it with ``--config-path``. ``check`` names our keys, and refuses what would train silently
wrong: another agent loop than ours, estimators that take each decision for an episode, log-probabilities at another precision
than the ones that sampled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

from vla_models.errors import ConfigError, did_you_mean
from vla_models.frameworks.model_adapter import adapter_passed_by
from vla_models.frameworks.options import merged
from vla_models.frameworks.verl.compat import MODEL_TYPE, NAME
from vla_models.model_registry import VLAModelRegistry
from vla_models.training.practice import PRACTISED

if TYPE_CHECKING:
    from vla_models.config import VLAConfig
    from vla_models.frameworks.probing import Layout
    from vla_models.inputs import VLASpec

Route = Literal["record", "tokens"]
AGENTS: Final[Mapping[str, str]] = MappingProxyType({"record": "vla_models_record", "tokens": "vla_models_tokens"})
"""How decisions travel -> verl's name of our agent loop for it."""
MODES: Final = ("sync", "colocate_async", "separate_async")
"""``trainer.v1.trainer_mode``; sync is what was run."""
WRITERS_HAVE: Final = ("build_prompt", "parse", "export", "prompts", "grammar")
"""What a model must have for the route tokens: to be asked and read without its weights."""
OWN_SECTION: Final = "vla_models"
"""Section of verl's configuration that our agent loops read."""
NEW_KEYS: Final = (
    OWN_SECTION, "hydra", "defaults", "ray_kwargs.ray_init.runtime_env.env_vars", "actor_rollout_ref.model.model_type",
    "actor_rollout_ref.model.vla", "critic.model.model_type", "critic.model.vla",
    "actor_rollout_ref.actor.fsdp_config.mixed_precision", "actor_rollout_ref.ref.fsdp_config.mixed_precision",
    "critic.fsdp.mixed_precision", "trainer.v1.sampler.sampler_kwargs", "actor_rollout_ref.model.override_config",
    "actor_rollout_ref.rollout.engine_kwargs", "data.apply_chat_template_kwargs", "data.mm_processor_kwargs",
    "actor_rollout_ref.rollout.checkpoint_engine.engine_kwargs", "ray_kwargs.ray_init",
)  # fmt: skip
"""Places in verl's configuration where keys may stand that its own files do not have."""
_FP32: Final = MappingProxyType({"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"})
_OPTIMIZERS: Final = {"adamw": "AdamW", "adam": "Adam", "sgd": "SGD"}
_PACKAGE: Final = "pkg://vla_models.frameworks.verl"


@dataclass(frozen=True)
class Machine:
    """Where the run starts, and what its processes are told."""

    devices: int = 0
    """Accelerators (0: the tests' stand-in for one)."""
    cpus: int = 1
    variables: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of all processes."""


def route_of(config: VLAConfig) -> Route:
    """How decisions travel: ``framework_options.vla_models.route``, record unless it says tokens."""
    section = config.framework_options.get(OWN_SECTION)
    route = section.get("route", "record") if isinstance(section, Mapping) else "record"
    if route not in AGENTS:
        raise ConfigError(f"framework_options.vla_models.route: {route!r}; {did_you_mean(str(route), AGENTS)}")
    return route  # type: ignore[return-value]


def make(
    config: VLAConfig,
    folder: Path,
    start: Path,
    spec: VLASpec,
    layout: Layout,
    *,
    decisions: int | None,
    answer: int = 0,
    machine: Machine = Machine(),
    done: int = 0,
) -> dict[str, Any]:
    """verl's configuration as plain data, ``framework_options`` merged in, not yet checked.

    Args:
        config: what the user wrote.
        folder: the run's folder (it holds config.yaml).
        start: checkpoint that the model is loaded from; with route tokens, ``verl/base`` in ``folder`` is its exported form.
        spec: of the model: how its plans are made.
        layout: of observations and records.
        decisions: of an episode where the environment fixes them (``VerlEnvAdapter.decisions``).
        answer: with route tokens, most tokens of an answer.
        machine: where the run starts.
        done: updates at the checkpoint to go on from.
    """
    algorithm, training = config.algorithm, config.training
    ppo, one_decision = algorithm.name == "ppo", (decisions or layout.max_decisions) == 1
    native = folder.resolve() / "verl"
    scenes, group, devices = training.scenes_per_step, algorithm.group_size, max(1, machine.devices)
    mini = max(1, scenes // algorithm.minibatches)
    micro = max(1, mini * group // devices)
    last = max(1, training.steps)
    ours = config.environment.type in PRACTISED  # then the first and the last evaluation are done here
    mode = _mode(config.framework_options)
    optimizer = training.optimizer
    optim = {
        "optimizer": _OPTIMIZERS[optimizer.type],
        "lr": optimizer.lr,
        "weight_decay": optimizer.weight_decay,
        "clip_grad": optimizer.grad_clip,
        "lr_scheduler_type": "cosine",
        "lr_warmup_steps": training.warmup_steps,
        "min_lr_ratio": 0.02,
        "zero_indexed_step": training.warmup_steps == 0,  # a warm-up that starts at 0 would begin with a step of size 0
    }
    route = route_of(config)
    model, fsdp, rollout, lengths = (
        _for_records(config, start, layout) if route == "record" else _for_tokens(native, layout, answer)
    )
    if route == "tokens":
        micro = next(n for n in range(min(4, micro), 0, -1) if micro % n == 0)
    dropped = str(native / "dropped.jsonl")
    made: dict[str, Any] = {
        "hydra": {"searchpath": ["pkg://verl.trainer.config"]},
        "defaults": ["ppo_trainer", "_self_"],
        OWN_SECTION: {
            "route": route,
            "config": str(folder.resolve() / "config.yaml"),
            "dropped": dropped,
            "max_dropped": 0.1,
            "rows": group,
            "environments": 8,
            "gamma": (1.0 if one_decision else algorithm.gamma) if ppo else None,
            "spec": {"horizon": spec.horizon, "dt": spec.dt, "controller": spec.controller},
            "speaker": str(start.resolve()),
            "model": config.model.name,
            "observation": layout.observation.to_dict(),
        },
        "data": {
            "custom_cls": {"path": f"{_PACKAGE}.dataset", "name": "DrivingDataset"},
            "train_files": str(native / "train.json"),
            "val_files": str(native / "heldout.json"),
            "train_batch_size": scenes,
            **lengths,
            "shuffle": True,
            "seed": config.seed,
            "dataloader_num_workers": 0,
        },
        "actor_rollout_ref": {
            "model": model,
            "actor": {
                "strategy": "fsdp2",
                "ppo_mini_batch_size": mini,
                "ppo_micro_batch_size_per_gpu": micro,
                "ppo_epochs": algorithm.epochs,
                "shuffle": True,
                "data_loader_seed": config.seed,
                "clip_ratio_low": algorithm.clip_low,
                "clip_ratio_high": algorithm.clip_high,
                "entropy_coeff": algorithm.entropy_coef,
                "calculate_entropy": algorithm.entropy_coef > 0.0,
                "use_kl_loss": algorithm.kl_coef > 0.0,
                "kl_loss_coef": algorithm.kl_coef,
                "use_torch_compile": False,
                "optim": optim,
                "fsdp_config": {**fsdp, "seed": config.seed},
                "checkpoint": {"save_contents": ["model", "optimizer", "extra", *(["hf_model"] if route == "tokens" else [])]},
            },
            "ref": {"log_prob_micro_batch_size_per_gpu": micro, "fsdp_config": dict(fsdp)},
            "rollout": {
                **rollout,
                "n": group,
                "seed": config.seed,
                "temperature": algorithm.temperature,
                "top_p": algorithm.top_p,
                "tensor_model_parallel_size": 1,
                "log_prob_micro_batch_size_per_gpu": micro,
                "agent": {
                    "num_workers": max(1, min(8, scenes, machine.cpus // 4)),
                    "default_agent_loop": AGENTS[route],
                },
            },
        },
        "reward": {"num_workers": 1},
        "algorithm": {
            "adv_estimator": "gae" if ppo else "grpo",
            "gamma": 1.0,
            "lam": 1.0,
            "norm_adv_by_std_in_grpo": algorithm.normalize_advantage,
        },
        "transfer_queue": {"backend": {"SimpleStorage": {"num_data_storage_units": 2}}},
        "trainer": {
            "project_name": "vla_models",
            "experiment_name": folder.name,
            "logger": ["file", "tensorboard"],
            "n_gpus_per_node": devices,
            "nnodes": 1,
            "total_training_steps": training.steps,
            "total_epochs": last,  # verl stops at whichever comes first
            "save_freq": training.checkpoint_every or last,
            "test_freq": training.eval_every or (-1 if ours else last),
            "val_before_train": not ours and not done,
            "default_local_dir": str(native / "checkpoints"),
            "resume_mode": "resume_path" if done else "disable",
            "resume_from_path": str(native / "checkpoints" / f"global_step_{done}") if done else None,
            "v1": {
                "trainer_mode": mode,
                "sampler": {
                    "custom_sampler": {
                        "path": f"{_PACKAGE}.sampler",
                        "name": "DrivingReplayBuffer" if mode == "sync" else "DrivingReplayBufferAsync",
                    },
                    "sampler_kwargs": {
                        "group_size": group,
                        "grouped": not ppo,
                        "max_dropped": "${vla_models.max_dropped}",
                        "dropped": dropped,
                    },
                },
            },
        },
        "ray_kwargs": {"ray_init": {"runtime_env": {"env_vars": dict(machine.variables)}}},
    }
    if ppo:
        made["critic"] = {
            "strategy": "fsdp2",
            "model": model,
            "ppo_micro_batch_size_per_gpu": micro,
            "data_loader_seed": config.seed,
            "optim": optim,
            "fsdp": {**fsdp, "seed": config.seed},
        }
    return merged(made, config.framework_options)


def _for_records(config: VLAConfig, start: Path, layout: Layout) -> tuple[dict[str, Any], ...]:
    """Model, FSDP settings, rollout and lengths where records travel: our own model class and server, all in float32."""
    model = {
        "_target_": "vla_models.frameworks.verl.model.DrivingModelConfig",
        "path": str(start.resolve()),
        "model_type": MODEL_TYPE,
        "use_remove_padding": False,
        "enable_gradient_checkpointing": False,
        "vla": {
            "seed": config.seed,
            "masked": layout.masked,
            "observation": layout.observation.to_dict(),
            "record": layout.record.to_dict(),
        },
    }
    fsdp = {"model_dtype": "fp32", "mixed_precision": dict(_FP32), "use_torch_compile": False}
    rollout = {"name": NAME, "free_cache_engine": False}
    return model, fsdp, rollout, {"max_prompt_length": 1, "max_response_length": max(1, layout.record.parts)}


def _for_tokens(native: Path, layout: Layout, answer: int) -> tuple[dict[str, Any], ...]:
    """The same where tokens travel: the exported checkpoint, and verl's own model class, server and precision."""
    if "input_ids" not in layout.record.sizes:
        raise ConfigError("framework_options.vla_models.route: the model's records hold no input_ids, so it writes no tokens")
    lengths = {"max_prompt_length": layout.record.sizes["input_ids"][0], "max_response_length": max(1, answer)}
    return {"path": str(native / "base")}, {"use_torch_compile": False}, {"name": "vllm"}, lengths


def check_config(config: VLAConfig) -> None:
    """Refuse what verl cannot do, before anything else is done; ``ConfigError`` lists every problem with its key."""
    algorithm, training = config.algorithm, config.training
    problems = []
    if config.framework != "verl":
        problems.append(f"framework: {config.framework!r} has a launcher of its own; this one runs framework: verl")
    if training.steps < 1:
        problems.append("training.steps: verl needs at least one update; framework: local can stop after imitation")
    if algorithm.name == "ppo" and not algorithm.normalize_advantage:
        problems.append("algorithm.normalize_advantage: verl always normalises the advantages of ppo; set it to true")
    if training.scenes_per_step % algorithm.minibatches:
        problems.append(
            f"algorithm.minibatches: verl splits batches by scenes, and {training.scenes_per_step} (training.scenes_per_step) "
            f"do not divide by {algorithm.minibatches}"
        )
    if "verl" not in VLAModelRegistry.list_env_adapters().get(config.environment.type, []):
        problems.append(f"environment.type: {config.environment.type!r} has no verl adapter; see docs/frameworks/verl.md")
    if route_of(config) == "tokens":
        problems += adapter_passed_by("verl", config.model.name, "framework_options.vla_models.route: tokens")
    if (mode := _mode(config.framework_options)) not in MODES:
        problems.append(f"framework_options.trainer.v1.trainer_mode: {mode!r}; {did_you_mean(str(mode), MODES)}")
    if problems:
        raise ConfigError("\n".join(problems))


def check(native: Mapping[str, Any], config: VLAConfig) -> None:
    """Refuse a native configuration that verl would refuse later or run wrongly; ``ConfigError`` names our keys."""
    problems = [*_traps(native, config), *_batches(native)]
    if problems:
        raise ConfigError("\n".join(problems))


def unknown_keys(native: Mapping[str, Any], known: Mapping[str, Any], at: str = "") -> list[str]:
    """Keys of a native configuration that verl's own (``known``, composed) does not have: nothing would read them."""
    found = []
    for key, value in native.items():
        path = f"{at}.{key}" if at else str(key)
        if path in NEW_KEYS and (key not in known or not isinstance(value, Mapping)):
            continue
        if key not in known:
            inside = any(path.startswith(f"{new}.") for new in NEW_KEYS)
            if not inside:
                found.append(path)
        elif isinstance(value, Mapping) and isinstance(known[key], Mapping):
            found += unknown_keys(value, known[key], path)
    return found


def _mode(options: Mapping[str, Any]) -> Any:
    trainer: Any = options.get("trainer")
    for key in ("v1", "trainer_mode"):
        trainer = trainer.get(key) if isinstance(trainer, Mapping) else None
    return trainer or "sync"


def _traps(native: Mapping[str, Any], config: VLAConfig) -> list[str]:
    """What verl would accept and train wrongly."""
    rollout, model = native["actor_rollout_ref"]["rollout"], native["actor_rollout_ref"]["model"]
    own, trainer = native[OWN_SECTION], native["trainer"]
    problems = []
    agent = rollout["agent"]["default_agent_loop"]
    if agent != AGENTS[own["route"]]:
        problems.append(
            f"framework_options.actor_rollout_ref.rollout.agent.default_agent_loop: {agent!r} is not the agent loop that "
            f"drives ({AGENTS[own['route']]!r}); verl would generate text and drive nothing"
        )
    if rollout["n"] != config.algorithm.group_size:
        problems.append("framework_options.actor_rollout_ref.rollout.n: set algorithm.group_size instead; we count by it")
    estimator = native["algorithm"]["adv_estimator"]
    if estimator not in ("grpo", "gae"):
        problems.append(
            f"framework_options.algorithm.adv_estimator: {estimator!r} would take each decision for an episode; use "
            "algorithm.name: grpo or ppo"
        )
    if not trainer.get("use_v1", True):
        problems.append(
            "framework_options.trainer.use_v1: the trainer before V1 knows no episodes of several decisions; leave it"
        )
    if rollout.get("top_k", -1) != -1:
        problems.append("framework_options.actor_rollout_ref.rollout.top_k: models have no top_k; use algorithm.top_p")
    if rollout.get("val_kwargs", {}).get("temperature", 0):
        problems.append(
            "framework_options.actor_rollout_ref.rollout.val_kwargs.temperature: evaluation is deterministic; set 0"
        )
    if own["route"] == "record":
        if rollout["name"] != NAME:
            problems.append(
                f"framework_options.actor_rollout_ref.rollout.name: {rollout['name']!r} serves tokens; with "
                "framework_options.vla_models.route: tokens it can, with records the server is vla_models"
            )
        if model.get("lora_rank", 0):
            problems.append(
                "framework_options.actor_rollout_ref.model.lora_rank: models do LoRA themselves; use "
                "model.language_model.lora_enabled"
            )
    if not 0.0 <= float(own["max_dropped"]) <= 1.0:
        problems.append(f"framework_options.vla_models.max_dropped: {own['max_dropped']} is no share; choose one from 0 to 1")
    problems += [
        f"framework_options.vla_models.{key}: {own[key]} must be at least 1" for key in ("rows", "environments") if own[key] < 1
    ]
    return problems


def _batches(native: Mapping[str, Any]) -> list[str]:
    """Sizes that do not divide."""
    actor, trainer = native["actor_rollout_ref"]["actor"], native["trainer"]
    devices = trainer["n_gpus_per_node"] * trainer["nnodes"]
    rows = actor["ppo_mini_batch_size"] * native["actor_rollout_ref"]["rollout"]["n"]
    micro, problems = actor["ppo_micro_batch_size_per_gpu"], []
    if rows % devices:
        problems.append(
            f"training.scenes_per_step × algorithm.group_size / algorithm.minibatches: {rows} plans cannot be shared by "
            f"{devices} devices"
        )
    elif micro < 1 or (rows // devices) % micro:
        problems.append(
            f"framework_options.actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu: {rows // devices} plans of a minibatch "
            f"do not divide into {micro}; choose a divisor"
        )
    return problems
