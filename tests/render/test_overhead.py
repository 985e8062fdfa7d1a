"""The town from above: where things are drawn, and in which colour."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import PIL.ImageColor
import pytest

from vla_models.geometry import from_frame
from vla_models.render.overhead import EGO, LIGHTS, MARK, PLAN, STYLES, Moment, StreetMap
from vla_models.scenes.bench2drive.made_routes import generate_route
from vla_models.scenes.surroundings import surroundings
from vla_models.scenes.towns import load_town

SIZE, METRES, BEHIND = (300, 300), 60.0, 0.3
SCALE = SIZE[1] / METRES


@lru_cache(maxsize=1)
def street() -> StreetMap:
    route = generate_route("Town03", "SignalizedJunctionLeftTurn", 0)
    return StreetMap(surroundings(load_town("Town03"), route.points)[0])


@lru_cache(maxsize=1)
def moment() -> Moment:
    """In front of the first light, nobody there."""
    graph = street().graph
    line = graph.stop_lines[0]
    heading = graph.center[graph.offsets[graph.governed_lanes(0)[0]], 2]
    ego = from_frame(np.array([-12.0, 0.0, 0.0]), np.array([*line.mean(axis=0), heading]))
    centre = from_frame(np.array([1.4, 0.0, 0.0]), ego)
    return Moment(
        ego=ego, ego_box=np.array([*centre, 4.9, 1.9]), boxes=np.zeros((0, 5)), kinds=(),
        lights=np.zeros(len(graph.light_pose), dtype=np.int8), route=np.zeros((0, 2)),
    )  # fmt: skip


def colour_at(picture: PIL.Image.Image, ahead: float, left: float) -> tuple[int, ...]:
    """The pixel at a place in the ego's frame."""
    x, y = SIZE[0] / 2 - SCALE * left, (1.0 - BEHIND) * SIZE[1] - SCALE * ahead
    return np.asarray(picture)[int(y), int(x)].tolist()


def rgb(name: str) -> list[int]:
    return list(PIL.ImageColor.getrgb(name))


def draw(shown: Moment) -> PIL.Image.Image:
    picture = street().draw(shown, SIZE, METRES, BEHIND)
    assert picture.size == SIZE
    return picture


def test_the_ego_is_where_it_should_be() -> None:
    assert colour_at(draw(moment()), 0.6, 0.0) == rgb(EGO)


@pytest.mark.parametrize("state", [0, 1, 2])
def test_lights_have_their_state(state: int) -> None:
    lights = np.full(len(moment().lights), 0, dtype=np.int8)
    lights[0] = state
    assert colour_at(draw(replace(moment(), lights=lights)), 12.0, 0.0) == rgb(LIGHTS[state])


@pytest.mark.parametrize("kind", list(STYLES))
def test_agents_have_the_colour_of_their_class(kind: str) -> None:
    place = from_frame(np.array([22.0, 5.0, 1.0]), moment().ego)
    shown = replace(moment(), boxes=np.array([[*place, 4.5, 2.0]]), kinds=(kind,))
    assert colour_at(draw(shown), 22.0, 5.0) == rgb(STYLES[kind][0])


def test_plan_and_marks_lie_where_they_belong() -> None:
    plan = from_frame(np.array([[0.0, 0.0], [8.0, 0.0], [16.0, -4.0]]), moment().ego)
    x, y = from_frame(np.array([25.0, -6.0]), moment().ego)
    picture = draw(replace(moment(), plan=plan, marks=((float(x), float(y), "hits a cone"),)))
    assert colour_at(picture, 8.0, 0.0) == rgb(PLAN)
    assert colour_at(picture, 25.0, -6.0) == rgb(MARK)


def test_the_road_turns_with_the_car() -> None:
    ahead = draw(moment())
    turned = replace(moment(), ego=moment().ego + np.array([0.0, 0.0, np.pi / 2]))
    road = colour_at(ahead, 20.0, 0.0)
    assert road != rgb("#e9efe4")  # not the open ground
    assert colour_at(draw(turned), 0.0, -20.0) == pytest.approx(road, abs=6)


def test_an_empty_town_is_open_ground() -> None:
    far = replace(moment(), ego=np.array([5000.0, 5000.0, 0.0]), ego_box=np.array([5001.0, 5000.0, 0.0, 4.9, 1.9]))
    assert colour_at(draw(far), 20.0, 5.0) == rgb("#e9efe4")
