"""The bookkeeping of episodes: totals, failed worlds, rows that wait and rows that go on."""

from __future__ import annotations

from itertools import count

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_world import GOALS, HORIZON, ToyDrive

from vla_models.errors import ConfigError
from vla_models.frameworks.episodes import Episodes


def plans(metres: list[float]) -> np.ndarray:  # type: ignore[type-arg]
    out = np.zeros((len(metres), HORIZON, 3))
    out[:, -1, 0] = metres
    return out


@given(moves=st.lists(st.lists(st.floats(-2, 2), min_size=3, max_size=3), min_size=1, max_size=9), again=st.booleans())
@settings(max_examples=60, deadline=None)
def test_totals_are_those_of_the_episode(moves: list[list[float]], again: bool) -> None:
    """Returns equal the way made good since the row's last start, with and without new episodes."""
    numbers = count()
    episodes = Episodes(ToyDrive(3), (lambda row: f"go{next(numbers) % 4}") if again else None)
    episodes.begin(["go0", "go1", "go3"])
    start = [abs(GOALS[i]) for i in (0, 1, 3)]
    decided = np.zeros(3)
    for move in moves:
        running = ~episodes.over
        names = episodes.scenes
        step = episodes.decide(plans(move))
        decided += running
        ended = step.terminated | step.truncated
        assert not (ended & ~running).any()
        assert not (step.terminated & step.truncated).any()
        assert (step.rewards[~running] == 0).all()
        np.testing.assert_array_equal(step.totals["decisions"], decided)
        np.testing.assert_array_equal(step.totals["term/count"], decided)
        env = episodes.env
        for row in range(3):
            if not (again and ended[row]):
                left = abs(GOALS[int(names[row][-1])] - env.where[row])  # type: ignore[attr-defined]
                assert step.totals["return"][row] == pytest.approx(start[row] - left, abs=1e-4)
        assert (step.final_observation is not None) == bool(again and ended.any())
        if again:
            assert not episodes.over.any()
            for row in np.flatnonzero(ended):
                decided[row] = 0
                start[row] = abs(GOALS[int(episodes.scenes[row][-1])])


def test_a_failed_world_ends_its_row_without_a_score() -> None:
    episodes = Episodes(ToyDrive(2, crashing=True))
    episodes.begin(["crash3", "go3"])
    first = episodes.decide(plans([1.0, 1.0]))
    assert np.isfinite(first.rewards).all()
    second = episodes.decide(plans([1.0, 1.0]))
    assert np.isnan(second.rewards[0])
    assert second.rewards[1] == 1.0
    assert second.terminated.tolist() == [True, False]
    assert second.totals["valid"].tolist() == [0.0, 1.0]
    assert second.totals["return"].tolist() == [0.0, 2.0]
    assert episodes.decide(plans([1.0, 1.0])).rewards.tolist() == [0.0, 1.0]


def test_an_answer_that_is_no_plan_brakes_and_gets_its_own_reward() -> None:
    episodes = Episodes(ToyDrive(2), invalid=-3.0)
    episodes.begin(["go3", "go3"])
    step = episodes.decide(plans([2.0, 2.0]), np.array([False, True]))
    assert step.rewards.tolist() == [-3.0, 2.0]
    assert episodes.env.where.tolist() == [0.0, 2.0]  # type: ignore[attr-defined]
    assert step.totals["invalid_answers"].tolist() == [1.0, 0.0]
    assert step.totals["valid"].tolist() == [1.0, 1.0]
    assert episodes.decide(plans([2.0, 2.0]), np.ones(2, dtype=bool)).totals["return"].tolist() == [-1.0, 4.0]


def test_an_answer_that_is_no_plan_can_be_left_out_with_its_episode() -> None:
    episodes = Episodes(ToyDrive(2), invalid="exclude")
    episodes.begin(["go3", "go3"])
    step = episodes.decide(plans([2.0, 2.0]), np.array([False, True]))
    assert np.isnan(step.rewards[0])
    assert step.terminated.tolist() == [True, False]
    assert step.totals["valid"].tolist() == [0.0, 1.0]
    assert step.totals["invalid_answers"].tolist() == [1.0, 0.0]
    assert episodes.over.tolist() == [True, False]


def test_a_new_episode_is_valid_again() -> None:
    episodes = Episodes(ToyDrive(1, crashing=True), lambda row: "go3")
    episodes.begin(["crash3"])
    episodes.decide(plans([1.0]))
    assert episodes.decide(plans([1.0])).totals["valid"].tolist() == [0.0]
    assert episodes.decide(plans([1.0])).totals["valid"].tolist() == [1.0]


def test_an_environment_that_resets_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ToyDrive.metadata, "autoreset_mode", AutoresetMode.NEXT_STEP)
    with pytest.raises(ConfigError, match="ToyDrive resets its rows by itself"):
        Episodes(ToyDrive(1))
