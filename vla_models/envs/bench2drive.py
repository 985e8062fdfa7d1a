"""Bench2Drive's routes as a gymnasium vector environment over the embedded world: a plan in, some ticks of driving, a look.

Batch first: N episodes are one call. An episode is many decisions: each plan is driven for its first ticks, then the next one
is asked for (receding horizon). Nothing resets by itself; rows are reset by a mask. Scores are those of the embedded world
("Bench2Drive routes, kinematic world"), never leaderboard numbers.
"""

from __future__ import annotations

import copy
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from vla_models.envs.route_views import AHEAD, Prepared, RouteCameras, ego_features, route_ahead, route_commands
from vla_models.errors import ConfigError, PlanError, SceneError, did_you_mean
from vla_models.inputs import EGO_FEATURES, INSTRUCTION, check_plan
from vla_models.render.rigs import bench2drive_cameras
from vla_models.scenes.bench2drive.made_routes import EASY_TOWNS, generate_routes
from vla_models.scenes.bench2drive.route_files import read_routes
from vla_models.scenes.bench2drive.routes import Route
from vla_models.scenes.bench2drive.scenario_types import BENCH2DRIVE_TYPES
from vla_models.scenes.scene import COMMANDS
from vla_models.scoring.bench2drive.results import Record, episode_record
from vla_models.scoring.bench2drive.rewards import ROUTE_TERMS, RouteReward, Standing, route_terms, standing
from vla_models.simulation.episodes import Episode, stage
from vla_models.simulation.tables import MAX_TICKS, PLAN_POSES, TICK, Event
from vla_models.simulation.vehicle import REAR_TO_CENTER
from vla_models.simulation.world import EpisodeRecord, Snapshot, World

ROUTE_METRICS: Final = ("driving_score", "route_completion", "infraction_penalty", "success")
"""Metrics of a row as it stands: 0 to 100, 0 to 100, 0 to 1, 0 or 1."""

_DRAWS: Final = 20
"""Routes of a type that are drawn, at most, until one can be staged."""


@dataclass(frozen=True)
class RouteSpec:
    """Routes that are generated: ``count`` of them go through ``types`` in turn, each in a town that has a place for its type.

    Each is staged once as it is made (about 0.05 s). Raises ``SceneError`` then, for an unknown town or type or one that has no
    place.
    """

    types: tuple[str, ...] = BENCH2DRIVE_TYPES
    towns: tuple[str, ...] = EASY_TOWNS
    count: int = len(BENCH2DRIVE_TYPES)
    seed: int = 0


@dataclass(frozen=True)
class State:
    """What ``Bench2DriveEnv.snapshot`` gives: some rows, exactly."""

    scenes: tuple[str, ...]
    world: Snapshot | None
    """None before the first reset."""
    random: dict[str, Any]


class Bench2DriveEnv(VectorEnv):
    """N episodes at once; ``gymnasium.make_vec("Bench2Drive-v0", num_envs=N, routes=…)`` after ``import vla_models.envs``.

    Args:
        num_envs: episodes per batch (rows).
        routes: what episodes are drawn from: routes, the path of a leaderboard XML, or a ``RouteSpec``. Left out,
            ``RouteSpec()``: one generated route of each of Bench2Drive's 44 scenario types.
        skip_bad: leave out routes that cannot be read or staged, and list them in ``skipped``, instead of raising. Every route
            is then staged once (0.05 s for 150 m of route, 1.3 s for 8 km).
        reward: a ``RouteReward``, or its keyword arguments as a dict ({"type": "driving", "weights": {…}}).
        cameras: which of Bench2Drive's six the car has ("front", "front_left", …); none makes ``images`` empty and steps fast.
        image_size: (height, width) of every picture, pixels.
        plan_steps, plan_dt: T poses of a plan, and the seconds between two of them; together at least 1 s.
        ticks: ticks of 0.05 s that a decision drives of its plan.
        max_ticks: ticks after which an episode is truncated (officially 4000).
        controller: "pid" is Bench2Drive's own, "tracker" follows a plan as well as the vehicle can.
        vehicles: of the background traffic around each ego.
        traffic_seed: with the route it determines an episode: the same route is the same situation every time.

    ``step`` takes plans f32/f64 [N, T, 3]: x, y, heading of the rear axle in the ego frame at ``plan_dt``, 2·``plan_dt``, …
    ``terminated``: the route is completed, or the ego deviated from it or stood still too long; a collision ends nothing, as
    officially. ``truncated``: ``max_ticks``. Rows that are over stay so until they are reset: they ignore their plan (which
    must be finite all the same) and have reward 0.
    ``info`` of a step: ``terms`` {name: f32 [N]} what this decision brought (``ROUTE_TERMS``), ``metrics`` {name: f32 [N]} how
    the row stands (``ROUTE_METRICS``), ``scene`` list[str] route ids, ``valid`` bool [N] (an invalid row, whose world has a
    number that is not finite, has reward NaN), ``results`` list[Record | None]: the official record of each row whose episode
    ended with this decision.

    Raises:
        SceneError: for a route that cannot be read or staged, or an unknown route id.
        PlanError: if plans have the wrong shape or are not finite.
        ConfigError: for settings that do not fit together.
    """

    metadata = {"autoreset_mode": AutoresetMode.DISABLED, "render_modes": []}  # noqa: RUF012  # gymnasium declares it so

    def __init__(
        self,
        num_envs: int = 1,
        *,
        routes: Sequence[Route] | str | Path | RouteSpec | None = None,
        skip_bad: bool = False,
        reward: RouteReward | Mapping[str, Any] | None = None,
        cameras: Sequence[str] = ("front",),
        image_size: tuple[int, int] = (72, 128),
        plan_steps: int = 8,
        plan_dt: float = 0.5,
        ticks: int = 10,
        max_ticks: int = MAX_TICKS,
        controller: Literal["pid", "tracker"] = "pid",
        vehicles: int = 12,
        traffic_seed: int = 0,
    ) -> None:
        if not (plan_dt > 0.0 and plan_steps * plan_dt >= 1.0):
            raise ConfigError(f"Bench2Drive-v0: a plan of {plan_steps} poses every {plan_dt} s covers less than 1 s")
        if plan_steps >= PLAN_POSES:
            raise ConfigError(f"Bench2Drive-v0: plan_steps is {plan_steps}; a plan has at most {PLAN_POSES - 1} poses")
        if not 1 <= ticks <= plan_steps * plan_dt / TICK + 1e-9:
            raise ConfigError(f"Bench2Drive-v0: ticks is {ticks}; a plan of {plan_steps * plan_dt:g} s has 1 to "
                              f"{plan_steps * plan_dt / TICK:.0f} ticks of {TICK} s")  # fmt: skip
        if max_ticks < ticks:
            raise ConfigError(f"Bench2Drive-v0: max_ticks is {max_ticks}, below the {ticks} ticks of a decision")
        known = [spec.name for spec in bench2drive_cameras()]
        for name in cameras:
            if name not in known:
                raise ConfigError(f"Bench2Drive-v0: there is no camera {name!r}; {did_you_mean(name, known)}")
        self.num_envs = num_envs
        self.reward = reward if isinstance(reward, RouteReward) else RouteReward(**(reward or {}))
        self.plan_steps, self.plan_dt, self.ticks, self.max_ticks = plan_steps, plan_dt, ticks, max_ticks
        self.controller, self.vehicles, self.traffic_seed = controller, vehicles, traffic_seed
        self._episodes = Prepared(self._stage, num_envs)
        skipped: tuple[str, ...] = ()
        if routes is None or isinstance(routes, RouteSpec):
            self.routes = self._generate(routes or RouteSpec())
        else:
            self.routes, skipped = _load(routes, skip_bad)
        if skip_bad:
            self.routes, unstaged = self._stageable()
            skipped = (*skipped, *unstaged)
        self.skipped: tuple[str, ...] = skipped
        """Routes that were left out (``skip_bad``), each with its error."""
        if not self.routes:
            raise SceneError("Bench2Drive-v0 has no routes" + "".join(f"\n  left out: {why}" for why in self.skipped))
        self.tokens: list[str] = [route.id for route in self.routes]
        self._index_of = {token: i for i, token in enumerate(self.tokens)}
        if len(self._index_of) < len(self.tokens):
            twice = next(token for i, token in enumerate(self.tokens) if token in self.tokens[:i])
            raise SceneError(f"two routes have the id {twice!r}; ids name episodes, so give each its own")
        self.max_decisions = -(-max_ticks // ticks)
        """Decisions of an episode, at most."""
        self._indices = np.zeros(num_envs, dtype=np.int64)
        self._standings: list[Standing] = []
        self._world: World | None = None
        self._commands: dict[int, npt.NDArray[np.int64]] = {}
        height, width = image_size
        specs = bench2drive_cameras(width, height, tuple(cameras), rear_axle=REAR_TO_CENTER)
        self._cameras = RouteCameras(specs, keep=num_envs)
        self._pictures: dict[str, npt.NDArray[np.uint8]] | None = None

        pictures: dict[str, spaces.Space[Any]] = {
            spec.name: spaces.Box(0, 255, (spec.height, spec.width, 3), np.uint8) for spec in specs
        }
        self.single_observation_space = spaces.Dict(
            {
                "images": spaces.Dict(pictures),
                "ego": spaces.Box(-np.inf, np.inf, (len(EGO_FEATURES),), np.float32),
                "route": spaces.Box(-np.inf, np.inf, (len(AHEAD), 2), np.float32),
                "command": spaces.Discrete(len(COMMANDS)),
                "text": spaces.Text(4096, charset=string.printable),
            }
        )
        self.single_action_space = spaces.Box(-np.inf, np.inf, (plan_steps, 3), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    @property
    def world(self) -> World:
        """The world that the rows are in, for drivers that see all of it (``simulation.baselines``) and for pictures."""
        if self._world is None:
            raise gymnasium.error.ResetNeeded("Bench2Drive-v0 has no world yet: call reset() first")
        return self._world

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin episodes. ``options``: ``scenes`` names the routes (N ids or indices); without, they are drawn at random.
        ``reset_mask`` (bool [N]) begins episodes in those rows alone, the others go on.

        Drawn episodes repeat no route until all have been used. The same seed draws the same routes.
        """
        if isinstance(seed, list):
            seed = int(np.random.SeedSequence([0 if s is None else s for s in seed]).generate_state(1)[0])
        super().reset(seed=seed)
        given = options or {}
        if unknown := sorted(set(given) - {"scenes", "reset_mask"}):
            raise SceneError(f"reset option {unknown[0]!r} is unknown; {did_you_mean(unknown[0], ['scenes', 'reset_mask'])}")
        rows = self._rows(given.get("reset_mask"))
        if given.get("scenes") is not None:
            chosen = self._look_up(given["scenes"])[rows]
        else:
            rounds = -(-len(rows) // len(self.routes))
            drawn = np.concatenate([self.np_random.permutation(len(self.routes)) for _ in range(rounds)])
            chosen = drawn[: len(rows)].astype(np.int64)
        episodes = {i: self._episodes(self.routes[i]) for i in dict.fromkeys(chosen.tolist())}
        self._indices[rows] = chosen
        if len(rows) == self.num_envs:
            self._world = World([episodes[int(i)] for i in chosen], self.controller, self.max_ticks)
            self._standings = [standing(self._world.record(n)) for n in range(self.num_envs)]
        else:
            for n, i in zip(rows.tolist(), chosen.tolist(), strict=True):
                self.world.reset(n, episodes[i])
                self._standings[n] = standing(self.world.record(n))
        return self._observe(rows.tolist()), {"scene": [self.tokens[i] for i in self._indices]}

    def step(self, actions: npt.ArrayLike) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Drive the first ``ticks`` ticks of plans [N, T, 3]; see the class for what comes back."""
        world = self.world
        running = ~world.done
        if not running.any():
            raise gymnasium.error.ResetNeeded("every episode of Bench2Drive-v0 is over: call reset()")
        plans = check_plan(np.asarray(actions), what="the batch of plans")
        if plans.shape != (self.num_envs, self.plan_steps, 3):
            raise PlanError(
                f"plans have shape {plans.shape}, expected ({self.num_envs}, {self.plan_steps}, 3): x, y, heading in the ego "
                f"frame every {self.plan_dt:g} s"
            )
        world.step(plans, dt=self.plan_dt, ticks=self.ticks)
        valid = np.isfinite(world.ego).all(axis=1)
        rewards = np.zeros(self.num_envs, dtype=np.float32)
        terms = {name: np.zeros(self.num_envs, dtype=np.float32) for name in ROUTE_TERMS}
        results: list[Record | None] = [None] * self.num_envs
        done = world.done
        for n in np.flatnonzero(running & valid).tolist():
            record = world.record(n)
            now = standing(record)
            brought = route_terms(self._standings[n], now, record)
            self._standings[n] = now
            rewards[n] = self.reward(brought)
            for name, value in brought.items():
                terms[name][n] = value
            if done[n]:
                results[n] = self._official(n, record)
        rewards[running & ~valid] = np.nan
        late = np.array([event == Event.ROUTE_TIMEOUT for event in world.ended])
        info = {
            "terms": terms,
            "metrics": self._metrics(),
            "scene": [self.tokens[i] for i in self._indices],
            "valid": valid,
            "results": results,
        }
        return self._observe(np.flatnonzero(running).tolist()), rewards, done & ~late, done & late, info

    def record(self, row: int) -> EpisodeRecord:
        """What has happened in a row so far: its events and its log of 20 rows a second."""
        return self.world.record(row)

    def snapshot(self, rows: Sequence[int] | None = None) -> State:
        """Everything that the next ``reset`` and ``step`` of ``rows`` (all by default) depend on; give it to ``restore``."""
        at = list(range(self.num_envs)) if rows is None else list(rows)
        return State(
            scenes=tuple(self.tokens[self._indices[n]] for n in at),
            world=None if self._world is None else self._world.snapshot(at),
            random=copy.deepcopy(dict(self.np_random.bit_generator.state)),
        )

    def restore(self, state: State, rows: Sequence[int] | None = None) -> Any:
        """Go back to a ``snapshot`` bit-exactly; returns the observation of all rows (None before the first reset).

        With ``rows``, put it into those rows alone and leave the random numbers as they are. A snapshot of one row fills all
        of them: a group that branches from one state.
        """
        if rows is None:
            self.np_random.bit_generator.state = copy.deepcopy(state.random)
        if state.world is None:
            self._world = None
            return None
        if (limit := state.world.rows.log.shape[1]) != self.max_ticks:
            raise SceneError(f"the snapshot is of episodes of {limit} ticks at most, here they have {self.max_ticks}")
        at = list(range(self.num_envs)) if rows is None else list(rows)
        count = len(state.scenes)
        if count not in (1, len(at)):
            raise SceneError(f"a snapshot of {count} rows cannot fill {len(at)}; take one of 1 row, or of as many")
        indices = self._look_up(list(state.scenes) * (len(at) if count == 1 else 1), count=len(at))
        if self._world is None:
            if len(at) < self.num_envs:
                raise gymnasium.error.ResetNeeded("restoring some rows needs a world for the others: call reset() first")
            episodes = state.world.episodes
            self._world = World([episodes[n % count] for n in range(self.num_envs)], self.controller, self.max_ticks)
            self._standings = [standing(self._world.record(n)) for n in range(self.num_envs)]
        self._world.restore(state.world, at)
        self._indices[at] = indices
        for n in at:
            self._standings[n] = standing(self._world.record(n))
        return self._observe(at)

    def close_extras(self, **kwargs: Any) -> None:
        """Free the cameras' buffers."""
        self._cameras.close()

    def _observe(self, changed: Sequence[int]) -> dict[str, Any]:
        """What all rows see; only those that have ``changed`` since the last look are drawn anew."""
        world = self.world
        routes = [self.routes[i] for i in self._indices]
        self._pictures = self._cameras.draw(world, routes, changed, self._pictures)
        command = np.empty(self.num_envs, dtype=np.int64)
        for n, (i, progress) in enumerate(zip(self._indices.tolist(), world.progress, strict=True)):
            if i not in self._commands:
                self._commands[i] = route_commands(self.routes[i])
            command[n] = self._commands[i][min(int(progress), len(self._commands[i]) - 1)]
        return {
            "images": {name: part.copy() for name, part in self._pictures.items()},
            "ego": ego_features(world),
            "route": route_ahead(world),
            "command": command,
            "text": [INSTRUCTION] * self.num_envs,
        }

    def _metrics(self) -> dict[str, npt.NDArray[np.float32]]:
        rows = [
            (s.score.driving_score, s.score.completion, s.score.penalty, float(s.success)) for s in self._standings
        ]  # in the order of ROUTE_METRICS
        return dict(zip(ROUTE_METRICS, np.array(rows, dtype=np.float32).T.copy(), strict=True))

    def _official(self, n: int, record: EpisodeRecord) -> Record:
        i = int(self._indices[n])
        return episode_record(self.routes[i], record, index=i, tick_limit=self.max_ticks)

    def _stage(self, route: Route) -> Episode:
        try:
            return stage(route, self.traffic_seed, vehicles=self.vehicles)
        except SceneError as error:
            named = str(error) if route.id in str(error) else f"route {route.id} ({route.town}): {error}"
            raise SceneError(f"{named}; skip_bad=True leaves such routes out") from None

    def _generate(self, spec: RouteSpec) -> tuple[Route, ...]:
        """The routes of ``spec``; one that cannot be staged is replaced by another draw of its type."""
        routes = generate_routes(spec.types, spec.count, spec.seed, spec.towns)
        for i, route in enumerate(routes):
            draws = np.random.default_rng([spec.seed, i])
            for left in reversed(range(_DRAWS)):
                try:
                    self._episodes(routes[i])
                    break
                except SceneError:
                    if left == 0:
                        raise
                    seed = int(draws.integers(2**31))
                    (routes[i],) = generate_routes((route.theme,), 1, seed, spec.towns)
        return tuple(routes)

    def _stageable(self) -> tuple[tuple[Route, ...], tuple[str, ...]]:
        """The routes that can be staged, and why the others cannot."""
        good, bad = list[Route](), list[str]()
        for route in self.routes:
            try:
                self._stage(route)
            except SceneError as error:
                bad.append(str(error))
            else:
                good.append(route)
        return tuple(good), tuple(bad)

    def _rows(self, mask: Any) -> npt.NDArray[np.int64]:
        """Rows to be reset."""
        if mask is None:
            return np.arange(self.num_envs)
        chosen = np.asarray(mask)
        if chosen.shape != (self.num_envs,) or chosen.dtype != np.bool_ or not chosen.any():
            raise SceneError(f"reset_mask must be bool [{self.num_envs}] with a True in it, not {chosen.dtype} {chosen.shape}")
        if self._world is None and not chosen.all():
            raise gymnasium.error.ResetNeeded("the first reset() of Bench2Drive-v0 must begin an episode in every row")
        return np.flatnonzero(chosen)

    def _look_up(self, names: Sequence[int | str], count: int | None = None) -> npt.NDArray[np.int64]:
        """Indices of routes given by id or index; as many as there are rows, or ``count``."""
        count = self.num_envs if count is None else count
        if len(names) != count:
            raise SceneError(f"reset was given {len(names)} scenes for {count} episodes; give one for each")
        indices = np.empty(count, dtype=np.int64)
        for row, name in enumerate(names):
            if isinstance(name, str):
                if name not in self._index_of:
                    raise SceneError(f"there is no route {name!r} in this environment; {did_you_mean(name, self.tokens)}")
                indices[row] = self._index_of[name]
            elif not 0 <= int(name) < len(self.tokens):
                raise SceneError(f"route index {name} is outside 0 … {len(self.tokens) - 1}")
            else:
                indices[row] = int(name)
        return indices


def _load(routes: Sequence[Route] | str | Path, skip_bad: bool) -> tuple[tuple[Route, ...], tuple[str, ...]]:
    """The routes, and those that were left out."""
    if isinstance(routes, str | Path):
        found = read_routes(routes, skip_bad=skip_bad)
        return found.routes, found.skipped
    return tuple(routes), ()
