"""What a plan is rewarded for: NavSim's PDM score itself, or a weighted sum of named driving terms.

Every term is computed and reported whatever the weights are, so that a reward that is being gamed is seen in the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from vla_models.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from vla_models.scoring.pdm import PDMScores
    from vla_models.scoring.pdm.score import Version

FloatArray = npt.NDArray[np.float64]

SUCCESS_PROGRESS: Final = 0.8
"""Share of PDM-Closed's progress from which a plan without infraction counts as a success (our choice)."""

DRIVING_TERMS: Final[dict[str, str]] = {
    "pdms": "the PDM score, 0 to 1",
    "collision": "1 for an at-fault collision, 0.5 for one with a static object, else 0",
    "off_road": "1 if a corner of the ego leaves the drivable area, else 0",
    "wrong_way": "1 for 6 m or more against the driving direction within a second, 0.5 from 2 m, else 0",
    "progress": "progress along the route relative to PDM-Closed's, 0 to 1",
    "ttc": "1 if the time to collision stays above the bound, else 0",
    "comfort": "1 if accelerations and jerks stay within the comfort bounds, else 0",
    "success": f"1 for no infraction and at least {SUCCESS_PROGRESS:.0%} of PDM-Closed's progress, else 0",
    "red_light": "score v2 only: 1 for running a red light, else 0",
    "lane_keeping": "score v2 only: 1 if the ego keeps to its lane's centre, else 0",
}
"""Reward terms by name. Bad events (collision, off_road, wrong_way, red_light) count up, so their weights are negative."""

V2_TERMS: Final = ("red_light", "lane_keeping")
"""Terms that only version 2 of the score has."""

SIGNS: Final = ("progress_raw", "reverse")
"""Metres along the route and metres driven backwards: no sub-scores, but they show when a reward is being gamed."""

METRICS: Final = {
    "v1": ("nc", "dac", "ddc", "ep", "ttc", "comfort", "score", *SIGNS),
    "v2": ("nc", "dac", "ddc", "tlc", "ep", "ttc", "lk", "comfort", "score", *SIGNS),
}
"""What every run logs beside its reward, by version of the score: the sub-scores, the total and ``SIGNS``, in the names of
``PDMScores``."""


def driving_terms(version: str) -> tuple[str, ...]:
    """Names of the terms that score ``version`` ("v1" or "v2") has."""
    return tuple(name for name in DRIVING_TERMS if version == "v2" or name not in V2_TERMS)


@dataclass(frozen=True)
class Reward:
    """Turns PDM scores into a reward.

    Args:
        type: "pdms" (the PDM score itself; ``weights`` stays empty) or "driving" (the weighted sum of named terms).
        weights: term name -> weight, for "driving"; names are those of ``DRIVING_TERMS``.
        version: "v1" or "v2", the version of the score that it will be given.

    Raises:
        ConfigError: for an unknown type, version or term, for weights that nothing reads, or for none where some are needed.
    """

    type: str = "pdms"
    weights: Mapping[str, float] = field(default_factory=dict)
    version: Version = "v1"

    def __post_init__(self) -> None:
        if self.version not in METRICS:
            raise ConfigError(f"environment.score_version: {self.version!r} is unknown; {did_you_mean(self.version, METRICS)}")
        if self.type not in ("pdms", "driving"):
            raise ConfigError(f"reward.type: {self.type!r} is unknown; {did_you_mean(self.type, ('pdms', 'driving'))}")
        if self.type == "pdms" and self.weights:
            raise ConfigError("reward.weights: only reward.type 'driving' reads weights; remove them or change the type")
        if self.type == "driving" and not self.weights:
            raise ConfigError(f"reward.weights: is empty, so every reward would be 0; {did_you_mean('', DRIVING_TERMS)}")
        for name, weight in self.weights.items():
            if name not in DRIVING_TERMS:
                raise ConfigError(f"reward.weights.{name}: no such term; {did_you_mean(name, DRIVING_TERMS)}")
            if name not in driving_terms(self.version):
                raise ConfigError(
                    f"reward.weights.{name}: score {self.version} has no such term; set environment.score_version: v2"
                )
            if not np.isfinite(weight):
                raise ConfigError(f"reward.weights.{name}: {weight} is not finite")

    def __call__(self, scores: PDMScores) -> tuple[FloatArray, dict[str, FloatArray]]:
        """Rewards and all terms by name, arrays of the scores' own shape; NaN where the score itself is NaN."""
        clean = (scores.nc == 1.0) & (scores.dac == 1.0) & (scores.ddc == 1.0)
        terms = {
            "pdms": scores.score,
            "collision": 1.0 - scores.nc,
            "off_road": 1.0 - scores.dac,
            "wrong_way": 1.0 - scores.ddc,
            "progress": scores.ep,
            "ttc": scores.ttc,
            "comfort": scores.comfort,
            "success": (clean & (scores.ep >= SUCCESS_PROGRESS)).astype(np.float64),
        }
        if self.version == "v2":
            terms["red_light"] = 1.0 - np.asarray(scores.tlc)
            terms["lane_keeping"] = np.asarray(scores.lk)
        if self.type == "pdms":
            return terms["pdms"], terms
        total = np.zeros_like(terms["pdms"])
        for name, weight in self.weights.items():
            total += weight * terms[name]
        return np.where(np.isnan(scores.score), np.nan, total), terms
