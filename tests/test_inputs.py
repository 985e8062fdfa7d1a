"""Inputs and predictions: any kind of image, rows of an observation, plans that are checked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from vla_models.errors import ImageError, PlanError, SceneError
from vla_models.inputs import EGO_FEATURES, VLAInput, VLAPrediction, load_image, load_images

PIXELS = np.arange(8 * 12 * 3, dtype=np.uint8).reshape(8, 12, 3)


def test_importing_it_does_not_import_torch() -> None:
    code = "import sys, vla_models.inputs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path,
        lambda path: str(path),
        lambda path: PIL.Image.fromarray(PIXELS),
        lambda path: PIL.Image.fromarray(PIXELS).convert("RGBA"),
        lambda path: PIXELS,
        lambda path: np.dstack([PIXELS, PIXELS[:, :, :1]]),
        lambda path: PIXELS / 255.0,
        lambda path: torch.from_numpy(PIXELS),
        lambda path: torch.from_numpy(PIXELS).permute(2, 0, 1),
        lambda path: PIXELS.tolist() and np.array(PIXELS.tolist(), dtype=np.uint8),
    ],
)
def test_any_kind_of_picture(picture: Path, make: Any) -> None:
    loaded = load_image(make(picture))
    assert loaded.dtype == np.uint8
    np.testing.assert_array_equal(loaded, PIXELS)


def test_grey_pictures_become_rgb() -> None:
    np.testing.assert_array_equal(load_image(PIXELS[:, :, 0]), np.repeat(PIXELS[:, :, :1], 3, axis=2))


def test_one_list_or_dict(picture: Path) -> None:
    assert list(load_images(picture)) == ["front"]
    assert list(load_images([picture, PIXELS], ("left", "right"))) == ["left", "right"]
    assert list(load_images({"right": PIXELS, "left": PIXELS, "back": PIXELS}, ("left", "right"))) == ["left", "right"]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (None, "no images were given; the model looks at front"),
        ("nowhere.png", "no image file 'nowhere.png'"),
        ({"left": PIXELS}, "no image for camera front; given: left"),
        ([PIXELS, PIXELS], "2 images for 1 cameras"),
        (np.zeros((4, 4, 2)), r"shape \[4, 4, 2\] is no picture"),
        (np.zeros((0, 4, 3), dtype=np.uint8), "no picture"),
        (np.zeros((4, 4, 3), dtype=np.int32), "pixels are int32"),
        (np.full((4, 4, 3), 2.0), r"finite and in 0…1"),
        (np.full((4, 4, 3), np.nan), r"finite and in 0…1"),
    ],
)
def test_bad_pictures_are_named(images: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load_images(images)


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n broken"])
def test_an_unreadable_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(ImageError, match=r"camera 'front': .*bad\.png' cannot be read as an image"):
        load_images(tmp_path / "bad.png")


def test_rows_of_an_observation() -> None:
    observation = {
        "images": {"front": np.zeros((2, 4, 4, 3), np.uint8)},
        "ego": np.arange(10, dtype=np.float32).reshape(2, 5),
        "route": np.ones((2, 10, 2), np.float32),
        "command": np.array([0, 2]),
        "text": ["a", "b"],
    }
    rows = VLAInput.batch(observation)
    assert [row.text for row in rows] == ["a", "b"]
    assert [row.command for row in rows] == ["left", "right"]
    assert rows[1].ego_state == dict(zip(EGO_FEATURES, [5, 6, 7, 8, 9], strict=True))
    assert rows[0].route is not None
    assert rows[0].route.shape == (10, 2)
    assert VLAInput.batch({"text": ["only"]}) == [VLAInput(text="only")]


@pytest.mark.parametrize("observation", [{}, {"text": ["a"], "command": np.array([0, 1])}])
def test_an_uneven_observation_is_refused(observation: Any) -> None:
    with pytest.raises(SceneError, match="differ in length"):
        VLAInput.batch(observation)


def test_a_prediction_checks_its_plan() -> None:
    assert VLAPrediction(waypoints=torch.zeros(8, 3, dtype=torch.bfloat16)).waypoints.dtype == np.float32  # type: ignore[arg-type]
    assert VLAPrediction(waypoints=torch.zeros(8, 3, requires_grad=True)).waypoints.shape == (8, 3)  # type: ignore[arg-type]
    bad = np.zeros((4, 8, 3))
    bad[2, 0, 0] = np.nan
    with pytest.raises(PlanError, match=r"rows \[2\] of 4"):
        VLAPrediction(waypoints=bad)  # type: ignore[arg-type]
