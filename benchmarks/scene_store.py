"""What a scene store costs at the size of navtrain: opening it, a token, memory; and what importing metric caches takes.

Run ``python benchmarks/scene_store.py [SCENES]`` (103,288 unless told). The store is made of the official metric caches in
tests/data/metric_cache under other tokens, once as they are (it is larger than what may stay resident) and once with maps and
tracks cut away, and is deleted afterwards. Each measurement runs in a process of its own: times are CPU time with a warm page
cache, memory is what Linux calls RssAnon and RssFile. Results go to benchmarks/results/scene_store.json.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vla_models.scenes.imports import import_scenes
from vla_models.scenes.metric_cache import metric_cache_files, read_metric_cache
from vla_models.scenes.scene import Polygons, Scene
from vla_models.scenes.store import RESIDENT_BYTES, SceneStore, write_manifest, write_scenes

HERE = Path(__file__).parent
CACHES = HERE.parent / "tests" / "data" / "metric_cache" / "v2.2"
NAVTRAIN = 103_288
SHARD = 256
"""Scenes a file, as an import of that many makes them."""


def resident() -> dict[str, float]:
    """Resident memory of this process in MB: its own (anon) and that of mapped files."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return {name: int(lines[key].split()[0]) / 1024 for name, key in (("anon_mb", "RssAnon"), ("file_mb", "RssFile"))}


def tokens(count: int) -> list[str]:
    return [f"{k * 2654435761 % 2**32:08x}{k:08x}" for k in range(count)]


def small(scene: Scene) -> Scene:
    """``scene`` with one triangle for a map and no agents."""
    polygons = Polygons(np.eye(3, 2), np.array([0, 3]), np.zeros(1, np.int8), np.ones(1, np.bool_), ("1",))
    tracks = scene.tracks
    none = type(tracks)(tracks.kind[:0], tracks.size[:0], tracks.states[:0], ())
    lights = type(scene.red_lights)(scene.red_lights.polygon[:0], scene.red_lights.red[:0])
    return scene.with_(polygons=polygons, tracks=none, red_lights=lights, centerline=scene.centerline[:2])


def make(folder: Path, count: int, cut: bool) -> None:
    """A store of ``count`` scenes in shards."""
    originals = [read_metric_cache(path) for path in metric_cache_files(CACHES)]
    scenes = [small(scene) for scene in originals] if cut else originals
    names, every = [], tokens(count)

    def part(start: int) -> Iterator[Scene]:
        for k in range(start, min(start + SHARD, count)):
            yield scenes[k % len(scenes)].with_(token=every[k])

    for start in range(0, count, SHARD):
        names.append(f"shard-{start:06d}.arrow")
        write_scenes(folder / names[-1], part(start))
    write_manifest(folder, names, {"made_by": "benchmarks/scene_store.py"})


def measure(folder: str, count: str) -> None:
    """In a process of its own: open, read, look up; print JSON."""
    rng = np.random.default_rng(0)
    begin = time.thread_time()
    store = SceneStore.open(Path(folder))
    opened = time.thread_time() - begin
    assert len(store) == int(count)
    every = tokens(int(count))
    wanted = [every[k] for k in rng.integers(0, len(every), 2000)]
    found = {"open_s": opened, "after_open": resident()}
    begin = time.thread_time()
    store.by_token(wanted[0])
    found["first_token_s"] = time.thread_time() - begin
    took = []
    for token in wanted:
        begin = time.thread_time()
        store.by_token(token)
        took.append(time.thread_time() - begin)
    found["token_ms"] = {q: float(np.percentile(took, p)) * 1e3 for q, p in (("median", 50), ("p99", 99))}
    begin = time.thread_time()
    total = sum(scene.tracks.states.shape[0] for scene in store)
    found["all_s"] = time.thread_time() - begin
    found["tracks"] = total
    found["after_all"] = resident()
    begin = time.thread_time()
    found["hash"] = store.hash
    found["hash_s"] = time.thread_time() - begin
    print(json.dumps(found))


def main(count: int) -> None:
    """Measure, print, write."""
    results: dict[str, object] = {
        "machine": {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version()},
        "scenes": count,
        "resident_limit_mb": RESIDENT_BYTES >> 20,
    }
    with tempfile.TemporaryDirectory() as name:
        import_scenes([CACHES], Path(name) / "first")  # loads what is loaded once
        begin = time.thread_time()
        done = import_scenes([CACHES], Path(name) / "second")
        assert done.store is not None
        each = (time.thread_time() - begin) / len(done.store) * 1e3
        results["import_ms_a_cache"] = each
    print(f"importing a metric cache: {each:.1f} ms of one core\n")
    columns = (("store", 8), ("scenes", 8), ("GB", 6), ("open s", 8), ("token ms", 9), ("p99 ms", 8), ("all s", 7))
    print(" ".join(f"{name:>{width}}" for name, width in (*columns, ("anon MB", 8), ("file MB", 8))))
    for label, cut, scenes in (("small", True, count), ("tenth", False, count // 10), ("full", False, count)):
        with tempfile.TemporaryDirectory() as name:
            make(Path(name), scenes, cut)
            size = sum(path.stat().st_size for path in Path(name).iterdir()) / 1e9
            code = [sys.executable, __file__, "--measure", name, str(scenes)]
            found = json.loads(subprocess.run(code, check=True, capture_output=True, text=True).stdout)
        results[label] = {"scenes": scenes, "gigabytes": size, **found}
        after = found["after_all"]
        print(
            f"{label:>8} {scenes:8d} {size:6.2f} {found['open_s']:8.3f} {found['token_ms']['median']:9.3f} "
            f"{found['token_ms']['p99']:8.3f} {found['all_s']:7.1f} {after['anon_mb']:8.0f} {after['file_mb']:8.0f}"
        )
    (HERE / "results" / "scene_store.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(*sys.argv[2:4])
    else:
        main(int(sys.argv[1]) if sys.argv[1:] else NAVTRAIN)
