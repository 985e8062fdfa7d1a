"""siiRL's environment class on our environment contract: ``NavSimVLAAdapter``, ``Bench2DriveVLAAdapter``, and yours.

siiRL's ``BaseVLAEnvironment`` (siirl/environment/embodied/base.py) has two coroutines, ``reset`` and ``step``, whose base
signatures are kept. Its own rollout calls them blockingly; ours (``rollout``) awaits them, and the world runs in a thread of
its own meanwhile. The class is registered with that base by ``plugin`` and can be imported without siiRL.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from gymnasium.vector import VectorEnv

from vla_models.errors import ConfigError, SceneError
from vla_models.frameworks.environments import make_vector_env
from vla_models.frameworks.episodes import Episodes

if TYPE_CHECKING:
    from vla_models.config import VLAConfig
    from vla_models.inputs import VLASpec

Step = tuple[Mapping[str, Any], npt.NDArray[np.float32], npt.NDArray[np.bool_], npt.NDArray[np.bool_], dict[str, Any]]


class SiirlEnvAdapter:
    """Base of all: N rows of a VectorEnv as one siiRL environment.

    Who brings an environment subclasses it, sets ``decisions``, overrides ``make_env`` and registers it with
    ``@register_env_adapter(<environment.type>, "siirl")``.

    Args:
        config: the run's configuration.
        part: whose scenes.
        num_envs: N, episodes at a time.
        spec: of the model that drives.
    """

    decisions: ClassVar[int | None] = None
    """Decisions of an episode where the environment fixes them (NavSim: 1); None where episodes end when they end."""

    def __init__(self, config: VLAConfig, part: Literal["train", "heldout"], num_envs: int, spec: VLASpec) -> None:
        self.env: VectorEnv = self.make_env(config, part, num_envs, spec)
        self.episodes = Episodes(self.env, invalid=config.reward.invalid)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vla-world")

    @classmethod
    def make_env(cls, config: VLAConfig, part: Literal["train", "heldout"], num_envs: int, spec: VLASpec) -> VectorEnv:
        """The environment: ``num_envs`` rows, with ``tokens`` (names of its scenes); its plans are made as ``spec`` says."""
        return make_vector_env(config, part, num_envs, spec)

    @property
    def tokens(self) -> list[str]:
        """Names of the scenes; a task id of siiRL is a place in this list."""
        tokens: list[str] = self.env.tokens  # type: ignore[attr-defined]
        return tokens

    @property
    def over(self) -> npt.NDArray[np.bool_]:
        """bool [N]: rows whose episode has ended."""
        return self.episodes.over.copy()

    async def reset(self, task_ids: Sequence[int] | None = None, trial_ids: Sequence[int] | None = None) -> Mapping[str, Any]:
        """Start episodes; returns the observation [N rows].

        Args:
            task_ids: scenes of the first rows (the others stay over); left out, scenes 0, 1, 2, … in all of them.
            trial_ids: which of a scene's episodes it is, as in siiRL's manifests; the start is the same for all of them.
        """
        rows, known = self.env.num_envs, len(self.tokens)
        ids = [i % known for i in range(rows)] if task_ids is None else [int(i) for i in task_ids]
        if not 0 < len(ids) <= rows or (trial_ids is not None and len(trial_ids) != len(ids)):
            raise ConfigError(f"reset: {len(ids)} task ids do not fit {rows} rows, or not their trial ids")
        if unknown := sorted({i for i in ids if not 0 <= i < known}):
            raise SceneError(f"reset: there is no scene number {unknown[0]}; the environment has {known}")
        scenes = [self.tokens[i] for i in (*ids, *[ids[0]] * (rows - len(ids)))]
        observation: Mapping[str, Any] = await self._outside(self.episodes.begin, scenes)
        self.episodes.over[len(ids) :] = True
        return observation

    async def step(self, action: Mapping[str, Any]) -> Step:
        """Execute plans; returns observation, rewards, terminated, truncated [N each] and info.

        Args:
            action: ``indices`` int [M], rows to drive (left out: all N); ``actions`` f32 [M, 1, 3·T] or [M, T, 3], their plans.
                A row that runs and is not named had an answer that is no plan: its car brakes, and ``reward.invalid`` holds.

        A reward is NaN where the world failed, or such an answer is to be left out. ``info`` has the totals of ``Episodes``
        under "totals" and ``over`` bool [N].
        """
        rows = self.env.num_envs
        indices = np.arange(rows) if action.get("indices") is None else np.asarray(action["indices"], dtype=np.int64)
        actions = np.asarray(action["actions"], dtype=np.float32)
        outside = len(indices) and not 0 <= indices.min() <= indices.max() < rows
        if len(actions) != len(indices) or actions.size % 3 or outside:
            raise ConfigError(f"step: actions of shape {list(actions.shape)} for rows {indices.tolist()[:8]} of {rows}")
        horizon: int = self.env.single_action_space.shape[0]  # type: ignore[index]
        plans = np.zeros((rows, horizon, 3), dtype=np.float32)
        plans[indices] = actions.reshape(len(indices), -1, 3)
        named = np.zeros(rows, dtype=np.bool_)
        named[indices] = True
        done = await self._outside(self.episodes.decide, plans, named)
        return done.observation, done.rewards, done.terminated, done.truncated, {"totals": done.totals, "over": self.over}

    def close(self) -> None:
        """End the world."""
        self._thread.shutdown()
        self.env.close()

    async def _outside(self, function: Any, *args: Any) -> Any:
        """Run something blocking in the world's own thread; one thing at a time, in order."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)


class NavSimVLAAdapter(SiirlEnvAdapter):
    """NavSim: an episode is one decision."""

    decisions = 1


class Bench2DriveVLAAdapter(SiirlEnvAdapter):
    """Bench2Drive: an episode is many decisions, of each of which only the first ticks are driven."""
