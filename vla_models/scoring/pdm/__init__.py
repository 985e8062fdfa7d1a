"""NavSim's PDM score, v1 and v2, exact and batched; one module a step: track, collide, area, progress, comfort, rate, score."""

from vla_models.scoring.pdm.comfort import extended_comfort
from vla_models.scoring.pdm.filtered import extended_score, human_filtered, human_terms
from vla_models.scoring.pdm.prepare import AbsentScene, PreparedScene, prepare
from vla_models.scoring.pdm.results import PDMScores, Problem
from vla_models.scoring.pdm.score import score

__all__ = [
    "AbsentScene",
    "PDMScores",
    "PreparedScene",
    "Problem",
    "extended_comfort",
    "extended_score",
    "human_filtered",
    "human_terms",
    "prepare",
    "score",
]
