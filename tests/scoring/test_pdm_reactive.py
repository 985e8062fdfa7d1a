"""Traffic that reacts (and vehicles at constant velocity), against NavSim v2.2's own classes.

``tests/data/pdm_official/reactive_*`` are five random scenes in ``pdm-scene/1`` form with six plans each. The official
``pdm_score`` scored them with ``NavsimIDMTrafficAgents`` (standard configuration) over a map object that answers from the
scene's polygons and holds real ``NuPlanPolylineMapObject`` centre lines, and with ``ConstantVelocityTrafficAgents``. The files
have the lanes as ``from_nuplan_map`` found them in that map (``lane_*``), the official results by their short names
(``reactive_*``, ``reactive_f_*`` with the human filter, ``constant_*``), and ``boxes`` [6, vehicles, 9, 3], where the
reacting vehicles were at every fifth step.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_models.errors import PlanError, SceneError
from vla_models.scenes.agent_paths import from_lane_graph, from_nuplan_map
from vla_models.scenes.neutral import read_scene
from vla_models.scenes.scene import AgentPaths, Tracks
from vla_models.scenes.store import write_scenes
from vla_models.scoring.pdm import human_filtered, prepare, score
from vla_models.scoring.pdm.collide import prepare_agents
from vla_models.scoring.pdm.react import REACTING, make_world, prepare_rails, react_kernel
from vla_models.scoring.pdm.strip import most_vertices, ring_gap2, rings_touch, strip, trim

DATA = Path(__file__).parents[1] / "data" / "pdm_official"
NAMES = sorted(p.name.removesuffix(".json.gz") for p in DATA.glob("reactive_*.json.gz"))


def load(name):
    official = dict(np.load(DATA / f"{name}.npz"))
    fields = ("points", "offsets", "progress", "snapped", "speed_limit", "in_lane")
    lanes = AgentPaths(**{field: official[f"lane_{field}"] for field in fields})
    return read_scene(DATA / f"{name}.json.gz").with_(agent_paths=lanes), official


def assert_equal(scores, official, prefix, rows=slice(None)):
    for key, values in {**scores.terms(), "mult": scores.mult, "score": scores.score}.items():
        np.testing.assert_allclose(values[0, rows], official[f"{prefix}{key}"], rtol=0, atol=1e-6, err_msg=key)


def test_there_are_five_scenes_in_which_the_reaction_matters():
    assert len(NAMES) == 5
    for name in NAMES:
        scene, official = load(name)
        log = score(scene, official["proposals"], "v2")
        assert (log.nc[0] != official["reactive_nc"]).any() or (log.ttc[0] != official["reactive_ttc"]).any()


@pytest.mark.parametrize("name", NAMES)
def test_scores_in_reactive_traffic_equal_the_official_ones(name):
    scene, official = load(name)
    scores = score(scene, official["proposals"], "v2", traffic="reactive_idm")
    assert_equal(scores, official, "reactive_")
    assert scores.traffic == "reactive_idm"
    assert scores.ref_mult.shape == (1, 6)
    if "reactive_f_nc" in official:
        assert_equal(human_filtered(scene, scores), official, "reactive_f_")


@pytest.mark.parametrize("name", NAMES)
def test_reacting_vehicles_are_where_the_official_ones_are(name):
    scene, official = load(name)
    ready = prepare(scene)
    rails = prepare_rails(scene.token, scene.ego, scene.tracks, scene.agent_paths)
    assert (rails.role == REACTING).any()
    states = score(scene, official["proposals"], "v2", states=True).states[0]
    log = prepare_agents(scene.tracks, scene.ego)
    vehicles = np.flatnonzero(scene.tracks.kind == 0)
    for n in range(6):
        boxes, extents = np.empty_like(log.boxes), log.extents.copy()
        assert react_kernel(states[n], rails, ready.tracks.size.copy(), log.boxes, make_world(rails), boxes, extents) == 0
        found = boxes[vehicles, :41:5]
        wanted = official["boxes"][n]
        np.testing.assert_allclose(found[..., :2], wanted[..., :2], rtol=0, atol=1e-6)
        np.testing.assert_allclose(found[..., 2], np.cos(wanted[..., 2]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_scores_at_constant_velocity_equal_the_official_ones(name):
    scene, official = load(name)
    assert_equal(score(scene, official["proposals"], "v2", traffic="constant_velocity"), official, "constant_")


@settings(max_examples=6, deadline=None)
@given(rows=st.lists(st.integers(0, 5), min_size=1, max_size=8), threads=st.integers(1, 3))
def test_each_plan_has_its_own_traffic(rows, threads):
    """What else is in the batch, its order and the threads change nothing."""
    loaded = [load(name) for name in NAMES[:2]]
    scenes, plans = [s for s, _ in loaded], np.stack([o["proposals"] for _, o in loaded])
    some = score(scenes, plans[:, rows], "v2", threads=threads, traffic="reactive_idm")
    for s, (_, official) in enumerate(loaded):
        for key in ("nc", "ttc", "score"):
            np.testing.assert_allclose(getattr(some, key)[s], official[f"reactive_{key}"][rows], rtol=0, atol=1e-6)


def test_lanes_survive_the_store(tmp_path):
    scene, official = load(NAMES[0])
    bare = scene.with_(token="without lanes", agent_paths=None)
    store = write_scenes(tmp_path / "scenes.arrow", [scene, bare])
    for field in ("points", "offsets", "progress", "snapped", "speed_limit", "in_lane"):
        np.testing.assert_array_equal(getattr(store[0].agent_paths, field), getattr(scene.agent_paths, field), err_msg=field)
    assert store[1].agent_paths is None
    assert_equal(score(store[0], official["proposals"], "v2", traffic="reactive_idm"), official, "reactive_")


def test_scenes_without_lanes_and_wrong_names_say_what_to_do():
    scene, official = load(NAMES[0])
    plans = official["proposals"]
    with pytest.raises(SceneError, match=r"agent_paths is None.*from_nuplan_map.*log_replay"):
        score(scene.with_(agent_paths=None), plans, "v2", traffic="reactive_idm")
    marked = score([scene, scene.with_(agent_paths=None)], np.stack([plans] * 2), "v2", traffic="reactive_idm", on_error="mark")
    assert marked.valid.all(axis=1).tolist() == [True, False]
    with pytest.raises(ValueError, match="v1 has recorded traffic only"):
        score(scene, plans, "v1", traffic="reactive_idm")
    with pytest.raises(ValueError, match="known: constant_velocity, log_replay, reactive_idm"):
        score(scene, plans, "v2", traffic="idm")
    fewer = Tracks(scene.tracks.kind[:2], scene.tracks.size[:2], scene.tracks.states[:2], scene.tracks.ids[:2])
    with pytest.raises(SceneError, match=f"agent_paths of {len(scene.tracks)} agents for 2 tracks"):
        score(scene.with_(tracks=fewer), plans, "v2", traffic="reactive_idm")


def test_a_lane_that_nuplan_would_refuse_is_named():
    scene, official = load(NAMES[0])
    lanes = scene.agent_paths
    count = len(scene.tracks)
    rails = prepare_rails(scene.token, scene.ego, scene.tracks, lanes)
    a = int(np.flatnonzero(rails.role == REACTING)[0])
    sizes = np.diff(lanes.offsets)
    lines = [lanes.points[lanes.offsets[k] : lanes.offsets[k + 1]] for k in range(count)]
    lines[a] = lines[a][:2]
    sizes[a] = 2
    short = AgentPaths(
        np.concatenate(lines), np.concatenate([[0], np.cumsum(sizes)]), lanes.progress, lanes.snapped, lanes.speed_limit,
        lanes.in_lane,
    )  # fmt: skip
    with pytest.raises(SceneError, match=re.escape(f"agent {scene.tracks.ids[a]!r} has a lane of 2 points")):
        score(scene.with_(agent_paths=short), official["proposals"], "v2", traffic="reactive_idm")


def test_strips_follow_their_line_at_half_their_width():
    """A strip along a straight line is a rectangle; along a bend its ring keeps the distance, and neighbours keep their gap."""
    straight = np.column_stack([np.arange(10.0), np.zeros(10), np.zeros(10), np.arange(10.0)])
    line, ring = np.empty((12, 3)), np.empty((most_vertices(straight), 2))
    count = strip(line, trim(straight, 1.5, 6.25, line), 0.9, ring)
    assert ring[:count].min(axis=0).tolist() == [1.5, -0.9]
    assert ring[:count].max(axis=0).tolist() == [6.25, 0.9]
    turned = np.linspace(0.0, 1.5, 31)
    bend = np.column_stack([20.0 * np.sin(turned), 20.0 - 20.0 * np.cos(turned), turned, 20.0 * turned])
    line, ring = np.empty((40, 3)), np.empty((most_vertices(bend), 2))
    count = strip(line, trim(bend, 0.5, np.inf, line), 1.0, ring)
    radius = np.hypot(ring[:count, 0], ring[:count, 1] - 20.0)
    assert np.abs(np.abs(radius - 20.0) - 1.0).max() < 0.01
    other = ring[:count] + np.array([0.0, 30.0])
    assert not rings_touch(ring[:count], other)
    assert ring_gap2(ring[:count], other, np.inf) ** 0.5 < 30.0


def test_a_lane_graph_gives_each_vehicle_the_lane_under_it():
    """Two lanes side by side in opposite directions and one of a junction across them."""
    lines = [[(x, 0.0) for x in range(11)], [(x, 3.5) for x in range(10, -1, -1)], [(5.0, y) for y in range(-10, 11)]]
    headings = [0.0, np.pi, np.pi / 2]
    center = np.array([(*p, h) for line, h in zip(lines, headings, strict=True) for p in line], dtype=float)
    normal = np.column_stack([-np.sin(center[:, 2]), np.cos(center[:, 2])])
    offsets = np.array([0, 11, 22, 43])
    left, right = center[:, :2] + 1.75 * normal, center[:, :2] - 1.75 * normal

    class Graph(SimpleNamespace):
        def __len__(self):
            return 3

        def stations(self, lane):
            return slice(int(offsets[lane]), int(offsets[lane + 1]))

        def lane_polygon(self, lane):
            s = self.stations(lane)
            return np.concatenate([left[s], right[s][::-1]])

    graph = Graph(offsets=offsets, center=center, junction=np.array([-1, -1, 4]), speed_limit=np.array([10.0, 11.0, 12.0]))
    states = np.full((5, 51, 5), np.nan)
    for a, (x, y, h) in enumerate([(3.2, 0.4, 0.1), (5.0, 3.0, 3.0), (5.0, -6.0, 1.5), (30.0, 30.0, 0.0), (1.0, 0.0, 0.0)]):
        states[a] = (x - 100.0, y - 50.0, h, 1.0, 0.0)
    tracks = Tracks(np.array([0, 0, 0, 0, 1], np.int8), np.ones((5, 3)), states, tuple("abcde"))
    paths = from_lane_graph(tracks, (100.0, 50.0), graph)
    assert np.diff(paths.offsets).tolist() == [11, 11, 21, 0, 0]
    np.testing.assert_allclose(paths.speed_limit[:3], [10.0, 11.0, 12.0])
    np.testing.assert_allclose(paths.progress[:3], [3.2, 5.0, 4.0])
    np.testing.assert_allclose(paths.snapped[0], [3.2 - 100.0, -50.0, 0.0])
    assert paths.in_lane.tolist() == [True, True, True, False, False]


def test_a_nuplan_map_is_asked_as_nuplan_asks_it(monkeypatch):
    """A map of two overlapping lanes: the one with the nearer heading is taken; everything becomes local."""
    names = ("nuplan", "nuplan.common", "nuplan.common.maps", "nuplan.common.actor_state")
    for name in (*names, "nuplan.common.maps.maps_datatypes", "nuplan.common.actor_state.state_representation"):
        if name not in sys.modules:
            monkeypatch.setitem(sys.modules, name, ModuleType(name))

    class StateSE2:
        def __init__(self, x, y, heading):
            self.x, self.y, self.heading = x, y, heading

    layers = SimpleNamespace(LANE="lane", INTERSECTION="intersection", LANE_CONNECTOR="connector")
    monkeypatch.setattr(sys.modules["nuplan.common.maps.maps_datatypes"], "SemanticMapLayer", layers, raising=False)
    monkeypatch.setattr(sys.modules["nuplan.common.actor_state.state_representation"], "StateSE2", StateSE2, raising=False)

    def lane(heading, limit):
        points = [StateSE2(1000.0 + k, 2000.0, heading) for k in range(6)]
        baseline = SimpleNamespace(
            discrete_path=points,
            get_nearest_pose_from_position=lambda p: StateSE2(p.x, 2000.0, heading),
            get_nearest_arc_length_from_position=lambda p: p.x - 1000.0,
        )
        return SimpleNamespace(baseline_path=baseline, speed_limit_mps=limit)

    asked = []

    def is_in_layer(point, layer):
        return layer == ("lane" if point.x < 1003.0 else "intersection")

    def get_all_map_objects(point, layer):
        asked.append(layer)
        return [lane(1.0, 7.0), lane(0.1, None)]

    states = np.full((3, 51, 5), np.nan)
    states[0, 0], states[1, 0] = (2.0, 0.5, 0.0, 3.0, 0.0), (4.0, 0.5, 0.9, 3.0, 0.0)
    tracks = Tracks(np.zeros(3, np.int8), np.ones((3, 3)), states, ("a", "b", "late"))
    api = SimpleNamespace(is_in_layer=is_in_layer, get_all_map_objects=get_all_map_objects)
    paths = from_nuplan_map(tracks, (1000.0, 2000.0), api)
    assert asked == ["lane", "connector"]
    assert np.diff(paths.offsets).tolist() == [6, 6, 0]
    np.testing.assert_allclose(paths.snapped[:2], [[2.0, 0.0, 0.1], [4.0, 0.0, 1.0]])
    np.testing.assert_allclose(paths.progress, [2.0, 4.0, np.nan])
    np.testing.assert_allclose(paths.speed_limit, [np.nan, 7.0, np.nan])
    assert paths.in_lane.tolist() == [True, True, False]


def test_a_vehicle_beyond_its_lane_makes_only_its_rows_invalid():
    """nuPlan loses a lane's last point; a vehicle in that last, long stretch is outside its own strip: officially an assertion
    fails, here the rows are named."""
    scene, official = load(NAMES[0])
    lanes = scene.agent_paths
    rails = prepare_rails(scene.token, scene.ego, scene.tracks, lanes)
    a = int(np.flatnonzero(rails.role == REACTING)[0])
    x, y, heading = lanes.snapped[a]
    along = np.array([-20.0, -19.0, 10.0])
    line = np.column_stack([x + along * np.cos(heading), y + along * np.sin(heading), np.full(3, heading)])
    lines = [lanes.points[lanes.offsets[k] : lanes.offsets[k + 1]] for k in range(len(lanes))]
    lines[a] = line
    progress = lanes.progress.copy()
    progress[a] = 20.0
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in lines])])
    odd = scene.with_(
        token="odd",
        agent_paths=AgentPaths(np.concatenate(lines), offsets, progress, lanes.snapped, lanes.speed_limit, lanes.in_lane),
    )
    plans = np.stack([official["proposals"]] * 2)
    marked = score([scene, odd], plans, "v2", traffic="reactive_idm", on_error="mark")
    assert marked.valid.all(axis=1).tolist() == [True, False]
    assert np.isnan(marked.score[1]).all()
    assert "leaves its own lane's strip" in str(marked.problems[0])
    with pytest.raises(PlanError, match=r"scene 'odd', row 0: a vehicle leaves its own lane's strip.*recorded traffic"):
        score([scene, odd], plans, "v2", traffic="reactive_idm")


def test_names_that_are_part_of_others_hide_their_owners():
    """The official occupancy map leaves out every name that is part of the follower's own."""
    scene, _ = load(NAMES[0])
    vehicles = scene.tracks
    ids = tuple(["1", "10", "my_ego"] + [f"x{k}x" for k in range(3, len(vehicles))])
    named = Tracks(vehicles.kind, vehicles.size, vehicles.states, ids)
    rails = prepare_rails(scene.token, scene.ego, named, scene.agent_paths)
    assert rails.hidden[1, 0]
    assert not rails.hidden[0, 1]
    assert rails.hidden[:, -1].tolist() == ["ego" in name for name in ids]
    assert rails.like_ego.tolist() == ["ego" in name for name in ids]
