"""What a town's OpenDRIVE file says beside geometry: roads, lane sections, links, speed limits, light controllers.

Only what CARLA's map API does not tell is read here; the file is streamed, so a 90 MB town needs little memory.
Ids are CARLA's: lanes with negative ids run along the road's s, those with positive ids against it.
"""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

MILE_PER_HOUR: Final = 0.44704
"""m/s, exact (1 mile = 1609.344 m)."""
IMPLAUSIBLE_MPH: Final = 100.0
"""No road has a limit above this in miles per hour. Town13 writes the very numbers that Town12 has in km/h (120 on the
motorway) as "mph"; a limit beyond this value is read as km/h."""


@dataclass(frozen=True)
class Lane:
    """One lane of one section."""

    kind: str
    """OpenDRIVE lane type: driving, parking, sidewalk, …"""
    before: int | None
    """Lane id that it continues against s: in the previous section, or in the road before."""
    after: int | None
    """Lane id that continues it along s."""
    speeds: tuple[tuple[float, float], ...]
    """(s from the section's start, m/s) of its own speed limits."""


@dataclass(frozen=True)
class Section:
    """Lane section: the part of a road, from ``start`` to ``end`` along s, with one set of lanes."""

    start: float
    end: float
    lanes: dict[int, Lane]


@dataclass(frozen=True)
class Road:
    """One road. A link is (road id, whether its start is the contact point), or None at an end or at a junction."""

    id: int
    junction: int
    length: float
    predecessor: tuple[int, bool] | None
    successor: tuple[int, bool] | None
    speeds: tuple[tuple[float, float], ...]
    """(s, m/s) of the road's speed limits."""
    sections: list[Section]


@dataclass(frozen=True)
class Network:
    """All roads of a town, and which controller switches which signal."""

    roads: dict[int, Road] = field(default_factory=dict)
    controllers: dict[str, int] = field(default_factory=dict)
    """signal id -> controller id."""


LaneKey = tuple[int, int, int]
"""(road id, section index, lane id)."""


def read_network(xodr: bytes) -> Network:
    """Read an OpenDRIVE 1.4 file's text. Raises ``xml.etree.ElementTree.ParseError`` or ``KeyError`` on garbage."""
    network = Network()
    root: ET.Element | None = None
    for event, element in ET.iterparse(io.BytesIO(xodr), events=("start", "end")):
        if root is None:
            root = element
        elif event == "end" and element.tag == "road":
            road = _road(element)
            network.roads[road.id] = road
            root.clear()  # what was read is not needed any more
        elif event == "end" and element.tag == "controller":
            for control in element.findall("control"):
                network.controllers[control.attrib["signalId"]] = int(element.attrib["id"])
    return network


def lane_links(network: Network) -> Iterator[tuple[LaneKey, LaneKey]]:
    """Pairs (lane, lane that continues it in driving direction) of driving lanes; a pair may come twice.

    Lanes name the lane that they touch at either end; both sides are asked, so that a link that only one side has still counts.
    Junctions need no tables of their own: their connecting roads name the lanes they touch as any road does.
    """
    for road in network.roads.values():
        last = len(road.sections) - 1
        for k, section in enumerate(road.sections):
            for lane_id, lane in section.lanes.items():
                if lane.kind != "driving":
                    continue
                here = (road.id, k, lane_id)
                if k < last:
                    ahead = _touching(network, (road.id, k + 1), lane.after)
                else:
                    ahead = _touching(network, _contact(network, road.successor), lane.after)
                behind = _touching(network, (road.id, k - 1) if k else _contact(network, road.predecessor), lane.before)
                exit_, entry = (ahead, behind) if lane_id < 0 else (behind, ahead)
                if exit_ is not None:
                    yield here, exit_
                if entry is not None:
                    yield entry, here


def speed_limit(road: Road, section: Section, lane: Lane) -> float | None:
    """Limit in the middle of a lane, m/s: the lane's own record, else the road's, else None."""
    middle = 0.5 * (section.start + section.end)
    of_lane = [v for s, v in lane.speeds if s <= middle - section.start]
    of_road = [v for s, v in road.speeds if s <= middle]
    return of_lane[-1] if of_lane else of_road[-1] if of_road else None


def _touching(network: Network, place: tuple[int, int] | None, lane: int | None) -> LaneKey | None:
    """Key of driving lane ``lane`` of a (road, section), or None where there is none."""
    if place is None or lane is None:
        return None
    found = network.roads[place[0]].sections[place[1]].lanes.get(lane)
    return (*place, lane) if found is not None and found.kind == "driving" else None


def _contact(network: Network, link: tuple[int, bool] | None) -> tuple[int, int] | None:
    """(road, section) that a link touches."""
    if link is None or link[0] not in network.roads:
        return None
    return link[0], 0 if link[1] else len(network.roads[link[0]].sections) - 1


def _road(element: ET.Element) -> Road:
    length = float(element.attrib["length"])
    parts = element.findall("lanes/laneSection")
    starts = [float(p.attrib["s"]) for p in parts]
    return Road(
        id=int(element.attrib["id"]),
        junction=int(element.attrib["junction"]),
        length=length,
        predecessor=_road_link(element.find("link/predecessor")),
        successor=_road_link(element.find("link/successor")),
        speeds=tuple((float(t.attrib["s"]), _speed(v)) for t in element.findall("type") for v in t.findall("speed")),
        sections=[
            Section(start, end, {int(e.attrib["id"]): _lane(e) for e in part.iter("lane")})
            for part, start, end in zip(parts, starts, [*starts[1:], length], strict=True)
        ],
    )


def _lane(element: ET.Element) -> Lane:
    before, after = element.find("link/predecessor"), element.find("link/successor")
    return Lane(
        kind=element.attrib["type"],
        before=None if before is None else int(before.attrib["id"]),
        after=None if after is None else int(after.attrib["id"]),
        speeds=tuple((float(v.attrib["sOffset"]), _speed(v)) for v in element.findall("speed")),
    )


def _road_link(element: ET.Element | None) -> tuple[int, bool] | None:
    if element is None or element.attrib["elementType"] != "road":
        return None
    return int(element.attrib["elementId"]), element.attrib["contactPoint"] == "start"


def _speed(element: ET.Element) -> float:
    """A <speed> record in m/s."""
    value, unit = float(element.attrib["max"]), element.attrib.get("unit", "m/s")
    if unit == "mph" and value <= IMPLAUSIBLE_MPH:
        return value * MILE_PER_HOUR
    return value if unit == "m/s" else value / 3.6
