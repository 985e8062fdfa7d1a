"""The world's criteria against the official ones, on the same drives (benchmarks/bench2drive_judges.py)."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from bench2drive_judges import DRIVERS, JUDGED, Verdicts, judge, table

from vla_models.scenes.bench2drive.made_routes import generate_route
from vla_models.scoring.bench2drive.events import Event

KINDS = ("VanillaSignalizedTurnEncounterRedLight", "VanillaNonSignalizedTurnEncounterStopsign", "ControlLoss", "ParkingExit")


@pytest.fixture(scope="module")
def verdicts() -> dict[str, Verdicts]:
    routes = [generate_route("Town05", kind, seed) for kind in KINDS for seed in range(2)]
    return {name: judge(DRIVERS[name], routes, 4000) for name in ("blind_follower", "swaying")}


@pytest.mark.slow
def test_who_keeps_to_the_route_runs_the_same_lights_and_signs(verdicts: dict[str, Verdicts]) -> None:
    found = dict(zip(JUDGED, verdicts["blind_follower"].events.sum(axis=0).tolist(), strict=True))
    for kind in (Event.TRAFFIC_LIGHT, Event.STOP):
        both, world_alone, official_alone = found[kind]
        assert both > 0, kind
        assert (world_alone, official_alone) == (0, 0), kind


@pytest.mark.slow
def test_completion_and_lanes_are_judged_alike(verdicts: dict[str, Verdicts]) -> None:
    for of in verdicts.values():
        completion, lanes, _ = np.abs(np.diff(of.numbers, axis=2))[:, :, 0].T
        assert completion.max() < 3.0, "two metres of 100"
        assert lanes.mean() < 3.0
    lanes = verdicts["swaying"].numbers[:, 1]
    assert lanes.mean() > 10.0, "there was something to judge"


def test_the_table_counts_what_both_found_and_what_one_alone() -> None:
    events = np.zeros((1, len(JUDGED), 3), dtype=np.int64)
    events[0, 0] = 2, 1, 0
    numbers = np.array([[[90.0, 88.5], [1.0, 1.0], [45.0, 44.0]]])
    lines = table({"somebody": Verdicts(events, numbers)}).splitlines()
    assert "| somebody | traffic light | 2 | 1 | 0 |" in lines
    assert "| somebody | route % | 90.00 | 88.50 | 1.50 | 1 of 1 |" in lines
    assert not any("stop" in line for line in lines)
