"""A user's script that trains with verl on scenes of its own: ``python small_run.py CONFIG [--resume RUN]``.

It registers an environment with the decorator, golden scenes in the place of generated ones, and verl's processes get it
because they import this file again.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent), str(HERE), str(HERE.parents[2] / "examples")]

import bring_your_own_model  # noqa: E402, F401 - the outside model, registered as my_vla
import small_models  # noqa: E402, F401 - registers models
from golden import visible_scenes  # noqa: E402
from gymnasium.vector import VectorEnv  # noqa: E402

from vla_models.config import VLAConfig  # noqa: E402
from vla_models.envs.navsim import NavSimEnv  # noqa: E402
from vla_models.frameworks import run_folder  # noqa: E402
from vla_models.frameworks.verl.env import VerlNavSimAdapter  # noqa: E402
from vla_models.model_registry import register_env_adapter  # noqa: E402
from vla_models.scenes.scene import Scene  # noqa: E402


def scenes(part: str) -> Sequence[Scene]:
    return visible_scenes(6)[:4] if part == "train" else visible_scenes(6)[4:]


class Raising(NavSimEnv):
    """Raises where a scene of ``VLA_TEST_RAISES`` is scored."""

    def step(self, actions: Any) -> Any:
        if {self.tokens[i] for i in self._indices} & set(os.environ.get("VLA_TEST_RAISES", "").split(",")):
            raise OSError("the disk is gone")
        return super().step(actions)


@register_env_adapter("navsim", "verl")
class GoldenNavSim(VerlNavSimAdapter):
    @classmethod
    def make_env(cls, config: VLAConfig, part: Any, num_envs: int, spec: Any) -> VectorEnv:
        return Raising(num_envs, scenes=scenes(part), reward=config.reward.model_dump(exclude={"invalid"}))


if __name__ == "__main__":
    from vla_models.frameworks.verl.launch import launch

    run_folder.build_scenes = lambda config, part: scenes(part)
    arguments = sys.argv[1:]
    resume = arguments[arguments.index("--resume") + 1] if "--resume" in arguments else None
    print("RUN", launch(VLAConfig.from_yaml(arguments[0]), resume=resume))
