"""From an episode's events to the official numbers: completion, penalty, Driving Score, status, efficiency.

Source: Bench2Drive 0.0.4, ``leaderboard/utils/statistics_manager.py`` (``compute_route_statistics``) and ``tools/``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from vla_models.scenes.lanes import FloatArray
from vla_models.scoring.bench2drive.events import (
    FAILURES,
    KIND,
    NAMES,
    OTHER,
    PENALTIES,
    PLACE_X,
    PLACE_Y,
    TICK_LIMIT_STATUS,
    VALUE,
    Event,
)  # fmt: skip

DIGITS: Final = 3
SCORE_DIGITS: Final = 6
"""Decimals of lengths and of scores in a record."""
IMPLAUSIBLE: Final = 1000.0
"""Percent; faster checkpoints are left out of the efficiency."""


@dataclass(frozen=True)
class RouteScore:
    """The official numbers of one episode."""

    completion: float
    """Percent of the route."""
    penalty: float
    """Product of the penalties, 0..1."""
    driving_score: float
    """completion times penalty, 0..100."""
    status: str
    """"Perfect", "Completed", or "Failed" with the reason."""
    infractions: Mapping[str, list[str]]
    """Official name -> messages."""

    @property
    def success(self) -> bool:
        """Completed without any infraction but too slow driving (``merge_route_json.py``)."""
        return is_success(self.status, self.infractions)

    @property
    def efficiency(self) -> float:
        """Mean of the speed checkpoints, percent of the traffic's speed; NaN where there is none below 1000 %."""
        return efficiency(self.infractions)


def score(events: FloatArray, completion: float, *, limit_reached: bool = False) -> RouteScore:
    """The numbers of an episode with ``events`` [K, 6] (``events.EVENT_COLUMNS``) and ``completion`` percent of its route.

    ``limit_reached``: the evaluator gave up after its limit of ticks. A failure that an event names goes before it.
    """
    infractions: dict[str, list[str]] = {name: [] for name in NAMES.values()}
    penalty = 1.0
    failure = TICK_LIMIT_STATUS if limit_reached else ""
    for row in events:
        kind = Event(int(row[KIND]))
        if kind == Event.ROUTE_COMPLETED:
            continue
        infractions[NAMES[kind]].append(_message(kind, row))
        failure = FAILURES.get(kind, failure)
        if kind == Event.OUTSIDE_ROUTE_LANES:
            penalty *= 1.0 - row[VALUE] / 100.0
        else:
            penalty *= PENALTIES.get(kind, 1.0)
    found = sum(len(messages) for messages in infractions.values())
    status = f"Failed - {failure}" if failure else "Failed"
    if completion >= 100.0:
        status = "Completed" if found else "Perfect"
    return RouteScore(
        completion=round(float(completion), SCORE_DIGITS),
        penalty=round(float(penalty), SCORE_DIGITS),
        driving_score=round(max(float(completion * penalty), 0.0), SCORE_DIGITS),
        status=status,
        infractions=infractions,
    )


def is_success(status: str, infractions: Mapping[str, Any]) -> bool:
    """Bench2Drive's success of a route record."""
    slow = NAMES[Event.MIN_SPEED]
    return status in ("Completed", "Perfect") and not any(found for name, found in infractions.items() if name != slow)


def efficiency(infractions: Mapping[str, list[str]]) -> float:
    """Driving efficiency of a route record's messages, percent, or NaN (``efficiency_smoothness_benchmark.py``)."""
    values = [float(message.split("%")[0].split()[-1]) for message in infractions[NAMES[Event.MIN_SPEED]]]
    plausible = [value for value in values if value <= IMPLAUSIBLE]
    return float(np.mean(plausible)) if plausible else float("nan")


def _message(kind: Event, row: FloatArray) -> str:
    """The official sentence. Places are CARLA's (y negated) and have no height."""
    place = f"(x={round(float(row[PLACE_X]), DIGITS)}, y={round(-float(row[PLACE_Y]), DIGITS)}, z=0.0)"
    other, value = int(row[OTHER]), float(row[VALUE])
    match kind:
        case Event.COLLISION_STATIC | Event.COLLISION_PEDESTRIAN | Event.COLLISION_VEHICLE:
            thing = ("static.prop", "walker.pedestrian", "vehicle")[kind]
            return f"Agent collided against object with type={thing} and id={other} at {place}"
        case Event.TRAFFIC_LIGHT:
            return f"Agent ran a red light {other} at {place}"
        case Event.STOP:
            return f"Agent ran a stop with id={other} at {place}"
        case Event.OUTSIDE_ROUTE_LANES:
            metres, share = round(float(row[OTHER]), DIGITS), round(value, 2)
            return f"Agent went outside its route lanes for about {metres} meters ({share}% of the completed route)"
        case Event.MIN_SPEED:
            return f"Average speed is {value}% of the surrounding traffic's one"
        case Event.YIELD_TO_EMERGENCY:
            return "Agent failed to yield to an emergency vehicle"
        case Event.SCENARIO_TIMEOUT:
            return "Agent timed out a scenario"
        case Event.ROUTE_DEVIATION:
            return f"Agent deviated from the route at {place}"
        case Event.VEHICLE_BLOCKED:
            return f"Agent got blocked at {place}"
        case _:
            return "Route timeout."
