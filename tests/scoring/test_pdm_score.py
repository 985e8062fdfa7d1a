"""Behaviour of ``score`` beyond the golden values: invariances, batches, bad input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vla_models.errors import PlanError, SceneError
from vla_models.geometry import from_frame
from vla_models.scenes.neutral import read_scene
from vla_models.scenes.scene import LAYERS, RedLights, Scene, Tracks
from vla_models.scoring.pdm import extended_comfort, extended_score, human_filtered, prepare, score

DATA = Path(__file__).parents[1] / "data" / "pdm"
NAMES = ("04_curve_left", "18_intersection_straight", "22_dense")
ARRAYS = ("score", "nc", "dac", "ddc", "ep", "ttc", "comfort", "mult", "progress_raw", "nc_idx", "ttc_idx")


@pytest.fixture(scope="module")
def scenes():
    return [read_scene(DATA / f"{n}.json.gz") for n in NAMES]


@pytest.fixture(scope="module")
def plans():
    return np.stack([np.load(DATA / f"{n}.npz")["proposals"] for n in NAMES])


def moved(scene: Scene, pose: tuple[float, float, float]) -> Scene:
    """``scene`` turned and shifted as a whole (exercises nothing but the frame)."""

    def poses(rows):
        out = rows.copy()
        out[..., :3] = from_frame(rows[..., :3], pose)
        return out

    states = scene.tracks.states.copy()
    states[..., :3] = from_frame(states[..., :3], pose)
    states[..., 3:] = from_frame(states[..., 3:], (0.0, 0.0, pose[2]))
    polygons = scene.polygons
    return scene.with_(
        ego=poses(scene.ego),
        ego_history=None if scene.ego_history is None else poses(scene.ego_history),
        centerline=poses(scene.centerline),
        reference=poses(scene.reference),
        polygons=type(polygons)(
            from_frame(polygons.vertices, pose), polygons.offsets, polygons.layer, polygons.on_route, polygons.ids
        ),
        tracks=Tracks(scene.tracks.kind, scene.tracks.size, states, scene.tracks.ids),
    )


def equal(a, b, rows=slice(None), atol=1e-6):
    for name in ARRAYS:
        np.testing.assert_allclose(getattr(a, name)[:, rows], getattr(b, name), rtol=0, atol=atol, err_msg=name)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(x=st.floats(-200, 200), y=st.floats(-200, 200), turn=st.floats(-3.1, 3.1), version=st.sampled_from(["v1", "v2"]))
def test_rigid_motion_changes_nothing(scenes, plans, x, y, turn, version):
    turned = [moved(s, (x, y, turn)) for s in scenes]
    equal(score(turned, plans, version), score(scenes, plans, version))


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(64)), size=st.integers(1, 64), version=st.sampled_from(["v1", "v2"]))
def test_order_and_batch_size_change_nothing(scenes, plans, order, size, version):
    rows = np.array(order[:size])
    equal(score(scenes, plans, version), score(scenes, plans[:, rows], version), rows, atol=0)


def test_threads_and_preparation_change_nothing(scenes, plans):
    one = score(scenes * 4, np.concatenate([plans] * 4), "v2")
    equal(one, score([prepare(s) for s in scenes * 4], np.concatenate([plans] * 4), "v2", threads=4), atol=0)


def test_one_scene_may_be_given_alone(scenes, plans):
    assert score(scenes[0], plans[0]).score.shape == (1, 64)
    assert score(scenes[0], plans[:1]).tokens == (scenes[0].token,)


def test_read_only_arrays_are_scored_alike(scenes, plans):
    frozen = plans.copy()
    frozen.flags.writeable = False
    equal(score(scenes, plans), score(scenes, frozen), atol=0)


def test_no_plans_are_no_scores(scenes):
    assert score(scenes, np.zeros((3, 0, 8, 3)), "v2").score.shape == (3, 0)


def test_terms_have_the_names_of_their_version(scenes, plans):
    assert set(score(scenes, plans).terms()) == {"nc", "dac", "ddc", "ep", "ttc", "comfort"}
    assert set(score(scenes, plans, "v2").terms()) == {"nc", "dac", "ddc", "tlc", "ep", "ttc", "lk", "hc"}


def test_wrong_shapes_are_named(scenes, plans):
    for bad in (plans[:, :, :7], plans[:2], plans[..., :2], plans[0]):
        with pytest.raises(PlanError, match=r"shape \(.*expected \[3 scenes, N, 8, 3\]"):
            score(scenes, bad)
    with pytest.raises(PlanError, match="not one array"):
        score(scenes, [[1.0], [2.0, 3.0]])


def test_plans_that_are_not_finite_are_named_and_nothing_is_scored(scenes, plans):
    bad = plans.copy()
    bad[1, 5, 3, 2] = np.nan
    bad[2, 7, 0, 0] = np.inf
    with pytest.raises(PlanError, match=r"scene '18_intersection_straight', row 5: .*scene '22_dense', row 7: "):
        score(scenes, bad)


def test_unknown_version_and_empty_scenes_are_named(scenes, plans):
    with pytest.raises(ValueError, match="known: v1, v2"):
        score(scenes, plans, "v3")
    with pytest.raises(SceneError, match="no scenes"):
        score([], plans)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference": None}, "plan_pdm_closed"),
        ({"reference": np.zeros((41, 3))}, r"reference of shape \(41, 3\)"),
        ({"centerline": np.zeros((1, 3))}, "centre line of 1 points"),
        ({"ego": np.full(11, np.nan)}, "'ego' that are not finite"),
        ({"tracks": Tracks(np.zeros(1, np.int8), np.ones((1, 3)), np.zeros((1, 41, 5)), ("a",))}, "tracks of shape"),
    ],
)
def test_scenes_that_cannot_be_scored_say_why(scenes, plans, change, message):
    with pytest.raises(SceneError, match=message):
        score(scenes[0].with_(**change), plans[0])


def test_half_missing_track_rows_are_refused(scenes, plans):
    states = scenes[2].tracks.states.copy()
    states[0, 3, 2] = np.nan
    tracks = scenes[2].tracks
    with pytest.raises(SceneError, match="partly missing"):
        score(scenes[2].with_(tracks=Tracks(tracks.kind, tracks.size, states, tracks.ids)), plans[2])


def test_a_scene_without_history_is_comfortable_in_v2(scenes, plans):
    assert (score(scenes[0].with_(ego_history=None), plans[0], "v2").comfort == 1).all()


def test_red_lights_count_only_in_v2_and_only_while_red(scenes, plans):
    scene = scenes[1]
    lights = scene.red_lights
    green = scene.with_(red_lights=RedLights(lights.polygon, np.zeros_like(lights.red)))
    assert (score(scene, plans[1], "v2").tlc == 0).any()
    assert (score(green, plans[1], "v2").tlc == 1).all()
    np.testing.assert_array_equal(score(scene, plans[1]).score, score(green, plans[1]).score)


def test_hitting_an_object_costs_half(scenes):
    """A cone 12 m ahead on the way of a plan that drives straight over it."""
    scene = scenes[2]
    at = from_frame(np.array([[12.0, 0.0, 0.0]]), scene.ego)[0]
    states = np.zeros((1, 51, 5))
    states[..., :3] = at
    plan = np.zeros((1, 8, 3))
    plan[0, :, 0] = np.arange(1, 9) * 4.0
    for kind, expected in ((3, 0.5), (1, 0.0)):
        hit = scene.with_(tracks=Tracks(np.array([kind], np.int8), np.full((1, 3), 0.5), states, ("a",)))
        scores = score(hit, plan)
        assert scores.nc[0, 0] == expected
        assert np.isfinite(scores.nc_idx[0, 0])


def test_version_2_ignores_agents_that_overlap_the_ego_at_the_start():
    scene = read_scene(DATA / "14_overlap_start.json.gz")
    plans = np.load(DATA / "14_overlap_start.npz")["proposals"]
    assert (score(scene, plans, "v1").nc == 0).all()
    assert (score(scene, plans, "v2").nc == 1).all()


def test_epdms_weighs_extended_comfort_in(scenes, plans):
    scores = score(scenes, plans, "v2", states=True)
    ec = np.zeros_like(scores.score)
    ec[:, :-1] = [extended_comfort(s[:-1], s[1:]) for s in scores.states]
    total = extended_score(human_filtered(scenes, scores), ec)
    plain = extended_score(scores, ec)
    np.testing.assert_allclose(plain * 16, scores.score * 14 + 2 * ec * scores.mult, atol=1e-12)
    assert (total >= plain - 1e-12).all()


def test_version_2_functions_refuse_version_1(scenes, plans):
    scores = score(scenes, plans)
    with pytest.raises(ValueError, match="version='v2'"):
        human_filtered(scenes, scores)
    with pytest.raises(ValueError, match="version='v2'"):
        extended_score(scores, scores.score)


def test_extended_comfort_names_wrong_shapes():
    with pytest.raises(PlanError, match="expected the same"):
        extended_comfort(np.zeros((2, 41, 11)), np.zeros((1, 41, 11)))
    with pytest.raises(PlanError, match="40 steps apart"):
        extended_comfort(np.zeros((2, 41, 11)), np.zeros((2, 41, 11)), apart=40)


def test_returned_states_are_not_written_to_later(scenes, plans):
    """The scorer keeps its scratch memory from call to call; what it returned is the caller's alone."""
    kept = score(scenes, plans, "v2", states=True)
    copies = {name: values.copy() for name, values in kept.arrays().items()}
    for version in ("v1", "v2"):
        score(scenes, plans[:, ::-1], version)
        score(scenes, plans[:, ::-1], version, states=True, threads=2)
    for name, values in kept.arrays().items():
        np.testing.assert_array_equal(values, copies[name], err_msg=name)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(threads=st.integers(1, 4), copies=st.integers(1, 3), count=st.integers(0, 9), version=st.sampled_from(["v1", "v2"]))
def test_threads_and_number_of_scenes_change_nothing(scenes, plans, threads, copies, count, version):
    many = score(scenes * copies, np.concatenate([plans[:, :count]] * copies), version, states=True, threads=threads)
    once = score(scenes, plans[:, :count], version, states=True)
    for name, values in many.arrays().items():
        np.testing.assert_array_equal(values, np.concatenate([once.arrays()[name]] * copies), err_msg=name)


def test_calls_from_many_threads_at_once_do_not_mix(scenes, plans):
    from concurrent.futures import ThreadPoolExecutor

    whole = score(scenes, plans, "v2")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: score(scenes, plans[:, n : n + 8], "v2"), [8 * k for k in range(8)] * 3))
    for k, part in enumerate(found):
        equal(whole, part, slice(8 * (k % 8), 8 * (k % 8) + 8), atol=0)


def crossed(scene: Scene, kind: str, at: tuple[float, float]) -> Scene:
    """``scene`` with a polygon added around the ego-frame point ``at`` that crosses itself: a bow tie, 20 m by 20 m."""
    ring = np.array([[-10.0, -10.0], [10.0, 10.0], [10.0, -10.0], [-10.0, 10.0]]) + at
    polygons = scene.polygons
    return scene.with_(
        polygons=type(polygons)(
            np.concatenate([polygons.vertices, from_frame(ring, scene.ego)]),
            np.append(polygons.offsets, polygons.offsets[-1] + 4),
            np.append(polygons.layer, LAYERS.index(kind)).astype(np.int8),
            np.append(polygons.on_route, True),
            (*polygons.ids, "bow tie"),
        )
    )


def test_polygons_that_cross_themselves_follow_the_even_odd_rule(scenes):
    """As in GEOS, which the official code asks: the two wings left and right are inside, what lies between them is not.

    (Differential tests against the official code with such polygons in all layers found no difference.)
    """
    scene = scenes[2]
    only = scene.with_(
        polygons=type(scene.polygons)(np.zeros((0, 2)), np.zeros(1, np.int64), np.zeros(0, np.int8), np.zeros(0, bool), ())
    )
    stand = np.zeros((1, 8, 3))
    still = only.with_(ego=np.array([*scene.ego[:3], *[0.0] * 8]))
    lanes = crossed(still, "lane", (0.0, 0.0))
    for at, drivable in (((-4.5, 0.0), True), ((7.5, 0.0), True), ((1.461, 5.0), False)):  # the ego's centre is at x = 1.461
        moved_to = crossed(lanes, "roadblock", at)
        assert score(moved_to, stand, "v2").dac[0, 0] == float(drivable), at


def test_a_red_light_on_a_crossed_polygon_counts_where_it_is_touched(scenes):
    scene = crossed(scenes[2].with_(ego=np.array([*scenes[2].ego[:3], *[0.0] * 8])), "lane_connector", (1.461, 6.0))
    red = RedLights(np.array([len(scene.polygons) - 1]), np.ones((1, 51), np.bool_))
    stand = np.zeros((1, 8, 3))
    assert score(scene.with_(red_lights=red), stand, "v2").tlc[0, 0] == 1.0  # the box lies between the wings
    near = crossed(scenes[2].with_(ego=scene.ego), "lane_connector", (1.461, 3.0)).with_(red_lights=red)
    assert score(near, stand, "v2").tlc[0, 0] == 0.0
    off_route = type(near.polygons)(*[getattr(near.polygons, f) for f in ("vertices", "offsets", "layer")],
                                    np.zeros(len(near.polygons), bool), near.polygons.ids)  # fmt: skip
    assert score(near.with_(polygons=off_route), stand, "v2").tlc[0, 0] == 1.0  # lights beside the route are not obeyed
