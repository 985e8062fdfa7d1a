"""How a car moves while it holds an acceleration and a curvature: what turns controls into plans that can be driven.

Float64 tensors of any equal shape; SI. The speed never falls below zero, the path is a chain of circular arcs.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

MAX_LATERAL: Final = 9.0
"""m/s² of lateral acceleration that controls may ask for: what dry road gives. Comfort (4.89) is for the model to learn; the
plans of PDM-Closed themselves ask for more in one scene of ten."""
MAX_YAW_RATE: Final = 1.7
"""rad/s that controls may ask for."""


def start_state(speed: Tensor) -> Tensor:
    """State ``[..., 4]`` (x, y, heading, speed) at decision time for speeds ``[...]`` (a reversing ego counts as standing)."""
    v = speed.double().clamp_min(0.0)
    zero = torch.zeros_like(v)
    return torch.stack([zero, zero, zero, v], dim=-1)


def travel(v: Tensor, a: Tensor, dt: float) -> tuple[Tensor, Tensor]:
    """Distance in ``dt`` from speed ``v`` under acceleration ``a``, and speed at its end; braking ends at a standstill."""
    end = (v + a * dt).clamp_min(0.0)
    stopping = v * v / (-2.0 * a).clamp_min(1e-9)
    return torch.where(v + a * dt < 0.0, stopping, 0.5 * (v + end) * dt), end


def bounded(curvature: Tensor, v: Tensor) -> Tensor:
    """Curvature cut to ``MAX_LATERAL`` and ``MAX_YAW_RATE`` at speed ``v``."""
    most = torch.minimum(MAX_YAW_RATE / v.clamp_min(1e-3), MAX_LATERAL / (v * v).clamp_min(1e-3))
    return torch.maximum(torch.minimum(curvature, most), -most)


def arc(x: Tensor, y: Tensor, heading: Tensor, length: Tensor, curvature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pose after an arc: its chord is ``length * sin(turn / 2) / (turn / 2)`` long and points half the turn ahead."""
    turn = length * curvature
    chord = length * torch.sinc(turn / (2.0 * torch.pi))
    return x + chord * (heading + turn / 2).cos(), y + chord * (heading + turn / 2).sin(), heading + turn


def wrap(angle: Tensor) -> Tensor:
    """``angle`` in (-pi, pi]."""
    return torch.atan2(angle.sin(), angle.cos())


def poses(states: Tensor) -> Tensor:
    """States ``[..., 4]`` as plan poses float32 ``[..., 3]``, headings in (-pi, pi]."""
    return torch.cat([states[..., :2], wrap(states[..., 2])[..., None]], dim=-1).float()
