"""From plans to driven states: NavSim's interpolation, LQR tracker and kinematic bicycle, without matrices at run time.

The official chain is: 8 poses -> 41 poses at 0.1 s (linear) -> velocity and curvature profiles by two regularised least
squares fits -> a two-part LQR with 1 s of look-ahead -> the kinematic bicycle with first-order delays. What is different
here is only how the two fits are solved:

* velocity: the normal matrix does not depend on the headings (each row is a unit vector times the same triangle), so the
  whole fit is one constant 40 x 40 operator on the displacements projected onto their headings;
* curvature: in the curvatures themselves instead of their rates the normal equations are tridiagonal (Thomas algorithm).

Constants: NavSim ``BatchLQRTracker`` and ``BatchKinematicBicycleModel`` defaults, nuPlan's Pacifica.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from vla_models.errors import PlanError
from vla_models.kernels import numba
from vla_models.scenes.scene import PLAN_STEPS

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

WHEELBASE: Final = 3.089
LENGTH: Final = 5.176
WIDTH: Final = 2.297
REAR_AXLE_TO_CENTER: Final = 1.461
"""Metres; the ego vehicle is nuPlan's Pacifica."""

STEPS: Final = 41
"""Simulated states: t = 0.0 … 4.0 s."""
DT: Final = 0.1
_INTERVALS: Final = STEPS - 1

_HORIZON: Final = 10  # look-ahead of the tracker, steps
_JERK_PENALTY: Final = 1e-4
_CURVATURE_RATE_PENALTY: Final = 1e-2
_INITIAL_CURVATURE_PENALTY: Final = 1e-10
_Q_VELOCITY: Final = 10.0
_Q_HEADING: Final = 10.0  # lateral error has weight 1, steering angle 0, both inputs 1
_STOPPING_SPEED: Final = 0.2
_STOPPING_GAIN: Final = 0.5
_MAX_STEERING: Final = np.pi / 3
_ACCELERATION_DELAY: Final = 0.2
_STEERING_DELAY: Final = 0.05
_HALF_TURN: Final = 1e-9  # radians from a half turn within which rounding may decide its side


def _velocity_operator() -> FloatArray:
    """[40, 40] transposed matrix from displacements along the heading to the fitted velocity profile.

    Unknowns are the first velocity and 39 accelerations. The official "jerk" matrix is built by two overlapping slice
    assignments, the second of which overwrites the first below the diagonal: what remains mostly penalises acceleration.
    Scores depend on it, so it is reproduced.
    """
    m = _INTERVALS
    columns = np.full(m, DT * DT)
    columns[0] = DT
    design = np.tril(np.ones((m, m))) * columns
    band = np.zeros((m - 2, m - 1))
    band[:, 1:] = np.eye(m - 2)
    band[:, :-1] = -np.eye(m - 2)
    penalty = np.block([np.zeros((m - 2, 1)), band])
    solve = np.linalg.solve(design.T @ design + _JERK_PENALTY * penalty.T @ penalty, design.T)
    integrate = np.concatenate([np.ones((m, 1)), np.tril(np.ones((m, m - 1)), -1) * DT], axis=1)
    return np.ascontiguousarray((integrate @ solve).T)


VELOCITY_OPERATOR: Final = _velocity_operator()


@lru_cache(maxsize=64)
def time_table(time_us: int, knots: int, spacing: float) -> tuple[IntArray, FloatArray]:
    """Where the 41 tracked poses lie between plan poses: (interval [41], fraction of it [41]).

    The official code holds times in whole microseconds since 1970 and *truncates* floating-point seconds, so that a
    sample may fall 1 us before its nominal time: up to 2e-5 m at 20 m/s, which the fits amplify. ``time_us`` is the
    scene's start, ``knots`` poses follow it, ``spacing`` seconds apart. The arrays are shared: read only.
    """
    start = time_us * 1e-6
    ends = np.arange(0.0, knots * spacing, spacing)[:knots] + spacing + start
    at = np.array([time_us] + [int(t * 1e6) for t in ends], dtype=np.int64)
    return _locate(at, time_us)


@lru_cache(maxsize=64)
def reference_time_table(time_us: int, rows: int) -> tuple[IntArray, FloatArray]:
    """``time_table`` of a reference trajectory with ``rows`` poses, whose times are exact multiples of 0.1 s."""
    return _locate(time_us + np.arange(rows, dtype=np.int64) * 100_000, time_us)


def _locate(at: IntArray, time_us: int) -> tuple[IntArray, FloatArray]:
    """Intervals of the knots ``at`` (us) that hold the 41 official sample times, and the fractions inside them."""
    wanted = np.arange(STEPS) * DT + time_us * 1e-6
    samples = np.clip(np.array([int(t * 1e6) for t in wanted], dtype=np.int64), at[0], at[-1])
    interval = np.clip(np.searchsorted(at, samples), 1, len(at) - 1) - 1
    fraction = (samples - at[interval]) / (at[interval + 1] - at[interval])
    return interval, fraction


@numba.njit(cache=True, error_model="numpy")
def wrap(angle: float) -> float:
    """``angle`` brought to [-pi, pi]; unchanged where it lies inside."""
    if -np.pi < angle < np.pi:
        return angle
    return math.atan2(math.sin(angle), math.cos(angle))


@numba.njit(cache=True, error_model="numpy")
def _principal(angle: float) -> float:
    """``angle`` brought to [-pi, pi): nuPlan's ``principal_value``."""
    if -np.pi <= angle < np.pi:
        return angle
    return (angle + np.pi) % (2.0 * np.pi) - np.pi


@numba.njit(cache=True, error_model="numpy")
def _turns(angle: float, before: float) -> float:
    """What to add to ``angle`` and all angles after it, so that it lies within pi of ``before`` (NumPy's ``unwrap``)."""
    d = angle - before
    if abs(d) < np.pi:
        return 0.0
    m = (d + np.pi) % (2.0 * np.pi) - np.pi
    if m == -np.pi and d > 0.0:
        m = np.pi
    return m - d


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _heading_kernel(plans: FloatArray, heading: float, out: FloatArray, half: BoolArray) -> None:
    """Headings ``out`` [N, K], and which plans have a ``half`` turn [N] somewhere."""
    c, s = math.cos(heading), math.sin(heading)
    for n in range(plans.shape[0]):
        before = heading
        half[n] = False
        for k in range(plans.shape[1]):
            ch, sh = math.cos(plans[n, k, 2]), math.sin(plans[n, k, 2])
            out[n, k] = math.atan2(s * ch + c * sh, c * ch - s * sh)
            half[n] |= abs((out[n, k] - before) % (2.0 * np.pi) - np.pi) < _HALF_TURN
            before = out[n, k]


def plan_headings(plans: FloatArray, heading: float) -> FloatArray:
    """Headings [N, K] of plans [N, K, 3] for an ego with ``heading``.

    Whether a half turn between two poses goes left or right hangs on the last digit of its headings, and that digit on how
    NumPy and its BLAS round on the machine at hand. So plans with one get the very operations of nuPlan's
    ``relative_to_absolute_poses`` (nuplan/common/geometry/convert.py): the product of two pose matrices, and its ``arctan2``.
    """
    headings, half = np.empty(plans.shape[:2]), np.empty(len(plans), dtype=np.bool_)
    _heading_kernel(plans, heading, headings, half)
    if half.any():
        product = _rotations(np.asarray(heading)) @ _rotations(plans[half, :, 2])
        headings[half] = np.arctan2(product[..., 1, 0], product[..., 0, 0])
    return headings


def _rotations(angles: FloatArray) -> FloatArray:
    """Pose matrices [..., 3, 3] of headings [...], at the origin."""
    matrices = np.zeros((*angles.shape, 3, 3))
    matrices[..., 0, 0] = matrices[..., 1, 1] = np.cos(angles)
    matrices[..., 1, 0] = np.sin(angles)
    matrices[..., 0, 1] = -matrices[..., 1, 0]
    matrices[..., 2, 2] = 1.0
    return matrices


@numba.njit(cache=True, nogil=True, error_model="numpy")
def interpolate_kernel(
    plans: FloatArray, headings: FloatArray, ego: FloatArray, interval: IntArray, fraction: FloatArray, out: FloatArray
) -> None:
    """Plans [N, K, 3] in the ego frame, with ``plan_headings`` [N, K] -> poses ``out`` [N, 41, 3] in that of ``ego``."""
    knots = plans.shape[1]
    knot = np.empty((knots + 1, 3))
    c, s = np.cos(ego[2]), np.sin(ego[2])
    for n in range(plans.shape[0]):
        knot[0, 0], knot[0, 1], knot[0, 2] = ego[0], ego[1], ego[2]
        turns = 0.0
        for k in range(knots):
            x, y = plans[n, k, 0], plans[n, k, 1]
            knot[k + 1, 0] = ego[0] + c * x - s * y
            knot[k + 1, 1] = ego[1] + s * x + c * y
            turns += _turns(headings[n, k], headings[n, k - 1] if k > 0 else ego[2])
            knot[k + 1, 2] = headings[n, k] + turns
        for t in range(STEPS):
            i, f = interval[t], fraction[t]
            for j in range(3):
                out[n, t, j] = knot[i, j] + f * (knot[i + 1, j] - knot[i, j])
            out[n, t, 2] = _principal(out[n, t, 2])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def track_kernel(poses: FloatArray, ego: FloatArray, operator: FloatArray, out: FloatArray) -> None:
    """Poses [N, 41, 3] at 0.1 s -> driven states ``out`` [N, 41, 11], starting at ``ego`` [11], all in one frame."""
    m = _INTERVALS
    cosine = np.empty(m)
    sine = np.empty(m)
    along = np.empty(m)
    turn = np.empty(m)
    velocity = np.empty(m)
    upper = np.empty(m)
    curvature = np.empty(m)
    smooth = _CURVATURE_RATE_PENALTY / (DT * DT)
    for n in range(poses.shape[0]):
        for k in range(m):
            h = poses[n, k, 2]
            dx, dy = poses[n, k + 1, 0] - poses[n, k, 0], poses[n, k + 1, 1] - poses[n, k, 1]
            cosine[k], sine[k] = np.cos(h), np.sin(h)
            along[k] = cosine[k] * dx + sine[k] * dy
            turn[k] = wrap(poses[n, k + 1, 2] - h)
        velocity[:] = 0.0
        for j in range(m):
            d = along[j]
            for i in range(m):
                velocity[i] += operator[j, i] * d

        # minimise sum (v dt kappa - turn)^2 + smooth sum (diff kappa)^2 + tiny kappa_0^2: forward sweep, then backward
        for k in range(m):
            a = velocity[k] * DT
            diagonal = a * a + (smooth if k > 0 else _INITIAL_CURVATURE_PENALTY) + (smooth if k < m - 1 else 0.0)
            if k == 0:
                upper[k] = -smooth / diagonal
                curvature[k] = a * turn[k] / diagonal
            else:
                pivot = diagonal + smooth * upper[k - 1]
                upper[k] = -smooth / pivot
                curvature[k] = (a * turn[k] + smooth * curvature[k - 1]) / pivot
        for k in range(m - 2, -1, -1):
            curvature[k] -= upper[k] * curvature[k + 1]

        for j in range(11):
            out[n, 0, j] = ego[j]
        x, y, heading = ego[0], ego[1], ego[2]
        speed, acceleration, steering, yaw_rate = ego[3], ego[5], ego[7], ego[9]
        slope = np.tan(steering) / WHEELBASE
        for t in range(m):
            last = min(t + _HORIZON, m - 1)
            target = velocity[last]
            if target <= _STOPPING_SPEED and speed <= _STOPPING_SPEED:
                command = -_STOPPING_GAIN * (speed - target)
                steering_rate = 0.0
            else:
                reach = _HORIZON * DT
                command = -reach * _Q_VELOCITY * (speed - target) / (reach * _Q_VELOCITY * reach + 1.0)
                lateral = -(x - poses[n, t, 0]) * sine[t] + (y - poses[n, t, 1]) * cosine[t]
                relative = wrap(heading - poses[n, t, 2])
                # transition over the horizon: state (lateral, heading, steering), rows 0 and 1; input b; affine part g
                a01, a02, a12 = 0.0, 0.0, 0.0
                b0, b1, b2 = 0.0, 0.0, 0.0
                g0, g1 = 0.0, 0.0
                v = speed
                for q in range(_HORIZON):
                    kappa = curvature[t + q] if t + q < last else curvature[last]
                    p = v * DT
                    w = p * (1.0 / WHEELBASE)
                    a01 += p
                    a02 += p * a12
                    a12 += w
                    b0 += p * b1
                    b1 += w * b2
                    b2 += DT
                    g0 += p * g1
                    g1 -= v * kappa * DT
                    v += command * DT
                e0 = lateral + a01 * relative + a02 * steering + g0
                e1 = wrap(relative + a12 * steering + g1)
                steering_rate = -(b0 * e0 + _Q_HEADING * b1 * e1) / (b0 * b0 + _Q_HEADING * b1 * b1 + 1.0)

            next_acceleration = DT / (DT + _ACCELERATION_DELAY) * (command - acceleration) + acceleration
            rate = (DT / (DT + _STEERING_DELAY) * ((DT * steering_rate + steering) - steering)) / DT
            x += speed * np.cos(heading) * DT
            y += speed * np.sin(heading) * DT
            heading = _principal(heading + speed * slope * DT)
            speed += next_acceleration * DT
            steering = min(max(steering + rate * DT, -_MAX_STEERING), _MAX_STEERING)
            acceleration = next_acceleration
            slope = np.tan(steering) / WHEELBASE
            next_yaw_rate = speed * slope
            out[n, t + 1, 0], out[n, t + 1, 1], out[n, t + 1, 2] = x, y, heading
            out[n, t + 1, 3], out[n, t + 1, 4] = speed, 0.0
            out[n, t + 1, 5], out[n, t + 1, 6] = acceleration, 0.0
            out[n, t + 1, 7], out[n, t + 1, 8] = steering, rate
            out[n, t + 1, 9], out[n, t + 1, 10] = next_yaw_rate, (next_yaw_rate - yaw_rate) / DT
            yaw_rate = next_yaw_rate


@numba.njit(cache=True, nogil=True, error_model="numpy")
def reference_poses(reference: FloatArray, interval: IntArray, fraction: FloatArray) -> FloatArray:
    """A reference [R, 3] at the 41 official sample times, [41, 3]."""
    rows = reference.copy()
    turns = 0.0
    for k in range(1, rows.shape[0]):
        turns += _turns(reference[k, 2], reference[k - 1, 2])
        rows[k, 2] = reference[k, 2] + turns
    out = np.empty((STEPS, 3))
    for t in range(STEPS):
        i, f = interval[t], fraction[t]
        for j in range(3):
            out[t, j] = rows[i, j] + f * (rows[i + 1, j] - rows[i, j])
        out[t, 2] = _principal(out[t, 2])
    return out


def owned(values: npt.ArrayLike) -> FloatArray:
    """``values`` as a C-contiguous, writable float64 array: numba compiles kernels anew for any other kind (memory maps)."""
    return np.require(values, dtype=np.float64, requirements=("C", "W"))


def _checked(plans: npt.ArrayLike) -> FloatArray:
    """Plans as C-contiguous float64 [N, 8, 3]; anything else is a PlanError."""
    array = owned(plans)
    if array.ndim != 3 or array.shape[1:] != (PLAN_STEPS, 3):
        raise PlanError(
            f"plans have shape {array.shape}, expected [N, {PLAN_STEPS}, 3]: x, y, heading in the ego frame, 0.5 s apart"
        )
    return array


def interpolate(plans: npt.ArrayLike, ego: FloatArray, time_us: int = 0) -> FloatArray:
    """Poses [N, 41, 3] at 0.1 s of plans [N, 8, 3] (ego frame, 0.5 s apart), in the frame in which ``ego`` [11] is given.

    ``time_us`` is the scene's time (microseconds since 1970): see ``time_table`` for why it matters in the sixth digit.
    """
    array = _checked(plans)
    interval, fraction = time_table(time_us, PLAN_STEPS, 0.5)
    out = np.empty((len(array), STEPS, 3))
    interpolate_kernel(array, plan_headings(array, float(ego[2])), owned(ego), interval, fraction, out)
    return out


def track(poses: npt.ArrayLike, ego: FloatArray) -> FloatArray:
    """States [N, 41, 11] that the tracker drives along poses [N, 41, 3] (0.1 s apart, same frame as ``ego`` [11])."""
    array = owned(poses)
    if array.ndim != 3 or array.shape[1:] != (STEPS, 3):
        raise PlanError(f"poses to track have shape {array.shape}, expected [N, {STEPS}, 3]")
    out = np.empty((len(array), STEPS, 11))
    track_kernel(array, owned(ego), VELOCITY_OPERATOR, out)
    return out


def simulate(plans: npt.ArrayLike, ego: FloatArray, time_us: int = 0) -> FloatArray:
    """States [N, 41, 11] (columns ``EGO_COLUMNS``) driven from ``ego`` [11] along plans [N, 8, 3] given in the ego frame."""
    return track(interpolate(plans, ego, time_us), ego)
