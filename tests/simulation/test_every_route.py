"""Whole route files are driven to their ends by the rule-based driver, through the environment."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import vla_models.envs  # noqa: F401  # registers Bench2Drive-v0
from vla_models.envs.bench2drive import RouteSpec
from vla_models.scenes.bench2drive.made_routes import EASY_TOWNS
from vla_models.scenes.bench2drive.route_files import read_routes
from vla_models.scenes.bench2drive.routes import Route
from vla_models.scenes.bench2drive.scenario_types import BENCH2DRIVE_TYPES, PARAMETERS
from vla_models.scenes.planner import RoadOption
from vla_models.scoring.bench2drive.results import Record
from vla_models.simulation.baselines import rule_based

SEED = 90_210
"""Of routes that no other test drives."""
SHARED = next((p / "shared/data/routes" for p in Path(__file__).parents if (p / "shared/data/routes").is_dir()), None)


def write_routes(path: Path, routes: Sequence[Route]) -> None:
    """Routes in the leaderboard's form, as Bench2Drive's file has them: a way point every 2 m but for junctions, where lanes
    lie on one another; one scenario each."""
    root = ElementTree.Element("routes")
    for number, route in enumerate(routes):
        (spec,) = route.scenarios
        element = ElementTree.SubElement(root, "route", id=str(number), town=route.town)
        waypoints = ElementTree.SubElement(element, "waypoints")
        outside = ~np.isin(route.option, (RoadOption.LEFT, RoadOption.RIGHT, RoadOption.STRAIGHT))
        kept = np.unique([0, *np.flatnonzero(outside)[::2], len(route.points) - 1])
        for (x, y, *_), z in zip(route.points[kept], route.elevation[kept], strict=True):
            ElementTree.SubElement(waypoints, "position", x=f"{x:.3f}", y=f"{-y:.3f}", z=f"{z:.3f}")
        scenario = ElementTree.SubElement(
            ElementTree.SubElement(element, "scenarios"), "scenario", name=spec.name, type=spec.type
        )
        x, y, heading = spec.trigger
        place = {
            "x": f"{x:.3f}",
            "y": f"{-y:.3f}",
            "z": f"{route.elevation[spec.at]:.3f}",
            "yaw": f"{-np.degrees(heading):.3f}",
        }
        ElementTree.SubElement(scenario, "trigger_point", place)
        for name, value in spec.parameters.items():
            ElementTree.SubElement(scenario, name, _attributes(PARAMETERS[name].kind, value))
    ElementTree.ElementTree(root).write(path)


def _attributes(kind: str, value: Any) -> dict[str, str]:
    if kind == "place":
        return {"x": str(value[0]), "y": str(-value[1]), "z": str(value[2])}
    if kind == "interval":
        return {"from": str(value[0]), "to": str(value[1])}
    return {"value": str(value)}


def drive(routes: Sequence[Route], rows: int, **settings: Any) -> Iterator[Record]:
    """The official record of each route, driven ``rows`` at a time."""
    env = gymnasium.make_vec("Bench2Drive-v0", num_envs=rows, routes=routes, cameras=(), skip_bad=True, **settings)
    assert len(env.tokens) == len(routes), env.skipped
    waiting = list(range(len(routes)))[::-1]
    scenes = [waiting.pop() for _ in range(rows)]
    env.reset(seed=0, options={"scenes": scenes})
    left = len(routes)
    while left:
        info = env.step(rule_based(env.world))[-1]
        over = np.array([result is not None for result in info["results"]])
        for result in (r for r in info["results"] if r is not None):
            left -= 1
            yield result
        begin = np.flatnonzero(over)[: len(waiting)]
        if len(begin):
            mask = np.zeros(rows, dtype=bool)
            mask[begin] = True
            for row in begin:
                scenes[row] = waiting.pop()
            env.reset(options={"scenes": scenes, "reset_mask": mask})
    env.close()


@pytest.mark.slow
def test_a_file_with_every_type_is_driven_to_its_end(tmp_path: Path) -> None:
    """One route a type; ``SEED`` gives other places and parameters than the tests of the single types have."""
    path = tmp_path / "routes.xml"
    made = gymnasium.make_vec("Bench2Drive-v0", num_envs=1, routes=RouteSpec(seed=SEED), cameras=())
    write_routes(path, made.routes)
    made.close()
    file = read_routes(path)
    assert [route.theme for route in file.routes] == list(BENCH2DRIVE_TYPES)
    assert not file.skipped
    assert {route.town for route in file.routes} <= set(EASY_TOWNS)
    records = list(drive(file.routes, 22))
    left = [f"{r['scenario_name']} in {r['town_name']}: {r['status']}" for r in records if r["scores"]["score_route"] < 100.0]
    assert len(left) <= 1, left  # it still stands behind one obstacle in Town10HD (docs/bench2drive.md)
    assert np.mean([r["scores"]["score_composed"] for r in records]) > 85.0


@pytest.mark.slow
@pytest.mark.skipif(SHARED is None, reason="the shared route files are not here")
def test_the_official_development_routes_are_driven_to_their_end() -> None:
    """Two routes of 7 and 8 km with 119 scenarios."""
    assert SHARED is not None
    file = read_routes(SHARED / "routes_devtest.xml")
    records = list(drive(file.routes, 2, max_ticks=90_000))
    assert [r["scores"]["score_route"] for r in records] == [100.0, 100.0], [r["status"] for r in records]
