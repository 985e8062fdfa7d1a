"""The example environment, which a stranger registered: the contract, and what the embedded trainer says of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.vector.utils import batch_space
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

import bring_your_own_environment as own
import bring_your_own_model  # noqa: F401 - registers my_vla

from vla_models import VLAConfig, VLAInput, VLAModelRegistry, create_model
from vla_models.errors import ConfigError
from vla_models.frameworks import get_launcher
from vla_models.frameworks.episodes import Episodes
from vla_models.frameworks.observations import ObservationLayout
from vla_models.frameworks.probing import lay_out
from vla_models.model_registry import BUILTIN_FRAMEWORKS


def plans(n: int, x: float, y: float = 0.0) -> np.ndarray[Any, Any]:
    """Half of (x, y) after the first pose, all of it after the second."""
    out = np.zeros((n, 8, 3), dtype=np.float32)
    out[:, :, 0], out[:, :, 1] = x, y
    out[:, 0, :2] /= 2
    return out


def test_it_is_registered_for_every_framework() -> None:
    assert set(VLAModelRegistry.list_env_adapters()["parked_cars"]) >= set(BUILTIN_FRAMEWORKS) - {"local"}
    for framework in ("areal", "rlinf", "verl", "siirl"):
        adapter = VLAModelRegistry.get_env_adapter("parked_cars", framework)
        assert isinstance(adapter.make_env(VLAConfig(), "heldout", 2, create_model("my_vla", dim=16).spec), own.ParkedCars)


def test_its_observations_are_what_its_space_says_and_pass_every_framework() -> None:
    env = own.ParkedCars(3)
    observation, info = env.reset(options={"scenes": env.tokens[:3]})
    assert info["scene"] == env.tokens[:3]
    space = batch_space(env.single_observation_space, 3)
    for name in ("images", "ego", "route", "command"):
        assert space[name].contains(observation[name]), name  # type: ignore[index]
    layout = ObservationLayout.of(env.single_observation_space)
    back = layout.unpack(layout.pack(observation))
    np.testing.assert_array_equal(back["images"]["front"], observation["images"]["front"])
    np.testing.assert_array_equal(back["route"], observation["route"])
    assert (observation["images"]["front"] == 250).any(axis=(1, 2, 3)).tolist() == [True, True, True]  # the parked car is seen


def test_straight_on_hits_the_parked_car_and_a_way_around_it_arrives() -> None:
    env = own.ParkedCars(2)
    _, _ = env.reset(options={"scenes": ["train-18-left", "train-18-left"]})
    _, reward, over, _, info = env.step(plans(2, 10.0))
    np.testing.assert_allclose(reward, 0.25)
    assert not over.any()
    beside = plans(2, 10.0)
    beside[1, :, 1] = [-1.9, -3.0, *[-3.0] * 6]
    _, reward, over, _, info = env.step(beside)
    assert info["terms"]["collision"].tolist() == [-1.0, 0.0]
    assert over.tolist() == [True, False]
    for _ in range(2):
        _, _, over, _, info = env.step(plans(2, 11.0))
    assert over[1]
    assert info["metrics"]["score"][1] == 1.0
    assert env.step(plans(2, 0.0, 6.0))[4]["terms"]["off_road"].tolist() == [-1.0, 0.0]  # 6 m to the left of the lower lane


@given(x=st.floats(-30, 30), y=st.floats(-6, 6), turn=st.floats(-3, 3), n=st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_the_same_plans_give_the_same_bits_and_progress_sums_to_the_way(x: float, y: float, turn: float, n: int) -> None:
    results = []
    for _ in range(2):
        env = own.ParkedCars(n, "heldout")
        episodes = Episodes(env)
        episodes.begin([env.tokens[0]] * n)
        plan = plans(n, x, y)
        plan[:, :, 2] = turn
        while not episodes.over.all():
            done = episodes.decide(plan)
        assert np.isfinite(done.observation["route"]).all()
        np.testing.assert_allclose(done.totals["term/progress"], np.clip(env.pose[:, 0], 0, own.LENGTH) / own.LENGTH, atol=1e-5)
        assert done.totals["decisions"].max() <= env.max_decisions
        results.append((env.pose.tobytes(), done.totals["return"].tobytes()))
    assert results[0] == results[1]


def test_some_rows_begin_again_and_unknown_scenes_are_errors() -> None:
    env = own.ParkedCars(2)
    env.reset(options={"scenes": env.tokens[:2]})
    env.step(plans(2, 4.0))
    env.reset(options={"scenes": env.tokens[2:4], "reset_mask": np.array([False, True])})
    assert env.pose[:, 0].tolist() == [4.0, 0.0]
    assert env.names == [env.tokens[0], env.tokens[3]]
    with pytest.raises(KeyError, match="nowhere"):
        env.reset(options={"scenes": ["nowhere"] * 2})


def test_a_strangers_model_drives_in_it_and_its_records_replay() -> None:
    model = create_model("my_vla", dim=16)
    config = VLAConfig.from_dict({"environment": {"type": "parked_cars"}, "framework": "rlinf"})
    layout = lay_out(config, model, own.InRLinf.make_env)
    assert layout.max_decisions == 8
    assert not layout.masked
    env = own.ParkedCars(4)
    episodes = Episodes(env)
    observation = episodes.begin(env.tokens[:4])
    while not episodes.over.all():
        observation = episodes.decide(model.predict(VLAInput.batch(observation)).waypoints).observation
    assert episodes.over.all()


def test_the_embedded_trainer_says_who_can_train_in_it() -> None:
    config = VLAConfig.from_dict({"environment": {"type": "parked_cars"}, "framework": "local"})
    with pytest.raises(ConfigError, match="parked_cars"):
        get_launcher("local")(config)
