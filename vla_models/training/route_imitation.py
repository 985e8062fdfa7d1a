"""Warm start in Bench2Drive: what the rule-based driver decides on the training routes, seen through the car's cameras.

Whoever only sees perfect driving does not learn to come back from mistakes. So some of what is driven is disturbed, and what is
recorded is what the expert decides in the states that this leads to (noise injection: Laskey et al., "DART", CoRL 2017).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vla_models.errors import NotImplementedByModel
from vla_models.inputs import VLAInput
from vla_models.simulation.baselines import rule_based
from vla_models.training.imitation import join_records
from vla_models.training.progress import Bar

if TYPE_CHECKING:
    from vla_models.envs.bench2drive import Bench2DriveEnv
    from vla_models.interface import VLAInterface

DISTURBED: Final = 0.25
"""Share of the decisions that are driven otherwise than the expert would."""
ANGLE: Final = 0.12
"""Radians (standard deviation) by which a disturbed plan is turned."""
PACE: Final = (0.5, 1.5)
"""A disturbed plan's distances are multiplied by a number from this range."""
_CHUNK: Final = 256
"""Decisions that are encoded at once."""


def expert_record(model: VLAInterface, env: Bench2DriveEnv, dataset: str, *, seed: int, limit: int) -> dict[str, Tensor]:
    """The record [N, …] of "this model decided what the rule-based driver decided" on every route of ``env``, or on as many
    as ``limit`` decisions allow.

    Routes come in an order drawn from ``seed``, as the disturbances do. Before, the model measures the plans and keeps their
    statistics as those of ``dataset``. Raises NotImplementedByModel if the model has no ``record_from_plans``.
    """
    record_from_plans = getattr(model, "record_from_plans", None)
    if record_from_plans is None:
        raise NotImplementedByModel(
            f"{type(model).__name__} cannot imitate: it does not implement record_from_plans(inputs, plans) -> record; "
            "set training.imitation.steps: 0 to start with reinforcement learning"
        )
    inputs, decided = expert_drives(env, seed=seed, limit=limit)
    speed = np.array([(given.ego_state or {})["speed"] for given in inputs])
    model.fit_statistics(dataset, decided, speed)
    chunks: list[dict[str, Tensor]] = []
    inputs.reverse()  # what is encoded is let go, from the end: pictures of thousands of decisions are not held twice
    for start in range(0, len(decided), _CHUNK):
        with torch.no_grad():
            part = [inputs.pop() for _ in range(min(_CHUNK, len(inputs)))]
            chunks.append(record_from_plans(part, decided[start : start + _CHUNK]))
    return join_records(chunks)


def expert_drives(env: Bench2DriveEnv, *, seed: int, limit: int) -> tuple[list[VLAInput], npt.NDArray[np.float32]]:
    """What was seen and what the rule-based driver decided there [N, T, 3], a route after the other in every row of ``env``.

    Decisions of worlds that failed are left out.
    """
    random = np.random.default_rng(seed)
    waiting = random.permutation(len(env.routes)).tolist()
    scenes = [waiting.pop() if waiting else 0 for _ in range(env.num_envs)]
    active = np.arange(env.num_envs) < len(env.routes)
    inputs: list[VLAInput] = []
    plans: list[npt.NDArray[np.float32]] = []
    observation, _ = env.reset(options={"scenes": scenes})
    with Bar("the expert drives", len(env.routes)) as bar:
        while active.any() and len(inputs) < limit:
            expert = rule_based(env.world, steps=env.plan_steps, dt=env.plan_dt).astype(np.float32)
            seen = VLAInput.batch(observation)
            observation, _, terminated, truncated, info = env.step(_disturbed(expert, random))
            rows = np.flatnonzero(active & info["valid"])
            inputs += [seen[n] for n in rows.tolist()]
            plans.append(expert[rows])
            over = active & (terminated | truncated | ~info["valid"])
            for n in np.flatnonzero(over).tolist():
                bar.advance(f"{len(inputs)} decisions")
                active[n] = bool(waiting)
                scenes[n] = waiting.pop() if waiting else scenes[n]
            if (begin := over & active).any():
                observation, _ = env.reset(options={"scenes": scenes, "reset_mask": begin})
    return inputs[:limit], np.concatenate(plans)[:limit]


def _disturbed(plans: npt.NDArray[np.float32], random: np.random.Generator) -> npt.NDArray[np.float32]:
    """Plans [N, T, 3], some of them turned and driven at another pace."""
    count = len(plans)
    chosen = random.random(count) < DISTURBED
    angle = np.where(chosen, random.normal(0.0, ANGLE, count), 0.0)
    pace = np.where(chosen, random.uniform(*PACE, count), 1.0)
    c, s = np.cos(angle)[:, None], np.sin(angle)[:, None]
    x, y = plans[..., 0] * pace[:, None], plans[..., 1] * pace[:, None]
    return np.stack([c * x - s * y, s * x + c * y, plans[..., 2] + angle[:, None]], axis=-1).astype(np.float32)
