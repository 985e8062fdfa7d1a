"""What a run in AReaL leaves in our run folder: rows, evaluations, and a readable copy of each checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vla_models.errors import DivergenceError
from vla_models.frameworks.areal.sequences import Staleness

if TYPE_CHECKING:
    from vla_models.frameworks.run_folder import FrameworkRun


def plain_folder(run: Path, step: int) -> Path:
    """Where the token route leaves its weights after ``step`` updates, as a plain transformers checkpoint."""
    return run / "areal" / f"plain-{step:07d}"


class Recorder:
    """Writes into a ``FrameworkRun``.

    Args:
        record: the run's folder.
        weights: the model's weights after so many updates, from AReaL's checkpoint, under the model's own names.
    """

    def __init__(self, record: FrameworkRun, weights: Callable[[int], Mapping[str, Tensor]]) -> None:
        self.record, self.weights = record, weights
        self.evaluation: dict[str, float] = {}
        """Means of the last evaluation."""

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is kept after ``step`` updates."""
        training = self.record.config.training
        return step == training.steps or bool(training.checkpoint_every and step % training.checkpoint_every == 0)

    def update(self, step: int, committed: Mapping[str, float], late: Staleness | None) -> None:
        """Rows of a step: what AReaL logged."""
        self.record.write("rl", step, row_of(committed, late, step))
        evaluated = episode_means(committed, "eval-rollout/")
        if evaluated:
            self.evaluation = evaluated
            self.record.write("eval", step, {"name": "rl", **evaluated})

    def checkpoint(self, step: int) -> None:
        """Keep a copy of AReaL's checkpoint."""
        self.record.keep_checkpoint(step, self.weights(step))


def row_of(committed: Mapping[str, float], late: Staleness | None, step: int) -> dict[str, Any]:
    """One row of metrics.jsonl from AReaL's statistics of a step, under the names that ``local`` uses."""
    loss = committed.get("ppo_actor/update/actor_loss/avg", math.nan)
    if not math.isfinite(loss):
        raise DivergenceError(f"rl step {step}: the loss is {loss}; lower training.optimizer.lr, or resume with another seed")
    row: dict[str, Any] = {"loss": loss, **episode_means(committed, "rollout/")}
    row["reward_mean"] = row.pop("return", math.nan)
    renamed = {
        "ppo_actor/update/importance_weight/avg": "ratio",
        "ppo_actor/update/clip_ratio/avg": "clip_fraction",
        "ppo_actor/update/approx_kl/avg": "approx_kl",
        "ppo_actor/update/entropy/avg": "entropy",
        "ppo_actor/update/behave_imp_weight/avg": "behave_ratio",
        "ppo_actor/update/grad_norm": "grad_norm",
        "ppo_actor/update/lr": "lr",
        "timeperf/rollout": "sample_s",
        "timeperf/train_step": "update_s",
        "timeperf/update_weights": "sync_s",
    }
    row |= {name: committed[key] for key, name in renamed.items() if key in committed}
    if late is not None:
        row |= {"staleness_mean": late.mean, "staleness_max": late.most, "too_old": late.too_old, "parts": late.parts}
    return row


def episode_means(committed: Mapping[str, float], scope: str) -> dict[str, float]:
    """What ``DrivingWorkflow`` measured since the last step: means, and sums of what is counted."""
    means = {}
    for key, value in committed.items():
        name = key.removeprefix(scope)
        # AReaL's own accepted and rejected count what is only measured, too
        if not key.startswith(scope) or name.endswith("__count") or name in ("accepted", "rejected"):
            continue
        counted = name in ("invalid", "invalid_answers") or name.startswith("rejected_")
        means[name] = value * committed.get(f"{key}__count", 1.0) if counted else value
    return means
