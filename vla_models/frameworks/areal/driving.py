"""A group of episodes, driven from its first decision to its last: the part of a workflow that AReaL has no say in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from vla_models.errors import VLAModelsError
from vla_models.frameworks.areal.env import AReaLEnvAdapter
from vla_models.frameworks.areal.sequences import Rows, join, trajectory
from vla_models.inputs import VLAInput
from vla_models.training.objective import group_advantages
from vla_models.training.rollout import every


class Policy(Protocol):
    """What decides: the model through an inference engine of AReaL's."""

    async def decide(
        self, engine: Any, inputs: list[VLAInput], samples: int, *, deterministic: bool
    ) -> tuple[Any, Rows | None]:
        """Plans f32 [B, T, 3] (NaN where an answer is none) for B = inputs × samples, and these decisions, None where
        ``deterministic``."""
        ...


@dataclass(frozen=True)
class Group:
    """What G episodes of one scene came to."""

    decisions: list[Rows]
    """One after the other, of the episodes that were not over by then."""
    episodes: list[npt.NDArray[np.int64]]
    """Which these were: [B] for each of ``decisions``."""
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
        returns, valid = np.asarray(self.totals["return"]), np.asarray(self.totals["valid"], dtype=bool)
        advantages = group_advantages(torch.from_numpy(returns)[None], torch.from_numpy(valid)[None], normalize=normalize)[0]
        rows, episode = join(self.decisions), np.concatenate(self.episodes)
        if not valid.all():
            kept = np.flatnonzero(valid[episode])
            rows, episode = rows[torch.from_numpy(kept)], episode[kept]
        return trajectory(rows, torch.from_numpy(advantages.numpy()[episode]))

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
    decisions, episodes = list[Rows](), list[npt.NDArray[np.int64]]()
    first = True
    while not over.all():
        driven = np.flatnonzero(~over)
        asked, samples = (driven[:1], rows) if first else (driven, 1)
        seen = VLAInput.batch(every(observation, rows)) if first else VLAInput.batch(observation)
        plans, made = await policy.decide(engine, [seen[i] for i in asked], samples, deterministic=deterministic)
        if len(plans) != len(driven) or (made is not None and len(made) != len(driven)):
            given = "no" if made is None else len(made)
            raise VLAModelsError(f"{len(plans)} plans and {given} records were decided for {len(driven)} episodes")
        if made is not None:
            decisions.append(made)
            episodes.append(driven)
        whole = np.zeros((rows, *plans.shape[1:]), dtype=np.float32)
        whole[driven] = plans
        step = await adapter.aexecute("step", {"plan": whole})
        observation, over, first = step["observation"], step["over"], False
    totals = await adapter.aexecute("score")
    return Group(decisions, episodes, totals, learnable=int(np.asarray(totals["valid"]).sum()) > 1)
