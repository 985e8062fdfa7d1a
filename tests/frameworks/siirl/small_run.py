"""A user's script that trains with siiRL on scenes of its own: ``python small_run.py CONFIG [--resume RUN]``.

It registers an environment with the decorator, golden scenes in the place of generated ones, and siiRL's processes get it since
they import this file again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent), str(HERE), str(HERE.parent.parent.parent / "examples")]

import bring_your_own_model  # noqa: E402, F401 - registers my_vla
from golden import visible_scenes  # noqa: E402
from gymnasium.vector import VectorEnv  # noqa: E402

from vla_models.config import VLAConfig  # noqa: E402
from vla_models.envs.navsim import NavSimEnv  # noqa: E402
from vla_models.frameworks import run_folder  # noqa: E402
from vla_models.frameworks.siirl.env import NavSimVLAAdapter  # noqa: E402
from vla_models.inputs import VLASpec  # noqa: E402
from vla_models.model_registry import register_env_adapter  # noqa: E402
from vla_models.scenes.scene import Scene  # noqa: E402


def scenes(config: VLAConfig, part: str) -> Sequence[Scene]:
    return visible_scenes(6)[:4] if part == "train" else visible_scenes(6)[4:]


run_folder.build_scenes = scenes


@register_env_adapter("navsim", "siirl")
class GoldenNavSim(NavSimVLAAdapter):
    @classmethod
    def make_env(cls, config: VLAConfig, part: Any, num_envs: int, spec: VLASpec) -> VectorEnv:
        return NavSimEnv(num_envs, scenes=scenes(config, part))


def main(config: str, resume: str | None) -> None:
    from vla_models.frameworks import get_launcher

    print("RUN", get_launcher("siirl")(VLAConfig.from_yaml(config), resume=resume))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[3] if len(sys.argv) > 3 else None)
