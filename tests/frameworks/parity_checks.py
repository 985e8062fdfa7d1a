"""What the parity tests of all frameworks ask (tests/frameworks/<framework>/test_<framework>_parity.py)."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
if str(BENCHMARKS) not in sys.path:
    sys.path.insert(0, str(BENCHMARKS))

from parities.batch import read  # noqa: E402
from parities.compare import EQUAL, differences, local  # noqa: E402


def agrees(framework: ModuleType, case: str, algorithm: str, *, failed: bool = True, design: bool = False) -> None:
    """Advantages, ratios, losses and every weight's gradient are ``local``'s. ``failed``: one world fails.

    design: they are those of ``local``'s objective with the framework's differences by design built in, not ``local``'s own.
    """
    batch = read(case) if failed else read(case).without_failure()
    found = framework.outcome(batch, algorithm)
    wrong = {k: v for k, v in differences(framework.expected(batch, algorithm), found).items() if v > EQUAL}
    assert wrong == {}
    assert (max(differences(local(batch, algorithm), found).values()) > EQUAL) == design


def explained(framework: ModuleType) -> None:
    """Every difference by design shows on the stored batch, and nothing is left of it with its switch or its known factor."""
    for difference in framework.differences():
        assert difference.before > EQUAL, difference
        assert difference.after <= EQUAL, difference
