"""Comfort: v1's C, v2's history comfort (HC) and extended comfort between two frames (EC).

Every quantity is a Savitzky-Golay filter (local polynomial fit) of a column of the states, hence a constant matrix. The
filters are SciPy's with ``mode="interp"``: at both ends the polynomial of the outermost window is used; an even window
looks half a sample ahead.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from vla_models.errors import PlanError
from vla_models.kernels import numba
from vla_models.scoring.pdm.track import DT, REAR_AXLE_TO_CENTER, STEPS

FloatArray = npt.NDArray[np.float64]

_MIN_LON_ACCELERATION: Final = -4.05
_MAX_LON_ACCELERATION: Final = 2.40
_MAX_LAT_ACCELERATION: Final = 4.89
_MAX_JERK: Final = 8.37
_MAX_LON_JERK: Final = 4.13
_MAX_YAW_RATE: Final = 0.95
_MAX_YAW_ACCELERATION: Final = 1.93

_EC_ACCELERATION: Final = 0.7
_EC_JERK: Final = 0.5
_EC_YAW_RATE: Final = 0.1
_EC_YAW_ACCELERATION: Final = 0.1

_HISTORY_DT_US: Final = 500_000
_STEP_US: Final = 100_000

_ACCELERATION, _SMOOTHED, _JERK, _YAW_RATE, _YAW_ACCELERATION = range(5)

COMFORT_QUANTITIES: Final = (
    "longitudinal acceleration", "longitudinal jerk", "lateral acceleration", "jerk", "yaw rate", "yaw acceleration",
)  # fmt: skip
"""What comfort bounds, in the order in which it is looked at (m/s^2, m/s^3, rad/s, rad/s^2)."""
_LON_ACCELERATION, _LON_JERK, _LAT_ACCELERATION, _WHOLE_JERK, _TURNING, _TURNING_MORE = range(6)
COMFORT_BOUNDS: Final = np.array([
    [_MIN_LON_ACCELERATION, _MAX_LON_ACCELERATION], [-_MAX_LON_JERK, _MAX_LON_JERK],
    [-_MAX_LAT_ACCELERATION, _MAX_LAT_ACCELERATION], [-_MAX_JERK, _MAX_JERK],
    [-_MAX_YAW_RATE, _MAX_YAW_RATE], [-_MAX_YAW_ACCELERATION, _MAX_YAW_ACCELERATION],
])  # fmt: skip
"""[6, 2] what each must stay between."""


def savgol(samples: int, window: int, order: int, derivative: int) -> FloatArray:
    """Matrix [samples, samples] of SciPy's ``savgol_filter(..., mode="interp")`` for samples 0.1 s apart."""
    half = window // 2
    out = np.zeros((samples, samples))
    for i in range(samples):
        if half <= i < samples - half:
            start, at = (i - half, float(half)) if window % 2 else (i - half + 1, half - 0.5)
        else:
            start = 0 if i < half else samples - window
            at = float(i - start)
        powers = (np.arange(window) - at)[:, None] ** np.arange(order + 1)
        out[i, start : start + window] = np.linalg.pinv(powers)[derivative] * math.factorial(derivative) / DT**derivative
    return out


@lru_cache(maxsize=16)
def operators(version: int, samples: int) -> FloatArray:
    """[5, samples, samples], transposed: acceleration, acceleration that jerk is taken of, jerk, yaw rate, yaw acceleration.

    Version 1 fits one parabola to the whole horizon for the acceleration bounds and for the jerk; version 2 uses windows of
    8 and 15. The windows that the official code passes on for yaw rates are dropped on the way: it always uses 5.
    """
    acceleration = samples if version == 1 else 8
    jerk = samples if version == 1 else 15
    windows = ((acceleration, 2, 0), (8, 2, 0), (jerk, 2, 1), (5, 2, 1), (5, 3, 2))
    return np.ascontiguousarray(np.stack([savgol(samples, min(w, samples), o, d).T for w, o, d in windows]))


def past_states(history: FloatArray, at_us: npt.NDArray[np.int64] | None = None) -> FloatArray:
    """The states that v2 puts before the driven ones: ``history`` [H, 11] (current last) every 0.1 s from its first row on.

    ``at_us`` [H] are its rows' times in microseconds; None: 0.5 s apart. The official code leaves out the last sample before
    the current state (with exact times the one at -0.1 s, where the clock is a little late another one), and later treats the
    gap as 0.1 s. Only what an interpolated ego state carries over is kept: steering rate and yaw motion are zero.
    """
    knots = _HISTORY_DT_US * np.arange(1 - len(history), 1) if at_us is None else at_us
    samples = np.arange(knots[0], knots[-1], _STEP_US)[:-1]
    out = np.zeros((len(samples), history.shape[1]))
    for j in (0, 1, 3, 4, 5, 6, 7):
        out[:, j] = np.interp(samples, knots, history[:, j])
    out[:, 2] = (np.interp(samples, knots, np.unwrap(history[:, 2])) + np.pi) % (2.0 * np.pi) - np.pi
    return out


@numba.njit(cache=True, error_model="numpy")
def _apply(operator: FloatArray, column: FloatArray, out: FloatArray) -> None:
    """``out`` = transposed ``operator`` times ``column``, rounded to 8 decimals as the official code does."""
    out[:] = 0.0
    for j in range(column.shape[0]):
        value = column[j]
        if value == 0.0:  # lateral acceleration is zero after the first step
            continue
        for i in range(out.shape[0]):
            out[i] += operator[j, i] * value
    for i in range(out.shape[0]):
        out[i] = np.rint(out[i] * 1e8) / 1e8


@numba.njit(cache=True, error_model="numpy")
def _bounded(values: FloatArray, low: float, high: float) -> bool:
    least, most = values[0], values[0]
    for i in range(1, values.shape[0]):
        least, most = min(least, values[i]), max(most, values[i])
    return bool(low < least and most < high)


@numba.njit(cache=True, error_model="numpy")
def _turned(headings: FloatArray, out: FloatArray) -> None:
    """Headings without jumps of full turns (nuPlan's ``phase_unwrap``)."""
    out[0] = headings[0]
    turns = 0.0
    for i in range(1, headings.shape[0]):
        turns += np.rint((headings[i] - headings[i - 1]) / (2.0 * np.pi))
        out[i] = headings[i] - 2.0 * np.pi * turns


@numba.njit(cache=True, nogil=True, error_model="numpy")
def comfort_quantity_kernel(
    kind: int, driven: FloatArray, past: FloatArray, operator: FloatArray, lever: float, column: FloatArray,
    smooth: FloatArray, out: FloatArray,
) -> None:  # fmt: skip
    """One of ``COMFORT_QUANTITIES`` (``kind`` is its index) over ``past`` [B, 11] and one ``driven`` plan [41, 11].

    ``out`` [B + 41] is written, ``column`` and ``smooth`` [B + 41] are overwritten; ``lever`` as in ``comfort_kernel``.
    """
    before = past.shape[0]
    for t in range(before + STEPS):
        s = past[t] if t < before else driven[t - before]
        if kind in (_LON_ACCELERATION, _LON_JERK):
            column[t] = s[5] + lever * (s[9] * s[9]) + lever * s[10]
        elif kind == _LAT_ACCELERATION:
            column[t] = s[6]
        elif kind == _WHOLE_JERK:
            column[t] = np.hypot(s[5], s[6])
        else:
            smooth[t] = s[2]
    if kind in (_LON_ACCELERATION, _LAT_ACCELERATION):
        _apply(operator[_ACCELERATION], column, out)
    elif kind in (_LON_JERK, _WHOLE_JERK):
        _apply(operator[_SMOOTHED], column, smooth)
        _apply(operator[_JERK], smooth, out)
    else:
        _turned(smooth, column)
        _apply(operator[_YAW_RATE if kind == _TURNING else _YAW_ACCELERATION], column, out)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def comfort_kernel(states: FloatArray, past: FloatArray, operator: FloatArray, lever: float, score: FloatArray) -> None:
    """C (``past`` [0, 11], ``lever`` 0) or HC (``past`` [B, 11], ``lever`` rear axle to centre) of N driven plans, {0, 1}.

    ``lever`` moves longitudinal acceleration to the box centre; both yaw terms add along x (the official code's own way).
    """
    samples = past.shape[0] + STEPS
    column, smooth, out = np.empty(samples), np.empty(samples), np.empty(samples)
    for n in range(states.shape[0]):
        score[n] = 1.0
        for kind in range(COMFORT_BOUNDS.shape[0]):
            comfort_quantity_kernel(kind, states[n], past, operator, lever, column, smooth, out)
            if not _bounded(out, COMFORT_BOUNDS[kind, 0], COMFORT_BOUNDS[kind, 1]):
                score[n] = 0.0
                break


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _features(states: FloatArray, operator: FloatArray, out: FloatArray) -> None:
    """[4, T]: magnitude of acceleration, its jerk, yaw rate, yaw acceleration of one driven plan [T, 11]."""
    samples = states.shape[0]
    column = np.empty(samples)
    for t in range(samples):
        column[t] = np.hypot(states[t, 5], states[t, 6])
    _apply(operator[_SMOOTHED], column, out[0])
    _apply(operator[_JERK], out[0], out[1])
    _turned(np.ascontiguousarray(states[:, 2]), column)
    _apply(operator[_YAW_RATE], column, out[2])
    _apply(operator[_YAW_ACCELERATION], column, out[3])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _extended_kernel(first: FloatArray, second: FloatArray, operator: FloatArray, score: FloatArray) -> None:
    samples = first.shape[1]
    a, b = np.empty((4, samples)), np.empty((4, samples))
    limits = (_EC_ACCELERATION, _EC_JERK, _EC_YAW_RATE, _EC_YAW_ACCELERATION)
    for n in range(first.shape[0]):
        _features(first[n], operator, a)
        _features(second[n], operator, b)
        score[n] = 1.0
        for j in range(4):
            total = 0.0
            for t in range(samples):
                total += (a[j, t] - b[j, t]) ** 2
            if not np.sqrt(total / samples) <= limits[j]:
                score[n] = 0.0


def extended_comfort(current: npt.ArrayLike, previous: npt.ArrayLike, apart: int = 5) -> FloatArray:
    """EC [N] in {0, 1} of driven states [N, 41, 11] (each in its own frame) planned at two moments, ``apart`` steps apart.

    Over the steps that both cover (the current plan but for its end, the previous one but for its beginning), the root mean
    square differences of acceleration (0.7 m/s^2), jerk (0.5 m/s^3), yaw rate (0.1 rad/s) and yaw acceleration (0.1 rad/s^2)
    must stay within these limits.
    """
    now, then = (np.ascontiguousarray(x, dtype=np.float64) for x in (current, previous))
    if now.shape != then.shape or now.shape[1:] != (STEPS, 11):
        raise PlanError(f"driven states have shapes {now.shape} and {then.shape}, expected the same [N, {STEPS}, 11]")
    if not 1 <= apart <= STEPS - 15:
        raise PlanError(f"frames {apart} steps apart cannot be compared; expected 1 to {STEPS - 15} (usually 5: 0.5 s)")
    samples = STEPS - apart
    operator = operators(2, samples).copy()
    operator[_YAW_ACCELERATION] = savgol(samples, 5, 2, 2).T  # here the official code keeps the quadratic fit
    score = np.empty(len(now))
    _extended_kernel(np.ascontiguousarray(now[:, :samples]), np.ascontiguousarray(then[:, apart:]), operator, score)
    return score


NO_PAST: Final = np.zeros((0, 11))
"""``past`` of version 1."""
CENTER_LEVER: Final = REAR_AXLE_TO_CENTER
"""``lever`` of version 2."""
