"""The scene store: what goes in comes out, and a damaged file is an error that names it."""

from __future__ import annotations

import dataclasses
import pickle
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import vla_models.scenes.store
from vla_models.errors import SceneError
from vla_models.scenes.scene import TRACK_STEPS, Polygons, RedLights, Scene, Tracks
from vla_models.scenes.store import SCHEMA_VERSION, SceneStore, write_manifest, write_scenes


def make_scene(number: int, *, agents: int = 3, image: bool = True, bare: bool = False) -> Scene:
    rng = np.random.default_rng(number)
    states = rng.normal(size=(agents, TRACK_STEPS, 5))
    states[:1, 30:] = np.nan
    return Scene(
        token=f"token{number:04d}",
        origin=rng.normal(size=2) * 1e6,
        ego=rng.normal(size=11),
        ego_history=None if bare else rng.normal(size=(4, 11)),
        centerline=rng.normal(size=(150, 3)),
        speed_limit=11.2,
        polygons=Polygons(
            vertices=rng.normal(size=(7, 2)),
            offsets=np.array([0, 4, 7]),
            layer=np.array([0, 2], dtype=np.int8),
            on_route=np.array([True, False]),
            ids=("road/1", "straße"),
        ),
        tracks=Tracks(np.arange(agents, dtype=np.int8), rng.random((agents, 3)), states, tuple(f"a{k}" for k in range(agents))),
        red_lights=RedLights(np.array([1]), rng.random((1, TRACK_STEPS)) < 0.5),
        reference=None if bare else rng.normal(size=(51, 3)),
        human=None if bare else rng.normal(size=(8, 3)),
        command=number % 4,
        images={"front": rng.integers(0, 255, (6, 8, 3), dtype=np.uint8), "left": np.zeros((2, 2, 3), np.uint8)}
        if image
        else {},
        light_heads=rng.normal(size=(2, 4)),
        route=rng.normal(size=(10, 2)),
        town="Town01",
        kind="turn_left",
    )


def assert_same(a: object, b: object) -> None:
    if dataclasses.is_dataclass(a):
        for field in dataclasses.fields(a):
            assert_same(getattr(a, field.name), getattr(b, field.name))
    elif isinstance(a, np.ndarray):
        assert isinstance(b, np.ndarray)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    elif isinstance(a, dict):
        assert isinstance(b, dict)
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    else:
        assert a == b


@pytest.fixture
def store(tmp_path: Path) -> SceneStore:
    return write_scenes(tmp_path / "scenes.arrow", (make_scene(k) for k in range(20)), {"spec": "made up"})


def test_round_trip(tmp_path: Path) -> None:
    scenes = [make_scene(0), make_scene(1, bare=True, image=False), make_scene(2, agents=0)]
    store = write_scenes(tmp_path / "scenes.arrow", scenes)
    assert len(store) == 3
    for scene, read in zip(scenes, store, strict=True):
        assert_same(scene, read)


def test_rows_are_views_into_the_file(store: SceneStore) -> None:
    a, b = store[3], store[3]
    assert np.shares_memory(a.centerline, b.centerline)
    assert np.shares_memory(a.images["front"], b.images["front"])
    assert a.tracks.states.flags.c_contiguous
    assert a.tracks.states.flags.aligned
    assert a.tracks.states.flags.writeable  # else every compiled kernel would be compiled a second time


def test_it_is_a_sequence(store: SceneStore) -> None:
    assert store[-1].token == "token0019"
    part = store[5:15:2]
    assert isinstance(part, SceneStore)
    assert [scene.token for scene in part] == ["token0005", "token0007", "token0009", "token0011", "token0013"]
    assert part.tokens == tuple(scene.token for scene in part)
    assert part[1:][0].token == "token0007"
    assert store.select([4, 2]).tokens == ("token0004", "token0002")
    assert store.kinds == ("turn_left",) * 20
    with pytest.raises(IndexError, match="20 of 20"):
        store[20]


def test_by_token(store: SceneStore) -> None:
    assert_same(store.by_token("token0007"), make_scene(7))
    with pytest.raises(SceneError, match="has no scene 'token9999' among its 20"):
        store.by_token("token9999")
    with pytest.raises(SceneError, match="token0001"):
        store[5:].by_token("token0001")


def test_provenance_and_schema_are_kept(store: SceneStore) -> None:
    assert store.provenance == {"spec": "made up"}
    metadata = pa.ipc.open_file(str(store.path)).schema.metadata
    assert metadata[b"schema"].decode() == SCHEMA_VERSION


def test_pickle_carries_the_path(store: SceneStore) -> None:
    data = pickle.dumps(store[2:5])
    assert len(data) < 2000
    assert [scene.token for scene in pickle.loads(data)] == ["token0002", "token0003", "token0004"]


def test_several_batches(tmp_path: Path) -> None:
    store = write_scenes(tmp_path / "scenes.arrow", (make_scene(k, image=False) for k in range(600)))
    assert store[599].token == "token0599"
    assert_same(store[256], make_scene(256, image=False))
    assert len(set(store.tokens)) == 600


def test_reading_a_row_is_fast(store: SceneStore) -> None:
    store[0]
    begin = time.process_time()
    for _ in range(10):
        for scene in store:
            assert scene.token
    assert (time.process_time() - begin) / 200 < 2e-3  # measured 0.1 ms; room for a busy machine


def test_empty_store(tmp_path: Path) -> None:
    store = write_scenes(tmp_path / "none.arrow", [])
    assert len(store) == 0
    assert store.tokens == ()


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SceneError, match=r"there is no scene file .*nothing\.arrow"):
        SceneStore.open(tmp_path / "nothing.arrow")


@pytest.mark.parametrize("content", [b"", b"not arrow at all", b"ARROW1\0\0" + b"x" * 200])
def test_wrong_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "wrong.arrow"
    path.write_bytes(content)
    with pytest.raises(SceneError, match=r"wrong\.arrow is not a scene file"):
        SceneStore.open(path)


@pytest.mark.parametrize("part", [0.3, 0.9, 0.999])
def test_truncated_file(store: SceneStore, part: float) -> None:
    data = store.path.read_bytes()
    cut = store.path.with_name("cut.arrow")
    cut.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(SceneError, match=r"cut\.arrow"):
        SceneStore.open(cut)


def test_foreign_arrow_file(tmp_path: Path) -> None:
    path = tmp_path / "table.arrow"
    batch = pa.record_batch({"x": [1, 2]})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.raises(SceneError, match=r"table\.arrow has schema 'unknown'"):
        SceneStore.open(path)


def test_flipped_bytes_are_found(store: SceneStore) -> None:
    scene = store[11]
    data = bytearray(store.path.read_bytes())
    at = data.find(scene.centerline.tobytes())
    assert at > 0
    data[at + 100] ^= 0xFF
    damaged = store.path.with_name("damaged.arrow")
    damaged.write_bytes(bytes(data))
    other = SceneStore.open(damaged)
    assert_same(other[10], make_scene(10))
    with pytest.raises(SceneError, match=r"damaged\.arrow is damaged \(scene 11"):
        other[11]


def test_a_failing_writer_leaves_nothing(tmp_path: Path) -> None:
    def scenes():
        yield make_scene(0)
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        write_scenes(tmp_path / "scenes.arrow", scenes())
    assert list(tmp_path.iterdir()) == []


def test_bad_scenes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scenes.arrow"
    with pytest.raises(SceneError, match="two scenes have the token 'token0000'"):
        write_scenes(path, [make_scene(0), make_scene(0)])
    with pytest.raises(SceneError, match=r"centerline must have shape \[n, 3\], got \(150, 2\)"):
        write_scenes(path, [make_scene(0).with_(centerline=np.zeros((150, 2)))])
    with pytest.raises(SceneError, match="image 'front' must be uint8"):
        write_scenes(path, [make_scene(0).with_(images={"front": np.zeros((4, 4, 3))})])
    assert not path.exists()


@pytest.fixture
def folder(tmp_path: Path) -> SceneStore:
    """A store of three files, one of them empty."""
    names = []
    for k, rows in enumerate((range(7), range(0), range(7, 20))):
        names.append(f"part-{k}.arrow")
        write_scenes(tmp_path / "store" / names[-1], (make_scene(row) for row in rows))
    return write_manifest(tmp_path / "store", names, {"made_by": "hand"})


def test_a_folder_of_files_is_a_store(folder: SceneStore, store: SceneStore) -> None:
    assert len(folder) == 20
    assert folder.tokens == store.tokens
    assert folder.provenance == {"made_by": "hand"}
    assert_same(folder[6], make_scene(6))
    assert_same(folder[7], make_scene(7))
    assert_same(folder[-1], make_scene(19))
    assert_same(folder.by_token("token0013"), make_scene(13))
    assert folder.row_of("token0013") == 13
    assert [scene.token for scene in folder[5:9]] == ["token0005", "token0006", "token0007", "token0008"]
    assert [scene.token for scene in pickle.loads(pickle.dumps(folder.select([8, 2])))] == ["token0008", "token0002"]


def test_an_unfinished_or_damaged_folder(folder: SceneStore) -> None:
    manifest = folder.path / "store.json"
    (folder.path / "part-2.arrow").rename(folder.path / "away")
    with pytest.raises(SceneError, match=r"there is no scene file .*part-2\.arrow"):
        SceneStore.open(folder.path)
    manifest.write_text("{")
    with pytest.raises(SceneError, match=r"store\.json is damaged"):
        SceneStore.open(folder.path)
    manifest.unlink()
    with pytest.raises(SceneError, match=r"no finished scene store: it has no store\.json"):
        SceneStore.open(folder.path)


def test_the_hash_names_the_content(folder: SceneStore, store: SceneStore, tmp_path: Path) -> None:
    assert folder.hash == store.hash
    assert len(store.hash) == 16
    assert store[1:].hash != store.hash
    assert store.select([1, 0]).hash != store[:2].hash
    other = [make_scene(k).with_(town="Town02") if k == 19 else make_scene(k) for k in range(20)]
    assert write_scenes(tmp_path / "other.arrow", other).hash != store.hash
    assert store.towns == ("Town01",) * 20


def test_pages_are_given_back_and_views_stay_right(store: SceneStore, monkeypatch: pytest.MonkeyPatch) -> None:
    early = store[3]
    monkeypatch.setattr(vla_models.scenes.store, "RESIDENT_BYTES", 1)  # after every scene
    for _ in range(3):
        for k, scene in enumerate(store):
            assert_same(scene, make_scene(k))
    assert_same(early, make_scene(3))


def test_resident_memory_does_not_grow_with_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vla_models.scenes.store, "RESIDENT_BYTES", 4 << 20)
    image = np.zeros((600, 600, 3), np.uint8)
    scenes = (make_scene(k, image=False).with_(images={"front": image + k}) for k in range(60))
    store = write_scenes(tmp_path / "big.arrow", scenes)
    assert store.path.stat().st_size > 60 << 20

    def mapped() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssFile"))

    before = mapped()
    total = sum(int(scene.images["front"][0, 0, 0]) for scene in store)
    assert total == sum(range(60))
    assert mapped() - before < 16 << 10  # KiB; without giving pages back it is 64 MiB
