"""Reading links, speed limits and controllers from OpenDRIVE text."""

from __future__ import annotations

import pytest

from vla_models.scenes.opendrive import Network, lane_links, read_network, speed_limit


def lane(number: int, kind: str = "driving", before: int | None = None, after: int | None = None, inner: str = "") -> str:
    links = f'<predecessor id="{before}"/>' if before is not None else ""
    links += f'<successor id="{after}"/>' if after is not None else ""
    return f'<lane id="{number}" type="{kind}"><link>{links}</link>{inner}</lane>'


def road(number: int, sections: list[tuple[float, str]], link: str = "", types: str = "", junction: int = -1) -> str:
    parts = "".join(f'<laneSection s="{s}"><right>{lanes}</right></laneSection>' for s, lanes in sections)
    return f'<road id="{number}" length="100" junction="{junction}"><link>{link}</link>{types}<lanes>{parts}</lanes></road>'


def network(*parts: str) -> Network:
    return read_network(f"<OpenDRIVE>{''.join(parts)}</OpenDRIVE>".encode())


def to(kind: str, number: int, contact: str) -> str:
    return f'<{kind} elementType="road" elementId="{number}" contactPoint="{contact}"/>'


def test_links_follow_the_driving_direction_whatever_way_the_roads_run() -> None:
    """Road 1 runs into the end of road 2, which is drawn the other way round."""
    net = network(
        road(1, [(0, lane(-1, after=1) + lane(1, after=-1))], to("successor", 2, "end")),
        road(2, [(0, lane(1, after=-1) + lane(-1, after=1))], to("successor", 1, "end")),
    )
    assert set(lane_links(net)) == {((1, 0, -1), (2, 0, 1)), ((2, 0, -1), (1, 0, 1))}


def test_links_between_sections_and_from_one_side_only() -> None:
    net = network(
        road(1, [(0, lane(-1, after=-1) + lane(1, after=1)), (40, lane(-1) + lane(1))]),
        road(2, [(0, lane(-1, before=-1))], to("predecessor", 1, "end"), junction=5),
    )
    assert set(lane_links(net)) == {((1, 0, -1), (1, 1, -1)), ((1, 1, 1), (1, 0, 1)), ((1, 1, -1), (2, 0, -1))}
    assert net.roads[2].junction == 5


@pytest.mark.parametrize("other", [lane(-1, "sidewalk"), lane(-2)])
def test_only_driving_lanes_that_exist_are_linked(other: str) -> None:
    net = network(road(1, [(0, lane(-1, after=-1))], to("successor", 2, "start")), road(2, [(0, other)]))
    assert list(lane_links(net)) == []


def test_a_link_to_a_junction_or_to_a_missing_road_is_none() -> None:
    junction = '<successor elementType="junction" elementId="9"/>'
    net = network(
        road(1, [(0, lane(-1, after=-1))], junction),
        road(2, [(0, lane(-1, after=-1))], to("successor", 77, "start")),
    )
    assert net.roads[1].successor is None
    assert list(lane_links(net)) == []


def limit(types: str = "", inner: str = "") -> float | None:
    found = network(road(1, [(0, lane(-1, inner=inner))], types=types)).roads[1]
    return speed_limit(found, found.sections[0], found.sections[0].lanes[-1])


def record(s: float, value: float, unit: str | None) -> str:
    return f'<type s="{s}"><speed max="{value}"{f" unit={unit!r}" if unit else ""}/></type>'


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [(25, "mph", 11.176), (50, "km/h", 50 / 3.6), (13, "m/s", 13), (13, None, 13), (120, "mph", 120 / 3.6)],
)
def test_units_of_speed(value: float, unit: str | None, expected: float) -> None:
    """120 mph is Town13's way of writing 120 km/h."""
    assert limit(record(0, value, unit)) == pytest.approx(expected)


def test_the_limit_in_the_middle_counts_and_the_lane_overrules_the_road() -> None:
    types = record(0, 10, None) + record(30, 20, None) + record(70, 30, None)
    assert limit(types) == 20
    assert limit(types, '<speed sOffset="0" max="5"/><speed sOffset="60" max="6"/>') == 5
    assert limit(record(80, 30, None)) is None
    assert limit() is None


def test_controllers_name_their_signals() -> None:
    net = network('<controller id="4"><control signalId="11"/><control signalId="12"/></controller>')
    assert net.controllers == {"11": 4, "12": 4}
