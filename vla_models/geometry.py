"""SE(2) poses, oriented boxes and polylines: NumPy and numba, nothing else.

A pose is (x, y, heading), a polyline is [n, 2] or [n, 3] with heading last. Right-handed, radians, float64.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vla_models.kernels import numba

FloatArray = npt.NDArray[np.float64]


def wrap_angle(angle: npt.ArrayLike) -> FloatArray:
    """Angle(s) brought to (-pi, pi]: ``arctan2(sin, cos)``, the official code's own ``normalize_angle``."""
    a = np.asarray(angle, dtype=np.float64)
    return np.arctan2(np.sin(a), np.cos(a))


def to_frame(poses: npt.ArrayLike, frame: npt.ArrayLike) -> FloatArray:
    """Poses [..., 3] or points [..., 2] seen from the pose ``frame`` (3,): global -> ego frame."""
    p = np.asarray(poses, dtype=np.float64)
    x, y, h = np.asarray(frame, dtype=np.float64)[:3]
    c, s = np.cos(h), np.sin(h)
    dx, dy = p[..., 0] - x, p[..., 1] - y
    local = [c * dx + s * dy, -s * dx + c * dy]
    return np.stack(local + ([wrap_angle(p[..., 2] - h)] if p.shape[-1] == 3 else []), axis=-1)


def from_frame(poses: npt.ArrayLike, frame: npt.ArrayLike) -> FloatArray:
    """Inverse of ``to_frame``: poses [..., 3] or points [..., 2] of the ego frame ``frame`` (3,) -> global."""
    p = np.asarray(poses, dtype=np.float64)
    x, y, h = np.asarray(frame, dtype=np.float64)[:3]
    c, s = np.cos(h), np.sin(h)
    out = [x + c * p[..., 0] - s * p[..., 1], y + s * p[..., 0] + c * p[..., 1]]
    return np.stack(out + ([wrap_angle(p[..., 2] + h)] if p.shape[-1] == 3 else []), axis=-1)


def arc_lengths(line: FloatArray) -> FloatArray:
    """Distance along a polyline [n, >=2] of each of its vertices, [n], starting at 0."""
    steps = np.hypot(np.diff(line[:, 0]), np.diff(line[:, 1]))
    return np.concatenate([np.zeros(1), np.cumsum(steps)])


@numba.njit(cache=True)
def project(line: FloatArray, x: float, y: float) -> tuple[float, float]:
    """Distance along polyline [n, >=2] of the point nearest to (x, y), and the signed offset from it (left is positive)."""
    best = np.inf
    arc = 0.0
    at = 0.0
    offset = 0.0
    for i in range(len(line) - 1):
        ux, uy = line[i + 1, 0] - line[i, 0], line[i + 1, 1] - line[i, 1]
        wx, wy = x - line[i, 0], y - line[i, 1]
        n2 = ux * ux + uy * uy
        t = 0.0 if n2 == 0.0 else min(1.0, max(0.0, (wx * ux + wy * uy) / n2))
        dx, dy = wx - t * ux, wy - t * uy
        d2 = dx * dx + dy * dy
        n = np.sqrt(n2)
        if d2 < best:
            best = d2
            at = arc + t * n
            offset = np.sqrt(d2) if ux * wy - uy * wx >= 0.0 else -np.sqrt(d2)
        arc += n
    return at, offset


@numba.njit(cache=True)
def box_corners(x: float, y: float, heading: float, length: float, width: float) -> FloatArray:
    """Corners [4, 2] of a box with centre (x, y): front left, rear left, rear right, front right (the official order)."""
    c, s = np.cos(heading), np.sin(heading)
    a, b = length / 2.0, width / 2.0
    out = np.empty((4, 2))
    for k, (u, v) in enumerate(((a, b), (-a, b), (-a, -b), (a, -b))):
        out[k, 0] = x + c * u - s * v
        out[k, 1] = y + s * u + c * v
    return out
