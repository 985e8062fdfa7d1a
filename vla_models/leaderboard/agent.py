"""``VLANavSimAgent``: a trained model as an agent of navsim's own scripts (1.1 and 2.2).

    python $NAVSIM_DEVKIT/navsim/planning/script/run_pdm_score.py --config-dir configs/leaderboard agent=vla_agent \\
        agent.checkpoint=runs/my_run/checkpoints/model train_test_split=navtest …

This module can only be imported where navsim is installed; what it does to the data is ``translate``, which can be anywhere.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from vla_models.errors import MissingDependency
from vla_models.leaderboard.translate import check_spec, sensor_frames, to_input, to_poses
from vla_models.scenes.scene import PLAN_DT, PLAN_STEPS

try:
    from navsim.agents.abstract_agent import AbstractAgent
    from navsim.common.dataclasses import SensorConfig, Trajectory
    from nuplan.planning.simulation.trajectory.trajectory_sampling import TrajectorySampling
except ImportError as error:
    raise MissingDependency(
        f"VLANavSimAgent runs inside navsim's scripts and needs navsim and nuplan-devkit ({error}); install them as "
        "github.com/autonomousvision/navsim says. To score a model without them: vla-models eval"
    ) from error

if TYPE_CHECKING:
    from vla_models.interface import VLAForDriving


class VLANavSimAgent(AbstractAgent):
    """A vla_models checkpoint that drives in NavSim.

    Args:
        checkpoint: a folder that ``save_pretrained`` wrote.
        device: where the model runs.
        trajectory_sampling: NavSim passes 4 s at 0.5 s; nothing else can be planned.

    The model decides deterministically, so that an evaluation can be repeated.
    """

    requires_scene = False

    def __init__(self, checkpoint: str, device: str = "cpu", trajectory_sampling: TrajectorySampling | None = None) -> None:
        sampling = trajectory_sampling or TrajectorySampling(num_poses=PLAN_STEPS, interval_length=PLAN_DT)
        if "trajectory_sampling" in inspect.signature(AbstractAgent.__init__).parameters:  # 2.2
            super().__init__(trajectory_sampling=sampling, requires_scene=False)
        else:
            super().__init__(requires_scene=False)
            self._trajectory_sampling = sampling
        self._checkpoint = checkpoint
        self._device = device
        self._model: VLAForDriving | None = None

    def name(self) -> str:
        """Inherited, see superclass."""
        return type(self).__name__

    def get_sensor_config(self) -> SensorConfig:
        """The model's cameras at the present frame."""
        return SensorConfig(**sensor_frames(self._loaded().spec))

    def initialize(self) -> None:
        """Load the model, where it was not loaded for its sensor config."""
        self._loaded()

    def compute_trajectory(self, agent_input: Any) -> Trajectory:
        """The model's most likely plan."""
        import torch

        model = self._loaded()
        with torch.inference_mode():
            plan = model.predict(to_input(agent_input, model.spec), deterministic=True).waypoints
        return Trajectory(to_poses(plan), self._trajectory_sampling)

    def _loaded(self) -> VLAForDriving:
        if self._model is None:
            from vla_models.interface import VLAForDriving

            model = VLAForDriving.from_pretrained(self._checkpoint)
            model.require("evaluated")
            check_spec(model.spec)
            self._model = model.to(self._device).eval()
        return self._model
