"""Bad scenes and plans: all of them are named, the good ones can be scored nevertheless, and nothing becomes a silent 0."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_models.errors import PlanError, SceneError
from vla_models.scenes.neutral import read_scene
from vla_models.scenes.scene import LAYERS, Polygons, RedLights, Tracks
from vla_models.scoring.pdm import AbsentScene, human_filtered, score

DATA = Path(__file__).parents[1] / "data" / "pdm"
NAMES = ("04_curve_left", "18_intersection_straight", "22_dense")


@pytest.fixture(scope="module")
def scenes():
    return [read_scene(DATA / f"{n}.json.gz") for n in NAMES]


@pytest.fixture(scope="module")
def plans():
    return np.stack([np.load(DATA / f"{n}.npz")["proposals"][:24] for n in NAMES])


def without_layers(scene, *layers):
    keep = [p for p in range(len(scene.polygons)) if LAYERS[scene.polygons.layer[p]] not in layers]
    rings = [scene.polygons.ring(p) for p in keep]
    return scene.with_(
        polygons=Polygons(
            np.concatenate([*rings, np.zeros((0, 2))]),
            np.concatenate([[0], np.cumsum([len(r) for r in rings])]).astype(np.int64),
            scene.polygons.layer[keep],
            scene.polygons.on_route[keep],
            tuple(scene.polygons.ids[p] for p in keep),
        ),
        red_lights=RedLights(np.zeros(0, np.int64), np.zeros((0, 51), np.bool_)),
    )


def with_states(scene, change):
    states = scene.tracks.states.copy()
    change(states)
    return scene.with_(tracks=Tracks(scene.tracks.kind, scene.tracks.size, states, scene.tracks.ids))


def same(a, b, scene, rows=slice(None)):
    for name, values in a.arrays().items():
        if name not in ("ref_progress_raw", "ref_mult"):
            np.testing.assert_array_equal(values[scene, rows], b.arrays()[name][scene, rows], err_msg=name)


def test_a_batch_names_every_bad_row_and_scores_the_others(scenes, plans):
    bad = plans.copy()
    bad[1, 5, 3, 2] = np.nan
    bad[2, 7, 0, 0] = np.inf
    bad[2, 9] = 1e9
    with pytest.raises(PlanError) as raised:
        score(scenes, bad)
    for where in (f"scene {NAMES[1]!r}, row 5", f"scene {NAMES[2]!r}, row 7", f"scene {NAMES[2]!r}, row 9: the plan leaves"):
        assert where in str(raised.value)
    for version in ("v1", "v2"):
        marked, whole = score(scenes, bad, version, states=True, on_error="mark"), score(scenes, plans, version, states=True)
        assert [(p.token, p.row) for p in marked.problems] == [(NAMES[1], 5), (NAMES[2], 7), (NAMES[2], 9)]
        assert (~marked.valid).sum() == 3
        for s in range(3):
            same(marked, whole, s, marked.valid[s])
        for name, values in marked.arrays().items():
            if values.dtype == np.float64 and values.shape[:2] == marked.valid.shape:
                assert np.isnan(values[~marked.valid]).all(), name


def test_a_bad_scene_takes_only_its_own_rows_along(scenes, plans):
    broken = [scenes[0].with_(reference=None), scenes[1], AbsentScene("nowhere", "is not in the store; import it first")]
    for threads in (1, 3):
        marked = score(broken, plans, "v2", threads=threads, on_error="mark")
        assert marked.valid.all(axis=1).tolist() == [False, True, False]
        assert [(p.token, p.row) for p in marked.problems] == [(NAMES[0], None), ("nowhere", None)]
        assert "plan_pdm_closed" in marked.problems[0].message
        same(marked, score(scenes, plans, "v2"), 1)
        assert np.isnan(marked.ref_progress_raw[[0, 2]]).all()
        filtered = human_filtered(broken, marked)
        assert np.isnan(filtered.nc[0]).all()
    with pytest.raises(SceneError, match=r"2 cannot be scored: .*04_curve_left.*nowhere.*import it first"):
        score(broken, plans)


def test_scenes_and_rows_are_reported_together(scenes, plans):
    bad = plans.copy()
    bad[1, 2] = np.nan
    with pytest.raises(SceneError, match=r"2 cannot be scored: .*no reference.*row 2"):
        score([scenes[0].with_(reference=None), *scenes[1:]], bad)


@settings(max_examples=20, deadline=None)
@given(bad=st.sets(st.tuples(st.integers(0, 2), st.integers(0, 23), st.integers(0, 7), st.integers(0, 2))))
def test_bad_rows_never_change_good_ones(scenes, plans, bad):
    broken = plans.copy()
    for index in bad:
        broken[index] = np.nan
    marked, whole = score(scenes, broken, on_error="mark"), score(scenes, plans)
    assert {(s, n) for s, n in np.argwhere(~marked.valid).tolist()} == {(s, n) for s, n, _, _ in bad}
    for s in range(3):
        same(marked, whole, s, marked.valid[s])


def test_another_horizon_is_named(scenes, plans):
    longer = np.concatenate([plans, plans[:, :, -2:]], axis=2)
    for on_error in ("raise", "mark"):
        with pytest.raises(PlanError, match=r"10 poses a plan, expected \[3 scenes, N, 8, 3\].*resample"):
            score(scenes, longer, on_error=on_error)
    with pytest.raises(ValueError, match="known: mark, raise"):
        score(scenes, plans, on_error="ignore")


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (("roadblock", "intersection", "carpark", "drivable_area"), "no drivable ground"),
        (("lane", "lane_connector"), "no lanes"),
        (LAYERS, "no drivable ground .*; it has no lanes"),
    ],
)
def test_missing_map_layers_are_named(scenes, plans, layers, message):
    with pytest.raises(SceneError, match=message):
        score(without_layers(scenes[1], *layers), plans[1], "v2")


@pytest.mark.parametrize("layer", ["intersection", "carpark", "lane_connector"])
def test_a_map_without_one_layer_is_legal(scenes, plans, layer):
    for scene, plan in zip(scenes, plans, strict=True):
        assert np.isfinite(score(without_layers(scene, layer), plan, "v2").score).all()


def test_partly_missing_track_rows_are_named_with_agent_and_step(scenes, plans):
    def change(states):
        states[3, 7, 2] = np.nan
        states[5, 9, :2] = np.nan

    with pytest.raises(SceneError, match=f"{scenes[2].tracks.ids[3]!r} at step 7, {scenes[2].tracks.ids[5]!r} at step 9"):
        score(with_states(scenes[2], change), plans[2])


def test_tracks_with_gaps_are_scored(scenes, plans):
    """An agent that is always absent is no agent; one that is absent for a while is hit by nobody meanwhile."""

    def never(states):
        states[:] = np.nan

    empty = scenes[2].with_(tracks=Tracks(np.zeros(0, np.int8), np.zeros((0, 3)), np.zeros((0, 51, 5)), ()))
    for version in ("v1", "v2"):
        same(score(with_states(scenes[2], never), plans[2], version), score(empty, plans[2], version), 0)

    def gap(states):
        states[:, 10:20] = np.nan

    hit = score(with_states(scenes[2], gap), plans[2], "v2").nc_idx
    assert np.isfinite(hit).any()
    assert not ((hit >= 10) & (hit < 20)).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"red_lights": RedLights(np.array([99]), np.ones((1, 51), np.bool_))}, "red lights on polygons"),
        ({"ego_history": np.zeros((1, 11))}, "ego history of 1 states"),
        ({"human": np.zeros((10, 3))}, r"'human' of shape \(10, 3\)"),
        ({"tracks": Tracks(np.zeros(1, np.int8), np.zeros((1, 3)), np.zeros((1, 51, 5)), ("a",))}, "without length or width"),
        ({"tracks": Tracks(np.array([9], np.int8), np.ones((1, 3)), np.zeros((1, 51, 5)), ("a",))}, "unknown kind"),
    ],
)
def test_other_faults_of_scenes_are_named(scenes, plans, change, message):
    with pytest.raises(SceneError, match=message):
        score(scenes[1].with_(**change), plans[1], "v2")


def test_the_result_has_the_official_names(scenes, plans):
    shared = {"nc", "dac", "ddc", "ep", "ttc", "mult", "score", "progress_raw", "ref_progress_raw", "ref_mult", "nc_idx"}
    shared |= {"ttc_idx", "valid", "reverse"}
    assert set(score(scenes, plans).arrays()) == shared | {"comfort"}
    assert set(score(scenes, plans, "v2", states=True).arrays()) == shared | {"hc", "tlc", "lk", "states", "ego_areas"}
