"""One stored batch through RLinf's own advantages and losses, against the local trainer's (benchmarks/parity.py)."""

from __future__ import annotations

from collections.abc import Iterator

import parity_checks
import pytest
from parities import rlinf as framework

EPS = {"grpo": 1e-5, "ppo": 1e-4}
"""RLinf adds 1e-5 to a deviation, local 1e-6."""


@pytest.fixture(scope="module", autouse=True)
def ready() -> Iterator[None]:
    with framework.ready():
        yield


@pytest.mark.parametrize("algorithm", framework.ALGORITHMS)
def test_it_agrees_with_local_where_a_decision_has_one_log_probability(algorithm: str) -> None:
    """RLinf takes one ratio for a whole decision; the tests of what differs prove it for the rest."""
    parity_checks.agrees(framework, "decision", algorithm, failed=False, normalised=EPS[algorithm])


def test_every_difference_is_explained() -> None:
    parity_checks.explained(framework)
