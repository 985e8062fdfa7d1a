"""Official metric caches: scenes made of them score as the official code scored the same scenes."""

from __future__ import annotations

import lzma
import struct
from pathlib import Path

import numpy as np
import pytest

from vla_models.errors import SceneError
from vla_models.scenes.metric_cache import metric_cache_files, read_metric_cache
from vla_models.scenes.neutral import read_scene
from vla_models.scenes.pickled import Geometry
from vla_models.scenes.scene import Scene
from vla_models.scoring.pdm import score
from vla_models.scoring.pdm.comfort import past_states

DATA = Path(__file__).parent.parent / "data"
FILES = metric_cache_files(DATA / "metric_cache")


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parts[-5]}-{p.parent.name}")
def test_scores_equal_the_official_ones(path: Path) -> None:
    version = "v1" if path.parts[-5] == "v1.1" else "v2"
    scene = read_metric_cache(path)
    golden = np.load(DATA / "pdm" / f"{scene.token}.npz")
    found = score(scene, golden["proposals"], version=version)
    terms = {**found.terms(), "mult": found.mult, "score": found.score, "progress_raw": found.progress_raw}
    for name, values in {**terms, "nc_idx": found.nc_idx, "ttc_idx": found.ttc_idx}.items():
        if f"{version}_{name}" in golden:
            np.testing.assert_allclose(values[0], golden[f"{version}_{name}"], rtol=0.0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parts[-5]}-{p.parent.name}")
def test_the_scene_is_the_one_that_was_pickled(path: Path) -> None:
    scene = read_metric_cache(path)
    original = read_scene(DATA / "pdm" / f"{scene.token}.json.gz")
    for name in ("origin", "ego", "centerline"):
        np.testing.assert_allclose(getattr(scene, name), getattr(original, name), atol=1e-8, err_msg=name)
    assert scene.time_us == original.time_us
    assert scene.reference is not None
    np.testing.assert_allclose(scene.reference, original.reference, atol=1e-8)
    np.testing.assert_array_equal(scene.polygons.layer, original.polygons.layer)
    assert scene.polygons.ids == original.polygons.ids
    by_name = {name: k for k, name in enumerate(original.tracks.ids)}
    order = [by_name[name] for name in scene.tracks.ids]
    np.testing.assert_array_equal(scene.tracks.kind, original.tracks.kind[order])
    np.testing.assert_array_equal(scene.tracks.size, original.tracks.size[order])
    two = path.parts[-5] == "v2.2"
    steps, columns = (41, 5) if two else (51, 3)
    np.testing.assert_allclose(
        scene.tracks.states[:, :steps, :columns], original.tracks.states[order][:, :steps, :columns], atol=1e-8
    )
    assert np.isnan(scene.tracks.states[:, steps:]).all()
    assert scene.route.shape == (10, 2)
    if two:
        assert [scene.polygons.ids[p] for p in scene.red_lights.polygon] == [
            original.polygons.ids[p] for p in original.red_lights.polygon
        ]
        np.testing.assert_array_equal(scene.red_lights.red[:, :41], original.red_lights.red[:, :41])
        if original.ego_history is not None:
            np.testing.assert_allclose(scene.ego_history, original.ego_history, atol=1e-8)
            assert scene.ego_history_us is not None
            assert scene.ego_history_us.tolist() == [-1_500_000, -1_000_000, -500_000, 0]


def test_both_versions_have_an_infraction_to_find() -> None:
    """The comparison above would mean little on scenes where everything is 1."""
    golden = [np.load(DATA / "pdm" / f"{path.parent.name}.npz") for path in FILES]
    for name in ("v1_nc", "v1_dac", "v1_ttc", "v2_tlc", "v2_lk", "v2_hc", "v2_ddc"):
        assert min(g[name].min() for g in golden) == 0.0, name


def test_a_late_clock_takes_one_more_sample_of_the_past() -> None:
    """As ``PDMScorer._calculate_history_comfort`` does: it steps by 0.1 s from the first time to the last, less one."""
    history = np.arange(44.0).reshape(4, 11)
    exact = np.array([-1_500_000, -1_000_000, -500_000, 0])
    assert len(past_states(history)) == len(past_states(history, exact)) == 14
    np.testing.assert_array_equal(past_states(history), past_states(history, exact))
    late = past_states(history, exact - [7, 0, 3, 0])
    assert len(late) == 15
    np.testing.assert_allclose(late[-1, 0], np.interp(-100_007, exact - [7, 0, 3, 0], history[:, 0]))


def wkb_polygon(*rings: np.ndarray, order: str = "<", code: int = 3) -> bytes:
    out = struct.pack(order + "BII", order == "<", code, len(rings))
    return out + b"".join(struct.pack(order + "I", len(r)) + r.astype(order + "f8").tobytes() for r in rings)


SQUARE = np.array([[0, 0], [4, 0], [4, 4], [0, 4], [0, 0]], dtype=float)
HOLE = np.array([[1, 1], [1, 2], [2, 2], [2, 1], [1, 1]], dtype=float)


@pytest.mark.parametrize("order", ["<", ">"])
def test_geometries(order: str) -> None:
    (rings,) = Geometry(wkb_polygon(SQUARE, HOLE, order=order)).polygons()
    np.testing.assert_array_equal(rings[0], SQUARE)
    np.testing.assert_array_equal(rings[1], HOLE)
    high = np.column_stack([SQUARE, np.ones(5)])
    for code in (0x80000003, 1003):
        np.testing.assert_array_equal(Geometry(wkb_polygon(high, order=order, code=code)).polygons()[0][0], SQUARE)
    several = struct.pack(order + "BII", order == "<", 6, 2) + 2 * wkb_polygon(SQUARE, order=order)
    assert len(Geometry(several).polygons()) == 2


@pytest.mark.parametrize(
    ("wkb", "message"),
    [
        (struct.pack("<BIdd", 1, 1, 0.0, 0.0), "WKB type 1"),
        (wkb_polygon(SQUARE)[:-3], "damaged"),
        (b"", "damaged"),
        (struct.pack("<BIII", 1, 3, 1, 1 << 31), "damaged"),
    ],
)
def test_damaged_geometries(wkb: bytes, message: str) -> None:
    with pytest.raises(SceneError, match=message):
        Geometry(wkb).polygons()


def replaced(tmp_path: Path, old: bytes, new: bytes) -> Path:
    """The cache of a scene with a light, with some bytes of its pickle replaced."""
    source = next(p for p in FILES if p.parts[-5] == "v2.2" and p.parent.name == "06_intersection_straight")
    raw = lzma.decompress(source.read_bytes())
    assert len(old) == len(new)
    assert old in raw
    path = tmp_path / "06_intersection_straight" / "metric_cache.pkl"
    path.parent.mkdir()
    path.write_bytes(raw.replace(old, new))
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"centerline", b"centreline", "has no 'centerline'"),
        (b"_occupancy_maps_tl", b"_occupancy_maps_tm", "has no '_occupancy_maps_tl'"),
        (b"red_light_c_straight", b"red_light_c_missing_", "red light of connector 'c_missing_' is near"),
    ],
)
def test_missing_parts_are_named(tmp_path: Path, old: bytes, new: bytes, message: str) -> None:
    with pytest.raises(SceneError, match=rf"metric_cache\.pkl.*{message}"):
        read_metric_cache(replaced(tmp_path, old, new))


def test_a_hole_in_a_polygon_is_outside_of_it() -> None:
    """The scene has one ring a polygon; ours goes around the hole as well."""
    from vla_models.scenes.metric_cache import _without_holes

    ring = _without_holes([SQUARE, HOLE])
    x, y = ring.T
    area = 0.5 * abs(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]))
    assert area == 16.0 - 1.0
    assert {tuple(p) for p in HOLE} <= {tuple(p) for p in ring}


def test_the_type_is_a_scene() -> None:
    assert isinstance(read_metric_cache(FILES[0]), Scene)
