"""Action spaces of continuous heads: plans as T × D numbers of about unit size, and back.

``controls``: an acceleration and a steering effort a step (D = 2), integrated from the present speed, so that noise on an
action still gives a plan that can be driven. ``waypoints``: the poses themselves (D = 3), as their distance from driving on
straight at the present speed.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from vla_models.errors import CheckpointError, ConfigError, did_you_mean
from vla_models.heads.base import ExactBuffers, check_plans
from vla_models.heads.codebook import KinematicCodebook
from vla_models.heads.kinematics import arc, bounded, poses, start_state, travel, wrap

LEAST_STD: Final = 1e-2
"""Of a coordinate: what hardly varies in a data set is not blown up to unit size."""
HARDEST_BRAKING: Final = -6.0
STRONGEST_ACCELERATION: Final = 3.0
"""m/s²: what ``controls`` are cut to."""
TIGHTEST: Final = 0.3
"""1/m: the same for curvature."""


class ActionSpace(ExactBuffers):
    """Plans as actions [..., T, D]; ``mean`` and ``std`` [T, D] (buffers, saved) bring actions to about unit size."""

    mean: Tensor
    std: Tensor

    def __init__(self, horizon: int, dt: float, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.horizon, self.dt, self.dim = horizon, dt, mean.shape[1]
        self.register_buffer("mean", mean.double())
        self.register_buffer("std", std.double())

    @abstractmethod
    def plans(self, physical: Tensor, speed: Tensor) -> Tensor:
        """Plans float32 [B, T, 3] of actions in physical units, float64 [B, T, D], from speeds [B]."""

    @abstractmethod
    def physical(self, plans: Tensor, speed: Tensor) -> Tensor:
        """Actions float64 [B, T, D] in physical units whose plan lies nearest to ``plans`` [B, T, 3]."""

    def decode(self, actions: Tensor, speed: Tensor) -> Tensor:
        """Plans float32 [B, T, 3] of normalised actions [B, T, D]."""
        return self.plans(actions.double() * self.std + self.mean, speed)

    def encode(self, plans: Any, speed: Tensor) -> Tensor:
        """Normalised actions float32 [B, T, D] of plans [B, T, 3]."""
        wanted = check_plans(plans, self.horizon).to(self.mean.device)
        return ((self.physical(wanted, speed) - self.mean) / self.std).float()

    def measure(self, plans: Any, speed: Tensor) -> dict[str, Any]:
        """``mean`` and ``std`` [T, D] of the plans' actions."""
        wanted = check_plans(plans, self.horizon).to(self.mean.device)
        found = self.physical(wanted, speed)
        return {"mean": found.mean(0).tolist(), "std": found.std(0, correction=0).tolist()}

    def normalise(self, statistics: Mapping[str, Any]) -> None:
        """Take what ``measure`` found."""
        mean, std = (self.mean.new_tensor(statistics[key]) for key in ("mean", "std"))
        if mean.shape != self.mean.shape or std.shape != mean.shape:
            raise CheckpointError(f"these statistics are {list(mean.shape)}; the action space is {list(self.mean.shape)}")
        self.mean.copy_(mean)
        self.std.copy_(std.clamp_min(LEAST_STD))


class WaypointSpace(ActionSpace):
    """Poses minus those of driving straight on at the present speed."""

    times: Tensor

    def __init__(self, horizon: int = 8, dt: float = 0.5) -> None:
        t = dt * torch.arange(1, horizon + 1, dtype=torch.float64)
        std = torch.stack([0.3 * t + 0.4 * t * t, 0.2 + 0.25 * t * t, 0.05 + 0.1 * t], dim=-1)
        super().__init__(horizon, dt, torch.zeros_like(std), std)
        self.register_buffer("times", t)

    def plans(self, physical: Tensor, speed: Tensor) -> Tensor:
        """See ``ActionSpace``."""
        x = physical[..., 0] + speed.double()[:, None] * self.times
        return torch.stack([x, physical[..., 1], wrap(physical[..., 2])], dim=-1).float()

    def physical(self, plans: Tensor, speed: Tensor) -> Tensor:
        """See ``ActionSpace``."""
        x = plans[..., 0] - speed.to(plans.device).double()[:, None] * self.times
        return torch.stack([x, plans[..., 1], wrap(plans[..., 2])], dim=-1)


class ControlSpace(ActionSpace):
    """Acceleration in m/s² and steering effort: curvature over ``gentle(v)``, a moderate turn at speed v."""

    def __init__(self, horizon: int = 8, dt: float = 0.5) -> None:
        super().__init__(horizon, dt, torch.zeros(horizon, 2), torch.tensor([[1.0, 0.5]]).repeat(horizon, 1))

    def plans(self, physical: Tensor, speed: Tensor) -> Tensor:
        """See ``ActionSpace``."""
        return poses(self._states(physical, speed))

    def physical(self, plans: Tensor, speed: Tensor) -> Tensor:
        """See ``ActionSpace``: the nearest tokens of the kinematic codebook, then Gauss-Newton from there."""
        book = KinematicCodebook(horizon=self.horizon, dt=self.dt)
        speed = speed.to(plans.device).double()
        tokens = book.encode(plans, speed)
        a = torch.tensor(book.accelerations, dtype=torch.float64, device=plans.device)[tokens // book.sizes[1]]
        c = torch.tensor(book.curvatures, dtype=torch.float64, device=plans.device)[tokens % book.sizes[1]]
        v = book.states(tokens, speed)[..., 3]
        top = torch.maximum(v[:, 1:], v[:, :-1])
        return _refine(self, torch.stack([a, bounded(c, top) / gentle(top)], dim=-1), plans, speed)

    def _states(self, physical: Tensor, speed: Tensor) -> Tensor:
        x, y, heading, v = start_state(speed).unbind(-1)
        out = []
        for acceleration, effort in (step.unbind(-1) for step in physical.unbind(1)):
            length, end = travel(v, acceleration.clamp(HARDEST_BRAKING, STRONGEST_ACCELERATION), self.dt)
            top = torch.maximum(v, end)
            curvature = (effort * gentle(top)).clamp(-TIGHTEST, TIGHTEST)
            x, y, heading = arc(x, y, heading, length, bounded(curvature, top))
            v = end
            out.append(torch.stack([x, y, heading, v], dim=-1))
        return torch.stack(out, dim=1)


def gentle(v: Tensor) -> Tensor:
    """1/m: a turn of 8 m radius at walking pace, of 2.5 m/s² to the side at speed."""
    return 1.0 / (8.0 + v * v / 2.5)


SPACES: Final = {"controls": ControlSpace, "waypoints": WaypointSpace}


def make_space(name: str, horizon: int, dt: float) -> ActionSpace:
    """An action space by name."""
    if name not in SPACES:
        raise ConfigError(f"model.policy_head.space: there is no action space {name!r}; {did_you_mean(name, SPACES)}")
    space: ActionSpace = SPACES[name](horizon, dt)
    return space


_ROUNDS: Final = 6
_RESIDUAL_WEIGHTS: Final = (1.0, 1.0, 5.0)
_CHANGE_WEIGHT: Final = 0.1
_DAMPING: Final = 1e-2
_NUDGE: Final = 1e-6
# Per metre along x and y, per radian of heading; per unit of action between steps; of the Gauss-Newton matrix; for derivatives.


def _refine(space: ControlSpace, actions: Tensor, plans: Tensor, speed: Tensor) -> Tensor:
    """A few damped Gauss-Newton steps that bring the plans of ``actions`` [B, T, 2] nearer to ``plans``; rows only improve."""
    weights = plans.new_tensor(_RESIDUAL_WEIGHTS)
    numbers = actions[0].numel()
    nudges = _NUDGE * torch.eye(numbers, dtype=actions.dtype, device=actions.device)

    def residuals(flat: Tensor, plan: Tensor, v: Tensor) -> Tensor:
        action = flat.view(-1, *actions.shape[1:])
        state = space._states(action, v)
        error = torch.cat([state[..., :2] - plan[..., :2], wrap(state[..., 2:3] - plan[..., 2:3])], dim=-1) * weights
        change = _CHANGE_WEIGHT * (action[:, 1:] - action[:, :-1])
        return torch.cat([error.flatten(1), change.flatten(1)], dim=1)

    out = []
    for part, plan, v in zip(*(torch.split(t, 256) for t in (actions, plans, speed)), strict=True):
        best = part.flatten(1)
        many = plan.repeat_interleave(numbers, dim=0), v.repeat_interleave(numbers)
        r = residuals(best, plan, v)
        for _ in range(_ROUNDS):
            nudged = residuals((best[:, None] + nudges).flatten(0, 1), *many).view(len(part), numbers, -1)
            j = (nudged - r[:, None]) / _NUDGE  # [B, numbers, residuals], the transposed Jacobian
            normal = j @ j.transpose(1, 2) + _DAMPING * torch.eye(numbers, dtype=j.dtype, device=j.device)
            tried = best - torch.linalg.solve(normal, j @ r[..., None])[..., 0]
            trial = residuals(tried, plan, v)
            better = (trial.square().sum(1) < r.square().sum(1))[:, None]
            best, r = torch.where(better, tried, best), torch.where(better, trial, r)
        out.append(best.view(part.shape))
    return torch.cat(out)
