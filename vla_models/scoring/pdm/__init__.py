"""NavSim's PDM score, v1 and v2, exact and batched; one module a step: track, collide, area, progress, comfort, score."""

from vla_models.scoring.pdm.comfort import extended_comfort
from vla_models.scoring.pdm.prepare import PreparedScene, prepare
from vla_models.scoring.pdm.score import PDMScores, extended_score, human_filtered, score

__all__ = ["PDMScores", "PreparedScene", "extended_comfort", "extended_score", "human_filtered", "prepare", "score"]
