"""A many-decision VectorEnv that obeys the environment contract, small enough to reason about.

A row stands on a line and should reach the point that its scene names; its reward is the way it came nearer. It terminates at
the goal, is truncated after ``max_decisions``, and a scene called ``crash…`` fails at its second decision.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

HORIZON = 4
GOALS = (2.0, -3.0, 5.0, 8.0)


class ToyDrive(VectorEnv):
    """``tokens`` are ``go0`` … ``go3`` (their goals are ``GOALS``) and, if wanted, ``crash0``."""

    metadata = {"autoreset_mode": AutoresetMode.DISABLED, "render_modes": []}  # noqa: RUF012

    def __init__(self, num_envs: int, max_decisions: int = 4, crashing: bool = False, horizon: int = HORIZON) -> None:
        self.num_envs, self.max_decisions = num_envs, max_decisions
        self.tokens = [f"go{i}" for i in range(len(GOALS))] + (["crash0"] if crashing else [])
        sizes = {"front": (6, 8, 3), "left": (4, 5, 3), "right": (5, 4, 3)}
        self.single_observation_space = spaces.Dict(
            {
                "images": spaces.Dict({name: spaces.Box(0, 255, size, np.uint8) for name, size in sizes.items()}),
                "ego": spaces.Box(-np.inf, np.inf, (5,), np.float32),
                "route": spaces.Box(-np.inf, np.inf, (3, 2), np.float32),
                "history": spaces.Box(-np.inf, np.inf, (2, 3), np.float32),
                "command": spaces.Discrete(4),
                "text": spaces.Text(100),
            }
        )
        self.single_action_space = spaces.Box(-np.inf, np.inf, (horizon, 3), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.where = np.zeros(num_envs)
        self.decided = np.zeros(num_envs, dtype=np.int64)
        self.names = [""] * num_envs
        self.steps_asked = 0

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        options = options or {}
        rows = np.asarray(options.get("reset_mask", np.ones(self.num_envs, dtype=bool)))
        for row in np.flatnonzero(rows):
            self.names[row] = options["scenes"][row]
            self.where[row], self.decided[row] = 0.0, 0
        return self._observe(), {"scene": list(self.names)}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self.steps_asked += 1
        before = np.abs(self._goals() - self.where)
        self.where = self.where + np.clip(np.asarray(actions)[:, -1, 0], -2.0, 2.0)
        self.decided += 1
        after = np.abs(self._goals() - self.where)
        crashed = np.array([name.startswith("crash") for name in self.names]) & (self.decided >= 2)
        nearer = (before - after).astype(np.float32)
        info = {
            "terms": {"nearer": nearer, "count": np.ones(self.num_envs, dtype=np.float32)},
            "metrics": {"score": (after < 1.0).astype(np.float32)},
            "scene": list(self.names),
            "valid": ~crashed,
        }
        return self._observe(), nearer, after < 1.0, self.decided >= self.max_decisions, info

    def _goals(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.array([GOALS[int(name[-1])] for name in self.names])

    def _observe(self) -> dict[str, Any]:
        n, space = self.num_envs, self.single_observation_space["images"]
        shade = np.clip(100 + 10 * self.where, 0, 255).astype(np.uint8)
        tint = {"front": 0, "left": 50, "right": 90}
        ego = np.zeros((n, 5), dtype=np.float32)
        ego[:, 0] = np.abs(self._goals() - self.where)
        route = np.zeros((n, 3, 2), dtype=np.float32)
        route[:, :, 0] = (self._goals() - self.where)[:, None] * np.arange(1, 4)
        return {
            "images": {k: np.broadcast_to((shade + tint[k])[:, None, None, None], (n, *space[k].shape)).copy() for k in space},
            "ego": ego,
            "route": route,
            "history": np.repeat(np.float32(self.where)[:, None, None] + np.float32([[0.1], [0.2]]), 3, axis=2),
            "command": self.decided % 4,
            "text": [f"go on{'!' * int(k)}" for k in self.decided],
        }
