"""Routes from a seed."""

from __future__ import annotations

import numpy as np
import pytest

from vla_models.errors import SceneError
from vla_models.scenes.bench2drive.made_routes import generate_route, generate_routes
from vla_models.scenes.bench2drive.recipes import RECIPES
from vla_models.scenes.bench2drive.routes import Route, off_route
from vla_models.scenes.bench2drive.scenario_types import BENCH2DRIVE_TYPES, PARAMETERS, SCENARIO_TYPES
from vla_models.scenes.lanes import SIDES
from vla_models.scenes.towns import load_town


def test_there_are_44_types_and_each_has_a_recipe() -> None:
    assert len(BENCH2DRIVE_TYPES) == 44
    assert RECIPES.keys() == SCENARIO_TYPES.keys()
    assert {name for known in SCENARIO_TYPES.values() for name in known} <= PARAMETERS.keys()


@pytest.mark.parametrize("kind", sorted(SCENARIO_TYPES))
def test_every_type_has_routes_and_its_trigger_lies_on_them(kind: str) -> None:
    (route,) = generate_routes([kind], 1, seed=3, towns=["Town05", "Town03"])
    assert route.theme == kind
    step = np.hypot(*np.diff(route.points[:, :2], axis=0).T)
    assert 0.5 < np.median(step) <= step.max() < 1.6
    assert 100.0 < route.length < 260.0
    (spec,) = route.scenarios
    assert spec.type == kind
    assert off_route((*spec.trigger, 0.0), route.points, np.zeros(len(route.points))) is None
    assert SCENARIO_TYPES[kind].keys() <= spec.parameters.keys()
    assert route.arc[-1] - route.arc[spec.at] > 60.0


def where(kind: str, town: str = "Town05") -> tuple[Route, int]:
    """A route and the lane under its trigger."""
    route = generate_route(town, kind, 5)
    return route, int(route.lanes[route.scenarios[0].at])


def test_places_suit_their_types() -> None:
    town = load_town("Town05")
    assert town.opposite_lane[where("AccidentTwoWays")[1]] >= 0
    assert town.left_change[where("Accident")[1]]
    assert town.right_side[where("ParkingCutIn")[1]] == SIDES.index("parking")
    for kind, turn in (
        ("SignalizedJunctionLeftTurn", 1),
        ("SignalizedJunctionRightTurn", 2),
        ("OppositeVehicleRunningRedLight", 3),
    ):
        route, _ = where(kind)
        inside = town.junction[route.lanes] >= 0
        assert inside.any()
        lights = np.isin(route.lanes[inside], town.light_lanes)
        assert route.option[inside][lights][0] == turn
    route, _ = where("VanillaNonSignalizedTurnEncounterStopsign")
    assert np.isin(route.lanes, town.stop_lanes).any()
    route, _ = where("EnterActorFlow")
    flow = route.scenarios[0].parameters
    end = np.array(flow["end_actor_flow"][:2])  # type: ignore[index]
    assert np.hypot(*(route.points[:, :2] - end).T).min() < 1.0  # the flow goes where the ego goes


def test_a_seed_is_a_route() -> None:
    once, again, other = (generate_route("Town05", "ControlLoss", seed) for seed in (1, 1, 2))
    assert np.array_equal(once.points, again.points)
    assert once.scenarios == again.scenarios
    assert once.points.shape != other.points.shape or not np.allclose(once.points, other.points)
    kinds = ["Accident", "ParkedObstacleTwoWays", "VehicleTurningRoute"]
    made = generate_routes(kinds, 7, seed=1, towns=["Town05"])
    assert [r.theme for r in made] == [kinds[i % 3] for i in range(7)]
    assert len({r.id for r in made}) == 7


def test_what_cannot_be_made() -> None:
    with pytest.raises(SceneError, match=r"no scenario type 'Acident'.*Did you mean 'Accident'"):
        generate_route("Town05", "Acident", 0)
    with pytest.raises(SceneError, match=r"no scenario type 'Acident'"):
        generate_routes(["Acident"], 1, 0)
    with pytest.raises(SceneError, match="Town01 has no place for a Accident route"):
        generate_route("Town01", "Accident", 0)
    with pytest.raises(SceneError, match="none of Town01, Town02 has a place for a Accident route"):
        generate_routes(["Accident"], 1, 0, towns=["Town01", "Town02"])
    with pytest.raises(SceneError, match="no town 'Town99'"):
        generate_route("Town99", "Accident", 0)
