"""Trying a model on a few training scenes before a framework starts: how large its records are, and whether they replay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from vla_models.errors import DivergenceError, NotImplementedByModel
from vla_models.frameworks.observations import ObservationLayout
from vla_models.frameworks.records import RecordLayout
from vla_models.inputs import VLAInput
from vla_models.training.learner import REPLAY_TOLERANCE

if TYPE_CHECKING:
    from vla_models.config import VLAConfig
    from vla_models.interface import VLAInterface

PROBED: Final = 8
"""Training scenes on which the model is tried."""


@dataclass(frozen=True)
class Layout:
    """What a framework must know of a model and an environment before it starts."""

    observation: ObservationLayout
    """How observations are packed."""
    record: RecordLayout
    """The fixed shapes of records."""
    max_decisions: int
    """Most decisions of an episode."""
    masked: bool
    """Whether ``evaluate_actions`` may leave parts of a decision uncounted: it did, or decisions differ in their number of
    parts, so that a batch of them is filled up."""


def lay_out(config: VLAConfig, model: VLAInterface, make_env: Callable[..., Any]) -> Layout:
    """Try the model on ``PROBED`` training scenes, a row each.

    make_env: ``make_env(config, "train", rows, spec)`` gives the environment.

    Raises ``NotImplementedByModel`` for a model that cannot be trained, or lacks what the algorithm asks for, and
    ``DivergenceError`` for one that does not recompute what it sampled with.
    """
    env = make_env(config, "train", PROBED, model.spec)
    try:
        observation, _ = env.reset(options={"scenes": [env.tokens[i % len(env.tokens)] for i in range(PROBED)]})
        model.eval()
        samples, masked = [], False
        generator = torch.Generator(next(model.parameters()).device).manual_seed(config.seed)
        inputs = VLAInput.batch(observation)
        for row in inputs:
            prediction = model.predict(
                [row], temperature=config.algorithm.temperature, top_p=config.algorithm.top_p, generator=generator
            )
            if prediction.record is None or prediction.logprobs is None:
                raise NotImplementedByModel(
                    f"{type(model).__name__} cannot be trained: its predict returns no record and logprobs (see docs/models.md)"
                )
            mask = _check_replay(config, model, prediction.record, prediction.logprobs)
            masked = masked or not bool(mask.all())
            samples.append((prediction.record, prediction.logprobs))
        _check_prompt(model, inputs[0], generator)
        return Layout(
            ObservationLayout.of(env.single_observation_space),
            RecordLayout.of(samples, model.prompt_keys),
            int(getattr(env, "max_decisions", 1)),
            masked or len({logprobs.shape[1:] for _, logprobs in samples}) > 1,
        )
    finally:
        env.close()


def _check_prompt(model: VLAInterface, given: VLAInput, generator: torch.Generator) -> None:
    """Refuse a model whose ``prompt_keys`` differ from sample to sample of one input."""
    if not model.prompt_keys:
        return
    record = model.predict([given], num_samples=2, generator=generator).record or {}
    if wrong := [name for name in model.prompt_keys if name in record and not torch.equal(*record[name])]:
        raise NotImplementedByModel(
            f"{type(model).__name__}.prompt_keys names {wrong}, which differ between two samples of one input; leave them out"
        )


def _check_replay(config: VLAConfig, model: VLAInterface, record: Mapping[str, Tensor], logprobs: Tensor) -> Tensor:
    """Refuse a model that does not recompute what it sampled with or lacks what the algorithm asks for; which parts count."""
    ppo, entropy = config.algorithm.name == "ppo", config.algorithm.entropy_coef > 0.0
    with torch.no_grad():
        out = model.evaluate_actions(record, entropy=entropy, values=ppo)
    name = type(model).__name__
    if entropy and "entropy" not in out:
        raise NotImplementedByModel(f"algorithm.entropy_coef: {name} has no entropy; set it to 0")
    if ppo and "values" not in out:
        raise NotImplementedByModel(f"algorithm.name: ppo needs state values, and {name}.evaluate_actions gives none; use grpo")
    error = (out["logprobs"] - logprobs.to(out["logprobs"]))[out["mask"]].abs().max().item()
    if error > REPLAY_TOLERANCE:
        raise DivergenceError(
            f"before any update the log-probabilities differ by {error:.2g}; {name}.evaluate_actions does not recompute what "
            "predict sampled with"
        )
    mask: Tensor = out["mask"]
    return mask
