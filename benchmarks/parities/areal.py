"""AReaL: the stored batch through its executor, actor and loss (tests/frameworks/areal/loop.py). Our launcher refuses PPO."""

from __future__ import annotations

import copy
import math
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from parities.batch import GROUP, SCENES, TESTS, Batch, Replay, configuration, policy, read, rows_of, visible_scenes
from parities.compare import Difference, Outcome, distance, gradients, local, where

PACKAGES = ("areal",)
ALGORITHMS = ("grpo",)


@contextmanager
def ready() -> Iterator[None]:
    """AReaL as one process of its SPMD mode."""
    for folder in (TESTS / "frameworks" / "areal", TESTS.parent / "examples"):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    alone = {"AREAL_SPMD_MODE": "1", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    alone |= {"TORCHDYNAMO_DISABLE": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        alone["MASTER_PORT"] = str(s.getsockname()[1])
    with patch.dict(os.environ, alone):
        yield


@contextmanager
def collected(batch: Batch, **options: Any) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
    """The parts of a run that hold the policy, and what AReaL's executor made of the stored decisions."""
    import loop
    import pytest

    config = configuration(batch.case, "grpo", "areal", **options)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        s = loop.setting(Path(folder), config, loop.GoldenNavSim, patched)
        replay = Replay(batch)
        try:
            with replay.world(), patch.object(s.rollout.decider.model, "predict", replay.predict):
                made = s.batch([scene.token for scene in visible_scenes(6)[:SCENES]])
            s.actor.model.load_state_dict(policy(batch.case).state_dict())
            s.actor.set_version(1)  # what was sampled is of version 0, and need not replay under these weights
            yield s, made
        finally:
            s.close()


def outcome(batch: Batch, algorithm: str = "grpo") -> Outcome:
    """What AReaL makes of the batch."""
    from areal.utils import stats_tracker
    from areal.utils.data import concat_padded_tensors

    from vla_models.frameworks.areal.sequences import PAYLOAD, joined_record

    with collected(batch) as (s, made):
        done = s.actor.compute_advantages(copy.deepcopy(made))
        whole = concat_padded_tensors(copy.deepcopy(done))
        counts = whole["loss_mask"].bool()
        with torch.no_grad():
            logprobs, _ = s.actor.replay(whole[PAYLOAD], whole)
        record = joined_record(whole[PAYLOAD])
        rows = rows_of(batch, record)
        mask = s.actor.model.evaluate_actions(record)["mask"].flatten(1)
        stats_tracker.export_all()
        with patch.object(s.actor, "optimizer_step", lambda: {"update_successful": 1.0}):
            s.actor.ppo_update(done)
        loss = float(s.actor.export_stats()["ppo_actor/update/actor_loss/avg"])
        found = gradients(s.actor.model)
    log_ratio = logprobs - whole["logprobs"]
    advantages = torch.full((SCENES * GROUP,), math.nan)
    ratio = torch.full((SCENES * GROUP, batch.logprobs.flatten(1).shape[1]), math.nan)
    for i, row in enumerate(rows):
        shared = whole["advantages"][i][counts[i]]
        assert float((shared - shared[0]).abs().max()) == 0.0  # all parts of a decision share its advantage
        advantages[row] = shared[0]
        ratio[row] = ratio[row].masked_scatter(mask[i], log_ratio[i][counts[i]].exp())
    return Outcome(advantages, ratio, loss, found)


def expected(batch: Batch, algorithm: str) -> Outcome:
    """``local``'s answer: under the documented setting AReaL has no other."""
    return local(batch, algorithm)


def differences() -> list[Difference]:
    """Where AReaL differs by design, measured on the stored batch."""
    from areal.api.cli_args import NormConfig
    from areal.trainer.ppo.actor import PPOActor
    from areal.utils.data import Normalization

    one = read("decision").without_failure()
    ours = local(one, "grpo")

    def normalised(eps: float) -> Tensor:
        norm = Normalization(NormConfig(mean_level="group", std_level="group", group_size=GROUP, eps=eps))
        out: Tensor = norm(one.rewards)
        return out

    found = [
        Difference(
            "eps of a group's deviation",
            "its own group normalisation (reward_norm) adds 1e-5 to the deviation and needs groups of one size; our adapter "
            "compares a group before AReaL sees it, with 1e-6 and without failed episodes",
            where("areal", Normalization.__call__, "(std + eps)"),
            "reward_norm.eps: 1e-6 (not needed: our launcher leaves reward_norm out)",
            distance(ours.advantages, normalised(1e-5)),
            distance(ours.advantages, normalised(1e-6)),
            "AReaL's own Normalization on the stored rewards",
        )
    ]
    usual, lifted = _clipped(one), _clipped(one, actor={"reward_clip": 1e9})
    found.append(
        Difference(
            "rewards are clipped",
            "a sequence's reward, here its advantage, is clipped at reward_clip (20): only where normalize_advantage is false "
            "and rewards are large",
            where("areal", PPOActor._compute_advantages, "reward_score = torch.clip("),
            "framework_options.actor.reward_clip: 1e9",
            *(distance(one.rewards * 100.0, got) for got in (usual, lifted)),
            "advantages of 100 times the stored rewards",
        )
    )
    return found


def _clipped(batch: Batch, **options: Any) -> Tensor:
    """[B] advantages where each row's reward is 100 times the stored one."""
    from areal.utils.data import concat_padded_tensors

    from vla_models.frameworks.areal.sequences import PAYLOAD, joined_record

    with collected(batch, **options) as (s, made):
        whole = concat_padded_tensors(copy.deepcopy(made))
        rows = rows_of(batch, joined_record(whole[PAYLOAD]))
        at = 0
        for d in made:
            size = len(d["rewards"])
            d["rewards"] = 100.0 * batch.rewards[rows[at : at + size]]
            at += size
        done = concat_padded_tensors(s.actor.compute_advantages(made))
    out = torch.empty(SCENES * GROUP)
    out[rows] = torch.where(done["loss_mask"].bool(), done["advantages"], 0.0).sum(1)
    return out
