"""Triangles tile any simple ring; lane rings are cut at their ends; straight runs lose only what they do not need."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_models.render.triangles import lane_ends, ring_length, signed_area, simplify, triangulate


def areas(ring: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    a, b, c = ring[triangles[:, 0]], ring[triangles[:, 1]], ring[triangles[:, 2]]
    u, v = b - a, c - a
    return 0.5 * (u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0])


def star(radii: list[float], turn: float) -> np.ndarray:
    """A simple ring around the origin: any radii at rising angles."""
    angle = turn + np.linspace(0.0, 2.0 * np.pi, len(radii), endpoint=False)
    return np.stack([radii * np.cos(angle), radii * np.sin(angle)], axis=1)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.floats(1.0, 20.0), min_size=3, max_size=40), st.floats(0.0, 6.0), st.booleans(), st.booleans())
def test_triangles_tile_the_ring(radii: list[float], turn: float, clockwise: bool, closed: bool) -> None:
    ring = star(radii, turn)
    if clockwise:
        ring = ring[::-1].copy()
    if closed:
        ring = np.concatenate([ring, ring[:1]])
    signed = areas(ring, triangulate(ring))
    total = signed_area(ring)
    # one orientation and the right sum: they cover the ring once
    assert (signed * np.sign(total) > 0.0).all()
    assert signed.sum() == pytest.approx(total, rel=1e-9)


def test_concave_and_comb_shaped_rings() -> None:
    comb = [(0.0, 0.0), (9.0, 0.0)]
    for x in range(8, -1, -2):
        comb += [(x + 1.0, 5.0), (x, 5.0), (x, 1.0), (x - 1.0, 1.0)] if x else [(1.0, 5.0), (0.0, 5.0)]
    ring = np.array(comb)
    signed = areas(ring, triangulate(ring))
    assert (signed > 0.0).all()
    assert signed.sum() == pytest.approx(signed_area(ring))


@pytest.mark.parametrize("ring", [[(0.0, 0.0)], [(0.0, 0.0), (1.0, 1.0)], [(0.0, 0.0), (1.0, 0.0), (2.0, 0.0), (0.0, 0.0)]])
def test_rings_without_area_have_no_triangles(ring: list[tuple[float, float]]) -> None:
    assert len(triangulate(np.array(ring))) == 0


def test_a_ring_that_crosses_itself_ends() -> None:
    bow_tie = np.array([(0.0, 0.0), (2.0, 2.0), (2.0, 0.0), (0.0, 2.0), (-1.0, 1.0)])
    assert len(triangulate(bow_tie)) <= 3


def test_ring_length_drops_the_repeated_vertex() -> None:
    ring = np.array([(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 0.0)])
    assert ring_length(ring) == 3
    assert ring_length(ring[:3]) == 3


def lane(left: int, right: int) -> np.ndarray:
    """A bend of 20 m radius, 4 m wide, with so many vertices on each side: left forward, right back."""
    a, b = np.linspace(0.0, 1.2, left), np.linspace(1.2, 0.0, right)
    return np.concatenate(
        [18.0 * np.c_[np.sin(a), 1 - np.cos(a)] + [0, 2.0], 22.0 * np.c_[np.sin(b), 1 - np.cos(b)] + [0, -2.0]]
    )


@pytest.mark.parametrize(("left", "right"), [(20, 20), (20, 13), (7, 20), (2, 2), (3, 2), (2, 30)])
def test_lane_ends_are_found_whatever_the_vertex_counts(left: int, right: int) -> None:
    ring = lane(left, right)
    assert lane_ends(ring, len(ring)) == (left - 1, left + right - 1)
    assert lane_ends(ring[::-1].copy(), len(ring)) == (right - 1, left + right - 1)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-0.5, 0.5), min_size=2, max_size=40))
def test_simplified_chains_stay_within_the_tolerance(bumps: list[float]) -> None:
    chain = np.stack([np.arange(len(bumps), dtype=float), np.array(bumps) ** 3], axis=1)
    out = np.empty_like(chain)
    kept = out[: simplify(chain, len(chain), 0, len(chain), 0.05, out)]
    np.testing.assert_array_equal(kept[[0, -1]], chain[[0, -1]])
    assert set(map(tuple, kept)) <= set(map(tuple, chain))
    at = np.interp(chain[:, 0], kept[:, 0], kept[:, 1])
    assert np.abs(at - chain[:, 1]).max() <= 0.1 + 1e-9


def test_a_straight_chain_keeps_its_ends_only() -> None:
    chain = np.stack([np.linspace(0.0, 50.0, 51), np.linspace(0.0, 10.0, 51)], axis=1)
    assert simplify(chain, 51, 0, 51, 0.03, np.empty_like(chain)) == 2
