"""Explanations agree with the score: every lost point has a reason, every reason a lost point, at the scorer's own steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vla_models.errors import PlanError, SceneError
from vla_models.scenes.neutral import read_scene
from vla_models.scenes.scene import AgentPaths, RedLights, Tracks
from vla_models.scoring.pdm import score
from vla_models.scoring.pdm.area import CORNERS
from vla_models.scoring.pdm.explain import Collision, OffRoad, RedLight, TooClose, WrongWay, explain

DATA = Path(__file__).parents[1] / "data" / "pdm"
SCENES = sorted(p.name.removesuffix(".json.gz") for p in DATA.glob("*.json.gz"))


def load(name):
    return read_scene(DATA / f"{name}.json.gz"), np.load(DATA / f"{name}.npz")


def facts_of(explanation, kind):
    return [fact for fact in explanation.facts if isinstance(fact, kind)]


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_all_that_is_lost_is_explained_and_nothing_else(name, version):
    scene, golden = load(name)
    for n, plan in enumerate(golden["proposals"]):
        explanation = explain(scene, plan, version)
        official = {key: golden[f"{version}_{key}"][n] for key in ("nc", "dac", "ddc", "ep", "ttc")}
        official["comfort"] = golden["v1_comfort" if version == "v1" else "v2_hc"][n]
        if version == "v2":
            official |= {"tlc": golden["v2_tlc"][n], "lk": golden["v2_lk"][n]}
        lost = {key for key, value in official.items() if value < 1.0 - 1e-9}
        assert {fact.term for fact in explanation.facts} == lost, (n, official)
        hits = facts_of(explanation, Collision)
        assert min((hit.step for hit in hits), default=np.inf) == golden[f"{version}_nc_idx"][n]
        assert min((hit.cost for hit in hits), default=1.0) == official["nc"]
        close = facts_of(explanation, TooClose)
        assert {fact.step for fact in close} == ({golden[f"{version}_ttc_idx"][n]} if close else set())
        for fact in facts_of(explanation, OffRoad):
            assert list(fact.steps) == np.flatnonzero(golden[f"{version}_ego_areas"][n, :, 1]).tolist()
            assert 1 <= len(fact.corners) == len(fact.points)
        for fact in facts_of(explanation, WrongWay):
            assert (0.5 if fact.metres < 6.0 else 0.0) == official["ddc"]
            assert fact.metres >= 2.0


def with_straight_lanes(scene):
    """The scene with a straight lane of 150 m under each vehicle, which it may react on."""
    states, count = scene.tracks.states[:, 0, :3], len(scene.tracks)
    there = (scene.tracks.kind == 0) & np.isfinite(states).all(axis=1)
    along = np.linspace(-20.0, 130.0, 151)[:, None]
    lines = [
        s + along * [np.cos(s[2]), np.sin(s[2]), 0.0] if v else np.zeros((0, 3)) for s, v in zip(states, there, strict=True)
    ]
    offsets = np.concatenate([[0], np.cumsum([len(line) for line in lines])]).astype(np.int64)
    progress, snapped = np.where(there, 20.0, np.nan), np.where(there[:, None], states, np.nan)
    lanes = AgentPaths(np.concatenate(lines), offsets, progress, snapped, np.full(count, np.nan), there)
    return scene.with_(agent_paths=lanes)


@pytest.mark.parametrize("traffic", ["constant_velocity", "reactive_idm"])
def test_explanations_are_of_the_traffic_that_is_asked_for(traffic):
    differs = 0
    for name in ("02_lead_stopped", "20_straight_traffic", "22_dense"):
        scene, golden = load(name)
        scene = with_straight_lanes(scene)
        plans = golden["proposals"][::2]
        scores = score(scene, plans, "v2", on_error="mark", traffic=traffic)
        for n in np.flatnonzero(scores.valid[0]):
            explanation = explain(scene, plans[n], "v2", traffic)
            assert explanation.scores.score[0, 0] == scores.score[0, n]
            lost = {
                term for term in ("nc", "dac", "ddc", "tlc", "ttc", "lk", "comfort", "ep") if getattr(scores, term)[0, n] < 1.0
            }
            assert {fact.term for fact in explanation.facts} == lost
            steps = [fact.step for fact in facts_of(explanation, Collision)]
            assert min(steps, default=np.inf) == scores.nc_idx[0, n]
            assert all(fact.step == scores.ttc_idx[0, n] for fact in facts_of(explanation, TooClose))
            differs += min(steps, default=np.inf) != golden["v2_nc_idx"][2 * n]
    assert differs, "the traffic makes no difference"


@pytest.mark.parametrize("name", [n for n in SCENES if "00" not in n])
def test_without_the_named_agents_there_is_no_collision(name):
    scene, golden = load(name)
    for plan in golden["proposals"][::7]:
        hits = facts_of(explain(scene, plan, "v2"), Collision)
        if not hits:
            continue
        rest = [a for a in range(len(scene.tracks)) if a not in {hit.track for hit in hits}]
        tracks = scene.tracks
        fewer = Tracks(tracks.kind[rest], tracks.size[rest], tracks.states[rest], tuple(tracks.ids[a] for a in rest))
        assert score(scene.with_(tracks=fewer), plan[None], "v2").nc[0, 0] == 1.0


def test_without_the_named_lights_none_is_run():
    scene, golden = load("18_intersection_straight")
    plan = golden["proposals"][int(np.argmin(golden["v2_tlc"]))]
    found = facts_of(explain(scene, plan, "v2"), RedLight)
    assert found
    lights = scene.red_lights
    rest = [r for r in range(len(lights)) if lights.polygon[r] not in {fact.polygon for fact in found}]
    fewer = RedLights(lights.polygon[rest], lights.red[rest])
    assert score(scene.with_(red_lights=fewer), plan[None], "v2").tlc[0, 0] == 1.0
    red = lights.red.copy()
    for fact in found:  # green at the named step, the light is run later or not at all
        red[lights.polygon == fact.polygon, fact.step] = False
    later = facts_of(explain(scene.with_(red_lights=RedLights(lights.polygon, red)), plan, "v2"), RedLight)
    assert all(b.step > a.step for a in found for b in later if a.polygon == b.polygon)


def test_a_corner_that_is_named_is_off_the_road():
    from shapely.geometry import Point, Polygon

    scene, golden = load("04_curve_left")
    ground = [Polygon(scene.polygons.ring(p)) for p in range(len(scene.polygons)) if scene.polygons.layer[p] not in (1, 2)]
    seen = 0
    for plan in golden["proposals"][golden["v1_dac"] == 0.0]:
        (fact,) = facts_of(explain(scene, plan), OffRoad)
        assert set(fact.corners) <= set(CORNERS)
        for point in fact.points:
            assert not any(polygon.contains(Point(point)) for polygon in ground)
            seen += 1
    assert seen


def test_how_a_collision_is_at_fault():
    """A stopped agent, the front, and the side while in several lanes all occur among the official scenes."""
    ways = set()
    for name in SCENES:
        scene, golden = load(name)
        for plan in golden["proposals"][golden["v1_nc"] < 1.0][::3]:
            for hit in facts_of(explain(scene, plan), Collision):
                ways.add((hit.how, hit.place))
                moved = np.hypot(*np.nan_to_num(scene.tracks.states[hit.track, :, 3:5]).T).max() > 0.05
                assert hit.how == "stopped" or moved
    assert {how for how, _ in ways} == {"stopped", "front", "lateral"}


def test_what_has_no_score_has_no_explanation():
    scene, golden = load("00_straight_free")
    with pytest.raises(PlanError, match="one plan"):
        explain(scene, golden["proposals"])
    with pytest.raises(PlanError, match="not finite"):
        explain(scene, np.full((8, 3), np.nan))
    with pytest.raises(SceneError, match="no reference"):
        explain(scene.with_(reference=None), golden["proposals"][0])
