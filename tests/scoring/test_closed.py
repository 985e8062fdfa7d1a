"""PDM-Closed against the official trajectories, and how it behaves where they say nothing; the constant-velocity baseline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vla_models.errors import SceneError
from vla_models.geometry import from_frame
from vla_models.scenes.neutral import read_scene
from vla_models.scenes.scene import AGENT_KINDS, LAYERS, Polygons, RedLights, Scene, Tracks
from vla_models.scoring.pdm import score
from vla_models.scoring.pdm.baselines import constant_velocity_plan
from vla_models.scoring.pdm.closed import plan_pdm_closed, reference_plan
from vla_models.scoring.pdm.forecast import forecast
from vla_models.scoring.pdm.idm import idm_acceleration

GOLDEN = sorted((Path(__file__).parents[1] / "data" / "pdm").glob("*.json.gz"))


def strip(x0: float, x1: float, half_width: float = 3.0) -> np.ndarray:
    return np.array([[x0, -half_width], [x1, -half_width], [x1, half_width], [x0, half_width]])


def straight(
    *agents: tuple[str, float, float, float, float], speed: float = 8.0, red_at: float | None = None, heading: float = 0.0
) -> Scene:
    """A straight road along ``heading``, the ego at its origin; agents are (kind, x, y, heading, speed) along the road."""
    x = np.arange(-20.0, 150.0)
    line = np.stack([x, 0 * x, 0 * x], axis=-1)
    rings = [strip(-20.0, 150.0), strip(-20.0, 150.0)] + ([] if red_at is None else [strip(red_at, red_at + 20.0)])
    layers = ["roadblock", "lane"] + ([] if red_at is None else ["lane_connector"])
    frame = np.array([0.0, 0.0, heading])
    tracks = np.zeros((len(agents), 51, 5))
    for a, (_, ax, ay, turn, fast) in enumerate(agents):
        pose = from_frame([ax, ay, turn], frame)
        tracks[a] = [*pose, fast * np.cos(pose[2]), fast * np.sin(pose[2])]
        tracks[a, 1:] += 1000.0  # what comes later must not matter
    sizes = {"vehicle": (4.6, 1.9, 1.6), "pedestrian": (0.7, 0.7, 1.7)}
    return Scene(
        token="straight", origin=np.zeros(2), ego=np.array([0, 0, heading, speed, 0, 0, 0, 0, 0, 0, 0], dtype=float),
        ego_history=None, centerline=from_frame(line, frame), speed_limit=10.0,
        polygons=Polygons(
            vertices=from_frame(np.concatenate(rings), frame), offsets=np.arange(0, 4 * len(rings) + 1, 4),
            layer=np.array([LAYERS.index(n) for n in layers], np.int8), on_route=np.ones(len(rings), bool),
            ids=tuple(str(i) for i in range(len(rings))),
        ),
        tracks=Tracks(
            np.array([AGENT_KINDS.index(a[0]) for a in agents], np.int8),
            np.array([sizes.get(a[0], (0.5, 0.5, 1.0)) for a in agents]).reshape(-1, 3),
            tracks,
            tuple(str(a) for a in range(len(agents))),
        ),
        red_lights=RedLights(np.arange(2, len(rings)), np.ones((len(rings) - 2, 51), bool)),
    )  # fmt: skip


@pytest.mark.parametrize("path", GOLDEN, ids=[p.name.split(".")[0] for p in GOLDEN])
def test_plans_are_the_official_ones(path: Path) -> None:
    scene = read_scene(path)
    assert scene.reference is not None
    plan = plan_pdm_closed(scene.with_(reference=None))
    np.testing.assert_allclose(plan, scene.reference, rtol=0, atol=1e-6)


def test_there_are_golden_scenes() -> None:
    assert len(GOLDEN) == 12


def test_version_1_chooses_with_its_own_score() -> None:
    """NavSim 1.1 has no lane keeping: on the curve the path 1 m to the left, which makes more way, wins."""
    scene = read_scene(next(p for p in GOLDEN if "04_curve_left" in p.name))
    first, second = plan_pdm_closed(scene, "v1"), plan_pdm_closed(scene, "v2")
    assert np.hypot(*(first[0] - second[0])[:2]) == pytest.approx(1.0, abs=0.05)


def test_an_unknown_version_is_named() -> None:
    with pytest.raises(ValueError, match=r"'v3'.*known: v1, v2"):
        plan_pdm_closed(straight(), "v3")  # type: ignore[arg-type]


def test_free_road_reaches_the_speed_limit_smoothly() -> None:
    plan = plan_pdm_closed(straight())
    step = np.diff(plan[:, 0]) / 0.1
    np.testing.assert_allclose(plan[:, 1:], 0.0, atol=1e-9)
    assert plan.shape == (51, 3)
    assert plan[0, 0] == pytest.approx(0.0, abs=1e-9)
    assert step[-1] == pytest.approx(10.0, abs=0.3)
    assert (np.diff(step[2:]) > -5e-3).all()  # after the one step in which the official code always brakes


@pytest.mark.parametrize("kind", ["vehicle", "traffic_cone", "pedestrian"])
def test_stops_behind_what_stands_on_the_road(kind: str) -> None:
    scene = straight((kind, 30.0, 0.0, 0.0, 0.0))
    plan = plan_pdm_closed(scene)
    bumper = plan[-1, 0] + 1.461 + 5.176 / 2
    rear = 30.0 - scene.tracks.size[0, 0] / 2
    assert rear - 8.0 < bumper < rear
    assert np.diff(plan[:, 0]).min() >= -1e-3


def test_follows_a_slower_leader_and_ignores_the_oncoming_lane() -> None:
    free = plan_pdm_closed(straight())
    np.testing.assert_array_equal(plan_pdm_closed(straight(("vehicle", 40.0, 6.0, np.pi, 9.0))), free)
    following = plan_pdm_closed(straight(("vehicle", 18.0, 0.0, 0.0, 5.0)))
    assert following[-1, 0] < free[-1, 0] - 5.0
    assert (following[:, 0] + 1.461 + 2.588 < 18.0 + 0.5 * np.arange(51) - 2.3).all()


def test_what_touches_the_ego_at_the_start_or_lies_behind_is_ignored() -> None:
    free = plan_pdm_closed(straight())
    np.testing.assert_array_equal(plan_pdm_closed(straight(("vehicle", 5.0, 0.5, 0.0, 0.0))), free)
    np.testing.assert_array_equal(plan_pdm_closed(straight(("vehicle", -12.0, 0.0, 0.0, 3.0))), free)
    np.testing.assert_array_equal(plan_pdm_closed(straight(("vehicle", 105.0, 0.0, 0.0, 0.0))), free)  # out of sight


def test_stops_at_a_red_light_unless_it_already_stands_in_the_junction() -> None:
    stopped = plan_pdm_closed(straight(red_at=28.0))
    assert 20.0 < stopped[-1, 0] + 1.461 + 2.588 < 28.0
    inside = straight(red_at=-5.0, speed=5.0)
    assert plan_pdm_closed(inside, "v1")[-1, 0] > 20.0
    assert 5.0 < plan_pdm_closed(inside, "v2")[-1, 0] < 15.0  # every proposal has touched red and scores 0: the first one wins
    green = straight(red_at=28.0)
    green = green.with_(red_lights=RedLights(green.red_lights.polygon, np.zeros((1, 51), bool)))
    np.testing.assert_array_equal(plan_pdm_closed(green), plan_pdm_closed(straight()))


def test_plan_turns_with_the_scene() -> None:
    plan = plan_pdm_closed(straight(("vehicle", 25.0, 0.0, 0.0, 3.0)))
    turned = plan_pdm_closed(straight(("vehicle", 25.0, 0.0, 0.0, 3.0), heading=2.0))
    np.testing.assert_allclose(turned, from_frame(plan, [0.0, 0.0, 2.0]), atol=1e-9)


def test_off_the_map_and_at_the_end_of_the_line_there_is_still_a_plan() -> None:
    scene = straight(("vehicle", 10.0, 0.0, 0.0, 0.0))
    empty = Polygons(np.zeros((0, 2)), np.zeros(1, np.int64), np.zeros(0, np.int8), np.zeros(0, bool), ())
    assert np.isfinite(plan_pdm_closed(scene.with_(polygons=empty))).all()
    short = plan_pdm_closed(scene.with_(centerline=np.array([[-3.0, 0.0, 0.0], [1.0, 0.0, 0.0]])))
    assert short[:, 0].max() <= 1.0
    assert np.isfinite(short).all()
    doubled = scene.with_(centerline=np.repeat(scene.centerline, 2, axis=0))
    np.testing.assert_allclose(plan_pdm_closed(doubled), plan_pdm_closed(scene), atol=1e-9)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"centerline": np.zeros((0, 3))}, "centerline"),
        ({"centerline": np.zeros((1, 3))}, "centerline"),
        ({"centerline": np.zeros((4, 3))}, "no length"),
        ({"centerline": np.array([[0.0, 0.0, 0.0], [np.nan, 0.0, 0.0]])}, "not finite"),
        ({"speed_limit": 0.0}, "speed limit"),
        ({"speed_limit": np.nan}, "speed limit"),
        ({"ego": np.full(11, np.nan)}, "ego state"),
    ],
)
def test_a_scene_without_a_way_is_refused_by_name(change: dict[str, object], what: str) -> None:
    with pytest.raises(SceneError, match=f"straight.*{what}"):
        plan_pdm_closed(straight().with_(**change))


def test_an_agent_with_half_a_state_is_refused() -> None:
    scene = straight(("vehicle", 20.0, 0.0, 0.0, 0.0))
    scene.tracks.states[0, 0, 3] = np.nan
    with pytest.raises(SceneError, match=r"straight.*not finite"):
        plan_pdm_closed(scene)
    scene.tracks.states[0, 0] = np.nan  # absent
    np.testing.assert_array_equal(plan_pdm_closed(scene), plan_pdm_closed(straight()))


def test_forecast_keeps_the_nearest_and_slides_them_every_second_step() -> None:
    scene = straight(*[("pedestrian", 15.0 + k, 5.0, np.pi, -1.0) for k in range(30)], ("vehicle", 50.0, 0.0, 0.0, 4.0))
    seen = forecast(scene)
    assert seen.tracks.ids[0] == "30"
    assert sorted(seen.tracks.ids[1:], key=int) == [str(k) for k in range(25)]
    np.testing.assert_allclose(seen.tracks.states[0, [0, 1, 2, 50], 0], [50.0, 50.0, 50.8, 70.0])
    np.testing.assert_allclose(seen.tracks.states[1, :, 0], 15.0 + np.arange(51) // 2 * 0.2)  # walks backwards
    np.testing.assert_allclose(seen.tracks.states[1, :, 1:], seen.tracks.states[1, :1, 1:].repeat(51, axis=0))


def test_idm_balances_at_its_gap_and_brakes_within_its_limits() -> None:
    assert idm_acceleration(0.0, 1.0, 0.0, 10.0) == pytest.approx(0.0)
    assert idm_acceleration(0.0, 1e9, 0.0, 10.0) == pytest.approx(1.5)
    assert idm_acceleration(10.0, 0.0, 0.0, 10.0) == -3.0
    assert idm_acceleration(10.0, 1e9, 0.0, 10.0) == pytest.approx(0.0, abs=1e-6)


def test_reference_plan_is_the_reference_at_half_seconds_in_the_ego_frame() -> None:
    scene = straight(heading=1.0)
    scene = scene.with_(reference=plan_pdm_closed(scene))
    assert scene.reference is not None
    plan = reference_plan(scene)
    assert plan.shape == (8, 3)
    np.testing.assert_allclose(from_frame(plan, scene.ego), scene.reference[5:41:5], atol=1e-12)
    assert score(scene, plan[None]).score[0, 0] > 0.99
    with pytest.raises(SceneError, match=r"straight.*plan_pdm_closed"):
        reference_plan(scene.with_(reference=None))
    with pytest.raises(SceneError, match=r"straight.*shape"):
        reference_plan(scene.with_(reference=np.zeros((8, 3))))


def test_constant_velocity_goes_straight_at_the_present_speed() -> None:
    scene = straight(speed=6.0, heading=0.7)
    scene.ego[4] = 8.0  # sideways motion counts as speed, as officially
    plan = constant_velocity_plan(scene)
    np.testing.assert_allclose(plan[:, 0], 5.0 * np.arange(1, 9))
    np.testing.assert_array_equal(plan[:, 1:], 0.0)
    scene.ego[3] = np.nan
    with pytest.raises(SceneError, match="straight"):
        constant_velocity_plan(scene)
