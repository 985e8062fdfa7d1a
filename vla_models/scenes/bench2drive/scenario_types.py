"""The scenario types of Bench2Drive and of the CARLA leaderboard 2.0, with the parameters that each one reads.

Source: the constructors under ``scenario_runner/srunner/scenarios`` of Bench2Drive 0.0.4 (``get_value_parameter``,
``get_interval_parameter`` and ``other_parameters[...]``) and their defaults. Values keep the file's units, which are the
classes' own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

Value = float | str | tuple[float, ...]
"""A number, a word, an interval (from, to), or a place (x, y, elevation) in our frame."""


@dataclass(frozen=True)
class Parameter:
    """How a parameter is written in the file and what it means."""

    kind: str
    """"number" (``value=``), "interval" (``from= to=``, or ``value=`` for both), "place" (``x= y= z=``) or "word"
    (``value=``)."""
    unit: str = ""
    words: tuple[str, ...] = ()
    """What a word may be; empty: anything."""
    least: float = -1e9
    most: float = 1e9


_SIDE: Final = ("left", "right", "opposite")

PARAMETERS: Final[dict[str, Parameter]] = {
    "distance": Parameter("number", "m", least=0.0),
    "speed": Parameter("number", "km/h", least=0.0),
    "flow_speed": Parameter("number", "m/s", least=0.0),
    "flow_distance": Parameter("number", "m", least=0.0),
    "bicycle_speed": Parameter("number", "km/h", least=0.0),
    "bicycle_drive_distance": Parameter("number", "m", least=0.0),
    "offset": Parameter("number", "m"),
    "crossing_angle": Parameter("number", "degrees", least=-90.0, most=90.0),
    "front_vehicle_distance": Parameter("number", "m", least=0.0),
    "behind_vehicle_distance": Parameter("number", "m", least=0.0),
    "frequency": Parameter("interval", "m between vehicles", least=0.0),
    "source_dist_interval": Parameter("interval", "m between vehicles", least=0.0),
    "start_actor_flow": Parameter("place"),
    "end_actor_flow": Parameter("place"),
    "other_actor_location": Parameter("place"),
    "end_location": Parameter("place"),
    "direction": Parameter("word", words=_SIDE),
    "blocker_model": Parameter("word"),
}
"""Every parameter of every type. Signs of ``crossing_angle`` and ``offset`` are relative to the ego's side, not to a frame."""

REQUIRED: Final = None
"""Stands for the default of a parameter that the official class cannot do without."""

_OBSTACLE: Final[dict[str, Value | None]] = {"distance": 120.0, "direction": "right", "speed": 60.0}
_CONSTRUCTION: Final[dict[str, Value | None]] = {**_OBSTACLE, "distance": 100.0}
_HAZARD: Final[dict[str, Value | None]] = {
    "distance": 100.0, "speed": 60.0, "bicycle_speed": 10.0, "bicycle_drive_distance": 50.0,
}  # fmt: skip
_TWO_WAYS: Final[dict[str, Value | None]] = {"frequency": (20.0, 100.0)}
_FLOW: Final[dict[str, Value | None]] = {
    "start_actor_flow": REQUIRED, "end_actor_flow": REQUIRED, "flow_speed": 10.0, "source_dist_interval": (20.0, 50.0),
}  # fmt: skip
_JUNCTION: Final[dict[str, Value | None]] = {"flow_speed": 20.0, "source_dist_interval": (25.0, 50.0)}
_CROSSING: Final[dict[str, Value | None]] = {"distance": 12.0, "direction": "right", "crossing_angle": 0.0}

SCENARIO_TYPES: Final[dict[str, dict[str, Value | None]]] = {
    "Accident": _OBSTACLE,
    "AccidentTwoWays": {**_OBSTACLE, **_TWO_WAYS},
    "BlockedIntersection": {},
    "ConstructionObstacle": _CONSTRUCTION,
    "ConstructionObstacleTwoWays": {**_CONSTRUCTION, **_TWO_WAYS},
    "ControlLoss": {},
    "CrossingBicycleFlow": {
        "start_actor_flow": REQUIRED, "flow_speed": 10.0, "source_dist_interval": (20.0, 50.0),
    },
    "DynamicObjectCrossing": {**_CROSSING, "blocker_model": "static.prop.vendingmachine"},
    "EnterActorFlow": _FLOW,
    "EnterActorFlowV2": _FLOW,
    "HardBreakRoute": {},
    "HazardAtSideLane": _HAZARD,
    "HazardAtSideLaneTwoWays": {**_HAZARD, "frequency": (100.0, 100.0)},
    "HighwayCutIn": {"other_actor_location": REQUIRED},
    "HighwayExit": _FLOW,
    "InterurbanActorFlow": _FLOW,
    "InterurbanAdvancedActorFlow": _FLOW,
    "InvadingTurn": {"distance": 100.0, "offset": 0.25},
    "MergerIntoSlowTraffic": _FLOW,
    "MergerIntoSlowTrafficV2": _FLOW,
    "NonSignalizedJunctionLeftTurn": _JUNCTION,
    "NonSignalizedJunctionLeftTurnEnterFlow": _JUNCTION,
    "NonSignalizedJunctionRightTurn": _JUNCTION,
    "OppositeVehicleRunningRedLight": {"direction": "right"},
    "OppositeVehicleTakingPriority": {"direction": "right"},
    "ParkedObstacle": _OBSTACLE,
    "ParkedObstacleTwoWays": {**_OBSTACLE, **_TWO_WAYS},
    "ParkingCrossingPedestrian": _CROSSING,
    "ParkingCutIn": {"direction": "right"},
    "ParkingExit": {
        "front_vehicle_distance": 20.0, "behind_vehicle_distance": 10.0, "flow_distance": 25.0, "speed": 60.0,
        "direction": "right",
    },
    "PedestrianCrossing": {},
    "PriorityAtJunction": {},
    "SequentialLaneChange": {},
    "SignalizedJunctionLeftTurn": _JUNCTION,
    "SignalizedJunctionLeftTurnEnterFlow": _JUNCTION,
    "SignalizedJunctionRightTurn": _JUNCTION,
    "StaticCutIn": {"distance": 100.0, "direction": "right"},
    "T_Junction": {},
    "VanillaNonSignalizedTurn": {},
    "VanillaNonSignalizedTurnEncounterStopsign": {},
    "VanillaSignalizedTurnEncounterGreenLight": {},
    "VanillaSignalizedTurnEncounterRedLight": {},
    "VehicleOpensDoorTwoWays": {"distance": 50.0, "direction": "right", "speed": 60.0, **_TWO_WAYS},
    "VehicleTurningRoute": {},
    "VehicleTurningRoutePedestrian": {},
    "YieldToEmergencyVehicle": {"distance": 140.0},
}  # fmt: skip
"""Type -> its parameters with their official defaults."""

LEADERBOARD_ONLY: Final = frozenset({"EnterActorFlowV2", "PriorityAtJunction"})
"""Types that the leaderboard's files have and Bench2Drive's 44 do not."""
BENCH2DRIVE_TYPES: Final = tuple(name for name in SCENARIO_TYPES if name not in LEADERBOARD_ONLY)
"""The 44 types of Bench2Drive, each on five of its 220 routes."""
