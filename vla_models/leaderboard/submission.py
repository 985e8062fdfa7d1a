"""The leaderboard's submission file: a pickle of navsim's own ``Trajectory`` objects by token.

navsim's ``run_create_submission_pickle.py`` writes one with ``agent=vla_agent``, a scene at a time. ``write_submission`` writes
the same of plans that were made otherwise: in batches over a store, say.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_models.errors import ConfigError, MissingDependency, PlanError
from vla_models.files import atomic_path
from vla_models.leaderboard.translate import to_poses
from vla_models.scenes.scene import PLAN_DT, PLAN_STEPS


@dataclass(frozen=True)
class Team:
    """What the leaderboard wants to know of those who submit; none of it may be empty."""

    team_name: str
    authors: str
    email: str
    institution: str
    country: str

    def entries(self) -> dict[str, str]:
        """By the leaderboard's keys."""
        empty = [name for name, value in vars(self).items() if not value.strip()]
        if empty:
            raise ConfigError(f"the leaderboard wants to know {', '.join(empty)}")
        return {
            "team_name": self.team_name,
            "authors": self.authors,
            "email": self.email,
            "institution": self.institution,
            "country / region": self.country,
        }


def submission_entries(team: Team, plans: Mapping[str, Any], second_stage: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The submission's keys with poses in the place of trajectories: version 1.1 has ``predictions``, version 2.2, which has a
    second stage, ``first_stage_predictions`` and ``second_stage_predictions``. PlanError names the token of a bad plan."""
    first = _poses(plans)
    if second_stage is None:
        return {**team.entries(), "predictions": [first]}
    return {**team.entries(), "first_stage_predictions": [first], "second_stage_predictions": [_poses(second_stage)]}


def write_submission(
    path: str | Path, team: Team, plans: Mapping[str, Any], second_stage: Mapping[str, Any] | None = None
) -> None:
    """Write ``plans`` (token -> [8, 3]) as a submission; with ``second_stage`` (it may be empty) in the form of navsim 2.2.

    Raises PlanError for a plan that the leaderboard would refuse, MissingDependency without navsim.
    """
    entries = submission_entries(team, plans, second_stage)
    try:
        from navsim.common.dataclasses import Trajectory
        from nuplan.planning.simulation.trajectory.trajectory_sampling import TrajectorySampling
    except ImportError as error:
        raise MissingDependency(
            f"a submission consists of navsim's own objects and needs navsim and nuplan-devkit to be written ({error}); "
            "install them as github.com/autonomousvision/navsim says"
        ) from error
    sampling = TrajectorySampling(num_poses=PLAN_STEPS, interval_length=PLAN_DT)
    for name in ("predictions", "first_stage_predictions", "second_stage_predictions"):
        if name in entries:
            entries[name] = [{token: Trajectory(poses, sampling) for token, poses in entries[name][0].items()}]
    with atomic_path(Path(path)) as temporary:
        temporary.write_bytes(pickle.dumps(entries))


def _poses(plans: Mapping[str, Any]) -> dict[str, Any]:
    bad = [token for token in plans if not isinstance(token, str) or not token]
    if bad:
        raise PlanError(f"tokens must be text, got {bad[0]!r}")
    return {token: to_poses(plan, f"the plan of {token!r}") for token, plan in plans.items()}
