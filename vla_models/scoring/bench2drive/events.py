"""What the criteria report: kinds of events, and the official words for them.

Source: Bench2Drive 0.0.4, ``leaderboard/utils/statistics_manager.py`` (names, penalties) and
``srunner/scenariomanager/scenarioatomics/atomic_criteria.py`` (messages).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class Event(IntEnum):
    """Kinds of events."""

    COLLISION_STATIC = 0
    COLLISION_PEDESTRIAN = 1
    COLLISION_VEHICLE = 2
    TRAFFIC_LIGHT = 3
    STOP = 4
    MIN_SPEED = 5
    YIELD_TO_EMERGENCY = 6
    SCENARIO_TIMEOUT = 7
    OUTSIDE_ROUTE_LANES = 8
    ROUTE_DEVIATION = 9
    VEHICLE_BLOCKED = 10
    ROUTE_TIMEOUT = 11
    ROUTE_COMPLETED = 12


EVENT_COLUMNS: Final = ("tick", "kind", "value", "x", "y", "other")
"""Columns of an event table [K, 6]: x, y: where the ego was, our frame; ``value``: MIN_SPEED percentage, OUTSIDE_ROUTE_LANES
percentage; ``other``: id of the actor, light or sign, OUTSIDE_ROUTE_LANES metres, or -1."""
TICK, KIND, VALUE, PLACE_X, PLACE_Y, OTHER = range(6)

NAMES: Final = {
    Event.COLLISION_STATIC: "collisions_layout",
    Event.COLLISION_PEDESTRIAN: "collisions_pedestrian",
    Event.COLLISION_VEHICLE: "collisions_vehicle",
    Event.TRAFFIC_LIGHT: "red_light",
    Event.STOP: "stop_infraction",
    Event.OUTSIDE_ROUTE_LANES: "outside_route_lanes",
    Event.MIN_SPEED: "min_speed_infractions",
    Event.YIELD_TO_EMERGENCY: "yield_emergency_vehicle_infractions",
    Event.SCENARIO_TIMEOUT: "scenario_timeouts",
    Event.ROUTE_DEVIATION: "route_dev",
    Event.VEHICLE_BLOCKED: "vehicle_blocked",
    Event.ROUTE_TIMEOUT: "route_timeout",
}
"""Event -> its list under ``infractions`` in a route record, in the official order."""

PENALTIES: Final = {
    Event.COLLISION_PEDESTRIAN: 0.5,
    Event.COLLISION_VEHICLE: 0.6,
    Event.COLLISION_STATIC: 0.65,
    Event.TRAFFIC_LIGHT: 0.7,
    Event.STOP: 0.8,
    Event.SCENARIO_TIMEOUT: 0.7,
    Event.YIELD_TO_EMERGENCY: 0.7,
}
"""Factor of the score per event (``PENALTY_VALUE_DICT``). Driving outside the route's lanes costs its percentage; too slow
driving costs nothing."""

FAILURES: Final = {
    Event.ROUTE_DEVIATION: "Agent deviated from the route",
    Event.VEHICLE_BLOCKED: "Agent got blocked",
    Event.ROUTE_TIMEOUT: "Agent timed out",
}
"""Events that end a route, with what its status says."""
TICK_LIMIT_STATUS: Final = "TickRuntime"
"""What the status says where the limit of ticks ended a route."""
