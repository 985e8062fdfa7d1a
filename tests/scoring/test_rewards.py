"""Rewards from sub-scores, without a scorer: the sub-scores are made up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_models.errors import ConfigError
from vla_models.scoring.rewards import DRIVING_TERMS, Reward, driving_terms


def scores(**columns: list[float]) -> Any:
    """Made-up PDM scores: perfect, but for the given columns."""
    rows = len(next(iter(columns.values())))
    perfect = {name: np.ones(rows) for name in ("nc", "dac", "ddc", "ep", "ttc", "comfort", "tlc", "lk", "score")}
    return SimpleNamespace(**(perfect | {name: np.array(values, dtype=np.float64) for name, values in columns.items()}))


def test_pdms_is_the_score_itself_and_reports_every_term() -> None:
    given_scores = scores(score=[0.2, 0.9], nc=[0.0, 1.0])
    reward, terms = Reward()(given_scores)
    assert np.array_equal(reward, [0.2, 0.9])
    assert set(terms) == set(driving_terms("v1"))
    assert np.array_equal(terms["collision"], [1.0, 0.0])


def test_the_driving_reward_of_the_example() -> None:
    reward, terms = Reward("driving", {"collision": -10.0, "success": 10.0})(
        scores(nc=[0.0, 0.5, 1.0, 1.0, 1.0], ep=[1.0, 1.0, 1.0, 0.79, 0.8], dac=[1.0, 1.0, 1.0, 1.0, 0.0])
    )
    assert np.array_equal(reward, [-10.0, -5.0, 10.0, 0.0, 0.0])
    assert np.array_equal(terms["off_road"], [0.0, 0.0, 0.0, 0.0, 1.0])


@given(
    st.dictionaries(st.sampled_from(driving_terms("v1")), st.floats(-20, 20), min_size=1), st.lists(st.floats(0, 1), min_size=1)
)
def test_driving_is_the_weighted_sum_of_the_terms(weights: dict[str, float], progress: list[float]) -> None:
    reward, terms = Reward("driving", weights)(scores(ep=progress))
    assert np.allclose(reward, sum(weight * terms[name] for name, weight in weights.items()))


def test_no_reward_is_invented_where_there_is_no_score() -> None:
    for reward in (Reward(), Reward("driving", {"collision": -1.0})):
        assert np.array_equal(np.isnan(reward(scores(score=[np.nan, 1.0]))[0]), [True, False])


def test_version_2_adds_its_terms() -> None:
    assert set(driving_terms("v2")) == set(DRIVING_TERMS)
    reward, terms = Reward("driving", {"red_light": -1.0, "lane_keeping": 0.5}, "v2")(scores(tlc=[0.0, 1.0], lk=[1.0, 0.0]))
    assert np.array_equal(reward, [-0.5, 0.0])
    assert np.array_equal(terms["red_light"], [1.0, 0.0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"type": "driving", "weights": {"colision": -1.0}}, "Did you mean 'collision'"),
        ({"type": "driving", "weights": {"red_light": -1.0}}, "score_version: v2"),
        ({"type": "driving", "weights": {"collision": float("nan")}}, "not finite"),
        ({"type": "driving"}, "is empty"),
        ({"type": "pdms", "weights": {"collision": -1.0}}, "only reward.type 'driving'"),
        ({"type": "pdm"}, "Did you mean 'pdms'"),
        ({"version": "v3"}, "v1"),
    ],
)
def test_wrong_rewards_say_what_is_allowed(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Reward(**arguments)
