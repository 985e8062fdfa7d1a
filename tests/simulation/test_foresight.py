"""What a driver expects of the others (simulation/foresight.py)."""

from __future__ import annotations

import numpy as np

from vla_models.scenes.bench2drive.made_routes import generate_route
from vla_models.simulation import tables as columns
from vla_models.simulation.baselines import rule_based
from vla_models.simulation.episodes import stage
from vla_models.simulation.foresight import NOWHERE, STEPS, expect
from vla_models.simulation.world import World


def test_every_pose_that_is_expected_is_written() -> None:
    """Whatever memory held before: also those of who is not there yet, leaves the road meanwhile, or comes later in a flow."""
    kinds = {"YieldToEmergencyVehicle": "Town05", "SignalizedJunctionLeftTurn": "Town03", "ControlLoss": "Town03"}
    world = World([stage(generate_route(town, kind, 2), 0, vehicles=10) for kind, town in kinds.items()])
    gone = left = newcomers = 0
    for _ in range(12):
        world.step(rule_based(world), ticks=10)
        t = world.tables
        for n, env in enumerate(t.env):
            awake, flows = int(env[columns.E_AWAKE]), int(env[columns.N_FLOWS])
            places = np.full((awake + flows, STEPS + 1, 3), np.nan)
            slots, speeds = np.zeros(awake + flows, dtype=np.int64), np.zeros(awake + flows)
            expect(
                env, t.actors[n], t.awake[n], t.flows[n], t.scenarios[n], t.points[n], t.path_offsets[n], places, slots, speeds
            )
            assert np.isfinite(places[1:]).all()
            nowhere = places[1:, :, 0] == NOWHERE
            gone += int(nowhere.all(axis=1).sum())
            left += int((nowhere[:, -1] & ~nowhere[:, 0]).sum())
            newcomers += flows
    assert min(gone, left, newcomers) > 0, "nobody was away, left or came: this proves nothing"
