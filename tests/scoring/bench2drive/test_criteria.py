"""The criteria: episodes that the official code judged (golden), and single rules driven by hand on a route of Town05."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vla_models.errors import SceneError
from vla_models.scenes.bench2drive.made_routes import generate_route
from vla_models.scenes.bench2drive.routes import Route, local
from vla_models.scenes.lanes import LaneGraph
from vla_models.scenes.towns import load_town
from vla_models.scoring.bench2drive import criteria as module
from vla_models.scoring.bench2drive.criteria import Criteria
from vla_models.scoring.bench2drive.events import EVENT_COLUMNS, KIND, TICK, VALUE, Event
from vla_models.scoring.bench2drive.tables import Course, stop_lines

GOLDEN = Path(__file__).parents[2] / "data" / "bench2drive" / "criteria.npz"
"""Episodes of Town05 with what ``atomic_criteria.py`` itself (Bench2Drive 0.0.4, py_trees 0.8.3, a real ``carla.Map``) said:
``log`` [T, 7] x y heading speed traffic contact-id contact-kind, ``red`` [T, K], ``route``, ``events`` [K, 2] (kind, tick; the
percentage instead of the tick for speed checkpoints and lanes), ``end`` completion and whether it ended."""


@pytest.fixture(scope="module")
def town() -> LaneGraph:
    return load_town("Town05")


@pytest.fixture(scope="module")
def signal(town: LaneGraph) -> Course:
    """A left turn at a light."""
    route = generate_route("Town05", "SignalizedJunctionLeftTurn", 2)
    return Course(route, local(route, town=town))


@pytest.fixture(scope="module")
def stop(town: LaneGraph) -> Course:
    """A way past a stop sign."""
    route = generate_route("Town05", "VanillaNonSignalizedTurnEncounterStopsign", 1)
    return Course(route, local(route, town=town))


class Drive:
    """Drives one course by hand, metre by metre."""

    def __init__(self, course: Course, tick_limit: int = 4000) -> None:
        self.course = course
        self.criteria = Criteria(1, tick_limit)
        self.lights = len(course.local.graph.light_pose)
        self.at = 0.05
        self.criteria.begin([0], [course], self.pose(0.0)[None])

    def pose(self, aside: float) -> np.ndarray:
        """Where the route is ``self.at`` metres from its start (straight on behind its end), ``aside`` metres to the left."""
        points, arc = self.course.route.points, self.course.route.arc
        x, y, h = (np.interp(self.at, arc, np.unwrap(points[:, k]) if k == 2 else points[:, k]) for k in range(3))
        over = max(0.0, self.at - arc[-1])
        return np.array([x + over * np.cos(h) - aside * np.sin(h), y + over * np.sin(h) + aside * np.cos(h), h])

    def go(
        self, seconds: float, speed: float, *, aside: float = 0.0, hit: tuple[int, int] = (-1, 0), red: bool = False,
        traffic: float = float("nan"), turned: float = 0.0,
    ) -> int:  # fmt: skip
        """Drive on; returns why the episode ended (0: it goes on)."""
        for _ in range(round(seconds / 0.05)):
            self.at += speed * 0.05
            pose = self.pose(aside) + np.array([0.0, 0.0, turned])
            ended = self.criteria.tick(
                pose[None], np.array([speed]), np.array([2.45]), np.array([[hit[0]]]), np.array([[hit[1]]]),
                np.full((1, self.lights), red), np.array([traffic]), np.ones(1, bool),
            )  # fmt: skip
            if ended[0]:
                break
        return int(self.criteria.ended[0])

    def found(self, kind: Event) -> np.ndarray:
        """Events of one kind."""
        events = self.criteria.events(0)
        return events[events[:, KIND] == kind]


def golden() -> list[str]:
    with np.load(GOLDEN) as file:
        return sorted({name.split("_")[0] for name in file.files}, key=lambda name: int(name[1:]))


@pytest.mark.parametrize("episode", golden())
def test_golden_episodes_are_judged_as_by_the_official_code(episode: str, town: LaneGraph) -> None:
    with np.load(GOLDEN) as file:
        log, red, columns, events, end = (file[f"{episode}_{part}"] for part in ("log", "red", "route", "events", "end"))
    route = Route(
        id=episode, town="Town05", points=columns[:, :4], lanes=columns[:, 4].astype(np.int64),
        option=np.zeros(len(columns), np.int64), elevation=columns[:, 5],
    )  # fmt: skip
    criteria = Criteria(1)
    criteria.begin([0], [Course(route, local(route, town=town))], columns[:1, :3])
    for row, lights in zip(log, red, strict=True):
        criteria.tick(
            row[None, :3], row[3:4], np.array([2.45]), row[None, 5:6].astype(np.int64), row[None, 6:7].astype(np.int64),
            lights[None], row[4:5], np.ones(1, bool),
        )  # fmt: skip
    ours = sorted(
        (int(e[KIND]), round(e[VALUE], 2) if e[KIND] in (Event.MIN_SPEED, Event.OUTSIDE_ROUTE_LANES) else e[TICK])
        for e in criteria.events(0)
        if e[KIND] != Event.ROUTE_COMPLETED
    )
    theirs = [tuple(row) for row in events]
    assert [kind for kind, _ in ours] == [kind for kind, _ in theirs]
    for (kind, mine), (_, official) in zip(ours, theirs, strict=True):
        # a light's stop line is CARLA's last half metre before the junction, ours its very end: two ticks at most
        assert abs(mine - official) <= (2 if kind in (Event.TRAFFIC_LIGHT, Event.STOP) else 0), Event(kind)
    assert criteria.completion[0] == end[0]
    assert criteria.ended[0] == end[1]


def test_a_careful_drive_is_flawless(signal: Course) -> None:
    drive = Drive(signal)
    assert drive.go(60.0, 8.0, traffic=8.0) == 1
    assert drive.criteria.completion[0] == 100.0
    kinds = set(drive.criteria.events(0)[:, KIND].astype(int).tolist())
    assert kinds == {Event.MIN_SPEED, Event.ROUTE_COMPLETED}
    slow = drive.found(Event.MIN_SPEED)[:, VALUE]
    assert np.all(slow == 100.0)
    assert 18 <= len(slow) <= 22  # 20 checkpoints, rounded to whole points of the route; the last one comes twice
    assert drive.criteria.ticks[0] == pytest.approx(signal.route.length / 0.4, abs=6)


def test_speed_checkpoints_compare_with_the_traffic(signal: Course) -> None:
    drive = Drive(signal)
    drive.go(60.0, 6.0, traffic=12.0)
    assert np.all(drive.found(Event.MIN_SPEED)[:, VALUE] == 50.0)
    alone = Drive(signal)
    alone.go(60.0, 6.0)
    assert np.all(alone.found(Event.MIN_SPEED)[:, VALUE] == 100.0)  # no traffic, no complaint


def test_a_red_light_counts_once_and_only_when_the_tail_crosses_the_line(signal: Course) -> None:
    drive = Drive(signal)
    assert drive.go(60.0, 8.0, red=True) == 1
    found = drive.found(Event.TRAFFIC_LIGHT)
    assert len(found) == len(set(found[:, 5])) == 2  # the way leads past two lights
    event = found[0]
    lines = stop_lines(signal.local.graph)
    line = lines[(lines[:, 0] == event[5])][0]
    passed = np.hypot(event[3] - line[7], event[4] - line[8])
    assert 1.0 < passed < 2.45 + 1.0 + 2.5  # the centre is past the line by less than the tail
    waits = Drive(signal)
    before = int(np.flatnonzero(np.isin(signal.route.lanes, load_town("Town05").light_lanes))[0])
    while waits.at < signal.route.arc[before] - 6.0:
        waits.go(0.05, 8.0, red=True)
    waits.go(20.0, 0.0, red=True)
    assert waits.go(60.0, 8.0) == 1
    assert not len(waits.found(Event.TRAFFIC_LIGHT))


def test_a_stop_sign_wants_a_stop(stop: Course) -> None:
    runs = Drive(stop)
    runs.go(60.0, 6.0)
    assert len(runs.found(Event.STOP)) == 1
    stops = Drive(stop)
    sign = int(runs.found(Event.STOP)[0, 5])
    graph = stop.local.graph
    box = graph.stop_box[graph.stop_lane_offsets[sign], :2]
    where = float(stop.route.arc[np.hypot(*(stop.route.points[:, :2] - box).T).argmin()])
    while stops.at < where - 2.0:
        stops.go(0.05, 6.0)
    stops.go(0.2, 0.0)
    assert stops.go(60.0, 6.0) == 1
    assert not len(stops.found(Event.STOP))


def test_collisions_are_told_apart_by_place_time_and_speed(signal: Course) -> None:
    drive = Drive(signal)
    drive.go(0.5, 8.0)
    drive.go(0.1, 8.0, hit=(7, 0))  # two ticks of one crash
    drive.go(0.3, 8.0)
    drive.go(0.05, 8.0, hit=(8, 1))  # another one within 5 m: the same accident
    assert [int(e[KIND]) for e in drive.criteria.events(0) if e[KIND] <= 2] == [Event.COLLISION_VEHICLE]
    drive.go(1.0, 8.0)
    drive.go(0.05, 8.0, hit=(7, 0))  # the same car, more than 5 m on but within 5 s
    drive.go(0.05, 8.0, hit=(8, 1))
    assert [int(e[KIND]) for e in drive.criteria.events(0) if e[KIND] <= 2] == [
        Event.COLLISION_VEHICLE,
        Event.COLLISION_PEDESTRIAN,
    ]
    drive.go(1.0, 8.0)
    drive.go(0.05, 0.05, hit=(9, 2))  # the ego stands: not its fault
    drive.go(0.05, 8.0, hit=(9, 2))
    assert [int(e[KIND]) for e in drive.criteria.events(0) if e[KIND] <= 2][-1] == Event.COLLISION_STATIC
    assert len(drive.criteria.events(0)) == 3 + len(drive.found(Event.MIN_SPEED))


def test_standing_for_a_minute_is_the_end_unless_it_is_allowed(signal: Course) -> None:
    drive = Drive(signal)
    drive.go(1.0, 8.0)
    assert drive.go(59.9, 0.0) == 0
    assert drive.go(1.0, 0.0) == 3
    assert len(drive.found(Event.VEHICLE_BLOCKED)) == 1
    allowed = Drive(signal)
    allowed.criteria.blocked_counts[0] = False
    assert allowed.go(100.0, 0.0) == 0


def test_leaving_the_route_is_the_end(signal: Course) -> None:
    drive = Drive(signal)
    drive.go(1.0, 8.0)
    assert drive.go(0.05, 8.0, aside=29.0) == 0
    assert drive.go(0.05, 8.0, aside=31.0) == 2
    far = Drive(signal)
    far.go(0.5, 8.0)
    assert far.go(60.0, 8.0, aside=20.0) == 2  # 30 % of the route beyond 15 m
    share = far.criteria.completion[0]
    assert 30.0 < share < 45.0


def test_outside_the_lanes_costs_its_share_of_the_way(signal: Course) -> None:
    drive = Drive(signal)
    drive.go(1.0, 8.0)
    assert not drive.criteria.outside[0]
    drive.go(0.5, 8.0, aside=-12.0)
    assert drive.criteria.outside[0]
    drive.go(60.0, 8.0)
    (event,) = drive.found(Event.OUTSIDE_ROUTE_LANES)
    assert event[5] == pytest.approx(4.0, abs=1.5)  # metres
    assert event[VALUE] == pytest.approx(100.0 * event[5] / signal.route.length, rel=0.05)


def test_the_oncoming_lane_is_forbidden_unless_a_scenario_allows_it(town: LaneGraph) -> None:
    route = generate_route("Town05", "AccidentTwoWays", 5)
    course = Course(route, local(route, town=town))
    width = 3.5
    for allowed in (False, True):
        drive = Drive(course)
        drive.criteria.wrong_way_counts[0] = not allowed
        drive.go(1.0, 8.0)
        drive.go(1.0, 8.0, aside=width)
        assert bool(drive.criteria.outside[0]) != allowed
        drive.go(1.0, 8.0)
        assert not drive.criteria.outside[0]
        assert len(drive.found(Event.OUTSIDE_ROUTE_LANES)) == int(not allowed)


def test_the_tick_limit_and_the_time_limit(signal: Course) -> None:
    drive = Drive(signal, tick_limit=100)
    assert drive.go(10.0, 1.0) == 5
    assert drive.criteria.ticks[0] == 101
    patient = Drive(signal, tick_limit=10**6)
    patient.criteria.blocked_counts[0] = False
    assert patient.go(301.0, 0.0) == 4
    assert len(patient.found(Event.ROUTE_TIMEOUT)) == 1


def test_snapshots_and_neighbours_change_nothing(signal: Course, stop: Course) -> None:
    """Three environments together are three alone; a restored episode goes on bit by bit; ended rows are left alone."""
    rng = np.random.default_rng(0)
    courses = [signal, stop, signal]
    count = len(courses)
    lights = max(len(c.local.graph.light_pose) for c in courses)
    together = Criteria(count)
    start = np.array([c.route.points[0, :3] for c in courses])
    together.begin([0, 1, 2], courses, start)
    alone = [Criteria(1) for _ in courses]
    for k, course in enumerate(courses):
        alone[k].begin([0], [course], start[k : k + 1])
    saved = None
    inputs = []
    for t in range(500):
        pose = np.array([c.route.points[min(t // 3, len(c.route.points) - 1), :3] for c in courses])
        pose[:, :2] += rng.normal(0.0, 0.8, (count, 2))
        speed, traffic = rng.uniform(0.0, 8.0, count), rng.uniform(0.0, 8.0, count)
        ids, kinds = rng.integers(-1, 3, (count, 2)), rng.integers(0, 3, (count, 2))
        ids[rng.random((count, 2)) < 0.97] = -1
        red = rng.random((count, lights)) < 0.5
        inputs.append((pose, speed, np.full(count, 2.45), ids, kinds, red, traffic, np.ones(count, bool)))
        if t == 200:
            saved = together.snapshot()
        together.tick(*inputs[-1])
        for k in range(count):
            alone[k].tick(*(part[k : k + 1] for part in inputs[-1]))
    assert len(together.events(0)) > 5
    for k in range(count):
        assert np.array_equal(together.events(k), alone[k].events(0))
        assert together.completion[k] == alone[k].completion[0]
    final = together.snapshot()
    assert saved is not None
    together.restore(saved)
    for row in inputs[200:]:
        together.tick(*row)
    again = together.snapshot()
    assert all(np.array_equal(final[name], again[name]) for name in final)


def test_counts_and_reports(signal: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    drive = Drive(signal)
    drive.go(2.0, 8.0, aside=-12.0)
    pose = drive.pose(0.0)[None]
    drive.criteria.report([0], Event.SCENARIO_TIMEOUT, pose)
    counts = drive.criteria.counts()[0]
    assert counts[Event.SCENARIO_TIMEOUT] == counts[Event.OUTSIDE_ROUTE_LANES] == 1
    assert drive.criteria.events(0).shape == (counts.sum(), len(EVENT_COLUMNS))
    monkeypatch.setattr(module, "MOST_EVENTS", 1)
    with pytest.raises(SceneError, match="something reports without end"):
        drive.criteria.events(0)
