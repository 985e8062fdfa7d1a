"""Plans in words: what is written is read back, and nothing that anybody writes stops the reader."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vla_models.models.vlm.text_plan import read_plan, write_plan

plans = hnp.arrays(np.float64, (8, 3), elements=st.floats(-3.1, 3.1)).map(lambda a: a * [60.0, 30.0, 1.0])


@given(plans)
def test_what_is_written_is_read_back(plan: np.ndarray) -> None:
    read = read_plan(write_plan(plan), 8)
    assert read is not None
    assert read.dtype == np.float32
    assert np.abs(read[:, :2] - plan[:, :2]).max() < 0.0051
    assert np.abs(read[:, 2] - plan[:, 2]).max() < 0.00051


@given(st.text() | st.text("()[]0123456789.,-+ nainfe（，）"))
def test_any_text_is_a_plan_or_none(text: str) -> None:
    plan = read_plan(text, 2)
    assert plan is None or (plan.shape == (2, 3) and np.isfinite(plan).all() and np.abs(plan[:, 2]).max() <= np.pi + 1e-6)


@pytest.mark.parametrize(
    "text",
    [
        "(1,2,0.5) (3,4,-0.25)",
        "The plan: [ 1.0 , +2.00, .5 ]; then [3, 4, -.25].",
        "规划：（1.0，2.0，0.5）、（3，4，-0.25）。",
        "(1, 2, 0.5)(3.,4.,-0.250)",
        "(1,2,0.5) (3,4,6.0331853)",
    ],
)
def test_the_same_plan_in_many_hands(text: str) -> None:
    np.testing.assert_allclose(read_plan(text, 2), [[1, 2, 0.5], [3, 4, -0.25]], atol=1e-6)


@pytest.mark.parametrize(
    "text",
    ["", "(1,2,0.5)", "(1,2,0.5) (3,4)", "(1,2,0.5) (3,4,0.1) (5,6,0.1)", "(1,2,0.5) (nan,4,0)", "(1,2,0.5) (3,4000,0)",
     "(1,2,0.5) (3,4,7)", "(1,2,0.5) (3,4,1e9)", "(1,2,0.5) (1234567890,4,0)", "(1,2,0.5) (3;4;0)", "(1,2,0.5) (--3,4,0)"],
)  # fmt: skip
def test_no_plan(text: str) -> None:
    assert read_plan(text, 2) is None
