"""The VectorEnv that a configuration means, for frameworks that run it in processes of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import gymnasium
from gymnasium.vector import VectorEnv

from vla_models.errors import ConfigError
from vla_models.training.scenes import build_scenes

if TYPE_CHECKING:
    from vla_models.config import VLAConfig

IDS = {"navsim": "NavSim-v0", "bench2drive": "Bench2Drive-v0"}
"""environment.type -> gymnasium id."""


def make_vector_env(config: VLAConfig, part: Literal["train", "heldout"], num_envs: int) -> VectorEnv:
    """``num_envs`` rows of the configured environment on its training or held-out scenes.

    Raises ``ConfigError`` for an environment that this version does not have.
    """
    import vla_models.envs

    env = config.environment
    name = IDS.get(env.type, env.type)
    if name not in gymnasium.registry:
        there = ", ".join(kind for kind, known in IDS.items() if known in gymnasium.registry)
        raise ConfigError(f"environment.type: this version of {vla_models.envs.__name__} has no {name}; there is: {there}")
    reward = config.reward.model_dump(exclude={"invalid"})  # that one is about answers, not about drives
    options: dict[str, Any] = {"scenes": build_scenes(config, part), "reward": reward}
    if env.type == "navsim":
        options |= {"score_version": env.score_version, "threads": config.training.threads or 1}
        options["reward"]["version"] = env.score_version
    return gymnasium.make_vec(name, num_envs=num_envs, vectorization_mode="vector_entry_point", **options)
