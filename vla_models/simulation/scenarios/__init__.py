"""The scenario types of Bench2Drive: each a function that puts its actors on a stage.

``docs/bench2drive.md`` says for each whether it is as the original or how it is approximated. Constants are those of
scenario_runner's classes of the same names (``srunner/scenarios``, as Bench2Drive ships them).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vla_models.errors import SceneError, did_you_mean
from vla_models.simulation.episodes import Script, Stage
from vla_models.simulation.scenarios import (
    crossings,
    cut_ins,
    flows,
    hazards,
    junctions,
    merging,
    obstacles,
    parking,
    priority,
    vehicles,
)

TYPES: Final[dict[str, Callable[[Stage, Script], None]]] = {
    "Accident": obstacles.accident,
    "AccidentTwoWays": obstacles.accident,
    "BlockedIntersection": junctions.blocked_intersection,
    "ConstructionObstacle": obstacles.construction,
    "ConstructionObstacleTwoWays": obstacles.construction,
    "ControlLoss": hazards.control_loss,
    "CrossingBicycleFlow": flows.crossing_bicycles,
    "DynamicObjectCrossing": crossings.dynamic_object,
    "EnterActorFlow": merging.enter_flow,
    "EnterActorFlowV2": merging.enter_flow,
    "HardBreakRoute": vehicles.hard_break,
    "HazardAtSideLane": hazards.side_lane,
    "HazardAtSideLaneTwoWays": hazards.side_lane,
    "HighwayCutIn": cut_ins.highway,
    "HighwayExit": merging.highway_exit,
    "InterurbanActorFlow": merging.interurban,
    "InterurbanAdvancedActorFlow": merging.interurban_advanced,
    "InvadingTurn": vehicles.invading_turn,
    "MergerIntoSlowTraffic": merging.enter_flow,
    "MergerIntoSlowTrafficV2": merging.enter_flow,
    "NonSignalizedJunctionLeftTurn": flows.left_turn,
    "NonSignalizedJunctionLeftTurnEnterFlow": flows.left_turn_enter,
    "NonSignalizedJunctionRightTurn": flows.right_turn,
    "OppositeVehicleRunningRedLight": priority.opposite_vehicle,
    "OppositeVehicleTakingPriority": priority.opposite_vehicle,
    "ParkedObstacle": obstacles.parked,
    "ParkedObstacleTwoWays": obstacles.parked,
    "ParkingCrossingPedestrian": crossings.parking_pedestrian,
    "ParkingCutIn": cut_ins.parking,
    "ParkingExit": parking.parking_exit,
    "PedestrianCrossing": crossings.pedestrians,
    "PriorityAtJunction": junctions.priority_at_junction,
    "SequentialLaneChange": junctions.plain,
    "SignalizedJunctionLeftTurn": flows.left_turn,
    "SignalizedJunctionLeftTurnEnterFlow": flows.left_turn_enter,
    "SignalizedJunctionRightTurn": flows.right_turn,
    "StaticCutIn": cut_ins.static,
    "T_Junction": junctions.plain,
    "VanillaNonSignalizedTurn": junctions.vanilla,
    "VanillaNonSignalizedTurnEncounterStopsign": junctions.vanilla,
    "VanillaSignalizedTurnEncounterGreenLight": junctions.vanilla,
    "VanillaSignalizedTurnEncounterRedLight": junctions.vanilla,
    "VehicleOpensDoorTwoWays": obstacles.door,
    "VehicleTurningRoute": crossings.turning_bicycle,
    "VehicleTurningRoutePedestrian": crossings.turning_pedestrian,
    "YieldToEmergencyVehicle": priority.emergency_vehicle,
}
"""Type -> what stages it: Bench2Drive's 44 and the two more that leaderboard 2.0's files have."""


def stage_scenario(stage: Stage, script: Script) -> None:
    """Stage one scenario. Raises ``SceneError`` for an unknown type, a bad parameter, or a road without the place it needs."""
    play = TYPES.get(script.type)
    if play is None:
        raise SceneError(f"unknown scenario type {script.type!r}; {did_you_mean(script.type, TYPES)}")
    before = len(stage.actors), len(stage.flows), len(stage.paths), len(stage.slippery)
    try:
        play(stage, script)
    except SceneError:
        del stage.actors[before[0] :], stage.flows[before[1] :], stage.paths[before[2] :], stage.slippery[before[3] :]
        raise
