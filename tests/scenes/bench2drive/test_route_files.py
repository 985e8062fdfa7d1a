"""Reading route files: what is right is read as it is meant, what is wrong is named with file, line and route."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vla_models.errors import SceneError
from vla_models.scenes.bench2drive.made_routes import generate_route
from vla_models.scenes.bench2drive.route_files import RouteFile, read_routes
from vla_models.scenes.bench2drive.routes import Route, local
from vla_models.scenes.planner import RoadOption
from vla_models.scenes.towns import load_town

REAL = Path(__file__).parents[4] / "shared" / "data" / "routes"


@pytest.fixture(scope="module")
def made() -> Route:
    """A route of our own with a left turn, to be written down in the official form."""
    return generate_route("Town05", "SignalizedJunctionLeftTurn", 2)


def xml_of(route: Route, **changes: str) -> str:
    """An official file with one route; ``changes`` replace parts of it."""
    ends = [*range(0, len(route.points), 20), len(route.points) - 1]  # wide gaps, so that the map is needed
    points = "\n".join(
        f'<position x="{route.points[k, 0]:.2f}" y="{-route.points[k, 1]:.2f}" z="{route.elevation[k]:.1f}"/>' for k in ends
    )
    x, y, heading = route.scenarios[0].trigger
    parts = {
        "id": route.id,
        "town": route.town,
        "waypoints": f"<waypoints>\n{points}\n</waypoints>",
        "type": "SignalizedJunctionLeftTurn",
        "trigger": f'<trigger_point x="{x:.2f}" y="{-y:.2f}" z="0" yaw="{-np.degrees(heading):.2f}"/>',
        "parameters": '<flow_speed value="9"/><source_dist_interval from="12" to="30"/>',
        "before": '<?xml version="1.0"?>',
        "more": "",
        **changes,
    }
    return f"""{parts["before"]}
<routes>
<route id="{parts["id"]}" town="{parts["town"]}">
<weathers><weather route_percentage="0" cloudiness="5.0"/></weathers>
{parts["waypoints"]}
<scenarios>
<scenario name="Turn_1" type="{parts["type"]}">
{parts["trigger"]}
{parts["parameters"]}
</scenario>
{parts["more"]}
</scenarios>
</route>
</routes>
"""


def read(tmp_path: Path, text: str, **options: bool) -> RouteFile:
    path = tmp_path / "routes.xml"
    path.write_text(text)
    return read_routes(path, **options)


def test_a_route_is_read_into_our_frame(made: Route, tmp_path: Path) -> None:
    (route,) = read(tmp_path, xml_of(made)).routes
    assert (route.id, route.town, route.theme) == (made.id, "Town05", "SignalizedJunctionLeftTurn")
    assert route.weather == ({"route_percentage": 0.0, "cloudiness": 5.0},)
    (spec,) = route.scenarios
    assert np.allclose(spec.trigger, made.scenarios[0].trigger, atol=0.01)
    assert spec.parameters == {"flow_speed": 9.0, "source_dist_interval": (12.0, 30.0)}
    assert np.hypot(*(route.points[spec.at, :2] - spec.trigger[:2])) < 1.0
    away = np.linalg.norm(route.points[:, None, :2] - made.points[None, :, :2], axis=-1)
    assert away.min(axis=1).max() < 1.0  # the same way, metre by metre, through gaps of 20 m
    assert away.min(axis=0).max() < 2.5
    step = np.hypot(*np.diff(route.points[:, :2], axis=0).T)
    assert 0.1 < step.min() <= step.max() < 1.5
    assert RoadOption.LEFT in route.option
    assert abs(route.length - made.length) < 4.0
    assert 0.0 < route.junction_share < 1.0


def test_the_lanes_of_a_route_are_under_its_points_also_in_the_local_town(made: Route) -> None:
    town = load_town("Town05")
    part = local(made, radius=60.0)
    assert len(part.graph) < len(town)
    for graph, lanes in ((town, made.lanes), (part.graph, part.lanes)):
        for k in range(0, len(made.points), 7):
            line = graph.center[graph.stations(int(lanes[k])), :2]
            assert np.hypot(*(line - made.points[k, :2]).T).min() < 0.6


def test_parameters_have_the_official_defaults(made: Route, tmp_path: Path) -> None:
    (route,) = read(tmp_path, xml_of(made, type="ParkedObstacleTwoWays", parameters='<frequency value="70"/>')).routes
    assert route.scenarios[0].parameters == {
        "distance": 120.0, "direction": "right", "speed": 60.0, "frequency": (70.0, 70.0),
    }  # fmt: skip


def test_places_are_turned_into_our_frame(made: Route, tmp_path: Path) -> None:
    flow = '<start_actor_flow x="10" y="20" z="1"/><end_actor_flow x="1" y="-2" z="0"/><lamp value="1"/>'
    file = read(tmp_path, xml_of(made, type="EnterActorFlow", parameters=flow))
    parameters = file.routes[0].scenarios[0].parameters
    assert parameters["start_actor_flow"] == (10.0, -20.0, 1.0)
    assert parameters["end_actor_flow"] == (1.0, 2.0, 0.0)
    assert len(file.notes) == 1
    assert "nobody reads its <lamp>" in file.notes[0]


OFF = '<trigger_point x="9999" y="0" z="0" yaw="0"/>'


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"town": "Town5"}, r"line 3, route '.*': there is no town 'Town5'; .*Did you mean 'Town"),
        ({"type": "LeftTurn"}, r"line \d+, route '.*': scenario 'Turn_1' has the unknown type 'LeftTurn'; known: Accident"),
        ({"trigger": OFF}, r"line \d+, route '.*': no scenario of it can run: .*trigger is \d+\.\d m off the route"),
        ({"trigger": ""}, r"<scenario> has no <trigger_point>"),
        ({"parameters": '<flow_speed value="fast"/>'}, r"flow_speed> has value='fast', which is no number"),
        ({"parameters": '<flow_speed value="inf"/>'}, r"which is not finite"),
        ({"parameters": '<flow_speed value="-1"/>'}, r"<flow_speed> is -1 m/s; at least 0"),
        ({"parameters": '<source_dist_interval from="30" to="20"/>'}, r"from 30 to 20, backwards"),
        ({"type": "HighwayExit", "parameters": ""}, r"\(HighwayExit\) needs <start_actor_flow>"),
        ({"type": "ParkingCutIn", "parameters": '<direction value="40"/>'}, r"<direction> is '40'; known: left"),
        ({"waypoints": ""}, r"<route> has no <waypoints>"),
        ({"waypoints": "<waypoints></waypoints>"}, r"needs two way points"),
        ({"waypoints": '<waypoints><position x="1" z="0"/></waypoints>'}, r"<position> has no y="),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_and_can_be_skipped(made: Route, tmp_path: Path, changes: dict[str, str], message: str) -> None:
    text = xml_of(made, **changes)
    with pytest.raises(SceneError, match=rf"(?s)routes\.xml.*{message}"):
        read(tmp_path, text)
    file = read(tmp_path, text, skip_bad=True)
    assert file.routes == ()
    assert len(file.skipped) == 1
    assert made.id in file.skipped[0]


def test_a_way_point_off_the_road_is_named_by_its_line(made: Route, tmp_path: Path) -> None:
    lines = xml_of(made).splitlines()
    where = next(i for i, line in enumerate(lines) if line.startswith("<position")) + 2
    lines[where] = '<position x="0" y="5000" z="0"/>'
    with pytest.raises(SceneError, match=rf"line {where + 1}, route '.*': way point 3 of \d+ is off the road"):
        read(tmp_path, "\n".join(lines))


def test_a_gap_that_no_lanes_bridge(made: Route, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vla_models.scenes.planner.LanePlanner._search", lambda *_: None)
    with pytest.raises(SceneError, match=r"line \d+, route '.*': way point 2 of \d+ cannot be reached.*no way along the lanes"):
        read(tmp_path, xml_of(made))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<routes><route", r"routes\.xml, line 1: not well-formed XML"),
        ("", r"not well-formed XML"),
        (
            '<!DOCTYPE r [<!ENTITY e SYSTEM "file:///etc/passwd">]>\n<routes>&e;</routes>',
            "line 1: a route file has no DOCTYPE",
        ),
        ("<routes></routes>", r"no <route> inside <routes>"),
    ],
)
def test_files_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SceneError, match=message):
        read(tmp_path, text, skip_bad=True)  # there is nothing to skip


def test_a_missing_file_or_route(made: Route, tmp_path: Path) -> None:
    with pytest.raises(SceneError, match=r"cannot read the routes .*none\.xml: No such file"):
        read_routes(tmp_path / "none.xml")
    (tmp_path / "routes.xml").write_text(xml_of(made))
    with pytest.raises(SceneError, match="no route with id 77"):
        read_routes(tmp_path / "routes.xml", only={"77"})


def test_a_scenario_off_the_route_is_dropped_and_said(made: Route, tmp_path: Path) -> None:
    more = f'<scenario name="Far_1" type="ControlLoss">{OFF}</scenario>'
    file = read(tmp_path, xml_of(made, more=more))
    assert [s.name for s in file.routes[0].scenarios] == ["Turn_1"]
    assert "Far_1" in file.routes[0].dropped[0]
    assert "m off the route (2 m at most)" in file.notes[0]


@pytest.mark.parametrize(
    ("aside", "turned", "kept"), [(1.9, 0.0, True), (0.0, 9.0, True), (2.1, 0.0, False), (0.0, 11.0, False)]
)
def test_the_official_rule_is_two_metres_and_ten_degrees(
    made: Route, tmp_path: Path, aside: float, turned: float, kept: bool
) -> None:
    here = next(k for k in range(5, 40) if np.ptp(np.unwrap(made.points[k - 5 : k + 6, 2])) < 0.01)  # a straight piece
    x, y, heading, _ = made.points[here]
    x, y = x - aside * np.sin(heading), y + aside * np.cos(heading)
    trigger = f'<trigger_point x="{x:.3f}" y="{-y:.3f}" z="0" yaw="{-np.degrees(heading) + turned:.3f}"/>'
    more = f'<scenario name="Near_1" type="ControlLoss">{trigger}</scenario>'
    file = read(tmp_path, xml_of(made, more=more))
    assert ("Near_1" in [s.name for s in file.routes[0].scenarios]) == kept


def test_routes_keep_the_files_order_and_ids_are_unique(made: Route, tmp_path: Path) -> None:
    one = xml_of(made, id="b").replace("</routes>", "")
    two = xml_of(made, id="a").split("<routes>\n")[1]
    assert [r.id for r in read(tmp_path, one + two).routes] == ["b", "a"]
    with pytest.raises(SceneError, match="an earlier route has the same id"):
        read(tmp_path, one + two.replace('id="a"', 'id="b"'))


@pytest.mark.slow
@pytest.mark.skipif(not REAL.exists(), reason="the official files are not here")
@pytest.mark.parametrize(("name", "routes", "scenarios"), [("routes_training.xml", 90, 4629), ("routes_devtest.xml", 2, 119)])
def test_the_official_files_load_whole(name: str, routes: int, scenarios: int) -> None:
    file = read_routes(REAL / name)
    assert len(file.routes) == routes
    assert sum(len(r.scenarios) + len(r.dropped) for r in file.routes) == scenarios
    assert sum(len(r.dropped) for r in file.routes) <= 33
    for route in file.routes:
        step = np.hypot(*np.diff(route.points[:, :2], axis=0).T)
        assert step.max() < 1.5
