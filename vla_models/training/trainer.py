"""The embedded trainer (framework ``local``): imitation, then GRPO or PPO, with evaluation before, between and after.

Reads top to bottom. Everything random in a step comes from (seed, phase, step), and a checkpoint is taken between two steps, so
a run that was killed and resumed writes the same metrics as one that was not (times apart).
"""

from __future__ import annotations

import json
import logging
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vla_models.envs.navsim import NavSimEnv
from vla_models.errors import ConfigError, DivergenceError, NotImplementedByModel, SceneError
from vla_models.files import atomic_path
from vla_models.scenes.scene import Scene
from vla_models.scoring.rewards import Reward
from vla_models.training.checkpoint import data_order, latest_checkpoint, load_checkpoint, random_stream, save_checkpoint
from vla_models.training.evaluate import BASELINES, Evaluation, evaluate_baseline, evaluate_model
from vla_models.training.imitation import cosine, imitation_record
from vla_models.training.metrics import MetricsLog
from vla_models.training.objective import (
    group_advantages,
    kl_to_reference,
    masked_mean,
    policy_terms,
    value_advantages,
    value_loss,
)
from vla_models.training.progress import Bar
from vla_models.training.rollout import Rollout, sample_groups, select

if TYPE_CHECKING:
    from vla_models.config import VLAConfig
    from vla_models.interface import VLAInterface

log = logging.getLogger(__name__)

REPLAY_TOLERANCE: Final = 1e-3
"""A batch's first update is on-policy, so its ratios are 1; further off than this, the model does not replay its samples."""
HALF_TOLERANCE: Final = 5e-2
"""The same for models with weights of half precision, whose rounding differs from one minibatch to another."""
RESULTS: Final = ("constant_velocity", "imitation", "rl", "pdm_closed")
"""What ``heldout.npz`` and ``summary.json`` compare, in this order (a run without updates has no "rl")."""


class Trainer:
    """One run in one folder. ``Trainer(…).run()`` starts it, or goes on from the folder's last checkpoint.

    Args:
        config: the run's configuration.
        run_dir: its folder (exists).
        model: a freshly made model; its weights are replaced when the run is resumed.
        train_scenes: scenes to learn from, with references and camera images.
        heldout_scenes: scenes to evaluate on.

    Raises:
        SceneError: if a scene set is empty, or a whole batch of episodes was invalid.
        CheckpointError: if the last checkpoint is damaged or belongs to another model.
        DivergenceError: if a loss, gradient or log-probability is not finite or not reproducible.
    """

    def __init__(
        self,
        config: VLAConfig,
        run_dir: Path,
        model: VLAInterface,
        train_scenes: Sequence[Scene],
        heldout_scenes: Sequence[Scene],
    ) -> None:
        for name, scenes in (("train", train_scenes), ("heldout", heldout_scenes)):
            if len(scenes) == 0:
                raise SceneError(f"there are no {name} scenes; raise environment.{name}_scenes")
        config.check_model(model)
        self.config, self.model, self.run_dir = config, model, Path(run_dir)
        self.train_scenes, self.heldout_scenes = train_scenes, heldout_scenes
        self.threads = config.training.threads or len(os.sched_getaffinity(0))
        self.checkpoints = self.run_dir / "checkpoints"
        self.env = NavSimEnv(
            config.training.scenes_per_step * config.algorithm.group_size,
            scenes=train_scenes,
            reward=Reward(config.reward.type, config.reward.weights, config.environment.score_version),
            score_version=config.environment.score_version,
            threads=self.threads,
        )
        self.log: MetricsLog
        self.optimizer: torch.optim.Optimizer
        self._started, self._earlier = time.monotonic(), 0.0

    def run(self) -> dict[str, Any]:
        """Train to the end; returns what ``summary.json`` holds."""
        torch.set_num_threads(self.threads)
        phase, done = self._restore()
        with self.log:
            if phase == "imitation":
                done = self._warm_up(done)
            if self.config.training.steps:
                self._reinforce(done)
            return self._conclude(self.config.training.steps)

    def warm_start(self) -> None:
        """Only what comes before reinforcement learning, for frameworks that do that elsewhere: imitation and its evaluation.

        The imitated model is in ``self.model`` and in ``checkpoints/imitation`` afterwards. It is done once: in a run that has
        it, it is restored.
        """
        torch.set_num_threads(self.threads)
        phase, done = self._restore()
        with self.log:
            if phase == "imitation":
                self._warm_up(done)

    def conclude(self, steps: int) -> dict[str, Any]:
        """Evaluate ``self.model`` as what ``steps`` updates gave, save it, write ``summary.json``; returns what is in there."""
        torch.set_num_threads(self.threads)
        with MetricsLog(self.run_dir, keep_bytes=(self.run_dir / "metrics.jsonl").stat().st_size) as self.log:
            return self._conclude(steps)

    def _warm_up(self, done: int) -> int:
        self._imitate(done)
        self._evaluate("imitation", 0)
        return self._enter_rl()

    def _conclude(self, steps: int) -> dict[str, Any]:
        if steps:
            self._evaluate("rl", steps)
        self.model.save_pretrained(self.checkpoints / "model")
        return self._summarise()

    def _restore(self) -> tuple[str, int]:
        """Phase and steps done of the last checkpoint (imitation, 0 in a new run), with weights, optimiser and log put back."""
        found = latest_checkpoint(self.checkpoints)
        if found is None:
            with tempfile.TemporaryDirectory() as folder:  # a model that cannot be saved says so now, not after the training
                self.model.save_pretrained(Path(folder) / "model")
            self.log = MetricsLog(self.run_dir)
            self.optimizer = self._make_optimizer("imitation")
            return "imitation", 0
        restored = load_checkpoint(found, self.model, self._make_optimizer)
        self.optimizer = restored.optimizer
        if restored.phase == "rl" and self._uses_reference():
            self.model.make_reference(restored.reference)
        self.log = MetricsLog(self.run_dir, keep_bytes=restored.state["metrics_bytes"])
        self._earlier = restored.state["wall_s"]
        self.model.statistics = restored.state.get("statistics", {})
        return restored.phase, restored.step

    # -- imitation -------------------------------------------------------------------------------------------------------

    def _imitate(self, done: int) -> None:
        """Steps ``done`` … of the warm start."""
        settings, seed = self.config.training.imitation, self.config.seed
        if done >= settings.steps:
            return
        record = imitation_record(self.model, self.train_scenes, self.config.environment.dataset)
        self.model.train()
        with Bar("imitation", settings.steps, done) as bar:
            for step in range(done, settings.steps):
                torch.manual_seed(random_stream(seed, "imitation", step))
                rows = torch.as_tensor(data_order(seed, "imitation", step, len(self.train_scenes), settings.batch_size))
                self._set_lr(settings.lr * cosine(step, settings.steps, warmup=min(50, settings.steps // 10)))
                loss = self.model.imitation_loss(select(record, rows))
                norm = self._update(loss, "imitation", step)
                self._write("imitation", step + 1, {"loss": loss.item(), "grad_norm": norm})
                bar.advance(f"loss {loss.item():.3f}")
                self._checkpoint_if_due("imitation", step + 1, settings.steps)

    # -- reinforcement learning ------------------------------------------------------------------------------------------

    def _enter_rl(self) -> int:
        """Freeze the reference, take a fresh optimiser, keep the imitated model, and make that the first RL checkpoint."""
        self.model.save_pretrained(self.checkpoints / "imitation")
        if self._uses_reference():
            self.model.make_reference()
        self.optimizer = self._make_optimizer("rl")
        self._checkpoint("rl", 0)
        return 0

    def _reinforce(self, done: int) -> None:
        """Updates ``done`` … of GRPO or PPO: sample groups, score them, learn from the comparison."""
        training, algorithm, seed = self.config.training, self.config.algorithm, self.config.seed
        self.model.eval()  # dropout would make the replayed probabilities differ from the sampled ones
        with Bar(algorithm.name, training.steps, done) as bar:
            for step in range(done, training.steps):
                stream = random_stream(seed, "rl", step)
                torch.manual_seed(stream)
                self._set_lr(training.optimizer.lr * cosine(step, training.steps, training.warmup_steps))
                order = data_order(seed, "rl", step, len(self.train_scenes), training.scenes_per_step)
                rollout = sample_groups(
                    self.model,
                    self.env,
                    [self.env.tokens[i] for i in order],
                    group_size=algorithm.group_size,
                    temperature=algorithm.temperature,
                    top_p=algorithm.top_p,
                    generator=torch.Generator().manual_seed(stream),
                    invalid=self.config.reward.invalid,
                )
                row = self._learn(rollout, step, np.random.default_rng(stream))
                self._write("rl", step + 1, row)
                bar.advance(f"reward {row['reward_mean']:.3f}")
                if training.eval_every and (step + 1) % training.eval_every == 0 and step + 1 < training.steps:
                    self._evaluate("rl", step + 1, keep=False)
                    self.model.eval()
                self._checkpoint_if_due("rl", step + 1, training.steps)

    def _learn(self, rollout: Rollout, step: int, random: np.random.Generator) -> dict[str, Any]:
        """All optimiser steps of one batch of plans; returns the row for the log."""
        algorithm = self.config.algorithm
        started = time.perf_counter()
        valid = rollout.valid.flatten()
        if rollout.invalid_answers == len(valid) and self.config.reward.invalid == "exclude":
            raise SceneError(
                f"rl step {step + 1}: none of {len(valid)} answers was a plan; let the model imitate first, or give "
                "reward.invalid a number"
            )
        if not valid.any():
            raise SceneError(f"rl step {step + 1}: the scorer had a number for none of {len(valid)} plans; check the scenes")
        rewards = rollout.rewards.flatten()
        if algorithm.name == "grpo":
            advantages = group_advantages(rollout.rewards, rollout.valid, normalize=algorithm.normalize_advantage).flatten()
        else:
            if rollout.values is None:
                raise NotImplementedByModel(f"{type(self.model).__name__} cannot be trained with ppo: predict gives no values")
            advantages = value_advantages(rewards, rollout.values, valid, normalize=algorithm.normalize_advantage)
        reference = self._reference_logprobs(rollout)
        scenes, group = rollout.rewards.shape
        half = any(p.dtype in (torch.bfloat16, torch.float16) for p in self.model.parameters())
        tolerance = HALF_TOLERANCE if half else REPLAY_TOLERANCE
        parts: list[dict[str, float]] = []
        for _ in range(algorithm.epochs):
            shuffled = torch.as_tensor(random.permutation(scenes))
            rows = (shuffled[:, None] * group + torch.arange(group)).flatten()  # groups stay together: they share a prompt
            for part in rows.tensor_split(algorithm.minibatches):
                loss, terms = self._loss(rollout, advantages, reference, part)
                if not parts and terms["ratio_max_dev"] > tolerance:
                    raise DivergenceError(
                        f"rl step {step + 1}: before any update the ratio differs from 1 by {terms['ratio_max_dev']:.2g}; "
                        f"{type(self.model).__name__}.evaluate_actions does not recompute what predict sampled with"
                    )
                terms["grad_norm"] = self._update(loss, "rl", step)
                parts.append(terms)
        signal = (group_advantages(rollout.rewards, rollout.valid, normalize=False) != 0).any(dim=1)
        row: dict[str, Any] = {
            "reward_mean": rewards[valid].mean().item(),
            "reward_std": rewards[valid].std(correction=0).item(),
            **{name: float(np.mean([terms[name] for terms in parts])) for name in parts[0] if name != "ratio_max_dev"},
            "ratio_max_dev_first": parts[0]["ratio_max_dev"],
            "groups_with_signal": signal.float().mean().item(),
            "invalid": int((~valid).sum()),
            "invalid_answers": rollout.invalid_answers,
            **rollout.means,
            "lr": self.optimizer.param_groups[0]["lr"],
        }
        update_s = time.perf_counter() - started
        return row | {"sample_s": rollout.sample_s, "score_s": rollout.score_s, "update_s": update_s}

    def _loss(
        self, rollout: Rollout, advantages: Tensor, reference: Tensor | None, rows: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss of some rows of a batch, and what the log wants to know about it."""
        algorithm = self.config.algorithm
        ppo = algorithm.name == "ppo"
        out = self.model.evaluate_actions(select(rollout.record, rows), entropy=True, values=ppo)
        valid = rollout.valid.flatten()[rows].to(out["mask"].device)
        mask = out["mask"].flatten(1) & valid[:, None]
        logprobs, old = out["logprobs"].flatten(1), rollout.logprobs.flatten(1)[rows]
        policy = policy_terms(logprobs, old, advantages[rows], mask, clip_low=algorithm.clip_low, clip_high=algorithm.clip_high)
        loss = policy.loss
        terms = {"policy_loss": policy.loss.item(), "clip_fraction": policy.clip_fraction.item()}
        terms |= {"approx_kl": policy.approx_kl.item(), "ratio_max_dev": policy.ratio_deviation.item()}
        if reference is not None:
            kl = kl_to_reference(logprobs, reference.flatten(1)[rows], mask)
            loss = loss + algorithm.kl_coef * kl
            terms["kl"] = kl.item()
        if algorithm.entropy_coef > 0.0 and "entropy" not in out:
            raise ConfigError(
                f"algorithm.entropy_coef: the {self.model.spec.head} head of {type(self.model).__name__} has no entropy in "
                "closed form, so there is nothing to add a bonus for; use 0"
            )
        if "entropy" in out:
            entropy = masked_mean(out["entropy"].flatten(1), mask)
            loss = loss - algorithm.entropy_coef * entropy
            terms["entropy"] = entropy.item()
        if ppo:
            error = value_loss(out["values"], rollout.rewards.flatten()[rows], valid)
            loss = loss + algorithm.value_coef * error
            terms["value_loss"] = error.item()
        return loss, {"loss": loss.item(), **terms}

    def _reference_logprobs(self, rollout: Rollout) -> Tensor | None:
        """Log-probabilities [B, *S] under the frozen reference, or None where nothing asks for them."""
        if not self._uses_reference():
            return None
        with self.model.reference(), torch.no_grad():
            logprobs: Tensor = self.model.evaluate_actions(rollout.record)["logprobs"]
        return logprobs

    # -- what both phases share ------------------------------------------------------------------------------------------

    def _make_optimizer(self, phase: str) -> torch.optim.Optimizer:
        """The optimiser of a phase; only matrices decay."""
        settings, imitation = self.config.training.optimizer, self.config.training.imitation
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": settings.weight_decay},
            {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
        ]
        lr = imitation.lr if phase == "imitation" else settings.lr
        if settings.type == "sgd":
            return torch.optim.SGD(groups, lr=lr)
        return (torch.optim.AdamW if settings.type == "adamw" else torch.optim.Adam)(groups, lr=lr, fused=True)

    def _set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def _update(self, loss: Tensor, phase: str, step: int) -> float:
        """One optimiser step; returns the gradient's length before clipping."""
        if not torch.isfinite(loss):
            raise DivergenceError(f"{phase} step {step + 1}: the loss is {loss.item()}; lower the learning rate ({phase})")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.training.optimizer.grad_clip).item()
        if not np.isfinite(norm):
            raise DivergenceError(f"{phase} step {step + 1}: the gradient's norm is {norm}; lower the learning rate ({phase})")
        self.optimizer.step()
        return norm

    def _write(self, phase: str, step: int, values: dict[str, Any]) -> None:
        self.log.write({"phase": phase, "step": step, "wall_s": round(self._wall(), 3), **values})

    def _wall(self) -> float:
        """Seconds that the run has taken, earlier parts of a resumed run included."""
        return self._earlier + time.monotonic() - self._started

    def _checkpoint_if_due(self, phase: str, step: int, steps: int) -> None:
        every = self.config.training.checkpoint_every
        if step == steps or (every and step % every == 0):
            self._checkpoint(phase, step)

    def _checkpoint(self, phase: str, step: int) -> None:
        state = {"metrics_bytes": self.log.size(), "wall_s": self._wall(), "statistics": self.model.statistics}
        reference = self.model.reference_weights() if phase == "rl" and self._uses_reference() else None
        save_checkpoint(self.checkpoints, self.model, self.optimizer, phase, step, state, reference=reference)

    def _uses_reference(self) -> bool:
        return self.config.algorithm.kl_coef > 0.0

    # -- results ---------------------------------------------------------------------------------------------------------

    def _evaluate(self, name: str, step: int, *, keep: bool = True) -> None:
        """Greedy plans for all held-out scenes: a row in the log and, if ``keep``, arrays in ``heldout.npz``."""
        self.model.eval()
        version = self.config.environment.score_version
        result = evaluate_model(self.model, self.heldout_scenes, version=version, threads=self.threads)
        means = result.means()
        self._write("eval", step, {"name": name, **means, "invalid_answers": result.invalid_answers})
        log.info("held-out score %.3f (%s, %d updates)", means["score"], name, step)
        if keep:
            results = {name: result}
            if name == "imitation":
                for other in BASELINES:
                    results[other] = evaluate_baseline(other, self.heldout_scenes, version=version, threads=self.threads)
            self._keep(results)

    def _keep(self, results: dict[str, Evaluation]) -> None:
        path = self.run_dir / "heldout.npz"
        arrays: dict[str, npt.NDArray[Any]] = {}
        if path.exists():
            with np.load(path) as old:
                arrays = dict(old)
        arrays["tokens"] = np.array([scene.token for scene in self.heldout_scenes])
        arrays["scene_store"] = np.array(str(getattr(self.heldout_scenes, "path", "")))
        for name, result in results.items():
            arrays |= result.arrays(name)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # its stub takes keywords for its own options

    def _summarise(self) -> dict[str, Any]:
        """Write ``summary.json`` from ``heldout.npz``."""
        with np.load(self.run_dir / "heldout.npz") as arrays:
            means = {
                name: {
                    key.removeprefix(f"{name}_"): float(arrays[key].mean())
                    for key in arrays.files
                    if key.startswith(f"{name}_") and not key.endswith("_plans")
                }
                for name in RESULTS
                if f"{name}_score" in arrays.files
            }
        summary = {
            "framework": self.config.framework,
            "env": self.config.environment.type,
            "seed": self.config.seed,
            "heldout": {name: values.pop("score") for name, values in means.items()},
            "subscores": means,
            "wall_s": round(self._wall(), 1),
            "versions": _versions() | {"score": self.config.environment.score_version},
        }
        with atomic_path(self.run_dir / "summary.json") as temporary:
            temporary.write_text(json.dumps(summary, indent=2) + "\n")
        return summary


def _versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for package in ("vla_models", "torch", "numpy", "numba", "gymnasium"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a source tree that was never installed
            found[package] = "not installed"
    return found
