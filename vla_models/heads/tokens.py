"""Plans as tokens: a kinematic codebook, and a categorical head whose samples can be replayed exactly.

``KinematicCodebook`` turns a plan into T tokens. Token k holds one acceleration and one curvature for 0.5 s and is integrated
exactly from the ego's current speed: the speed never falls below zero, the path is a chain of circular arcs, and the
curvature is limited by what tyres allow at that speed. Whatever tokens a model emits, the plan can be driven.

``TokenHead`` is the distribution. A token has one or several *factors* (here acceleration and curvature), each a softmax of
its own; the log-probability of a token is the sum over its factors. Sampling keeps, beside the token, which entries the
nucleus left (``support``), so that ``log_prob`` replays the very same distribution from raw logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor, nn

from vla_models.errors import PlanError

ACCELERATIONS: Final = (-5.0, -3.5, -2.5, -1.7, -1.0, -0.5, 0.0, 0.5, 1.0, 1.6, 2.2)
"""m/s². NavSim's comfort asks for -4.05 … 2.40: one bin lies below, because a hard stop may save more than comfort costs."""
CURVATURES: Final = (0.0, 0.003, 0.008, 0.016, 0.028, 0.045, 0.065, 0.09, 0.12, 0.155, 0.195, 0.24, 0.3)
"""1/m, mirrored to the right (negative). 0.3 is a turn of 3.3 m radius at the rear axle: NavSim's Pacifica can do 1.8 m."""
MAX_LATERAL: Final = 9.0
"""m/s² of lateral acceleration that a token may ask for: what dry road gives. Comfort (4.89) is for the model to learn; the
plans of PDM-Closed themselves ask for more in one scene of ten."""
MAX_YAW_RATE: Final = 1.7
"""rad/s that a token may ask for."""

_SPEED_WEIGHT: Final = 0.15
_HARSHNESS_WEIGHT: Final = 0.002
_HEADING_WEIGHT: Final = 80.0
_CURVATURE_WEIGHT: Final = 1.0
# Squared errors that a fit trades off against a squared metre: m/s, m/s² from token to token, rad, 1/m from token to token.
# A heading counts for much: NavSim's tracker steers by it, and plans of PDM-Closed begin with a sidestep onto the centre line
# that no car can make; fitted by position alone, a plan would swerve.


@dataclass(frozen=True)
class KinematicCodebook:
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
    def vocabulary(self) -> int:
        """Number of tokens."""
        return len(self.accelerations) * len(self.curvatures)

    def start(self, speed: Tensor) -> Tensor:
        """State ``[..., 4]`` at decision time for speeds ``[...]`` in m/s (a reversing ego counts as standing)."""
        v = speed.double().clamp_min(0.0)
        zero = torch.zeros_like(v)
        return torch.stack([zero, zero, zero, v], dim=-1)

    def advance(self, state: Tensor, tokens: Tensor) -> Tensor:
        """States ``[..., 4]`` after holding ``tokens`` (int64 ``[...]``) for ``dt`` seconds."""
        a = torch.as_tensor(self.accelerations, dtype=torch.float64, device=state.device)[tokens // self.sizes[1]]
        c = torch.as_tensor(self.curvatures, dtype=torch.float64, device=state.device)[tokens % self.sizes[1]]
        x, y, heading, v = state.unbind(-1)
        length, v_end = self._travel(v, a)
        return torch.stack([*self._arc(x, y, heading, length, self._limit(c, torch.maximum(v, v_end))), v_end], dim=-1)

    def states(self, tokens: Tensor, speed: Tensor) -> Tensor:
        """All states ``[B, T + 1, 4]`` of token rows ``[B, T]``, the start first."""
        out = [self.start(speed)]
        for k in range(tokens.shape[1]):
            out.append(self.advance(out[-1], tokens[:, k]))
        return torch.stack(out, dim=1)

    def decode(self, tokens: Tensor, speed: Tensor) -> Tensor:
        """Plans float32 ``[B, T, 3]`` (x, y, heading in (-pi, pi]) of token rows ``[B, T]`` at speeds ``[B]``."""
        return self.plans(self.states(tokens, speed)[:, 1:])

    @staticmethod
    def plans(states: Tensor) -> Tensor:
        """States ``[..., 4]`` as poses float32 ``[..., 3]``."""
        heading = torch.atan2(states[..., 2].sin(), states[..., 2].cos())
        return torch.cat([states[..., :2], heading[..., None]], dim=-1).float()

    def encode(self, plans: Tensor, speed: Tensor, beam: int = 24) -> Tensor:
        """Tokens int64 ``[B, T]`` whose plan lies nearest to ``plans`` ``[B, T, 3]`` driven from speeds ``[B]``.

        Two beam searches, vectorised over the batch: accelerations against the arc lengths of the plan, then curvatures
        against its poses. Both also prefer small changes from token to token, which keeps the ride comfortable.
        """
        plans = torch.as_tensor(plans)
        if plans.ndim != 3 or plans.shape[1:] != (self.horizon, 3):
            raise PlanError(f"plans must have shape [B, {self.horizon}, 3], not {list(plans.shape)}")
        if not torch.isfinite(plans).all():
            rows = (~torch.isfinite(plans).flatten(1).all(1)).nonzero().flatten().tolist()
            raise PlanError(f"plans have NaN or infinite numbers in rows {rows[:10]}; only finite plans can be encoded")
        plans, start = plans.double(), self.start(speed.to(plans.device))
        a, lengths, speeds = self._fit_accelerations(_arc_lengths(plans), start[:, 3], beam)
        c = self._fit_curvatures(plans, lengths, speeds, beam)
        return a * self.sizes[1] + c

    def _travel(self, v: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """Distance in ``dt`` and speed at its end; braking ends at a standstill."""
        end = (v + a * self.dt).clamp_min(0.0)
        stopping = v * v / (-2.0 * a).clamp_min(1e-9)
        return torch.where(v + a * self.dt < 0.0, stopping, 0.5 * (v + end) * self.dt), end

    def _limit(self, curvature: Tensor, v: Tensor) -> Tensor:
        """Curvature cut to ``MAX_LATERAL`` and ``MAX_YAW_RATE`` at speed ``v``."""
        most = torch.minimum(MAX_YAW_RATE / v.clamp_min(1e-3), MAX_LATERAL / (v * v).clamp_min(1e-3))
        return torch.maximum(torch.minimum(curvature, most), -most)

    @staticmethod
    def _arc(x: Tensor, y: Tensor, heading: Tensor, length: Tensor, curvature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pose after an arc: its chord is ``length * sin(turn / 2) / (turn / 2)`` long and points half the turn ahead."""
        turn = length * curvature
        chord = length * torch.sinc(turn / (2.0 * torch.pi))
        return x + chord * (heading + turn / 2).cos(), y + chord * (heading + turn / 2).sin(), heading + turn

    def _fit_accelerations(self, targets: Tensor, v0: Tensor, beam: int) -> tuple[Tensor, Tensor, Tensor]:
        """Acceleration indices [B, T] for arc lengths ``targets`` [B, T]; distances [B, T] and larger speeds [B, T] of each."""
        bins = torch.as_tensor(self.accelerations, dtype=torch.float64, device=targets.device)
        around = torch.cat([torch.zeros_like(targets[:, :1]), targets, 2 * targets[:, -1:] - targets[:, -2:-1]], dim=1)
        wanted_speed = (around[:, 2:] - around[:, :-2]) / (2 * self.dt)
        search = _Beam(len(targets), beam, {"s": torch.zeros_like(v0), "v": v0})
        for k in range(self.horizon):
            s, v = search.now["s"][..., None], search.now["v"][..., None]
            length, end = self._travel(v, bins)
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
            held = self._limit(bins, speeds[:, k, None, None])
            x1, y1, h1 = self._arc(x, y, h, lengths[:, k, None, None], held)
            goal = plans[:, k, :, None, None].unbind(1)
            turn = torch.atan2((h1 - goal[2]).sin(), (h1 - goal[2]).cos())
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
    poses = torch.cat([torch.zeros_like(plans[:, :1]), plans], dim=1)
    step, turn = poses[:, 1:, :2] - poses[:, :-1, :2], poses[:, 1:, 2] - poses[:, :-1, 2]
    turn = torch.atan2(turn.sin(), turn.cos()).clamp(-1.5, 1.5)
    mean = poses[:, :-1, 2] + turn / 2
    forward = step[..., 0] * mean.cos() + step[..., 1] * mean.sin()
    arcs = step.norm(dim=-1) / torch.sinc(turn / (2.0 * torch.pi))
    return torch.cumsum(torch.where(forward < 0.0, -arcs, arcs), dim=1)


class TokenHead(nn.Module):
    """Logits of a token from a hidden state, and the distribution over tokens that they mean.

    ``sizes`` are the numbers of values of the token's factors: ``(V,)`` for an ordinary vocabulary,
    ``codebook.sizes`` for kinematic tokens. All probabilities are float32 whatever the weights are.
    """

    def __init__(self, dim: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.project = nn.Linear(dim, sum(self.sizes))
        nn.init.normal_(self.project.weight, std=0.02)
        nn.init.zeros_(self.project.bias)

    def logits(self, hidden: Tensor) -> Tensor:
        """Raw logits float32 ``[..., sum(sizes)]``, the factors one after the other."""
        out: Tensor = self.project(hidden).float()
        return out

    def sample(
        self,
        logits: Tensor,
        temperature: Tensor,
        top_p: Tensor,
        *,
        deterministic: bool = False,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draw one token per row of ``logits`` ``[N, sum(sizes)]``; ``temperature`` and ``top_p`` are ``[N]``.

        Returns tokens int64 ``[N]``, their log-probabilities ``[N]`` and the ``support`` bool ``[N, sum(sizes)]`` that they
        were drawn from. ``deterministic`` takes the most probable value of each factor instead.
        """
        support = nucleus(logits, temperature, top_p, self.sizes)
        choices = []
        for part in self._log_softmax(logits, temperature, support):
            if deterministic:
                choices.append(part.argmax(-1))
            else:
                p = part.exp() if generator is None else part.exp().to(generator.device)
                choices.append(torch.multinomial(p, 1, generator=generator)[:, 0].to(part.device))
        tokens = self._join(choices)
        return tokens, self.log_prob(logits, tokens, temperature, support), support

    def log_prob(self, logits: Tensor, tokens: Tensor, temperature: Tensor, support: Tensor) -> Tensor:
        """Log-probabilities float32 ``[...]`` of ``tokens`` ``[...]`` under ``logits`` ``[..., sum(sizes)]``.

        ``temperature`` is broadcast against ``[...]``; ``support`` ``[..., sum(sizes)]`` is what ``sample`` returned: the
        distribution is renormalised over those entries, with the present logits.
        """
        out = torch.zeros(tokens.shape, dtype=torch.float32, device=logits.device)
        parts = self._log_softmax(logits, temperature, support)
        for part, choice in zip(parts, self._split(tokens), strict=True):
            out = out + part.gather(-1, choice[..., None])[..., 0]
        return out

    def entropy(self, logits: Tensor, temperature: Tensor, support: Tensor) -> Tensor:
        """Entropies float32 ``[...]`` in nats of the distributions that ``log_prob`` speaks of."""
        parts = self._log_softmax(logits, temperature, support)
        # Entries outside the support have p = 0 and log p = -inf: their product is 0, and so is its gradient.
        return torch.stack([-(p.exp() * p.masked_fill(p == -torch.inf, 0.0)).sum(-1) for p in parts]).sum(0)

    def _log_softmax(self, logits: Tensor, temperature: Tensor, support: Tensor) -> list[Tensor]:
        """Normalised log-probabilities of each factor, minus infinity outside the support."""
        warped, sizes = logits / temperature[..., None], list(self.sizes)
        return [
            torch.log_softmax(part.masked_fill(~inside, -torch.inf), dim=-1)
            for part, inside in zip(torch.split(warped, sizes, -1), torch.split(support, sizes, -1), strict=True)
        ]

    def _join(self, choices: list[Tensor]) -> Tensor:
        token = choices[0]
        for size, choice in zip(self.sizes[1:], choices[1:], strict=True):
            token = token * size + choice
        return token

    def _split(self, tokens: Tensor) -> list[Tensor]:
        choices = []
        for size in reversed(self.sizes):
            choices.append(tokens % size)
            tokens = tokens // size
        return choices[::-1]


def nucleus(logits: Tensor, temperature: Tensor, top_p: Tensor, sizes: Sequence[int]) -> Tensor:
    """Support bool ``[N, sum(sizes)]`` of top-p sampling, factor by factor.

    Per factor: the fewest most probable values whose probabilities add up to ``top_p`` (never none; ``top_p`` = 1 keeps all).
    """
    kept = []
    for part in torch.split(logits / temperature[..., None], list(sizes), -1):
        p, order = part.softmax(-1).sort(dim=-1, descending=True)
        before = p.cumsum(-1) - p  # mass of the values that are more probable than this one
        inside = (before < top_p[..., None]) | (top_p[..., None] >= 1.0)
        inside[..., 0] = True
        kept.append(torch.zeros_like(inside).scatter(-1, order, inside))
    return torch.cat(kept, dim=-1)
