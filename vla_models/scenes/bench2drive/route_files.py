"""Reading route files of the CARLA leaderboard 2.0, Bench2Drive's among them.

CARLA's frame ends here: y and yaw are negated, degrees become radians. Documents with a DOCTYPE are refused, so nothing outside
the file is ever read and no entity can grow.
"""

from __future__ import annotations

import math
import xml.parsers.expat
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np

from vla_models.errors import SceneError, did_you_mean
from vla_models.geometry import wrap_angle
from vla_models.scenes.bench2drive.routes import Route, ScenarioSpec, lay_route, off_route
from vla_models.scenes.bench2drive.scenario_types import PARAMETERS, SCENARIO_TYPES, Parameter, Value
from vla_models.scenes.planner import LanePlanner
from vla_models.scenes.towns import TOWNS, load_town


@dataclass(frozen=True)
class RouteFile:
    """What a file holds."""

    routes: tuple[Route, ...]
    skipped: tuple[str, ...] = ()
    """Routes that were left out (``skip_bad``), each with its error."""
    notes: tuple[str, ...] = ()
    """Scenarios that were dropped by the official rule, and parameters that no class reads."""


@dataclass
class _Element:
    tag: str
    attributes: dict[str, str]
    line: int
    children: list[_Element] = field(default_factory=list)

    def all(self, tag: str) -> Iterator[_Element]:
        return (child for child in self.children if child.tag == tag)

    def one(self, tag: str) -> _Element:
        found = next(self.all(tag), None)
        if found is None:
            raise _Wrong(f"<{self.tag}> has no <{tag}>", self)
        return found

    def text(self, name: str) -> str:
        if name not in self.attributes:
            raise _Wrong(f"<{self.tag}> has no {name}=", self)
        return self.attributes[name]

    def number(self, name: str) -> float:
        text = self.text(name)
        try:
            value = float(text)
        except ValueError:
            raise _Wrong(f"<{self.tag}> has {name}={text!r}, which is no number", self) from None
        if not math.isfinite(value):
            raise _Wrong(f"<{self.tag}> has {name}={text!r}, which is not finite", self)
        return value


class _Wrong(Exception):
    """Something is wrong with an element; the caller adds the file and the route. ``harmless``: a route may live with it."""

    def __init__(self, what: str, where: _Element, harmless: bool = False) -> None:
        super().__init__(what)
        self.line = where.line
        self.harmless = harmless


def read_routes(path: str | Path, *, skip_bad: bool = False, only: set[str] | None = None) -> RouteFile:
    """The routes of an XML file, in its order; ``only``: those with these ids.

    A scenario is dropped and noted, as officially, where its trigger lies off the route or a parameter is one that the official
    class refuses. ``SceneError`` names the file, the line and the route: malformed XML, an unknown town or scenario type, a way
    point off the road, a gap that no lanes bridge, a route that loses all its scenarios (but for a trigger on the lane beside).
    With ``skip_bad`` such routes are left out and listed; a file that is no XML at all is an error still.
    """
    file = Path(path)
    root = _parse(file)
    elements = [e for e in root.all("route") if only is None or e.attributes.get("id") in only]
    if only is not None and (absent := only - {e.attributes.get("id", "") for e in elements}):
        raise SceneError(f"{file} has no route with id {', '.join(sorted(absent))}")
    if not elements:
        raise SceneError(f"{file}: no <route> inside <{root.tag}>")
    seen: set[str] = set()
    found: dict[int, Route] = {}
    skipped: dict[int, str] = {}
    notes: dict[int, list[str]] = {}
    planner: LanePlanner | None = None
    # town by town, so that only one is in memory
    for i in sorted(range(len(elements)), key=lambda k: elements[k].attributes.get("town", "")):
        element = elements[i]
        name = element.attributes.get("id", "")
        try:
            town = _town(element, seen)
            if planner is None or planner.graph.town != town:
                planner = LanePlanner(load_town(town))
            found[i], notes[i] = _route(element, planner)
        except _Wrong as wrong:
            error = f"{file}, line {wrong.line}, route {name!r}: {wrong}"
            if not skip_bad:
                raise SceneError(error) from None
            skipped[i] = error
    return RouteFile(
        tuple(found[i] for i in sorted(found)),
        tuple(skipped[i] for i in sorted(skipped)),
        tuple(f"route {found[i].id!r}: {note}" for i in sorted(found) for note in notes[i]),
    )


def _parse(file: Path) -> _Element:
    """The document's root. ``SceneError`` where it cannot be read, is no XML or has a DOCTYPE."""
    parser = xml.parsers.expat.ParserCreate()
    top = _Element("", {}, 0)
    open_ = [top]

    def start(tag: str, attributes: dict[str, str]) -> None:
        element = _Element(tag, attributes, parser.CurrentLineNumber)
        open_[-1].children.append(element)
        open_.append(element)

    def doctype(*_: object) -> None:
        raise SceneError(f"{file}, line {parser.CurrentLineNumber}: a route file has no DOCTYPE and no entities; remove it")

    parser.StartElementHandler = start
    parser.EndElementHandler = lambda _: open_.pop()
    parser.StartDoctypeDeclHandler = doctype
    try:
        parser.Parse(file.read_bytes(), True)
    except OSError as error:
        raise SceneError(f"cannot read the routes {file}: {error.strerror}") from None
    except xml.parsers.expat.ExpatError as error:
        raise SceneError(
            f"{file}, line {error.lineno}: not well-formed XML ({xml.parsers.expat.ErrorString(error.code)})"
        ) from None
    return top.children[0]


def _town(element: _Element, seen: set[str]) -> str:
    route = element.text("id")
    if route in seen:
        raise _Wrong("an earlier route has the same id", element)
    seen.add(route)
    town = element.text("town")
    if town not in TOWNS:
        raise _Wrong(f"there is no town {town!r}; {did_you_mean(town, TOWNS)}", element)
    return town


def _route(element: _Element, planner: LanePlanner) -> tuple[Route, list[str]]:
    way = element.one("waypoints")
    positions = list(way.all("position"))
    places = np.array([(p.number("x"), -p.number("y"), p.number("z")) for p in positions]).reshape(-1, 3)
    try:
        route = lay_route(planner, places, element.text("id"))
    except SceneError as error:
        raise _Wrong(str(error), positions[_way_point(str(error))] if positions else way) from None
    kept: list[ScenarioSpec] = []
    dropped: list[str] = []
    notes: list[str] = []
    wrong: _Wrong | None = None
    scenarios = list(element.one("scenarios").all("scenario"))
    for scenario in scenarios:
        name, kind = scenario.text("name"), scenario.text("type")
        if kind not in SCENARIO_TYPES:
            raise _Wrong(f"scenario {name!r} has the unknown type {kind!r}; {did_you_mean(kind, SCENARIO_TYPES)}", scenario)
        try:
            parameters, unread = _parameters(scenario, kind)
            kept.append(_scenario(scenario, parameters, route))
        except _Wrong as reason:
            wrong = wrong if reason.harmless else reason
            dropped.append(f"scenario {name!r} (line {reason.line}) is left out: {reason}")
        else:
            notes += [f"scenario {name!r}: nobody reads its <{tag}>" for tag in unread]
    if wrong is not None and not kept:
        wrong.args = (f"no scenario of it can run: {'; '.join(dropped)}",)
        raise wrong
    weathers = [w for group in element.all("weathers") for w in group.all("weather")]
    weather = tuple({name: w.number(name) for name in w.attributes} for w in weathers)
    route = replace(
        route,
        scenarios=tuple(kept),
        dropped=tuple(dropped),
        theme=scenarios[0].text("type") if scenarios else "",
        weather=weather,
    )
    return route, dropped + notes


def _scenario(scenario: _Element, parameters: dict[str, Value], route: Route) -> ScenarioSpec:
    """A scenario whose trigger lies on the route."""
    trigger = scenario.one("trigger_point")
    x, y, heading = trigger.number("x"), -trigger.number("y"), float(wrap_angle(-np.radians(trigger.number("yaw"))))
    reason = off_route((x, y, heading, trigger.number("z")), route.points, route.elevation)
    if reason is not None:
        raise _Wrong(reason[0], trigger, harmless=reason[1])
    at = int(np.hypot(route.points[:, 0] - x, route.points[:, 1] - y).argmin())
    return ScenarioSpec(scenario.text("name"), scenario.text("type"), (x, y, heading), parameters, at)


def _way_point(error: str) -> int:
    """Index of the way point that ``lay_route``'s error names ("way point 3 of 7 …"), the first one if it names none."""
    return int(error.split()[2]) - 1 if error.startswith("way point ") else 0


def _parameters(scenario: _Element, kind: str) -> tuple[dict[str, Value], list[str]]:
    """The parameters that the type reads, with defaults; and the names of those that no type knows."""
    known = SCENARIO_TYPES[kind]
    values: dict[str, Value] = {name: default for name, default in known.items() if default is not None}
    unread = []
    for child in scenario.children:
        if child.tag in PARAMETERS:
            values[child.tag] = _value(child, PARAMETERS[child.tag])
        elif child.tag not in _NO_PARAMETERS:
            unread.append(child.tag)
    for name in known:
        if name not in values:
            raise _Wrong(f"scenario {scenario.text('name')!r} ({kind}) needs <{name}>", scenario)
    return values, unread


_NO_PARAMETERS: Final = frozenset({"trigger_point", "other_actor"})


def _value(element: _Element, parameter: Parameter) -> Value:
    if parameter.kind == "word":
        word = element.text("value")
        if parameter.words and word not in parameter.words:
            raise _Wrong(f"<{element.tag}> is {word!r}; {did_you_mean(word, parameter.words)}", element)
        return word
    if parameter.kind == "place":
        return element.number("x"), -element.number("y"), element.number("z")
    names: tuple[str, ...] = ("value", "value") if "value" in element.attributes else ("from", "to")
    if parameter.kind == "number":
        names = ("value",)
    numbers = tuple(element.number(name) for name in names)
    for number in numbers:
        if not parameter.least <= number <= parameter.most:
            allowed = f"{parameter.least:g} to {parameter.most:g}" if parameter.most < 1e9 else f"at least {parameter.least:g}"
            raise _Wrong(f"<{element.tag}> is {number:g} {parameter.unit}; {allowed} is possible", element)
    if len(numbers) == 2 and numbers[0] > numbers[1]:
        raise _Wrong(f"<{element.tag}> goes from {numbers[0]:g} to {numbers[1]:g}, backwards", element)
    return numbers[0] if parameter.kind == "number" else numbers
