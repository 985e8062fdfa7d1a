"""Random numbers from counters: (seed, stream, number) -> a number, so that a run can be repeated and branched bit for bit."""

from __future__ import annotations

import math

import numpy as np

from vla_models.kernels import numba


@numba.njit(cache=True)
def uniform(seed: float, stream: int, number: float) -> float:
    """A number in [0, 1) (SplitMix64 over the three)."""
    z = np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15)
    z += np.uint64(stream) * np.uint64(0xBF58476D1CE4E5B9) + np.uint64(number) * np.uint64(0x94D049BB133111EB)
    for _ in range(2):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return float(z >> np.uint64(11)) / 9007199254740992.0


@numba.njit(cache=True)
def normal(seed: float, stream: int, number: float) -> float:
    """A standard normal number (Box and Muller)."""
    u = max(uniform(seed, stream, 2.0 * number), 1e-300)
    return math.sqrt(-2.0 * math.log(u)) * math.cos(2.0 * math.pi * uniform(seed, stream, 2.0 * number + 1.0))
