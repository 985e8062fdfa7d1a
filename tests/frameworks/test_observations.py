"""Observations survive packing, whatever cameras and arrays they have."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_models.errors import ConfigError, SceneError
from vla_models.frameworks.observations import ObservationLayout

sizes = st.tuples(st.integers(1, 6), st.integers(1, 6))


@given(
    cameras=st.lists(sizes, max_size=4),
    shapes=st.lists(st.lists(st.integers(1, 4), max_size=2), min_size=1, max_size=3),
    rows=st.integers(1, 3),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_what_is_packed_comes_back(cameras: list[Any], shapes: list[list[int]], rows: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    parts: dict[str, Any] = {f"a{i}": spaces.Box(-np.inf, np.inf, tuple(s), np.float32) for i, s in enumerate(shapes)}
    parts |= {"command": spaces.Discrete(4), "text": spaces.Text(10)}
    if cameras:
        parts["images"] = spaces.Dict({f"c{i}": spaces.Box(0, 255, (*s, 3), np.uint8) for i, s in enumerate(cameras)})
    space = spaces.Dict(parts)
    observation: dict[str, Any] = {f"a{i}": random.standard_normal((rows, *s)).astype(np.float32) for i, s in enumerate(shapes)}
    observation |= {"command": random.integers(0, 4, rows), "text": [f"text {i}" for i in range(rows)]}
    if cameras:
        pictures = {f"c{i}": random.integers(0, 256, (rows, *s, 3), dtype=np.uint8) for i, s in enumerate(cameras)}
        observation["images"] = pictures
    layout = ObservationLayout.of(space)
    assert ObservationLayout.from_dict(json.loads(json.dumps(layout.to_dict()))) == layout
    packed = layout.pack(observation)
    assert packed.states.shape == (rows, layout.width)
    back = layout.unpack(packed)
    assert back.keys() == observation.keys()
    for name, value in observation.items():
        if name == "images":
            for camera, pixels in value.items():
                np.testing.assert_array_equal(back["images"][camera], pixels)
        elif name == "text":
            assert back[name] == value
        else:
            np.testing.assert_array_equal(back[name], value)
            assert back[name].dtype == value.dtype


@pytest.mark.parametrize(
    "part",
    [spaces.Box(-1, 1, (3,), np.float64), spaces.Box(0, 1, (3,), np.int64), spaces.Discrete(2**30), spaces.MultiBinary(3)],
)
def test_what_float32_cannot_carry_is_refused(part: spaces.Space[Any]) -> None:
    with pytest.raises(ConfigError, match=r"'odd' is .*which float32 cannot carry"):
        ObservationLayout.of(spaces.Dict({"odd": part}))


def test_an_observation_that_is_not_its_spaces_is_refused() -> None:
    layout = ObservationLayout.of(spaces.Dict({"ego": spaces.Box(-1, 1, (3,), np.float32)}))
    with pytest.raises(SceneError, match=r"'ego': \(2,\)"):
        layout.pack({"ego": np.zeros((4, 2), dtype=np.float32)})
