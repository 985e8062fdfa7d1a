"""RLinf's environment class on our environment contract: ``RLinfNavSimAdapter``, ``RLinfBench2DriveAdapter``, and yours.

RLinf (0.3.0) constructs ``cls(cfg, num_envs, seed_offset, total_num_processes, worker_info)`` in its env workers
(rlinf/workers/env/env_worker.py, ``_setup_env_and_wrappers``) and calls ``reset``, ``chunk_step`` and
``update_reset_state_ids``. One plan is one action here (``num_action_chunks: 1``, ``action_dim: 3·T``), however many ticks
the environment drives it: that is receding horizon, and every reward belongs to exactly one decision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from vla_models.config import VLAConfig
from vla_models.errors import ConfigError
from vla_models.frameworks.environments import make_vector_env
from vla_models.frameworks.episodes import Episodes, Row
from vla_models.frameworks.observations import ObservationLayout
from vla_models.inputs import VLASpec
from vla_models.training.checkpoint import data_order

if TYPE_CHECKING:
    from collections.abc import Mapping


class RLinfEnvAdapter:
    """Base of all: N rows of a VectorEnv as one RLinf environment.

    Who brings an environment subclasses it, sets ``decisions``, overrides ``make_env`` and registers it with
    ``@register_env_adapter(<environment.type>, "rlinf")``.

    Args:
        cfg: RLinf's ``env.train`` or ``env.eval``; ``init_params`` has ``config`` (path of the run's config.yaml), ``part``
            ("train" or "heldout"), ``spec`` (what the model's ``VLASpec`` says of its plans) and ``first_round`` (rollouts that
            were done before the run was resumed).
        num_envs: rows of this process and pipeline stage.
        seed_offset: which of the processes and stages this is.
        total_num_processes: how many there are.
        worker_info: RLinf's; not needed.
    """

    decisions: ClassVar[int | None] = None
    """Decisions of an episode where the environment fixes them (NavSim: 1); None where episodes end when they end."""

    def __init__(self, cfg: Any, num_envs: int, seed_offset: int, total_num_processes: int, worker_info: Any = None) -> None:
        self.cfg, self.num_envs = cfg, int(num_envs)
        self.config = VLAConfig.from_yaml(cfg.init_params.config)
        self.part: Literal["train", "heldout"] = cfg.init_params.part
        self.group_size = int(cfg.group_size)
        if self.num_envs % self.group_size:
            raise ConfigError(
                f"training.scenes_per_step: {self.num_envs} rows of an env worker do not hold whole groups of {self.group_size}"
            )
        self.auto_reset = bool(cfg.auto_reset)
        self.place, self.places = int(seed_offset), int(total_num_processes)
        self.round = self._first_round = int(cfg.init_params.first_round)
        self._started_episodes = 0
        self.is_start = True  # RLinf sets it
        self.env: VectorEnv = self.make_env(self.config, self.part, self.num_envs, VLASpec(**cfg.init_params.spec))
        self.layout = ObservationLayout.of(self.env.single_observation_space)
        self.episodes = Episodes(self.env, self._next_scene if self.auto_reset else None, invalid=self.config.reward.invalid)

    @classmethod
    def make_env(cls, config: VLAConfig, part: Literal["train", "heldout"], num_envs: int, spec: VLASpec) -> VectorEnv:
        """The environment: ``num_envs`` rows, with ``tokens`` (names of its scenes); its plans are made as ``spec`` says."""
        return make_vector_env(config, part, num_envs, spec)

    # -- what RLinf calls ------------------------------------------------------------------------------------------------

    def reset(self, **unused: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode in every row: in training, groups of consecutive rows share a scene."""
        return self._pack(self.episodes.begin(self.scenes())), {}

    def update_reset_state_ids(self) -> None:
        """A rollout has ended: the next ``reset`` takes the next scenes (rows that reset by themselves just go on)."""
        self.round += 1

    def chunk_step(self, chunk_actions: Any) -> tuple[list[dict[str, Any]], Tensor, Tensor, Tensor, list[dict[str, Any]]]:
        """Execute plans [N, 1, 3·T]; returns observations, rewards, terminations, truncations ([N, 1] each) and infos.

        A plan of NaN is an answer that is none (``RLinfPolicy``). A reward is NaN where the world failed: ``advantages`` takes
        those episodes out. ``infos`` has every total of ``Episodes`` under "episode"; where rows reset by themselves, also
        "final_info" and "final_observation".
        """
        actions = np.asarray(chunk_actions, dtype=np.float32)
        if actions.ndim != 3 or actions.shape[:2] != (self.num_envs, 1) or actions.shape[2] % 3:
            raise ConfigError(f"RLinf sent actions of shape {actions.shape}; one plan is one action: [{self.num_envs}, 1, 3·T]")
        planned: Row = ~np.asarray(np.isnan(actions).all(axis=(1, 2)), dtype=np.bool_)
        step = self.episodes.decide(actions.reshape(self.num_envs, -1, 3), planned)
        observation = self._pack(step.observation)
        episode = {name: torch.from_numpy(values) for name, values in step.totals.items()}
        info: dict[str, Any] = {"episode": episode}
        if step.final_observation is not None:
            ended = torch.from_numpy(step.terminated | step.truncated)
            info |= {"final_info": {"episode": episode}, "final_observation": self._pack(step.final_observation)}
            info |= {"_final_info": ended, "_final_observation": ended}
        columns = [torch.from_numpy(part)[:, None] for part in (step.rewards, step.terminated, step.truncated)]
        return [observation], columns[0], columns[1], columns[2], [info]

    # -- scenes ----------------------------------------------------------------------------------------------------------

    def scenes(self) -> list[str]:
        """Scene of each row in the present round, the same for the rows of a group.

        Training draws like the local trainer (``data_order``), so the scenes of a step depend on the seed and the step alone
        and not on how many processes share them. Evaluation goes through all held-out scenes in their order.
        """
        tokens: list[str] = self.env.tokens  # type: ignore[attr-defined]
        groups = self.num_envs // self.group_size
        whole = groups * self.places
        if self.part == "train":
            order = data_order(self.config.seed, "rl", self.round, len(tokens), whole)
        else:
            done = self.round % int(self.cfg.rollout_epoch)
            order = (done * whole + np.arange(whole)) % len(tokens)
        mine = order[self.place * groups : (self.place + 1) * groups]
        return [tokens[i] for i in np.repeat(mine, self.group_size)]

    def _next_scene(self, row: int) -> str:
        """Scene of the next episode of a row that resets by itself."""
        tokens: list[str] = self.env.tokens  # type: ignore[attr-defined]
        stream = f"rl-{self._first_round}-{self.place}"
        (index,) = data_order(self.config.seed, stream, self._started_episodes, len(tokens), 1)
        self._started_episodes += 1
        return tokens[int(index)]

    def _pack(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """The observation under the five keys that RLinf forwards (``EnvOutput.prepare_observations``).

        ``states`` begins with a column that is 1 where the row is over: nothing is to be decided there.
        """
        packed = self.layout.pack(observation)
        over = self.episodes.over.astype(np.float32)[:, None]
        return {
            "main_images": None if packed.main is None else torch.from_numpy(packed.main),
            "wrist_images": None,
            "extra_view_images": None if packed.extra is None else torch.from_numpy(packed.extra),
            "states": torch.from_numpy(np.concatenate([over, packed.states], axis=1)),
            "task_descriptions": packed.text,
        }


class RLinfNavSimAdapter(RLinfEnvAdapter):
    """NavSim: an episode is one decision."""

    decisions = 1


class RLinfBench2DriveAdapter(RLinfEnvAdapter):
    """Bench2Drive: an episode is many decisions, of each of which only the first ticks are driven."""
