"""``vla-models eval`` and ``vla-models view`` on Bench2Drive's routes, and what baselines mean."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from golden import visible_scenes

from vla_models import VLAConfig, create_model
from vla_models.scoring.bench2drive import WORLD

Run = Callable[..., tuple[int, str, str]]

SHORT = (
    "environment.heldout_towns=[Town02]",
    "environment.scenario_types=[DynamicObjectCrossing, VanillaSignalizedTurnEncounterRedLight]",
    "environment.heldout_scenes=2",
    "environment.max_ticks=100",
    "environment.camera.width=32",
    "environment.camera.height=16",
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A NavSim run with a small model that has learned nothing."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    VLAConfig.from_dict({"environment": {"heldout_scenes": 7}}).to_yaml(folder / "config.yaml")
    create_model("tiny_vla", dim=16, layers=1, heads=2).save_pretrained(folder / "checkpoints" / "model")
    return folder


def test_a_baseline_that_only_bench2drive_has_drives_there(run: Run, tmp_path: Path) -> None:
    output, results = tmp_path / "means.json", tmp_path / "official"
    code, out, err = run("eval", "rule_based", *SHORT, "--output", output, "--results", results, "--per-scenario")
    assert code == 0, err
    assert f"{WORLD}: means over 2 routes" in out
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert {"constant_velocity", "blind_follower", "rule_based", "DynamicObjectCrossing"} <= lines.keys()
    assert lines["VanillaSignalizedTurnEncounterRedLight"][1] == "1"
    written = json.loads(output.read_text())
    assert written["world"] == WORLD
    assert written["means"]["rule_based"]["route_completion"] > written["means"]["constant_velocity"]["route_completion"]
    assert written["scenarios"]["rule_based"].keys() == {"DynamicObjectCrossing", "VanillaSignalizedTurnEncounterRedLight"}
    assert written["abilities"]["rule_based"].keys() == {"Emergency_Brake", "Traffic_Signs"}  # of no other is there a route
    official = json.loads((results / "results.json").read_text())
    shown = [record["scores"]["score_composed"] for record in official["_checkpoint"]["records"]]
    assert sum(shown) / 2 == pytest.approx(written["means"]["rule_based"]["driving_score"])


def test_a_checkpoint_is_driven_beside_the_baselines(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    """Also one whose run was of another environment: of its configuration nothing means anything here."""
    output = tmp_path / "means.json"
    code, out, err = run("eval", checkpoint, "environment.type=bench2drive", *SHORT, "--rows", 2, "--output", output)
    assert code == 0, err
    means = json.loads(output.read_text())["means"]
    model = str(checkpoint / "checkpoints" / "model")
    assert list(means) == ["constant_velocity", "blind_follower", "rule_based", model]
    assert {"driving_score", "success", "route_completion", "infraction_penalty"} <= means[model].keys()
    assert "no plan" not in out
    assert f"model: {model}" in out
    assert {line.split()[0] for line in out.splitlines() if line.strip()} >= {"model", "rule_based"}


def test_routes_that_cannot_be_read_are_said_to_be_left_out(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "routes.xml"
    path.write_text(
        '<routes><route id="7" town="Town02"><waypoints><position x="-7.5" y="130" z="0"/><position x="-7.5" y="200" z="0"/>'
        '</waypoints><scenarios/></route><route id="8" town="Town99"><waypoints/><scenarios/></route></routes>'
    )
    arguments = ("eval", "blind_follower", f"environment.routes={path}", "environment.max_ticks=60")
    code, _, err = run(*arguments)
    assert code == 2
    assert "Town99" in err
    code, out, err = run(*arguments, "environment.skip_bad=true", "--per-scenario")
    assert code == 0, err
    assert "left out: " in out
    assert "Town99" in out
    assert "no scenario" in out


def test_view_films_a_route(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    drive = tmp_path / "drive.png"
    code, out, err = run("view", checkpoint, *SHORT, "--output", drive, "--route", 1)
    assert code == 0, err
    assert "model on VanillaSignalizedTurnEncounterRedLight-Town02-" in out
    with PIL.Image.open(drive) as sheet:
        seen = sheet.convert("RGB").getcolors(1 << 24)
    assert seen is not None
    assert len(seen) > 100
    route = out.split("model on ")[1].split(":")[0]
    code, again, err = run("view", "rule_based", *SHORT, "--output", tmp_path / "again.png", "--route", route)
    assert code == 0, err
    assert f"rule_based on {route}" in again


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "rule_base"], "no such baseline; known: .*Did you mean 'rule_based'"),
        (["eval", "pdm_closed", "environment.type=bench2drive"], "pdm_closed is no baseline of bench2drive"),
        (["eval", "rule_based", "environment.type=navsim"], "rule_based is no baseline of navsim"),
        (["eval", "constant_velocity", "--per-scenario"], "add environment.type=bench2drive"),
        (["eval", "rule_based", "--output", "TMP"], "is a folder; name a file in it for --output"),
        (["eval", "rule_based", "environment.routes=nowhere.xml"], "nowhere.xml"),
        (["view", "rule_based", "--output", "drive.avi"], r"must end in \.mp4, \.gif, \.png"),
        (["view", "rule_based", "--output", "drive.gif", "--route", "x", *SHORT], "there is no route 'x'"),
        (["view", "rule_based", "--output", "drive.gif", "--route", "9", *SHORT], r"route index 9 is outside 0 … 1"),
    ],
)
def test_what_cannot_be_is_one_message(run: Run, tmp_path: Path, arguments: list[str], message: str) -> None:
    code, _, err = run(*(tmp_path if a == "TMP" else a for a in arguments))
    assert code == 2
    assert err.startswith("error ")
    assert re.search(message, err), err
    assert not list(tmp_path.iterdir())


def test_baselines_of_navsim_need_no_checkpoint(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import vla_models.training.scenes

    scenes = visible_scenes(2)
    asked: list[Any] = []
    monkeypatch.setattr(vla_models.training.scenes, "build_scenes", lambda config, part: asked.append(part) or scenes)
    code, out, err = run("eval", "pdm_closed")
    assert code == 0, err
    assert asked == ["heldout"]
    assert "held-out means over 2 scenes" in out
    assert "constant_velocity" in out
