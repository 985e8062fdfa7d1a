"""Bench2Drive-v0 as its users see it: a gymnasium vector environment of many decisions over the embedded world."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import pytest
from gymnasium.vector import AutoresetMode

import vla_models.envs  # noqa: F401  # registers Bench2Drive-v0
from vla_models.envs import bench2drive
from vla_models.envs.bench2drive import ROUTE_METRICS, Bench2DriveEnv, RouteSpec
from vla_models.envs.route_views import COMMAND_AHEAD, KEPT_METRES, Prepared, route_commands
from vla_models.errors import ConfigError, PlanError, SceneError
from vla_models.frameworks.episodes import Episodes
from vla_models.inputs import EGO_FEATURES, VLAInput
from vla_models.scenes.bench2drive.made_routes import generate_route
from vla_models.scenes.bench2drive.routes import Route
from vla_models.scenes.planner import RoadOption
from vla_models.scenes.scene import COMMANDS
from vla_models.scoring.bench2drive.results import episode_record
from vla_models.scoring.bench2drive.rewards import ROUTE_TERMS, RouteReward
from vla_models.simulation.baselines import blind_follower, rule_based
from vla_models.simulation.world import World

Driver = Callable[[World], npt.NDArray[np.float64]]
TYPES = ("ParkingCutIn", "StaticCutIn", "PedestrianCrossing", "VanillaSignalizedTurnEncounterRedLight")
SEEDS = (0, 0, 0, 5)
"""Places where a careful driver gets through, and who does not look hits somebody or runs the red light."""
XML = """<routes><route id="7" town="{town}"><waypoints>
<position x="{x}" y="{y}" z="0"/><position x="{x2}" y="{y2}" z="0"/></waypoints><scenarios/></route></routes>"""


@lru_cache(maxsize=1)
def made() -> tuple[Route, ...]:
    return tuple(generate_route("Town03", kind, seed) for kind, seed in zip(TYPES, SEEDS, strict=True))


def make(num_envs: int = 4, **options: Any) -> Bench2DriveEnv:
    env = gymnasium.make_vec("Bench2Drive-v0", num_envs=num_envs, **{"routes": made(), "cameras": (), **options})
    assert isinstance(env, Bench2DriveEnv)
    return env


def drive(env: Bench2DriveEnv, driver: Driver) -> tuple[npt.NDArray[np.float64], dict[str, Any], dict[str, Any], list[Any]]:
    """Every route to its end -> summed rewards, summed terms, the last info, the results."""
    env.reset(options={"scenes": list(range(env.num_envs))})
    total, sums, results = np.zeros(env.num_envs), dict.fromkeys(ROUTE_TERMS, 0.0), [None] * env.num_envs
    for _ in range(env.max_decisions):
        _, reward, terminated, truncated, info = env.step(driver(env.world))
        total += reward
        sums = {name: sums[name] + info["terms"][name] for name in sums}
        results = [new or old for new, old in zip(info["results"], results, strict=True)]
        if (terminated | truncated).all():
            return total, sums, info, results
    raise AssertionError("an episode went on for longer than max_decisions")


def same(a: Any, b: Any) -> bool:
    """Whether two observations are the same bits."""
    pictures = all(np.array_equal(a["images"][name], b["images"][name]) for name in a["images"] | b["images"])
    return pictures and all(np.array_equal(a[name], b[name]) for name in ("ego", "route", "command")) and a["text"] == b["text"]


def test_it_is_a_gymnasium_environment() -> None:
    env = make(2, cameras=("front", "back"), image_size=(36, 64))
    assert env.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    observation, info = env.reset(seed=1)
    assert env.observation_space.contains({**observation, "text": tuple(observation["text"])})
    assert set(observation["images"]) == {"front", "back"}
    assert observation["images"]["front"].shape == (2, 36, 64, 3)
    assert not np.array_equal(observation["images"]["front"], observation["images"]["back"])
    plans = rule_based(env.world)
    assert env.action_space.contains(plans.astype(np.float32))
    assert set(info["scene"]) <= set(env.tokens)
    following, reward, terminated, truncated, info = env.step(plans)
    assert env.observation_space.contains({**following, "text": tuple(following["text"])})
    assert reward.dtype == np.float32
    assert not (terminated | truncated).any()
    assert info["valid"].all()
    assert info["results"] == [None, None]
    assert set(info["terms"]) == set(ROUTE_TERMS)
    assert set(info["metrics"]) == set(ROUTE_METRICS)
    assert all(v.shape == (2,) and v.dtype == np.float32 for part in ("terms", "metrics") for v in info[part].values())
    for _ in range(3):
        following, *_ = env.step(rule_based(env.world))
    assert not np.array_equal(observation["images"]["front"], following["images"]["front"])
    env.close()


def test_the_observation_is_what_the_car_knows() -> None:
    env = make()
    observation, _ = env.reset(options={"scenes": [0, 1, 2, 3]})
    # the first three routes start straight ahead of the rear axle, which stands on them, the fourth in a bend
    assert np.allclose(observation["route"][:3, 0], [5.0, 0.0], atol=1e-3)
    assert np.hypot(*observation["route"][3, 0]) == pytest.approx(5.0, abs=0.1)
    for _ in range(8):
        observation, *_ = env.step(rule_based(env.world))
    steps = np.linalg.norm(np.diff(observation["route"], axis=1), axis=2)
    assert np.all((steps > 4.0) & (steps < 5.001))
    rows = VLAInput.batch(observation)
    assert rows[0].ego_state is not None
    assert tuple(rows[0].ego_state) == EGO_FEATURES
    assert np.allclose(observation["ego"][:, 0], env.world.ego[:, 3])
    speeds = [env.record(n).log[-1, 3] for n in range(4)]
    assert np.allclose(observation["ego"][:, 0], speeds)


def test_steering_and_yaw_rate_are_positive_to_the_left() -> None:
    env = make(1)
    env.reset(options={"scenes": [0]})
    plans = np.zeros((1, 8, 3))
    plans[0, :, 0] = 3.0 * np.arange(1, 9)
    plans[0, :, 1] = 0.2 * np.arange(1, 9) ** 2
    for _ in range(3):
        observation, *_ = env.step(plans)
    ego = dict(zip(EGO_FEATURES, observation["ego"][0], strict=True))
    assert ego["steering"] > 0.01
    assert ego["yaw_rate"] > 0.01
    assert np.all(observation["route"][0, :, 1] < 0.0)  # the route stays behind on the right


def test_commands_say_what_comes_first() -> None:
    route = made()[3]
    option = np.full(len(route.points), int(RoadOption.LANE_FOLLOW))
    option[60:70], option[80:90] = RoadOption.LEFT, RoadOption.CHANGE_LANE_RIGHT
    commands = [COMMANDS[k] for k in route_commands(replace(route, option=option))]
    assert commands[60 - COMMAND_AHEAD - 3] == "straight"
    assert commands[60 - COMMAND_AHEAD + 3 : 66] == ["left"] * (COMMAND_AHEAD + 3)
    assert commands[74] == commands[85] == "right"
    assert commands[95] == "straight"


def test_a_careful_driver_scores_higher_than_a_blind_one_and_terms_add_up() -> None:
    env = make()
    careful, sums, info, results = drive(env, rule_based)
    record = [env.record(n) for n in range(4)]
    blind, blind_sums, blind_info, _ = drive(env, blind_follower)
    assert careful.mean() > blind.mean() + 0.2
    assert info["metrics"]["success"].sum() >= 3
    assert blind_info["metrics"]["success"].sum() == 0
    assert np.allclose(careful, info["metrics"]["driving_score"] / 100.0, atol=1e-5)
    assert np.allclose(sums["progress"], info["metrics"]["route_completion"] / 100.0, atol=1e-5)
    assert np.array_equal(sums["success"], info["metrics"]["success"])
    assert blind_sums["collision"].sum() >= 2
    assert blind_sums["red_light"][3] == 1
    assert sums["red_light"].sum() == 0
    for n, result in enumerate(results):
        assert result == episode_record(env.routes[n], record[n], index=n)
        assert result["scores"]["score_composed"] == pytest.approx(float(info["metrics"]["driving_score"][n]), abs=1e-4)


def test_rewards_are_weighted_terms() -> None:
    weights = {"progress": 2.0, "collision": -1.0, "red_light": -0.5, "comfort": 0.01}
    total, sums, _, _ = drive(make(reward={"type": "driving", "weights": weights}), blind_follower)
    assert np.allclose(total, sum(w * sums[name] for name, w in weights.items()), atol=1e-5)


def test_driving_off_the_road_is_seen_and_ends_as_a_failure() -> None:
    env = make(1, routes=made()[:1])
    env.reset()
    away = np.zeros((1, 8, 3))
    away[0, :, 0] = 3.0 * np.arange(1, 9)
    away[0, :, 1] = -0.3 * np.arange(1, 9) ** 2
    on = np.zeros((1, 8, 3))
    on[0, :, 0] = 3.0 * np.arange(1, 9)
    terms = dict.fromkeys(ROUTE_TERMS, 0.0)
    for k in range(60):
        _, _, terminated, truncated, info = env.step(away if k < 4 else on)
        terms = {name: terms[name] + float(info["terms"][name][0]) for name in terms}
        if terminated[0]:
            break
    assert terminated[0]
    assert not truncated[0]
    assert terms["off_road"] > 1.0
    assert terms["failed"] == 1.0
    assert terms["success"] == 0.0
    assert info["results"][0]["status"] == "Failed - Agent deviated from the route"


def test_the_limit_truncates_and_rows_that_are_over_stay_over() -> None:
    env = make(2, max_ticks=25)
    assert env.max_decisions == 3
    env.reset(options={"scenes": [0, 1]})
    nothing = np.zeros((2, 8, 3))
    env.step(nothing)
    env.reset(options={"scenes": [0, 2], "reset_mask": np.array([False, True])})
    env.step(nothing)
    _, _, terminated, truncated, _ = env.step(nothing)
    assert truncated.tolist() == [True, False]
    assert not terminated.any()
    before = env.record(0)
    _, reward, _, truncated, info = env.step(nothing)  # the first row is over, the second reaches its limit
    assert truncated.tolist() == [True, True]
    assert reward[0] == 0.0
    assert [result is None for result in info["results"]] == [True, False]
    assert np.array_equal(env.record(0).log, before.log)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(nothing)


def test_the_same_seed_and_plans_give_the_same_bits() -> None:
    runs = []
    for _ in range(2):
        env = make(3, cameras=("front",), image_size=(24, 40))
        observation, info = env.reset(seed=5)
        seen = [observation]
        rewards = []
        for _ in range(6):
            observation, reward, *_ = env.step(blind_follower(env.world))
            seen.append(observation)
            rewards.append(reward)
        runs.append((info["scene"], seen, np.array(rewards)))
        env.close()
    assert runs[0][0] == runs[1][0]
    assert len(set(runs[0][0])) == 3
    assert all(same(a, b) for a, b in zip(runs[0][1], runs[1][1], strict=True))
    assert np.array_equal(runs[0][2], runs[1][2])


def test_a_group_branches_from_one_state() -> None:
    """8 copies of one moment with the same plans are what the original was, bit by bit; with others they part."""
    source = make(2)
    source.reset(options={"scenes": [0, 2]})
    for _ in range(6):
        source.step(rule_based(source.world))
    state = source.snapshot(rows=[1])
    course = []
    for _ in range(10):
        plans = blind_follower(source.world)
        observation, reward, *_ = source.step(plans)
        course.append((plans[1], {k: observation[k][1] for k in ("ego", "route", "command")}, reward[1]))
    group = make(8)
    group.restore(state)
    assert group.tokens[group._indices[7]] == made()[2].id
    for plan, seen, gained in course:
        observation, reward, *_ = group.step(np.tile(plan, (8, 1, 1)))
        assert all(np.array_equal(observation[name][n], seen[name]) for name in seen for n in range(8))
        assert np.array_equal(reward, np.full(8, gained))
    assert all(np.array_equal(group.record(n).log, source.record(1).log) for n in range(8))
    group.restore(state, rows=[2, 5])
    different = np.zeros((8, 8, 3))
    different[5, :, 0] = 4.0 * np.arange(1, 9)
    observation, *_ = group.step(different)
    assert observation["ego"][5, 0] > observation["ego"][2, 0]


def test_restoring_a_whole_snapshot_repeats_everything_the_draws_too() -> None:
    env = make(2)
    env.reset(seed=3)
    env.step(rule_based(env.world))
    state = env.snapshot()
    first = [env.step(rule_based(env.world))[:2] for _ in range(5)], env.reset()[1]
    here = env.restore(state)
    assert same(here, env._observe(range(2)))
    again = [env.step(rule_based(env.world))[:2] for _ in range(5)], env.reset()[1]
    assert all(same(a, b) and np.array_equal(r, q) for (a, r), (b, q) in zip(first[0], again[0], strict=True))
    assert first[1] == again[1]


def test_a_mask_resets_some_rows_and_leaves_the_others_alone() -> None:
    env = make(3)
    start, _ = env.reset(options={"scenes": [0, 1, 2]})
    for _ in range(4):
        moved, *_ = env.step(blind_follower(env.world))
    names = [made()[3].id, env.tokens[1], env.tokens[2]]
    observation, info = env.reset(options={"scenes": names, "reset_mask": np.array([True, False, False])})
    assert info["scene"] == names
    assert np.array_equal(observation["ego"][1:], moved["ego"][1:])
    assert observation["ego"][0, 0] == start["ego"][0, 0] == 0.0
    assert env.world.ticks.tolist() == [0, 40, 40]


def test_frameworks_count_its_episodes() -> None:
    """``Episodes`` is what every framework drives environments with."""
    env = make(2, max_ticks=60)
    names = iter(env.tokens[2:] * 9)
    episodes = Episodes(env, next_scene=lambda row: next(names))
    episodes.begin(env.tokens[:2])
    ended = 0
    for _ in range(13):
        decided = episodes.decide(blind_follower(env.world))
        ended += int((decided.terminated | decided.truncated).sum())
        assert np.allclose(decided.totals["return"], decided.totals["term/driving_score"])
        assert decided.totals["valid"].tolist() == [1.0, 1.0]
    assert ended == 4
    assert episodes.scenes != env.tokens[:2]


def test_a_world_that_is_not_finite_makes_an_invalid_row(monkeypatch: pytest.MonkeyPatch) -> None:
    env = make(2)
    env.reset(options={"scenes": [0, 1]})
    whole = World.ego.fget  # type: ignore[attr-defined]
    monkeypatch.setattr(World, "ego", property(lambda world: np.where([[True], [False]], np.nan, whole(world))))
    _, reward, _, _, info = env.step(np.zeros((2, 8, 3)))
    assert info["valid"].tolist() == [False, True]
    assert np.isnan(reward).tolist() == [True, False]


def test_bad_plans_are_named() -> None:
    env = make(2)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros((2, 8, 3)))
    env.reset()
    plans = np.zeros((2, 8, 3))
    plans[1, 3, 0] = np.nan
    with pytest.raises(PlanError, match=r"rows \[1\]"):
        env.step(plans)
    for shape in ((1, 8, 3), (2, 5, 3), (2, 8, 2), (8, 3)):
        with pytest.raises(PlanError, match=r"shape|poses"):
            env.step(np.zeros(shape))
    assert env.world.ticks.tolist() == [0, 0]


def test_bad_resets_are_named() -> None:
    env = make(2)
    with pytest.raises(SceneError, match="there is no route 'Accident'"):
        env.reset(options={"scenes": ["Accident", 0]})
    with pytest.raises(SceneError, match="route index 9 is outside"):
        env.reset(options={"scenes": [9, 0]})
    with pytest.raises(SceneError, match="3 scenes for 2 episodes"):
        env.reset(options={"scenes": [0, 0, 0]})
    with pytest.raises(SceneError, match=r"'scene' is unknown.*'scenes'"):
        env.reset(options={"scene": [0, 0]})
    with pytest.raises(gymnasium.error.ResetNeeded, match="every row"):
        env.reset(options={"reset_mask": np.array([True, False])})
    with pytest.raises(SceneError, match="reset_mask must be bool"):
        env.reset(options={"reset_mask": np.array([1, 0])})


def test_bad_settings_are_named() -> None:
    with pytest.raises(ConfigError, match=r"reward.weights.colision: .*Did you mean 'collision'"):
        RouteReward("driving", {"colision": -1.0})
    with pytest.raises(ConfigError, match="'pdms' is unknown to Bench2Drive"):
        make(reward={"type": "pdms"})
    with pytest.raises(ConfigError, match=r"no camera 'frnt'.*Did you mean 'front'"):
        make(cameras=("frnt",))
    with pytest.raises(ConfigError, match="1 to 80 ticks"):
        make(ticks=90)
    with pytest.raises(ConfigError, match="less than 1 s"):
        make(plan_steps=1)
    with pytest.raises(ConfigError, match="at most 63 poses"):
        make(plan_steps=64)
    with pytest.raises(SceneError, match="two routes have the id"):
        make(routes=[made()[0], made()[0]])


def test_a_route_that_cannot_be_staged_is_named_or_left_out(tmp_path: Any) -> None:
    good = made()[0]
    wrong = replace(good.scenarios[0], trigger=(9000.0, 0.0, 0.0))
    routes = [replace(good, id="lost", scenarios=(wrong,)), good]
    env = make(1, routes=routes)
    with pytest.raises(SceneError, match=r"route lost \(Town03\).*off the route.*skip_bad"):
        env.reset(options={"scenes": ["lost"]})
    env = make(1, routes=routes, skip_bad=True)
    assert env.tokens == [good.id]
    assert "route lost" in env.skipped[0]
    (x, y), (x2, y2) = (good.points[k, :2] * [1.0, -1.0] for k in (0, 60))
    file = tmp_path / "routes.xml"
    file.write_text(XML.format(town="Town03", x=x, y=y, x2=x2, y2=y2))
    env = make(1, routes=file)
    assert env.tokens == ["7"]
    file.write_text(XML.format(town="Town99", x=x, y=y, x2=x2, y2=y2))
    with pytest.raises(SceneError, match="Town99"):
        make(1, routes=file)
    with pytest.raises(SceneError, match=r"no routes\n  left out: .*Town99"):
        make(1, routes=str(file), skip_bad=True)


def test_preparations_are_kept_for_the_routes_last_used() -> None:
    short, long = made()[0], replace(made()[1], points=made()[1].points * [1000.0, 1000.0, 1.0, 1.0])
    calls = []
    prepared = Prepared(lambda route: calls.append(route.id), least=1)
    assert long.length > KEPT_METRES
    for route in (short, short, made()[2], short, long, long, short):
        prepared(route)
    assert calls == [short.id, made()[2].id, long.id, short.id]


def test_routes_are_generated_from_a_seed() -> None:
    spec = RouteSpec(types=TYPES[:2], towns=("Town03",), count=3, seed=4)
    env = make(1, routes=spec)
    assert [route.theme for route in env.routes] == [TYPES[0], TYPES[1], TYPES[0]]
    assert env.tokens == make(1, routes=spec).tokens
    assert env.tokens != make(1, routes=replace(spec, seed=5)).tokens


def test_generated_routes_can_all_be_staged(monkeypatch: pytest.MonkeyPatch) -> None:
    """A draw that cannot be staged is replaced by another of its type."""
    spec = RouteSpec(types=TYPES[:2], towns=("Town03",), count=4, seed=4)
    tokens = make(1, routes=spec).tokens
    real = bench2drive.stage

    def fussy(route: Route, *args: Any, **options: Any) -> Any:
        if route.id in tokens[1:3]:
            raise SceneError("not here")
        return real(route, *args, **options)

    monkeypatch.setattr(bench2drive, "stage", fussy)
    env = make(1, routes=spec)
    assert [a == b for a, b in zip(env.tokens, tokens, strict=True)] == [True, False, False, True]
    assert [route.theme for route in env.routes] == [TYPES[0], TYPES[1], TYPES[0], TYPES[1]]
    monkeypatch.setattr(bench2drive, "stage", lambda *_, **__: fussy(replace(made()[0], id=tokens[1])))
    with pytest.raises(SceneError, match="not here"):
        make(1, routes=spec)
