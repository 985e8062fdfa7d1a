"""Practice in NavSim: an episode is one decision, so a batch is a group of plans for each of some scenes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vla_models.envs.navsim import NavSimEnv
from vla_models.errors import NotImplementedByModel, SceneError
from vla_models.scenes.scene import Scene
from vla_models.scoring.rewards import Reward
from vla_models.training.checkpoint import data_order, random_stream
from vla_models.training.evaluate import BASELINES, Evaluation, evaluate_baseline, evaluate_model
from vla_models.training.imitation import imitation_record
from vla_models.training.objective import group_advantages, value_advantages
from vla_models.training.practice import Batch, Practice, Result
from vla_models.training.rollout import Rollout, sample_groups

if TYPE_CHECKING:
    from vla_models.config import VLAConfig
    from vla_models.interface import VLAInterface


class NavSimPractice(Practice):
    """Scenes to learn from, and scenes to evaluate on.

    Args:
        config: the run's configuration.
        train_scenes: with references and camera images.
        heldout_scenes: the same, of other towns.

    Raises:
        SceneError: if a scene set is empty.
    """

    drivers = ("constant_velocity", "imitation", "rl", "pdm_closed")

    def __init__(self, config: VLAConfig, train_scenes: Sequence[Scene], heldout_scenes: Sequence[Scene]) -> None:
        for name, scenes in (("train", train_scenes), ("heldout", heldout_scenes)):
            if len(scenes) == 0:
                raise SceneError(f"there are no {name} scenes; raise environment.{name}_scenes")
        self.config, self.train_scenes, self.heldout_scenes = config, train_scenes, heldout_scenes
        self.score = config.environment.score_version
        self.threads = config.training.threads or len(os.sched_getaffinity(0))
        self.env = NavSimEnv(
            config.training.scenes_per_step * config.algorithm.group_size,
            scenes=train_scenes,
            reward=Reward(config.reward.type, config.reward.weights, config.environment.score_version),
            score_version=config.environment.score_version,
            threads=self.threads,
        )

    def imitation_record(self, model: VLAInterface) -> dict[str, Tensor]:
        """PDM-Closed's plans for the training scenes."""
        return imitation_record(model, self.train_scenes, self.config.environment.dataset)

    def collect(self, model: VLAInterface, step: int) -> Batch:
        """A group of plans for each of the step's scenes."""
        algorithm, training = self.config.algorithm, self.config.training
        order = data_order(self.config.seed, "rl", step, len(self.train_scenes), training.scenes_per_step)
        rollout = sample_groups(
            model,
            self.env,
            [self.env.tokens[i] for i in order],
            group_size=algorithm.group_size,
            temperature=algorithm.temperature,
            top_p=algorithm.top_p,
            generator=torch.Generator().manual_seed(random_stream(self.config.seed, "rl", step)),
            invalid=self.config.reward.invalid,
        )
        rewards, valid = rollout.rewards.flatten(), rollout.valid.flatten()
        self._check(rollout, valid, step)
        if algorithm.name == "grpo":
            advantages = group_advantages(rollout.rewards, rollout.valid, normalize=algorithm.normalize_advantage).flatten()
        else:
            if rollout.values is None:
                raise NotImplementedByModel(f"{type(model).__name__} cannot be trained with ppo: predict gives no values")
            advantages = value_advantages(rewards, rollout.values, valid, normalize=algorithm.normalize_advantage)
        signal = (group_advantages(rollout.rewards, rollout.valid, normalize=False) != 0).any(dim=1)
        return Batch(
            record=rollout.record,
            logprobs=rollout.logprobs,
            advantages=advantages,
            returns=rewards if algorithm.name == "ppo" else None,
            valid=valid,
            together=algorithm.group_size,
            log={
                "reward_mean": rewards[valid].mean().item(),
                "reward_std": rewards[valid].std(correction=0).item(),
                "groups_with_signal": signal.float().mean().item(),
                "invalid": int((~valid).sum()),
                "invalid_answers": rollout.invalid_answers,
                **rollout.means,
            },
            sample_s=rollout.sample_s,
            score_s=rollout.score_s,
        )

    def _check(self, rollout: Rollout, valid: Tensor, step: int) -> None:
        if rollout.invalid_answers == len(valid) and self.config.reward.invalid == "exclude":
            raise SceneError(
                f"rl step {step + 1}: none of {len(valid)} answers was a plan; let the model imitate first, or give "
                "reward.invalid a number"
            )
        if not valid.any():
            raise SceneError(f"rl step {step + 1}: the scorer had a number for none of {len(valid)} plans; check the scenes")

    def evaluate(self, model: VLAInterface) -> Evaluation:
        """Greedy plans for all held-out scenes."""
        return evaluate_model(model, self.heldout_scenes, version=self.config.environment.score_version, threads=self.threads)

    def baselines(self) -> dict[str, Result]:
        """Constant velocity and PDM-Closed."""
        version = self.config.environment.score_version
        return {name: evaluate_baseline(name, self.heldout_scenes, version=version, threads=self.threads) for name in BASELINES}

    def state(self) -> dict[str, Tensor]:
        """Nothing: a batch depends on its number alone."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Nothing is to be restored."""

    def heldout_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Names of the scenes, and the store that they are in ("" for none)."""
        return {
            "tokens": np.array([scene.token for scene in self.heldout_scenes]),
            "scene_store": np.array(str(getattr(self.heldout_scenes, "path", ""))),
        }
