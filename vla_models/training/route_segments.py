"""Driving that goes on from update to update: H decisions of N rows, with what they need for learning.

PPO samples every decision, and a row that is over begins its next route at once. GRPO samples the first one alone, of G rows
that stand in one state, and drives on from each with the most likely plans: in a deterministic world, what differs then is what
that one decision led to (the "vine" procedure of TRPO, Schulman et al. 2015, section 5.2). A row that is over waits.

The drive of a row is known by its route and the plans since its beginning, so that is all that a checkpoint keeps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vla_models.errors import NotImplementedByModel
from vla_models.inputs import INVALID_PLAN, VLAInput, check_plan
from vla_models.training.imitation import join_records

if TYPE_CHECKING:
    from vla_models.envs.bench2drive import Bench2DriveEnv
    from vla_models.interface import VLAInterface

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
NEVER: Final = "exclude"
"""Setting of ``reward.invalid`` that leaves answers that are no plans out of learning."""


@dataclass
class Segment:
    """T decisions (at most) of N rows. All arrays [T, N]; where a row did not decide they are 0 or False."""

    record: dict[str, Tensor]
    """[B, …] of the decisions that were sampled, in order of (decision, row): ``np.nonzero(sampled)``."""
    logprobs: Tensor
    """[B, *S]"""
    decided: BoolArray
    """Whether the row took a decision."""
    sampled: BoolArray
    """Whether it was sampled, and not the most likely one."""
    counted: BoolArray
    """Whether it counts: not where the world failed in that episode, nor where the answer was no plan and those are left
    out."""
    rewards: FloatArray
    """0 where the world failed."""
    ended: BoolArray
    """Whether the episode was over with it, for whatever reason."""
    values: FloatArray
    """Of the state in which it was taken (0 where the model gives none)."""
    next_values: FloatArray
    """Of the state to which it led: 0 where the task had ended or the world failed, but not at a mere limit."""
    invalid_answers: int
    """Answers that were no plan."""
    terms: dict[str, float]
    """Mean over the decisions of valid worlds, by reward term."""
    episodes: dict[str, float]
    """Mean over the episodes that ended validly, by metric; empty where none did."""
    finished: int
    """How many these were."""
    sample_s: float = 0.0
    score_s: float = 0.0


@dataclass
class Driving:
    """N rows under way in ``env``.

    Args:
        env: where they drive.
        scenes: index of the route of each row.
        plans: what each row has driven since its route began, a plan [T, 3] a decision.
        observation: what they see now; None before they have begun.
    """

    env: Bench2DriveEnv
    scenes: list[int] = field(default_factory=list)
    plans: list[list[FloatArray]] = field(default_factory=list)
    observation: Mapping[str, Any] | None = None

    def begin(self, rows: Sequence[int], scenes: Sequence[int]) -> None:
        """Start routes in some rows (the first time: in all)."""
        if self.observation is None:
            self.scenes, self.plans = list(scenes), [[] for _ in scenes]
            self.observation, _ = self.env.reset(options={"scenes": self.scenes})
            return
        mask = np.zeros(self.env.num_envs, dtype=np.bool_)
        for row, scene in zip(rows, scenes, strict=True):
            mask[row], self.scenes[row], self.plans[row] = True, scene, []
        if mask.any():
            self.observation, _ = self.env.reset(options={"scenes": self.scenes, "reset_mask": mask})

    def branch(self, sources: Sequence[int]) -> None:
        """Row n goes on from where row ``sources[n]`` stands, exactly."""
        if list(sources) == list(range(self.env.num_envs)):
            return
        self.observation = self.env.restore(self.env.snapshot(sources), range(self.env.num_envs))
        self.scenes = [self.scenes[n] for n in sources]
        self.plans = [list(self.plans[n]) for n in sources]

    def replay(self, scenes: Sequence[int], plans: Sequence[Sequence[FloatArray]]) -> None:
        """Be where rows are that have driven ``plans`` on their routes: the same plans in the same world give the same bits.

        Rows that have driven less begin later, so that all arrive together.
        """
        env, longest = self.env, max(len(driven) for driven in plans)
        self.scenes, self.plans = list(scenes), [list(driven) for driven in plans]
        env.reset(options={"scenes": self.scenes})
        fresh = [env.world.snapshot([n]) for n in range(env.num_envs)]
        standing_still = np.zeros((env.plan_steps, 3), dtype=np.float32)
        for k in range(longest):
            late = [n for n, driven in enumerate(plans) if longest - len(driven) == k]
            for n in late:
                env.world.restore(fresh[n], [n])
            now = [driven[k - longest] if longest - len(driven) <= k else standing_still for driven in plans]
            env.world.step(np.stack(now), dt=env.plan_dt, ticks=env.ticks)
        for n in (n for n, driven in enumerate(plans) if not driven):
            env.world.restore(fresh[n], [n])
        self.observation = env.restore(env.snapshot(), range(env.num_envs))


def drive_segment(
    model: VLAInterface,
    driving: Driving,
    decisions: int,
    *,
    temperature: float,
    top_p: float,
    generator: torch.Generator,
    invalid: float | Literal["exclude"],
    group_size: int = 1,
    next_routes: Callable[[int], list[int]] | None = None,
) -> Segment:
    """Let ``model`` take ``decisions`` decisions in every row.

    Args:
        model: what drives.
        driving: the rows, under way; afterwards where they then are.
        decisions: of each row, at most.
        temperature: of sampling.
        top_p: of sampling.
        generator: of sampling.
        invalid: reward of a decision whose answer was no plan (the car brakes), or "exclude".
        group_size: rows side by side that stand in one state: it is read once.
        next_routes: gives as many routes as it is asked for to rows that are over; then every decision is sampled, and values
            are wanted. None samples the first one alone, and lets rows wait.

    Raises NotImplementedByModel for a model whose predictions lack what learning needs.
    """
    env, values = driving.env, next_routes is not None
    shape = decisions, env.num_envs
    decided, sampled, failed, ended, left_out = (np.zeros(shape, dtype=np.bool_) for _ in range(5))
    rewards, value, next_value = (np.zeros(shape, dtype=np.float32) for _ in range(3))
    records: list[dict[str, Tensor]] = []
    logprobs: list[Tensor] = []
    terms: dict[str, list[npt.NDArray[Any]]] = {}
    episodes: dict[str, list[npt.NDArray[Any]]] = {}
    over = np.zeros(env.num_envs, dtype=np.bool_)
    taken, answers, sample_s, started = 0, 0, 0.0, time.perf_counter()
    likely = {"deterministic": True}
    for t in range(decisions):
        rows = np.flatnonzero(~over)
        if not len(rows):
            break
        taken = t + 1
        before = time.perf_counter()
        sampled[t, rows] = values or t == 0
        if sampled[t].any():
            sampling = {"temperature": temperature, "top_p": top_p, "generator": generator, "num_samples": group_size}
            prediction = _decide(model, driving, rows[::group_size], **sampling)
            if prediction.record is None or prediction.logprobs is None:
                raise NotImplementedByModel(
                    f"{type(model).__name__} cannot be trained: its predict returns no record and logprobs (see docs/models.md)"
                )
            records.append(prediction.record)
            logprobs.append(prediction.logprobs)
        else:
            prediction = _decide(model, driving, rows, **likely)
        sample_s += time.perf_counter() - before
        if values:
            value[t, rows] = _values(model, prediction)
        if t:
            going_on = rows[~ended[t - 1, rows]]
            next_value[t - 1, going_on] = value[t, going_on]
        planned = np.ones(len(rows), dtype=np.bool_) if prediction.valid is None else np.asarray(prediction.valid)
        plans = np.full((env.num_envs, env.plan_steps, 3), INVALID_PLAN, dtype=np.float32)
        plans[rows[planned]] = check_plan(np.asarray(prediction.waypoints)[planned], env.plan_steps, what="the model's plan")
        driving.observation, reward, terminated, truncated, info = env.step(plans)
        for n in rows.tolist():
            driving.plans[n].append(plans[n])
        decided[t, rows] = True
        failed[t, rows] = ~info["valid"][rows]
        ended[t, rows] = failed[t, rows] | terminated[rows] | truncated[rows]
        rewards[t, rows] = np.where(failed[t, rows], 0.0, reward[rows])
        answers += int((~planned).sum())
        if invalid == NEVER:
            left_out[t, rows] = ~planned
        else:
            rewards[t, rows] = np.where(planned | failed[t, rows], rewards[t, rows], invalid)
        good, complete = rows[~failed[t, rows]], rows[ended[t, rows] & ~failed[t, rows]]
        for name, part in info["terms"].items():
            terms.setdefault(name, []).append(part[good])
        for name, part in info["metrics"].items():
            episodes.setdefault(name, []).append(part[complete])
        limited = rows[truncated[rows] & ~terminated[rows] & ~failed[t, rows]]
        if values and len(limited):  # a limit ends the driving, not the task: what could have come still counts
            next_value[t, limited] = _values(model, _decide(model, driving, limited, **likely))
        over |= ended[t]
        if next_routes is not None and over.any():
            again = np.flatnonzero(over).tolist()
            driving.begin(again, next_routes(len(again)))
            over[:] = False
    running = np.flatnonzero(~ended[taken - 1] & decided[taken - 1])
    if values and len(running):
        next_value[taken - 1, running] = _values(model, _decide(model, driving, running, **likely))
    means = {name: np.concatenate(parts) for name, parts in terms.items()}
    totals = {name: np.concatenate(parts) for name, parts in episodes.items()}
    finished = len(next(iter(totals.values())))
    return Segment(
        record=join_records(records),
        logprobs=torch.cat(logprobs),
        decided=decided[:taken],
        sampled=sampled[:taken],
        counted=(decided & ~left_out & ~_spoilt(failed if values else failed | left_out, ended))[:taken],
        rewards=rewards[:taken],
        ended=ended[:taken],
        values=value[:taken],
        next_values=next_value[:taken],
        invalid_answers=answers,
        terms={name: float(part.mean(dtype=np.float64)) for name, part in means.items() if len(part)},
        episodes={name: float(part.mean(dtype=np.float64)) for name, part in totals.items()} if finished else {},
        finished=finished,
        sample_s=sample_s,
        score_s=time.perf_counter() - started - sample_s,
    )


def _decide(model: VLAInterface, driving: Driving, rows: npt.NDArray[np.int64], **how: Any) -> Any:
    assert driving.observation is not None
    inputs = VLAInput.batch(driving.observation)
    with torch.no_grad():
        return model.predict([inputs[n] for n in rows.tolist()], **how)


def _values(model: VLAInterface, prediction: Any) -> FloatArray:
    if prediction.values is None:
        raise NotImplementedByModel(f"{type(model).__name__} cannot be trained with ppo: predict gives no values")
    values: FloatArray = prediction.values.float().cpu().numpy()
    return values


def _spoilt(failed: BoolArray, ended: BoolArray) -> BoolArray:
    """[T, N] decisions of episodes in which something failed: that one, and those before it back to the beginning."""
    spoilt = failed.copy()
    for t in reversed(range(len(failed) - 1)):
        spoilt[t] |= spoilt[t + 1] & ~ended[t]
    return spoilt
