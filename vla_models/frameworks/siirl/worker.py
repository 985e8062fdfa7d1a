"""``DriveWorker``: what siiRL's rollout, actor and reference nodes call, on our model and environment contracts.

siiRL takes its workers from a fixed table (siirl/dag_worker/dag_utils.py, ``get_worker_classes``); ``plugin`` puts this one
there. A rank's workers share one ``Policy``; each rank has the whole model, and ``update`` averages gradients over ranks.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import torch
import torch.distributed as dist
from siirl.engine.base_worker import Worker
from tensordict import TensorDict
from tensordict.tensorclass import NonTensorData

from vla_models.errors import CheckpointError, SceneError
from vla_models.frameworks.siirl.batch import RECORDS, Driven, counted_groups, decision_mask, training_batch
from vla_models.frameworks.siirl.embedding import load_video_embedding
from vla_models.frameworks.siirl.policy import Policy
from vla_models.frameworks.siirl.rollout import WORLDS, Asked, Rollout
from vla_models.frameworks.siirl.update import over_ranks, update
from vla_models.model_registry import VLAModelRegistry
from vla_models.training.checkpoint import latest_checkpoint, load_checkpoint, random_stream, save_checkpoint

EVALUATIONS: Final = "evaluations.jsonl"
"""File in siiRL's checkpoint folder: a row of means for each validation (siiRL itself keeps the rate of successes alone)."""


class DriveWorker(Worker):
    """One rank's driving and learning.

    Args:
        config: siiRL's ``actor_rollout_ref`` arguments.
        process_group: of all ranks that have this node.
    """

    def __init__(self, config: Any, process_group: Any) -> None:
        super().__init__()
        self.config = config
        self.group = process_group if process_group is not None and dist.get_world_size(process_group) > 1 else None
        self.policy: Policy
        self.rollout = SimpleNamespace(model=None)  # siiRL hands the actor's module over here; the policy is shared anyway
        self._rollouts: dict[str, Rollout] = {}

    # -- what siiRL's trainer calls on every worker ------------------------------------------------------------------------

    def init_model(self) -> None:
        """Load the model, once for all workers of the rank."""
        self.policy = Policy.shared(self.config)

    @property
    def actor_module_fsdp(self) -> torch.nn.Module:
        """The module whose weights rollout and actor have in common."""
        return self.policy.model

    def set_rollout_sharding_manager(self, manager: Any) -> None:
        """Nothing has to be moved between training and rollout: both use the same weights."""

    # -- rollout -----------------------------------------------------------------------------------------------------------

    def generate_sequences(self, prompts: TensorDict) -> TensorDict:
        """Drive an episode for each row of siiRL's manifest batch (``task_id`` int64 [B], groups of neighbours).

        In training the result is what ``batch.training_batch`` makes; with ``validate`` (siiRL's validator sets it) plans are
        the most likely ones, and means over all ranks go to ``evaluations.jsonl``.
        """
        ids = [int(i) for i in prompts["task_id"]]
        if "validate" in prompts and bool(prompts["validate"]):
            scenes = list(dict.fromkeys(ids))  # siiRL fills a rank's manifest up with its last row
            driven = self._rollout("heldout").drive(scenes, 1, deterministic=True)
            self._remember_evaluation(driven, int(prompts["global_steps"]))
            batch = self._batch(driven, scenes, "heldout", driven.valid, torch.arange(len(scenes)))
            return batch[torch.tensor([scenes.index(i) for i in ids])]
        size, seed, step = int(self.config.rollout.n), self.policy.config.seed, self.policy.updates
        rank = 0 if self.group is None else dist.get_rank(self.group)
        driven = self._rollout("train").drive(
            ids, size, stream=lambda chunk: random_stream(seed, f"rollout-{rank}-{chunk}", step)
        )
        if over_ranks(float(driven.valid.sum()), self.group) == 0:
            raise SceneError(
                f"rl step {step + 1}: none of {len(ids)} episodes was valid ({driven.invalid_answers} answers were no plan); "
                "check the scenes, or let the model imitate first"
            )
        grouped = self.policy.config.algorithm.name != "ppo"
        counted = counted_groups(driven.valid, size) if grouped else driven.valid
        batch = self._batch(driven, ids, "train", counted, torch.arange(len(ids) // size).repeat_interleave(size))
        signal = driven.returns.view(-1, size)
        metrics = self._means_over_ranks(driven.means(), int(driven.valid.sum()))
        metrics["reward_mean"] = metrics.pop("return")
        metrics["groups_with_signal"] = float((signal.amax(1) - signal.amin(1) > 1e-6).float().mean())
        counts = {"invalid": float((~driven.valid).sum()), "invalid_answers": float(driven.invalid_answers)}
        metrics |= {name: over_ranks(count, self.group) for name, count in counts.items()}
        metrics |= {"model_s": driven.model_s, "world_s": driven.world_s, "rollout_s": driven.wall_s}
        batch["metrics"] = NonTensorData({f"drive/{name}": value for name, value in metrics.items()})
        return batch

    def _batch(self, driven: Driven, ids: list[int], part: str, counted: torch.Tensor, uid: torch.Tensor) -> TensorDict:
        tokens = self._rollout(part).worlds[0].tokens
        tensors = training_batch(driven, self.policy.parts, [tokens[i] for i in ids], counted, uid)
        if self.policy.config.algorithm.name != "ppo":
            tensors.pop("values", None)  # siiRL would report them as a critic's
        return TensorDict(tensors, batch_size=len(ids))

    def _rollout(self, part: str) -> Rollout:
        """The worlds of a part, made when they are first needed."""
        if part not in self._rollouts:
            config, embodied = self.policy.config, self.config.embodied
            adapter = VLAModelRegistry.get_env_adapter(config.environment.type, "siirl")
            rows = int(embodied.env.num_envs)
            embeds = part == "train" and config.algorithm.name == "srpo"
            asked = Asked(
                temperature=float(self.config.rollout.temperature),
                top_p=float(self.config.rollout.top_p),
                success_score=float(self.policy.settings["success_score"]),
            )
            worlds = [adapter(config, part, rows, self.policy.model.spec) for _ in range(WORLDS)]
            threads = config.training.threads or len(os.sched_getaffinity(0))
            self._rollouts[part] = Rollout(
                self.policy.model,
                worlds,
                self.policy.records,
                int(embodied.env.max_steps),
                asked,
                embeds=embeds,
                video=load_video_embedding(embodied) if embeds else None,
                threads=threads,
            )
        return self._rollouts[part]

    def _means_over_ranks(self, means: dict[str, float], count: int) -> dict[str, float]:
        """Means over the episodes of all ranks, from this rank's and over how many it has them."""
        if self.group is None:
            return means
        gathered: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(gathered, (means, count), group=self.group)
        names = {name for found, _ in gathered for name in found}
        whole = max(1, sum(n for _, n in gathered))
        return {name: sum(found.get(name, 0.0) * n for found, n in gathered) / whole for name in sorted(names)}

    def _remember_evaluation(self, driven: Driven, step: int) -> None:
        means = driven.means() | {"success_rate": float(driven.success.sum()) / max(1, int(driven.valid.sum()))}
        means = self._means_over_ranks(means, int(driven.valid.sum()))
        means["invalid"] = over_ranks(float((~driven.valid).sum()), self.group)
        if int(os.environ.get("RANK", "0")) == 0:
            with Path(self.policy.settings["evaluations"]).open("a") as file:
                file.write(json.dumps({"step": step, **means}) + "\n")

    # -- learning ----------------------------------------------------------------------------------------------------------

    def compute_log_prob(self, data: TensorDict) -> TensorDict:
        """Add ``old_log_probs`` f32 [B, D·A]; what the model's own mask leaves out is taken out of ``response_mask``."""
        logprobs, mask = self._replay(data, int(self.config.rollout.log_prob_micro_batch_size_per_gpu))
        data["old_log_probs"] = logprobs
        data["response_mask"] = data["response_mask"].bool() & mask
        data["metrics"] = NonTensorData({})
        return data

    def compute_ref_log_prob(self, data: TensorDict) -> TensorDict:
        """Add ``ref_log_prob`` f32 [B, D·A] under the weights with which training started."""
        with self.policy.model.reference():
            data["ref_log_prob"], _ = self._replay(data, int(self.config.ref.log_prob_micro_batch_size_per_gpu))
        data["metrics"] = NonTensorData({})
        return data

    def _replay(self, data: TensorDict, most: int) -> tuple[torch.Tensor, torch.Tensor]:
        records, parts = data[RECORDS], self.policy.parts
        logprobs = torch.zeros(*records.shape[:2], parts)
        mask = torch.zeros(*records.shape[:2], parts, dtype=torch.bool)
        active = decision_mask(data["finish_step"], records.shape[1])
        for places, out in self.policy.replayed(records, active, most):
            counted = out["mask"].cpu()
            logprobs[places[:, 0], places[:, 1]] = torch.where(counted, out["logprobs"].float().cpu(), torch.zeros(()))
            mask[places[:, 0], places[:, 1]] = counted
        return logprobs.flatten(1), mask.flatten(1)

    def update_actor(self, data: TensorDict) -> TensorDict:
        """All optimiser steps of a batch (``update.update``)."""
        data["metrics"] = NonTensorData(update(self.policy, data, self.config, self.group))
        return data

    # -- checkpoints -------------------------------------------------------------------------------------------------------

    def save_checkpoint(self, local_path: str, global_step: int, max_ckpt_to_keep: int | None = None) -> None:
        """Write weights, optimiser and progress into ``local_path``; all ranks have the same, the first one writes."""
        if int(os.environ.get("RANK", "0")) != 0:
            return
        folder = Path(local_path)
        reference = self.policy.model.reference_weights() if self.config.actor.use_kl_loss else None
        state = {"updates": self.policy.updates, "statistics": self.policy.model.statistics}
        save_checkpoint(folder, self.policy.model, self.policy.optimizer, "rl", global_step, state, reference=reference)

    def load_checkpoint(self, local_path: str, del_local_after_load: bool = False) -> None:
        """Go on from what ``save_checkpoint`` wrote. ``CheckpointError`` names a file that is missing or damaged."""
        found = latest_checkpoint(Path(local_path))
        if found is None:
            raise CheckpointError(
                f"{local_path} holds no checkpoint of vla_models; start a new run, or resume from another step"
            )
        restored = load_checkpoint(found, self.policy.model, lambda phase: self.policy.optimizer)
        self.policy.updates = int(restored.state["updates"])
        if self.config.actor.use_kl_loss:
            self.policy.model.make_reference(restored.reference)
