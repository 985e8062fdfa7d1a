"""Metres driven backwards: no part of the score, but logged beside it everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_models.scenes.neutral import read_scene
from vla_models.scoring.pdm import score

DATA = Path(__file__).parents[1] / "data" / "pdm"
SCENE = read_scene(DATA / "00_straight_free.json.gz")
STANDING = SCENE.with_(ego=np.concatenate([SCENE.ego[:3], np.zeros(8)]))


def straight(metres: float) -> np.ndarray:
    plan = np.zeros((1, 8, 3))
    plan[0, :, 0] = np.linspace(0.0, metres, 9)[1:]
    return plan


@settings(max_examples=30, deadline=None)
@given(st.floats(-12.0, 30.0), st.floats(-0.3, 0.3), st.booleans())
def test_it_is_what_the_driven_states_say(metres: float, turn: float, standing: bool) -> None:
    scene = STANDING if standing else SCENE
    plan = straight(metres)
    plan[0, :, 2] = turn * np.linspace(0.0, 1.0, 8)
    scores = score(scene, plan, "v1", states=True)
    driven = scores.states[0, 0]
    step = np.diff(driven[:, :2], axis=0)
    along = step[:, 0] * np.cos(driven[:-1, 2]) + step[:, 1] * np.sin(driven[:-1, 2])
    assert scores.reverse[0, 0] == pytest.approx(-along[along < 0].sum(), abs=1e-9)
    assert score(scene, plan, "v2").reverse[0, 0] == scores.reverse[0, 0]


def test_backing_is_seen_and_driving_on_is_not() -> None:
    assert score(STANDING, straight(-5.0)).reverse[0, 0] > 2.0
    assert score(SCENE, straight(25.0)).reverse[0, 0] == 0.0
    assert np.isnan(score(SCENE, np.full((1, 8, 3), np.nan), on_error="mark").reverse[0, 0])
