"""From frames to published numbers, against NavSim v2.2's own functions.

``tests/data/pdm_official/aggregate.npz`` was made by the official code (``create_scene_aggregators``, ``compute_final_scores``,
``calculate_individual_mapping_scores`` of run_pdm_score.py and their namesakes and ``infer_start_adjacent_mapping`` of
run_pdm_score_one_stage.py): 40 frames in 6 two-stage groups with random sub-scores, positions and driven states (those of the
golden scenes; only the columns that extended comfort reads are kept). One group's second stage lies 50 m off, so that all its
weights are practically 0; one pair is 0.4 s apart instead of 0.5 s.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vla_models.errors import PlanError, SceneError
from vla_models.scenes.neutral import read_scene
from vla_models.scoring.pdm import PDMScores, score
from vla_models.scoring.pdm.aggregate import (
    COLUMNS,
    adjacent_frames,
    endpoints,
    final_columns,
    frame_comfort,
    gaussian_weights,
    groups_of,
    one_stage_average,
    two_stage_average,
    two_stage_comfort,
    two_stage_weights,
)
from vla_models.scoring.pdm.filtered import extended_score

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="module")
def official():
    return dict(np.load(DATA / "pdm_official" / "aggregate.npz"))


@pytest.fixture(scope="module")
def groups(official):
    mapping: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for now, previous, *pair in official["mapping"].tolist():
        mapping.setdefault((now, previous), []).append(tuple(pair))
    return groups_of(official["tokens"].tolist(), [(*key, pairs) for key, pairs in mapping.items()])


@pytest.fixture(scope="module")
def scores(official):
    """The random sub-scores as a score of one plan a frame."""
    one = {k: official[k][:, None] for k in ("nc", "dac", "ddc", "tlc", "ep", "ttc", "lk")}
    nothing = np.zeros_like(one["nc"])
    return PDMScores(
        version="v2", tokens=tuple(official["tokens"].tolist()), score=nothing, comfort=official["hc"][:, None],
        mult=one["nc"] * one["dac"] * one["ddc"] * one["tlc"], progress_raw=nothing, reverse=nothing, nc_idx=nothing,
        ttc_idx=nothing, ref_progress_raw=nothing[:, 0], ref_mult=nothing[:, 0], valid=np.ones_like(nothing, dtype=bool), **one,
    )  # fmt: skip


def test_two_stages_equal_the_official_ones(official, groups, scores):
    comfort = two_stage_comfort(official["states"], official["times"], groups)
    np.testing.assert_array_equal(comfort, official["two_ec"])
    weights = two_stage_weights(official["ends"], official["starts"], groups)
    np.testing.assert_allclose(weights, official["two_weight"], rtol=0, atol=1e-12)
    columns = final_columns(scores, comfort)
    np.testing.assert_allclose(columns["score"], official["two_score"], rtol=0, atol=1e-12)
    published = two_stage_average(columns, weights, groups)
    for name in ("combined", "stage_one", "stage_two"):
        ours = [getattr(published, name)[column] for column in COLUMNS]
        np.testing.assert_allclose(ours, official[name], rtol=0, atol=1e-12, err_msg=name)


def test_one_stage_equals_the_official_one(official, scores):
    original = np.flatnonzero(official["logs"] != "")
    before = adjacent_frames(official["logs"][original].tolist(), official["times"][original])
    previous = np.full(len(official["times"]), -1)
    previous[original] = np.where(before >= 0, original[before], -1)
    comfort = frame_comfort(official["states"], official["times"], previous)
    np.testing.assert_array_equal(comfort, official["one_ec"])
    columns = final_columns(scores, comfort)
    np.testing.assert_allclose(columns["score"], official["one_score"], rtol=0, atol=1e-12)
    average = one_stage_average(columns)
    np.testing.assert_allclose([average[c] for c in COLUMNS], official["one_average"], rtol=0, atol=1e-12)


def test_weights_sum_to_one_and_fall_with_distance():
    weights = gaussian_weights([1.0, 2.0], [[1.0, 2.0], [1.2, 2.0], [1.0, 3.0]])
    assert weights.sum() == pytest.approx(1.0)
    assert weights[0] > weights[1] > weights[2] > 0.0
    assert weights[1] / weights[0] == pytest.approx(np.exp(-0.04 / 0.2))
    np.testing.assert_array_equal(gaussian_weights([0.0, 0.0], [[90.0, 0.0], [0.0, 99.0]]), [0.5, 0.5])
    assert gaussian_weights([0.0, 0.0], np.zeros((0, 2))).shape == (0,)


def test_a_frame_without_a_score_takes_its_group_out(official, groups, scores):
    comfort = two_stage_comfort(official["states"], official["times"], groups)
    weights = two_stage_weights(official["ends"], official["starts"], groups)
    columns = final_columns(scores, comfort)
    broken = {name: values.copy() for name, values in columns.items()}
    for values in broken.values():
        values[groups[2].second[0, 1]] = np.nan
    without = two_stage_average(columns, weights, [g for k, g in enumerate(groups) if k != 2])
    assert two_stage_average(broken, weights, groups).combined == pytest.approx(without.combined)
    assert np.isnan(two_stage_average(broken, weights, [groups[2]]).combined["score"])


def test_plans_end_where_they_end(official):
    scene = read_scene(DATA / "pdm" / "04_curve_left.json.gz")
    ends, starts = endpoints([scene], np.zeros((1, 8, 3)))
    np.testing.assert_allclose(ends, starts, rtol=0, atol=1e-9)
    ahead = np.zeros((1, 8, 3))
    ahead[0, -1, 0] = 10.0
    moved = endpoints([scene], ahead)[0] - starts
    np.testing.assert_allclose(moved, 10.0 * np.array([[np.cos(scene.ego[2]), np.sin(scene.ego[2])]]), atol=1e-9)


def test_wrong_mappings_and_times_are_named(official, groups):
    tokens = official["tokens"].tolist()
    with pytest.raises(SceneError, match="no score, the first: 'nowhere'"):
        groups_of(tokens, [("now0", "nowhere", [])])
    with pytest.raises(SceneError, match="'prev0' more than once"):
        groups_of(tokens, [("now0", "prev0", [("n0_0", "prev0")])])
    for apart in (0.0, 0.6, -0.5):
        with pytest.raises(PlanError, match=r"expected 0\.05 to 0\.55 s"):
            frame_comfort(official["states"][:2], [0.0, apart], np.array([-1, 0]))


def test_published_numbers_are_those_of_one_plan_a_frame():
    scene = read_scene(DATA / "pdm" / "04_curve_left.json.gz")
    plans = np.load(DATA / "pdm" / "04_curve_left.npz")["proposals"][:2]
    with pytest.raises(PlanError, match="2 plans a frame"):
        final_columns(score(scene, plans, "v2"), np.zeros(1))


def test_the_first_frame_of_a_log_has_no_extended_comfort():
    """Its total leaves extended comfort out and so equals the ``pdm_score`` column."""
    scene = read_scene(DATA / "pdm" / "04_curve_left.json.gz")
    plans = np.load(DATA / "pdm" / "04_curve_left.npz")["proposals"]
    scores = score(scene, plans, "v2")
    np.testing.assert_allclose(extended_score(scores, np.full(64, np.nan)), scores.score, rtol=0, atol=1e-12)
    assert adjacent_frames(["a", "a", "b", "a"], [0.0, 0.5, 0.7, 1.2]).tolist() == [-1, 0, -1, -1]
