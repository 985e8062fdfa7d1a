"""Driving for verl's agent loops: one trajectory asks for an episode, and many of them share a VectorEnv.

verl runs every trajectory as a coroutine of its own (verl/experimental/agent_loop). ``EpisodePool`` gathers those that wait
into waves of ``rows`` (a group of one scene, as they come), begins a wave in one VectorEnv, and steps it whenever each of its
trajectories has decided. Blocking steps run in a bounded executor. The environment contract is all that is asked for
(docs/architecture.md).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import numpy as np
import numpy.typing as npt
from gymnasium.vector import VectorEnv

from vla_models.errors import VLAModelsError
from vla_models.frameworks.environments import make_vector_env
from vla_models.frameworks.episodes import Episodes
from vla_models.frameworks.observations import ObservationLayout, Packed
from vla_models.inputs import INVALID_PLAN, VLASpec

if TYPE_CHECKING:
    from vla_models.config import VLAConfig

Part = Literal["train", "heldout"]
GATHER_S: Final = 0.02
"""Seconds for which a wave that is not full waits for more trajectories."""


class EpisodeFailed(VLAModelsError, RuntimeError):
    """The world of an episode failed, or its environment raised; the message has the scene and the reason."""


@dataclass(frozen=True)
class Decision:
    """What one plan of one trajectory led to."""

    observation: Packed
    """[1] what is seen next (the last decision of an episode has what was seen before it)."""
    reward: float
    over: bool
    totals: dict[str, float]
    """Of the episode so far: ``return``, ``decisions``, every metric, and every reward term as ``term/<name>``."""


class VerlEnvAdapter:
    """Base of all: where verl's agent loops get their episodes.

    Who brings an environment subclasses it, sets ``decisions``, overrides ``make_env`` and registers it with
    ``@register_env_adapter(<environment.type>, "verl")``.

    Args:
        config: the run's configuration.
        part: training or held-out scenes.
        spec: of the model that drives.
        rows: episodes that share a VectorEnv.
        environments: VectorEnvs at the same time, at most.
    """

    decisions: ClassVar[int | None] = None
    """Decisions of an episode where the environment fixes them (NavSim: 1); None where episodes end when they end."""

    def __init__(self, config: VLAConfig, part: Part, spec: VLASpec, *, rows: int, environments: int) -> None:
        def make() -> Episodes:
            return Episodes(self.make_env(config, part, rows, spec), invalid=config.reward.invalid)

        self.pool = EpisodePool(make, rows, environments)

    @classmethod
    def make_env(cls, config: VLAConfig, part: Part, num_envs: int, spec: VLASpec) -> VectorEnv:
        """The environment: ``num_envs`` rows, with ``tokens`` (names of its scenes); its plans are made as ``spec`` says."""
        return make_vector_env(config, part, num_envs, spec)


class VerlNavSimAdapter(VerlEnvAdapter):
    """NavSim: an episode is one decision."""

    decisions = 1


class VerlBench2DriveAdapter(VerlEnvAdapter):
    """Bench2Drive: an episode is many decisions, of each of which only the first ticks are driven."""


class EpisodePool:
    """Episodes for coroutines of one event loop, in up to ``environments`` VectorEnvs of ``rows`` rows."""

    def __init__(self, make: Callable[[], Episodes], rows: int, environments: int) -> None:
        self._make, self.rows = make, rows
        self._executor = ThreadPoolExecutor(environments, thread_name_prefix="episodes")
        self._idle: list[Episodes] = []
        self._slots = asyncio.Semaphore(environments)
        self._waiting: deque[Row] = deque()
        self._gathering: asyncio.Task[None] | None = None
        self._waves: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def episode(self, scene: str) -> AsyncIterator[Row]:
        """An episode of ``scene``, begun. Leaving the block gives it up; ``EpisodeFailed`` where it cannot be begun."""
        row = Row(scene)
        self._waiting.append(row)
        if self._gathering is None or self._gathering.done():
            self._gathering = asyncio.create_task(self._gather())
        try:
            row.observation = (await row.answer).observation
            yield row
        finally:
            row.leave()

    async def _gather(self) -> None:
        """Make waves of those that wait, until none does."""
        while self._waiting:
            known = -1
            while known != len(self._waiting) < self.rows:
                known = len(self._waiting)
                await asyncio.sleep(GATHER_S)
            await self._slots.acquire()
            members = [self._waiting.popleft() for _ in range(min(self.rows, len(self._waiting)))]
            task = asyncio.create_task(self._drive(members))
            self._waves.add(task)
            task.add_done_callback(self._waves.discard)

    async def _drive(self, members: list[Row]) -> None:
        """One wave, from its first observation to the end of its last episode."""
        loop = asyncio.get_running_loop()
        episodes: Episodes | None = None
        try:
            episodes = self._idle.pop() if self._idle else None
            if episodes is None:
                episodes = await loop.run_in_executor(self._executor, self._make)
            layout = ObservationLayout.of(episodes.env.single_observation_space)
            scenes = [row.scene for row in members]
            scenes += [scenes[0]] * (self.rows - len(scenes))  # rows that nobody asked for drive along
            seen = layout.pack(await loop.run_in_executor(self._executor, episodes.begin, scenes))
            for i, row in enumerate(members):
                row.tell(Decision(seen.row(i), 0.0, False, {}))
            shape = episodes.env.single_action_space.shape
            while running := [i for i, row in enumerate(members) if not row.over]:
                for i in running:
                    await members[i].decided.wait()
                plans = np.full((self.rows, *shape), INVALID_PLAN, dtype=np.float32)  # type: ignore[misc]
                planned = np.ones(self.rows, dtype=np.bool_)
                for i in running:
                    plan = members[i].take(shape)
                    planned[i] = plan is not None
                    plans[i] = INVALID_PLAN if plan is None else plan
                if all(row.over for row in members):
                    break
                step = await loop.run_in_executor(self._executor, episodes.decide, plans, planned)
                over = step.terminated | step.truncated
                if not over[running].all():
                    seen = layout.pack(step.observation)
                names = [name for name in step.totals if name != "valid"]
                totals = np.stack([step.totals[name] for name in names], axis=1).tolist()
                for i in running:
                    if np.isnan(step.rewards[i]):
                        why = "its world failed" if planned[i] else "the answer is no plan, and reward.invalid is exclude"
                        members[i].fail(EpisodeFailed(f"scene {members[i].scene}: {why}"))
                        continue
                    last = members[i].observation if over[i] else seen.row(i)
                    told = dict(zip(names, totals[i], strict=True))
                    members[i].tell(Decision(last, float(step.rewards[i]), bool(over[i]), told))
            self._idle.append(episodes)
        except Exception as e:  # a stranger's environment may raise anything; its trajectories are dropped and counted
            for row in members:
                row.fail(EpisodeFailed(f"scene {row.scene}: {type(e).__name__}: {e}"))
            if episodes is not None:
                with suppress(Exception):
                    episodes.env.close()
        finally:
            self._slots.release()


class Row:
    """One trajectory's side of a wave."""

    def __init__(self, scene: str) -> None:
        self.scene = scene
        self.over = False
        self.observation: Packed
        self.answer: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        self.decided = asyncio.Event()
        self._plan: npt.NDArray[np.floating[Any]] | None = None

    async def decide(self, plan: npt.NDArray[np.floating[Any]] | None) -> Decision:
        """Drive a plan [T, 3]; None is an answer that is no plan (``reward.invalid`` says what becomes of it).

        ``EpisodeFailed`` where the world or its environment failed, or the episode is left out.
        """
        self.answer = asyncio.get_running_loop().create_future()
        self._plan = plan
        self.decided.set()
        decision = await self.answer
        self.observation = decision.observation
        return decision

    def leave(self) -> None:
        """Nobody decides here any more."""
        self.over, self._plan = True, None
        self.answer.cancel()
        self.decided.set()

    def take(self, shape: Any) -> npt.NDArray[np.floating[Any]] | None:
        """The plan that was decided on; None where there is none, or one of another shape (told)."""
        plan, self._plan = self._plan, None
        if not self.over:
            self.decided.clear()
        if plan is not None and plan.shape != shape:
            self.fail(EpisodeFailed(f"scene {self.scene}: a plan of shape {plan.shape}; the environment takes {shape}"))
            return None
        return plan

    def tell(self, decision: Decision) -> None:
        """Answer the trajectory."""
        self.over = self.over or decision.over
        if not self.answer.done():
            self.answer.set_result(decision)

    def fail(self, error: Exception) -> None:
        """Answer with an error."""
        self.over = True
        self.decided.set()
        if not self.answer.done():
            self.answer.set_exception(error)
