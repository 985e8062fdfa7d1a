"""Procedural scenes: complete, consistent, reproducible, not too easy, and found again in the cache."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vla_models.errors import SceneError
from vla_models.geometry import from_frame, project, to_frame, wrap_angle
from vla_models.scenes import procedural
from vla_models.scenes.procedural import KINDS, ProceduralSpec, generate, generate_scene
from vla_models.scenes.scene import COMMANDS, LAYERS, TRACK_STEPS, Scene
from vla_models.scenes.store import SceneStore

TOWNS = ("Town01", "Town03")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SceneStore:
    """Forty scenes, in a cache of this module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(procedural, "cache_dir", lambda: tmp_path_factory.mktemp("cache"))
        return generate(ProceduralSpec(TOWNS, 40, seed=7))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(procedural, "cache_dir", lambda: tmp_path)
    return tmp_path


def same(a: Scene, b: Scene) -> bool:
    return (
        a.token == b.token
        and a.kind == b.kind
        and np.array_equal(a.ego, b.ego)
        and np.array_equal(a.polygons.vertices, b.polygons.vertices)
        and np.array_equal(a.tracks.states, b.tracks.states, equal_nan=True)
        and np.array_equal(np.asarray(a.reference), np.asarray(b.reference))
    )


def test_scenes_are_complete(store: SceneStore) -> None:
    for scene in store:
        assert scene.ego.shape == (11,)
        assert scene.ego_history is not None
        assert scene.ego_history.shape == (4, 11)
        assert scene.reference is not None
        assert scene.reference.shape == (51, 3)
        assert scene.human is not None
        assert scene.human.shape == (8, 3)
        assert scene.route.shape == (10, 2)
        assert scene.tracks.states.shape == (len(scene.tracks), TRACK_STEPS, 5)
        assert scene.town in TOWNS
        assert scene.kind in KINDS
        assert scene.images == {}
        assert COMMANDS[scene.command] != "unknown"
        assert 3.0 < scene.speed_limit < 40.0
        for array in (scene.ego, scene.ego_history, scene.reference, scene.human, scene.route, scene.centerline):
            assert np.isfinite(array).all()
    assert len(set(store.kinds)) > 6
    assert {COMMANDS[scene.command] for scene in store} == {"left", "straight", "right"}


def test_the_ego_is_consistent(store: SceneStore) -> None:
    for scene in store:
        ego, history = scene.ego, np.asarray(scene.ego_history)
        np.testing.assert_array_equal(history[-1], ego)
        np.testing.assert_array_equal(ego[:2], 0.0)
        assert 0.0 <= ego[3] <= 24.0
        # path length of the history fits the speeds, its turning the yaw rates
        moved = np.hypot(*np.diff(history[:, :2], axis=0).T)
        np.testing.assert_allclose(moved, 0.25 * (history[1:, 3] + history[:-1, 3]), atol=0.35)
        turned = wrap_angle(np.diff(history[:, 2]))
        np.testing.assert_allclose(turned, 0.25 * (history[1:, 9] + history[:-1, 9]), atol=0.12)
        # a bicycle model with NavSim's wheelbase
        np.testing.assert_allclose(ego[9], ego[3] * np.tan(ego[7]) / 3.089, atol=1e-9)
        np.testing.assert_allclose(ego[6], ego[3] * ego[9], atol=1e-9)
        # the human goes on from there
        first = np.asarray(scene.human)[0]
        assert abs(np.hypot(first[0], first[1]) - 0.5 * ego[3]) < 0.8
        assert abs(first[1]) < 0.6


def test_route_and_centre_line(store: SceneStore) -> None:
    for scene in store:
        line = scene.centerline
        assert np.abs(np.hypot(*np.diff(line[:, :2], axis=0).T) - 1.0).max() < 0.3
        along, aside = project(line, 0.0, 0.0)
        assert 10.0 < along < 30.0
        assert abs(aside) < 2.5
        assert len(line) - along > 105.0
        for k, point in enumerate(from_frame(scene.route, scene.ego[:3])):
            at, off = project(line, *point)
            assert abs(off) < 0.05
            assert abs(at - along - 5.0 * (k + 1)) < 2.0
        side = to_frame(line[int(along) + 20, :2], scene.ego[:3])[1]
        expected = "left" if side > 2.3 else "right" if side < -2.3 else "straight" if abs(side) < 1.7 else None
        assert expected in (None, COMMANDS[scene.command])


def test_the_map_holds_ego_and_route(store: SceneStore) -> None:
    for scene in store:
        polygons = scene.polygons
        layers = [LAYERS[code] for code in polygons.layer]
        assert len(polygons.ids) == len(polygons) == len(layers)
        order = [("roadblock", "lane", "lane_connector", "intersection", "carpark").index(name) for name in layers]
        assert order == sorted(order)  # the order in which NavSim collects them
        on_route = [p for p in range(len(polygons)) if polygons.on_route[p] and layers[p] in ("lane", "lane_connector")]
        near = scene.centerline[::10][np.hypot(*scene.centerline[::10, :2].T) < 75.0]
        inside = sum(any(contains(polygons.ring(p), x, y) for p in on_route) for x, y, _ in near)
        assert inside >= len(near) - 1  # a point may lie on the seam of two lanes
        assert not polygons.on_route[[k for k, name in enumerate(layers) if name in ("intersection", "carpark")]].any()
        for polygon in scene.red_lights.polygon:
            assert layers[polygon] == "lane_connector"
            assert polygons.on_route[polygon]


def contains(ring: np.ndarray, x: float, y: float) -> bool:
    a, b = ring, np.roll(ring, -1, axis=0)
    crosses = (a[:, 1] > y) != (b[:, 1] > y)
    with np.errstate(divide="ignore", invalid="ignore"):
        at = a[:, 0] + (y - a[:, 1]) / (b[:, 1] - a[:, 1]) * (b[:, 0] - a[:, 0])
    return bool((crosses & (x < at)).sum() % 2)


def test_tracks_are_physical(store: SceneStore) -> None:
    seen = set()
    for scene in store:
        states = scene.tracks.states
        distance = np.hypot(states[:, 0, 0], states[:, 0, 1])
        assert np.all(np.diff(distance) >= 0.0)
        assert np.all(distance < 66.0)
        assert len(states) <= 40
        assert np.isfinite(states[:, 0]).all()
        absent = ~np.isfinite(states).all(axis=2)
        assert np.all(np.diff(absent.astype(int), axis=1) >= 0)  # whoever left does not come back
        steps = np.diff(states[..., :2], axis=1)
        mean = 0.05 * (states[:, 1:, 3:5] + states[:, :-1, 3:5])
        assert np.nanmax(np.abs(steps - mean), initial=0.0) < 0.3
        seen |= set(scene.tracks.kind.tolist())
    assert {0, 1} <= seen


def test_the_mix_is_not_easy_but_possible(store: SceneStore) -> None:
    judged = [procedural.judge(scene) for scene in store]
    assert np.mean([c.constant_velocity for c in judged]) < 0.5
    assert np.mean([c.pdm_closed for c in judged]) > 0.8
    assert np.mean([c.human for c in judged]) > 0.8
    for candidate, scene in zip(judged, store, strict=True):
        np.testing.assert_array_equal(np.asarray(candidate.scene.reference), np.asarray(scene.reference))


def test_a_scene_depends_on_the_spec_and_its_index_only(store: SceneStore, cache: Path) -> None:
    fewer = generate(ProceduralSpec(TOWNS, 4, seed=7))
    assert all(same(a, b) for a, b in zip(fewer, store, strict=False))
    assert same(generate_scene(ProceduralSpec(TOWNS, 1000, seed=7), 23), store[23])
    other = generate(ProceduralSpec(TOWNS, 4, seed=8))
    assert not set(other.tokens) & set(store.tokens)


def test_another_process_makes_the_same_scenes(store: SceneStore) -> None:
    code = (
        "from vla_models.scenes.procedural import ProceduralSpec, generate_scene\n"
        "import zlib\n"
        f"scene = generate_scene(ProceduralSpec({TOWNS}, 40, seed=7), 5)\n"
        "print(scene.token, zlib.crc32(scene.tracks.states.tobytes()), zlib.crc32(scene.reference.tobytes()))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    import zlib

    scene = store[5]
    expected = [scene.token, zlib.crc32(scene.tracks.states.tobytes()), zlib.crc32(np.asarray(scene.reference).tobytes())]
    assert out == [str(value) for value in expected]


def test_kinds_can_be_chosen(cache: Path) -> None:
    store = generate(ProceduralSpec(("Town03",), 5, seed=1, kinds=("turn_left", "lead_stopped")))
    assert set(store.kinds) <= {"turn_left", "lead_stopped"}


def test_images_are_rendered_on_request(store: SceneStore, cache: Path) -> None:
    pytest.importorskip("panda3d")
    from vla_models.render.camera import CameraSpec

    seen = generate(ProceduralSpec(TOWNS, 2, seed=7, camera=CameraSpec(width=64, height=40)))
    assert same(seen[1], store[1])
    image = seen[1].images["front"]
    assert image.shape == (40, 64, 3)
    assert image.dtype == np.uint8
    assert image.std() > 5.0


def test_scenes_are_cached(cache: Path) -> None:
    calls: list[tuple[int, int]] = []
    spec = ProceduralSpec(("Town01",), 3, seed=5)
    first = generate(spec, progress=lambda done, count: calls.append((done, count)))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    again = generate(spec, progress=lambda done, count: calls.append((done, count)))
    assert len(calls) == 3
    tokens = first.tokens
    assert again.tokens == tokens
    assert again.path.parent == cache / "scenes"
    assert "Town01" in again.provenance["spec"]
    again.path.unlink()  # the open stores keep what they have mapped
    again.path.write_bytes(b"damaged")
    assert generate(spec).tokens == tokens


def test_workers_change_nothing(store: SceneStore, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procedural, "_SCENES_PER_WORKER", 2)
    monkeypatch.setattr(procedural, "store_path", lambda spec: cache / "shared.arrow")
    calls: list[tuple[int, int]] = []
    shared = generate(ProceduralSpec(TOWNS, 5, seed=7), progress=lambda done, count: calls.append((done, count)), workers=2)
    assert all(same(a, b) for a, b in zip(shared, store, strict=False))
    assert calls[-1] == (5, 5)


def test_an_interrupted_generation_leaves_nothing(cache: Path) -> None:
    def stop(done: int, count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(ProceduralSpec(("Town01",), 3, seed=5), progress=stop)
    assert list((cache / "scenes").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((("Town01",), 0, 0), "cannot generate 0 scenes: an empty scene set"),
        ((("Town01",), -3, 0), "cannot generate -3 scenes"),
        ((("Town1",), 1, 0), "there is no town 'Town1'.*Did you mean 'Town1?0?1?"),
        (((), 1, 0), "no town to generate scenes from"),
        ((("Town01",), 1, 0, ("turn_lefft",)), "there is no kind of scene 'turn_lefft'.*Did you mean 'turn_left'"),
        ((("Town01",), 1, 0, ()), "no kind of scene to generate scenes from"),
        ((("Town01",), 1, -1), "the seed of procedural scenes must be a whole number from 0, got -1"),
    ],
)
def test_bad_specs_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(SceneError, match=message):
        ProceduralSpec(*arguments)


def test_a_kind_that_a_town_cannot_give_is_an_error(cache: Path) -> None:
    with pytest.raises(
        SceneError, match=r"no scene of cut_in could be made in Town01 in .* attempts"
    ):  # all roads have one lane
        generate(ProceduralSpec(("Town01",), 1, seed=0, kinds=("cut_in",)))
    assert list((cache / "scenes").iterdir()) == []
