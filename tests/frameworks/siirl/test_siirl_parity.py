"""One stored batch through siiRL's own advantages and losses, against the local trainer's (benchmarks/parity.py)."""

from __future__ import annotations

from collections.abc import Iterator

import parity_checks
import pytest
from parities import siirl as framework


@pytest.fixture(scope="module", autouse=True)
def ready() -> Iterator[None]:
    with framework.ready():
        yield


@pytest.mark.parametrize("case", ["tokens", "gaussian", "flow", "words", "decision"])
def test_grpo_agrees_with_local(case: str) -> None:
    """A failed world included."""
    parity_checks.agrees(framework, case, "grpo")


def test_every_difference_is_explained() -> None:
    """PPO's, too."""
    parity_checks.explained(framework)


@pytest.mark.parametrize("case", ["tokens", "gaussian", "decision"])
def test_ppo_agrees_with_local(case: str) -> None:
    parity_checks.agrees(framework, case, "ppo")
