"""verl: the stored batch through its agent loop, engine, advantages and losses (tests/frameworks/verl/one_process.py)."""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from parities.batch import GROUP, SCENES, TESTS, Batch, Replay, configuration, policy, read, rows_of, visible_scenes
from parities.compare import (
    Difference,
    Outcome,
    distance,
    gradients,
    local,
    objective,
    policy_apart,
    value_apart,
    where,
)

PACKAGES = ("verl",)
ALGORITHMS = ("grpo", "ppo")
NO_CLIP = 1e9


@contextmanager
def ready() -> Iterator[None]:
    """verl on this machine's CPU."""
    folder = TESTS / "frameworks" / "verl"
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    import cpu_shim  # noqa: F401 - as tests/frameworks/verl/conftest.py

    yield


@dataclass(frozen=True)
class Settings:
    """What the switches are set to."""

    dual_clip: float = 3.0
    value_clip: float = 0.5


DEFAULT = Settings()
SAME = Settings(dual_clip=NO_CLIP, value_clip=NO_CLIP)
"""What makes verl's objective the local one."""


class Prepared:
    """A batch that verl has collected, with its actor and, for PPO, its critic."""

    def __init__(self, batch: Batch, algorithm: str, folder: Path) -> None:
        import one_process as one

        self.batch, self.algorithm = batch, algorithm
        config = configuration(batch.case, algorithm, "verl")
        self.setting = s = one.setting(folder, config)
        replay = Replay(batch)
        scenes = [scene.token for scene in visible_scenes(6)[:SCENES] for _ in range(GROUP)]
        with replay.world(), patch.object(s.server.model, "predict", replay.predict):
            self.data, self.keys = one.trajectories(s, scenes)
        policy(batch.case).save_pretrained(folder / "start")
        self.actor = s.engine()
        self.critic = s.engine("critic") if algorithm == "ppo" else None
        from vla_models.frameworks.records import unpack
        from vla_models.frameworks.verl.fields import packed_records

        record = unpack(packed_records(self.data))
        self.rows = rows_of(batch, record)
        """Which stored row each of verl's rows is."""
        self.mask = policy(batch.case).evaluate_actions(record)["mask"].flatten(1)

    def outcome(self, settings: Settings, *, old: str = "sampled") -> Outcome:
        """What verl makes of it. ``old``: log-probabilities of sampling, or ``recomputed`` by the actor."""
        import one_process as one

        s, data = self.setting, self.data
        s.cfg.actor_rollout_ref.actor.clip_ratio_c = settings.dual_clip
        values = None
        if self.critic is not None:
            s.cfg.critic.cliprange_value = settings.value_clip
            mask = data["response_mask"].to_padded_tensor(0)
            values = self.batch.values[self.rows][:, None].expand(mask.shape) * mask
        given = one.advantages(s, data, self.keys, values)
        new = one.replayed(self.actor, data)["log_probs"]
        before = data["rollout_log_probs"].to_padded_tensor(0.0) if old == "sampled" else new
        fields = {"old_log_probs": before, "advantages": given["advantages"]}
        loss, found = _without_step(self.actor, data, s.loss(), "actor/pg_loss", fields)
        parts = self.batch.logprobs.flatten(1).shape[1]
        advantages = torch.full((SCENES * GROUP,), math.nan)
        ratio = torch.full((SCENES * GROUP, parts), math.nan)
        advantages[self.rows] = given["advantages"][:, 0]
        spread = torch.full((len(self.rows), parts), math.nan)
        for i, mask in enumerate(self.mask):
            spread[i, mask] = (new - before)[i, : int(mask.sum())].exp()
        ratio[self.rows] = spread
        if self.critic is None:
            return Outcome(advantages, ratio, loss, found)
        assert values is not None
        value_fields = {"values": values, "returns": given["returns"]}
        value_loss, learned = _without_step(self.critic, data, s.loss("critic"), "critic/vf_loss", value_fields)
        return Outcome(advantages, ratio, loss, found, value_loss, learned)


def _without_step(engine: Any, data: Any, loss: Any, name: str, fields: dict[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
    """A loss of verl's training step and the gradients that it leaves; the optimiser's step is left out."""
    import one_process as one

    found: dict[str, Tensor] = {}

    def look(self: Any) -> float:  # verl forgets them when it leaves its training mode
        found.update({name.removeprefix("model."): value for name, value in gradients(self.module).items()})
        return 0.0

    with patch.object(type(engine), "optimizer_step", look):
        metrics = one.train(engine, data, loss, **fields)
    value: Any = metrics[name]
    return float(value[0] if isinstance(value, list) else getattr(value, "values", [value])[0]), found


def outcome(batch: Batch, algorithm: str) -> Outcome:
    """What verl makes of the batch under the documented setting."""
    with tempfile.TemporaryDirectory() as folder:
        return Prepared(batch, algorithm, Path(folder)).outcome(SAME)


def expected(batch: Batch, algorithm: str) -> Outcome:
    """``local``'s answer with verl's differences by design: PPO's means run over parts."""
    ours = local(batch, algorithm)
    return ours if algorithm == "grpo" else objective(batch, "ppo", _whitened(batch, ours), values_by_part=True)


def differences() -> list[Difference]:
    """Where verl differs by design, measured on the stored batch."""
    from verl.trainer.ppo import core_algos
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer
    from verl.utils import torch_functional

    found = []
    with tempfile.TemporaryDirectory() as folder:
        flow = read("flow")
        prepared = Prepared(flow, "grpo", Path(folder))
    ours, usual, same = local(flow, "grpo"), prepared.outcome(DEFAULT), prepared.outcome(SAME)
    found.append(
        Difference(
            "dual clip",
            "where an advantage is negative, the loss is bounded at clip_ratio_c (3) times it; local has no such bound",
            where("verl", core_algos.compute_policy_loss_vanilla, "pg_losses3 = -advantages * clip_ratio_c"),
            "framework_options.actor_rollout_ref.actor.clip_ratio_c: 1e9",
            policy_apart(ours, usual),
            policy_apart(ours, same),
            "the switch",
        )
    )
    again = prepared.outcome(SAME, old="recomputed")
    finite = torch.isfinite(ours.ratio)
    counts = finite.sum(1)
    on_policy = -float((ours.advantages.nan_to_num() * counts).sum() / counts.sum())
    found.append(
        Difference(
            "old log-probabilities",
            "the actor computes them again before an update, so a first update's ratio is 1 whatever sampled; local keeps "
            "those of sampling",
            where("verl", PPOTrainer._compute_old_log_prob, "bypass_recomputing_logprobs = "),
            "framework_options.algorithm.rollout_correction.bypass_mode: true",
            abs(ours.loss - again.loss),
            max(abs(on_policy - again.loss), distance(ours.ratio, same.ratio)),
            "with those of sampling equal; as it runs, the loss is that of ratio 1",
        )
    )
    words = read("words")
    with tempfile.TemporaryDirectory() as folder:
        prepared = Prepared(words, "ppo", Path(folder))
    ours, usual, same = local(words, "ppo"), prepared.outcome(DEFAULT), prepared.outcome(SAME)
    found.append(
        Difference(
            "PPO: whitening over parts",
            "mean and deviation run over all parts that count, so a decision that says more weighs more; 1e-8 is added to the "
            "variance",
            where("verl", torch_functional.masked_whiten, "torch.rsqrt(var + 1e-8)"),
            "none; with one part a decision only the eps differs",
            distance(ours.advantages, same.advantages),
            distance(_whitened(words, ours), same.advantages),
            "local's advantages before normalising, whitened with each decision repeated for its parts",
        )
    )
    weighted = objective(words, "ppo", ours.advantages, values_by_part=True)
    found.append(
        Difference(
            "PPO: value loss over parts",
            "a decision's value error counts as often as it has parts, because every token has the value",
            where("verl", core_algos.compute_value_loss, "vf_loss = 0.5 * agg_loss("),
            "none; the same where all decisions have as many parts",
            value_apart(ours, same),
            value_apart(weighted, same),
            "against local's value loss with each decision repeated for its parts",
        )
    )
    gaussian = read("gaussian")
    with tempfile.TemporaryDirectory() as folder:
        prepared = Prepared(gaussian, "ppo", Path(folder))
    ours, usual, same = local(gaussian, "ppo"), prepared.outcome(DEFAULT), prepared.outcome(SAME)
    found.append(
        Difference(
            "PPO: value clip",
            "values may move by cliprange_value (0.5) from those of sampling",
            where("verl", core_algos.compute_value_loss, "vpredclipped = "),
            "framework_options.critic.cliprange_value: 1e9",
            value_apart(ours, usual),
            value_apart(ours, same),
            "the switch",
        )
    )
    return found


def _whitened(batch: Batch, ours: Outcome) -> Tensor:
    """PPO's advantages, normalised over parts instead of decisions."""
    counts = torch.isfinite(ours.ratio).sum(1)
    bare = batch.rewards - batch.values
    parts = bare.repeat_interleave(counts)
    white = (bare - parts.mean()) * torch.rsqrt(parts.var() + 1e-8)
    return torch.where(batch.valid, white, torch.nan)
