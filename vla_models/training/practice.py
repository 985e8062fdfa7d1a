"""What the trainer asks of an environment: plans of an expert to imitate, batches to learn from, and an evaluation.

The trainer knows phases, steps, checkpoints and the log. How a batch comes about (one decision for each scene, or a stretch of
driving that goes on in the next update) is a ``Practice``'s business, one class an environment.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy.typing as npt
from torch import Tensor

from vla_models.errors import ConfigError

if TYPE_CHECKING:
    from vla_models.config import VLAConfig
    from vla_models.inputs import VLASpec
    from vla_models.interface import VLAInterface
    from vla_models.scenes.scene import Scene

PRACTISED = ("navsim", "bench2drive")
"""Values of ``environment.type`` that have a practice."""


@dataclass(frozen=True)
class Batch:
    """B decisions to learn from, with what the reward said of them."""

    record: dict[str, Tensor]
    """[B, …] what ``evaluate_actions`` replays."""
    logprobs: Tensor
    """[B, *S] under the distribution that sampled."""
    advantages: Tensor
    """[B] how much better than expected each was."""
    returns: Tensor | None
    """[B] what the value head should have predicted; None where no values are learned."""
    valid: Tensor
    """bool [B] which count; the others may have NaN as return and have advantage 0."""
    together: int
    """Consecutive rows that share a prompt, so that they are best learned from together (1: none do)."""
    log: dict[str, float]
    """What the row of ``metrics.jsonl`` says of the batch: rewards, terms, metrics, how many were invalid."""
    sample_s: float
    """Seconds that the model took."""
    score_s: float
    """Seconds that the environment took."""


class Result(Protocol):
    """How one driver did on the held-out scenes."""

    @property
    def invalid_answers(self) -> int:
        """Answers that were no plan."""

    def means(self) -> dict[str, float]:
        """Mean of every score; "score" is the whole."""

    def arrays(self, name: str) -> dict[str, npt.NDArray[Any]]:
        """Flat arrays for an npz file: ``<name>_score`` and the others, a value a scene."""


class Practice(ABC):
    """One environment's way of being trained in."""

    drivers: ClassVar[tuple[str, ...]]
    """What ``heldout.npz`` and ``summary.json`` compare, in this order: baselines, "imitation" and "rl"."""
    score: str
    """Which score ``summary.json`` holds, with its version."""

    @abstractmethod
    def imitation_record(self, model: VLAInterface) -> dict[str, Tensor]:
        """The record [N, …] of "this model decided what the expert decided", the same at every call."""

    @abstractmethod
    def collect(self, model: VLAInterface, step: int) -> Batch:
        """Batch number ``step`` (from 0): sampled, driven, rewarded and compared."""

    @abstractmethod
    def evaluate(self, model: VLAInterface) -> Result:
        """The model's most likely plans on everything held out."""

    @abstractmethod
    def baselines(self) -> dict[str, Result]:
        """The drivers that need no model, on the same."""

    @abstractmethod
    def heldout_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """What ``heldout.npz`` says of the held-out scenes themselves ("tokens" are their names)."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """What the next batch depends on beside the model and the step: a checkpoint keeps it."""

    @abstractmethod
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go back to a ``state``, so that the next batch is the same."""


def make_practice(config: VLAConfig, spec: VLASpec, build_scenes: Callable[[VLAConfig, Any], Sequence[Scene]]) -> Practice:
    """The practice that a configuration means, for a model with ``spec``.

    build_scenes: ``training.scenes.build_scenes``, or something in its place; asked for where an environment has scenes.

    Raises ConfigError for an environment that has none.
    """
    kind = config.environment.type
    if kind == "navsim":
        from vla_models.training.navsim_practice import NavSimPractice

        return NavSimPractice(config, build_scenes(config, "train"), build_scenes(config, "heldout"))
    if kind == "bench2drive":
        from vla_models.training.route_practice import RoutePractice

        return RoutePractice(config, spec)
    raise ConfigError(
        f"environment.type: the embedded trainer knows {' and '.join(PRACTISED)}; {kind!r} can be trained in by the framework "
        "that it is registered for"
    )
