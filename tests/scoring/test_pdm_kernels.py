"""Geometry of the kernels against shapely, filters against their definition, tracking against its fixed points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_models.errors import PlanError
from vla_models.scenes.neutral import read_scene
from vla_models.scenes.scene import LAYERS, Polygons, RedLights, Scene, Tracks
from vla_models.scoring.pdm.area import inside, prepare_areas, prepare_red_areas, red_light_kernel
from vla_models.scoring.pdm.collide import collision_kernel, footprint_kernel, prepare_agents
from vla_models.scoring.pdm.comfort import savgol
from vla_models.scoring.pdm.progress import locate, prepare_line
from vla_models.scoring.pdm.track import interpolate, simulate, track

shapely = pytest.importorskip("shapely")
DATA = Path(__file__).parents[1] / "data" / "pdm"


def scene_with(rings=(), layer="lane_connector", line=None, tracks=None) -> Scene:
    count = len(rings)
    polygons = Polygons(
        np.concatenate(rings) if count else np.zeros((0, 2)),
        np.cumsum([0, *map(len, rings)]),
        np.full(count, LAYERS.index(layer), np.int8),
        np.ones(count, np.bool_),
        tuple(map(str, range(count))),
    )
    return Scene(
        token="made", origin=np.zeros(2), ego=np.zeros(11), ego_history=None,
        centerline=np.array([[0.0, 0, 0], [9.0, 0, 0]]) if line is None else line, speed_limit=10.0, polygons=polygons,
        tracks=tracks or Tracks(np.zeros(0, np.int8), np.zeros((0, 3)), np.zeros((0, 51, 5)), ()),
        red_lights=RedLights(np.arange(count), np.ones((count, 51), np.bool_)),
    )  # fmt: skip


def star(seed: int, vertices: int) -> np.ndarray:
    """A simple ring around the origin, elongated and turned at random."""
    rng = np.random.default_rng(seed)
    angle = np.sort(rng.uniform(0, 2 * np.pi, vertices))
    radius = rng.uniform(0.3, 1.0, vertices) * 20
    ring = np.stack([radius * np.cos(angle), radius * np.sin(angle) * rng.uniform(0.05, 1.0)], -1)
    turn = rng.uniform(0, np.pi)
    c, s = np.cos(turn), np.sin(turn)
    return ring @ np.array([[c, s], [-s, c]])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), vertices=st.integers(3, 90))
def test_points_in_polygons_agree_with_geos(seed, vertices):
    ring = star(seed, vertices)
    areas = prepare_areas(scene_with([ring]))
    points = np.random.default_rng(seed + 1).uniform(-22, 22, (300, 2))
    got = [inside(areas.shapes, areas.cells, areas.edges, 0, p[:1].copy(), p[1:].copy(), 1) for p in points]
    np.testing.assert_array_equal(np.array(got, bool), shapely.contains_xy(shapely.Polygon(ring), points[:, 0], points[:, 1]))


def test_the_border_is_outside():
    areas = prepare_areas(scene_with([np.array([[0.0, 0], [4, 0], [4, 2], [0, 2]])]))
    xs, ys = np.array([2.0, 0, 0, 4, 2, 3.9]), np.array([0.0, 1, 0, 2, 2, 1.9])
    assert inside(areas.shapes, areas.cells, areas.edges, 0, xs, ys, 0b111111) == 0b100000


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), vertices=st.integers(3, 40))
def test_red_areas_agree_with_geos(seed, vertices):
    ring = star(seed, vertices)
    scene = scene_with([ring])
    states = np.zeros((20, 41, 11))
    rng = np.random.default_rng(seed)
    states[:, :, :3] = rng.uniform((-28, -28, -np.pi), (28, 28, np.pi), (20, 1, 3))
    boxes, got = np.empty((20, 41, 5)), np.empty(20)
    footprint_kernel(states, boxes)
    red_light_kernel(boxes, prepare_areas(scene), prepare_red_areas(scene), got)
    polygon = shapely.Polygon(ring)
    for n in range(20):
        assert (got[n] == 0) == polygon.intersects(ego_box(boxes[n, 0]))


def ego_box(row, half_length=2.588, half_width=1.1485):
    x, y, c, s, _ = row
    corners = [(a * half_length, b * half_width) for a, b in ((1, 1), (-1, 1), (-1, -1), (1, -1))]
    return shapely.Polygon([(x + c * u - s * v, y + s * u + c * v) for u, v in corners])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_first_contact_agrees_with_geos(seed):
    """Stopped agents at random, a plan through them: the first step at fault is the first at which GEOS sees contact."""
    rng = np.random.default_rng(seed)
    count = 6
    states = np.zeros((count, 51, 5))
    states[:, :, :3] = rng.uniform((0, -8, -np.pi), (40, 8, np.pi), (count, 1, 3))
    states[0, :20] = np.nan
    size = rng.uniform(0.3, 6.0, (count, 3))
    scene = scene_with(tracks=Tracks(np.zeros(count, np.int8), size, states, tuple("abcdef")))
    driven = np.zeros((1, 41, 11))
    driven[0, :, 0], driven[0, :, 2], driven[0, :, 3] = np.linspace(-5, 40, 41), rng.uniform(-0.5, 0.5), 11.0
    boxes = np.empty((1, 41, 5))
    footprint_kernel(driven, boxes)
    nc, index = np.empty(1), np.empty(1)
    collision_kernel(driven, boxes, np.zeros((1, 41), np.uint8), prepare_agents(scene.tracks, scene.ego), 1, nc, index)
    others = [
        [ego_box((*states[a, t, :2], np.cos(states[a, t, 2]), np.sin(states[a, t, 2]), 0), size[a, 0] / 2, size[a, 1] / 2)
         for a in range(count) if not np.isnan(states[a, t, 0])]
        for t in range(41)
    ]  # fmt: skip
    contact = [t for t in range(41) if any(ego_box(boxes[0, t]).intersects(o) for o in others[t])]
    assert index[0] == (contact[0] if contact else np.inf)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), points=st.integers(2, 60))
def test_progress_agrees_with_geos(seed, points):
    rng = np.random.default_rng(seed)
    line = np.zeros((points, 3))
    line[:, :2] = np.cumsum(rng.normal(1.0, 1.0, (points, 2)), axis=0)
    if points > 3:
        line[2] = line[1]  # a repeated point
    prepared = prepare_line(scene_with(line=line))
    geos = shapely.LineString(line[:, :2])
    for x, y in rng.uniform(-5, points, (20, 2)):
        assert locate(prepared, x, y) == pytest.approx(geos.project(shapely.Point(x, y)), abs=1e-9)


@pytest.mark.parametrize(("window", "order"), [(41, 2), (8, 2), (15, 2), (5, 2), (5, 3)])
def test_savgol_reproduces_polynomials_and_their_derivatives(window, order):
    t = np.arange(41) * 0.1
    at = t.copy()
    if window % 2 == 0:
        at[window // 2 : -window // 2] += 0.05  # inside, an even window looks half a sample ahead
    coefficients = np.array([0.3, -1.0, 0.5, 0.2])[-order - 1 :]
    for derivative in range(order + 1):
        expected = np.polyval(np.polyder(coefficients, derivative), at)
        np.testing.assert_allclose(savgol(41, window, order, derivative) @ np.polyval(coefficients, t), expected, atol=1e-7)


def test_a_straight_plan_at_constant_speed_is_driven_straight():
    ego = np.zeros(11)
    ego[3] = 8.0
    plan = np.zeros((1, 8, 3))
    plan[0, :, 0] = 4.0 * np.arange(1, 9)
    driven = simulate(plan, ego)
    assert driven.shape == (1, 41, 11)
    np.testing.assert_allclose(driven[0, :, 1], 0.0, atol=1e-9)
    assert driven[0, -1, 0] == pytest.approx(32.0, abs=0.5)


def test_a_standing_plan_keeps_a_standing_car_still():
    driven = simulate(np.zeros((1, 8, 3)), np.zeros(11))
    np.testing.assert_allclose(driven, 0.0, atol=1e-12)


def test_headings_interpolate_the_short_way():
    ego = np.zeros(11)
    ego[2] = 3.1
    plan = np.zeros((1, 8, 3))
    plan[0, :, 2] = 0.1  # global headings cross pi
    headings = interpolate(plan, ego)[0, :, 2]
    assert (np.abs(headings) > 3.0).all()


def test_wrong_shapes_are_plan_errors():
    with pytest.raises(PlanError, match=r"\(1, 7, 3\)"):
        simulate(np.zeros((1, 7, 3)), np.zeros(11))
    with pytest.raises(PlanError, match=r"\(1, 8, 3\)"):
        track(np.zeros((1, 8, 3)), np.zeros(11))


def test_the_time_of_a_scene_moves_its_samples_by_a_microsecond():
    scene = read_scene(DATA / "04_curve_left.json.gz")
    plans = np.load(DATA / "04_curve_left.npz")["proposals"][:4]
    gap = np.abs(interpolate(plans, scene.ego, scene.time_us) - interpolate(plans, scene.ego, 0)).max()
    assert 0.0 < gap < 1e-4
