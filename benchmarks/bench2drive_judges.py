"""How well the embedded world judges: the same drives under its own criteria and under the official ones.

    python benchmarks/bench2drive_judges.py [--routes routes.xml] [--count 220]

The world (``simulation/checks.py``) measures along the route's path, which is fast; ``scoring/bench2drive/criteria.py`` follows
the official code on the town's lanes, which golden episodes of that code guard. Both judge each tick of three drivers: the
rule-based one, one that follows the route blindly, and one that also sways over lanes and lines. What a collision is, is the
world's affair in both. Prints a table; on the usual routes it also writes it into docs/bench2drive_metrics.md, and its numbers
into ``results/bench2drive_judges.json``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from documents import fill

from vla_models.config import VLAConfig
from vla_models.scenes.bench2drive.routes import Route, local
from vla_models.scenes.lanes import BoolArray, FloatArray, IntArray
from vla_models.scenes.towns import load_town
from vla_models.scoring.bench2drive.criteria import Criteria
from vla_models.scoring.bench2drive.events import KIND, TICK, VALUE, Event
from vla_models.scoring.bench2drive.score import score
from vla_models.scoring.bench2drive.tables import Course
from vla_models.simulation import tables as columns
from vla_models.simulation.baselines import blind_follower, rule_based
from vla_models.simulation.episodes import stage
from vla_models.simulation.vehicle import LENGTH, REAR_TO_CENTER
from vla_models.simulation.world import World
from vla_models.training.progress import Bar
from vla_models.training.routes import make_route_env

RESULTS = Path(__file__).parent / "results"
DOCUMENT = Path(__file__).parents[1] / "docs" / "bench2drive_metrics.md"
JUDGED = (Event.TRAFFIC_LIGHT, Event.STOP, Event.ROUTE_DEVIATION, Event.VEHICLE_BLOCKED)
"""Kinds that both judges find by themselves, each at a tick."""
SHARED = (
    Event.COLLISION_STATIC, Event.COLLISION_PEDESTRIAN, Event.COLLISION_VEHICLE, Event.YIELD_TO_EMERGENCY,
    Event.SCENARIO_TIMEOUT,
)  # fmt: skip
"""Kinds that the world alone finds."""
NUMBERS = ("route %", "outside lanes %", "driving score")
SAME_TICKS = 10
"""Ticks that two events of the same kind may lie apart to be the same."""
SWAY_METRES, SWAY_SECONDS = 0.5, 12.0
"""How far and how often the swaying driver's plans lie beside the blind one's, which keep to the lane that it is in."""
ENVIRONMENTS = 20
Policy = Callable[[World], FloatArray]


def swaying(world: World) -> FloatArray:
    """``blind_follower``, to the left and to the right of the route in turn."""
    plans = blind_follower(world)
    plans[:, :, 1] += SWAY_METRES * np.sin(2.0 * np.pi * world.ticks * columns.TICK / SWAY_SECONDS)[:, None]
    return plans


DRIVERS: dict[str, Policy] = {"rule_based": rule_based, "blind_follower": blind_follower, "swaying": swaying}


class Official:
    """The official criteria beside a world."""

    def __init__(self, world: World, routes: Sequence[Route]) -> None:
        self.world = world
        courses = [Course(route, local(route)) for route in routes]
        self.criteria = Criteria(len(routes), world.max_ticks)
        self._lights = [_rows_of(course, world, n) for n, course in enumerate(courses)]
        self._red = np.zeros((len(routes), max(1, *(len(c.local.graph.light_pose) for c in courses))), dtype=bool)
        self.criteria.begin(range(len(routes)), courses, self._pose())

    def _pose(self) -> FloatArray:
        pose = self.world.ego[:, :3]
        pose[:, 0] += REAR_TO_CENTER * np.cos(pose[:, 2])
        pose[:, 1] += REAR_TO_CENTER * np.sin(pose[:, 2])
        return pose

    def tick(self, live: BoolArray) -> None:
        """Judge what the world has just done where ``live``."""
        count = len(self.world)
        for n, (here, there) in enumerate(self._lights):
            self._red[n, here] = self.world.light_states(n)[1][there] == columns.RED
        scenarios = self.world.tables.scenarios
        wrong_way = (scenarios[:, :, columns.STATE] == 1.0) & (scenarios[:, :, columns.WRONG_WAY] > 0.0)
        self.criteria.wrong_way_counts[:] = ~wrong_way.any(axis=1)
        nothing, unknown = np.full((count, 1), -1), np.full(count, np.nan)
        half = np.full(count, 0.5 * LENGTH)
        self.criteria.tick(
            self._pose(), self.world.ego[:, 3], half, nothing, np.zeros((count, 1), np.int64), self._red, unknown, live
        )


def _rows_of(course: Course, world: World, n: int) -> tuple[IntArray, IntArray]:
    """Lights of the course's town part, and which of those that environment ``n`` switches they are."""
    switched = load_town(course.route.town).light_pose[world.episodes[n].light_rows]
    same = (course.local.graph.light_pose[:, None] == switched[None]).all(axis=-1)
    here, there = np.nonzero(same)
    return here, there


@dataclass(frozen=True)
class Verdicts:
    """What both judges said of some episodes."""

    events: IntArray
    """[N, kinds of ``JUDGED``, 3] events that both found, the world alone, the official criteria alone."""
    numbers: FloatArray
    """[N, ``NUMBERS``, 2] the world's and the official ones; in both scores a route is whole that the world calls whole."""

    @staticmethod
    def of(world: World, criteria: Criteria) -> Verdicts:
        """When all episodes have ended."""
        events, numbers = [], []
        for n in range(len(world)):
            record, theirs = world.record(n), criteria.events(n)
            ours = record.events
            events.append([_matched(ours, theirs, kind) for kind in JUDGED])
            shared = ours[np.isin(ours[:, KIND], [int(kind) for kind in SHARED])]
            done = float(criteria.completion[n])
            whole = record.completed == 100.0  # the world ends such routes a little early: no matter of infractions
            pair = [
                (percent, found[found[:, KIND] == Event.OUTSIDE_ROUTE_LANES, VALUE].sum(), score(found, counted).driving_score)
                for found, percent, counted in (
                    (ours, record.completed, record.completed),
                    (np.concatenate([theirs, shared]), done, 100.0 if whole else done),
                )
            ]
            numbers.append(np.transpose(pair))
        return Verdicts(np.array(events), np.array(numbers))


def judge(policy: Policy, routes: Sequence[Route], max_ticks: int) -> Verdicts:
    """Drive routes once, judged twice."""
    world = World([stage(route, 0) for route in routes], max_ticks=max_ticks)
    official = Official(world, routes)
    while not world.done.all():
        live = ~world.done
        world.step(policy(world), ticks=1)
        official.tick(live)
    return Verdicts.of(world, official.criteria)


def _matched(ours: FloatArray, theirs: FloatArray, kind: Event) -> tuple[int, int, int]:
    left = sorted(theirs[theirs[:, KIND] == kind, TICK])
    both = alone = 0
    for tick in sorted(ours[ours[:, KIND] == kind, TICK]):
        near = [other for other in left if abs(other - tick) <= SAME_TICKS]
        if near:
            left.remove(near[0])
            both += 1
        else:
            alone += 1
    return both, alone, len(left)


def table(found: Mapping[str, Verdicts]) -> str:
    """Markdown: events, then numbers, a row for each driver and kind."""
    lines = ["| driver | event | both | world alone | official alone |", "|---|---|---|---|---|"]
    for name, verdicts in found.items():
        for kind, total in zip(JUDGED, verdicts.events.sum(axis=0), strict=True):
            if total.any():
                lines.append(f"| {name} | {kind.name.lower().replace('_', ' ')} | {total[0]} | {total[1]} | {total[2]} |")
    lines += ["", "| driver | number | world | official | mean difference | more than 1 apart |", "|---|---|---|---|---|---|"]
    for name, verdicts in found.items():
        for title, pairs in zip(NUMBERS, verdicts.numbers.transpose(1, 0, 2), strict=True):
            apart = np.abs(pairs[:, 0] - pairs[:, 1])
            ours, theirs = pairs.mean(axis=0)
            many = f"{int((apart > 1.0).sum())} of {len(pairs)}"
            lines.append(f"| {name} | {title} | {ours:.2f} | {theirs:.2f} | {apart.mean():.2f} | {many} |")
    return "\n".join(lines)


def main() -> None:
    """Drive, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--routes", help="a leaderboard XML")
    parser.add_argument("--count", type=int, default=220, help="generated routes")
    arguments = parser.parse_args()
    environment = {"type": "bench2drive", "heldout_scenes": arguments.count}
    environment |= {} if arguments.routes is None else {"routes": arguments.routes}
    env = make_route_env(VLAConfig.from_dict({"environment": environment}), "heldout", 1, cameras=())
    found = {}
    for name, policy in DRIVERS.items():
        parts = []
        with Bar(name, len(env.routes)) as bar:
            for at in range(0, len(env.routes), ENVIRONMENTS):
                parts.append(judge(policy, env.routes[at : at + ENVIRONMENTS], env.max_ticks))
                bar(at + len(parts[-1].events))
        found[name] = Verdicts(np.concatenate([p.events for p in parts]), np.concatenate([p.numbers for p in parts]))
    print(table(found))
    if arguments != parser.parse_args([]):
        return  # the document speaks of the usual routes
    written = {
        "routes": f"{arguments.count} generated",
        "events": {
            name: dict(zip((kind.name for kind in JUDGED), verdicts.events.sum(axis=0).tolist(), strict=True))
            for name, verdicts in found.items()
        },
        "numbers": {
            name: dict(zip(NUMBERS, verdicts.numbers.mean(axis=0).round(3).tolist(), strict=True))
            for name, verdicts in found.items()
        },
    }
    (RESULTS / "bench2drive_judges.json").write_text(json.dumps(written, indent=1) + "\n")
    made = fill(DOCUMENT.read_text(encoding="utf-8"), "judges", "python benchmarks/bench2drive_judges.py", table(found))
    DOCUMENT.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
