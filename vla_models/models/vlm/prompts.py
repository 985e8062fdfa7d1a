"""From a ``VLAInput`` to the parts of one user message: pictures and text, by a template in English, Chinese or the user's own.

A template is lines of text with named fields in braces; ``FIELDS`` says which. A line whose fields are all empty for an input
(no route was given, say) is left out, so one template serves every environment. ``{images}`` is where the pictures go, each
behind a label with its camera and, for several frames, its place in time.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np

from vla_models.errors import ConfigError, SceneError
from vla_models.inputs import VLAInput

Language = Literal["en", "zh"]
FIELDS: Final = ("images", "ego", "command", "route", "history", "instruction", "answer")
"""What a template may name: the pictures; the ego state, command, route and past poses as text; the input's own ``text``; and
the sentence that says how to answer."""

TEMPLATES: Final[Mapping[str, str]] = {
    "en": """{images}
You are driving this car. Positions are metres in the ego frame: x forward, y left; headings are radians, left is positive.
Ego: {ego}
Command: {command}
Route ahead: {route}
Past poses: {history}
{instruction}
{answer}""",
    "zh": """{images}
你在驾驶这辆车。位置以米为单位，自车坐标系：x 向前，y 向左；航向以弧度为单位，向左为正。
自车：{ego}
指令：{command}
前方路线：{route}
过去位姿：{history}
{instruction}
{answer}""",
}
_WORDS: Final[Mapping[str, Mapping[str, str]]] = {
    "en": {
        "position": "at ({0:.1f}, {1:.1f})", "heading": "heading {0:.3f}", "speed": "speed {0:.2f} m/s",
        "acceleration": "acceleration {0:.2f} m/s²", "lateral_acceleration": "lateral acceleration {0:.2f} m/s²",
        "steering": "steering {0:.3f} rad", "yaw_rate": "yaw rate {0:.3f} rad/s",
        "left": "turn left", "straight": "go straight", "right": "turn right", "unknown": "follow the road",
        "codes": "Answer with the codes of the plan.", "head": "Plan.",
        "text": "Answer with {poses} poses (x,y,heading), one every {dt:g} s, like (4.00,0.05,0.010).",
        "think": "First say in a few sentences what matters, then write <plan>. ",
        "frame": "{camera}, {ago:g} s ago: ", "now": "{camera}: ", "stop": ", ",
    },
    "zh": {
        "position": "位于 ({0:.1f}, {1:.1f})", "heading": "航向 {0:.3f}", "speed": "速度 {0:.2f} 米/秒",
        "acceleration": "加速度 {0:.2f} 米/秒²", "lateral_acceleration": "横向加速度 {0:.2f} 米/秒²",
        "steering": "转向角 {0:.3f} 弧度", "yaw_rate": "横摆角速度 {0:.3f} 弧度/秒",
        "left": "左转", "straight": "直行", "right": "右转", "unknown": "沿路行驶",
        "codes": "请给出规划的编码。", "head": "请规划。",
        "text": "请给出 {poses} 个位姿 (x,y,航向)，每隔 {dt:g} 秒一个，例如 (4.00,0.05,0.010)。",
        "think": "先用几句话说明要点，然后写 <plan>。", "frame": "{camera}，{ago:g} 秒前：", "now": "{camera}：", "stop": "，",
    },
}  # fmt: skip
_MOTION: Final = ("acceleration", "lateral_acceleration", "steering", "yaw_rate")


class PromptTemplate:
    """How an input is told to the model.

    language: "en" or "zh"; template: own lines with ``FIELDS`` in braces (``{{`` for a brace), or None for the language's own;
    system: a system message, or None; cameras, frames, dt_frames: what the picture labels speak of (``dt_frames`` seconds
    between two frames of a camera, oldest first).
    """

    def __init__(
        self,
        language: str = "en",
        template: str | None = None,
        system: str | None = None,
        *,
        cameras: Sequence[str],
        frames: int,
        dt_frames: float,
    ) -> None:
        if language not in _WORDS:
            raise ConfigError(f"model.prompt.language: {language!r} is not one of {', '.join(sorted(_WORDS))}")
        self.system, self.cameras, self.frames, self.dt_frames = system, tuple(cameras), frames, dt_frames
        self._words = _WORDS[language]
        self._lines = [(line, _fields(line)) for line in (template or TEMPLATES[language]).splitlines()]
        used = [name for _, names in self._lines for name in names]
        if used.count("images") > 1:
            raise ConfigError("model.prompt.template: {images} may stand in it once")
        if "images" not in used:
            self._lines.insert(0, ("{images}", ["images"]))

    # -- fields ----------------------------------------------------------------------------------------------------------

    def ego(self, position: Any, heading: float | None, velocity: Any, more: Mapping[str, Any] | None = None) -> str:
        """Position, heading, speed (m/s, or (vx, vy)) and what ``more`` has of acceleration, steering and yaw rate."""
        said = []
        if position is not None:
            said.append(self._words["position"].format(_number(position[0], "position"), _number(position[1], "position")))
        if heading is not None:
            said.append(self._words["heading"].format(_number(heading, "heading")))
        if velocity is not None:
            speed = float(np.linalg.norm(np.asarray(velocity, dtype=np.float64))) if np.ndim(velocity) else velocity
            said.append(self._words["speed"].format(_number(speed, "speed")))
        said += [self._words[key].format(_number(more[key], key)) for key in _MOTION if more and key in more]
        return self._words["stop"].join(said)

    def answer(self, kind: Literal["codes", "text", "head"], poses: int, dt: float, reasoning: bool) -> str:
        """The sentence that says what to answer with."""
        return (self._words["think"] if reasoning else "") + self._words[kind].format(poses=poses, dt=dt)

    @staticmethod
    def points(points: Any, columns: int) -> str:
        """``(5.0, 0.1) (10.0, 0.4)`` of an array [R, columns] or wider; with three columns the last has three digits."""
        array = np.asarray(points, dtype=np.float64)
        if array.ndim != 2 or array.shape[1] < columns or len(array) == 0 or not np.isfinite(array).all():
            raise SceneError(
                f"a route or history of shape {list(array.shape)} cannot be read; expected finite rows [R, {columns}], or None"
            )
        form = "({:.1f}, {:.1f})" if columns == 2 else "({:.1f}, {:.1f}, {:.3f})"
        return " ".join(form.format(*row[:columns]) for row in array)

    # -- the message -----------------------------------------------------------------------------------------------------

    def parts(self, given: VLAInput, answer: str) -> list[dict[str, str]]:
        """The user message as a chat template wants it: {"type": "text", "text": …} and {"type": "image"}, in order."""
        ego = given.ego_state
        values = {
            "ego": ""
            if ego is None
            else self.ego(ego.get("position"), ego.get("heading"), ego.get("velocity", ego.get("speed")), ego),
            "command": "" if given.command is None else self._words.get(given.command, given.command),
            "route": "" if given.route is None else self.points(given.route, 2),
            "history": "" if given.history is None else self.points(given.history, 3),
            "instruction": given.text,
            "answer": answer,
        }
        parts: list[dict[str, str]] = []
        text = ""
        for line, names in self._lines:
            if names and not any(name == "images" or values[name] for name in names):
                continue
            text += "\n" if text or parts else ""
            if "images" not in names:
                text += line.format(**values)
                continue
            before, _, after = line.partition("{images}")
            text += before.format(**values)
            for label in self.labels():
                parts += [{"type": "text", "text": text + label}] if text + label else []
                parts.append({"type": "image"})
                text = ""
            text = after.format(**values)
        return [*parts, {"type": "text", "text": text}]

    def labels(self) -> list[str]:
        """What stands before each picture, in their order: camera by camera, oldest frame first; nothing if there is one."""
        if len(self.cameras) * self.frames == 1:
            return [""]
        out = []
        for camera in self.cameras:
            for frame in range(self.frames):
                ago = (self.frames - 1 - frame) * self.dt_frames
                out.append(self._words["frame" if ago else "now"].format(camera=camera, ago=ago))
        return out


def _fields(line: str) -> list[str]:
    try:
        found = [(name, spec or conversion) for _, name, spec, conversion in string.Formatter().parse(line) if name is not None]
    except ValueError as e:
        raise ConfigError(f"model.prompt.template: {line!r} cannot be read: {e}; write {{{{ and }}}} for braces") from e
    for name, form in found:
        if name not in FIELDS:
            raise ConfigError(f"model.prompt.template: there is no field {name!r}; known: {', '.join(FIELDS)}")
        if form:
            raise ConfigError(f"model.prompt.template: {name} is text already; write {{{name}}} without {form!r}")
    return [name for name, _ in found]


def _number(value: Any, what: str) -> float:
    number = float(value)
    if not np.isfinite(number):
        raise SceneError(f"the ego state's {what} is {number}; expected a finite number")
    return number


def _corpus() -> list[str]:
    """Sentences as the default templates make them, for the tokenizer of the tiny models."""
    given = VLAInput(
        text="Follow the route and the rules of the road.",
        ego_state=dict.fromkeys(("speed", *_MOTION), 0.0),
        route=np.array([[5.0, 0.0], [-10.0, -0.5]]),
        history=np.array([[-1.0, 0.0, 0.0]]),
        command="straight",
    )
    out = []
    for language in _WORDS:
        template = PromptTemplate(language, cameras=("front", "left", "right"), frames=2, dt_frames=0.5)
        for kind in ("codes", "text", "head"):
            answer = template.answer(kind, 8, 0.5, reasoning=True)
            out += [part.get("text", "") for part in template.parts(given, answer)]
        out += list(_WORDS[language].values())
    return out


CORPUS: Final = tuple(_corpus())
"""What a tokenizer should find easy to say."""
