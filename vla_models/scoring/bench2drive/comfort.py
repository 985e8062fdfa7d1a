"""Driving smoothness: Bench2Drive's number with its quirks, and what it means to be.

Source: Bench2Drive 0.0.4, ``tools/efficiency_smoothness_benchmark.py``. An episode is cut into chunks of 20 frames; a chunk
is smooth if all of six quantities stay within nuPlan's bounds; the score is the share of smooth chunks. Quirks that
``official`` keeps: frames are 0.05 s apart, the derivatives take 0.1 s; the yaw "acceleration" is the smoothed yaw rate; the
yaw rate is in degrees and compared with bounds in radians, after an unwrapping meant for angles, chunk by chunk; the rest
behind the last whole chunk is not looked at.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np

from vla_models.scenes.lanes import FloatArray
from vla_models.scoring.bench2drive.kernels import TICK_SECONDS
from vla_models.scoring.pdm.comfort import savgol
from vla_models.scoring.pdm.track import DT

CHUNK: Final = 20
"""Frames of a chunk."""
WINDOW: Final = 7
"""Frames of the Savitzky-Golay filter's window; its polynomials are parabolas."""

_LONGITUDINAL: Final = (-4.05, 2.40)
_LATERAL: Final = 4.89
_JERK: Final = 8.37
_LONGITUDINAL_JERK: Final = 4.13
_YAW_ACCELERATION: Final = 1.93
_YAW_RATE: Final = 0.95


def official(longitudinal: FloatArray, lateral: FloatArray, yaw_rate: FloatArray) -> float:
    """Share of smooth chunks as Bench2Drive computes it, 0..1; NaN below three frames, where its script fails.

    Accelerations [T] in the ego's axes, m/s2; yaw rate [T] in rad/s (turned into CARLA's degrees here).
    """
    return _share(longitudinal, lateral, np.degrees(yaw_rate), corrected=False)


def corrected(longitudinal: FloatArray, lateral: FloatArray, yaw_rate: FloatArray) -> float:
    """The same with frames 0.05 s apart, yaw rate in rad/s, and the yaw acceleration its derivative. Not Bench2Drive's
    number."""
    return _share(longitudinal, lateral, np.asarray(yaw_rate, dtype=np.float64), corrected=True)


@lru_cache(maxsize=64)
def _filters(frames: int, seconds: float) -> tuple[FloatArray, FloatArray]:
    """Smoothing and derivative over ``frames`` frames, matrices to multiply rows from the right."""
    window = min(WINDOW, frames)
    return savgol(frames, window, 2, 0).T, savgol(frames, window, 2, 1).T * (DT / seconds)


def _share(longitudinal: FloatArray, lateral: FloatArray, yaw_rate: FloatArray, corrected: bool) -> float:
    frames = len(yaw_rate)
    if frames <= 2:
        return float("nan")
    size = frames if frames <= CHUNK else CHUNK
    rows = frames // size
    along, across, turning = (
        np.asarray(part, dtype=np.float64)[: rows * size].reshape(rows, size) for part in (longitudinal, lateral, yaw_rate)
    )
    if not corrected:
        turns = np.round(np.diff(turning, axis=1, prepend=turning[:, :1]) / (2.0 * np.pi))
        turning = turning - 2.0 * np.pi * np.cumsum(turns, axis=1)
    smooth, derive = _filters(size, TICK_SECONDS if corrected else DT)
    rate = turning @ smooth
    along_smooth = along @ smooth
    fine = np.all((along_smooth > _LONGITUDINAL[0]) & (along_smooth < _LONGITUDINAL[1]), axis=-1)
    for quantity, bound in (
        (across @ smooth, _LATERAL),
        (np.hypot(along, across) @ smooth @ derive, _JERK),
        (along_smooth @ derive, _LONGITUDINAL_JERK),
        (rate @ derive if corrected else rate, _YAW_ACCELERATION),
        (rate, _YAW_RATE),
    ):
        fine &= np.all(np.abs(quantity) < bound, axis=-1)
    return float(fine.mean())
