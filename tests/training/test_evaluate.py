"""Held-out evaluation: the baselines, a model, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden import visible_scenes
from tabular import Tabular

from vla_models.errors import PlanError, SceneError
from vla_models.models.tiny_vla import TinyVLA
from vla_models.scoring.rewards import METRICS
from vla_models.training.evaluate import evaluate_baseline, evaluate_model, score_plans


def test_baselines_are_scored_on_every_scene() -> None:
    scenes = visible_scenes(6)
    closed = evaluate_baseline("pdm_closed", scenes)
    constant = evaluate_baseline("constant_velocity", scenes)
    assert closed.plans.shape == constant.plans.shape == (6, 8, 3)
    assert tuple(closed.scores) == METRICS["v1"]
    assert all(len(values) == 6 and np.isfinite(values).all() for values in closed.scores.values())
    assert closed.means()["score"] > constant.means()["score"]
    assert np.allclose(constant.plans[:, 1, 0], [np.hypot(*scene.ego[3:5]) for scene in scenes], rtol=1e-5)


def test_batches_change_nothing() -> None:
    scenes = visible_scenes(6)
    torch.manual_seed(0)
    model = TinyVLA(dim=32, layers=1, heads=2).eval()
    whole = evaluate_model(model, scenes)
    parts = evaluate_model(model, scenes, batch_size=4)
    assert np.allclose(whole.plans, parts.plans, atol=1e-4)
    assert np.allclose(whole.scores["score"], parts.scores["score"], atol=1e-3)
    again = score_plans(scenes, whole.plans, batch_size=1)
    assert np.array_equal(again.scores["score"], whole.scores["score"])
    assert evaluate_model(model, scenes, version="v2").scores.keys() == set(METRICS["v2"])


def test_greedy_plans_are_the_likeliest_ones() -> None:
    model = Tabular()
    with torch.no_grad():
        model.logits[3] = 1.0
    result = evaluate_model(model, visible_scenes(2))
    assert np.allclose(result.plans[:, 0, 0], 3.0)
    arrays = result.arrays("rl")
    assert set(arrays) == {"rl_plans", *(f"rl_{name}" for name in METRICS["v1"])}


def test_an_answer_that_is_no_plan_scores_nothing_and_is_counted() -> None:
    scenes = visible_scenes(3)
    model = Tabular(no_plan=(3,))
    good = evaluate_model(model, scenes)
    assert good.invalid_answers == 0
    assert good.means()["score"] > 0.0
    with torch.no_grad():
        model.logits[3] = 1.0
    bad = evaluate_model(model, scenes)
    assert bad.invalid_answers == 3
    assert set(bad.means().values()) == {0.0}


def test_nothing_to_evaluate_on_and_broken_plans_are_errors() -> None:
    with pytest.raises(SceneError, match="heldout_scenes"):
        evaluate_model(Tabular(), [])
    with pytest.raises(PlanError):
        score_plans(visible_scenes(2), np.full((2, 8, 3), np.nan))
