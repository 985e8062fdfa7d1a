"""Environment variables for as long as something runs (frameworks/variables.py)."""

from __future__ import annotations

import os

import pytest

from vla_models.frameworks.variables import variables


def test_what_was_set_comes_back_and_what_was_not_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLA_ONE", "before")
    monkeypatch.delenv("VLA_TWO", raising=False)
    with variables({"VLA_ONE": "1", "VLA_TWO": "2"}):
        assert (os.environ["VLA_ONE"], os.environ["VLA_TWO"]) == ("1", "2")
    assert os.environ["VLA_ONE"] == "before"
    assert "VLA_TWO" not in os.environ
