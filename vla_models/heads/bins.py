"""Waypoints as 256 bins a coordinate, the action tokens of OpenVLA: three tokens (x, y, heading) a pose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from vla_models.errors import CheckpointError
from vla_models.heads.base import ExactBuffers, check_plans
from vla_models.heads.codebook import StepCodebook
from vla_models.heads.kinematics import poses, wrap

MARGIN: Final = 0.05
"""Of the range between a data set's extremes, added at both ends."""


class BinCodebook(StepCodebook, ExactBuffers):
    """Each coordinate of each pose in ``bins`` equal parts of its own range ``low`` … ``high`` [T, 3] (buffers, saved).

    A range grows with the time until the pose. Made without data they fit driving in town up to 20 m/s; ``normalise`` takes
    those of a data set. What lies outside is brought to the nearest bin.
    """

    low: Tensor
    high: Tensor

    def __init__(self, horizon: int = 8, dt: float = 0.5, bins: int = 256) -> None:
        super().__init__()
        self.horizon, self.dt, self.bins = horizon, dt, bins
        t = dt * torch.arange(1, horizon + 1, dtype=torch.float64)
        turn = (0.2 + 0.4 * t).clamp_max(torch.pi)
        self.register_buffer("low", torch.stack([-0.5 - 0.5 * t, -0.5 - 1.5 * t * t, -turn], dim=-1))
        self.register_buffer("high", torch.stack([0.5 + 20.0 * t, 0.5 + 1.5 * t * t, turn], dim=-1))

    @property
    def sizes(self) -> tuple[int, int, int]:
        """A step says x, y and heading."""
        return self.bins, self.bins, self.bins

    @property
    def token_sizes(self) -> tuple[int]:
        """A token is the bin of one coordinate."""
        return (self.bins,)

    @property
    def length(self) -> int:
        """Three tokens a pose."""
        return 3 * self.horizon

    def advance(self, state: Tensor, steps: Tensor, index: int) -> Tensor:
        """See ``StepCodebook``; the speed is that of a straight drive from pose to pose."""
        chosen = torch.stack([steps // self.bins**2, steps // self.bins % self.bins, steps % self.bins], dim=-1)
        pose = self._centres(chosen, self.low[index], self.high[index])
        speed = (pose[..., :2] - state[..., :2]).norm(dim=-1, keepdim=True) / self.dt
        return torch.cat([pose, speed], dim=-1)

    def encode(self, plans: Tensor, speed: Tensor) -> Tensor:
        """See ``Codebook``; the order is x, y, heading of the first pose, then of the second …"""
        wanted = check_plans(plans, self.horizon).to(self.low.device)
        wanted = torch.cat([wanted[..., :2], wrap(wanted[..., 2:])], dim=-1)
        part = (wanted - self.low) / (self.high - self.low)
        return (part * self.bins).floor().clamp(0, self.bins - 1).long().flatten(1)

    def encode_steps(self, plans: Tensor, speed: Tensor) -> Tensor:
        """See ``StepCodebook``."""
        x, y, heading = self.encode(plans, speed).view(-1, self.horizon, 3).unbind(-1)
        steps: Tensor = (x * self.bins + y) * self.bins + heading
        return steps

    def decode(self, tokens: Tensor, speed: Tensor) -> Tensor:
        """See ``Codebook``."""
        return poses(self._centres(tokens.view(-1, self.horizon, 3), self.low, self.high))

    def measure(self, plans: Tensor, speed: Tensor) -> dict[str, Any]:
        """``low`` and ``high`` [T, 3] of the plans."""
        wanted = check_plans(plans, self.horizon)
        wanted = torch.cat([wanted[..., :2], wrap(wanted[..., 2:])], dim=-1)
        return {"low": wanted.amin(0).tolist(), "high": wanted.amax(0).tolist()}

    def normalise(self, statistics: Mapping[str, Any]) -> None:
        """Ranges from ``low`` to ``high``, ``MARGIN`` wider and never narrower than 0.2 (m, rad)."""
        low, high = (self.low.new_tensor(statistics[key]) for key in ("low", "high"))
        if low.shape != self.low.shape or high.shape != low.shape:
            raise CheckpointError(f"these statistics are of {len(low)} poses; the codebook has {self.horizon}")
        extra = torch.maximum(MARGIN * (high - low), 0.1 - (high - low) / 2).clamp_min(1e-3)
        self.low.copy_(low - extra)
        self.high.copy_(high + extra)

    def _centres(self, chosen: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return low + (chosen + 0.5) / self.bins * (high - low)
