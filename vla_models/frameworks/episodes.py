"""Episodes of a VectorEnv, decision by decision, with the bookkeeping that every framework wants.

``Episodes`` counts returns and lengths, ends a row whose world failed (its reward becomes NaN, never 0), gives an answer that
is no plan the reward that is configured for it, leaves rows that are over alone, and starts new ones where it is asked to. It
is written against the environment contract alone (docs/architecture.md): one-decision environments and many-decision ones go
the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv

from vla_models.errors import ConfigError, SceneError
from vla_models.inputs import INVALID_PLAN

Row = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Decided:
    """What one decision of all N rows led to."""

    observation: Mapping[str, Any]
    """What each row sees next; where a new episode was started, its first observation."""
    final_observation: Mapping[str, Any] | None
    """What each row saw before new episodes were started; None unless one was."""
    rewards: npt.NDArray[np.float32]
    """[N]; NaN where the world failed or an answer without a plan is to be left out, 0 for rows that were over before."""
    terminated: Row
    """[N] the task ended with this decision, its world failed, or it is left out."""
    truncated: Row
    """[N] a limit was reached with this decision."""
    totals: dict[str, npt.NDArray[np.float32]]
    """[N] each: ``return``, ``decisions``, ``invalid_answers``, ``valid`` (0 or 1), every metric, and every reward term as
    ``term/<name>`` summed over the episode. Rows that are not valid have 0 everywhere but in ``invalid_answers``, so a sum over
    rows divided by the sum of ``valid`` is a mean."""


class Episodes:
    """N rows of ``env``.

    Args:
        env: with ``AutoresetMode.DISABLED``.
        next_scene: name of the scene with which a row goes on when its episode is over; None leaves it over.
        invalid: reward of a decision whose answer is no plan, or "exclude", which ends its episode like a failed world
            (``reward.invalid``).
    """

    def __init__(
        self,
        env: VectorEnv,
        next_scene: Callable[[int], str] | None = None,
        *,
        invalid: float | Literal["exclude"] = 0.0,
    ) -> None:
        if env.metadata.get("autoreset_mode") is not AutoresetMode.DISABLED:
            raise ConfigError(
                f"environment: {type(env).__name__} resets its rows by itself; frameworks choose the scenes, so its metadata "
                "must say autoreset_mode: AutoresetMode.DISABLED"
            )
        self.env, self.next_scene, self.invalid = env, next_scene, invalid
        self.over: Row = np.ones(env.num_envs, dtype=np.bool_)
        self._scenes: list[str] = [""] * env.num_envs
        self._observation: Mapping[str, Any] = {}
        self._failed: Row = np.zeros(env.num_envs, dtype=np.bool_)
        self._terms: tuple[str, ...] | None = None
        self._counted: tuple[str, ...] = ()
        self._measured: tuple[str, ...] = ()
        self._sums = self._metrics = np.zeros((0, env.num_envs), dtype=np.float32)  # a row for each of these names

    @property
    def scenes(self) -> list[str]:
        """Which scene each row is in."""
        return list(self._scenes)

    def begin(self, scenes: Sequence[str]) -> Mapping[str, Any]:
        """Start an episode in every row; returns the observation."""
        self._scenes = list(scenes)
        self._observation, _ = self.env.reset(options={"scenes": self._scenes})
        self._forget(np.ones(self.env.num_envs, dtype=np.bool_))
        return self._observation

    def decide(self, plans: npt.NDArray[np.floating[Any]], planned: Row | None = None) -> Decided:
        """Execute plans [N, T, 3] in the rows that are not over.

        planned: [N] False where the answer was no plan (``VLAPrediction.valid``): the car brakes. None: all are plans.
        """
        running = ~self.over
        unplanned = np.zeros_like(running) if planned is None else running & ~planned
        rewards = np.zeros(self.env.num_envs, dtype=np.float32)
        terminated, truncated = np.zeros_like(running), np.zeros_like(running)
        if running.any():
            plans = np.where((running & ~unplanned)[:, None, None], plans, INVALID_PLAN)
            self._observation, reward, ended, limit, info = self.env.step(plans)
            failed = running & ~np.asarray(info["valid"], dtype=np.bool_)
            if self.invalid == "exclude":
                failed |= unplanned
            else:
                reward = np.where(unplanned, self.invalid, reward)
            rewards = np.where(failed, np.nan, np.where(running, reward, 0.0)).astype(np.float32)
            terminated = running & (np.asarray(ended, dtype=np.bool_) | failed)
            truncated = running & np.asarray(limit, dtype=np.bool_) & ~terminated
            self._count(running, failed, rewards, unplanned, info)
            self.over = self.over | terminated | truncated
        totals = self._totals()
        final = None
        if self.next_scene is not None and self.over.any():
            final = self._observation
            self._go_on(self.over.copy())
        return Decided(self._observation, final, rewards, terminated, truncated, totals)

    def _go_on(self, rows: Row) -> None:
        """Start new episodes in some rows."""
        assert self.next_scene is not None
        for row in np.flatnonzero(rows):
            self._scenes[row] = self.next_scene(int(row))
        options: dict[str, Any] = {"scenes": self._scenes}
        if not rows.all():  # gymnasium's way to reset some rows
            options["reset_mask"] = rows
        self._observation, _ = self.env.reset(options=options)
        self._forget(rows)

    def _forget(self, rows: Row) -> None:
        self.over = self.over & ~rows
        self._failed = self._failed & ~rows
        self._sums[:, rows] = 0.0
        self._metrics[:, rows] = 0.0

    def _count(
        self, running: Row, failed: Row, rewards: npt.NDArray[np.float32], unplanned: Row, info: Mapping[str, Any]
    ) -> None:
        self._failed = self._failed | failed
        terms, measured = tuple(info["terms"]), tuple(info["metrics"])
        if self._terms is None:
            self._terms, self._measured = terms, measured
            self._counted = ("return", "decisions", "invalid_answers", *(f"term/{name}" for name in terms))
            self._sums, self._metrics = (np.zeros((len(n), len(running)), np.float32) for n in (self._counted, measured))
        if (terms, measured) != (self._terms, self._measured):
            raise SceneError("the environment has changed the names of its terms or metrics from one step to another")
        added = np.array([rewards, running, unplanned, *info["terms"].values()], dtype=np.float32)
        self._sums += np.where(running, added, np.float32(0.0))
        if measured:
            latest = np.array([*info["metrics"].values()], dtype=np.float32)
            self._metrics = np.where(running, latest, self._metrics)

    def _totals(self) -> dict[str, npt.NDArray[np.float32]]:
        whole = np.where(self._failed, np.float32(0.0), np.concatenate([self._sums, self._metrics]))
        totals = dict(zip((*self._counted, *self._measured), whole, strict=True))
        unanswered = self._sums[2].copy() if self._counted else np.zeros(len(self._failed), dtype=np.float32)
        return {**totals, "invalid_answers": unanswered, "valid": (~self._failed).astype(np.float32)}
