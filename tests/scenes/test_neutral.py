"""Reading and writing ``pdm-scene/1``."""

from __future__ import annotations

import gzip
import json
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest

from vla_models.errors import SceneError
from vla_models.scenes.neutral import read_scene, write_scene
from vla_models.scenes.scene import AGENT_KINDS, LAYERS

DATA = Path(__file__).parents[1] / "data" / "pdm"
FILES = sorted(DATA.glob("*.json.gz"))


def same(a, b):
    if is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    return a == b


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_writing_and_reading_again_gives_the_same_scene(path, suffix, tmp_path):
    scene = read_scene(path)
    write_scene(scene, tmp_path / f"again{suffix}")
    assert same(scene, read_scene(tmp_path / f"again{suffix}"))
    assert [p.name for p in tmp_path.iterdir()] == [f"again{suffix}"]


def test_coordinates_are_local_and_exact():
    path = DATA / "18_intersection_straight.json.gz"
    data, scene = json.loads(gzip.decompress(path.read_bytes())), read_scene(path)
    assert np.abs(scene.ego[:2]).max() <= 0.5
    assert (scene.origin == np.round(scene.origin)).all()
    np.testing.assert_array_equal(scene.centerline[:, :2] + scene.origin, np.array(data["centerline"])[:, :2])
    np.testing.assert_array_equal(scene.human, np.array(data["human"]))
    assert scene.token == data["name"]
    assert scene.time_us == data["time_us"]
    assert scene.polygons.ids == tuple(m["id"] for m in data["map"])
    assert [LAYERS[i] for i in scene.polygons.layer] == [m["type"] for m in data["map"]]
    assert [AGENT_KINDS[i] for i in scene.tracks.kind] == [t["type"] for t in data["tracks"]]
    assert scene.polygons.ids[scene.red_lights.polygon[0]] == data["red_lights"][0]["id"]


def test_absent_agents_are_nan():
    scene = read_scene(DATA / "16_vanish.json.gz")
    gone = np.isnan(scene.tracks.states)
    assert gone.any()
    assert (gone.all(-1) == gone.any(-1)).all()


@pytest.fixture
def broken(tmp_path):
    """Write the intersection scene with a change, return its path."""
    data = json.loads(gzip.decompress((DATA / "18_intersection_straight.json.gz").read_bytes()))

    def write(change):
        change(data)
        path = tmp_path / "broken.json"
        path.write_text(json.dumps(data))
        return path

    return write


def at(*keys, value):
    def change(data):
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (at("format", value="pdm-scene/9"), "'format' is 'pdm-scene/9'"),
        (lambda d: d.pop("centerline"), "'centerline' is missing"),
        (lambda d: d["ego"].pop("steering"), "'ego.steering' is missing"),
        (at("ego", value=[1, 2]), "'ego' must be an object"),
        (at("ego", "x", value="east"), "'ego' must be numbers"),
        (at("ego", "x", value=float("nan")), "'ego' has numbers that are not finite"),
        (at("dt", value=0.2), "'dt' is 0.2"),
        (at("centerline", value=[[0, 0, 0]]), "'centerline' has 1 rows"),
        (at("centerline", value=[[0, 0]] * 3), r"'centerline' has shape \(3, 2\)"),
        (at("map", value={}), "'map' must be a list of objects"),
        (at("map", 2, "type", value="lanes"), r"'map\[2\].type' is 'lanes'.*Did you mean 'lane'"),
        (at("map", 2, "polygon", value=[[0, 0], [1, 1]]), r"'map\[2\].polygon' has 2 vertices"),
        (at("tracks", 0, "type", value="tram"), r"'tracks\[0\].type' is 'tram'"),
        (at("tracks", 0, "states", value=[None] * 50), r"'tracks\[0\].states' must be a list of 51 rows"),
        (lambda d: d["tracks"][0].pop("length"), r"'tracks\[0\].length' is missing"),
        (lambda d: d["tracks"].append(d["tracks"][0]), "names an agent twice"),
        (at("red_lights", 0, "id", value="nowhere"), r"'red_lights\[0\].id' is 'nowhere'"),
        (at("red_lights", 0, "steps", value=[True] * 40), r"'red_lights\[0\].steps' has shape \(40,\)"),
        (at("reference", "poses", value=[[0, 0, 0]] * 41), "'reference.poses' has 41 rows"),
        (at("reference", "poses", value=[[0, 0, 0]] * 60), "'reference.poses' has 60 rows"),
        (at("human", value=[[0, 0, 0]] * 7), r"'human' has shape \(7, 3\)"),
    ],
)
def test_malformed_files_name_file_and_field(broken, change, message):
    with pytest.raises(SceneError, match=message) as caught:
        read_scene(broken(change))
    assert "broken.json" in str(caught.value)


def test_files_that_are_not_json_are_named(tmp_path):
    whole = (DATA / "18_intersection_straight.json.gz").read_bytes()
    for name, content in {
        "cut.json.gz": whole[:500],
        "text.json": b"hello",
        "flipped.json.gz": whole[:60] + b"\xff" * 40,
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SceneError, match=name):
            read_scene(tmp_path / name)
    with pytest.raises(SceneError, match="does not exist"):
        read_scene(tmp_path / "absent.json")
    with pytest.raises(SceneError, match="cannot be read"):
        read_scene(tmp_path)


def test_a_scene_may_lack_what_is_optional(broken):
    def change(data):
        data["ego_history"] = data["human"] = data["reference"] = None
        data["tracks"] = data["map"] = data["red_lights"] = []

    scene = read_scene(broken(change))
    assert scene.ego_history is None
    assert scene.human is None
    assert scene.reference is None
    assert len(scene.polygons) == len(scene.tracks) == len(scene.red_lights) == 0
