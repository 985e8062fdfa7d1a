"""The scenes of a configuration: what is trained on, and what is held out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vla_models.errors import ConfigError, SceneError
from vla_models.render.camera import CameraSpec
from vla_models.scenes.procedural import ProceduralSpec, generate
from vla_models.scenes.scene import Scene
from vla_models.scenes.store import SceneStore
from vla_models.training.progress import Bar

if TYPE_CHECKING:
    from vla_models.config import VLAConfig

FOV = 90.0
"""Degrees: the front camera's field of view where the configuration says nothing."""


def build_scenes(config: VLAConfig, part: Literal["train", "heldout"]) -> Sequence[Scene]:
    """Training or held-out scenes: generated from ``environment`` the first time, from the cache afterwards. Training scenes
    are those of ``environment.train_store``, where that is set.

    Raises ConfigError for an environment that the local trainer does not run, SceneError if no scene comes out.
    """
    env = config.environment
    if (env.type, env.backend) != ("navsim", "procedural"):
        raise ConfigError(
            f"environment: the local trainer runs type navsim with backend procedural, not {env.type} with {env.backend!r}"
        )
    if part == "train" and env.train_store is not None:
        return SceneStore.open(Path(env.train_store))
    camera = CameraSpec(width=env.camera.width, height=env.camera.height, fov=env.camera.fov or FOV)
    towns, count = (env.train_towns, env.train_scenes) if part == "train" else (env.heldout_towns, env.heldout_scenes)
    spec = ProceduralSpec(towns=tuple(towns), count=count, seed=env.scenes_seed, camera=camera)
    with Bar(f"scenes ({part})", count) as bar:
        scenes = generate(spec, progress=bar, workers=config.training.threads or len(os.sched_getaffinity(0)))
    if len(scenes) == 0:
        raise SceneError(f"the towns {', '.join(towns)} gave no {part} scenes; name others in environment.{part}_towns")
    return scenes
