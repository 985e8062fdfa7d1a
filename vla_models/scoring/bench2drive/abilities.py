"""The five abilities of Bench2Drive: in how many of an ability's scenarios an agent succeeds.

Source: Bench2Drive 0.0.4, ``tools/ability_benchmark.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np

from vla_models.scenes.bench2drive.routes import Route
from vla_models.scoring.bench2drive.score import is_success

ABILITIES: Final[dict[str, frozenset[str]]] = {
    "Overtaking": frozenset({
        "Accident", "AccidentTwoWays", "ConstructionObstacle", "ConstructionObstacleTwoWays", "HazardAtSideLane",
        "HazardAtSideLaneTwoWays", "ParkedObstacle", "ParkedObstacleTwoWays", "VehicleOpensDoorTwoWays",
    }),
    "Merging": frozenset({
        "CrossingBicycleFlow", "EnterActorFlow", "HighwayCutIn", "HighwayExit", "InterurbanActorFlow",
        "InterurbanAdvancedActorFlow", "MergerIntoSlowTraffic", "MergerIntoSlowTrafficV2", "NonSignalizedJunctionLeftTurn",
        "NonSignalizedJunctionLeftTurnEnterFlow", "NonSignalizedJunctionRightTurn", "ParkingExit", "SequentialLaneChange",
        "SignalizedJunctionLeftTurn", "SignalizedJunctionLeftTurnEnterFlow", "SignalizedJunctionRightTurn",
    }),
    "Emergency_Brake": frozenset({
        "BlockedIntersection", "ControlLoss", "DynamicObjectCrossing", "HardBreakRoute", "OppositeVehicleRunningRedLight",
        "OppositeVehicleTakingPriority", "ParkingCrossingPedestrian", "ParkingCutIn", "PedestrianCrossing", "StaticCutIn",
        "VehicleTurningRoute", "VehicleTurningRoutePedestrian",
    }),
    "Give_Way": frozenset({"InvadingTurn", "YieldToEmergencyVehicle"}),
    "Traffic_Signs": frozenset({
        "BlockedIntersection", "CrossingBicycleFlow", "EnterActorFlow", "NonSignalizedJunctionLeftTurn",
        "NonSignalizedJunctionLeftTurnEnterFlow", "NonSignalizedJunctionRightTurn", "OppositeVehicleRunningRedLight",
        "OppositeVehicleTakingPriority", "PedestrianCrossing", "SignalizedJunctionLeftTurn",
        "SignalizedJunctionLeftTurnEnterFlow", "SignalizedJunctionRightTurn", "T_Junction", "VanillaNonSignalizedTurn",
        "VanillaNonSignalizedTurnEncounterStopsign", "VanillaSignalizedTurnEncounterGreenLight",
        "VanillaSignalizedTurnEncounterRedLight", "VehicleTurningRoute", "VehicleTurningRoutePedestrian",
    }),
}  # fmt: skip
"""Ability -> scenario types. A type may belong to several."""

SIGNS: Final = "Traffic_Signs"


def abilities(records: Iterable[Mapping[str, Any]], routes: Iterable[Route]) -> dict[str, float]:
    """Share of successes per ability and their ``mean``, 0..1; NaN for an ability that no record speaks of (officially an
    error).

    A failed route still counts for ``Traffic_Signs`` if the agent came eight points past the route's first junction without
    running a red light or a stop sign. Routes without a record are left out, as officially.
    """
    by_route = {str(record["route_id"]).removeprefix("RouteScenario_").rpartition("_rep")[0]: record for record in records}
    tally = {name: [0, 0] for name in ABILITIES}
    for route in routes:
        record = by_route.get(route.id)
        if record is None:
            continue
        success = is_success(record["status"], record["infractions"])
        for name, types in ABILITIES.items():
            if route.theme not in types:
                continue
            passed = success or (name == SIGNS and _obeyed(record, route))
            tally[name][0] += int(passed)
            tally[name][1] += 1
    shares = {name: passed / total if total else float("nan") for name, (passed, total) in tally.items()}
    return shares | {"mean": float(np.mean(list(shares.values())))}


def _obeyed(record: Mapping[str, Any], route: Route) -> bool:
    """Whether a failed episode got past the first junction without breaking its rules."""
    broken = record["infractions"]["stop_infraction"] or record["infractions"]["red_light"]
    return not broken and record["scores"]["score_route"] / 100.0 > route.junction_share
