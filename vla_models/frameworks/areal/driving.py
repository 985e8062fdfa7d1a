"""A group of episodes, driven from its first decision to its last: the part of a workflow that AReaL has no say in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from vla_models.errors import VLAModelsError
from vla_models.frameworks.areal.env import AReaLEnvAdapter
from vla_models.frameworks.areal.sequences import Row, trajectory
from vla_models.inputs import VLAInput
from vla_models.training.objective import group_advantages
from vla_models.training.rollout import every


class Policy(Protocol):
    """What decides: the model through an inference engine of AReaL's."""

    async def decide(self, engine: Any, inputs: list[VLAInput], samples: int, *, deterministic: bool) -> tuple[Any, list[Row]]:
        """Plans f32 [B, T, 3] (NaN where an answer is none) for B = inputs × samples, and a row for each decision, which is
        empty where ``deterministic``."""
        ...


@dataclass(frozen=True)
class Group:
    """What G episodes of one scene came to."""

    rows: list[list[Row]]
    """Decisions of each episode."""
    totals: Mapping[str, Any]
    """[G] each, see ``Episodes``: ``return``, ``valid``, ``decisions``, metrics, terms."""
    learnable: bool
    """Two valid episodes at least, so that they can be compared."""

    def trajectory(self, *, normalize: bool) -> dict[str, Any] | None:
        """AReaL's dict, with every decision's advantage in the place of its reward; None if nothing can be learned.

        All decisions of an episode share its advantage, which compares its return with those of its group. Invalid episodes
        take no part.
        """
        if not self.learnable:
            return None
        returns, valid = (torch.from_numpy(np.asarray(self.totals[name])) for name in ("return", "valid"))
        advantages = group_advantages(returns[None], valid[None].bool(), normalize=normalize)[0].tolist()
        rows = [(row, advantages[i]) for i, episode in enumerate(self.rows) if valid[i] for row in episode]
        return trajectory([row for row, _ in rows], [advantage for _, advantage in rows])

    def means(self) -> dict[str, float]:
        """Means over the valid episodes, and counts of the others, for the log."""
        valid = np.asarray(self.totals["valid"], dtype=bool)
        counts = {
            "invalid": float((~valid).sum()),
            "invalid_answers": float(np.asarray(self.totals["invalid_answers"]).sum()),
        }
        if not valid.any():
            return counts
        means = {
            name: float(np.asarray(values)[valid].mean())
            for name, values in self.totals.items()
            if name not in ("valid", "invalid_answers")
        }
        return {**means, **counts}


async def drive(adapter: AReaLEnvAdapter, policy: Policy, engine: Any, scene: str, *, deterministic: bool = False) -> Group:
    """Drive ``adapter.rows`` episodes of a scene to their ends; the adapter has begun, and is not closed here.

    At its first decision a group sees the same: the model reads that once and samples for all.
    """
    rows = adapter.rows
    observation = (await adapter.aexecute("reset", {"scene": scene}))["observation"]
    over = np.zeros(rows, dtype=bool)
    decided: list[list[Row]] = [[] for _ in range(rows)]
    first = True
    while not over.all():
        asked = [0] if first else np.flatnonzero(~over).tolist()
        samples = rows if first else 1
        inputs = VLAInput.batch(every(observation, rows)) if first else [VLAInput.batch(observation)[i] for i in asked]
        plans, made = await policy.decide(engine, inputs, samples, deterministic=deterministic)
        driven = list(range(rows)) if first else asked
        if len(plans) != len(driven) or (made and len(made) != len(driven)):
            raise VLAModelsError(f"{len(plans)} plans and {len(made)} records were decided for {len(driven)} episodes")
        whole = np.zeros((rows, *plans.shape[1:]), dtype=np.float32)
        whole[driven] = plans
        for row, decision in zip(driven, made, strict=False):
            decided[row].append(decision)
        step = await adapter.aexecute("step", {"plan": whole})
        observation, over, first = step["observation"], step["over"], False
    totals = await adapter.aexecute("score")
    return Group(decided, totals, learnable=int(np.asarray(totals["valid"]).sum()) > 1)
