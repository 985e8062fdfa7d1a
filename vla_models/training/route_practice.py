"""Practice in Bench2Drive: routes are driven on and on, and an update learns from a stretch of each.

GRPO: the G rows of a group begin an update in one and the same state, sample a plan each, drive on with the most likely plans
for some decisions, and are compared by what they earned; then all of them go on from one branch, drawn at random, so that
states come from the policy's own driving. PPO: every row drives for itself and samples every plan, values bootstrap what comes
after the update, and the next route begins as soon as one is over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vla_models.errors import SceneError
from vla_models.scoring.bench2drive import WORLD
from vla_models.training.checkpoint import data_order, random_stream
from vla_models.training.evaluate_routes import ROUTE_SCORES, RouteEvaluation, evaluate_routes
from vla_models.training.objective import discounted_returns, generalised_advantages, group_advantages, normalised
from vla_models.training.practice import Batch, Practice, Result
from vla_models.training.progress import Bar
from vla_models.training.route_imitation import expert_record
from vla_models.training.route_segments import Driving, Segment, drive_segment
from vla_models.training.routes import make_route_env

if TYPE_CHECKING:
    from vla_models.config import VLAConfig
    from vla_models.envs.bench2drive import Bench2DriveEnv
    from vla_models.inputs import VLASpec
    from vla_models.interface import VLAInterface

EVALUATED_AT_ONCE: Final = 16
"""Rows of the held-out evaluation, at most."""
BASELINES: Final = ("constant_velocity", "rule_based")
"""Drivers that every result is compared with."""


@dataclass(frozen=True)
class RouteResult:
    """A ``RouteEvaluation`` as numbers of all held-out routes: NaN for those whose world failed."""

    found: RouteEvaluation
    tokens: tuple[str, ...]

    @property
    def invalid_answers(self) -> int:
        """Answers that were no plan."""
        return int(self.found.invalid_answers.sum())

    def means(self) -> dict[str, float]:
        """``ROUTE_SCORES``; "score" is the driving score, and ``failed_routes`` are those whose world failed."""
        means = self.found.means()
        return {"score": means["driving_score"], **means, "failed_routes": float(len(self.found.failed))}

    def arrays(self, name: str) -> dict[str, npt.NDArray[Any]]:
        """``<name>_score`` and ``<name>_<each of ROUTE_SCORES>``, [R]."""
        place = {token: i for i, token in enumerate(self.tokens)}
        at = [place[route.id] for route in self.found.routes]
        out = {}
        for key in ROUTE_SCORES:
            out[key] = np.full(len(self.tokens), np.nan)
            out[key][at] = self.found.scores[key]
        return {f"{name}_{key}": values for key, values in {"score": out["driving_score"], **out}.items()}


class RoutePractice(Practice):
    """Routes to learn on, and routes to evaluate on.

    Args:
        config: the run's configuration.
        spec: of the model that will drive.

    Raises:
        ConfigError: if the environment cannot be made as it is configured.
        SceneError: for a route that cannot be read or staged, or if every world of an update failed.
    """

    drivers = ("constant_velocity", "imitation", "rl", "rule_based")
    score = WORLD

    def __init__(self, config: VLAConfig, spec: VLASpec) -> None:
        self.config, self.spec = config, spec
        self._group = config.algorithm.group_size if config.algorithm.name == "grpo" else 1
        self._begun = 0
        self._driving: Driving | None = None

    @cached_property
    def env(self) -> Bench2DriveEnv:
        """The training routes."""
        training, algorithm = self.config.training, self.config.algorithm
        return make_route_env(self.config, "train", training.scenes_per_step * algorithm.group_size, self.spec)

    @cached_property
    def heldout(self) -> Bench2DriveEnv:
        """The routes to evaluate on."""
        return make_route_env(self.config, "heldout", self._heldout_rows, self.spec)

    @property
    def _heldout_rows(self) -> int:
        env = self.config.environment
        return EVALUATED_AT_ONCE if env.routes is not None else min(EVALUATED_AT_ONCE, env.heldout_scenes)

    # -- imitation -------------------------------------------------------------------------------------------------------

    def imitation_record(self, model: VLAInterface) -> dict[str, Tensor]:
        """What the rule-based driver decides on the training routes."""
        settings = self.config.training.imitation
        seed = random_stream(self.config.seed, "expert", 0)
        limit = settings.steps * settings.batch_size
        return expert_record(model, self.env, self.config.environment.dataset, seed=seed, limit=limit)

    # -- reinforcement learning ------------------------------------------------------------------------------------------

    def collect(self, model: VLAInterface, step: int) -> Batch:
        """``decisions_per_step`` decisions of every row."""
        config, algorithm = self.config, self.config.algorithm
        driving = self._under_way()
        ppo = algorithm.name == "ppo"
        stream = random_stream(config.seed, "rl", step)
        segment = drive_segment(
            model,
            driving,
            config.training.decisions_per_step,
            temperature=algorithm.temperature,
            top_p=algorithm.top_p,
            generator=torch.Generator().manual_seed(stream),
            invalid=config.reward.invalid,
            group_size=self._group,
            next_routes=self._next_routes if ppo else None,
        )
        taken, counted = segment.sampled, segment.counted
        if not (taken & counted).any():
            raise SceneError(
                f"rl step {step + 1}: none of {int(taken.sum())} decisions can be learned from: "
                f"{segment.invalid_answers} answers were no plans, and in the other episodes the world failed"
            )
        advantages, returns, log = self._compare_values(segment) if ppo else self._compare_groups(segment)
        if not ppo:
            self._go_on_from_one(segment, np.random.default_rng(stream))
        return Batch(
            record=segment.record,
            logprobs=segment.logprobs,
            advantages=torch.from_numpy(advantages[taken]),
            returns=None if returns is None else torch.from_numpy(returns[taken]),
            valid=torch.from_numpy(counted[taken]),
            together=self._group,
            log={
                "reward_mean": float(segment.rewards[counted].mean(dtype=np.float64)),
                "reward_std": float(segment.rewards[counted].std(dtype=np.float64)),
                **log,
                "decisions": int(segment.decided.sum()),
                "invalid": int((taken & ~counted).sum()),
                "invalid_answers": segment.invalid_answers,
                "episodes": segment.finished,
                **segment.episodes,
                **{f"term/{name}": mean for name, mean in segment.terms.items()},
            },
            sample_s=segment.sample_s,
            score_s=segment.score_s,
        )

    def _under_way(self) -> Driving:
        """The rows, begun with the first routes if this is the first update."""
        if self._driving is None:
            self._driving = Driving(self.env)
            routes = self._next_routes(self.env.num_envs // self._group)
            self._driving.begin(range(self.env.num_envs), np.repeat(routes, self._group).tolist())
        return self._driving

    def _next_routes(self, count: int) -> list[int]:
        """The next routes in the run's order."""
        drawn = [int(data_order(self.config.seed, "rl", self._begun + k, len(self.env.routes), 1)[0]) for k in range(count)]
        self._begun += count
        return drawn

    def _compare_groups(self, segment: Segment) -> tuple[npt.NDArray[np.float32], None, dict[str, float]]:
        """GRPO's advantages [T, N] of the first decision: what a row earned with it and after it, less what its group did."""
        algorithm = self.config.algorithm
        earned = discounted_returns(segment.rewards, segment.ended, algorithm.gamma)[0].reshape(-1, self._group)
        counted = torch.from_numpy(segment.counted[0]).reshape(earned.shape)
        centred = group_advantages(torch.from_numpy(earned), counted, normalize=False)
        used = group_advantages(torch.from_numpy(earned), counted) if algorithm.normalize_advantage else centred
        compared = counted.sum(dim=1) > 1
        signal = (centred != 0).any(dim=1)[compared].float().mean().item() if compared.any() else 0.0
        advantages = np.zeros_like(segment.rewards)
        advantages[0] = used.flatten().numpy()
        return advantages, None, {"groups_with_signal": signal}

    def _compare_values(self, segment: Segment) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], dict[str, float]]:
        """PPO's advantages and returns [T, N] by generalised advantage estimation."""
        algorithm = self.config.algorithm
        advantages = generalised_advantages(
            segment.rewards, segment.values, segment.next_values, segment.ended, algorithm.gamma, algorithm.gae_lambda
        )
        returns = advantages + segment.values
        counted = torch.from_numpy(segment.counted)
        raw = torch.where(counted, torch.from_numpy(advantages), torch.zeros(()))
        used = normalised(raw, counted) if algorithm.normalize_advantage else raw
        explained = np.var((returns - segment.values)[segment.counted]) / max(np.var(returns[segment.counted]), 1e-8)
        return used.numpy(), returns, {"explained_variance": float(1.0 - explained)}

    def _go_on_from_one(self, segment: Segment, random: np.random.Generator) -> None:
        """Every group goes on from one of its branches, drawn among those still driving; without one, with the next route."""
        driving = self._driving
        assert driving is not None
        over: npt.NDArray[np.bool_] = np.logical_or.reduce(segment.ended)
        sources, finished = list(range(self.env.num_envs)), list[int]()
        for first in range(0, self.env.num_envs, self._group):
            rows = np.arange(first, first + self._group)
            going_on = rows[~over[rows]]
            if len(going_on):
                sources[first : first + self._group] = [int(random.choice(going_on))] * self._group
            else:
                finished += rows.tolist()
        driving.branch(sources)
        if finished:
            routes = np.repeat(self._next_routes(len(finished) // self._group), self._group)
            driving.begin(finished, routes.tolist())

    # -- results ---------------------------------------------------------------------------------------------------------

    def evaluate(self, model: VLAInterface) -> RouteResult:
        """Every held-out route, driven greedily."""
        with Bar("held-out routes", len(self.heldout.routes)) as bar:
            return RouteResult(evaluate_routes(model, self.heldout, progress=bar), tuple(self.heldout.tokens))

    def baselines(self) -> dict[str, Result]:
        """Constant velocity and the rule-based driver. They see the world and not pictures, so none are drawn."""
        blind = make_route_env(self.config, "heldout", self._heldout_rows, self.spec, cameras=())
        return {name: RouteResult(evaluate_routes(name, blind), tuple(blind.tokens)) for name in BASELINES}

    def heldout_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Ids of the routes, their scenario types and towns."""
        routes = self.heldout.routes
        return {
            "tokens": np.array([route.id for route in routes]),
            "scenarios": np.array([route.theme for route in routes]),
            "towns": np.array([route.town for route in routes]),
        }

    # -- checkpoints -----------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """The route of every group (PPO: row), the plans that it has driven there, and how many routes were begun."""
        driving = self._driving
        if driving is None:
            return {}
        plans = driving.plans[:: self._group]
        driven = [plan for row in plans for plan in row]
        empty = np.zeros((0, self.env.plan_steps, 3), dtype=np.float32)
        return {
            "scenes": torch.tensor(driving.scenes[:: self._group]),
            "decisions": torch.tensor([len(row) for row in plans]),
            "plans": torch.from_numpy(np.stack(driven) if driven else empty),
            "begun": torch.tensor(self._begun),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Drive the plans of a ``state`` again, and stand where its rows stood."""
        self._begun = int(state["begun"])
        ends = np.cumsum(state["decisions"].numpy())
        parts = np.split(state["plans"].numpy(), ends[:-1])
        self._driving = Driving(self.env)
        self._driving.replay(
            np.repeat(state["scenes"].numpy(), self._group).tolist(),
            [list(part) for part in parts for _ in range(self._group)],
        )
