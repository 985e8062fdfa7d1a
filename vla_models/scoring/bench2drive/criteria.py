"""The official criteria of N environments at once, tick by tick: what a Bench2Drive episode is judged by.

The state is plain arrays, so a snapshot is a copy and a restored episode goes on bit by bit. One call costs about a microsecond
and a half an environment.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from vla_models.errors import SceneError
from vla_models.scenes.lanes import BoolArray, FloatArray, IntArray
from vla_models.scoring.bench2drive import kernels
from vla_models.scoring.bench2drive.events import Event
from vla_models.scoring.bench2drive.kernels import (
    I_ENDED,
    I_EVENTS,
    I_INDEX,
    I_OUTSIDE,
    I_TICK,
    I_WRONG,
    INTEGERS,
    R_OUT_TICK,
    R_OUT_X,
    R_OUT_Y,
    R_PERCENT,
    R_TOTAL,
    R_WRONG,
    REALS,
    RUNNING,
    State,
)  # fmt: skip
from vla_models.scoring.bench2drive.tables import Course, TableSlots

TICK_LIMIT: Final = 4000
"""Ticks after which Bench2Drive gives up (``scenario_manager.py``): 200 s."""
MOST_EVENTS: Final = 128
"""Events of one episode, at most: collisions come at most every 5 s or 5 m, the rest once a light, sign or checkpoint."""


class Criteria:
    """Judges N episodes. ``begin`` them, call ``tick`` once per 0.05 s, read the events."""

    def __init__(self, count: int, tick_limit: int = TICK_LIMIT) -> None:
        self._slots = TableSlots(count)
        self._tables = self._slots.tables()
        self._limit = tick_limit
        self._state = State(
            np.zeros((count, INTEGERS), dtype=np.int64),
            np.zeros((count, REALS)),
            np.zeros((count, MOST_EVENTS, 6)),
            np.ones(count, dtype=bool),
            np.ones(count, dtype=bool),
        )

    def begin(self, rows: Sequence[int], courses: Sequence[Course], pose: FloatArray) -> None:
        """New episodes in ``rows``: their courses and where the ego's box centre is, [n, 3]."""
        for row, course in zip(rows, courses, strict=True):
            self._slots.put(row, course)
        self._tables = self._slots.tables()
        for row, (x, y, _) in zip(rows, pose, strict=True):
            kernels.begin(self._tables, self._state, row, x, y)

    def tick(
        self,
        pose: FloatArray,
        speed: FloatArray,
        half_length: FloatArray,
        contact_id: IntArray,
        contact_kind: IntArray,
        red: BoolArray,
        traffic_speed: FloatArray,
        live: BoolArray,
    ) -> IntArray:
        """One tick of all rows where ``live``; returns ``ended``.

        ``pose`` [N, 3] is the ego's box centre (CARLA's actor origin), ``speed`` [N] is negative in reverse, ``half_length``
        [N] half the ego's length. ``contact_id`` [N, C] names what the ego touches (-1: nothing, 0: a static thing without an
        id), ``contact_kind`` [N, C] is 0 for vehicles, 1 for walkers, 2 for static things. ``red`` [N, K]: which rows of the
        local graph's ``light_pose`` show red. ``traffic_speed`` [N]: mean speed of the background traffic, NaN where there is
        none.
        """
        kernels.tick(
            self._tables, self._state, pose, speed, half_length, contact_id, contact_kind, red, traffic_speed, live, self._limit
        )
        return self.ended

    @property
    def ended(self) -> IntArray:
        """[N] 0 running, 1 completed, 2 deviated, 3 blocked, 4 timed out, 5 tick limit."""
        return self._state.whole[:, I_ENDED]

    @property
    def ticks(self) -> IntArray:
        """[N] ticks of each episode so far."""
        return self._state.whole[:, I_TICK]

    @property
    def completion(self) -> FloatArray:
        """[N] percentage of the route."""
        return self._state.real[:, R_PERCENT]

    @property
    def index(self) -> IntArray:
        """[N] the last route point that was passed."""
        return self._state.whole[:, I_INDEX]

    @property
    def outside(self) -> BoolArray:
        """[N] off the lanes, or against the traffic where that counts."""
        whole = self._state.whole
        wrong = (whole[:, I_WRONG] > 0) & self._state.wrong_way_counts
        return np.asarray((whole[:, I_OUTSIDE] > 0) | wrong)

    @property
    def wrong_way_counts(self) -> BoolArray:
        """[N] to be set: whether an oncoming lane is forbidden (the official ``AC_SwitchWrongDirectionTest``)."""
        return self._state.wrong_way_counts

    @property
    def blocked_counts(self) -> BoolArray:
        """[N] to be set: whether standing still ends the route (``AC_SwitchActorBlockedTest``)."""
        return self._state.blocked_counts

    def report(self, rows: Iterable[int], kind: Event, pose: FloatArray) -> None:
        """An event that a scenario judges itself (``SCENARIO_TIMEOUT``, ``YIELD_TO_EMERGENCY``), with the ego at ``pose`` [N,
        3]."""
        for row in rows:
            kernels.report(self._state, row, int(kind), 0.0, pose[row, 0], pose[row, 1], -1.0)

    def counts(self) -> IntArray:
        """[N, 13] events of each kind so far (``Event`` as index)."""
        kinds = self._state.events[:, :, 1].astype(np.int64)
        real = np.arange(MOST_EVENTS) < self._state.whole[:, I_EVENTS, None]
        out = np.zeros((len(kinds), len(Event)), dtype=np.int64)
        np.add.at(out, (np.nonzero(real)[0], kinds[real]), 1)
        out[:, Event.OUTSIDE_ROUTE_LANES] = self._state.real[:, R_WRONG] > 0.0
        return out

    def events(self, row: int) -> FloatArray:
        """Events of one episode so far, [K, 6] as ``events.EVENT_COLUMNS``; the share outside the lanes comes last."""
        count = int(self._state.whole[row, I_EVENTS])
        if count > MOST_EVENTS:
            raise SceneError(
                f"an episode has {count} events, and {MOST_EVENTS} at most are kept: something reports without end"
            )
        table = self._state.events[row, :count].copy()
        real = self._state.real[row]
        if real[R_WRONG] > 0.0:
            share = real[R_WRONG] / real[R_TOTAL] * 100.0
            outside = [real[R_OUT_TICK], Event.OUTSIDE_ROUTE_LANES, share, real[R_OUT_X], real[R_OUT_Y], real[R_WRONG]]
            table = np.concatenate([table, np.array([outside])])
        return table

    def running(self) -> BoolArray:
        """[N] episodes that have not ended."""
        return np.asarray(self.ended == RUNNING)

    def snapshot(self) -> dict[str, npt.NDArray[np.generic]]:
        """A copy of the state (not of the courses)."""
        return {name: column.copy() for name, column in self._state._asdict().items()}

    def restore(self, snapshot: dict[str, npt.NDArray[np.generic]]) -> None:
        """Back to a snapshot; the courses must be the same."""
        for name, column in self._state._asdict().items():
            column[...] = snapshot[name]
