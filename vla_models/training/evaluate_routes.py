"""Held-out evaluation in closed loop: every route of a ``Bench2Drive-v0`` driven once, by a model or by a baseline.

The numbers are Bench2Drive's own over its routes in an embedded kinematic world (``scoring.bench2drive.WORLD``); they are no
leaderboard numbers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from vla_models.envs.bench2drive import Bench2DriveEnv
from vla_models.errors import ConfigError, PlanError, SceneError, did_you_mean
from vla_models.inputs import INVALID_PLAN, VLAInput, check_plan
from vla_models.scenes.bench2drive.routes import Route
from vla_models.scoring.bench2drive.abilities import abilities
from vla_models.scoring.bench2drive.results import Record, episode_motion, write_results
from vla_models.scoring.bench2drive.score import efficiency, is_success
from vla_models.simulation.baselines import blind_follower, constant_velocity, rule_based
from vla_models.simulation.tables import FloatArray
from vla_models.simulation.world import EpisodeRecord, World

if TYPE_CHECKING:
    from vla_models.interface import VLAInterface


class Driver(Protocol):
    """A baseline: it sees the whole world."""

    def __call__(self, world: World, *, steps: int, dt: float) -> FloatArray:
        """Plans [N, steps, 3] of the rear axle, ego frame, ``dt`` seconds apart."""


ROUTE_BASELINES: Final[dict[str, Driver]] = {
    "constant_velocity": constant_velocity,
    "blind_follower": blind_follower,
    "rule_based": rule_based,
}
"""Drivers that need no model, by name: what every result is compared with."""

ROUTE_SCORES: Final = (
    "driving_score", "route_completion", "infraction_penalty", "success", "efficiency", "smoothness",
)  # fmt: skip
"""Numbers of a route: 0 to 100, 0 to 100, 0 to 1, 0 or 1, percent of the traffic's speed (NaN: there was none), 0 to 1 (share
of smooth chunks, by Bench2Drive's own rule; NaN below three ticks)."""


@dataclass(frozen=True)
class RouteEvaluation:
    """One driver on R routes, in the order of the environment's. Routes whose world failed are left out and named."""

    routes: tuple[Route, ...]
    records: tuple[Record, ...]
    """[R] official route records."""
    episodes: tuple[EpisodeRecord, ...]
    """[R] events and logs."""
    decisions: npt.NDArray[np.int64]
    """[R] how many each route took."""
    invalid_answers: npt.NDArray[np.int64]
    """[R] how many of these were no plan."""
    failed: tuple[str, ...] = ()
    """Ids of the routes whose world failed (a number in it was not finite)."""

    def __len__(self) -> int:
        return len(self.routes)

    @cached_property
    def scores(self) -> dict[str, npt.NDArray[np.float64]]:
        """``ROUTE_SCORES`` -> [R]."""
        rows = [
            (
                float(record["scores"]["score_composed"]),
                float(record["scores"]["score_route"]),
                float(record["scores"]["score_penalty"]),
                float(is_success(record["status"], record["infractions"])),
                efficiency(record["infractions"]),
                episode_motion(episode)[1],
            )
            for record, episode in zip(self.records, self.episodes, strict=True)
        ]
        return dict(zip(ROUTE_SCORES, np.array(rows, dtype=np.float64).reshape(-1, len(ROUTE_SCORES)).T, strict=True))

    def means(self, rows: npt.ArrayLike | None = None) -> dict[str, float]:
        """Mean of every score over the routes (or over ``rows`` of them: a mask or indices). A score that none of them has is
        left out, never made up."""
        means = {}
        for name, values in self.scores.items():
            chosen = values if rows is None else values[np.asarray(rows)]
            known = chosen[np.isfinite(chosen)]
            if len(known):
                means[name] = float(known.mean())
        return means

    def scenarios(self) -> dict[str, dict[str, float]]:
        """Scenario type -> ``means`` over its routes, and ``routes``: how many these are."""
        themes = np.array([route.theme or "no scenario" for route in self.routes])
        return {
            str(theme): {"routes": float((themes == theme).sum()), **self.means(themes == theme)} for theme in np.unique(themes)
        }

    def abilities(self) -> dict[str, float]:
        """Bench2Drive's five abilities and their mean, 0..1; NaN for one that no route is about."""
        return abilities(self.records, self.routes)

    def write(self, folder: str | Path, name: str = "results") -> Path:
        """Write the official ``folder/name.json``, and a ``metric_info.json`` per route in a folder of its own."""
        motion: dict[str, dict[str, Any]] = {
            record["save_name"]: episode_motion(episode)[0] for record, episode in zip(self.records, self.episodes, strict=True)
        }
        return write_results(folder, self.records, motion, name)


def evaluate_routes(
    policy: VLAInterface | str, env: Bench2DriveEnv, *, progress: Callable[[int, int], None] | None = None
) -> RouteEvaluation:
    """Drive every route of ``env`` once, the longest first; a row takes the next route as soon as its own is over.

    Results do not depend on ``env.num_envs``, but for a model's rounding (its batches are then of another size).

    Args:
        policy: a model, which gives its most likely plan at every decision, or the name of one of ``ROUTE_BASELINES``. In place
            of an answer that is no plan the car brakes; such answers are counted.
        env: its cameras must be those of the model, its ``plan_steps`` and ``plan_dt`` the model's horizon and dt.
        progress: called with (routes that are over, routes in all).

    Raises:
        ConfigError: for an unknown baseline.
        PlanError: if the model's plans are not those of the environment, or not finite.
        SceneError: if the world of every route failed.
    """
    decide = decider(policy)
    total, rows = len(env.routes), env.num_envs
    waiting = deque(sorted(range(total), key=lambda i: -env.routes[i].length))
    at = [waiting.popleft() if waiting else 0 for _ in range(rows)]
    active = np.arange(rows) < total
    records: dict[int, tuple[Record, EpisodeRecord]] = {}
    decisions, invalid = np.zeros(total, dtype=np.int64), np.zeros(total, dtype=np.int64)
    failed: list[int] = []
    observation, _ = env.reset(options={"scenes": at})
    while active.any():
        running = np.flatnonzero(active)
        plans, planned = decide(env, observation, running)
        routes = np.array(at)[running]
        decisions[routes] += 1
        invalid[routes] += ~planned
        driven = np.zeros((rows, env.plan_steps, 3))
        driven[running] = plans
        observation, _, terminated, truncated, info = env.step(driven)
        over, broken = np.zeros(rows, dtype=np.bool_), np.zeros(rows, dtype=np.bool_)
        for n in running.tolist():
            broken[n] = not info["valid"][n]
            over[n] = broken[n] or terminated[n] or truncated[n]
            if broken[n]:
                failed.append(at[n])
            elif over[n]:
                records[at[n]] = info["results"][n], env.record(n)
            if over[n] and progress is not None:
                progress(len(records) + len(failed), total)
        active &= ~over
        for n in np.flatnonzero(over)[: len(waiting)].tolist():
            at[n] = waiting.popleft()
            active[n] = True
        if (begin := over & active | broken).any():  # a broken world is not looked at again, whether or not a route waits
            observation, _ = env.reset(options={"scenes": at, "reset_mask": begin})
    if not records:
        raise SceneError(f"the world of each of the {total} routes failed: a number in it was not finite; nothing is scored")
    counted = sorted(records)
    return RouteEvaluation(
        routes=tuple(env.routes[i] for i in counted),
        records=tuple(records[i][0] for i in counted),
        episodes=tuple(records[i][1] for i in counted),
        decisions=decisions[counted],
        invalid_answers=invalid[counted],
        failed=tuple(env.tokens[i] for i in sorted(failed)),
    )


Decide = Callable[[Bench2DriveEnv, Mapping[str, Any], npt.NDArray[np.int64]], tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]]
"""Environment, its observation, R rows -> plans [R, T, 3] to drive, and whether the answer was one [R] (else they brake)."""


def decider(policy: VLAInterface | str) -> Decide:
    """What ``policy``, a model or the name of a baseline, decides: see ``evaluate_routes``, whose errors it raises."""
    return _baseline(policy) if isinstance(policy, str) else _model(policy)


def _baseline(name: str) -> Decide:
    if name not in ROUTE_BASELINES:
        raise ConfigError(f"there is no baseline {name!r} for Bench2Drive; {did_you_mean(name, ROUTE_BASELINES)}")
    driver = ROUTE_BASELINES[name]

    def decide(
        env: Bench2DriveEnv, _: Mapping[str, Any], rows: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        return driver(env.world, steps=env.plan_steps, dt=env.plan_dt)[rows], np.ones(len(rows), dtype=np.bool_)

    return decide


def _model(model: VLAInterface) -> Decide:
    def decide(
        env: Bench2DriveEnv, observation: Mapping[str, Any], rows: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        inputs: Sequence[VLAInput] = VLAInput.batch(observation)
        decided = model.predict([inputs[n] for n in rows.tolist()], deterministic=True)
        if abs(decided.dt - env.plan_dt) > 1e-9:
            raise PlanError(
                f"the model's poses are {decided.dt:g} s apart, the environment's {env.plan_dt:g} s; make it with "
                f"plan_dt={decided.dt:g}"
            )
        plans = check_plan(decided.waypoints, env.plan_steps, what="the model's plan")
        if plans.shape != (len(rows), env.plan_steps, 3):
            raise PlanError(f"the model answered {len(rows)} inputs with plans of shape {plans.shape}")
        planned = np.ones(len(rows), dtype=np.bool_) if decided.valid is None else np.asarray(decided.valid, dtype=np.bool_)
        return np.where(planned[:, None, None], plans, np.float32(INVALID_PLAN)), planned

    return decide
