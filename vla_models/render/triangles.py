"""Any simple polygon to triangles, fast: a zip between both sides of a lane where that is valid, else ear clipping."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vla_models.kernels import numba

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@numba.njit(cache=True)
def _cross(ring: FloatArray, a: int, b: int, c: int) -> float:
    """Twice the signed area of triangle (a, b, c) of ``ring``; positive where it turns left."""
    ux, uy = ring[b, 0] - ring[a, 0], ring[b, 1] - ring[a, 1]
    return float(ux * (ring[c, 1] - ring[a, 1]) - uy * (ring[c, 0] - ring[a, 0]))


@numba.njit(cache=True)
def ring_length(ring: FloatArray) -> int:
    """Number of vertices of a ring [n, 2] without the last one if it repeats the first."""
    n = len(ring)
    while n > 1 and ring[n - 1, 0] == ring[0, 0] and ring[n - 1, 1] == ring[0, 1]:
        n -= 1
    return n


@numba.njit(cache=True)
def signed_area(ring: FloatArray) -> float:
    """Area of a ring [n, 2]; positive where it runs counter-clockwise."""
    area = 0.0
    for i in range(1, len(ring) - 1):
        area += _cross(ring, 0, i, i + 1)
    return 0.5 * area


@numba.njit(cache=True)
def _zip(ring: FloatArray, n: int, sign: float, out: IntArray) -> int:
    """Triangles between vertex i and its opposite n - 1 - i; 0 where one of them is turned over.

    The triangles' boundary is the ring, so where all of them have the ring's orientation they tile it exactly once: the
    test is complete, not a guess.
    """
    count = 0
    for i in range(n // 2 - 1):
        j = n - 1 - i
        for k in range(2):
            a, b, c = (i, i + 1, j) if k == 0 else (i + 1, j - 1, j)
            area = sign * _cross(ring, a, b, c)
            if area < -1e-9:
                return 0
            if area > 1e-12:
                out[count, 0], out[count, 1], out[count, 2] = a, b, c
                count += 1
    return count


@numba.njit(cache=True)
def _ear_clip(ring: FloatArray, n: int, sign: float, out: IntArray) -> int:
    """Ear clipping over a linked list, O(n * reflex vertices); a ring that crosses itself ends early instead of hanging."""
    after = np.empty(n, np.int64)
    before = np.empty(n, np.int64)
    for i in range(n):
        after[i] = (i + 1) % n
        before[i] = (i - 1) % n
    count = 0
    left = n
    at = 0
    misses = 0
    while left > 3 and misses < left:
        p, q = before[at], after[at]
        area = sign * _cross(ring, p, at, q)
        ear = area >= 0.0
        if area > 0.0:
            v = after[q]
            while v != p:
                # only vertices inside or on the rim block an ear; copies of its corners (pinched rings) do not
                if (
                    sign * _cross(ring, before[v], v, after[v]) <= 0.0
                    and sign * _cross(ring, p, at, v) >= 0.0
                    and sign * _cross(ring, at, q, v) >= 0.0
                    and sign * _cross(ring, q, p, v) >= 0.0
                    and not (ring[v, 0] == ring[p, 0] and ring[v, 1] == ring[p, 1])
                    and not (ring[v, 0] == ring[q, 0] and ring[v, 1] == ring[q, 1])
                    and not (ring[v, 0] == ring[at, 0] and ring[v, 1] == ring[at, 1])
                ):
                    ear = False
                    break
                v = after[v]
        if ear:
            if area > 0.0:
                out[count, 0], out[count, 1], out[count, 2] = p, at, q
                count += 1
            after[p] = q
            before[q] = p
            left -= 1
            misses = 0
            at = q
        else:
            misses += 1
            at = q
    if left == 3:
        p, q = before[at], after[at]
        if sign * _cross(ring, p, at, q) > 0.0:
            out[count, 0], out[count, 1], out[count, 2] = p, at, q
            count += 1
    return count


@numba.njit(cache=True)
def triangulate(ring: FloatArray) -> IntArray:
    """Triangles [m, 3] (vertex numbers) that tile a simple ring [n, 2], open or closed, of either orientation.

    A ring without area gives no triangle.
    """
    n = ring_length(ring)
    out = np.empty((max(n - 2, 0), 3), np.int64)
    if n < 3:
        return out
    area = signed_area(ring[:n])
    sign = 1.0 if area >= 0.0 else -1.0
    count = _zip(ring, n, sign, out) if n % 2 == 0 else 0
    if count == 0:
        count = _ear_clip(ring, n, sign, out)
    return out[:count]


@numba.njit(cache=True)
def _turn(ring: FloatArray, n: int, i: int) -> float:
    """Angle by which the ring turns left at vertex ``i``."""
    p, q = (i - 1) % n, (i + 1) % n
    ux, uy = ring[i, 0] - ring[p, 0], ring[i, 1] - ring[p, 1]
    vx, vy = ring[q, 0] - ring[i, 0], ring[q, 1] - ring[i, 1]
    return float(np.arctan2(ux * vy - uy * vx, ux * vx + uy * vy))


@numba.njit(cache=True)
def lane_ends(ring: FloatArray, n: int) -> tuple[int, int]:
    """Edges (numbered by their first vertex) of a lane's ring of ``n`` >= 4 vertices at its far and its near end.

    Map rings run along one side and back along the other. Where both sides have equally many vertices the ends are known;
    otherwise they are the two edges around which the ring turns most, the near one being that closer to the ring's start.
    """
    sign = 1.0 if signed_area(ring[:n]) >= 0.0 else -1.0
    if n % 2 == 0:
        h = n // 2
        if (
            sign * (_turn(ring, n, h - 1) + _turn(ring, n, h)) > 1.5
            and sign * (_turn(ring, n, n - 1) + _turn(ring, n, 0)) > 1.5
        ):
            return h - 1, n - 1
    first, second = -1, -1
    for k in range(2):
        best = -np.inf
        for i in range(n):
            j = (i + 1) % n
            if k == 1 and (i == first or j == first or i == (first + 1) % n):
                continue
            # sides of two vertices turn like ends: the length tells them apart (0.05 rad a metre)
            length = np.hypot(ring[j, 0] - ring[i, 0], ring[j, 1] - ring[i, 1])
            score = sign * (_turn(ring, n, i) + _turn(ring, n, j)) - 0.05 * length
            if score > best:
                best = score
                if k == 0:
                    first = i
                else:
                    second = i
    if min(n - 1 - first, first + 1) <= min(n - 1 - second, second + 1):
        return second, first
    return first, second


@numba.njit(cache=True)
def simplify(ring: FloatArray, n: int, start: int, count: int, tolerance: float, out: FloatArray) -> int:
    """Copy the chain of ``count`` vertices from ``start`` (cyclic) into ``out`` without those that a straight run passes
    within ``tolerance``; both ends stay. Returns how many were written.
    """
    out[0, 0], out[0, 1] = ring[start % n, 0], ring[start % n, 1]
    written = 1
    anchor = 0
    dx, dy = 0.0, 0.0
    for k in range(1, count - 1):
        i, j = (start + k) % n, (start + k + 1) % n
        ax, ay = ring[(start + anchor) % n, 0], ring[(start + anchor) % n, 1]
        if dx == 0.0 and dy == 0.0:
            dx, dy = ring[i, 0] - ax, ring[i, 1] - ay
            d = np.hypot(dx, dy)
            if d > 0.0:
                dx, dy = dx / d, dy / d
        # vertex k is needed once the next one leaves the ray (or turns back along it)
        wx, wy = ring[j, 0] - ax, ring[j, 1] - ay
        vx, vy = ring[i, 0] - ax, ring[i, 1] - ay
        if abs(dx * wy - dy * wx) > tolerance or dx * wx + dy * wy < dx * vx + dy * vy:
            out[written, 0], out[written, 1] = ring[i, 0], ring[i, 1]
            written += 1
            anchor = k
            dx, dy = 0.0, 0.0
    if count > 1:
        j = (start + count - 1) % n
        out[written, 0], out[written, 1] = ring[j, 0], ring[j, 1]
        written += 1
    return written
