"""Sampling: a group of plans for each scene, driven and scored in one step of the environment."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import gymnasium
import numpy as np
import torch
from torch import Tensor

from vla_models.errors import NotImplementedByModel
from vla_models.inputs import VLAInput

if TYPE_CHECKING:
    from vla_models.interface import VLAInterface


@dataclass(frozen=True)
class Rollout:
    """S scenes × G plans. Rows B = S·G, a scene's plans in consecutive rows."""

    record: dict[str, Tensor]
    """[B, …] what ``evaluate_actions`` replays."""
    logprobs: Tensor
    """[B, *S] under the distribution that sampled."""
    values: Tensor | None
    """[B] state values at sampling time, if the model has them."""
    rewards: Tensor
    """[S, G] float32; NaN where not ``valid``."""
    valid: Tensor
    """bool [S, G]."""
    invalid_answers: int
    """How many of the S·G answers were no plan."""
    means: dict[str, float]
    """Means over the valid rows that drove a plan, of every metric and reward term (metrics under their own name, terms as
    ``term/<name>``)."""
    sample_s: float
    """Seconds that the model took."""
    score_s: float
    """Seconds that the environment took."""


def select(record: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """Some rows (int64 [n]) of a record."""
    return {name: values[rows.to(values.device)] for name, values in record.items()}


def sample_groups(
    model: VLAInterface,
    env: gymnasium.vector.VectorEnv,
    scenes: Sequence[str],
    *,
    group_size: int,
    temperature: float,
    top_p: float,
    generator: torch.Generator,
    invalid: float | Literal["exclude"] = 0.0,
) -> Rollout:
    """Sample ``group_size`` plans for each scene and step ``env`` (``len(scenes) * group_size`` episodes) once.

    The model sees each scene once (``num_samples``), whatever the group's size. An answer that is no plan
    (``VLAPrediction.valid``) is rewarded with ``invalid``, or left out as an invalid episode where that is "exclude". Raises
    NotImplementedByModel if its predictions carry no record: then they cannot be learned from.
    """
    started = time.perf_counter()
    observation, _ = env.reset(options={"scenes": [scene for scene in scenes for _ in range(group_size)]})
    observed = time.perf_counter()
    with torch.no_grad():
        prediction = model.predict(
            VLAInput.batch(every(observation, group_size)),
            num_samples=group_size,
            generator=generator,
            temperature=temperature,
            top_p=top_p,
        )
    if prediction.record is None or prediction.logprobs is None:
        raise NotImplementedByModel(
            f"{type(model).__name__} cannot be trained: its predict returns no record and logprobs (see docs/models.md)"
        )
    sampled = time.perf_counter()
    _, rewards, _, _, info = env.step(prediction.waypoints)
    ended = time.perf_counter()
    rewards, valid = np.asarray(rewards, dtype=np.float32), np.asarray(info["valid"])
    planned = np.ones_like(valid) if prediction.valid is None else np.asarray(prediction.valid)
    driven = valid & planned
    valid = driven if invalid == "exclude" else valid | ~planned
    rewards = np.where(planned, rewards, np.nan if invalid == "exclude" else invalid).astype(np.float32)
    named = {**info["metrics"], **{f"term/{name}": values for name, values in info["terms"].items()}}
    shape = (len(scenes), group_size)
    return Rollout(
        record=prediction.record,
        logprobs=prediction.logprobs,
        values=prediction.values,
        rewards=torch.as_tensor(rewards).reshape(shape),
        valid=torch.as_tensor(valid).reshape(shape),
        invalid_answers=int((~planned).sum()),
        means={name: float(np.mean(part[driven], dtype=np.float64)) for name, part in named.items()} if driven.any() else {},
        sample_s=sampled - observed,
        score_s=ended - sampled + observed - started,
    )


def every(observation: Mapping[str, object], stride: int) -> dict[str, object]:
    """Rows 0, stride, 2·stride … of an observation: one row for each group of equal ones."""

    def rows(value: object) -> object:
        return {name: rows(v) for name, v in value.items()} if isinstance(value, Mapping) else value[::stride]  # type: ignore[index]

    return {name: rows(value) for name, value in observation.items()}
