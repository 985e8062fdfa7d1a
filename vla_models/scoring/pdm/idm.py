"""PDM-Closed's proposals: five intelligent-driver policies on each of its paths, unrolled together.

A policy follows a path at a fraction of the speed limit and keeps its distance from whatever stands in the corridor ahead.
``unroll`` reproduces the official generator with its habits, which the results depend on:

* the leading object is looked up on even steps only; at step 1 it is still all zeros, so every proposal brakes once;
* within a path the record of the leading object is shared from policy to policy: what one leaves (its speed, the rear length
  of a free road) stays for the next, unless that one overwrites it;
* "ahead" means that the projection of the object's centre on the path is beyond the ego's, while the gap is the Euclidean
  distance of the two shapes.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from vla_models.geometry import FloatArray, box_corners, project
from vla_models.kernels import numba
from vla_models.scenes.scene import DT
from vla_models.scoring.pdm.clearance import box_gap, gap
from vla_models.scoring.pdm.paths import corridor_blocks, corridor_ends, corridor_line, in_corridor, pose_at
from vla_models.scoring.pdm.track import LENGTH, REAR_AXLE_TO_CENTER, WIDTH

SPEED_FRACTIONS: Final = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Target speeds of the policies as fractions of the speed limit."""
MIN_GAP: Final = 1.0
"""Standstill distance to the leading object (m)."""
HEADWAY: Final = 1.5
"""Time headway (s)."""
ACCEL_MAX: Final = 1.5
"""Largest acceleration (m/s²)."""
DECEL_MAX: Final = 3.0
"""Largest deceleration (m/s²)."""
EXPONENT: Final = 10
"""Exponent of the free-road term."""
LEAD_STRIDE: Final = 2
"""Steps between two look-ups of the leading object."""


@numba.njit(cache=True)
def idm_acceleration(speed: float, gap_to_lead: float, lead_speed: float, target: float) -> float:
    """Acceleration (m/s²) of the intelligent driver model, clipped to [-DECEL_MAX, ACCEL_MAX]; ``gap_to_lead`` in metres."""
    wanted = MIN_GAP + speed * HEADWAY + speed * (speed - lead_speed) / (2.0 * np.sqrt(ACCEL_MAX * DECEL_MAX))
    ratio = wanted / max(gap_to_lead, MIN_GAP)
    acceleration = ACCEL_MAX * (1.0 - (speed / target) ** EXPONENT - ratio * ratio)
    return float(min(max(acceleration, -DECEL_MAX), ACCEL_MAX))


@numba.njit(cache=True, nogil=True)
def unroll(
    first: int,
    last: int,
    one: int,
    points: FloatArray,
    heading: FloatArray,
    progress: FloatArray,
    targets: FloatArray,
    states: FloatArray,
    size: FloatArray,
    dynamic: np.ndarray,
    red_rings: FloatArray,
    red_offsets: np.ndarray,
    red_centroids: FloatArray,
    drive: FloatArray,
    lead: FloatArray,
    poses: FloatArray,
) -> None:
    """Carry the proposals from step ``first`` - 1 to step ``last`` (0.1 s each); proposal = path · K + policy.

    Args:
        first, last: steps to compute, inclusive; the arrays below hold the earlier ones.
        one: the only proposal to carry on, or -1 for all of them.
        points, heading, progress: see ``paths.Paths`` (L paths).
        targets: [K] target speeds, highest last.
        states, size: tracks of the ``forecast.Forecast`` (A agents); dynamic, red_*: see there (R red connectors).
        drive: [L·K, 51, 2] progress and speed, written.
        lead: [L·K, 51, 3] progress, speed and rear length of the leading object, written.
        poses: [L·K, 51, 3] rear-axle poses, written.
    """
    half_width = 0.5 * WIDTH
    policies = len(targets)
    agents, reds = len(states), len(red_offsets) - 1
    ahead = np.empty(agents + reds, dtype=np.int64)
    ahead_progress = np.empty(agents + reds)
    red_blocks = np.empty(reds, dtype=np.bool_)
    red_progress = np.empty(reds)
    horizon = (poses.shape[1] - 1) * DT
    for path in range(len(points)):
        if one >= 0 and one // policies != path:
            continue
        begin = path * policies if one < 0 else one
        finish = begin + policies if one < 0 else one + 1
        start = drive[begin, 0, 0]
        line = corridor_line(points[path], heading, progress[path], start, start + targets[-1] * horizon)
        blocks, ends = corridor_blocks(line), corridor_ends(line, half_width)
        for r in range(reds):
            ring = red_rings[red_offsets[r] : red_offsets[r + 1]]
            red_blocks[r] = in_corridor(ring, line, blocks, ends, half_width)
            red_progress[r] = project(points[path], red_centroids[r, 0], red_centroids[r, 1])[0]
        for step in range(first, last + 1):
            if step % LEAD_STRIDE == 0:
                found = 0
                for a in range(agents):
                    at_step = states[a, step]
                    box = box_corners(at_step[0], at_step[1], at_step[2], size[a, 0], size[a, 1])
                    if in_corridor(box, line, blocks, ends, half_width):
                        ahead[found] = a
                        ahead_progress[found] = project(points[path], at_step[0], at_step[1])[0]
                        found += 1
                for r in range(reds):
                    if red_blocks[r]:
                        ahead[found] = agents + r
                        ahead_progress[found] = red_progress[r]
                        found += 1
                shared_speed = 0.0
                shared_rear = 0.0
                for p in range(begin, finish):
                    at = drive[p, step - 1, 0]
                    nearest = -1
                    nearest_gap = np.inf
                    pose = poses[p, step - 1]
                    x = pose[0] + REAR_AXLE_TO_CENTER * np.cos(pose[2])
                    y = pose[1] + REAR_AXLE_TO_CENTER * np.sin(pose[2])
                    for k in range(found):
                        if ahead_progress[k] > at:
                            a = ahead[k]
                            if a < agents:
                                s = states[a, step]
                                distance = box_gap(x, y, pose[2], LENGTH, WIDTH, s[0], s[1], s[2], size[a, 0], size[a, 1])
                            else:
                                ring = red_rings[red_offsets[a - agents] : red_offsets[a - agents + 1]]
                                distance = gap(box_corners(x, y, pose[2], LENGTH, WIDTH), ring)
                            if distance < nearest_gap:
                                nearest_gap = distance
                                nearest = a
                    if nearest >= 0:
                        lead[p, step, 0] = at + nearest_gap
                        if nearest < agents:
                            shared_speed = 0.0
                            if dynamic[nearest]:
                                turn = states[nearest, 0, 2] - pose[2]
                                shared_speed = np.hypot(states[nearest, 0, 3], states[nearest, 0, 4]) * np.cos(turn)
                    else:
                        lead[p, step, 0] = progress[path, -1]
                        shared_rear = 0.5 * LENGTH
                    lead[p, step, 1] = shared_speed
                    lead[p, step, 2] = shared_rear
            else:
                lead[begin:finish, step] = lead[begin:finish, step - 1]
            for p in range(begin, finish):
                at, speed = drive[p, step - 1, 0], drive[p, step - 1, 1]
                free = lead[p, step, 0] - at - lead[p, step, 2]
                acceleration = idm_acceleration(speed, free, lead[p, step, 1], targets[p % policies])
                drive[p, step, 0] = at + DT * speed
                drive[p, step, 1] = speed + DT * acceleration
                pose_at(points[path], heading, progress[path], drive[p, step, 0], poses[p, step])
