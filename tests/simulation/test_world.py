"""The batched world: repeatable to the bit, branching to the bit, and its vehicle, lights and criteria one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_models.control import WaypointController
from vla_models.errors import PlanError, SceneError
from vla_models.scenes.bench2drive.made_routes import generate_route
from vla_models.simulation import tables as columns
from vla_models.simulation.baselines import blind_follower, constant_velocity, rule_based
from vla_models.simulation.checks import boxes_touch
from vla_models.simulation.episodes import Episode, stage
from vla_models.simulation.tables import Event
from vla_models.simulation.world import World

STEPS = 40


@pytest.fixture(scope="module")
def episodes() -> list[Episode]:
    """Busy episodes: a flow, walkers, a slippery road, a jam, each with traffic."""
    kinds = ("SignalizedJunctionRightTurn", "PedestrianCrossing", "ControlLoss", "StaticCutIn")
    return [stage(generate_route("Town03", kind, 2), k, vehicles=10) for k, kind in enumerate(kinds)]


def plans_of(count: int, step: int) -> np.ndarray:
    """Plans that turn and change speed, the same for the same step."""
    rng = np.random.default_rng(step)
    plans = np.zeros((count, 8, 3))
    plans[:, :, 0] = rng.uniform(1.0, 5.0, (count, 1)) * np.arange(1, 9)
    plans[:, :, 1] = rng.uniform(-0.1, 0.1, (count, 1)) * np.arange(1, 9) ** 2
    return plans


def assert_same(one: World, other: World, rows: list[int] | None = None, others: list[int] | None = None) -> None:
    for name, a, b in zip(one.tables._fields, one.tables, other.tables, strict=True):
        assert np.array_equal(a if rows is None else a[rows], b if others is None else b[others]), name


@pytest.mark.parametrize("controller", ["pid", "tracker"])
def test_same_seed_and_plans_give_the_same_bits(episodes: list[Episode], controller: str) -> None:
    worlds = [World(episodes, controller=controller) for _ in range(2)]
    for step in range(STEPS):
        for world in worlds:
            world.step(plans_of(len(world), step), ticks=5)
    assert_same(*worlds)
    assert (worlds[0].tables.actors[:, 1:, columns.AV] > 1.0).any(axis=1).all(), "nobody moved: this proves nothing"


def test_another_seed_gives_other_traffic() -> None:
    route = generate_route("Town03", "ControlLoss", 2)
    one, two = World([stage(route, 0)]), World([stage(route, 1)])
    assert not np.array_equal(one.present(0)[1], two.present(0)[1])


def test_how_ticks_are_cut_does_not_matter(episodes: list[Episode]) -> None:
    """One plan for ten ticks is ten ticks of one plan: only when plans come makes a difference."""
    one, two = World(episodes), World(episodes)
    plans = plans_of(len(one), 0)
    one.step(plans, ticks=10)
    state = two.snapshot()
    two.step(plans, ticks=10)
    assert_same(one, two)
    two.restore(state)
    two.step(plans, ticks=4)
    assert (two.ticks == 4).all()


def test_eight_copies_of_a_snapshot_follow_the_original_to_the_bit(episodes: list[Episode]) -> None:
    original = World(episodes)
    for step in range(STEPS // 2):
        original.step(plans_of(4, step), ticks=5)
    for row in range(4):
        state = original.snapshot([row])
        group = World([episodes[row]] * 8)
        group.step(plans_of(8, 99), ticks=3)  # whatever was there is overwritten
        group.restore(state)
        reference = World([episodes[row]])
        reference.restore(state)
        for step in range(STEPS // 2):
            plans = plans_of(1, step)
            group.step(np.repeat(plans, 8, axis=0), ticks=5)
            reference.step(plans, ticks=5)
        for copy in range(8):
            assert_same(group, reference, [copy], [0])


def test_restore_goes_back_to_the_bit_and_into_a_world_that_is_too_small(episodes: list[Episode]) -> None:
    world = World(episodes)
    world.step(plans_of(4, 0), ticks=20)
    state = world.snapshot()
    before = [table.copy() for table in world.tables]
    world.step(plans_of(4, 1), ticks=20)
    world.restore(state)
    assert all(np.array_equal(a, b) for a, b in zip(before, world.tables, strict=True))
    small = World([stage(replace(generate_route("Town01", "ControlLoss", 0), scenarios=()), 0, vehicles=0)])
    small.restore(world.snapshot([0]))
    small.step(plans_of(1, 2), ticks=20)
    world.step(np.repeat(plans_of(1, 2), 4, axis=0), ticks=20)
    assert np.array_equal(small.record(0).log, world.record(0).log)
    assert small.record(0).route_id == world.record(0).route_id
    with pytest.raises(SceneError, match="cannot fill"):
        small.restore(state)


def test_reset_starts_another_episode_as_a_new_world_would(episodes: list[Episode]) -> None:
    world = World([episodes[0]] * 2)
    world.step(plans_of(2, 0), ticks=20)
    world.reset(1, episodes[1])
    fresh = World([episodes[1]])
    for step in range(10):
        world.step(np.repeat(plans_of(1, step), 2, axis=0), ticks=5)
        fresh.step(plans_of(1, step), ticks=5)
    assert np.array_equal(world.record(1).log, fresh.record(0).log)
    assert np.array_equal(world.record(1).events, fresh.record(0).events)


def test_rows_take_any_episodes_one_after_another(episodes: list[Episode]) -> None:
    """Also where one needs more of one table and less of another than those that were there before."""
    many = stage(generate_route("Town03", "StaticCutIn", 1), vehicles=30)
    few = stage(generate_route("Town03", "SignalizedJunctionRightTurn", 2), vehicles=0)
    assert {many.sizes[k] > few.sizes[k] for k in many.sizes} == {True, False}
    world = World([many])
    for episode in (few, many, *episodes):
        world.reset(0, episode)
        fresh = World([episode])
        for step in range(5):
            world.step(plans_of(1, step), ticks=5)
            fresh.step(plans_of(1, step), ticks=5)
        assert np.array_equal(world.record(0).log, fresh.record(0).log)


@pytest.mark.parametrize(
    ("plans", "message"),
    [
        (np.full((4, 8, 3), np.nan), "finite"),
        (np.zeros((3, 8, 3)), r"\[4, T, 3\]"),
        (np.zeros((4, 8, 2)), "3"),
        (np.zeros((4, 1, 3)), "at least 1 s"),
    ],
)
def test_a_bad_plan_is_refused_and_nothing_moves(episodes: list[Episode], plans: np.ndarray, message: str) -> None:
    world = World(episodes)
    with pytest.raises(PlanError, match=message):
        world.step(plans)
    assert (world.ticks == 0).all()


@settings(max_examples=25, deadline=None)
@given(
    speed=st.floats(0.5, 15.0),
    bend=st.floats(-0.15, 0.15),
    start=st.floats(0.0, 15.0),
)
def test_the_batched_pid_is_the_controller_of_control(speed: float, bend: float, start: float) -> None:
    """The first tick's controls are those of ``control.WaypointController`` for the same plan and speed."""
    world = World([_EMPTY()])
    world.tables.env[0, columns.E_V] = start
    at = speed * 0.5 * np.arange(1, 9)
    plan = np.stack([at, bend * at**2 / 4.0, np.zeros(8)], axis=1)
    expected = WaypointController(dt=0.5).control(plan, {"speed": start})
    world.step(plan[None], dt=0.5, ticks=1)
    throttle, brake, steer = (world.tables.env[0, c] for c in (columns.E_THROTTLE, columns.E_BRAKE, columns.E_STEER))
    assert throttle == pytest.approx(expected["throttle"], abs=1e-9)
    assert brake == expected["brake"]
    assert steer == pytest.approx(np.clip(expected["steer"], -0.15, 0.15), abs=1e-9)  # the wheels turn three locks a second


_CACHE: list[Episode] = []


def _EMPTY() -> Episode:
    if not _CACHE:
        route = replace(generate_route("Town03", "HardBreakRoute", 0), scenarios=())
        _CACHE.append(stage(route, 0, vehicles=0))
    return _CACHE[0]


def test_the_ego_turns_and_brakes_like_its_parameters() -> None:
    world = World([_EMPTY()], controller="tracker")
    world.tables.env[0, columns.E_V] = 10.0
    world.step(np.zeros((1, 8, 3)), ticks=60)  # a plan to stand
    log = world.record(0).log
    stop = int(np.argmax(log[:, 3] < 0.05))
    assert stop * 0.05 == pytest.approx(10.0 / (4.95 + 0.5 * 0.08 * 10.0), abs=0.1)  # full brake, and the drag on the way
    assert np.hypot(*(log[stop, :2] - log[0, :2])) == pytest.approx(0.5 * 10.0 * stop * 0.05, rel=0.1)


@given(
    x=st.floats(-6, 6), y=st.floats(-6, 6), h=st.floats(-np.pi, np.pi), h2=st.floats(-np.pi, np.pi),
    size=st.tuples(*[st.floats(0.2, 3.0)] * 4),
)  # fmt: skip
def test_boxes_touch_is_what_shapely_says(x: float, y: float, h: float, h2: float, size: tuple[float, ...]) -> None:
    shapely = pytest.importorskip("shapely")
    a, b, a2, b2 = size

    def ring(cx: float, cy: float, heading: float, p: float, q: float) -> object:
        c, s = np.cos(heading), np.sin(heading)
        return shapely.Polygon([(cx + c * u - s * v, cy + s * u + c * v) for u, v in ((p, q), (-p, q), (-p, -q), (p, -q))])

    one, two = ring(0, 0, h, a, b), ring(x, y, h2, a2, b2)
    apart = one.distance(two)
    if apart > 1e-6 or one.intersection(two).area > 1e-6:  # not just touching
        touch = boxes_touch(0.0, 0.0, np.cos(h), np.sin(h), a, b, x, y, np.cos(h2), np.sin(h2), a2, b2)
        assert touch == (apart == 0.0)


def test_lights_take_turns_and_a_red_one_is_an_event() -> None:
    route = generate_route("Town03", "VanillaSignalizedTurnEncounterRedLight", 0)
    episode = stage(replace(route, scenarios=()), 0, vehicles=0)
    world = World([episode])
    seen = []
    for _ in range(400):
        world.step(np.zeros((1, 8, 3)), ticks=2)
        rows, states = world.light_states(0)
        seen.append(states)
        groups = roads_groups(episode, rows)
        green = {g for g, s in zip(groups, states, strict=True) if s == columns.GREEN}
        junction = {g[0] for g in green}
        assert len(green) == len(junction), "two approaches of one junction are green at once"
    assert set(np.unique(seen)) == {columns.GREEN, columns.YELLOW, columns.RED}
    careless = World([stage(route, 0, vehicles=0)], controller="tracker")
    for _ in range(100):
        careless.step(blind_follower(careless, 12.0), ticks=5)
    assert Event.TRAFFIC_LIGHT in careless.record(0).events[:, 1]


def roads_groups(episode: Episode, rows: np.ndarray) -> list[tuple[int, int]]:
    from vla_models.simulation.roads import roads_of

    graph = roads_of(episode.town).graph
    return [(int(graph.light_junction[k]), int(graph.light_group[k])) for k in rows]


def test_an_episode_ends_where_the_official_one_does() -> None:
    """Completed, off the route, blocked: with the official thresholds."""
    world = World([_EMPTY()] * 3, controller="tracker")
    for k in range(300):
        plans = blind_follower(world, 8.0)
        plans[1, :, 1] += 2.0 * np.arange(1, 9) if k > 4 else 0.0
        plans[2] = 0.0
        world.step(plans, ticks=5)
        if world.done.all():
            break
    assert world.ended == [Event.ROUTE_COMPLETED, Event.ROUTE_DEVIATION, Event.VEHICLE_BLOCKED]
    records = [world.record(n) for n in range(3)]
    assert records[0].completed == 100.0
    assert 0.0 < records[1].completed < 100.0
    assert records[2].ticks == pytest.approx(60.0 / 0.05, abs=5)
    assert Event.OUTSIDE_ROUTE_LANES in records[1].events[:, 1]
    world.step(np.ones((3, 8, 3)))
    assert world.record(0).ticks == records[0].ticks, "an ended episode stands still"


def test_a_careful_driver_in_traffic_harms_nobody(episodes: list[Episode]) -> None:
    routes = [generate_route(town, "PriorityAtJunction", 3) for town in ("Town01", "Town03")]
    staged = [stage(replace(r, scenarios=()), seed, vehicles=20) for r in routes for seed in range(4)]
    world = World(staged, controller="tracker")
    traffic = np.zeros(len(world))
    for _ in range(800):  # two red lights of 45 s may lie on the way
        world.step(rule_based(world), ticks=5)
        traffic = np.maximum(traffic, [len(world.present(n)[0]) for n in range(len(world))])
        if world.done.all():
            break
    assert world.ended == [Event.ROUTE_COMPLETED] * len(world)
    assert traffic.min() >= 4, "without traffic this proves nothing"
    hits = {int(k) for n in range(len(world)) for k in world.record(n).events[:, 1]}
    assert not hits & {Event.COLLISION_VEHICLE, Event.COLLISION_PEDESTRIAN, Event.COLLISION_STATIC, Event.TRAFFIC_LIGHT}


def test_the_traffic_does_not_drive_through_itself() -> None:
    """Vehicles of the background traffic overlap hardly ever (lanes that merge in a junction may let two touch)."""
    route = generate_route("Town03", "VanillaSignalizedTurnEncounterRedLight", 1)
    world = World([stage(replace(route, scenarios=()), seed, vehicles=20) for seed in range(4)])
    met: set[tuple[int, int, int]] = set()
    touched: set[tuple[int, int, int]] = set()
    for _ in range(60):
        world.step(constant_velocity(world), ticks=10)
        for n in range(len(world)):
            rows = world.present(n)[1][1:]
            for i in range(len(rows)):
                for j in range(i):
                    if np.hypot(*(rows[i, :2] - rows[j, :2])) > 6.0:
                        continue
                    met.add((n, i, j))
                    (x, y, h, a, b, _), (x2, y2, h2, a2, b2, _) = rows[i], rows[j]
                    if boxes_touch(
                        x, y, np.cos(h), np.sin(h), a / 2, b / 2, x2, y2, np.cos(h2), np.sin(h2), a2 / 2, b2 / 2
                    ):  # fmt: skip
                        touched.add((n, i, j))
    assert len(met) > 20
    assert len(touched) < 0.2 * len(met)
