"""siiRL's graph of a training step, for ``dag.custom_pipeline_fn``: its own nodes where it has them, with ours between.

    rollout → sampling → reward → advantage → old_log_prob [→ reference] → train

Importing this module in one of siiRL's processes puts our worker there (``plugin``); siiRL imports it with the graph.
"""

from __future__ import annotations

from typing import Any

import torch
from siirl.dag_worker.core_algos import compute_gae_advantage_return
from siirl.dag_worker.data_structures import NodeOutput
from siirl.execution.dag import NodeRole, NodeType, Pipeline, TaskGraph
from tensordict.tensorclass import NonTensorData

from vla_models.errors import ConfigError
from vla_models.frameworks.siirl import plugin
from vla_models.frameworks.siirl.batch import decision_mask
from vla_models.frameworks.siirl.compat import check_rebalancing

_DAG = "siirl.dag_worker.dagworker:DAGWorker."
_SAMPLING = "siirl.user_interface.filter_interface.embodied:embodied_local_rank_sampling"

plugin.register()


def group() -> TaskGraph:
    """GRPO and SRPO: episodes of a scene are compared with each other."""
    return _build("vla_group", f"{_DAG}compute_advantage", reference=False)


def group_kl() -> TaskGraph:
    """``group`` with a KL term to the model that training started from."""
    return _build("vla_group_kl", f"{_DAG}compute_advantage", reference=True)


def ppo() -> TaskGraph:
    """PPO: each decision is compared with a predicted value."""
    return _build("vla_ppo", value_advantage, reference=False)


def ppo_kl() -> TaskGraph:
    """``ppo`` with a KL term to the model that training started from."""
    return _build("vla_ppo_kl", value_advantage, reference=True)


def _build(name: str, advantage: Any, reference: bool) -> TaskGraph:
    train, role = NodeType.MODEL_TRAIN, NodeRole.ACTOR
    graph = (
        Pipeline(name)
        .add_node("rollout", func=f"{_DAG}generate", node_type=NodeType.MODEL_INFERENCE, node_role=NodeRole.ROLLOUT)
        .add_node("sampling", func=_SAMPLING, deps=["rollout"], node_role=NodeRole.DYNAMIC_SAMPLING)
        .add_node("reward", func=reward, deps=["sampling"], node_role=NodeRole.REWARD)
        .add_node("advantage", func=advantage, deps=["reward"], node_role=NodeRole.ADVANTAGE)
        .add_node(
            "old_log_prob", func=f"{_DAG}compute_old_log_prob", deps=["advantage"], node_type=train, node_role=role,
            only_forward_compute=True,
        )
    )  # fmt: skip
    last = "old_log_prob"
    if reference:
        graph = graph.add_node(
            "reference", func=f"{_DAG}compute_ref_log_prob", deps=[last], node_type=train, node_role=NodeRole.REFERENCE,
            only_forward_compute=True,
        )  # fmt: skip
        last = "reference"
    built: TaskGraph = graph.add_node("train", func=f"{_DAG}train_actor", deps=[last], node_type=train, node_role=role).build()
    return built


def reward(config: Any, batch: Any, **given: Any) -> NodeOutput:
    """siiRL's reward manager, without what its own node puts around it: that answers any exception with zeros.

    A reward that is not finite stops the run; an episode that does not count (``finish_step`` 0) has none. For PPO each
    decision has its own reward, at its last part.
    """
    check_rebalancing(bool(config.algorithm.filter_groups.enable))
    manager = given["_dag_worker_instance"].reward_fn
    found = manager(batch, return_dict=True)
    scores = found["reward_tensor"]
    if not torch.isfinite(scores).all():
        raise ConfigError("reward: the reward function gave a number that is not finite; check its arithmetic")
    if "values" in batch:
        mask = decision_mask(batch["finish_step"], batch["decision_rewards"].shape[1])
        scores = torch.zeros_like(scores)
        scores.view(*batch["responses"].shape)[..., -1] = batch["decision_rewards"] * mask
    batch["token_level_scores"] = batch["token_level_rewards"] = scores
    batch["global_token_num"] = NonTensorData(batch["attention_mask"].sum(dim=-1).tolist())
    counted = batch["finish_step"] > 0
    given_scores = torch.tensor(found["reward_extra_info"]["verifier_score"])[counted]
    metrics = {"drive/score_mean": float(given_scores.mean()), "drive/success_rate": float(batch["acc"][counted].mean())}
    return NodeOutput(batch=batch, metrics=metrics if bool(counted.any()) else {})


def value_advantage(config: Any, batch: Any, **given: Any) -> NodeOutput:
    """siiRL's GAE over decisions, and each decision's result for all its parts.

    Over single parts, as siiRL has it, ``lam`` would discount a decision by the number of its parts.
    """
    shape = batch["responses"].shape
    mask = decision_mask(batch["finish_step"], shape[1]).float()
    advantages, returns = compute_gae_advantage_return(
        token_level_rewards=batch["token_level_rewards"].view(shape).sum(dim=2),
        values=batch["values"].view(shape)[..., 0],
        response_mask=mask,
        gamma=config.algorithm.gamma,
        lam=config.algorithm.lam,
    )
    for name, value in (("advantages", advantages * mask), ("returns", returns)):
        batch[name] = value.repeat_interleave(shape[2], dim=1)
    batch["response_mask"] = mask.bool().repeat_interleave(shape[2], dim=1)
    return NodeOutput(batch=batch, metrics={})
