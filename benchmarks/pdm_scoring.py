"""How long a PDM score takes: microseconds a plan, by version and batch size, split by sub-metric, and with two threads.

Run ``python benchmarks/pdm_scoring.py``. One core's CPU time, the best of many repetitions after compilation, preparing the
scene apart. The scene is the densest of the golden ones (tests/data/pdm/22_dense). Results go to
benchmarks/results/pdm_scoring.json.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np

from vla_models.scenes.neutral import read_scene
from vla_models.scoring.pdm import prepare, score
from vla_models.scoring.pdm.area import area_kernel, compliance_kernel, red_light_kernel
from vla_models.scoring.pdm.collide import collision_kernel, footprint_kernel, time_to_collision_kernel
from vla_models.scoring.pdm.comfort import CENTER_LEVER, NO_PAST, comfort_kernel, operators
from vla_models.scoring.pdm.progress import lane_keeping_kernel, progress_kernel
from vla_models.scoring.pdm.track import STEPS, VELOCITY_OPERATOR, interpolate_kernel, track_kernel

HERE = Path(__file__).parent
DATA = HERE.parent / "tests" / "data" / "pdm"
SIZES = (1, 16, 64, 256)
REPETITIONS = 40


def best(call: Callable[[], object], clock: Callable[[], float] = time.thread_time) -> float:
    """Seconds of the fastest of many calls."""
    call()
    times = []
    for _ in range(REPETITIONS):
        start = clock()
        call()
        times.append(clock() - start)
    return min(times)


def cpu_name() -> str:
    """The processor's name where Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), platform.machine())


def main() -> None:
    """Measure, print, write."""
    scene = read_scene(DATA / "22_dense.json.gz")
    proposals = np.load(DATA / "22_dense.npz")["proposals"]
    ready = prepare(scene)
    results: dict[str, object] = {
        "machine": {"cpu": cpu_name(), "python": platform.python_version(), "numba": numba.__version__},
        "scene": {"tracks": len(scene.tracks), "polygons": len(scene.polygons), "centerline": len(scene.centerline)},
    }
    print(f"{len(scene.tracks)} tracks, {len(scene.polygons)} polygons; CPU microseconds a plan\n")

    print(f"{'plans':>8}{'v1':>10}{'v2':>10}")
    totals: dict[str, dict[int, float]] = {"v1": {}, "v2": {}}
    for size in SIZES:
        plans = np.ascontiguousarray(np.resize(proposals, (size, 8, 3)))
        for version in ("v1", "v2"):
            totals[version][size] = best(lambda p=plans, v=version: score(ready, p, v)) * 1e6 / size
        print(f"{size:>8}{totals['v1'][size]:>10.1f}{totals['v2'][size]:>10.1f}")
    results["us_per_plan"] = totals

    split = sub_metrics(ready, proposals)
    print(f"\n{'sub-metric':>20}{'v1':>10}{'v2':>10}   (64 plans)")
    for name, by_version in split.items():
        print(f"{name:>20}" + "".join(f"{by_version[v]:>10.2f}" if v in by_version else f"{'-':>10}" for v in ("v1", "v2")))
    results["us_per_plan_by_sub_metric"] = split

    results["prepare_us"] = best(lambda: prepare(scene)) * 1e6
    print(f"\npreparing a scene: {results['prepare_us']:.0f} us")

    many, plans = [ready] * 64, np.stack([proposals] * 64)
    walls = {t: best(lambda t=t: score(many, plans, "v1", threads=t), time.perf_counter) for t in (1, 2)}
    results["speedup_two_threads"] = walls[1] / walls[2]
    print(f"64 scenes x 64 plans: {walls[1] * 1e3:.0f} ms, two threads {walls[2] * 1e3:.0f} ms ({walls[1] / walls[2]:.2f}x)")

    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "pdm_scoring.json").write_text(json.dumps(results, indent=1) + "\n")


def sub_metrics(ready, proposals) -> dict[str, dict[str, float]]:  # type: ignore[no-untyped-def]
    """CPU microseconds a plan of each kernel alone."""
    n = len(proposals)
    poses, states, boxes = np.empty((n, STEPS, 3)), np.empty((n, STEPS, 11)), np.empty((n, STEPS, 5))
    flags, a, b = np.empty((n, STEPS), np.uint8), np.empty(n), np.empty(n)
    agents, areas, red, line, past = ready.agents, ready.areas, ready.red_areas, ready.line, ready.past
    both: dict[str, Callable[[], object]] = {
        "interpolate": lambda: interpolate_kernel(proposals, ready.ego, ready.interval, ready.fraction, poses),
        "track": lambda: track_kernel(poses, ready.ego, VELOCITY_OPERATOR, states),
        "ego boxes": lambda: footprint_kernel(states, boxes),
        "areas": lambda: area_kernel(states, boxes, areas, flags),
        "progress": lambda: progress_kernel(boxes, line, a),
    }
    one: dict[str, Callable[[], object]] = {
        "NC": lambda: collision_kernel(states, boxes, flags, agents, 1, a, b),
        "TTC": lambda: time_to_collision_kernel(states, boxes, flags, agents, 1, a, b),
        "DAC, DDC": lambda: compliance_kernel(boxes, flags, 1, a, b),
        "comfort": lambda: comfort_kernel(states, NO_PAST, operators(1, STEPS), 0.0, a),
    }
    two: dict[str, Callable[[], object]] = {
        "NC": lambda: collision_kernel(states, boxes, flags, agents, 2, a, b),
        "TTC": lambda: time_to_collision_kernel(states, boxes, flags, agents, 2, a, b),
        "DAC, DDC": lambda: compliance_kernel(boxes, flags, 2, a, b),
        "comfort": lambda: comfort_kernel(states, past, operators(2, STEPS + len(past)), CENTER_LEVER, a),
        "lane keeping": lambda: lane_keeping_kernel(boxes, flags, line, a),
        "red lights": lambda: red_light_kernel(boxes, areas, red, a),
    }
    split: dict[str, dict[str, float]] = {}
    for name, call in both.items():
        spent = best(call) * 1e6 / n
        split[name] = {"v1": spent, "v2": spent}
    for version, calls in (("v1", one), ("v2", two)):
        for name, call in calls.items():
            split.setdefault(name, {})[version] = best(call) * 1e6 / n
    return split


if __name__ == "__main__":
    main()
