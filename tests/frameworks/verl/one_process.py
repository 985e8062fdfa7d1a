"""verl's rollout and training step with its real classes and functions, in one process and without Ray.

The composed configuration, AgentLoopWorker, the FSDP2 engine on gloo, advantages and losses are verl's; between the agent loops
and the server, the calls go directly.
"""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import small_run  # noqa: F401 - registers models and environments
import torch
import torch.distributed as td
from gymnasium.vector import VectorEnv
from tensordict import NonTensorStack, TensorDict
from toy_world import ToyDrive
from verl.experimental.agent_loop.agent_loop import AgentLoopWorker
from verl.protocol import DataProto
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.engine import EngineRegistry
from verl.workers.utils.losses import ppo_loss, value_loss
from verl.workers.utils.padding import response_from_nested

from vla_models.config import VLAConfig
from vla_models.frameworks.probing import lay_out
from vla_models.frameworks.verl import native as native_config
from vla_models.frameworks.verl import runner
from vla_models.frameworks.verl.env import VerlBench2DriveAdapter
from vla_models.frameworks.verl.launch import write, write_scenes
from vla_models.frameworks.verl.rollout import DrivingServer
from vla_models.model_registry import VLAModelRegistry, create_model, register_env_adapter

JAGGED = ("prompts", "responses", "response_mask", "loss_mask", "rm_scores", "rollout_log_probs", "input_ids")


@register_env_adapter("bench2drive", "verl")
class ToyBench2Drive(VerlBench2DriveAdapter):
    """The toy world in the place of Bench2Drive."""

    @classmethod
    def make_env(cls, config: VLAConfig, part: Any, num_envs: int, spec: Any) -> VectorEnv:
        return ToyDrive(num_envs, horizon=spec.horizon)


HEADS = ("small_tokens", "small_gaussian", "small_flow")


def one_rank() -> None:
    """A process group of this process alone."""
    if td.is_initialized():
        return
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    td.init_process_group("gloo", rank=0, world_size=1)


def configuration(environment: str, model: str, algorithm: str = "grpo", **more: Any) -> VLAConfig:
    navsim = environment == "navsim"
    tiny = {"dim": 32, "layers": 1, "heads": 2}
    name, _, head = model.partition("/")
    kinds = {"tiny_vla": tiny, "my_vla": {"dim": 32}}
    section: dict[str, Any] = {"name": name, "options": kinds.get(name, {"horizon": 8})}
    if head:
        section["policy_head"] = {"type": head}
    return VLAConfig.from_dict(
        {
            "framework": "verl",
            "model": section,
            "environment": {"type": environment, "train_scenes": 4, "heldout_scenes": 2},
            "reward": {"type": "pdms"} if navsim else {"type": "driving", "weights": {"success": 1.0}},
            "algorithm": {"name": algorithm, "group_size": 4, "gamma": 0.5, **more.pop("algorithm", {})},
            "training": {"steps": 2, "scenes_per_step": 2, "threads": 1, "imitation": {"steps": 0, "batch_size": 4}},
            **more,
        }
    )


class Client:
    """The calls of verl's LLMServerClient that agent loops make, straight to a server."""

    def __init__(self, server: Any) -> None:
        self.server = server

    async def generate(self, request_id: str, *, prompt_ids: list[int], sampling_params: Any, **more: Any) -> Any:
        return await self.server.generate(request_id, prompt_ids, sampling_params, **more)


@dataclass
class Setting:
    """Everything that the processes of a run would hold."""

    config: VLAConfig
    cfg: Any
    folder: Path
    model_config: Any
    server: Any

    def engine(self, kind: str = "actor") -> Any:
        section = self.cfg.actor_rollout_ref.actor if kind == "actor" else self.cfg.critic
        parsed = omega_conf_to_dataclass(section)
        model = self.model_config if kind == "actor" else parsed.model
        parsed.optim.total_training_steps = 10
        engine = EngineRegistry.new(
            model_type=model.model_type if kind == "actor" else "value_model", backend=parsed.engine.strategy,
            model_config=model, engine_config=parsed.engine, optimizer_config=parsed.optim,
            checkpoint_config=parsed.checkpoint,
        )  # fmt: skip
        engine.initialize()
        return engine

    def loss(self, kind: str = "actor") -> Any:
        section = self.cfg.actor_rollout_ref.actor if kind == "actor" else self.cfg.critic
        return partial(ppo_loss if kind == "actor" else value_loss, config=omega_conf_to_dataclass(section))


def setting(folder: Path, config: VLAConfig) -> Setting:
    """What ``launch`` does up to the start, on ``folder``."""
    runner.load_plugin()
    one_rank()
    config.to_yaml(folder / "config.yaml")
    torch.manual_seed(config.seed)
    model = create_model(config.model.name, **config.model.arguments())
    model.save_pretrained(folder / "start")
    adapter = VLAModelRegistry.get_env_adapter(config.environment.type, "verl")
    layout = lay_out(config, model, adapter.make_env)
    tokens = native_config.route_of(config) == "tokens"
    if tokens:
        model.export(folder / "verl" / "base")
    native = native_config.make(
        config, folder, folder / "start", model.spec, layout, decisions=adapter.decisions,
        answer=model.grammar.most if tokens else 0,
    )  # fmt: skip
    native_config.check(native, config)
    path = write(native, folder)
    write_scenes(config, folder, model.spec)
    cfg = runner.compose(path)
    model_config = omega_conf_to_dataclass(cfg.actor_rollout_ref.model)
    if tokens:
        import cpu_tokens

        return Setting(config, cfg, folder, model_config, cpu_tokens.TokenServer(model_config.path))
    server = DrivingServer(model_config, 0)
    return Setting(config, cfg, folder, model_config, server)


def fields_of(s: Setting, scenes: list[str], part: str = "train") -> dict[str, Any]:
    """What verl hands to the agent loops of ``scenes``, from the real dataset."""
    from verl.trainer.ppo.utils import create_rl_dataset
    from verl.utils.dataset.rl_dataset import collate_fn

    file = s.cfg.data.train_files if part == "train" else s.cfg.data.val_files
    data = create_rl_dataset(file, s.cfg.data, s.model_config.tokenizer, None)
    rows = collate_fn([data[data.scenes.index(scene)] for scene in scenes])
    return {**rows, "uid": np.array([f"u{data.scenes.index(scene)}" for scene in scenes], dtype=object)}


def dataproto(s: Setting, scenes: list[str]) -> DataProto:
    """A rollout through verl's AgentLoopWorker, one-decision environments only (its outputs are single rows)."""
    batch = DataProto.from_single_dict(fields_of(s, scenes))
    batch.meta_info = {"global_steps": 1}
    worker = AgentLoopWorker(s.cfg, Client(s.server), None, None)
    return asyncio.run(worker.generate_sequences(batch))


def trajectories(s: Setting, scenes: list[str], part: str = "train") -> tuple[TensorDict, list[str]]:
    """A rollout as the V1 trainer stores it: rows with jagged fields, and their keys ``uid_session_index``."""
    import verl.trainer.ppo.v1.agent_loop_tq as v1

    rows: dict[str, Any] = {}

    class Queue:
        async def async_kv_batch_put(self, keys: list[str], fields: TensorDict, tags: Any, partition_id: str) -> None:
            rows.update({key: fields[i] for i, key in enumerate(keys)})

    cls = v1.AgentLoopWorkerTQ.__ray_metadata__.modified_class
    worker = cls.__new__(cls)
    AgentLoopWorker.__init__(worker, s.cfg, Client(s.server), None, None)
    given = fields_of(s, scenes, part)
    rollout = s.cfg.actor_rollout_ref.rollout
    sampling = {"temperature": rollout.temperature, "top_p": rollout.top_p}
    if part != "train":
        sampling = {"temperature": rollout.val_kwargs.temperature, "top_p": rollout.val_kwargs.top_p}

    async def everyone() -> None:
        jobs = []
        seen: dict[str, int] = {}
        for i in range(len(scenes)):
            fields = {name: values[i] for name, values in given.items()} | {"global_steps": 1}
            session = seen[fields["uid"]] = seen.get(fields["uid"], -1) + 1
            info = {"step": 1, "sample_index": i, "rollout_n": session, "validate": part != "train"}
            jobs.append(worker._run_agent_loop(sampling, info, trace=False, session_id=session, **fields))
        await asyncio.gather(*jobs)

    original, v1.tq = v1.tq, Queue()
    try:
        asyncio.run(everyone())
    finally:
        v1.tq = original
    keys = sorted(rows)
    jagged = {*JAGGED, *({"position_ids"} if s.model_config.processor is not None else ())}
    names = [*jagged, *(n for n in sorted(set(rows[keys[0]].keys())) if n.startswith("record/"))]
    fields = {
        name: torch.nested.as_nested_tensor([rows[key][name] for key in keys], layout=torch.jagged)
        if name in jagged
        else torch.stack([rows[key][name] for key in keys])
        for name in names
    }
    data = TensorDict(fields, batch_size=len(keys))
    extra = [getattr(rows[key]["extra_fields"], "data", rows[key]["extra_fields"]) for key in keys]
    data.set_non_tensor("extra", extra)
    if s.model_config.processor is not None:
        pictures = [rows[key]["multi_modal_inputs"] for key in keys]
        data["multi_modal_inputs"] = NonTensorStack(*(getattr(row, "data", row) for row in pictures))
    return data, keys


def meta(data: TensorDict, **more: Any) -> TensorDict:
    """What verl's trainer says about a batch."""
    rows = len(data)
    tu.assign_non_tensor(
        data, use_remove_padding=False, use_dynamic_bsz=False, micro_batch_size_per_gpu=rows, use_fused_kernels=False,
        temperature=1.0, global_batch_size=rows, max_token_len_per_gpu=1024, **more,
    )  # fmt: skip
    return data


def replayed(engine: Any, data: TensorDict) -> dict[str, torch.Tensor]:
    """Log-probabilities [B, R] (and entropy) that the engine recomputes, as the trainer stores them."""
    with engine.eval_mode():
        out = engine.infer_batch(meta(data.clone(), calculate_entropy=True))["model_output"]
    return {name: response_from_nested(value, data["response_mask"]).to_padded_tensor(0.0) for name, value in out.items()}


def advantages(s: Setting, data: TensorDict, keys: list[str], values: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """verl's advantages and returns [B, R] (PPOTrainer._compute_advantage)."""
    batch = {name: data[name].to_padded_tensor(0.0) for name in ("response_mask", "rm_scores")}
    batch |= {"token_level_rewards": batch["rm_scores"]} | ({} if values is None else {"values": values})
    proto = DataProto(batch=TensorDict(batch, batch_size=len(keys)))
    proto.non_tensor_batch["uid"] = np.array([key.rsplit("_", 2)[0] for key in keys], dtype=object)
    algorithm = s.cfg.algorithm
    done = compute_advantage_for_multi_trajectories(
        proto, batch_keys=keys, adv_estimator=algorithm.adv_estimator, gamma=algorithm.gamma, lam=algorithm.lam,
        num_repeat=s.cfg.actor_rollout_ref.rollout.n, norm_adv_by_std_in_grpo=algorithm.norm_adv_by_std_in_grpo,
        config=algorithm,
    )  # fmt: skip
    return {name: done.batch[name] for name in ("advantages", "returns")}


def nested(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    lengths = like.offsets().diff().tolist()
    return torch.nested.as_nested_tensor([row[:n] for row, n in zip(value, lengths, strict=True)], layout=torch.jagged)


def train(engine: Any, data: TensorDict, loss: Any, **fields: torch.Tensor) -> dict[str, Any]:
    """One optimiser step on all rows; metrics."""
    whole = data.clone()
    for name, value in fields.items():
        whole[name] = nested(value, data["response_mask"])
    with engine.train_mode():
        done = engine.train_batch(meta(whole, calculate_entropy=False), loss)
    metrics: dict[str, Any] = done["metrics"]
    return metrics


def weights(engine: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in engine.get_per_tensor_param()[0]}
