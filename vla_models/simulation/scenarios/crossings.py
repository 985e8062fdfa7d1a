"""Walkers and bicycles that cross before the ego (``object_crash_vehicle.py``, ``object_crash_intersection.py``,
``pedestrian_crossing.py``)."""

from __future__ import annotations

import math

from vla_models.simulation.episodes import SIZES, Script, Stage
from vla_models.simulation.roads import EDGE_LEFT, HALF_WIDTH, OPPOSITE, straight_path
from vla_models.simulation.scenarios.common import clamp, kerb_offset
from vla_models.simulation.tables import FloatArray, Kind


def _cross(
    stage: Stage, kind: Kind, pose: FloatArray, speed: float, distance: float, place: FloatArray, seconds: float, near: float,
    delay: float = 0.0,
) -> None:  # fmt: skip
    """An actor that crosses the road straight on from ``pose`` when the ego is ``seconds`` (or ``near`` m) from ``place``."""
    stage.add(
        kind, path=straight_path(pose, distance, speed), speed_mode=1.0, target=speed, start=1.0, start_x=float(place[0]),
        start_y=float(place[1]), start_distance=near, start_time=seconds, travel_limit=distance, at_end=1.0, shown=1.0,
        delay=delay,
    )  # fmt: skip


def dynamic_object(stage: Stage, script: Script) -> None:
    """A walker behind a blocker at the roadside crosses at 2 m/s when the ego is 2.1 s (or 6 m) away."""
    begin, side = stage.begin(script), script.side()
    angle = math.radians(script.number("crossing_angle", 0.0))
    s = clamp(stage, begin + script.number("distance", 12.0))
    model = str(script.parameters.get("blocker_model", "static.prop.vendingmachine"))
    vehicle = "vehicle" in model
    length, width = SIZES[Kind.CAR] if vehicle else (2.5, 1.2) if "container" in model else (1.2, 1.0)
    kind = Kind.CAR if vehicle else Kind.BARRIER
    offset = kerb_offset(stage, s, side, 0.4 + 0.5 * width)
    stage.add(kind, stage.route.pose(s, offset), length=length, width=width)
    at = clamp(stage, s + 0.5 * length + 0.9)
    pose = stage.route.pose(at, kerb_offset(stage, at, side, 1.2))
    pose[2] += -side * math.pi / 2.0 + side * angle
    distance = 2.0 * abs(kerb_offset(stage, at, side, 1.2))
    _cross(stage, Kind.WALKER, pose, 2.0, distance, stage.route.points[s], 2.1, 6.0)
    stage.finish(begin, s + 40.0, quiet=10.0)


def parking_pedestrian(stage: Stage, script: Script) -> None:
    """A walker steps out from behind a parked car at 2 m/s when the ego is 2.15 s (or 6 m) away."""
    begin, side = stage.begin(script), script.side()
    angle = math.radians(script.number("crossing_angle", 0.0))
    s = clamp(stage, begin + script.number("distance", 12.0))
    across = 2.0 * float(stage.route.points[s, HALF_WIDTH])
    length, width = SIZES[Kind.CAR]
    beside = max(across - 0.7, float(stage.route.points[s, HALF_WIDTH]) + 0.5 * width + 0.1)
    stage.add(Kind.CAR, stage.route.pose(s, side * beside))
    at = clamp(stage, s + 0.5 * length + 0.8)
    pose = stage.route.pose(at, side * across)
    pose[2] += -side * math.pi / 2.0 + side * angle
    _cross(stage, Kind.WALKER, pose, 2.0, 2.0 * across, stage.route.points[at], 2.15, 6.0)
    stage.finish(begin, s + 40.0, quiet=10.0)


def turning_bicycle(stage: Stage, script: Script) -> None:
    """Behind the junction a bicycle crosses from the right at 1.8 m/s when the ego is 1.8 s (or 6 m) away."""
    begin = stage.begin(script)
    _, out = stage.junction_after(begin)
    s = clamp(stage, out + 11.0)
    offset = kerb_offset(stage, s, -1.0, 1.5)
    pose = stage.route.pose(s, offset)
    pose[2] += math.pi / 2.0
    _cross(stage, Kind.BICYCLE, pose, 1.8, 2.0 * abs(offset), stage.route.points[s], 1.8, 6.0)
    stage.finish(begin, s + 40.0, quiet=10.0)


def turning_pedestrian(stage: Stage, script: Script) -> None:
    """Just behind the junction a walker crosses from the far side at 1.8 m/s when the ego is 2.2 s (or 6 m) away."""
    begin = stage.begin(script)
    first, out = stage.junction_after(begin)
    s = clamp(stage, out + 0.5)
    turned = float(stage.route.points[out, 2] - stage.route.points[first, 2])
    side = -1.0 if turned > 0.0 else 1.0  # a left turn meets him from the right
    points = stage.route.points[s]
    left = float(points[OPPOSITE] + points[HALF_WIDTH]) if points[OPPOSITE] > 0.0 else float(points[EDGE_LEFT])
    right = abs(kerb_offset(stage, s, -1.0, 1.5))
    pose = stage.route.pose(s, left + 1.5 if side > 0.0 else -right)
    pose[2] += -side * math.pi / 2.0
    _cross(stage, Kind.WALKER, pose, 1.8, left + 1.5 + right, points, 2.2, 6.0)
    stage.finish(begin, s + 40.0, quiet=10.0)


def pedestrians(stage: Stage, script: Script) -> None:
    """Three walkers cross just before the junction, at 1.3 to 2 m/s, when the ego is 3.5 s (or 12 m) away."""
    begin = stage.begin(script)
    first, _ = stage.junction_after(begin)
    s = max(first - 1, 0)
    for forward, outward in ((0.4, 1.5), (1.0, 2.5), (1.6, 0.5)):
        at = clamp(stage, s + forward)
        offset = kerb_offset(stage, s, -1.0, 1.5 + outward)
        pose = stage.route.pose(at, offset)
        pose[2] = stage.route.points[s, 2] + math.pi / 2.0
        speed, idle = stage.random(1.3, 2.0), stage.random(0.0, 1.5)
        _cross(stage, Kind.WALKER, pose, speed, 2.3 * abs(offset), stage.route.points[s], 3.5, 12.0, delay=idle)
    stage.finish(begin, s + 40.0, quiet=10.0)
