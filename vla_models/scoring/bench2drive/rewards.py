"""What driving a route is rewarded for: the change of the Driving Score, or a weighted sum of named terms.

An episode is many decisions; a term is what one of them brought, so that a term's sum over an episode says something about the
whole. Every term is computed and reported whatever the weights are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from vla_models.errors import ConfigError, did_you_mean
from vla_models.scenes.lanes import IntArray
from vla_models.scoring.bench2drive import comfort
from vla_models.scoring.bench2drive.events import FAILURES, KIND, Event
from vla_models.scoring.bench2drive.results import Episode
from vla_models.scoring.bench2drive.score import RouteScore, score

ROUTE_TERMS: Final[dict[str, str]] = {
    "driving_score": "change of the Driving Score so far, as a share of 100; the sum is the episode's Driving Score",
    "progress": "share of the route that was driven; the sum is the route completion",
    "collision": "collisions that the official test counts",
    "off_road": "share of the ticks outside the route's lanes",
    "red_light": "red lights run",
    "stop": "stop signs run",
    "comfort": "1 if the last second was smooth (Bench2Drive's bounds, the corrected rule), else 0",
    "success": "1 with the decision that ends the route as Bench2Drive's success, else 0",
    "failed": "1 with the decision that ends the route by deviating from it or by standing still too long, else 0",
}
"""Reward terms of a decision by name. Bad events (collision, off_road, red_light, stop, failed) count up, so their weights are
negative."""

_COLLISIONS: Final = (Event.COLLISION_STATIC, Event.COLLISION_PEDESTRIAN, Event.COLLISION_VEHICLE)
_FAILED: Final = (Event.ROUTE_DEVIATION, Event.VEHICLE_BLOCKED)
_SECOND: Final = 20
"""Ticks."""
_OUTSIDE: Final = 8
"""Column of an episode's log: 1 where the ego is outside the route's lanes."""

assert set(_FAILED) <= set(FAILURES)


@dataclass(frozen=True)
class Standing:
    """How an episode stands after some of its ticks."""

    ticks: int
    counts: IntArray
    """[13] events so far by kind (``events.Event``)."""
    score: RouteScore
    """As if it ended here."""

    @property
    def success(self) -> bool:
        """The route is completed, and without an infraction (but for slow driving)."""
        return bool(self.counts[Event.ROUTE_COMPLETED] > 0) and self.score.success


def standing(episode: Episode) -> Standing:
    """How an ``Episode`` stands now."""
    counts = np.bincount(episode.events[:, KIND].astype(np.int64), minlength=len(Event))
    return Standing(episode.ticks, counts, score(episode.events, episode.completed))


def route_terms(before: Standing, after: Standing, episode: Episode) -> dict[str, float]:
    """The terms (``ROUTE_TERMS``) of the decision that led from ``before`` to ``after``, which is how ``episode`` stands."""
    more = after.counts - before.counts
    outside = episode.log[before.ticks : after.ticks, _OUTSIDE]
    ahead, left, turning = episode.log[max(0, after.ticks - _SECOND) : after.ticks, 4:7].T
    smooth = comfort.corrected(ahead, left, turning) if len(ahead) > 2 else 1.0  # no jerk can be told from two ticks
    return {
        "driving_score": (after.score.driving_score - before.score.driving_score) / 100.0,
        "progress": (after.score.completion - before.score.completion) / 100.0,
        "collision": float(more[list(_COLLISIONS)].sum()),
        "off_road": float(outside.mean()) if len(outside) else 0.0,
        "red_light": float(more[Event.TRAFFIC_LIGHT]),
        "stop": float(more[Event.STOP]),
        "comfort": smooth,
        "success": float(after.success and not before.success),
        "failed": float(more[list(_FAILED)].sum() > 0),
    }


@dataclass(frozen=True)
class RouteReward:
    """Turns the terms of a decision into a reward.

    Args:
        type: "driving_score" (that term itself; ``weights`` stays empty) or "driving" (the weighted sum of named terms).
        weights: term name -> weight, for "driving"; names are those of ``ROUTE_TERMS``.

    Raises:
        ConfigError: for an unknown type or term, for weights that nothing reads, or for none where some are needed.
    """

    type: str = "driving_score"
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        types = ("driving_score", "driving")
        if self.type not in types:
            raise ConfigError(f"reward.type: {self.type!r} is unknown to Bench2Drive; {did_you_mean(self.type, types)}")
        if self.type == "driving_score" and self.weights:
            raise ConfigError("reward.weights: only reward.type 'driving' reads weights; remove them or change the type")
        if self.type == "driving" and not self.weights:
            raise ConfigError(f"reward.weights: is empty, so every reward would be 0; {did_you_mean('', ROUTE_TERMS)}")
        for name, weight in self.weights.items():
            if name not in ROUTE_TERMS:
                raise ConfigError(f"reward.weights.{name}: Bench2Drive has no such term; {did_you_mean(name, ROUTE_TERMS)}")
            if not np.isfinite(weight):
                raise ConfigError(f"reward.weights.{name}: {weight} is not finite")

    def __call__(self, terms: Mapping[str, float]) -> float:
        """The reward of a decision with these terms."""
        if self.type == "driving_score":
            return terms["driving_score"]
        return sum(weight * terms[name] for name, weight in self.weights.items())
