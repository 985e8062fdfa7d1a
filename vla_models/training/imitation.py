"""Warm start: maximise the likelihood of PDM-Closed's plans.

Reinforcement learning finds nothing when almost every sampled plan leaves the road; a short imitation of the reference planner
puts the model where groups contain better and worse plans.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vla_models.envs.navsim import observe
from vla_models.errors import NotImplementedByModel, SceneError
from vla_models.inputs import VLAInput
from vla_models.scenes.scene import EGO_COLUMNS, PLAN_STEPS, Scene
from vla_models.scoring.pdm.closed import reference_plan

if TYPE_CHECKING:
    from vla_models.interface import VLAInterface

_CHUNK = 256
"""Scenes whose observations are held at once while the record is built."""


def imitation_record(model: VLAInterface, scenes: Sequence[Scene], dataset: str) -> dict[str, Tensor]:
    """The record [N, …] of "this model decided what PDM-Closed decided" for every scene, in the scenes' order.

    It is built once: images stay uint8 and every step only picks rows. Before, the model measures the plans and keeps their
    statistics as those of ``dataset``. Raises NotImplementedByModel if the model has no ``record_from_plans``, SceneError if a
    scene has no reference.
    """
    record_from_plans = getattr(model, "record_from_plans", None)
    if record_from_plans is None:
        raise NotImplementedByModel(
            f"{type(model).__name__} cannot imitate: it does not implement record_from_plans(inputs, plans) -> record; "
            "set training.imitation.steps: 0 to start with reinforcement learning"
        )
    if len(scenes) == 0:
        raise SceneError("imitation was given no scenes; raise environment.train_scenes")
    plans, speed = expert_plans(scenes)
    model.fit_statistics(dataset, plans, speed)
    chunks: list[dict[str, Tensor]] = []
    for start in range(0, len(scenes), _CHUNK):
        part = [scenes[i] for i in range(start, min(start + _CHUNK, len(scenes)))]
        with torch.no_grad():
            chunks.append(record_from_plans(VLAInput.batch(observe(part)), plans[start : start + len(part)]))
    return join_records(chunks)


def expert_plans(scenes: Sequence[Scene]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """PDM-Closed's plans [N, 8, 3] (ego frame) and the speeds [N] from which they are driven."""
    plans = np.empty((len(scenes), PLAN_STEPS, 3), dtype=np.float32)
    speed = np.empty(len(scenes))
    for i in range(len(scenes)):
        scene = scenes[i]
        plans[i], speed[i] = reference_plan(scene), scene.ego[EGO_COLUMNS.index("vx")]
    return plans, speed


def join_records(records: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Records one after the other, as one; prompts of unequal length are padded with zeros, prompt ids stay distinct."""
    joined: dict[str, Tensor] = {}
    for name in records[0]:
        parts = [record[name] for record in records]
        if name == "prompt_id":
            for i, part in enumerate(parts):  # a model may number the prompts of each call from 0
                offset = 0 if i == 0 else int(parts[i - 1].max()) + 1
                parts[i] = torch.unique(part, return_inverse=True)[1] + offset
        longest = max(part.shape[1] for part in parts) if parts[0].ndim > 1 else 0
        if any(part.ndim == 2 and part.shape[1] < longest for part in parts):
            parts = [torch.nn.functional.pad(part, (0, longest - part.shape[1])) for part in parts]
        joined[name] = torch.cat(parts)
    return joined


def cosine(step: int, steps: int, warmup: int) -> float:
    """Factor of the learning rate at ``step`` (from 0) of ``steps``: linear warm-up, then half a cosine down to 0.02."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return 0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
