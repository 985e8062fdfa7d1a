"""Held-out evaluation in closed loop: whole files of routes, by baselines and models, whatever the number of rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tabular import SPEEDS, Tabular

from vla_models.envs.bench2drive import Bench2DriveEnv
from vla_models.errors import ConfigError, PlanError, SceneError
from vla_models.interface import VLAPrediction
from vla_models.scenes.bench2drive.made_routes import generate_route
from vla_models.scenes.bench2drive.routes import Route
from vla_models.scoring.bench2drive import WORLD
from vla_models.scoring.bench2drive.results import summary
from vla_models.simulation.tables import E_X, TICK
from vla_models.simulation.world import World
from vla_models.training.evaluate_routes import ROUTE_BASELINES, ROUTE_SCORES, RouteEvaluation, evaluate_routes

TYPES = ("ParkingCutIn", "T_Junction", "PedestrianCrossing", "StaticCutIn", "PedestrianCrossing")


@lru_cache(maxsize=1)
def made() -> tuple[Route, ...]:
    return tuple(generate_route("Town03", kind, seed) for seed, kind in enumerate(TYPES))


def make(num_envs: int = 2, **options: Any) -> Bench2DriveEnv:
    return Bench2DriveEnv(num_envs, **{"routes": made(), "cameras": (), "max_ticks": 600, **options})


@lru_cache(maxsize=1)
def careful() -> RouteEvaluation:
    return evaluate_routes("rule_based", make(2))


class Follower(Tabular):
    """Drives towards the route as it observes it, at 6 m/s: a model whose plans differ from row to row."""

    def predict(self, inputs: Any, **kwargs: Any) -> VLAPrediction:
        assert kwargs == {"deterministic": True}
        self.calls.append(len(inputs))
        plans = np.zeros((len(inputs), 8, 3))
        for row, given in enumerate(inputs):
            line = np.vstack([np.zeros((1, 2)), given.route])
            at = 3.0 * np.arange(1, 9)
            plans[row, :, 0] = np.interp(at, 5.0 * np.arange(11), line[:, 0])
            plans[row, :, 1] = np.interp(at, 5.0 * np.arange(11), line[:, 1])
        return VLAPrediction(waypoints=plans)


def drives(speed: float, **options: Any) -> Tabular:
    model = Tabular(**options)
    with torch.no_grad():
        model.logits[SPEEDS.index(speed)] = 1.0
    return model


def same(one: RouteEvaluation, other: RouteEvaluation) -> bool:
    return (
        one.records == other.records
        and [route.id for route in one.routes] == [route.id for route in other.routes]
        and all(np.array_equal(a.log, b.log) for a, b in zip(one.episodes, other.episodes, strict=True))
        and np.array_equal(one.decisions, other.decisions)
        and all(np.array_equal(one.scores[name], other.scores[name], equal_nan=True) for name in ROUTE_SCORES)
    )


@pytest.mark.parametrize("num_envs", [1, 3, 7])
def test_every_route_is_driven_once_whatever_the_number_of_rows(num_envs: int) -> None:
    seen: list[tuple[int, int]] = []
    result = evaluate_routes("rule_based", make(num_envs), progress=lambda done, total: seen.append((done, total)))
    assert [route.id for route in result.routes] == [route.id for route in made()]
    assert [record["index"] for record in result.records] == list(range(5))
    assert seen == [(k + 1, 5) for k in range(5)]
    assert same(result, careful())


def test_rows_take_the_next_route_at_once() -> None:
    """Together, two rows need no more steps than their decisions, but for the last routes."""
    env, steps = make(2), 0
    step = env.step

    def counted(plans: Any) -> Any:
        nonlocal steps
        steps += 1
        return step(plans)

    env.step = counted  # type: ignore[method-assign]
    result = evaluate_routes("rule_based", env)
    assert steps < result.decisions.sum() / 2 + result.decisions.max()
    ticks = np.array([episode.ticks for episode in result.episodes])
    assert np.array_equal(result.decisions, np.ceil(ticks / env.ticks))


def test_numbers_are_those_of_the_records() -> None:
    result = careful()
    themes = [route.theme for route in made()]
    smooth = {record["save_name"]: value for record, value in zip(result.records, result.scores["smoothness"], strict=True)}
    whole = summary(result.records, made(), smooth)
    means = result.means()
    assert means["driving_score"] == pytest.approx(whole["driving_score"])
    assert means["success"] == pytest.approx(whole["success_rate"])
    assert means["efficiency"] == pytest.approx(whole["efficiency"])
    assert means["smoothness"] == pytest.approx(whole["smoothness"])
    table = result.scenarios()
    assert {name: row["routes"] for name, row in table.items()} == {name: float(themes.count(name)) for name in themes}
    walkers = [i for i, theme in enumerate(themes) if theme == "PedestrianCrossing"]
    assert table["PedestrianCrossing"]["driving_score"] == pytest.approx(result.scores["driving_score"][walkers].mean())
    assert result.abilities()["Traffic_Signs"] == whole["abilities"]["Traffic_Signs"]
    assert np.isfinite(result.abilities()["Traffic_Signs"])
    assert np.isnan(result.abilities()["Merging"])  # no route is about it


def test_a_careful_driver_is_better_than_those_who_do_not_look() -> None:
    blind = evaluate_routes("blind_follower", make())
    straight = evaluate_routes("constant_velocity", make(max_ticks=200))
    assert careful().means()["driving_score"] > blind.means()["driving_score"] + 10.0
    assert straight.means()["driving_score"] < 20.0
    assert {record["status"] for record in straight.records} == {"Failed - Agent timed out"}  # it stood where it began
    assert not np.isfinite(straight.scores["efficiency"]).any()
    assert "efficiency" not in straight.means()


def test_a_model_drives_by_what_it_observes_and_rows_do_not_mix() -> None:
    model = Follower()
    result = evaluate_routes(model, make(3))
    assert max(model.calls) == 3
    assert sum(model.calls) == result.decisions.sum()  # rows that are over are not asked
    assert result.means()["route_completion"] > 60.0
    assert result.invalid_answers.sum() == 0
    assert same(result, evaluate_routes(Follower(), make(1)))


def test_in_place_of_an_answer_that_is_no_plan_the_car_brakes_and_it_is_counted() -> None:
    routes = made()[:2]
    moving = drives(6.0)
    result = evaluate_routes(moving, make(2, routes=routes, max_ticks=100))
    assert all(episode.log[-1, 3] > 4.0 for episode in result.episodes)

    class Stutters(Tabular):
        """Six decisions at 6 m/s, then answers that are none, though they carry numbers."""

        def predict(self, inputs: Any, **kwargs: Any) -> VLAPrediction:
            self.calls.append(len(inputs))
            answer = moving.predict(inputs, **kwargs)
            answer.valid = np.full(len(inputs), len(self.calls) <= 6)
            return answer

    stopped = evaluate_routes(Stutters(), make(2, routes=routes, max_ticks=160))
    assert stopped.invalid_answers.tolist() == [10, 10]
    for episode in stopped.episodes:
        assert episode.log[59, 3] > 4.0
        assert episode.log[-1, 3] < 0.1
        assert episode.log[60 : 60 + round(1.0 / TICK), 11].max() == 1.0  # the brake
    assert np.allclose(stopped.scores["success"], 0.0)


@pytest.mark.parametrize("num_envs", [1, 2, 5])
def test_a_world_that_fails_is_left_out_and_named(num_envs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = made()[2].id
    advance: Callable[..., None] = World.step

    def broken(world: World, *args: Any, **kwargs: Any) -> None:
        advance(world, *args, **kwargs)
        for n, episode in enumerate(world.episodes):
            if episode.route_id == victim and world.ticks[n] == 60:
                world.tables.env[n, E_X] = np.nan

    monkeypatch.setattr(World, "step", broken)
    result = evaluate_routes("rule_based", make(num_envs))
    assert result.failed == (victim,)
    assert len(result) == 4
    kept = [0, 1, 3, 4]
    assert [route.id for route in result.routes] == [made()[i].id for i in kept]
    assert list(result.records) == [careful().records[i] for i in kept]
    assert all(np.isfinite(value) for value in result.means().values())
    with pytest.raises(SceneError, match="world of each of the 1 routes failed"):
        evaluate_routes("rule_based", make(1, routes=(made()[2],)))


def test_official_files_are_written(tmp_path: Path) -> None:
    path = careful().write(tmp_path / "out")
    data = json.loads(path.read_text())
    assert path.name == "results.json"
    assert data["world"] == WORLD
    assert not data["eligible"]
    assert data["_checkpoint"]["progress"] == [5, 5]
    for record, episode in zip(data["_checkpoint"]["records"], careful().episodes, strict=True):
        motion = json.loads((path.parent / record["save_name"] / "metric_info.json").read_text())
        assert len(motion) == episode.ticks


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no baseline 'rule_base'.*Did you mean 'rule_based'"):
        evaluate_routes("rule_base", make())
    with pytest.raises(PlanError, match=r"plan_dt=0\.5"):
        evaluate_routes(drives(3.0), make(plan_dt=0.25))
    with pytest.raises(PlanError, match="8 poses; expected 6"):
        evaluate_routes(drives(3.0), make(plan_steps=6))
    assert set(ROUTE_BASELINES) == {"constant_velocity", "blind_follower", "rule_based"}
