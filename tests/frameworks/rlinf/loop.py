"""RLinf's rollout and training step with its real classes and functions, in one process and without Ray.

What rlinf/workers/env/env_worker.py, rollout/hf/huggingface_worker.py and actor/fsdp_actor_worker.py do with what our adapters
give them, in the same order.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bring_your_own_model  # noqa: F401 - a stranger's model, registers my_vla
import small_models  # noqa: F401 - registers models
import torch
from golden import visible_scenes
from gymnasium.vector import VectorEnv
from omegaconf import OmegaConf
from toy_world import ToyDrive

from vla_models.config import VLAConfig
from vla_models.envs.navsim import NavSimEnv
from vla_models.frameworks.probing import lay_out
from vla_models.frameworks.rlinf import native as native_config
from vla_models.frameworks.rlinf.compat import find
from vla_models.frameworks.rlinf.env import RLinfBench2DriveAdapter, RLinfNavSimAdapter
from vla_models.frameworks.rlinf.model import RLinfPolicy
from vla_models.inputs import VLASpec
from vla_models.model_registry import create_model


class GoldenNavSim(RLinfNavSimAdapter):
    @classmethod
    def make_env(cls, config: VLAConfig, part: Any, num_envs: int, spec: VLASpec) -> VectorEnv:
        return NavSimEnv(num_envs, scenes=visible_scenes(6)[:4] if part == "train" else visible_scenes(6)[4:])


class ToyBench2Drive(RLinfBench2DriveAdapter):
    """The toy world in the place of Bench2Drive, for what must be told to the digit."""

    crashing = False

    @classmethod
    def make_env(cls, config: VLAConfig, part: Any, num_envs: int, spec: VLASpec) -> VectorEnv:
        return ToyDrive(num_envs, crashing=cls.crashing, horizon=spec.horizon)


class CrashingBench2Drive(ToyBench2Drive):
    crashing = True


ENVIRONMENTS = {"navsim": GoldenNavSim, "bench2drive": RLinfBench2DriveAdapter}
BENCH2DRIVE = {
    "train_towns": ["Town01"], "heldout_towns": ["Town02"], "train_scenes": 4, "heldout_scenes": 2,
    "scenario_types": ["DynamicObjectCrossing", "VanillaSignalizedTurnEncounterRedLight"],
    "max_ticks": 40, "camera": {"width": 32, "height": 24},
}  # fmt: skip
"""Four short episodes of four decisions on real routes."""
HEADS = ("small_tokens", "small_gaussian", "small_flow", "tiny_vla", "tiny_vla/gaussian", "tiny_vla/flow", "my_vla")


def configuration(environment: str, model: str, algorithm: str = "grpo") -> VLAConfig:
    name, _, head = model.partition("/")
    if name == "tiny_vla":
        options: dict[str, Any] = {"dim": 32, "layers": 1, "heads": 2}
    else:
        options = {}
    section = {"name": name, "options": options} | ({"policy_head": {"type": head}} if head else {})
    data: dict[str, Any] = {
        "framework": "rlinf",
        "model": section,
        "environment": {"type": environment, "train_scenes": 4, "heldout_scenes": 2}
        | (BENCH2DRIVE if environment == "bench2drive" else {}),
        "algorithm": {"name": algorithm, "group_size": 4, "entropy_coef": 0.0 if head or name == "my_vla" else 0.01},
        "training": {"steps": 2, "scenes_per_step": 2, "eval_every": 2, "checkpoint_every": 2, "threads": 1},
    }
    data["training"]["imitation"] = {"steps": 0, "batch_size": 4}
    return VLAConfig.from_dict(data)


@dataclass
class Setting:
    """Everything that one process of RLinf would hold."""

    cfg: Any
    env: Any
    policy: Any
    config: VLAConfig

    @property
    def decisions(self) -> int:
        return int(self.cfg.env.train.max_steps_per_rollout_epoch)


def setting(
    folder: Path, config: VLAConfig, adapter: Any = None, part: str = "train", place: tuple[int, int] = (0, 1)
) -> Setting:
    adapter = adapter or ENVIRONMENTS[config.environment.type]
    config.to_yaml(folder / "config.yaml")
    torch.manual_seed(config.seed)
    model = create_model(config.model.name, **config.model.arguments())
    layout = lay_out(config, model, adapter.make_env)
    native = native_config.make(
        config, folder, folder / "model", spec=model.spec, max_decisions=adapter.decisions or layout.max_decisions,
        observation=layout.observation, record=layout.record, devices=0,
    )  # fmt: skip
    native_config.check(native, 0)
    cfg = OmegaConf.create(native)
    side = cfg.env.train if part == "train" else cfg.env.eval
    env = adapter(side, side.total_num_envs // place[1], place[0], place[1])
    value_coef, with_values = config.algorithm.value_coef, bool(cfg.actor.model.add_value_head)
    policy = RLinfPolicy(model, layout.observation, layout.record, value_coef=value_coef, with_values=with_values)
    return Setting(cfg, env, policy, config)


def sampling(cfg: Any, do_sample: bool = True) -> dict[str, Any]:
    """MultiStepRolloutWorker.setup_sample_params."""
    params = cfg.rollout.sampling_params
    temperature = params.temperature_train if do_sample else params.temperature_eval
    return {
        "do_sample": do_sample,
        "temperature": temperature,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "max_new_tokens": None,
    }


def forwarded(observation: Any) -> Any:
    """What is left of an observation after RLinf's filter of keys."""
    return find("EnvOutput")(obs=observation).to_dict()["obs"]


def rollout(s: Setting) -> tuple[dict[str, Any], list[Any]]:
    """EnvWorker._run_interact_once and generate_one_epoch; returns the batch [T, B, …] and the infos of each decision."""
    env_output_class, step_result, output = find("EnvOutput"), find("ChunkStepResult"), find("PolicyOutput")
    train, n = s.cfg.env.train, s.env.num_envs
    worker = SimpleNamespace(cfg=s.cfg)
    bootstrap = inspect.unwrap(find("EnvWorker").compute_bootstrap_rewards)
    builder = find("TrajectoryBuilder")(max_episode_length=train.max_episode_steps)
    obs, _ = s.env.reset()
    zeros = torch.zeros(n, 1, dtype=torch.bool)
    current = env_output_class(obs=obs, dones=zeros, terminations=zeros, truncations=zeros)
    infos = []
    for step in range(s.decisions + 1):
        last = step == s.decisions
        actions, result = s.policy.predict_action_batch(env_obs=current.to_dict()["obs"], **sampling(s.cfg))
        final_values = None
        if current.final_obs is not None and hasattr(s.policy, "value_head"):
            _, final = s.policy.predict_action_batch(env_obs=current.to_dict()["final_obs"], **sampling(s.cfg))
            final_values = final["prev_values"]
        said = output(
            actions=actions,
            prev_logprobs=None if last else result["prev_logprobs"],
            prev_values=result["prev_values"],
            bootstrap_values=final_values,
            forward_inputs={} if last else result["forward_inputs"],
        )
        merge = getattr(output, "merge_rollout_results", None) or output.merge
        said = merge([said])
        builder.append_step_result(
            step_result(
                actions=said.forward_inputs.get("action") if not last else None,
                prev_logprobs=said.prev_logprobs,
                prev_values=said.prev_values,
                forward_inputs=said.forward_inputs,
                dones=current.dones,
                terminations=current.terminations,
                truncations=current.truncations,
                rewards=None if current.rewards is None else bootstrap(worker, current, said.bootstrap_values, None),
            )
        )
        if not last:
            chunk = said.actions.numpy()
            observations, rewards, terminations, truncations, info = s.env.chunk_step(chunk)
            infos.append(info[-1])
            current = env_output_class(
                obs=observations[-1],
                final_obs=info[-1].get("final_observation"),
                rewards=rewards,
                dones=terminations | truncations,
                terminations=terminations,
                truncations=truncations,
            )
    s.env.update_reset_state_ids()
    return find("convert_trajectories_to_batch")(builder.to_splited_trajectories(1)), infos


def advantages(s: Setting, batch: dict[str, Any]) -> dict[str, Any]:
    """EmbodiedFSDPActor._process_received_rollout_batch and compute_advantages_and_returns."""
    from rlinf.algorithms.registry import calculate_adv_and_returns
    from rlinf.utils.metric_utils import compute_loss_mask
    from rlinf.workers.actor.fsdp_actor_worker import process_nested_dict_for_adv

    train, algorithm = s.cfg.env.train, s.cfg.algorithm
    batch = process_nested_dict_for_adv(batch, train.rollout_epoch)
    if not train.auto_reset and not train.ignore_terminations:
        mask, total = compute_loss_mask(batch["dones"])
        batch["loss_mask"], batch["loss_mask_sum"] = mask.any(dim=-1, keepdim=True), total[..., -1:]
    computed = calculate_adv_and_returns(
        task_type="embodied", adv_type=algorithm.adv_type, rewards=batch["rewards"], dones=batch["dones"],
        values=batch.get("prev_values"), gamma=algorithm.gamma, gae_lambda=algorithm.gae_lambda,
        group_size=algorithm.group_size, reward_type=algorithm.reward_type, loss_mask=batch.get("loss_mask"),
        loss_mask_sum=batch.get("loss_mask_sum"),
    )  # fmt: skip
    return batch | computed


def training_batch(batch: dict[str, Any], shuffle: bool = True) -> dict[str, Any]:
    """[T, B, …] -> shuffled rows (EmbodiedFSDPActor.run_training)."""
    from rlinf.workers.actor.fsdp_actor_worker import process_nested_dict_for_train

    rows = batch["prev_logprobs"].shape[0] * batch["prev_logprobs"].shape[1]
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0)) if shuffle else torch.arange(rows)
    out: dict[str, Any] = process_nested_dict_for_train(batch, order)
    return out


def loss(s: Setting, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, float], dict[str, torch.Tensor]]:
    """EmbodiedFSDPActor.train_micro_batch up to the loss."""
    from rlinf.algorithms.registry import policy_loss

    algorithm = s.cfg.algorithm
    s.policy.train()
    out = s.policy(
        forward_inputs=batch["forward_inputs"], compute_logprobs=True, compute_entropy=algorithm.entropy_bonus > 0,
        compute_values=algorithm.adv_type == "gae", use_cache=False,
    )  # fmt: skip
    value, metrics = policy_loss(
        loss_type=algorithm.loss_type, logprob_type=algorithm.logprob_type, reward_type=algorithm.reward_type,
        single_action_dim=s.cfg.actor.model.action_dim, logprobs=out["logprobs"], values=out.get("values"),
        old_logprobs=batch["prev_logprobs"], advantages=batch["advantages"], returns=batch.get("returns"),
        prev_values=batch.get("prev_values"), clip_ratio_high=algorithm.clip_ratio_high,
        clip_ratio_low=algorithm.clip_ratio_low, value_clip=algorithm.value_clip, huber_delta=algorithm.huber_delta,
        loss_mask=batch.get("loss_mask"), loss_mask_sum=batch.get("loss_mask_sum"),
        max_episode_steps=s.cfg.env.train.max_episode_steps, task_type="embodied", critic_warmup=False,
    )  # fmt: skip
    return value, metrics, out
