"""Prompts: every field, both languages, several cameras and frames, and templates of one's own."""

from __future__ import annotations

import numpy as np
import pytest

from vla_models.errors import ConfigError, SceneError
from vla_models.inputs import VLAInput
from vla_models.models.vlm.prompts import FIELDS, TEMPLATES, PromptTemplate

GIVEN = VLAInput(
    text="Stop at the harbour.",
    ego_state={"speed": 7.324, "acceleration": -0.5, "position": (1.0, -2.0), "heading": 0.25},
    route=np.array([[5.0, 0.14], [10.0, -3.0]]),
    command="left",
    history=np.array([[-4.0, 0.1, 0.02], [-2.0, 0.0, 0.0]]),
)


def prompt(given: VLAInput = GIVEN, answer: str = "Answer.", cameras: tuple[str, ...] = ("front",), **options: object) -> str:
    frames = int(options.pop("frames", 1))  # type: ignore[call-overload]
    template = PromptTemplate(**options, cameras=cameras, frames=frames, dt_frames=0.5)  # type: ignore[arg-type]
    return "".join(part.get("text", "▣") for part in template.parts(given, answer))


def test_english() -> None:
    lines = prompt().splitlines()
    assert lines[0] == "▣"
    assert lines[2:] == [
        "Ego: at (1.0, -2.0), heading 0.250, speed 7.32 m/s, acceleration -0.50 m/s²",
        "Command: turn left",
        "Route ahead: (5.0, 0.1) (10.0, -3.0)",
        "Past poses: (-4.0, 0.1, 0.020) (-2.0, 0.0, 0.000)",
        "Stop at the harbour.",
        "Answer.",
    ]


def test_chinese() -> None:
    lines = prompt(language="zh").splitlines()
    assert lines[2] == "自车：位于 (1.0, -2.0)，航向 0.250，速度 7.32 米/秒，加速度 -0.50 米/秒²"
    assert lines[3] == "指令：左转"


@pytest.mark.parametrize("language", sorted(TEMPLATES))
def test_every_template_names_every_field_and_lines_of_unknown_fields_are_left_out(language: str) -> None:
    assert all("{" + field + "}" in TEMPLATES[language] for field in FIELDS)
    bare = prompt(VLAInput(text="x"), language=language).splitlines()
    assert bare[0] == "▣"
    assert bare[2:] == ["x", "Answer."]


def test_cameras_and_frames_are_labelled_in_order() -> None:
    said = prompt(VLAInput(), cameras=("front", "left"), frames=2, template="See: {images}\nNow {answer}")
    assert said == "See: front, 0.5 s ago: ▣front: ▣left, 0.5 s ago: ▣left: ▣\nNow Answer."


def test_a_template_of_ones_own() -> None:
    assert prompt(template="{{{command}}} {instruction}") == "▣\n{turn left} Stop at the harbour."
    assert prompt(VLAInput(), template="fixed\n{command}") == "▣\nfixed"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"template": "{speed}"}, "speed"),
        ({"template": "{command"}, "braces"),
        ({"template": "{images}\n{images}"}, "once"),
        ({"template": "{images} {images}"}, "once"),
        ({"template": "{images!r}"}, "images is text"),
        ({"language": "fr"}, "fr"),
    ],
)
def test_what_no_template_can_be(options: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        prompt(**options)


@pytest.mark.parametrize(
    "given",
    [
        VLAInput(route=np.zeros((0, 2))),
        VLAInput(route=np.array([[np.nan, 0.0]])),
        VLAInput(history=np.zeros((2, 2))),
        VLAInput(ego_state={"speed": float("inf")}),
    ],
)
def test_what_cannot_be_told(given: VLAInput) -> None:
    with pytest.raises(SceneError, match="finite"):
        prompt(given)
