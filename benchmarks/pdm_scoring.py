"""How long a PDM score takes: microseconds a plan, by version and batch size, split by sub-metric, and with two threads.

Run ``python benchmarks/pdm_scoring.py``. One core's CPU time, the best of many repetitions after compilation, preparing the
scene apart. The scene is the densest of the golden ones (tests/data/pdm/22_dense); reactive traffic is timed on the scenes of
tests/data/pdm_official. Results go to benchmarks/results/pdm_scoring.json.

Where ``NAVSIM_DEVKIT`` names a folder with the official code (navsim-v1.1, navsim-v2.2 and nuplan-devkit, the checkouts of
these versions) and ``NAVSIM_PYTHON`` an interpreter that has their dependencies, the official scorer is timed in the same run
(benchmarks/pdm_official.py): its ``pdm_score()`` for one plan and its batch, and the ratios to ours.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np

from vla_models.scenes.neutral import read_scene
from vla_models.scenes.scene import AgentPaths
from vla_models.scoring.pdm import prepare, score
from vla_models.scoring.pdm.area import area_kernel, compliance_kernel, red_light_kernel
from vla_models.scoring.pdm.collide import collision_kernel, footprint_kernel, time_to_collision_kernel
from vla_models.scoring.pdm.comfort import CENTER_LEVER, NO_PAST, comfort_kernel, operators
from vla_models.scoring.pdm.progress import lane_keeping_kernel, progress_kernel
from vla_models.scoring.pdm.track import STEPS, VELOCITY_OPERATOR, interpolate_kernel, plan_headings, track_kernel

HERE = Path(__file__).parent
DATA = HERE.parent / "tests" / "data" / "pdm"
OFFICIAL_DATA = DATA.parent / "pdm_official"
NAME = "22_dense"
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
    scene = read_scene(DATA / f"{NAME}.json.gz")
    proposals = np.load(DATA / f"{NAME}.npz")["proposals"]
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

    results["reactive_us_per_plan"] = reactive()
    print(f"v2 in reactive traffic: {results['reactive_us_per_plan']:.0f} us a plan (5 scenes x 6 plans)")
    results["first_call_ms"] = {v: first_call(v) for v in ("v1", "v2")}
    print(", ".join(f"first {v} call of a process: {ms:.0f} ms" for v, ms in results["first_call_ms"].items()))

    many, plans = [ready] * 64, np.stack([proposals] * 64)
    walls = {t: best(lambda t=t: score(many, plans, "v1", threads=t), time.perf_counter) for t in (1, 2)}
    results["speedup_two_threads"] = walls[1] / walls[2]
    print(f"64 scenes x 64 plans: {walls[1] * 1e3:.0f} ms, two threads {walls[2] * 1e3:.0f} ms ({walls[1] / walls[2]:.2f}x)")

    devkit = os.environ.get("NAVSIM_DEVKIT")
    if devkit:
        results["official"] = {v: official(v, Path(devkit), totals[v]) for v in ("v1", "v2")}
    else:
        print("\nno ratio to the official code: NAVSIM_DEVKIT is not set")

    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "pdm_scoring.json").write_text(json.dumps(results, indent=1) + "\n")


def sub_metrics(ready, proposals) -> dict[str, dict[str, float]]:  # type: ignore[no-untyped-def]
    """CPU microseconds a plan of each kernel alone."""
    n = len(proposals)
    poses, states, boxes = np.empty((n, STEPS, 3)), np.empty((n, STEPS, 11)), np.empty((n, STEPS, 5))
    flags, a, b = np.empty((n, STEPS), np.uint8), np.empty(n), np.empty(n)
    agents, areas, red, line, past = ready.agents, ready.areas, ready.red_areas, ready.line, ready.past
    both: dict[str, Callable[[], object]] = {
        "interpolate": lambda: interpolate_kernel(
            proposals, plan_headings(proposals, float(ready.ego[2])), ready.ego, ready.interval, ready.fraction, poses
        ),
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


def reactive() -> float:
    """CPU microseconds a plan of version 2 in reactive traffic."""
    spent, count = 0.0, 0
    for path in sorted(OFFICIAL_DATA.glob("reactive_*.json.gz")):
        data = np.load(OFFICIAL_DATA / f"{path.name.removesuffix('.json.gz')}.npz")
        fields = ("points", "offsets", "progress", "snapped", "speed_limit", "in_lane")
        lanes = AgentPaths(**{field: data[f"lane_{field}"] for field in fields})
        ready, plans = prepare(read_scene(path).with_(agent_paths=lanes)), data["proposals"]
        spent += best(lambda r=ready, p=plans: score(r, p, "v2", traffic="reactive_idm"))
        count += len(plans)
    return spent * 1e6 / count


def first_call(version: str) -> float:
    """Milliseconds of the first score in a process whose kernels are compiled on disk."""
    code = (
        "import sys, time; import numpy as np; from vla_models.scenes.neutral import read_scene; "
        "from vla_models.scoring.pdm import score; s = read_scene(sys.argv[1]); p = np.load(sys.argv[2])['proposals']; "
        "t = time.thread_time(); score(s, p, sys.argv[3]); print(time.thread_time() - t)"
    )
    files = [str(DATA / f"{NAME}.json.gz"), str(DATA / f"{NAME}.npz")]
    runs = [subprocess.run([sys.executable, "-c", code, *files, version], capture_output=True, text=True, check=True)]
    return float(runs[0].stdout) * 1e3


def official(version: str, devkit: Path, ours: dict[int, float]) -> dict[str, object]:
    """The official scorer's times on the same scene, and how many times longer they are than ours."""
    folder = {"v1": "navsim-v1.1", "v2": "navsim-v2.2"}[version]
    paths = [os.environ.get("PYTHONPATH", ""), str(devkit / folder), str(devkit / "nuplan-devkit")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as place:
        for suffix in (".json.gz", ".npz"):
            shutil.copy(DATA / f"{NAME}{suffix}", place)
        command = [os.environ.get("NAVSIM_PYTHON", sys.executable), str(HERE / "pdm_official.py"), version, place, "--times"]
        run = subprocess.run(
            [*command, *map(str, SIZES)], env=environment, cwd=place, capture_output=True, text=True, check=False
        )
    if run.returncode != 0:
        raise SystemExit(f"the official code of {devkit} does not run:\n{run.stderr[-2000:]}")
    times = json.loads(run.stdout.splitlines()[-1])[NAME]
    batched = {int(size): ms for size, ms in times["batched_ms"].items()}
    alone = times["pdm_score_ms"]
    print(f"\nofficial {folder}: pdm_score() {alone:.1f} ms a plan, {alone * 1e3 / ours[1]:.0f} x ours")
    for size, ms in batched.items():
        print(f"  its batch of {size:>3}: {ms:.1f} ms a plan, {ms * 1e3 / ours[size]:.0f} x ours")
    return {**times, "ratio": {size: ms * 1e3 / ours[size] for size, ms in batched.items()}}


if __name__ == "__main__":
    main()
