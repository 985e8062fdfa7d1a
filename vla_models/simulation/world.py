"""The batched world: N episodes at once, driven by plans. ``World`` is the only door to the closed loop.

    world = World([stage(route, seed=0) for route in routes])
    while not world.done.all():
        world.step(plans, dt=0.5, ticks=5)     # plans [N, T, 3], ego frame
    record = world.record(0)

Same episodes and plans give the same bits; ``snapshot`` and ``restore`` are exact, and a snapshot of one environment can be
put into another (or into several: a group that branches from one state).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from vla_models.errors import PlanError, SceneError
from vla_models.inputs import check_plan
from vla_models.simulation import tables as columns
from vla_models.simulation.episodes import Episode
from vla_models.simulation.tables import (
    EVENT_COLUMNS,
    LOG_COLUMNS,
    MAX_TICKS,
    PLAN_POSES,
    Event,
    FloatArray,
    IntArray,
    Tables,
    empty_tables,
)
from vla_models.simulation.tick import advance
from vla_models.simulation.vehicle import REAR_TO_CENTER

START_DISTANCE: Final = 14.0
"""Metres from the ego beyond which traffic may stand at the start."""


@dataclass(frozen=True)
class EpisodeRecord:
    """What happened in an episode: what the metrics read."""

    route_id: str
    town: str
    scenarios: tuple[str, ...]
    ticks: int
    route_length: float
    completed: float
    """Per cent of the route."""
    events: FloatArray
    """[K, 6] ``EVENT_COLUMNS``, kinds of ``Event``."""
    log: FloatArray
    """[ticks, 12] ``LOG_COLUMNS``, a row a tick."""


@dataclass(frozen=True)
class Snapshot:
    """The state of some environments: rows of all tables, and which episodes they play."""

    rows: Tables
    episodes: tuple[Episode, ...]


class World:
    """N environments that step together.

    Args:
        episodes: what each plays (``episodes.stage``); environments may play the same one.
        controller: "pid" is Bench2Drive's own, "tracker" follows a plan as well as the vehicle can.
        max_ticks: ticks after which an episode ends as timed out: 4000 in Bench2Drive, too few for routes of kilometres.
    """

    def __init__(
        self,
        episodes: Sequence[Episode],
        controller: Literal["pid", "tracker"] = "pid",
        max_ticks: int = MAX_TICKS,
    ) -> None:
        if not episodes:
            raise SceneError("a world needs at least one episode")
        if controller not in ("pid", "tracker"):
            raise SceneError(f"the controller must be 'pid' or 'tracker', not {controller!r}")
        self.controller = controller
        self.episodes: list[Episode] = list(episodes)
        self._sizes = _largest(episodes)
        self.max_ticks = max_ticks
        self.tables = empty_tables(len(episodes), self._sizes, max_ticks)
        for n, episode in enumerate(episodes):
            self._load(n, episode)

    def __len__(self) -> int:
        return len(self.episodes)

    @property
    def done(self) -> npt.NDArray[np.bool_]:
        """[N] whether the episode has ended."""
        return self.tables.env[:, columns.E_DONE] > 0.0

    @property
    def ended(self) -> list[Event | None]:
        """[N] the event that ended the episode, or None while it runs."""
        return [Event(int(d) - 1) if d > 0.0 else None for d in self.tables.env[:, columns.E_DONE]]

    @property
    def ticks(self) -> IntArray:
        """[N] ticks so far."""
        return self.tables.env[:, columns.E_TICK].astype(np.int64)

    @property
    def ego(self) -> FloatArray:
        """[N, 4] the ego's rear axle (x, y, heading) and speed."""
        return self.tables.env[:, [columns.E_X, columns.E_Y, columns.E_H, columns.E_V]].copy()

    @property
    def progress(self) -> FloatArray:
        """[N] metres along the route."""
        return self.tables.env[:, columns.E_PROGRESS].copy()

    def step(self, plans: npt.ArrayLike, dt: float = 0.5, ticks: int = 1) -> None:
        """Put plans [N, T, 3] (ego frame, poses ``dt`` seconds apart) in force and run ``ticks`` ticks of 0.05 s.
        Environments whose episode has ended stand still. Raises ``PlanError`` for a plan of the wrong shape or with numbers
        that are not finite."""
        checked = np.ascontiguousarray(check_plan(plans), dtype=np.float64)
        if checked.ndim != 3 or len(checked) != len(self):
            raise PlanError(f"the world needs plans [{len(self)}, T, 3], not {checked.shape}")
        if not dt > 0.0 or not 1 <= checked.shape[1] < PLAN_POSES or ticks < 1:
            raise PlanError(f"a plan needs 1 to {PLAN_POSES - 1} poses, a time step above 0 and at least a tick")
        if checked.shape[1] * dt < 1.0 - 1e-9:
            raise PlanError(f"the plan covers {checked.shape[1] * dt:.2f} s; the controller needs at least 1 s of it")
        advance(self.tables, checked, float(dt), int(ticks), self.controller == "tracker", -1, 0.0)

    def reset(self, n: int, episode: Episode) -> None:
        """Start another episode in environment ``n``."""
        sizes = episode.sizes
        if any(sizes[k] > self._sizes[k] for k in sizes):
            self._grow([episode])
        self.episodes[n] = episode
        self._load(n, episode)

    def snapshot(self, rows: Sequence[int] | None = None) -> Snapshot:
        """The exact state of environments ``rows`` (all of them by default)."""
        at = list(range(len(self))) if rows is None else list(rows)
        return Snapshot(Tables._make(table[at] for table in self.tables), tuple(self.episodes[k] for k in at))

    def restore(self, state: Snapshot, rows: Sequence[int] | None = None) -> None:
        """Put a snapshot back, its k-th environment into ``rows[k]``. A snapshot of one environment fills all of ``rows``."""
        at = list(range(len(self))) if rows is None else list(rows)
        source = [0] * len(at) if len(state.episodes) == 1 else list(range(len(state.episodes)))
        if len(source) != len(at):
            raise SceneError(f"a snapshot of {len(state.episodes)} environments cannot fill {len(at)}")
        if any(size > self._sizes[k] for e in state.episodes for k, size in e.sizes.items()):
            self._grow(state.episodes)
        tables: Any = zip(self.tables, state.rows, strict=True)
        for target, kept in tables:
            shape = tuple(slice(0, min(a, b)) for a, b in zip(target.shape[1:], kept.shape[1:], strict=True))
            for n, k in zip(at, source, strict=True):
                target[n][shape] = kept[k][shape]
        for n, k in zip(at, source, strict=True):
            self.episodes[n] = state.episodes[k]

    def record(self, n: int) -> EpisodeRecord:
        """What has happened in environment ``n`` so far."""
        env, episode = self.tables.env[n], self.episodes[n]
        ticks, length = int(env[columns.E_TICK]), float(env[columns.E_ROUTE_LENGTH])
        whole = env[columns.E_DONE] == 1.0 + Event.ROUTE_COMPLETED
        return EpisodeRecord(
            route_id=episode.route_id,
            town=episode.town,
            scenarios=episode.types,
            ticks=ticks,
            route_length=length,
            completed=100.0 if whole else round(min(100.0 * float(env[columns.E_PROGRESS]) / length, 100.0), 2),
            events=self.tables.events[n, : int(env[columns.E_EVENTS])].copy(),
            log=self.tables.log[n, :ticks].copy(),
        )

    def present(self, n: int) -> tuple[IntArray, FloatArray]:
        """What a renderer draws in environment ``n``, the ego first: (kinds [K] of ``Kind``, rows [K, 6]: x, y, heading of
        the box centre, length, width, colour 0…7)."""
        rows = self.tables.actors[n]
        count = int(self.tables.env[n, columns.N_ACTORS])
        shown = rows[:count][rows[:count, columns.PRESENT] > 0.0]
        pick = [columns.AX, columns.AY, columns.AH, columns.LENGTH, columns.WIDTH, columns.COLOUR]
        return shown[:, columns.KIND].astype(np.int64), shown[:, pick]

    def light_states(self, n: int) -> tuple[IntArray, npt.NDArray[np.int8]]:
        """(rows of the town's lights that environment ``n`` switches, their states: 0 green, 1 yellow, 2 red)."""
        rows = self.episodes[n].light_rows
        return rows, self.tables.lights[n, : len(rows)].copy()

    @property
    def nbytes(self) -> int:
        """Bytes of all tables."""
        return sum(table.nbytes for table in self.tables)

    def _grow(self, episodes: Sequence[Episode]) -> None:
        """Make room for ``episodes``, without taking any from those that were there."""
        largest = _largest(episodes)
        sizes = {k: max(size, largest[k]) for k, size in self._sizes.items()}
        wider = empty_tables(len(self), sizes, self.max_ticks)
        tables: Any = zip(wider, self.tables, strict=True)
        for new, old in tables:
            new[tuple(slice(0, size) for size in old.shape)] = old
        self.tables, self._sizes = wider, sizes

    def _load(self, n: int, episode: Episode) -> None:
        """Copy an episode into row ``n`` and set the stage."""
        t = self.tables
        for table in t:
            table[n] = 0
        for name in (
            "actors", "points", "cross", "stops", "light_cycle", "script", "scenarios", "flows", "slippery", "traffic",
        ):  # fmt: skip
            rows: npt.NDArray[Any] = getattr(episode, name)
            target: npt.NDArray[Any] = getattr(t, name)
            target[n][tuple(slice(0, size) for size in rows.shape)] = rows
        for name in ("path_offsets", "cross_offsets", "stop_offsets"):
            offsets: IntArray = getattr(episode, name)
            getattr(t, name)[n, : len(offsets)] = offsets
            getattr(t, name)[n, len(offsets) :] = offsets[-1]
        env = t.env[n]
        x, y, h = episode.start
        env[columns.E_SEED] = episode.seed
        env[columns.E_X], env[columns.E_Y], env[columns.E_H] = x - REAR_TO_CENTER * np.cos(h), y - REAR_TO_CENTER * np.sin(h), h
        env[columns.E_ROUTE_LENGTH] = len(episode.route) - 1.0
        env[columns.E_INDEX] = env[columns.E_PROGRESS] = env[columns.E_CHECKPOINT] = episode.start_index
        for column in (columns.E_HIT_ACTOR, columns.E_LIGHT, columns.E_STOP, columns.E_STOP_DONE):
            env[column] = -1.0
        for column, name in (
            (columns.N_ACTORS, "A"), (columns.N_SCENARIOS, "K"), (columns.N_FLOWS, "F"), (columns.N_LIGHTS, "G"),
            (columns.N_SLIPPERY, "Z"), (columns.N_TRAFFIC, "B"),
        ):  # fmt: skip
            env[column] = episode.sizes[name]
        advance(t, np.zeros((0, 1, 3)), 0.0, 0, False, n, START_DISTANCE)


def _largest(episodes: Sequence[Episode]) -> dict[str, int]:
    return {k: max(1, *(e.sizes[k] for e in episodes)) for k in episodes[0].sizes}


__all__ = ["EVENT_COLUMNS", "LOG_COLUMNS", "EpisodeRecord", "Snapshot", "World"]
