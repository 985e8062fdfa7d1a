"""verl's replay buffer, and in it the count of trajectories that were dropped (``trainer.v1.sampler.custom_sampler``).

verl goes on with whatever comes out of a rollout: with fewer trajectories, and with groups of one, whose "advantage" would be
the bare reward (verl/trainer/ppo/core_algos.py, ``compute_grpo_outcome_advantage``). Here they are counted, groups of one are
left out, and the run stops where more are dropped than ``vla_models.max_dropped`` allows.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import transfer_queue as tq
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync

from vla_models.errors import VLAModelsError

POLL_S = 0.1
"""Seconds between two looks at what the rollout has finished."""


class TooManyDropped(VLAModelsError, RuntimeError):
    """More trajectories failed than the run allows."""


class _Counting:
    """What both replay buffers do beside verl's. ``sampler_kwargs`` are ``group_size``, ``grouped`` (GRPO), ``max_dropped`` (a
    share) and ``dropped``, the file in which agent loops say why."""

    sampler_kwargs: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"poll_interval": POLL_S, **kwargs})

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[Any, dict[str, Any]]:
        """As verl's. Metrics have ``vla_models/<name>``: means over episodes, and how many were ``dropped``."""
        try:
            batch, metrics = super().sample(global_steps, partition_id, batch_size)  # type: ignore[misc]
        except RuntimeError as e:  # verl's word for "not one trajectory"
            raise TooManyDropped(f"step {global_steps}: all trajectories were dropped; {self._why()}") from e
        if partition_id == "val":
            return batch, metrics
        last: dict[str, tuple[int, str]] = {}
        for key in batch.keys:  # uid_session_index
            session, index = key.rsplit("_", 1)
            last[session] = max(last.get(session, (-1, "")), (int(index), key))
        expected = batch_size * int(self.sampler_kwargs.group_size)
        dropped = expected - len(last)
        if dropped > float(self.sampler_kwargs.max_dropped) * expected:
            raise TooManyDropped(
                f"step {global_steps}: {dropped} of {expected} trajectories were dropped, and "
                f"framework_options.vla_models.max_dropped allows {float(self.sampler_kwargs.max_dropped):.0%}; {self._why()}"
            )
        metrics |= self._means([key for _, key in last.values()], batch.partition_id) | {"vla_models/dropped": dropped}
        if bool(self.sampler_kwargs.grouped):
            batch = self._without_singles(batch, last)
        return batch, metrics

    def _means(self, keys: list[str], partition_id: str) -> dict[str, float]:
        """Means over episodes of what the agent loops reported with their last decision."""
        fields = tq.kv_batch_get(keys=keys, partition_id=partition_id, select_fields=["extra_fields"])["extra_fields"]
        rows = [getattr(row, "data", row)["reward_extra_info"] for row in fields]
        return {f"vla_models/{name}": float(np.mean([row[name] for row in rows if name in row])) for name in rows[0]}

    def _without_singles(self, batch: Any, sessions: dict[str, Any]) -> Any:
        """The batch without groups of one episode."""
        sizes = Counter(session.rsplit("_", 1)[0] for session in sessions)
        kept = [i for i, key in enumerate(batch.keys) if sizes[key.rsplit("_", 2)[0]] > 1]
        if len(kept) == len(batch.keys):
            return batch
        if not kept:
            raise TooManyDropped(f"no two trajectories of a scene are left to compare; {self._why()}")
        gone = [key for i, key in enumerate(batch.keys) if i not in set(kept)]
        tq.kv_clear(keys=gone, partition_id=batch.partition_id)
        return type(batch)(
            partition_id=batch.partition_id, keys=[batch.keys[i] for i in kept], tags=[batch.tags[i] for i in kept]
        )

    def _why(self) -> str:
        file = Path(self.sampler_kwargs.dropped)
        if not file.is_file():
            return "no reason was noted; see what the agent loops logged above"
        said = file.read_text(encoding="utf-8").splitlines()
        return f"the last reason: {json.loads(said[-1])['reason']} (all of them: {file})"


class DrivingReplayBuffer(_Counting, ReplayBuffer):
    """For ``trainer_mode: sync``."""


class DrivingReplayBufferAsync(_Counting, ReplayBufferAsync):
    """For ``colocate_async`` and ``separate_async``."""
