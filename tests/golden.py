"""The official golden scenes (``tests/data/pdm``) with what their files lack, so that a model can be asked about them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from vla_models.geometry import arc_lengths, project, to_frame
from vla_models.scenes.neutral import read_scene
from vla_models.scenes.scene import Scene

GOLDEN = Path(__file__).parent / "data" / "pdm"


@cache
def visible_scenes(count: int = 6) -> list[Scene]:
    """The first ``count`` scenes, each with a (random) picture, its route ahead and a command."""
    return [_visible(read_scene(path), seed) for seed, path in enumerate(sorted(GOLDEN.glob("*.json.gz"))[:count])]


def _visible(scene: Scene, seed: int) -> Scene:
    at, _ = project(scene.centerline, scene.ego[0], scene.ego[1])
    told = at + 5.0 * np.arange(1, 11)  # np.interp stays at the end of a centre line that is too short
    arc = arc_lengths(scene.centerline)
    ahead = np.stack([np.interp(told, arc, scene.centerline[:, k]) for k in (0, 1)], axis=-1)
    image = np.random.default_rng(seed).integers(0, 256, (96, 160, 3), dtype=np.uint8)
    return scene.with_(images={"front": image}, route=to_frame(ahead, scene.ego[:3]), command=seed % 4)
