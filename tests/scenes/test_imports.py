"""Importing scenes: the store, bad files, and a run that is killed."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.scenes.navsim_files import write_log
from tests.scenes.test_restricted import Calls
from tests.scenes.test_store import assert_same
from vla_models.errors import SceneError
from vla_models.scenes.imports import Options, find_sources, import_scenes, scorer_version
from vla_models.scenes.metric_cache import metric_cache_files, read_metric_cache
from vla_models.scenes.navsim_logs import Logs
from vla_models.scenes.neutral import read_scene, write_scene
from vla_models.scenes.scene import LAYERS
from vla_models.scenes.store import SceneStore

DATA = Path(__file__).parent.parent / "data"
CACHES = DATA / "metric_cache" / "v2.2"
GOLDEN = sorted((DATA / "pdm").glob("*.json.gz"))


def test_sources(tmp_path: Path) -> None:
    assert find_sources([CACHES]) == [p.resolve() for p in metric_cache_files(CACHES)]
    assert find_sources([DATA / "pdm"]) == [p.resolve() for p in GOLDEN]
    assert find_sources([GOLDEN[1], str(DATA / "pdm" / "0*.json.gz")])[:2] == [GOLDEN[1].resolve(), GOLDEN[0].resolve()]
    with pytest.raises(SceneError, match="names no metric cache and no pdm-scene/1 file"):
        find_sources([tmp_path])
    with pytest.raises(SceneError, match="nothing"):
        find_sources([tmp_path / "nothing*.json"])


def test_metric_caches_and_scene_files(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    extra = [path for path in GOLDEN if path.name.startswith(("00", "22"))]
    done = import_scenes([CACHES, *extra], tmp_path / "out", progress=lambda k, n: seen.append((k, n)))
    store = done.store
    assert store is not None
    assert (done.bad, done.reused) == ((), 0)
    assert seen[0] == (0, 7)
    assert seen[-1] == (7, 7)
    files = metric_cache_files(CACHES)
    assert store.tokens == (*(p.parent.name for p in files), "00_straight_free", "22_dense")
    assert_same(store[2], read_metric_cache(files[2]))
    assert_same(store.by_token("22_dense"), read_scene(extra[1]))
    assert store.provenance["scorer"] == scorer_version()
    assert store.provenance["source_files"] == "7"
    assert SceneStore.open(tmp_path / "out").tokens == store.tokens


def test_the_content_hash_does_not_depend_on_how_it_was_made(tmp_path: Path) -> None:
    one = import_scenes([CACHES], tmp_path / "one").store
    two = import_scenes([CACHES], tmp_path / "two", workers=2).store
    assert one is not None
    assert two is not None
    assert one.hash == two.hash == SceneStore.open(tmp_path / "one").hash
    assert one.provenance["source"] == two.provenance["source"]
    assert one[:4].hash != one.hash
    for a, b in zip(one, two, strict=True):
        assert_same(a, b)


def test_a_scene_without_a_reference_gets_one(tmp_path: Path) -> None:
    import gzip

    data = json.loads(gzip.decompress(GOLDEN[0].read_bytes()))
    data["reference"] = None
    path = tmp_path / "scene.json"
    path.write_text(json.dumps(data))
    store = import_scenes([path], tmp_path / "out").store
    assert store is not None
    np.testing.assert_allclose(store[0].reference, read_scene(GOLDEN[0]).reference, atol=1e-6)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder of caches of which one is cut short and one is hostile."""
    folder = tmp_path / "caches"
    shutil.copytree(CACHES, folder)
    good = metric_cache_files(folder)
    good[1].write_bytes(good[1].read_bytes()[:500])
    good[3].write_bytes(pickle.dumps(Calls(os.system, f"touch {tmp_path / 'marker'}")))
    return folder


def test_bad_files_are_all_named_and_no_store_is_made(tmp_path: Path, mixed: Path) -> None:
    done = import_scenes([mixed], tmp_path / "out")
    assert done.store is None
    names = [path.parent.name for path in metric_cache_files(mixed)]
    assert [Path(b.path).parent.name for b in done.bad] == [names[1], names[3]]
    assert "cut short" in done.bad[0].message
    assert "system" in done.bad[1].message
    assert not (tmp_path / "marker").exists()
    with pytest.raises(SceneError, match="is no finished scene store"):
        SceneStore.open(tmp_path / "out")
    for path in metric_cache_files(CACHES):  # mended: only what was bad is read again
        shutil.copy(path, mixed / path.relative_to(CACHES))
    again = import_scenes([mixed], tmp_path / "out")
    assert again.store is not None
    assert again.reused == 3
    assert len(again.store) == 5


def test_bad_files_can_be_left_out(tmp_path: Path, mixed: Path) -> None:
    done = import_scenes([mixed], tmp_path / "out", skip_bad=True, workers=2)
    assert done.store is not None
    assert len(done.store) == 3
    assert len(done.bad) == 2
    assert done.store.provenance["left_out"] == "2"
    again = import_scenes([mixed], tmp_path / "out", skip_bad=True)
    assert again.reused == 5
    assert [b.path for b in again.bad] == sorted(b.path for b in done.bad)


KILL = """
import os, signal, sys
from pathlib import Path
from vla_models.scenes.imports import import_scenes

def progress(done, count):
    if done == 3:
        os.kill(os.getpid(), signal.SIGKILL)

import_scenes([sys.argv[1]], Path(sys.argv[2]), progress=progress)
"""


def test_a_killed_import_goes_on_where_it_was(tmp_path: Path) -> None:
    out = tmp_path / "out"
    killed = subprocess.run([sys.executable, "-c", KILL, str(CACHES), str(out)], check=False)
    assert killed.returncode == -signal.SIGKILL
    made = {path.name: path.stat().st_mtime_ns for path in out.glob("shard-*.arrow")}
    assert len(made) == 3
    with pytest.raises(SceneError, match="run it again as it was"):
        SceneStore.open(out)
    done = import_scenes([CACHES], out)
    assert done.reused == 3
    assert {name: (out / name).stat().st_mtime_ns for name in made} == made
    whole = import_scenes([CACHES], tmp_path / "whole").store
    assert done.store is not None
    assert whole is not None
    assert done.store.hash == whole.hash


KILL_WITH_WORKERS = KILL.replace("progress=progress)", "workers=2, progress=progress)").replace(
    "import_scenes([sys", "if __name__ == '__main__':\n    import_scenes([sys"
)


def test_workers_do_not_outlive_a_killed_import(tmp_path: Path) -> None:
    script = tmp_path / "kill.py"
    script.write_text(KILL_WITH_WORKERS)
    mark = str(tmp_path / "out")
    killed = subprocess.Popen([sys.executable, str(script), str(CACHES), mark])
    children: set[int] = set()
    while killed.poll() is None:
        for child in Path(f"/proc/{killed.pid}/task/{killed.pid}").glob("children"):
            children |= {int(pid) for pid in child.read_text().split()}
        time.sleep(0.01)
    assert killed.returncode == -signal.SIGKILL
    assert len(children) >= 2
    deadline = time.monotonic() + 20.0
    while any(Path(f"/proc/{pid}").exists() for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]


def test_scenes_that_cannot_be_scored_are_bad_files(tmp_path: Path) -> None:
    scene = read_scene(GOLDEN[0])
    lanes = np.isin(scene.polygons.layer, [LAYERS.index("lane"), LAYERS.index("lane_connector")])
    layer = np.where(lanes, LAYERS.index("carpark"), scene.polygons.layer).astype(np.int8)
    write_scene(scene.with_(polygons=dataclasses.replace(scene.polygons, layer=layer)), tmp_path / "scene.json")
    done = import_scenes([tmp_path / "scene.json"], tmp_path / "out")
    assert done.store is None
    assert "scene.json" in done.bad[0].message
    assert "has no lanes (map layers lane, lane_connector)" in done.bad[0].message


def test_a_store_is_not_mixed_up_with_another(tmp_path: Path) -> None:
    import_scenes([CACHES], tmp_path / "out")
    with pytest.raises(SceneError, match="was begun with other files"):
        import_scenes([DATA / "metric_cache" / "v1.1"], tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    with pytest.raises(SceneError, match="is not empty and no import"):
        import_scenes([CACHES], tmp_path / "full")
    with pytest.raises(SceneError, match="have the token '02_lead_stopped'"):
        import_scenes([CACHES, DATA / "metric_cache" / "v1.1"], tmp_path / "twice")


def test_logs_and_images(tmp_path: Path) -> None:
    scenes = [read_metric_cache(path) for path in metric_cache_files(CACHES)]
    logs, sensors = write_log(tmp_path, scenes)
    options = Options(logs=Logs(logs, sensors, ("cam_f0", "cam_b0"), (64, 36)))
    store = import_scenes([CACHES], tmp_path / "out", options).store
    assert store is not None
    assert list(store[0].images) == ["front", "back"]
    assert store[1].images["back"].shape == (36, 64, 3)
    assert [scene.command for scene in store] == [0, 1, 2, 3, 0]
    with pytest.raises(SceneError, match="with other options"):
        import_scenes([CACHES], tmp_path / "out")


def test_a_log_without_maps_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "log.pkl"
    path.write_bytes(pickle.dumps([{"token": "a"}]))
    done = import_scenes([path], tmp_path / "out")
    assert "need --maps and an installed navsim" in done.bad[0].message
