"""A moment of the closed loop seen from above, for people: the ego drives up the page.

``bird`` draws NavSim's scenes with matplotlib, for papers; this one draws the
frames of a film with pillow, on a town's lane graph.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from vla_models.geometry import box_corners, to_frame
from vla_models.scenes.lanes import SIDES, FloatArray, LaneGraph

STYLES: Final[dict[str, tuple[str, str]]] = {
    "car": ("#5b7894", "#34495e"),
    "truck": ("#3f6b8a", "#26425a"),
    "police": ("#2456c9", "#12307a"),
    "ambulance": ("#f3f5f7", "#c81e1e"),
    "bicycle": ("#9c36b5", "#5f1f70"),
    "walker": ("#d6336c", "#8f1d45"),
    "cone": ("#f76707", "#a34200"),
    "sign": ("#f08c00", "#9c5b00"),
    "barrier": ("#f08c00", "#9c5b00"),
    "debris": ("#7f6a55", "#4f4235"),
    "door": ("#7f6a55", "#4f4235"),
}
"""Class of an agent -> fill and outline."""
VEHICLES: Final = ("car", "truck", "police", "ambulance")
"""Classes with a windscreen, which tells which way they look."""
PLAN: Final = "#e4007f"
EGO: Final = "#15202b"
MARK: Final = "#d6001c"
INK: Final = "#1f2933"
LIGHTS: Final = ("#2fb344", "#f5b301", "#e02b20")
"""Colours of a light's states 0, 1, 2."""

_GROUND: Final = "#e9efe4"
_SIDEWALK: Final = "#dcdcd4"
_SHOULDER: Final = "#d2d5d6"
_PARKING: Final = "#bcc2ca"
_ROAD: Final = "#c8ccd1"
_JUNCTION: Final = "#c2c6cc"
_WHITE: Final = "#f9fafb"
_YELLOW: Final = "#e0ac1b"
_ROUTE: Final = "#9fc0ee"
_STOP: Final = "#c92a2a"
_LINE: Final = 0.16
"""Metres; width of lane lines."""
_DASH: Final = 3.0
_PERIOD: Final = 9.0
"""Metres of a dash, and from one dash to the next."""
_ONCOMING: Final = SIDES.index("oncoming")
_SAMPLES: Final = 2
"""Drawn so many times too large and averaged, against jagged edges."""


@dataclass(frozen=True)
class Moment:
    """What is drawn, in the town's frame."""

    ego: FloatArray
    """[3] pose of the rear axle."""
    ego_box: FloatArray
    """[5] x, y, heading of the box centre, length, width."""
    boxes: FloatArray
    """[A, 5] the same of the agents."""
    kinds: tuple[str, ...]
    """[A] their classes, keys of ``STYLES``."""
    lights: npt.NDArray[np.int8]
    """[T] states of the lights of the ``StreetMap``'s graph: 0 green, 1 yellow, 2 red."""
    route: FloatArray
    """[R, 2] the route."""
    plan: FloatArray | None = None
    """[T, 2] the plan in force, from where it was made; None: there is none."""
    marks: tuple[tuple[float, float, str], ...] = ()
    """Places (x, y) where something went wrong, with a word about it."""


@dataclass(frozen=True)
class _View:
    """From the town's frame to pixels."""

    ego: FloatArray
    scale: float
    """Pixels a metre."""
    middle: tuple[float, float]
    """Pixel of the ego's rear axle."""

    def __call__(self, points: npt.ArrayLike) -> list[tuple[float, float]]:
        ahead, left = to_frame(np.asarray(points, dtype=np.float64)[..., :2], self.ego).T
        x, y = self.middle[0] - self.scale * left, self.middle[1] - self.scale * ahead
        return list(zip(x.tolist(), y.tolist(), strict=True))


@dataclass(frozen=True)
class _Shape:
    """A polygon, or a line where it has a width."""

    points: FloatArray
    colour: str
    width: float = 0.0
    """Metres."""
    middle: FloatArray = field(init=False)
    radius: float = field(init=False)

    def __post_init__(self) -> None:
        low, high = self.points.min(axis=0), self.points.max(axis=0)
        object.__setattr__(self, "middle", 0.5 * (low + high))
        object.__setattr__(self, "radius", 0.5 * float(np.hypot(*(high - low))))


class StreetMap:
    """The roads around a route, ready to be drawn again and again."""

    def __init__(self, graph: LaneGraph) -> None:
        """``graph``: the route's part of its town (``scenes.surroundings``)."""
        self.graph = graph
        self._shapes = [*_surfaces(graph), *_lane_lines(graph)]
        self._middles = np.array([shape.middle for shape in self._shapes]).reshape(-1, 2)
        self._radii = np.array([shape.radius for shape in self._shapes])

    def draw(self, moment: Moment, size: tuple[int, int], metres: float = 60.0, behind: float = 0.3) -> PIL.Image.Image:
        """The picture, ``size`` (width, height) pixels: ``metres`` high, of which the share ``behind`` lies behind the ego."""
        width, height = size[0] * _SAMPLES, size[1] * _SAMPLES
        scale = height / metres
        view = _View(moment.ego[:3], scale, (width / 2.0, (1.0 - behind) * height))
        picture = PIL.Image.new("RGB", (width, height), _GROUND)
        draw = PIL.ImageDraw.Draw(picture)
        reach = float(np.hypot(width / 2.0, max(behind, 1.0 - behind) * height)) / scale
        away = np.hypot(*(self._middles - moment.ego[:2]).T) if len(self._middles) else np.zeros(0)
        shapes = [self._shapes[k] for k in np.flatnonzero(away < reach + self._radii)]
        pixels = view(np.concatenate([np.zeros((0, 2)), *(shape.points for shape in shapes)]))
        end = 0
        for shape in shapes:
            begin, end = end, end + len(shape.points)
            line = pixels[begin:end]
            if shape.width:
                draw.line(line, shape.colour, max(1, round(shape.width * scale)))
            else:
                draw.polygon(line, shape.colour)
        near = np.hypot(*(moment.route - moment.ego[:2]).T) < reach
        if near.sum() > 1:
            first, last = np.flatnonzero(near)[[0, -1]]
            draw.line(view(moment.route[first : last + 1]), _ROUTE, round(0.9 * scale), joint="curve")
        self._lights(draw, view, moment.lights)
        for box, kind in zip(moment.boxes, moment.kinds, strict=True):
            _draw_box(draw, view, box, *STYLES[kind], front="#22303d" if kind in VEHICLES else None)
        if moment.plan is not None:
            line = view(moment.plan)
            draw.line(line, "#ffffff", round(0.75 * scale), joint="curve")
            draw.line(line, PLAN, round(0.4 * scale), joint="curve")
            for x, y in line[1:]:
                _dot(draw, x, y, 0.42 * scale, PLAN, "#ffffff")
        _draw_box(draw, view, moment.ego_box, EGO, "#ffffff", front="#8fd3ff")
        for x, y, word in moment.marks:
            ((px, py),) = view([[x, y]])
            r = 0.9 * scale
            draw.line([(px - r, py - r), (px + r, py + r)], MARK, round(0.4 * scale))
            draw.line([(px - r, py + r), (px + r, py - r)], MARK, round(0.4 * scale))
            at, edge = (px + 1.5 * r, py), 2 * _SAMPLES
            draw.text(at, word, MARK, font(13 * _SAMPLES), anchor="lm", stroke_width=edge, stroke_fill="#ffffff")
        return picture.reduce(_SAMPLES)

    def _lights(self, draw: PIL.ImageDraw.ImageDraw, view: _View, states: npt.NDArray[np.int8]) -> None:
        """A light is a dot at its head and a line across the lanes that it stops, both in its colour."""
        graph, scale = self.graph, view.scale
        for pose, line, state in zip(graph.light_pose, graph.stop_lines, states.tolist(), strict=True):
            draw.line(view(line), LIGHTS[state], round(0.5 * scale))
            ((x, y),) = view(pose[None])
            _dot(draw, x, y, 0.6 * scale, LIGHTS[state], "#222222")
        for x, y in view(graph.stop_pose):
            corners = [(x + 0.7 * scale * np.cos(a), y + 0.7 * scale * np.sin(a)) for a in np.pi / 4.0 * (np.arange(8) + 0.5)]
            draw.polygon(corners, _STOP, "#ffffff", max(1, round(0.12 * scale)))


@lru_cache(maxsize=16)
def font(size: int) -> PIL.ImageFont.FreeTypeFont | PIL.ImageFont.ImageFont:
    """Pillow's own font, ``size`` pixels high."""
    return PIL.ImageFont.load_default(size)


def _draw_box(draw: PIL.ImageDraw.ImageDraw, view: _View, box: FloatArray, fill: str, edge: str, front: str | None) -> None:
    """A box [5]; ``front``: colour of a windscreen."""
    length, width = max(float(box[3]), 0.5), max(float(box[4]), 0.5)  # a cone would be too small to be seen
    corners = box_corners(float(box[0]), float(box[1]), float(box[2]), length, width)
    draw.polygon(view(corners), fill, edge, max(1, round(0.16 * view.scale)))
    if front is not None:
        left, right = corners[1] - corners[0], corners[2] - corners[3]
        inner = 0.1 * (corners[3] - corners[0])
        a, b = corners[0] + inner, corners[3] - inner
        draw.polygon(view([a + 0.22 * left, a + 0.36 * left, b + 0.36 * right, b + 0.22 * right]), front)


def _dot(draw: PIL.ImageDraw.ImageDraw, x: float, y: float, radius: float, fill: str, edge: str) -> None:
    draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill, edge, max(1, round(0.3 * radius)))


def _surfaces(graph: LaneGraph) -> Iterable[_Shape]:
    """Everything that has an area, what lies lowest first."""
    for name, colour in (("sidewalk", _SIDEWALK), ("shoulder", _SHOULDER), ("parking", _PARKING)):
        offsets: npt.NDArray[np.int64] = getattr(graph, f"{name}_offsets")
        vertices: FloatArray = getattr(graph, f"{name}_vertices")
        for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
            if b - a > 2:
                yield _Shape(vertices[a:b], colour)
    height = np.add.reduceat(graph.elevation, graph.offsets[:-1]) / np.diff(graph.offsets) if len(graph) else np.zeros(0)
    for lane in np.lexsort((graph.junction < 0, np.round(height))).tolist():  # junctions under the roads that lead into them
        yield _Shape(graph.lane_polygon(lane), _ROAD if graph.junction[lane] < 0 else _JUNCTION)
    for quad in graph.crosswalks:
        yield from _stripes(quad)


def _stripes(quad: FloatArray) -> Iterable[_Shape]:
    """The stripes of a crosswalk [4, 2], along the traffic: across its longer sides."""
    a, b, c, d = quad if np.hypot(*(quad[1] - quad[0])) >= np.hypot(*(quad[2] - quad[1])) else np.roll(quad, 1, axis=0)
    count = max(1, int(np.hypot(*(b - a)) / 1.2))
    for k in range(count):
        u, v = (k + 0.25) / count, (k + 0.75) / count
        yield _Shape(np.stack([a + u * (b - a), a + v * (b - a), d + v * (c - d), d + u * (c - d)]), _WHITE)


def _lane_lines(graph: LaneGraph) -> Iterable[_Shape]:
    """Lines of the lanes outside junctions: dashed where they may be crossed, yellow towards oncoming traffic."""
    for lane in np.flatnonzero(graph.junction < 0).tolist():
        at = graph.stations(lane)
        left, right, arc = graph.left[at], graph.right[at], graph.arc[at]
        if graph.left_lane[lane] < 0:
            yield _Shape(left, _YELLOW if graph.left_side[lane] == _ONCOMING else _WHITE, _LINE)
        if graph.right_lane[lane] < 0:
            yield _Shape(right, _YELLOW if graph.right_side[lane] == _ONCOMING else _WHITE, _LINE)
        elif graph.right_change[lane] or graph.left_change[graph.right_lane[lane]]:
            dash = np.floor(arc / _PERIOD)
            for k in np.unique(dash).tolist():
                part = right[(dash == k) & (arc - k * _PERIOD <= _DASH)]
                if len(part) > 1:
                    yield _Shape(part, _WHITE, _LINE)
        else:
            yield _Shape(right, _WHITE, _LINE)
