"""The Bench2Drive routes of a configuration, as an environment: what is driven in training, and what is held out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from vla_models.errors import ConfigError
from vla_models.inputs import VLASpec

if TYPE_CHECKING:
    from vla_models.config import VLAConfig
    from vla_models.envs.bench2drive import Bench2DriveEnv

PLANS = VLASpec(horizon=8, dt=0.5)
"""How plans are made where nobody says it: NavSim's 8 poses, 0.5 s apart."""


def make_route_env(
    config: VLAConfig,
    part: Literal["train", "heldout"],
    num_envs: int,
    spec: VLASpec = PLANS,
    *,
    cameras: Sequence[str] | None = None,
) -> Bench2DriveEnv:
    """``num_envs`` rows on the training routes or on those to evaluate on.

    They come from ``environment.train_routes`` or ``environment.routes``, or where these are left out are generated from its
    towns, types, counts and ``scenes_seed``. The two parts share no town then, so no route and no route's name either.

    Args:
        config: the run's configuration, of type bench2drive.
        part: which routes.
        num_envs: rows.
        spec: of the model that will drive: its plans' poses and seconds, and the controller that follows them.
        cameras: other ones than the configuration's; none for drivers that look at no pictures.

    Raises:
        ConfigError: for a backend that this version does not have, or settings that do not fit together.
        SceneError: for a route that cannot be read or staged, or a type for which no town has a place.
    """
    from vla_models.envs.bench2drive import Bench2DriveEnv, RouteSpec
    from vla_models.scenes.bench2drive.scenario_types import BENCH2DRIVE_TYPES

    env = config.environment
    if (env.type, env.backend) != ("bench2drive", "embedded"):
        raise ConfigError(
            f"environment.backend: routes are driven in bench2drive's embedded world, not in {env.type} with {env.backend!r}"
        )
    file = env.train_routes if part == "train" else env.routes
    towns, count = (env.train_towns, env.train_scenes) if part == "train" else (env.heldout_towns, env.heldout_scenes)
    types = tuple(env.scenario_types) or BENCH2DRIVE_TYPES
    return Bench2DriveEnv(
        num_envs,
        routes=RouteSpec(types, tuple(towns), count, env.scenes_seed) if file is None else file,
        skip_bad=env.skip_bad and file is not None,
        reward=config.reward.model_dump(exclude={"invalid"}),  # that one is about answers, not about drives
        cameras=tuple(env.cameras if cameras is None else cameras),
        image_size=(env.camera.height, env.camera.width),
        plan_steps=spec.horizon,
        plan_dt=spec.dt,
        ticks=env.ticks,
        max_ticks=env.max_ticks,
        controller="tracker" if spec.controller == "tracker" else "pid",
    )
