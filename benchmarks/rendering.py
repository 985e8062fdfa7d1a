"""How fast a closed loop's frames are drawn, and what a route's criteria cost.

    python benchmarks/rendering.py

Drives along a route made from a seed with 20 actors and all lights on; one process, one core, CPU time of the thread. Each row
is compared with ``CameraRenderer``, which repaints the whole road plane for every frame (it draws NavSim's single scenes), in
the same run on the same frames. Writes ``benchmarks/results/rendering.json``.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from vla_models.render.camera import CameraRenderer, CameraSpec
from vla_models.render.rigs import bench2drive_cameras
from vla_models.render.town import SIGHT, Actors, Rig, TownView
from vla_models.scenes.bench2drive.made_routes import generate_route
from vla_models.scenes.bench2drive.routes import local
from vla_models.scenes.lanes import FloatArray, IntArray
from vla_models.scenes.routes import make_road_net
from vla_models.scenes.scene import Scene
from vla_models.scenes.surfaces import cut, make_surfaces
from vla_models.scoring.bench2drive.criteria import Criteria
from vla_models.scoring.bench2drive.tables import Course

RESULTS = Path(__file__).parent / "results"
TICKS_PER_DECISION = 5
ENVIRONMENTS = 64
SIX = ("front", "front_left", "front_right", "back", "back_left", "back_right")


def milliseconds(step: Callable[[int], object], count: int) -> float:
    """CPU time of one call of ``step``, after a first round."""
    for i in range(count):
        step(i)
    started = time.thread_time()
    for i in range(count):
        step(i)
    return (time.thread_time() - started) / count * 1e3


def draw(rig: Rig, view: TownView, frames: FloatArray, actors: Actors, lights: IntArray, i: int) -> None:
    """Frame ``i`` as the closed loop draws it."""
    rig.render(view.frame(frames[i], actors, lights))


def repaint(cameras: list[CameraRenderer], scenes: list[Scene], i: int) -> None:
    """Frame ``i`` from scratch."""
    for camera in cameras:
        camera.render(scenes[i])


def main() -> None:
    """Print the table and write the file."""
    route = generate_route("Town05", "SignalizedJunctionLeftTurn", 2)
    part = local(route)
    view = TownView(part.graph)
    rng = np.random.default_rng(0)
    at = rng.integers(0, len(route.points), 20)
    actors = Actors(
        np.where(rng.random(20) < 0.8, 0, 1).astype(np.int8), np.tile([4.6, 1.9, 1.6], (20, 1)),
        route.points[at, :3] + rng.normal(0.0, 3.0, (20, 3)) * [1.0, 1.0, 0.0], rng.uniform(0.0, 8.0, 20),
        rng.normal(0.0, 1.0, 20), tuple(f"car_{i}" for i in range(20)),
    )  # fmt: skip
    lights = rng.integers(0, 3, len(part.graph.light_pose))
    frames = route.points[:120, :3]
    surfaces = make_surfaces(make_road_net(part.graph))

    rows: dict[str, dict[str, float]] = {}
    cases: list[tuple[str, tuple[CameraSpec, ...]]] = [
        ("1 camera, 128 x 72", bench2drive_cameras(128, 72, ("front",))),
        ("1 camera, 128 x 128", bench2drive_cameras(128, 128, ("front",))),
        ("1 camera, 256 x 144", bench2drive_cameras(256, 144, ("front",))),
        ("6 cameras, 128 x 72", bench2drive_cameras(128, 72, SIX)),
    ]
    for name, specs in cases:
        whole = []
        for ego in frames:
            scene = view.frame(ego, actors, lights).scene
            x, y = ego[:2] - scene.ego[:2]
            whole.append(scene.with_(polygons=cut(surfaces, float(x), float(y), SIGHT, [])[0]))
        with Rig(specs) as rig:
            drawn = milliseconds(partial(draw, rig, view, frames, actors, lights), len(frames))
        cameras = [CameraRenderer(spec) for spec in specs]
        repainted = milliseconds(partial(repaint, cameras, whole), len(frames))
        for camera in cameras:
            camera.close()
        rows[name] = {"ms": drawn, "repainting_ms": repainted, "ticks_per_s": TICKS_PER_DECISION * 1e3 / drawn}

    criteria = Criteria(ENVIRONMENTS)
    start = np.tile(route.points[0, :3], (ENVIRONMENTS, 1))
    criteria.begin(range(ENVIRONMENTS), [Course(route, part)] * ENVIRONMENTS, start)
    nothing, on = np.full((ENVIRONMENTS, 4), -1), np.ones(ENVIRONMENTS, bool)
    half, seven = np.full(ENVIRONMENTS, 2.45), np.full(ENVIRONMENTS, 7.0)
    red = np.zeros((ENVIRONMENTS, len(lights)), bool)

    def judge(i: int) -> None:
        pose = np.tile(route.points[min(i, len(route.points) - 2), :3], (ENVIRONMENTS, 1))
        criteria.tick(pose, seven, half, nothing, np.zeros_like(nothing), red, seven, on)

    tick = milliseconds(judge, len(route.points) - 2) / ENVIRONMENTS * 1e3

    print("| what | ms a frame | repainting all | ratio | environment ticks/s at 5 a decision, pictures alone |")
    print("|---|---|---|---|---|")
    for name, row in rows.items():
        ratio = row["repainting_ms"] / row["ms"]
        print(f"| {name} | {row['ms']:.2f} | {row['repainting_ms']:.2f} | {ratio:.1f} | {row['ticks_per_s']:.0f} |")
    print(f"\nthe criteria of {ENVIRONMENTS} environments: {tick:.2f} us an environment and tick")
    RESULTS.mkdir(exist_ok=True)
    result = {
        "frames": rows,
        "criteria_us": tick,
        "load": os.getloadavg()[0],
        "machine": {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()},
    }
    path = RESULTS / "rendering.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
