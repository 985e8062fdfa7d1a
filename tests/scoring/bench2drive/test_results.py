"""The official numbers of hand-made episodes, and the JSON that Bench2Drive's scripts read.

The functions ``their_*`` are the scripts' formulas in our words (Bench2Drive 0.0.4, ``tools/``); during development the scripts
themselves gave the same numbers for 220 random episodes.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_models.scenes.bench2drive.routes import Route, ScenarioSpec
from vla_models.scoring.bench2drive import WORLD, comfort
from vla_models.scoring.bench2drive.abilities import ABILITIES, abilities
from vla_models.scoring.bench2drive.events import Event
from vla_models.scoring.bench2drive.results import (
    checkpoint,
    episode_motion,
    episode_record,
    metric_info,
    route_record,
    summary,
    write_results,
)
from vla_models.scoring.bench2drive.score import score


def table(*rows: tuple[Event, float, float]) -> np.ndarray:
    """Events (kind, value, other) at (10, -20)."""
    return np.array([[5.0, kind, value, 10.0, -20.0, other] for kind, value, other in rows]).reshape(-1, 6)


def a_route(name: str, kind: str, junction_share: float = 0.5) -> Route:
    """A straight route of 100 m."""
    x = np.arange(101.0)
    zero = np.zeros(101)
    spec = ScenarioSpec(f"{kind}_1", kind, (5.0, 0.0, 0.0), {}, 5)
    return Route(
        id=name, town="Town05", points=np.column_stack([x, zero, zero, zero + 10.0]), lanes=zero.astype(int),
        option=zero.astype(int), elevation=zero, scenarios=(spec,), theme=kind, junction_share=junction_share,
    )  # fmt: skip


def test_the_penalties_are_the_official_ones() -> None:
    rows = [
        (Event.COLLISION_PEDESTRIAN, 0.5), (Event.COLLISION_VEHICLE, 0.6), (Event.COLLISION_STATIC, 0.65),
        (Event.TRAFFIC_LIGHT, 0.7), (Event.STOP, 0.8), (Event.SCENARIO_TIMEOUT, 0.7), (Event.YIELD_TO_EMERGENCY, 0.7),
        (Event.MIN_SPEED, 1.0), (Event.ROUTE_DEVIATION, 1.0), (Event.VEHICLE_BLOCKED, 1.0),
    ]  # fmt: skip
    for kind, factor in rows:
        assert score(table((kind, 30.0, 1.0)), 80.0).penalty == factor
    assert score(table((Event.OUTSIDE_ROUTE_LANES, 25.0, 12.5)), 100.0).driving_score == 75.0
    everything = score(table(*((kind, 0.0, 1.0) for kind, _ in rows)), 50.0)
    assert everything.penalty == round(0.5 * 0.6 * 0.65 * 0.7 * 0.8 * 0.7 * 0.7, 6)
    assert everything.driving_score == round(50.0 * 0.5 * 0.6 * 0.65 * 0.7 * 0.8 * 0.7 * 0.7, 6)


@pytest.mark.parametrize(
    ("rows", "completion", "limit", "status", "success"),
    [
        ([], 100.0, False, "Perfect", True),
        ([(Event.ROUTE_COMPLETED, 100.0, -1.0), (Event.MIN_SPEED, 40.0, -1.0)], 100.0, False, "Completed", True),
        ([(Event.STOP, 0.0, 3.0)], 100.0, False, "Completed", False),
        ([(Event.OUTSIDE_ROUTE_LANES, 1.0, 1.0)], 100.0, False, "Completed", False),
        ([], 99.9, False, "Failed", False),
        ([(Event.ROUTE_DEVIATION, 0.0, -1.0)], 30.0, False, "Failed - Agent deviated from the route", False),
        ([(Event.VEHICLE_BLOCKED, 0.0, -1.0)], 30.0, False, "Failed - Agent got blocked", False),
        ([(Event.ROUTE_TIMEOUT, 0.0, -1.0)], 30.0, False, "Failed - Agent timed out", False),
        ([], 30.0, True, "Failed - TickRuntime", False),
    ],
)
def test_status_and_success(
    rows: list[tuple[Event, float, float]], completion: float, limit: bool, status: str, success: bool
) -> None:
    result = score(table(*rows), completion, limit_reached=limit)
    assert (result.status, result.success) == (status, success)
    assert result.completion == completion


def test_messages_are_the_official_sentences_in_carlas_frame() -> None:
    rows = [
        (Event.COLLISION_VEHICLE, 8.0, 7.0), (Event.TRAFFIC_LIGHT, 0.0, 3.0), (Event.STOP, 0.0, 2.0),
        (Event.OUTSIDE_ROUTE_LANES, 12.3456, 9.87654), (Event.MIN_SPEED, 61.5, -1.0), (Event.ROUTE_DEVIATION, 0.0, -1.0),
    ]  # fmt: skip
    found = score(table(*rows), 50.0).infractions
    place = "at (x=10.0, y=20.0, z=0.0)"
    assert found["collisions_vehicle"] == [f"Agent collided against object with type=vehicle and id=7 {place}"]
    assert found["red_light"] == ["Agent ran a red light 3 at (x=10.0, y=20.0, z=0.0)"]
    assert found["stop_infraction"] == ["Agent ran a stop with id=2 at (x=10.0, y=20.0, z=0.0)"]
    outside = "Agent went outside its route lanes for about 9.877 meters (12.35% of the completed route)"
    assert found["outside_route_lanes"] == [outside]
    assert float(outside.split(" ")[8]) == 9.877  # how the official code finds the metres
    assert found["min_speed_infractions"] == ["Average speed is 61.5% of the surrounding traffic's one"]
    assert found["route_dev"] == [f"Agent deviated from the route {place}"]


def test_efficiency_leaves_out_what_is_not_plausible() -> None:
    rows = [(Event.MIN_SPEED, value, -1.0) for value in (50.0, 100.0, 1000.0, 1000.01, 3500.0)]
    assert score(table(*rows), 100.0).efficiency == pytest.approx(1150.0 / 3)
    assert np.isnan(score(table((Event.MIN_SPEED, 5000.0, -1.0)), 100.0).efficiency)
    assert np.isnan(score(table(), 100.0).efficiency)


def their_merge(data: list[dict[str, Any]]) -> tuple[float, float]:
    """``merge_route_json.py``: driving score and success rate, per 220 routes."""
    scores, good = [], 0
    for file in data:
        for record in file["_checkpoint"]["records"]:
            record.pop("index")
            scores.append(record["scores"]["score_composed"])
            if record["status"] in ("Completed", "Perfect"):
                good += all(not v or k == "min_speed_infractions" for k, v in record["infractions"].items())
    return sum(scores) / 220, good / 220


def their_efficiency(records: list[dict[str, Any]]) -> float:
    """``efficiency_smoothness_benchmark.py``: mean over the records that have any."""
    means = []
    for record in records:
        numbers = [re.search(r"\b\d+\.?\d*%", text) for text in record["infractions"]["min_speed_infractions"]]
        values = [float(n.group().rstrip("%")) for n in numbers if n is not None]
        if values:
            plausible = [v for v in values if v <= 1000]
            means.append(sum(plausible) / len(plausible))
    return sum(means) / len(means)


def some_records(seed: int, count: int) -> tuple[list[dict[str, Any]], list[Route]]:
    rng = np.random.default_rng(seed)
    kinds = sorted({kind for types in ABILITIES.values() for kind in types})
    records, routes = [], []
    for i in range(count):
        route = a_route(str(i), str(rng.choice(kinds)), float(rng.uniform(0.2, 0.8)))
        rows = [(Event(int(k)), float(round(rng.uniform(0, 40), 2)), 4.0) for k in rng.choice(13, rng.integers(0, 4)) if k != 5]
        rows += [(Event.MIN_SPEED, float(round(rng.gamma(2.0, 60.0), 2)), -1.0) for _ in range(rng.integers(1, 20))]
        done = 100.0 if rng.random() < 0.5 else float(round(rng.uniform(0.0, 99.0), 2))
        routes.append(route)
        records.append(route_record(route, score(table(*rows), done), 400, index=i))
    return records, routes


def test_the_scripts_formulas_give_our_numbers(tmp_path: Path) -> None:
    records, routes = some_records(0, 220)
    path = write_results(tmp_path, records)
    data = json.loads(path.read_text())
    ours = summary(records, routes)
    driving, success = their_merge([data])
    assert ours["driving_score"] == pytest.approx(driving, abs=1e-5)
    assert ours["success_rate"] == success
    assert ours["efficiency"] == pytest.approx(their_efficiency(records))
    assert ours["routes"] == 220


def test_the_file_has_the_official_structure_and_is_no_leaderboard_entry(tmp_path: Path) -> None:
    records, _ = some_records(1, 5)
    data = json.loads(write_results(tmp_path, records, {"a_route": metric_info(*motion(3))}).read_text())
    assert data["world"] == WORLD
    assert data["eligible"] is False
    assert list(data["_checkpoint"]) == ["global_record", "progress", "records"]
    assert data["_checkpoint"]["progress"] == [5, 5]
    record = data["_checkpoint"]["records"][2]
    assert record["route_id"] == "RouteScenario_2_rep0"
    assert record["save_name"].startswith("RouteScenario_2_rep0_Town05_")
    assert record["meta"] == {"route_length": 100.0, "duration_game": 20.0, "duration_system": 0.0}
    assert record["num_infractions"] == sum(len(v) for v in record["infractions"].values())
    assert set(record["scores"]) == {"score_route", "score_penalty", "score_composed"}
    overall = data["_checkpoint"]["global_record"]
    composed = [r["scores"]["score_composed"] for r in records]
    assert overall["scores_mean"]["score_composed"] == pytest.approx(np.mean(composed), abs=1e-6)
    assert overall["scores_std_dev"]["score_composed"] == pytest.approx(np.std(composed, ddof=1), abs=1e-3)
    km = sum(0.1 * r["scores"]["score_route"] / 100.0 for r in records)
    crashes = sum(len(r["infractions"]["collisions_vehicle"]) for r in records)
    assert overall["infractions"]["collisions_vehicle"] == round(crashes / km, 3)
    assert overall["status"] == ("Failed" if any("Failed" in r["status"] for r in records) else "Completed")
    assert len(data["values"]) == len(data["labels"]) == 15
    info = json.loads((tmp_path / "a_route" / "metric_info.json").read_text())
    assert list(info) == ["0", "1", "2"]
    assert set(info["0"]) == {
        "acceleration", "angular_velocity", "forward_vector", "right_vector", "location", "rotation",
    }  # fmt: skip


def test_an_episode_of_the_simulation_becomes_a_record() -> None:
    pose, along, across, turning = motion(60)
    log = np.column_stack([pose, np.full(60, 8.0), along, across, turning])
    events = table((Event.OUTSIDE_ROUTE_LANES, 20.0, -1.0), (Event.MIN_SPEED, 80.0, -1.0))
    episode = SimpleNamespace(ticks=60, completed=50.0, events=events, log=log)
    record = episode_record(a_route("3", "Accident"), episode, index=4)
    assert (record["status"], record["index"], record["meta"]["duration_game"]) == ("Failed", 4, 3.0)
    assert record["scores"] == {"score_route": 50.0, "score_penalty": 0.8, "score_composed": 40.0}
    assert "for about 10.0 meters (20.0%" in record["infractions"]["outside_route_lanes"][0]  # 20 % of half of 100 m
    assert events[0, 5] == -1.0  # the episode's own table stays
    assert episode_record(a_route("3", "Accident"), episode, index=0, tick_limit=60)["status"] == "Failed - TickRuntime"
    info, smooth = episode_motion(episode)
    assert info == metric_info(pose, along, across, turning)
    assert smooth == comfort.official(along, across, turning)


def test_no_record_is_no_number() -> None:
    empty = summary([], [])
    assert all(np.isnan(empty[key]) for key in ("driving_score", "success_rate", "efficiency", "smoothness"))
    assert checkpoint([])["_checkpoint"]["records"] == []


def test_abilities_count_successes_and_obeyed_signs() -> None:
    assert [len(types) for types in ABILITIES.values()] == [9, 16, 12, 2, 19]
    kind = "SignalizedJunctionLeftTurn"  # Merging and Traffic_Signs
    past, before = 60.0, 40.0  # percent; the junction is at 50
    cases = [
        (table(), 100.0, 1, 1),
        (table((Event.COLLISION_VEHICLE, 0.0, 1.0)), past, 0, 1),
        (table((Event.COLLISION_VEHICLE, 0.0, 1.0)), before, 0, 0),
        (table((Event.TRAFFIC_LIGHT, 0.0, 1.0)), past, 0, 0),
        (table((Event.STOP, 0.0, 1.0)), 100.0, 0, 0),
    ]
    for events, done, merging, signs in cases:
        route = a_route("7", kind)
        found = abilities([route_record(route, score(events, done), 10, index=0)], [route, a_route("8", "Accident")])
        assert (found["Merging"], found["Traffic_Signs"]) == (merging, signs)
        assert np.isnan(found["Overtaking"])  # route 8 has no record
        assert np.isnan(found["mean"])


def test_ids_may_have_underscores() -> None:
    """Those of generated routes of T_Junction do."""
    route = a_route("T_Junction-Town03-0", "T_Junction")
    found = abilities([route_record(route, score(table(), 100.0), 10, index=0)], [route])
    assert found["Traffic_Signs"] == 1.0


def motion(frames: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pose, accelerations and yaw rate of a wavy drive."""
    rng = np.random.default_rng(seed)
    t = 0.05 * np.arange(frames)
    pose = np.column_stack([8.0 * t, np.sin(t), 0.1 * np.cos(t)])
    wave = [
        rng.normal(0.0, size) * np.sin(rng.uniform(0.5, 3.0) * t) + rng.normal(0, 0.03, frames) for size in (2.0, 2.0, 0.02)
    ]
    return pose, *wave


def their_smoothness(info: dict[str, Any]) -> float:
    """``efficiency_smoothness_benchmark.py`` from a metric_info file, with a plain Savitzky-Golay filter of our own."""

    def smooth(values: np.ndarray, derivative: int = 0) -> np.ndarray:
        window = min(7, len(values))
        out = np.empty(len(values))
        for i in range(len(values)):
            first = int(np.clip(i - window // 2, 0, len(values) - window))
            _, slope, level = np.polyfit(np.arange(window) - (i - first), values[first : first + window], 2)
            out[i] = slope / 0.1 if derivative else level
        return out

    rows = list(info.values())
    size = len(rows) if len(rows) <= 20 else 20
    found = []
    for begin in range(0, len(rows) - size + 1, size):
        part = rows[begin : begin + size]
        acceleration, forward, right = (
            np.array([r[k][:2] for r in part]) for k in ("acceleration", "forward_vector", "right_vector")
        )
        turning = np.array([r["angular_velocity"][2] for r in part])
        turning = turning - 2 * np.pi * np.concatenate([[0.0], np.cumsum(np.round(np.diff(turning) / (2 * np.pi)))])
        rate = smooth(turning)
        along = smooth((acceleration * forward).sum(-1))
        across = smooth((acceleration * right).sum(-1))
        jerk = smooth(smooth(np.hypot(*acceleration.T)), 1)
        bounds = [(along, -4.05, 2.40), (across, -4.89, 4.89), (jerk, -8.37, 8.37), (smooth(along, 1), -4.13, 4.13)]
        bounds += [(rate, -1.93, 1.93), (rate, -0.95, 0.95)]
        found.append(all(bool(np.all((low < v) & (v < high))) for v, low, high in bounds))
    return sum(found) / len(found)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), frames=st.sampled_from([7, 15, 20, 21, 39, 60]))
def test_official_smoothness_is_the_scripts_with_its_quirks(seed: int, frames: int) -> None:
    pose, along, across, turning = motion(frames, seed)
    # acceleration and axes go through CARLA's frame and back
    assert comfort.official(along, across, turning) == pytest.approx(
        their_smoothness(metric_info(pose, along, across, turning))
    )


def test_each_second_is_unwrapped_by_itself() -> None:
    """A yaw rate that falls by more than pi degrees a second in a tick is a "turn" to the script, but only within its chunk."""
    still, pose = np.zeros(60), np.zeros((60, 3))
    turning = np.radians(np.concatenate([np.linspace(0.0, 6.0, 15), np.zeros(45)]))
    assert comfort.official(still, still, turning) == pytest.approx(2.0 / 3.0)
    assert their_smoothness(metric_info(pose, still, still, turning)) == pytest.approx(2.0 / 3.0)


def test_the_corrected_smoothness_is_another_number() -> None:
    still = np.zeros(100)
    turning = np.full(100, np.radians(20.0))  # 20 degrees a second: 0.35 rad/s, well within 0.95
    assert comfort.official(still, still, turning) == 0.0  # 20 > 0.95
    assert comfort.corrected(still, still, turning) == 1.0
    jerky = 0.9 * np.sin(2 * np.pi * np.arange(100) * 0.05 / 1.1)  # jerk up to 5.1 m/s3, half of it if frames were 0.1 s apart
    assert comfort.official(jerky, still, still) > comfort.corrected(jerky, still, still)
    assert np.isnan(comfort.official(still[:2], still[:2], still[:2]))
