"""Trajectories that were dropped: counted, left out where nothing is left to compare, and a reason to stop."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

from vla_models.frameworks.verl import runner, sampler


@pytest.fixture
def buffer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A replay buffer over given keys ``uid_session_index``; what it clears is in ``cleared``."""
    runner.load_plugin()
    cleared: list[str] = []

    def get(keys: list[str], **_: Any) -> Any:
        return {"extra_fields": [{"reward_extra_info": {"return": float(len(key)), "score": 1.0}} for key in keys]}

    monkeypatch.setattr(sampler.tq, "kv_batch_get", get)
    monkeypatch.setattr(sampler.tq, "kv_clear", lambda keys, partition_id: cleared.extend(keys))

    def make(keys: list[str], grouped: bool = True, allowed: float = 0.5, partition: str = "train") -> Any:
        def sample(self: Any, *_: Any, **__: Any) -> Any:
            if not keys:
                raise RuntimeError("no materializable trajectories")
            return KVBatchMeta(partition_id=partition, keys=list(keys), tags=[{"seq_len": 9} for _ in keys]), {"own": 1}

        monkeypatch.setattr(ReplayBuffer, "sample", sample)
        dropped = tmp_path / "dropped.jsonl"
        dropped.write_text(json.dumps({"reason": "scene a: the disk is gone"}) + "\n")
        made = sampler.DrivingReplayBuffer(
            trainer_mode="sync", trainer_config={}, max_off_policy_threshold=None, max_off_policy_strategy="drop",
            sampler_kwargs=SimpleNamespace(group_size=2, grouped=grouped, max_dropped=allowed, dropped=str(dropped)),
        )  # fmt: skip
        made.cleared = cleared
        return made

    return make


def test_what_is_whole_stays_whole(buffer: Any) -> None:
    made = buffer(["a_0_0", "a_1_0", "a_1_1", "b_0_0", "b_1_0"])
    batch, metrics = made.sample(global_steps=1, partition_id="train", batch_size=2)
    assert len(batch) == 5
    assert metrics["vla_models/dropped"] == 0
    assert metrics["own"] == 1
    assert metrics["vla_models/return"] == 5.0  # means over episodes, of their last rows
    assert made.poll_interval == sampler.POLL_S


def test_a_group_of_one_has_nothing_to_be_compared_with(buffer: Any) -> None:
    """verl would take its bare reward for an advantage."""
    made = buffer(["a_0_0", "b_0_0", "b_1_0", "b_1_1"])
    batch, metrics = made.sample(global_steps=1, partition_id="train", batch_size=2)
    assert batch.keys == ["b_0_0", "b_1_0", "b_1_1"]
    assert made.cleared == ["a_0_0"]
    assert metrics["vla_models/dropped"] == 1
    alone, _ = buffer(["a_0_0", "b_0_0"], grouped=False).sample(global_steps=1, partition_id="train", batch_size=2)
    assert len(alone) == 2  # ppo compares with values


def test_too_many_stop_the_run_and_say_why(buffer: Any) -> None:
    with pytest.raises(
        sampler.TooManyDropped, match=r"step 3: 3 of 4 .* allows 50%; the last reason: scene a: the disk is gone"
    ):
        buffer(["a_0_0"]).sample(global_steps=3, partition_id="train", batch_size=2)
    with pytest.raises(sampler.TooManyDropped, match="step 3: all trajectories were dropped; the last reason"):
        buffer([]).sample(global_steps=3, partition_id="train", batch_size=2)
    with pytest.raises(sampler.TooManyDropped, match="no two trajectories of a scene are left"):
        buffer(["a_0_0", "b_0_0"]).sample(global_steps=3, partition_id="train", batch_size=2)


def test_evaluation_is_left_alone(buffer: Any) -> None:
    batch, metrics = buffer(["a_0_0"], partition="val").sample(global_steps=1, partition_id="val", batch_size=4)
    assert len(batch) == 1
    assert metrics == {"own": 1}
