"""The nearest lane: the grid finds what looking at every segment finds."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_models.scenes.strips import REACH, Strips, StripSlots, nearest_strip


def strips_of(seed: int, lines: int) -> tuple[Strips, np.ndarray, np.ndarray]:
    """Random wavy lines, about a metre between points."""
    rng = np.random.default_rng(seed)
    places, owners = [], []
    for k in range(lines):
        n = int(rng.integers(1, 60))
        heading = rng.uniform(-3, 3) + np.cumsum(rng.normal(0, 0.05, n))
        xy = rng.uniform(-60, 60, 2) + np.cumsum(np.stack([np.cos(heading), np.sin(heading)], -1), 0)
        places.append(np.column_stack([xy, np.full(n, rng.choice([0.0, 8.0])), np.full(n, 3.5), heading, np.zeros(n)]))
        owners.append(np.full(n, k))
    place, owner = np.concatenate(places), np.concatenate(owners)
    return Strips.make(place, owner), place, owner


def everywhere(place: np.ndarray, owner: np.ndarray, x: float, y: float, z: float) -> float:
    """Smallest distance to any segment, in space where z is known."""
    best = np.inf
    for a in range(len(place)):
        b = a + 1 if a + 1 < len(place) and owner[a + 1] == owner[a] else a
        p, q = place[a, :3], place[b, :3]
        v = q[:2] - p[:2]
        u = 0.0 if not v.any() else float(np.clip(((x - p[0]) * v[0] + (y - p[1]) * v[1]) / (v @ v), 0, 1))
        foot = p + u * (q - p)
        dz = 0.0 if np.isnan(z) else foot[2] - z
        best = min(best, float(np.hypot(np.hypot(x - foot[0], y - foot[1]), dz)))
    return best


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), lines=st.integers(1, 8), known=st.booleans())
def test_nearest_is_nearest(seed: int, lines: int, known: bool) -> None:
    strips, place, owner = strips_of(seed, lines)
    rng = np.random.default_rng(seed + 1)
    at = rng.uniform(-90, 90, (8, 2))
    z = np.full(8, 8.0 if known else np.nan)
    found, point, share, level = strips.nearest(at, z)
    for i in range(8):
        wanted = everywhere(place, owner, *at[i], z[i])
        if wanted > REACH:
            continue
        a = int(point[i])
        b = a + 1 if share[i] > 0.0 else a
        foot = place[a, :3] + share[i] * (place[b, :3] - place[a, :3])
        assert np.isclose(np.hypot(*(at[i] - foot[:2])), level[i])
        got = np.hypot(level[i], foot[2] - z[i]) if known else level[i]
        assert np.isclose(got, wanted, atol=1e-9)
        assert found[i] == owner[a]


def test_a_place_far_from_everything_has_no_strip() -> None:
    strips, _, _ = strips_of(0, 2)
    found, _, _, distance = strips.nearest([[500.0, 500.0]])
    assert found[0] == -1
    assert np.isinf(distance[0])


def test_slots_answer_like_the_strips_in_them_and_are_exchanged_one_by_one() -> None:
    slots = StripSlots(3)
    small, large = strips_of(1, 1)[0], strips_of(2, 8)[0]
    for slot, strips in ((0, small), (2, large), (0, large), (1, small), (2, small)):
        slots.put(slot, strips)
    rng = np.random.default_rng(3)
    for slot, strips in ((0, large), (1, small), (2, small)):
        for x, y in rng.uniform(-70, 70, (20, 2)):
            alone = nearest_strip(strips.grid, 0, x, y, 0.0, REACH)
            assert nearest_strip(slots.grid, slot, x, y, 0.0, REACH) == alone
