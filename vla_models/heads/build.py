"""From the YAML's ``policy_head`` to a head: ``make_head``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch

from vla_models.errors import ConfigError, did_you_mean
from vla_models.heads.base import PlanHead
from vla_models.heads.bins import BinCodebook
from vla_models.heads.chain import DDIMHead, FlowHead
from vla_models.heads.codebook import Codebook, KinematicCodebook
from vla_models.heads.gaussian import GaussianHead
from vla_models.heads.spaces import make_space
from vla_models.heads.tokens import TokenPlanHead
from vla_models.heads.trajectories import TrajectoryCodebook

_PATH: Final = "model.policy_head"


def make_head(policy_head: Mapping[str, Any], dim: int, *, horizon: int, dt: float) -> PlanHead:
    """The head that ``policy_head`` describes (keys of ``PolicyHeadConfig``), over features of width ``dim``.

    horizon, dt: of the plans that the model must make. Raises ConfigError with the YAML path for an unknown type, an option
    that the type does not take, or a head that does not fit the horizon.
    """
    kind, options = head_options(policy_head)
    if (wanted := plan_horizon(policy_head, horizon)) != horizon:
        raise ConfigError(
            f"{_PATH}.action_dim: {3 * wanted} numbers are {wanted} waypoints, this model plans {horizon}; use {3 * horizon}"
        )
    return HEADS[kind](dim=dim, horizon=horizon, dt=dt, **options)


def head_options(policy_head: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Type and options that ``policy_head`` sets; ConfigError for an unknown type or an option that it does not take."""
    options = {key: value for key, value in policy_head.items() if value is not None and key not in ("type", "action_dim")}
    kind = str(policy_head.get("type"))
    if kind not in HEADS:
        raise ConfigError(f"{_PATH}.type: there is no head {kind!r}; {did_you_mean(kind, HEADS)}")
    known = set(inspect.signature(HEADS[kind]).parameters) - {"dim", "horizon", "dt"}
    for key in options:
        if key not in known:
            raise ConfigError(f"{_PATH}.{key}: a {kind} head does not take it; {did_you_mean(key, known)}")
    return kind, options


def plan_horizon(policy_head: Mapping[str, Any] | None, default: int) -> int:
    """T of the plans that ``policy_head.action_dim`` asks for: three numbers a waypoint, so that 15 is five."""
    numbers = (policy_head or {}).get("action_dim")
    if numbers is None:
        return default
    if numbers < 3 or numbers % 3:
        raise ConfigError(f"{_PATH}.action_dim: {numbers} is not three numbers (x, y, heading) for each waypoint")
    return int(numbers) // 3


def make_codebook(codebook: str | Mapping[str, Any], *, horizon: int, dt: float) -> Codebook:
    """A codebook by name: ``kinematic``, ``bins``, or the file that ``vla-models codebook`` wrote.

    A mapping {"trajectories": K} makes room for K trajectories that a checkpoint's weights will fill (``codebook_argument``).
    """
    if isinstance(codebook, Mapping):
        return TrajectoryCodebook(torch.zeros(int(codebook["trajectories"]), horizon, 3), dt)
    if codebook == "kinematic":
        return KinematicCodebook(horizon=horizon, dt=dt)
    if codebook == "bins":
        return BinCodebook(horizon=horizon, dt=dt)
    if not codebook.endswith(".npz"):
        known = ("kinematic", "bins")
        raise ConfigError(f"{_PATH}.codebook: {codebook!r} is no codebook and no .npz file; {did_you_mean(codebook, known)}")
    made = TrajectoryCodebook.load(codebook)
    if made.horizon != horizon or abs(made.dt - dt) > 1e-6:
        raise ConfigError(
            f"{_PATH}.codebook: {codebook!r} has plans of {made.horizon} × {made.dt} s, and this model plans {horizon} × {dt} s"
        )
    return made


def codebook_argument(codebook: Codebook, argument: Any) -> Any:
    """What a saved model's config.json says in place of ``argument``: trajectories are among the weights, their file may go."""
    return {"trajectories": codebook.vocabulary} if isinstance(codebook, TrajectoryCodebook) else argument


def _tokens(dim: int, horizon: int, dt: float, codebook: str | Mapping[str, Any] = "kinematic") -> PlanHead:
    return TokenPlanHead(dim, make_codebook(codebook, horizon=horizon, dt=dt))


def _gaussian(
    dim: int, horizon: int, dt: float, sigma: float | None = None, squash: bool = True, space: str = "controls"
) -> PlanHead:
    return GaussianHead(dim, make_space(space, horizon, dt), sigma, squash)


def _waypoint(dim: int, horizon: int, dt: float, sigma: float | None = None, squash: bool = True) -> PlanHead:
    return GaussianHead(dim, make_space("waypoints", horizon, dt), sigma, squash)


def _flow(
    dim: int,
    horizon: int,
    dt: float,
    steps: int = 5,
    eta: float = 0.5,
    chosen_steps: int | None = None,
    space: str = "controls",
) -> PlanHead:
    return FlowHead(dim, make_space(space, horizon, dt), steps, eta, chosen_steps)


def _ddim(
    dim: int,
    horizon: int,
    dt: float,
    steps: int = 5,
    eta: float = 0.5,
    chosen_steps: int | None = None,
    space: str = "controls",
) -> PlanHead:
    return DDIMHead(dim, make_space(space, horizon, dt), steps, eta, chosen_steps)


HEADS: Final[Mapping[str, Callable[..., PlanHead]]] = {
    "tokens": _tokens,
    "gaussian": _gaussian,
    "waypoint": _waypoint,
    "flow": _flow,
    "ddim": _ddim,
}
"""type -> what makes it; the keyword arguments are the options of ``policy_head``."""
