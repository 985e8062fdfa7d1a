"""siiRL: the stored batch through its graph, nodes, advantages and losses (tests/frameworks/siirl/loop.py)."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

from parities.batch import SCENES, TESTS, Batch, Replay, configuration, policy, read, rows_of
from parities.compare import (
    Difference,
    Outcome,
    distance,
    gradients,
    local,
    policy_apart,
    where,
)

PACKAGES = ("siirl",)
ALGORITHMS = ("grpo", "ppo")
NO_CLIP = 1e9


@contextmanager
def ready() -> Iterator[None]:
    """siiRL in this process."""
    for folder in (TESTS / "frameworks" / "siirl", TESTS.parent / "examples"):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    yield


class Prepared:
    """A batch that siiRL's graph has collected, rewarded and given advantages."""

    def __init__(self, batch: Batch, algorithm: str) -> None:
        import loop

        self.batch, self.algorithm = batch, algorithm
        with tempfile.TemporaryDirectory() as folder:
            self.rank = r = loop.rank(Path(folder) / "run", configuration(batch.case, algorithm, "siirl"))
            replay = Replay(batch)
            with replay.world(), patch.object(r.policy.model, "predict", replay.predict):
                data = r.until("reward", list(range(SCENES)))
        data = r.node("advantage", data)
        r.policy.model.load_state_dict(policy(batch.case).state_dict())
        self.data = r.node("old_log_prob", data)
        from vla_models.frameworks.siirl.batch import RECORDS

        words = self.data[RECORDS]
        self.places = torch.stack([torch.arange(len(words)), torch.zeros(len(words), dtype=torch.int64)], dim=1)
        """The one decision of each of siiRL's rows."""
        self.rows = rows_of(batch, r.policy.records.unpack(words, self.places))
        """Which stored row each of siiRL's rows is."""
        self.recomputed = self.data["old_log_probs"].clone()

    def outcome(self, dual_clip: float = NO_CLIP, *, old: str = "sampled") -> Outcome:
        """What siiRL makes of it. ``old``: log-probabilities of sampling, or ``recomputed`` by the actor as it runs."""
        r, data = self.rank, self.data
        parts = r.policy.parts
        sampled = torch.nn.functional.pad(self.batch.logprobs.flatten(1), (0, parts - self.batch.logprobs[0].numel()))
        data["old_log_probs"] = sampled[self.rows] if old == "sampled" else self.recomputed
        terms, both = self._gradients(dual_clip, 0.0)
        counted = data["response_mask"].bool().view(len(self.rows), parts)
        with torch.no_grad():
            from vla_models.frameworks.siirl.batch import RECORDS

            new = r.policy.replay(data[RECORDS], self.places)["logprobs"]
        ratio = torch.where(counted, (new - data["old_log_probs"]).exp(), torch.nan)
        order = self.rows.argsort()
        advantages = torch.where(counted.any(1), data["advantages"][:, 0], torch.nan)[order]
        ratio = ratio[order][:, : self.batch.logprobs[0].numel()]
        if self.algorithm == "grpo":
            return Outcome(advantages, ratio, terms["policy_loss"], both)
        more, whole = self._gradients(dual_clip, 1.0)
        learned = {name: whole[name] - both[name] for name in whole}
        return Outcome(advantages, ratio, terms["policy_loss"], both, more["value_loss"], learned)

    def _gradients(self, dual_clip: float, value_coef: float) -> tuple[dict[str, float], dict[str, Tensor]]:
        """siiRL's losses in one optimiser step, whose step is left out."""
        from siirl.execution.dag import NodeRole

        from vla_models.frameworks.siirl.batch import RECORDS, decision_mask
        from vla_models.frameworks.siirl.update import _one_step, _parts_mask

        r = self.rank
        actor = r.workers[NodeRole.ACTOR].config
        actor.actor.clip_ratio_c = dual_clip
        algorithm = r.policy.config.algorithm.model_copy(update={"value_coef": value_coef})
        r.policy.config = r.policy.config.model_copy(update={"algorithm": algorithm})
        active = decision_mask(self.data["finish_step"], self.data[RECORDS].shape[1]).nonzero()
        mask = _parts_mask(self.data, r.policy.parts)
        with patch.object(r.policy.optimizer, "step", lambda: None):
            terms = _one_step(r.policy, self.data, actor, mask, active, None, check=False)
        assert terms is not None
        return terms, gradients(r.policy.model)


def outcome(batch: Batch, algorithm: str) -> Outcome:
    """What siiRL makes of the batch under the documented setting."""
    return Prepared(batch, algorithm).outcome()


def expected(batch: Batch, algorithm: str) -> Outcome:
    """``local``'s answer: under the documented setting siiRL has no other."""
    return local(batch, algorithm)


def differences() -> list[Difference]:
    """Where siiRL differs by design, measured on the stored batch."""
    from siirl.dag_worker import core_algos
    from siirl.dag_worker.dagworker import DAGWorker

    found = []
    flow = read("flow")
    prepared = Prepared(flow, "grpo")
    ours, usual, same = local(flow, "grpo"), prepared.outcome(3.0), prepared.outcome()
    found.append(
        Difference(
            "dual clip",
            "where an advantage is negative, the loss is bounded at clip_ratio_c (3) times it; local has no such bound",
            where("siirl", core_algos.compute_policy_loss_vanilla, "pg_losses3 = -advantages * clip_ratio_c"),
            "framework_options.actor_rollout_ref.actor.clip_ratio_c: 1e9",
            policy_apart(ours, usual),
            policy_apart(ours, same),
            "the switch",
        )
    )
    again = prepared.outcome(old="recomputed")
    counts = torch.isfinite(ours.ratio).sum(1)
    on_policy = -float((ours.advantages.nan_to_num() * counts).sum() / counts.sum())
    found.append(
        Difference(
            "old log-probabilities",
            "the actor computes them again before an update, so a first update's ratio is 1 whatever sampled; local keeps "
            "those of sampling",
            where("siirl", DAGWorker.compute_old_log_prob, ".compute_log_prob(batch)"),
            "none; the same where the weights that sample are those that train, as here in every run",
            abs(ours.loss - again.loss),
            max(abs(on_policy - again.loss), distance(ours.ratio, same.ratio)),
            "with those of sampling equal; as it runs, the loss is that of ratio 1",
        )
    )
    return found
