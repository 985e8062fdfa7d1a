"""A made route of each scenario type: the place it needs, whom the ego meets there, and ranges of parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Recipe:
    """Where a type's routes lie."""

    place: str
    """"stretch" (away from junctions) or the way through a junction: "left", "right", "straight", "turn", "any"."""
    needs: str = ""
    """Of a stretch: "beside" (a lane to the left), "oncoming" (only the oncoming lane), "parking", "two" (two lanes), "three"
    (lanes). Of a junction: "signal", "free" (no light), "stop" (a stop sign)."""
    other: str = ""
    """Whom the ego meets: "cross" (a lane that crosses its way), "merge" (one that ends where its way ends), "beside" (the next
    lane)."""


RECIPES: Final = {
    "Accident": Recipe("stretch", "beside"),
    "AccidentTwoWays": Recipe("stretch", "oncoming"),
    "BlockedIntersection": Recipe("turn"),
    "ConstructionObstacle": Recipe("stretch", "beside"),
    "ConstructionObstacleTwoWays": Recipe("stretch", "oncoming"),
    "ControlLoss": Recipe("stretch"),
    "CrossingBicycleFlow": Recipe("right", other="cross"),
    "DynamicObjectCrossing": Recipe("stretch"),
    "EnterActorFlow": Recipe("right", other="merge"),
    "EnterActorFlowV2": Recipe("turn", other="merge"),
    "HardBreakRoute": Recipe("stretch"),
    "HazardAtSideLane": Recipe("stretch", "beside"),
    "HazardAtSideLaneTwoWays": Recipe("stretch", "oncoming"),
    "HighwayCutIn": Recipe("any", other="merge"),
    "HighwayExit": Recipe("stretch", "two", other="beside"),
    "InterurbanActorFlow": Recipe("left", "free", other="cross"),
    "InterurbanAdvancedActorFlow": Recipe("left", other="merge"),
    "InvadingTurn": Recipe("stretch", "oncoming"),
    "MergerIntoSlowTraffic": Recipe("any", other="merge"),
    "MergerIntoSlowTrafficV2": Recipe("any", other="merge"),
    "NonSignalizedJunctionLeftTurn": Recipe("left", "free"),
    "NonSignalizedJunctionLeftTurnEnterFlow": Recipe("left", "free"),
    "NonSignalizedJunctionRightTurn": Recipe("right", "free"),
    "OppositeVehicleRunningRedLight": Recipe("straight", "signal"),
    "OppositeVehicleTakingPriority": Recipe("straight", "free"),
    "ParkedObstacle": Recipe("stretch", "beside"),
    "ParkedObstacleTwoWays": Recipe("stretch", "oncoming"),
    "ParkingCrossingPedestrian": Recipe("stretch", "parking"),
    "ParkingCutIn": Recipe("stretch", "parking"),
    "ParkingExit": Recipe("stretch", "parking"),
    "PedestrianCrossing": Recipe("any"),
    "PriorityAtJunction": Recipe("any", "signal"),
    "SequentialLaneChange": Recipe("stretch", "three"),
    "SignalizedJunctionLeftTurn": Recipe("left", "signal"),
    "SignalizedJunctionLeftTurnEnterFlow": Recipe("left", "signal"),
    "SignalizedJunctionRightTurn": Recipe("right", "signal"),
    "StaticCutIn": Recipe("stretch", "two"),
    "T_Junction": Recipe("turn"),
    "VanillaNonSignalizedTurn": Recipe("turn", "free"),
    "VanillaNonSignalizedTurnEncounterStopsign": Recipe("any", "stop"),
    "VanillaSignalizedTurnEncounterGreenLight": Recipe("turn", "signal"),
    "VanillaSignalizedTurnEncounterRedLight": Recipe("turn", "signal"),
    "VehicleOpensDoorTwoWays": Recipe("stretch", "oncoming"),
    "VehicleTurningRoute": Recipe("turn"),
    "VehicleTurningRoutePedestrian": Recipe("turn"),
    "YieldToEmergencyVehicle": Recipe("stretch", "two"),
}

RANGES: Final[dict[str, tuple[float, float]]] = {
    "distance": (40.0, 50.0), "speed": (40.0, 60.0), "flow_speed": (8.0, 14.0), "bicycle_speed": (6.0, 12.0),
    "bicycle_drive_distance": (40.0, 100.0), "offset": (0.15, 0.35), "crossing_angle": (0.0, 11.0),
}  # fmt: skip
INTERVALS: Final[dict[str, tuple[tuple[float, float], tuple[float, float]]]] = {
    "frequency": ((30.0, 66.0), (85.0, 200.0)), "source_dist_interval": ((15.0, 25.0), (26.0, 40.0)),
}  # fmt: skip
"""Ranges of Bench2Drive's own 220 routes; whole numbers are drawn, but for the offset."""
