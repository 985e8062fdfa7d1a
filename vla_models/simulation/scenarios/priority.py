"""Vehicles that take the right of way (``opposite_vehicle_taking_priority.py``) or have it
(``yield_to_emergency_vehicle.py``)."""

from __future__ import annotations

import numpy as np

from vla_models.simulation.episodes import Script, Stage
from vla_models.simulation.scenarios.common import entries_from, junction_at, junction_script, through
from vla_models.simulation.tables import GREEN, FloatArray, Kind


def opposite_vehicle(stage: Stage, script: Script) -> None:
    """An emergency vehicle crosses the junction at 60 km/h when the ego is 2.2 s (or 12 m) from where they meet; at a
    junction with lights the ego's is green."""
    begin = stage.begin(script)
    first, out = stage.junction_after(begin)
    direction = str(script.parameters.get("direction", "right"))
    entry = entries_from(stage, first, direction)[0]
    path, _ = through(stage, entry, junction_at(stage, first), 0.0, 30.0, 10.0)
    place = _meeting_point(stage.route.points[first, :3], stage.roads.graph.center[stage.roads.graph.offsets[entry + 1] - 1])
    stage.add(
        Kind.AMBULANCE if stage.random(0.0, 1.0) < 0.5 else Kind.POLICE, path=path, speed_mode=1.0, target=60.0 / 3.6,
        start=1.0, start_x=float(place[0]), start_y=float(place[1]), start_distance=12.0, start_time=2.2, shown=1.0, at_end=1.0,
    )  # fmt: skip
    lights = junction_script(stage, first, {"ego": GREEN}, {"ego": GREEN}) if "RedLight" in script.type else ({}, {})
    stage.finish(begin, out + 10.0, quiet=30.0, script=lights)


def _meeting_point(one: FloatArray, two: FloatArray) -> FloatArray:
    """Where the straight continuations of two poses [3] meet (``get_geometric_linear_intersection``); halfway between them
    where they run parallel."""
    d = np.array([[np.cos(one[2]), -np.cos(two[2])], [np.sin(one[2]), -np.sin(two[2])]])
    if abs(np.linalg.det(d)) < 0.1:
        return 0.5 * (one[:2] + two[:2])
    along = np.linalg.solve(d, two[:2] - one[:2])
    place: FloatArray = one[:2] + along[0] * d[:, 0]
    return place


def emergency_vehicle(stage: Stage, script: Script) -> None:
    """An ambulance comes from behind, 25 km/h faster than the ego; 10 s after it came within 50 m it must have passed."""
    begin = stage.begin(script)
    behind = script.number("distance", 140.0)
    stage.add(
        Kind.AMBULANCE, path=stage.along(begin, 500.0, before=behind), speed_mode=2.0, target=25.0 / 3.6, accel=4.0, decel=6.0,
        headway=0.3, min_gap=1.5, sees=1.0, start=2.0, shown=1.0, emergency=1.0, leave_distance=50.0, leave_after=10.0,
        at_end=1.0,
    )  # fmt: skip
    stage.finish(begin, begin + 400.0, quiet=20.0)
