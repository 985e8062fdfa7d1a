"""What procedural scenes cost and how hard they are.

    python benchmarks/scenes.py [--count 1000] [--towns Town01 Town03 Town05]

Generates scenes with a front camera on one core and prints the milliseconds a scene by part (CPU time, compiled beforehand),
against the 60 ms that a thousand scenes a minute allow; how fast the store opens and reads; and per kind of scene the mean
PDMS v1 of a constant-velocity plan, the recorded human and PDM-Closed, beside NavSim's official means on navtest. Writes
``benchmarks/results/scenes.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vla_models.render.camera import CameraRenderer, CameraSpec
from vla_models.scenes import procedural
from vla_models.scenes.procedural import KINDS, ProceduralSpec
from vla_models.scenes.scene import COMMANDS, Scene
from vla_models.scenes.store import SceneStore, write_scenes

RESULTS = Path(__file__).parent / "results"
BUDGET_MS = 60.0
NAVTEST = {"constant_velocity": 0.21, "human": 0.95, "pdm_closed": 0.89}
"""Official PDMS v1 on navtest, as the NAVSIM paper (Dauner et al. 2024) reports it."""


class Clock:
    """CPU seconds and calls by part."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def watch(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[part] += time.process_time() - begin
                self.calls[part] += 1

        return timed


def measure(spec: ProceduralSpec, folder: Path) -> tuple[dict[str, float], SceneStore]:
    """Milliseconds a scene by part, and the scenes."""
    assert spec.camera is not None
    clock = Clock()
    original = {name: getattr(procedural, name) for name in ("draw_scene", "judge", "simulate")}
    for name, function in original.items():
        setattr(procedural, name, clock.watch(name, function))
    renderer = CameraRenderer(spec.camera)
    render = clock.watch("render", renderer.render)
    make = clock.watch("scene", procedural.generate_scene)
    try:
        whole = time.process_time()

        def scenes() -> Any:
            for index in range(spec.count):
                scene: Scene = make(spec, index)
                yield scene.with_(images={"front": render(scene)})

        store = write_scenes(folder / "scenes.arrow", scenes())
        total = time.process_time() - whole
    finally:
        renderer.close()
        for name, function in original.items():
            setattr(procedural, name, function)
    s, n = clock.seconds, spec.count
    parts = {
        "casting and cutting": s["draw_scene"] - s["simulate"],
        "traffic simulation": s["simulate"],
        "reference and filter": s["judge"],
        "camera": s["render"],
        "store and the rest": total - s["scene"] - s["render"] + s["scene"] - s["draw_scene"] - s["judge"],
        "total": total,
    }
    return {
        **{part: 1e3 * seconds / n for part, seconds in parts.items()},
        "draws": clock.calls["draw_scene"] / n,
        "judged": clock.calls["judge"] / n,
    }, store


def difficulty(store: SceneStore) -> dict[str, dict[str, float]]:
    """Per kind, and for all: how many, and the mean scores."""
    rows = defaultdict(list)
    for scene in store:
        c = procedural.judge(scene)
        rows[scene.kind].append((c.constant_velocity, c.human, c.pdm_closed, scene.ego[3], len(scene.tracks)))
    names = ("constant_velocity", "human", "pdm_closed", "speed", "tracks")
    every = [(kind, rows[kind]) for kind in KINDS if rows[kind]] + [("all", [row for kind in KINDS for row in rows[kind]])]
    return {kind: {"scenes": len(r), **dict(zip(names, np.mean(r, axis=0).tolist(), strict=True))} for kind, r in every}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--towns", nargs="+", default=["Town01", "Town03", "Town05"])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        warm = ProceduralSpec(tuple(args.towns), 20, args.seed + 1, camera=CameraSpec())
        measure(warm, folder)  # compiles, and loads the towns
        cost, store = measure(ProceduralSpec(tuple(args.towns), args.count, args.seed, camera=CameraSpec()), folder)
        begin = time.process_time()
        store = SceneStore.open(store.path)
        opened = time.process_time() - begin
        begin = time.process_time()
        for _ in store:
            pass
        first = (time.process_time() - begin) / len(store)
        begin = time.process_time()
        for _ in store:
            pass
        again = (time.process_time() - begin) / len(store)
        scores = difficulty(store)
        commands = np.bincount([scene.command for scene in store], minlength=3) / len(store)
        size = store.path.stat().st_size / len(store) / 1024

    print(f"{args.count} scenes of {', '.join(args.towns)}; milliseconds of one core a scene (budget {BUDGET_MS:.0f})\n")
    print("| part | ms | of the budget |\n|---|---|---|")
    for part in list(cost)[:6]:
        print(f"| {part} | {cost[part]:.1f} | {cost[part] / BUDGET_MS:.0%} |")
    print(
        f"\n{cost['draws']:.1f} draws and {cost['judged']:.1f} judged candidates a kept scene; {size:.0f} KiB a scene on disk"
    )
    print(f"store: opened in {1e3 * opened:.1f} ms, a row read in {1e3 * first:.2f} ms, again in {1e3 * again:.2f} ms\n")
    print("| kind | scenes | constant velocity | human | PDM-Closed | speed m/s | tracks |\n|---|---|---|---|---|---|---|")
    for kind, row in scores.items():
        print(
            f"| {kind} | {row['scenes']} | {row['constant_velocity']:.3f} | {row['human']:.3f} | {row['pdm_closed']:.3f} "
            f"| {row['speed']:.1f} | {row['tracks']:.1f} |"
        )
    print("| navtest (official) | 12146 | " + " | ".join(f"{value:.2f}" for value in NAVTEST.values()) + " | | |")
    print("\ncommands: " + ", ".join(f"{name} {share:.0%}" for name, share in zip(COMMANDS, commands, strict=False)))

    RESULTS.mkdir(exist_ok=True)
    result = {
        "machine": {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()},
        "towns": args.towns,
        "count": args.count,
        "ms_per_scene": cost,
        "store": {"open_ms": 1e3 * opened, "read_ms": 1e3 * first, "read_again_ms": 1e3 * again, "kib_per_scene": size},
        "scores": scores,
        "navtest": NAVTEST,
    }
    path = RESULTS / "scenes.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
