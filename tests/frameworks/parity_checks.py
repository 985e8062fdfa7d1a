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


def agrees(framework: ModuleType, case: str, algorithm: str, *, failed: bool = True, normalised: float = EQUAL) -> None:
    """Advantages, ratios, losses and every weight's gradient are ``local``'s. ``failed``: one world fails.

    normalised: what PPO's advantages, and what follows from them, may be apart because frameworks divide by deviations with
    another eps (a difference by design, which ``explained`` proves).
    """
    batch = read(case) if failed else read(case).without_failure()
    found = differences(local(batch, algorithm), framework.outcome(batch, algorithm))
    allowed = dict.fromkeys(("advantages", "loss", "gradient"), normalised)
    assert {name: value for name, value in found.items() if value > allowed.get(name, EQUAL)} == {}


def explained(framework: ModuleType) -> None:
    """Every difference by design shows on the stored batch, and nothing is left of it with its switch or its known factor."""
    for difference in framework.differences():
        assert difference.before > EQUAL, difference
        assert difference.after <= EQUAL, difference
