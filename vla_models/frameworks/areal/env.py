"""Environments for asynchronous rollouts: ``AReaLNavSimAdapter``, ``AReaLBench2DriveAdapter``, and yours.

AReaL 1.x has no environment interface. The one that it had until 0.5.3 (``areal/api/env_api.py``: ``ainitialize``,
``list_tools``, ``aexecute(tool_name, tool_args)``, ``aclose``) is a good shape for use inside a workflow, so it is kept here as
our own convention. An adapter is one episode, or one group of episodes of the same scene (``rows``), so that what a group
shares, its scene's scoring above all, is computed once.

Hundreds of adapters may be alive at a time. Each borrows an environment from an ``EnvironmentPool`` between ``ainitialize`` and
``aclose``, and whatever blocks runs in the pool's threads. ``aclose`` returns only when nothing of the episode runs any more,
also after a cancellation. An environment that raised, or did not answer in time, is never used again.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, Self

import numpy as np
from gymnasium.vector import VectorEnv

from vla_models.errors import SceneError, VLAModelsError, did_you_mean
from vla_models.frameworks.areal.blocking import EpisodeTimeout, Job, Threads
from vla_models.frameworks.environments import make_vector_env
from vla_models.frameworks.episodes import Episodes, Row
from vla_models.inputs import VLASpec

if TYPE_CHECKING:
    from vla_models.config import VLAConfig

TOOLS: list[dict[str, Any]] = [
    {
        "name": "reset",
        "description": "Begin an episode; returns the observation.",
        "parameters": {"type": "object", "properties": {"scene": {"type": "string"}}, "required": ["scene"]},
    },
    {
        "name": "observe",
        "description": "What is seen now.",
        "parameters": {"type": "object", "properties": {}},
    },
    {
        "name": "step",
        "description": "Execute a plan: T poses (x, y, heading), metres and radians in the ego frame; NaN for an answer that "
        "is no plan. Returns the observation, reward, terminated, truncated and over.",
        "parameters": {
            "type": "object",
            "properties": {"plan": {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}},
            "required": ["plan"],
        },
    },
    {
        "name": "score",
        "description": "The episode's return, number of decisions, validity, metrics and reward terms so far.",
        "parameters": {"type": "object", "properties": {}},
    },
]
"""What ``list_tools`` returns, as JSON schemas."""
_PARAMETERS: Final = {tool["name"]: tool["parameters"] for tool in TOOLS}

MAKING_SECONDS: Final = 1800.0
"""How long an environment may take to be made: its scenes may have to be built."""


class EnvironmentPool:
    """Environments that episodes borrow, and the threads in which they work. It belongs to one event loop.

    Args:
        make: makes an environment with so many rows; called in a thread, one call at a time.
        environments: most environments that are alive at a time; an episode waits for one to come free.
        threads: most calls into environments at a time.
        limit: seconds that one call may take.
        invalid: reward of an answer that is no plan (``reward.invalid``).
    """

    def __init__(
        self,
        make: Callable[[int], VectorEnv],
        *,
        environments: int,
        threads: int,
        limit: float,
        invalid: float | Literal["exclude"] = 0.0,
    ) -> None:
        self.make, self.limit, self.invalid = make, limit, invalid
        self._making = threading.Lock()
        self.threads = Threads(threads)
        self.counts = {"begun": 0, "closed": 0, "failed": 0, "timed_out": 0, "cancelled": 0}
        """Episodes: ``begun`` is the sum of the others when none is alive; ``closed`` ones came to ``aclose`` in order."""
        self.made = 0
        """Environments made so far."""
        self._idle: dict[int, list[Episodes]] = {}
        self._places = asyncio.Semaphore(environments)

    async def borrow(self, rows: int) -> Episodes:
        """An environment with ``rows`` rows, made if none is idle."""
        await self._places.acquire()
        idle = self._idle.get(rows)
        if idle:
            return idle.pop()
        job = self.threads.submit(lambda: self._make(rows))
        try:
            episodes: Episodes = await self.threads.wait(job, max(self.limit, MAKING_SECONDS))
        except BaseException:
            if job.future.running():  # cancelled meanwhile: the next one gets it
                loop = asyncio.get_running_loop()
                job.future.add_done_callback(lambda made: loop.call_soon_threadsafe(self._keep, made))
            self._places.release()
            raise
        self.made += 1
        return episodes

    def _make(self, rows: int) -> Episodes:
        with self._making:  # what they share, scenes above all, is built and cached once
            return Episodes(self.make(rows), invalid=self.invalid)

    def _keep(self, made: Future[Episodes]) -> None:
        if made.exception() is None:
            self.made += 1
            self._idle.setdefault(made.result().env.num_envs, []).append(made.result())

    def give_back(self, episodes: Episodes, usable: bool) -> None:
        """The end of a loan."""
        if usable:
            self._idle.setdefault(episodes.env.num_envs, []).append(episodes)
        self._places.release()

    def close(self) -> None:
        """Close idle environments and end the threads."""
        for idle in self._idle.values():
            for episodes in idle:
                episodes.env.close()
        self._idle.clear()
        self.threads.close()


class AReaLEnvAdapter:
    """Base of all: an episode, or a group of episodes in one scene, driven by tool calls.

    Who brings an environment subclasses it, overrides ``make_env`` and registers it with
    ``@register_env_adapter(<environment.type>, "areal")``.

    Args:
        pool: from ``make_pool``.
        rows: episodes that begin in the same scene and are driven together.
    """

    decisions: ClassVar[int | None] = None
    """Decisions of an episode where the environment fixes them (NavSim: 1); None where episodes end when they end."""

    def __init__(self, pool: EnvironmentPool, rows: int = 1) -> None:
        self.pool, self.rows = pool, rows
        self._episodes: Episodes | None = None
        self._observation: Mapping[str, Any] | None = None
        self._totals: dict[str, Any] = {}
        self._running: Job | None = None
        self._end: str | None = None
        """Why the environment cannot be used again."""

    @classmethod
    def make_env(cls, config: VLAConfig, part: Literal["train", "heldout"], num_envs: int, spec: VLASpec) -> VectorEnv:
        """The environment: ``num_envs`` rows, with ``tokens`` (names of its scenes); its plans are made as ``spec`` says."""
        return make_vector_env(config, part, num_envs, spec)

    @classmethod
    def make_pool(
        cls,
        config: VLAConfig,
        part: Literal["train", "heldout"],
        spec: VLASpec,
        *,
        environments: int,
        threads: int,
        limit: float,
    ) -> EnvironmentPool:
        """A pool of this adapter's environments (see ``EnvironmentPool``)."""

        def make(rows: int) -> VectorEnv:
            return cls.make_env(config, part, rows, spec)

        return EnvironmentPool(make, environments=environments, threads=threads, limit=limit, invalid=config.reward.invalid)

    async def ainitialize(self) -> None:
        """Borrow an environment; waits while all are in use."""
        if self._episodes is not None:
            raise VLAModelsError("this episode has begun already; make another adapter")
        self._episodes = await self.pool.borrow(self.rows)
        self.pool.counts["begun"] += 1

    def list_tools(self) -> list[dict[str, Any]]:
        """The calls that ``aexecute`` knows, as JSON schemas."""
        return TOOLS

    async def aexecute(self, tool_name: str, tool_args: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Do one of ``list_tools``. Arrays are NumPy, batch first (``rows``).

        Raises what the environment raises, ``SceneError`` for an unknown tool or argument, and ``EpisodeTimeout``.
        """
        if self._episodes is None:
            raise VLAModelsError("the episode has not begun, or is closed; await ainitialize() first")
        given = dict(tool_args or {})
        if tool_name not in _PARAMETERS:
            raise SceneError(f"there is no tool {tool_name!r}; {did_you_mean(tool_name, _PARAMETERS)}")
        asked = _PARAMETERS[tool_name]
        if wrong := sorted(given.keys() ^ set(asked.get("required", []))):
            raise SceneError(
                f"tool {tool_name!r} takes {sorted(asked['properties']) or 'nothing'}; missing or unknown: {wrong}"
            )
        result: dict[str, Any] = await getattr(self, f"_{tool_name}")(**given)
        return result

    async def aclose(self) -> None:
        """Give the environment back. Returns when nothing of the episode runs any more; calling it again does nothing."""
        episodes, self._episodes = self._episodes, None
        if episodes is None:
            return
        try:
            await self._settle()
        finally:
            self.pool.counts[self._end or "closed"] += 1
            self.pool.give_back(episodes, self._end in (None, "cancelled") and not self._busy())

    async def __aenter__(self) -> Self:
        await self.ainitialize()
        return self

    async def __aexit__(self, *unused: Any) -> None:
        await self.aclose()

    # -- tools -----------------------------------------------------------------------------------------------------------

    async def _reset(self, scene: str) -> dict[str, Any]:
        episodes = self._episodes
        assert episodes is not None
        self._observation = await self._do(lambda: episodes.begin([str(scene)] * self.rows))
        self._totals = {}
        return {"observation": self._observation}

    async def _observe(self) -> dict[str, Any]:
        if self._observation is None:
            raise SceneError("nothing is seen before an episode begins; execute reset first")
        return {"observation": self._observation}

    async def _step(self, plan: Any) -> dict[str, Any]:
        episodes = self._episodes
        assert episodes is not None
        await self._observe()
        plans = np.asarray(plan, dtype=np.float64)
        plans = plans[None] if plans.ndim == 2 else plans
        if plans.ndim != 3 or plans.shape[::2] != (self.rows, 3):
            raise SceneError(
                f"a plan of shape {list(np.shape(plan))} was given, not [{self.rows}, T, 3] (or [T, 3] where rows are 1)"
            )
        planned: Row = ~np.asarray(np.isnan(plans).all(axis=(1, 2)), dtype=np.bool_)
        decided = await self._do(lambda: episodes.decide(plans, planned))
        self._observation, self._totals = decided.observation, decided.totals
        return {
            "observation": decided.observation,
            "reward": decided.rewards,
            "terminated": decided.terminated,
            "truncated": decided.truncated,
            "over": episodes.over.copy(),
        }

    async def _score(self) -> dict[str, Any]:
        return dict(self._totals)

    # -- running in a thread ---------------------------------------------------------------------------------------------

    async def _do(self, call: Callable[[], Any]) -> Any:
        if self._end is not None:
            raise VLAModelsError(f"this episode has {self._end.replace('_', ' ')}; close it")
        threads = self.pool.threads
        self._running = threads.submit(call)
        try:
            return await threads.wait(self._running, self.pool.limit)
        except asyncio.CancelledError:
            self._end = "cancelled"
            raise
        except EpisodeTimeout:
            self._end = "timed_out"
            raise
        except Exception:
            self._end = "failed"
            raise

    def _busy(self) -> bool:
        job = self._running
        return job is not None and not job.future.done()

    async def _settle(self) -> None:
        """Wait for a call that a cancellation left running, as long as it may take."""
        if self._running is None or self._running.gave_up or not self._busy():
            return
        try:
            await self.pool.threads.wait(self._running, self.pool.limit)
        except EpisodeTimeout:
            self._end = "timed_out"
        except Exception:  # the episode was cancelled; that its last call also failed makes its environment unusable
            self._end = "failed"


class AReaLNavSimAdapter(AReaLEnvAdapter):
    """NavSim: an episode is one decision."""

    decisions = 1


class AReaLBench2DriveAdapter(AReaLEnvAdapter):
    """Bench2Drive: an episode is many decisions, of each of which only the first ticks are driven."""
