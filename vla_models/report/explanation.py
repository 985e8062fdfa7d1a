"""Why a plan lost its points, for people: sentences, and a picture in which each of them has a number."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from vla_models.errors import MissingDependency, OutputError
from vla_models.files import atomic_path
from vla_models.geometry import box_corners, to_frame
from vla_models.render.bird import EGO_CENTRE, EGO_LENGTH, EGO_WIDTH, draw_scene, on_page
from vla_models.report.report import FACTORS, WEIGHTS
from vla_models.scenes.scene import Scene
from vla_models.scoring.pdm.closed import reference_plan
from vla_models.scoring.pdm.explain import (
    Collision,
    Contact,
    Explanation,
    Fact,
    Harsh,
    OffCentre,
    OffRoad,
    RedLight,
    Slow,
    TooClose,
    WrongWay,
)
from vla_models.scoring.pdm.track import DT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FloatArray = npt.NDArray[np.float64]

_COLOUR: Final = "#d6001c"
_OTHER: Final = "#7b2cbf"
_STRETCH: Final = "#ff8a00"
_UNITS: Final = {"acceleration": "m/s²", "jerk": "m/s³", "yaw rate": "rad/s", "yaw acceleration": "rad/s²"}
_FAULTS: Final = {
    "stopped": "at fault, because the other stands still",
    "front": "at fault, because it hits with its front",
    "lateral": "at fault, because it is {place}",
}
_NEAR: Final = {"front": "which is ahead", "lateral": "which is beside it while it is {place}"}


@dataclass(frozen=True)
class Line:
    """One sentence of an explanation."""

    term: str
    """The sub-score, "nc", "dac", …"""
    value: float
    """What it came to."""
    cost: str
    """What that does to the total."""
    text: str


def explained(scene: Scene, explanation: Explanation, human: Mapping[str, float] | None = None) -> list[Line]:
    """A line for each fact, in the facts' order.

    ``human``: the recorded human's own sub-scores (``human_terms``); where they are 0, the line says that the official human
    filter forgives this.
    """
    lines = []
    for fact in explanation.facts:
        value = float(getattr(explanation.scores, fact.term)[0, 0])
        forgiven = " (the recorded human lost this, too: the human filter forgives it)"
        text = _sentence(scene, fact) + (forgiven if human and human.get(fact.term) == 0.0 else "")
        lines.append(Line(fact.term, value, _cost(fact.term, value, explanation.scores.version), text))
    return lines


def title(explanation: Explanation, row: int) -> str:
    """The plan and its total."""
    scores = explanation.scores
    total = float(scores.score[0, 0])
    return f"{scores.tokens[0]}, proposal {row}: {total:.4f} ({scores.version}, driven backwards {scores.reverse[0, 0]:.2f} m)"


def _cost(term: str, value: float, version: str) -> str:
    if term in FACTORS[version]:
        return f"total × {value:g}"
    weights = WEIGHTS[version]
    if term in weights:
        return f"mean − {weights[term] * (1.0 - value) / sum(weights.values()):.3f}"
    return "not counted"


def _sentence(scene: Scene, fact: Fact) -> str:
    match fact:
        case Collision():
            what = f"hits {fact.kind} {fact.agent!r} at {_at(fact.step)}, going {fact.speed:.1f} m/s"
            return f"{what}; {_FAULTS[fact.how].format(place=fact.place)}"
        case TooClose():
            what = (
                f"at {_at(fact.step)}, going {fact.speed:.1f} m/s, {fact.ahead:.1f} s from hitting {fact.kind} {fact.agent!r}"
            )
            return f"{what}, {_NEAR[fact.how].format(place=fact.place)}"
        case OffRoad():
            ahead, left = to_frame(fact.points, scene.ego[:3])[0]
            where = f"{ahead:.1f} m ahead and {abs(left):.1f} m to the {'left' if left >= 0 else 'right'} of the start"
            corners = " and ".join(fact.corners) + (" corner" if len(fact.corners) == 1 else " corners")
            start = ", where every plan begins" if fact.step == 0 else ""
            return f"{corners} off the drivable area from {_at(fact.step)}, {where}{start}; {len(fact.steps) * DT:.1f} s in all"
        case WrongWay():
            return f"{fact.metres:.1f} m against the driving direction within the second before {_at(fact.step)}"
        case RedLight():
            return f"on lane connector {fact.light!r} at {_at(fact.step)} while its light is red"
        case OffCentre():
            side = "left" if fact.deviation >= 0 else "right"
            away = f"up to {abs(fact.deviation):.2f} m {side} of the route's centre line"
            return f"{away} by {_at(fact.step)}, off it since {_at(fact.first)}"
        case Harsh():
            unit = next(unit for name, unit in reversed(_UNITS.items()) if fact.quantity.endswith(name))
            when = f"at {fact.seconds:.1f} s" if fact.seconds >= 0 else f"{-fact.seconds:.1f} s before the plan begins"
            return f"{fact.quantity} of {fact.value:.2f} {unit} {when}, beyond {fact.bound:.2f}"
        case Slow():
            counted = f"{fact.metres:.1f} m along the route"
            if fact.factor < 1.0:
                counted += f", of which v1 counts {fact.factor * fact.metres:.1f} m after the factors above"
            return f"{counted}; {fact.best:.1f} m would be all (PDM-Closed: {fact.reference:.1f} m)"


def _at(step: int) -> str:
    return f"{step * DT:.1f} s"


def write_picture(path: Path, scene: Scene, plan: npt.ArrayLike, explanation: Explanation, lines: list[Line], row: int) -> None:
    """Write a PNG: the scene with the plan, where and with whom points were lost, and the sentences beside it.

    Raises MissingDependency without matplotlib, OutputError if ``path`` cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependency(f"pictures need matplotlib ({error}): pip install matplotlib") from error
    figure = Figure(figsize=(11.0, 6.0))
    figure.patch.set_facecolor("white")
    ax = figure.add_axes((0.0, 0.0, 6.0 / 11.0, 1.0))
    reach = float(np.abs(np.asarray(plan)[:, :2]).max())
    plans = {"plan": plan, "pdm_closed": reference_plan(scene)}
    draw_scene(scene, plans, ax, extent=float(np.clip(1.35 * reach + 8.0, 36.0, 110.0)))
    states = explanation.scores.states
    assert states is not None
    driven = states[0, 0]
    ax.plot(*on_page(driven, scene.ego).T, color="#15202b", lw=1.0, ls=":", zorder=11)
    for number, fact in enumerate(explanation.facts, 1):
        _mark(ax, scene, driven, fact, number)
    text = [*textwrap.wrap(title(explanation, row), 58), ""]
    for number, line in enumerate(lines, 1):
        text += textwrap.wrap(
            f"{number}  {line.term} = {line.value:.3g}  ({line.cost}): {line.text}", 58, subsequent_indent="   "
        )
    figure.text(
        6.2 / 11.0, 0.96, "\n".join(text if lines else [*text, "Nothing was lost."]), va="top", fontsize=9.5, color="#1f2933"
    )  # fmt: skip
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(buffer.getvalue())
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}") from error


def _mark(ax: Axes, scene: Scene, driven: FloatArray, fact: Fact, number: int) -> None:
    """Draw where a fact happened, with its number."""
    at: FloatArray | None = None
    match fact:
        case Contact():
            later = round(fact.ahead / DT) if isinstance(fact, TooClose) else 0
            length, width = scene.tracks.size[fact.track, :2]
            ego = _footprint(driven[fact.step], driven[fact.step, 3] * later * DT)
            _box(ax, scene, ego, "--" if later else "-")
            _box(ax, scene, box_corners(*fact.pose, length, width), "--" if later else "-", _OTHER)
            at = np.array(fact.pose[:2])
        case OffRoad():
            _box(ax, scene, _footprint(driven[fact.step]), "-")
            out = on_page(fact.points, scene.ego)
            ax.scatter(out[:, 0], out[:, 1], marker="x", s=70, c=_COLOUR, linewidths=2.2, zorder=14)
            at = fact.points[0]
        case RedLight():
            ring = on_page(scene.polygons.ring(fact.polygon), scene.ego)
            ax.fill(*ring.T, facecolor="#d6001c33", edgecolor=_COLOUR, lw=1.2, zorder=3)
            _box(ax, scene, _footprint(driven[fact.step]), "-")
            at = driven[fact.step, :2]
        case WrongWay():
            at = _stretch(ax, scene, driven[list(fact.steps)])
        case OffCentre():
            at = _stretch(ax, scene, driven[fact.first : fact.step + 1])
        case Harsh():
            at = driven[max(0, round(fact.seconds / DT)), :2]
        case Slow():
            at = driven[-1, :2]
    around = 2.4 * number  # radians: neighbours in number lie on different sides
    ax.annotate(
        str(number), on_page(at[None], scene.ego)[0], xytext=(20.0 * np.cos(around), 20.0 * np.sin(around)),
        textcoords="offset points", zorder=15, fontsize=8.5, fontweight="bold", color="white", ha="center", va="center",
        annotation_clip=True, bbox={"boxstyle": "circle,pad=0.22", "fc": _COLOUR, "ec": "white", "lw": 0.8},
        arrowprops={"arrowstyle": "-", "color": _COLOUR, "lw": 1.0},
    )  # fmt: skip


def _footprint(state: FloatArray, ahead: float = 0.0) -> FloatArray:
    """Corners of the ego box of a driven state, moved ``ahead`` metres."""
    reach = EGO_CENTRE + ahead
    x, y, heading = state[0] + reach * np.cos(state[2]), state[1] + reach * np.sin(state[2]), state[2]
    return box_corners(x, y, heading, EGO_LENGTH, EGO_WIDTH)


def _box(ax: Axes, scene: Scene, corners: FloatArray, style: Any, colour: str = _COLOUR) -> None:
    ring = on_page(np.concatenate([corners, corners[:1]]), scene.ego)
    ax.plot(*ring.T, color=colour, lw=1.8, ls=style, zorder=13)


def _stretch(ax: Axes, scene: Scene, states: FloatArray) -> FloatArray:
    """Draw a stretch of the way; returns its middle."""
    ax.plot(*on_page(states, scene.ego).T, color=_STRETCH, lw=7.0, alpha=0.45, solid_capstyle="round", zorder=9)
    middle: FloatArray = states[len(states) // 2, :2]
    return middle
