"""Results in the official JSON form, so that Bench2Drive's own scripts read them; and our summary of them.

Source: Bench2Drive 0.0.4, ``leaderboard/utils/statistics_manager.py`` (``RouteRecord``, ``GlobalRecord``, ``Results``),
``leaderboard_evaluator.py`` (names), ``autoagents/autonomous_agent.py`` (``get_metric_info``). The files are for
``merge_route_json.py``, ``ability_benchmark.py`` and ``efficiency_smoothness_benchmark.py``. They are CARLA's: y and angles are
negated again as they are written. Every file says which world it comes from and is marked as not eligible for a leaderboard.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from vla_models.files import atomic_path
from vla_models.scenes.bench2drive.routes import Route
from vla_models.scenes.lanes import FloatArray
from vla_models.scoring.bench2drive import WORLD, comfort
from vla_models.scoring.bench2drive.abilities import abilities
from vla_models.scoring.bench2drive.criteria import TICK_LIMIT
from vla_models.scoring.bench2drive.events import KIND, NAMES, OTHER, VALUE, Event
from vla_models.scoring.bench2drive.kernels import TICK_SECONDS
from vla_models.scoring.bench2drive.score import DIGITS, SCORE_DIGITS, RouteScore, efficiency, is_success, score

Record = dict[str, Any]
"""A route record: one entry of ``_checkpoint.records``."""

_MEANS: Final = ("score_composed", "score_route", "score_penalty")
_LABELS: Final = (
    ("Avg. driving score", "score_composed"),
    ("Avg. route completion", "score_route"),
    ("Avg. infraction penalty", "score_penalty"),
    ("Collisions with pedestrians", "collisions_pedestrian"),
    ("Collisions with vehicles", "collisions_vehicle"),
    ("Collisions with layout", "collisions_layout"),
    ("Red lights infractions", "red_light"),
    ("Stop sign infractions", "stop_infraction"),
    ("Off-road infractions", "outside_route_lanes"),
    ("Route deviations", "route_dev"),
    ("Route timeouts", "route_timeout"),
    ("Agent blocked", "vehicle_blocked"),
    ("Yield emergency vehicles infractions", "yield_emergency_vehicle_infractions"),
    ("Scenario timeouts", "scenario_timeouts"),
    ("Min speed infractions", "min_speed_infractions"),
)
_OUTSIDE: Final = NAMES[Event.OUTSIDE_ROUTE_LANES]


def route_record(
    route: Route, numbers: RouteScore, ticks: int, *, index: int, repetition: int = 0, seconds: float = 0.0
) -> Record:
    """The official record of one episode of ``ticks`` ticks that took ``seconds`` of the machine's time."""
    name = f"RouteScenario_{route.id}_rep{repetition}"
    scenario = route.scenarios[0].name if route.scenarios else route.theme
    return {
        "index": index,
        "route_id": name,
        "scenario_name": scenario,
        "weather_id": None,
        "save_name": f"{name}_{route.town}_{scenario}",
        "town_name": route.town,
        "status": numbers.status,
        "num_infractions": sum(len(found) for found in numbers.infractions.values()),
        "infractions": {name: list(found) for name, found in numbers.infractions.items()},
        "scores": {
            "score_route": numbers.completion,
            "score_penalty": numbers.penalty,
            "score_composed": numbers.driving_score,
        },
        "meta": {
            "route_length": round(route.length, DIGITS),
            "duration_game": round(ticks * TICK_SECONDS, DIGITS),
            "duration_system": round(seconds, DIGITS),
        },
    }


class Episode(Protocol):
    """A driven episode as the simulation keeps it (``simulation.episodes.EpisodeRecord``)."""

    @property
    def ticks(self) -> int:
        """Ticks driven."""

    @property
    def completed(self) -> float:
        """Percent of the route."""

    @property
    def events(self) -> FloatArray:
        """[K, 6] ``events.EVENT_COLUMNS``."""

    @property
    def log(self) -> FloatArray:
        """[ticks, >= 7] x, y, heading of the box centre, speed, acceleration ahead and to the left, yaw rate."""


def episode_record(route: Route, episode: Episode, *, index: int, tick_limit: int = TICK_LIMIT) -> Record:
    """The official record of an ``Episode``; metres outside the lanes that it does not know are taken from their share."""
    events = episode.events.copy()
    unknown = (events[:, KIND] == Event.OUTSIDE_ROUTE_LANES) & (events[:, OTHER] < 0.0)
    events[unknown, OTHER] = events[unknown, VALUE] / 100.0 * episode.completed / 100.0 * route.length
    found = score(events, episode.completed, limit_reached=episode.ticks >= tick_limit)
    return route_record(route, found, episode.ticks, index=index)


def episode_motion(episode: Episode) -> tuple[dict[str, Any], float]:
    """What belongs into an ``Episode``'s ``metric_info.json``, and its official smoothness."""
    ahead, left, turning = episode.log[:, 4], episode.log[:, 5], episode.log[:, 6]
    return metric_info(episode.log[:, :3], ahead, left, turning), comfort.official(ahead, left, turning)


def checkpoint(records: Sequence[Record], sensors: Sequence[str] = ()) -> dict[str, Any]:
    """The official results file: the records with their means, deviations and infractions per kilometre."""
    means = {key: _mean(records, key) for key in _MEANS}
    spread = {key: _deviation(records, key, means[key]) for key in _MEANS}
    driven = sum(r["meta"]["route_length"] / 1000.0 * r["scores"]["score_route"] / 100.0 for r in records)
    infractions: dict[str, float] = {}
    for name in NAMES.values():
        if name == _OUTSIDE:  # kilometres, taken from the message
            infractions[name] = round(
                sum(float(r["infractions"][name][0].split(" ")[8]) for r in records if r["infractions"][name]) / 1000.0, DIGITS
            )
        else:
            infractions[name] = round(sum(len(r["infractions"][name]) for r in records) / max(driven, 0.001), DIGITS)
    results = ["Failed" if "Failed" in r["status"] else r["status"] for r in records]
    status = "Failed" if "Failed" in results else "Completed" if "Completed" in results else "Perfect"
    values = {**means, **infractions}
    return {
        "world": WORLD,
        "_checkpoint": {
            "global_record": {
                "index": -1,
                "route_id": -1,
                "status": status,
                "infractions": infractions,
                "scores_mean": means,
                "scores_std_dev": spread,
                "meta": {
                    "total_length": sum(r["meta"]["route_length"] for r in records),
                    "duration_game": sum(r["meta"]["duration_game"] for r in records),
                    "duration_system": sum(r["meta"]["duration_system"] for r in records),
                    "exceptions": [[r["route_id"], r["index"], r["status"]] for r in records if "Failed" in r["status"]],
                },
            },
            "progress": [len(records), len(records)],
            "records": list(records),
        },
        "entry_status": "Finished",
        "eligible": False,
        "sensors": list(sensors),
        "values": [str(values[key]) for _, key in _LABELS],
        "labels": [label for label, _ in _LABELS],
    }


def metric_info(pose: FloatArray, longitudinal: FloatArray, lateral: FloatArray, yaw_rate: FloatArray) -> dict[str, Any]:
    """What Bench2Drive's agents write to ``metric_info.json``: motion per tick, in CARLA's frame and degrees.

    ``pose`` [T, 3] of the box centre, accelerations [T] in the ego's axes (left positive), ``yaw_rate`` [T] rad/s.
    """
    x, y, heading = pose.T
    c, s = np.cos(heading), np.sin(heading)
    acceleration = np.column_stack([longitudinal * c - lateral * s, -(longitudinal * s + lateral * c)])
    zero = np.zeros(len(pose))
    columns = {
        "acceleration": np.column_stack([acceleration, zero]),
        "angular_velocity": np.column_stack([zero, zero, -np.degrees(yaw_rate)]),
        "forward_vector": np.column_stack([c, -s, zero]),
        "right_vector": np.column_stack([s, c, zero]),
        "location": np.column_stack([x, -y, zero]),
        "rotation": np.column_stack([zero, zero, -np.degrees(heading)]),
    }
    rows = {name: column.tolist() for name, column in columns.items()}
    return {str(t): {name: row[t] for name, row in rows.items()} for t in range(len(pose))}


def write_results(
    folder: str | Path, records: Sequence[Record], motion: Mapping[str, dict[str, Any]] | None = None, name: str = "results"
) -> Path:
    """Write ``folder/name.json`` (``checkpoint``) and, per record's ``save_name`` in ``motion``, its ``metric_info.json``."""
    path = Path(folder) / f"{name}.json"
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(checkpoint(records), indent=4))
    for save_name, info in (motion or {}).items():
        with atomic_path(Path(folder) / save_name / "metric_info.json") as temporary:
            temporary.write_text(json.dumps(info))
    return path


def summary(
    records: Sequence[Record], routes: Iterable[Route], smoothness: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Bench2Drive's numbers over the records: driving score, success rate, efficiency, smoothness, abilities.

    Means are over the records given (Bench2Drive's scripts divide by 220 whatever there is). ``smoothness`` maps a record's
    ``save_name`` to its share of smooth chunks. What nothing speaks of is NaN.
    """
    count = len(records)
    efficiencies = [e for r in records if math.isfinite(e := efficiency(r["infractions"]))]
    smooth = [v for v in (smoothness or {}).values() if math.isfinite(v)]
    nan = float("nan")
    return {
        "world": WORLD,
        "routes": count,
        "driving_score": _mean(records, "score_composed"),
        "success_rate": sum(is_success(r["status"], r["infractions"]) for r in records) / count if count else nan,
        "route_completion": _mean(records, "score_route"),
        "infraction_penalty": _mean(records, "score_penalty"),
        "efficiency": float(np.mean(efficiencies)) if efficiencies else nan,
        "smoothness": float(np.mean(smooth)) if smooth else nan,
        "abilities": abilities(records, routes),
    }


def _mean(records: Sequence[Record], key: str) -> float:
    if not records:
        return float("nan")
    return round(sum(float(r["scores"][key]) / len(records) for r in records), SCORE_DIGITS)


def _deviation(records: Sequence[Record], key: str, mean: float) -> float:
    """Standard deviation over routes, as the official code rounds it; 0 for one route."""
    if len(records) < 2:
        return 0.0
    squares = sum(float(r["scores"][key] - mean) ** 2 for r in records)
    return round(math.sqrt(squares / (len(records) - 1)), DIGITS)
