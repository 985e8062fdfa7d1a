"""The VectorEnv that a configuration means, for frameworks that run it in processes of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import gymnasium
from gymnasium.vector import VectorEnv

from vla_models.errors import ConfigError
from vla_models.inputs import VLASpec
from vla_models.training.routes import PLANS, make_route_env
from vla_models.training.scenes import build_scenes

if TYPE_CHECKING:
    from vla_models.config import VLAConfig


def make_vector_env(config: VLAConfig, part: Literal["train", "heldout"], num_envs: int, spec: VLASpec = PLANS) -> VectorEnv:
    """``num_envs`` rows of the configured environment on its training or held-out scenes.

    ``spec``: of the model that will drive. An environment that executes plans of any length (bench2drive) must know how long
    they are, and how they are followed.

    Raises ``ConfigError`` for an environment that this version does not have, ``SceneError`` where it has no scenes.
    """
    import vla_models.envs  # noqa: F401 - registers environments

    env = config.environment
    if env.type == "bench2drive":
        return make_route_env(config, part, num_envs, spec)
    if env.type != "navsim":
        raise ConfigError(
            f"environment.type: {env.type!r} is not built in (navsim and bench2drive are); its adapter must override make_env"
        )
    return gymnasium.make_vec(
        "NavSim-v0",
        num_envs=num_envs,
        vectorization_mode="vector_entry_point",
        scenes=build_scenes(config, part),
        reward={**config.reward.model_dump(exclude={"invalid"}), "version": env.score_version},
        score_version=env.score_version,
        threads=config.training.threads or 1,
    )
