"""Codebooks: plans as a few integers and back. Here is what all have in common, and the kinematic one.

``KinematicCodebook`` turns a plan into T tokens. Token k holds one acceleration and one curvature for 0.5 s and is integrated
exactly from the ego's current speed: the speed never falls below zero, the path is a chain of circular arcs, and the
curvature is limited by what tyres allow at that speed. Whatever tokens a model emits, the plan can be driven.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor

from vla_models.heads.base import check_plans
from vla_models.heads.kinematics import arc, bounded, poses, start_state, travel, wrap

ACCELERATIONS: Final = (-5.0, -3.5, -2.5, -1.7, -1.0, -0.5, 0.0, 0.5, 1.0, 1.6, 2.2)
"""m/s². NavSim's comfort asks for -4.05 … 2.40: one bin lies below, because a hard stop may save more than comfort costs."""
CURVATURES: Final = (0.0, 0.003, 0.008, 0.016, 0.028, 0.045, 0.065, 0.09, 0.12, 0.155, 0.195, 0.24, 0.3)
"""1/m, mirrored to the right (negative). 0.3 is a turn of 3.3 m radius at the rear axle: NavSim's Pacifica can do 1.8 m."""

_SPEED_WEIGHT: Final = 0.15
_HARSHNESS_WEIGHT: Final = 0.002
_HEADING_WEIGHT: Final = 80.0
_CURVATURE_WEIGHT: Final = 1.0
# Squared errors that a fit trades off against a squared metre: m/s, m/s² from token to token, rad, 1/m from token to token.
# A heading counts for much: NavSim's tracker steers by it, and plans of PDM-Closed begin with a sidestep onto the centre line
# that no car can make; fitted by position alone, a plan would swerve.


class Codebook(ABC):
    """Plans of ``horizon`` poses, ``dt`` seconds apart, as ``length`` tokens out of ``vocabulary``."""

    horizon: int
    dt: float

    @property
    @abstractmethod
    def length(self) -> int:
        """Tokens in a plan."""

    @property
    @abstractmethod
    def token_sizes(self) -> tuple[int, ...]:
        """Numbers of values of a token's factors; their product is the vocabulary."""

    @property
    def vocabulary(self) -> int:
        """Number of different tokens."""
        return math.prod(self.token_sizes)

    @abstractmethod
    def encode(self, plans: Tensor, speed: Tensor) -> Tensor:
        """Tokens int64 ``[B, length]`` whose plan lies nearest to ``plans`` ``[B, T, 3]`` driven from speeds ``[B]``."""

    @abstractmethod
    def decode(self, tokens: Tensor, speed: Tensor) -> Tensor:
        """Plans float32 ``[B, T, 3]`` (x, y, heading in (-pi, pi]) of tokens ``[B, length]`` at speeds ``[B]``."""

    def measure(self, plans: Tensor, speed: Tensor) -> dict[str, Any]:
        """What this codebook must know of a data set's plans, as JSON values; empty where it is made without data."""
        return {}

    def normalise(self, statistics: Mapping[str, Any]) -> None:
        """Take what ``measure`` found."""
        return


class StepCodebook(Codebook):
    """A codebook that grows a plan pose by pose: after each step a state ``[..., 4]`` (x, y, heading, speed), float64.

    A step is one integer, too: its factors have ``sizes`` values. Who decides step by step sees where the last one led.
    """

    @property
    @abstractmethod
    def sizes(self) -> tuple[int, ...]:
        """Numbers of values of a step's factors."""

    @abstractmethod
    def advance(self, state: Tensor, steps: Tensor, index: int) -> Tensor:
        """States ``[..., 4]`` after the steps ``[...]`` that lead to pose number ``index``."""

    @abstractmethod
    def encode_steps(self, plans: Tensor, speed: Tensor) -> Tensor:
        """As ``encode``: steps int64 ``[B, T]``."""

    def start(self, speed: Tensor) -> Tensor:
        """State ``[..., 4]`` at decision time for speeds ``[...]`` in m/s (a reversing ego counts as standing)."""
        return start_state(speed)

    def states(self, steps: Tensor, speed: Tensor) -> Tensor:
        """All states ``[B, T + 1, 4]`` of step rows ``[B, T]``, the start first."""
        out = [self.start(speed)]
        for k in range(steps.shape[1]):
            out.append(self.advance(out[-1], steps[:, k], k))
        return torch.stack(out, dim=1)

    @staticmethod
    def plans(states: Tensor) -> Tensor:
        """States ``[..., 4]`` as poses float32 ``[..., 3]``."""
        return poses(states)


@dataclass(frozen=True)
class KinematicCodebook(StepCodebook):
    """Plans of ``horizon`` poses, ``dt`` seconds apart, as integers in ``[0, len(accelerations) * len(curvatures))``.

    A token is ``acceleration_index * len(curvatures) + curvature_index``. States are float64 ``[..., 4]``: x, y, heading of
    the rear axle in the ego frame, and speed; the start is ``(0, 0, 0, speed)``.
    """

    accelerations: tuple[float, ...] = ACCELERATIONS
    curvatures: tuple[float, ...] = tuple(-c for c in reversed(CURVATURES[1:])) + CURVATURES
    horizon: int = 8
    dt: float = 0.5

    def __post_init__(self) -> None:
        for name in ("accelerations", "curvatures"):
            values = getattr(self, name)
            if len(values) < 2 or any(b <= a for a, b in pairwise(values)):
                raise ValueError(f"KinematicCodebook: {name} must be two or more increasing numbers, not {values}")

    @property
    def sizes(self) -> tuple[int, int]:
        """Number of accelerations and of curvatures: the factors of a token."""
        return len(self.accelerations), len(self.curvatures)

    @property
    def token_sizes(self) -> tuple[int, int]:
        """A token is a step."""
        return self.sizes

    @property
    def length(self) -> int:
        """One token a pose."""
        return self.horizon

    def advance(self, state: Tensor, steps: Tensor, index: int = 0) -> Tensor:
        """States ``[..., 4]`` after holding ``steps`` (int64 ``[...]``) for ``dt`` seconds; they are the same at any index."""
        a = torch.as_tensor(self.accelerations, dtype=torch.float64, device=state.device)[steps // self.sizes[1]]
        c = torch.as_tensor(self.curvatures, dtype=torch.float64, device=state.device)[steps % self.sizes[1]]
        x, y, heading, v = state.unbind(-1)
        length, v_end = travel(v, a, self.dt)
        return torch.stack([*arc(x, y, heading, length, bounded(c, torch.maximum(v, v_end))), v_end], dim=-1)

    def decode(self, tokens: Tensor, speed: Tensor) -> Tensor:
        """Plans float32 ``[B, T, 3]`` (x, y, heading in (-pi, pi]) of token rows ``[B, T]`` at speeds ``[B]``."""
        return poses(self.states(tokens, speed)[:, 1:])

    def encode(self, plans: Tensor, speed: Tensor, beam: int = 24) -> Tensor:
        """Tokens int64 ``[B, T]`` whose plan lies nearest to ``plans`` ``[B, T, 3]`` driven from speeds ``[B]``.

        Two beam searches, vectorised over the batch: accelerations against the arc lengths of the plan, then curvatures
        against its poses. Both also prefer small changes from token to token, which keeps the ride comfortable.
        """
        plans = check_plans(plans, self.horizon)
        start = self.start(speed.to(plans.device))
        a, lengths, speeds = self._fit_accelerations(_arc_lengths(plans), start[:, 3], beam)
        c = self._fit_curvatures(plans, lengths, speeds, beam)
        return a * self.sizes[1] + c

    def encode_steps(self, plans: Tensor, speed: Tensor) -> Tensor:
        """A token is a step."""
        return self.encode(plans, speed)

    def _fit_accelerations(self, targets: Tensor, v0: Tensor, beam: int) -> tuple[Tensor, Tensor, Tensor]:
        """Acceleration indices [B, T] for arc lengths ``targets`` [B, T]; distances [B, T] and larger speeds [B, T] of each."""
        bins = torch.as_tensor(self.accelerations, dtype=torch.float64, device=targets.device)
        around = torch.cat([torch.zeros_like(targets[:, :1]), targets, 2 * targets[:, -1:] - targets[:, -2:-1]], dim=1)
        wanted_speed = (around[:, 2:] - around[:, :-2]) / (2 * self.dt)
        search = _Beam(len(targets), beam, {"s": torch.zeros_like(v0), "v": v0})
        for k in range(self.horizon):
            s, v = search.now["s"][..., None], search.now["v"][..., None]
            length, end = travel(v, bins, self.dt)
            cost = (s + length - targets[:, k, None, None]) ** 2
            cost = (
                cost
                + _SPEED_WEIGHT * (end - wanted_speed[:, k, None, None]) ** 2
                + _HARSHNESS_WEIGHT * search.change(bins) ** 2
            )
            search.extend(cost, {"s": s + length, "v": end}, bins, {"length": length, "top": torch.maximum(v, end)})
        return search.best(), search.best("length"), search.best("top")

    def _fit_curvatures(self, plans: Tensor, lengths: Tensor, speeds: Tensor, beam: int) -> Tensor:
        """Curvature indices [B, T] that bring arcs of ``lengths`` [B, T] to the poses ``plans`` [B, T, 3]."""
        bins = torch.as_tensor(self.curvatures, dtype=torch.float64, device=plans.device)
        zero = torch.zeros_like(lengths[:, 0])
        search = _Beam(len(plans), beam, {"x": zero, "y": zero, "heading": zero})
        for k in range(self.horizon):
            x, y, h = (search.now[name][..., None] for name in ("x", "y", "heading"))
            held = bounded(bins, speeds[:, k, None, None])
            x1, y1, h1 = arc(x, y, h, lengths[:, k, None, None], held)
            goal = plans[:, k, :, None, None].unbind(1)
            turn = wrap(h1 - goal[2])
            # The offset across the goal's heading: what lies along it is the business of the accelerations.
            across = (y1 - goal[1]) * goal[2].cos() - (x1 - goal[0]) * goal[2].sin()
            cost = across**2 + _HEADING_WEIGHT * turn**2 + _CURVATURE_WEIGHT * search.change(bins) ** 2
            search.extend(cost, {"x": x1, "y": y1, "heading": h1}, bins, {})
        return search.best()


class _Beam:
    """A beam search over sequences of bins for B rows at once; costs add up over the steps."""

    def __init__(self, rows: int, width: int, start: dict[str, Tensor]) -> None:
        self.now = {name: value[:, None] for name, value in start.items()}
        self._width = width
        self._cost = torch.zeros_like(next(iter(self.now.values())))
        self._history: dict[str, Tensor] = {}
        self._value: Tensor | None = None

    def change(self, bins: Tensor) -> Tensor:
        """Difference [B, K, V] of every bin from the value held last (none at the first step)."""
        last = torch.zeros_like(self._cost) if self._value is None else self._value
        return (bins - last[..., None]) * (0.0 if self._value is None else 1.0)

    def extend(self, cost: Tensor, state: dict[str, Tensor], bins: Tensor, kept: dict[str, Tensor]) -> None:
        """Append one bin: ``cost`` [B, K, V] of every choice, the states that follow, and what to remember of it."""
        choices = cost.shape[-1]
        total = (self._cost[..., None] + cost).flatten(1)
        self._cost, flat = total.topk(min(self._width, total.shape[1]), dim=1, largest=False)
        parent, choice = flat // choices, flat % choices
        self.now = {name: value.expand_as(cost).flatten(1).gather(1, flat) for name, value in state.items()}
        self._value = bins[choice]
        steps = {"choice": choice, **{n: v.expand_as(cost).flatten(1).gather(1, flat) for n, v in kept.items()}}
        for name, step in steps.items():
            if name in self._history:
                past = self._history[name]
                past = past.gather(1, parent[..., None].expand(*parent.shape, past.shape[-1]))
                self._history[name] = torch.cat([past, step[..., None]], dim=-1)
            else:
                self._history[name] = step[..., None]

    def best(self, name: str = "choice") -> Tensor:
        """What was chosen (or remembered under ``name``) along the cheapest sequence, [B, T]."""
        return self._history[name][:, 0]  # topk sorts: beam 0 is the cheapest


def _arc_lengths(plans: Tensor) -> Tensor:
    """Signed distance driven until each pose of ``plans`` [B, T, 3]: arcs through the poses, backwards counts negative."""
    known = torch.cat([torch.zeros_like(plans[:, :1]), plans], dim=1)
    step, turn = known[:, 1:, :2] - known[:, :-1, :2], known[:, 1:, 2] - known[:, :-1, 2]
    turn = wrap(turn).clamp(-1.5, 1.5)
    mean = known[:, :-1, 2] + turn / 2
    forward = step[..., 0] * mean.cos() + step[..., 1] * mean.sin()
    arcs = step.norm(dim=-1) / torch.sinc(turn / (2.0 * torch.pi))
    return torch.cumsum(torch.where(forward < 0.0, -arcs, arcs), dim=1)
