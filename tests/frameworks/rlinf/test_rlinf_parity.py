"""One stored batch through RLinf's own advantages and losses, against the local trainer's (benchmarks/parity.py)."""

from __future__ import annotations

from collections.abc import Iterator

import parity_checks
import pytest
from parities import rlinf as framework


@pytest.fixture(scope="module", autouse=True)
def ready() -> Iterator[None]:
    with framework.ready():
        yield


def test_grpo_agrees_with_local_where_a_decision_has_one_log_probability() -> None:
    parity_checks.agrees(framework, "decision", "grpo", failed=False)


@pytest.mark.parametrize("algorithm", framework.ALGORITHMS)
@pytest.mark.parametrize("case", ["tokens", "gaussian", "flow", "words", "decision"])
def test_elsewhere_it_has_ratios_of_decisions_and_counts_failed_ones(case: str, algorithm: str) -> None:
    parity_checks.agrees(framework, case, algorithm, design=True)


def test_every_difference_is_explained() -> None:
    parity_checks.explained(framework)
