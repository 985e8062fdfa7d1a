"""The report of a run in Bench2Drive: tables, curves and films, also of a run that lacks something."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from vla_models import VLAConfig, create_model
from vla_models.report import write_report
from vla_models.report.routes import by_scenario, most_improved
from vla_models.report.run import DRIVERS, ROUTE_NUMBERS, Heldout, read_run
from vla_models.scoring.bench2drive import WORLD
from vla_models.training.routes import make_route_env

TYPES = ["DynamicObjectCrossing", "VanillaSignalizedTurnEncounterRedLight"]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as the trainer leaves it, with two untrained models, over four short routes."""
    run = tmp_path_factory.mktemp("runs") / "a-run"
    environment = {"type": "bench2drive", "heldout_towns": ["Town02"], "scenario_types": TYPES, "heldout_scenes": 4}
    environment |= {"max_ticks": 40, "camera": {"width": 32, "height": 16}}
    config = VLAConfig.from_dict({"environment": environment})
    config.to_yaml(run / "config.yaml")
    for name in ("imitation", "model"):
        create_model("tiny_vla", dim=16, layers=1, heads=2).save_pretrained(run / "checkpoints" / name)
    routes = make_route_env(config, "heldout", 1, cameras=()).routes
    arrays = {"tokens": np.array([route.id for route in routes]), "scenarios": np.array([route.theme for route in routes])}
    for k, name in enumerate(DRIVERS):
        arrays |= {f"{name}_{key}": np.full(4, 0.5) for key in ROUTE_NUMBERS}
        arrays[f"{name}_score"] = np.array([10.0, 20.0, 30.0, 40.0]) + k
    arrays["rl_score"][2] += 50.0
    arrays["rl_score"][1] = np.nan  # its world failed
    np.savez(run / "heldout.npz", **arrays)
    summary = {
        "framework": "local",
        "env": "bench2drive",
        "seed": 3,
        "heldout": {name: float(np.nanmean(arrays[f"{name}_score"])) for name in DRIVERS},
        "subscores": {name: dict.fromkeys(ROUTE_NUMBERS, 0.5) for name in DRIVERS},
        "wall_s": 421.0,
        "versions": {"torch": "2.13.0", "score": WORLD},
    }
    (run / "summary.json").write_text(json.dumps(summary))
    rows = [{"phase": "imitation", "step": i + 1, "wall_s": 0.1 * i, "loss": 3.0 / (i + 1)} for i in range(30)]
    for i in range(40):
        numbers = {"reward_mean": 0.01 * i, "entropy": 2.0, "grad_norm": 1.0, "driving_score": 20.0 + i, "success": 0.01 * i}
        rows.append({"phase": "rl", "step": i + 1, "wall_s": 3.0 + i, **numbers, "term/collision": 0.1, "term/progress": 0.05})
        if i % 20 == 0:
            rows.append({"phase": "eval", "step": i, "wall_s": 3.0 + i, "name": "rl", "score": 25.0 + i, "driving_score": 25.0})
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


@pytest.fixture
def run(whole_run: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(whole_run, tmp_path / "a-run"))


def test_a_whole_run(run: Path) -> None:
    page = write_report(run).read_text()
    assert "Not everything was there" not in page
    for part in (
        "Held-out routes",
        "Learning curve",
        "Per scenario",
        "What a decision brings",
        WORLD,
        "before and after",
        *TYPES,
    ):
        assert part in page
    for title, _ in DRIVERS.values():
        assert title in page
    summary = json.loads((run / "summary.json").read_text())
    for value in summary["heldout"].values():
        assert f"{value:.1f}" in page
    assert "+26.0" in page  # the gain of the first type
    third = read_run(run).heldout
    assert third is not None
    assert f"{third.tokens[2]} in Town02: the held-out route on which" in page
    for name in ("before", "after"):
        assert f'src="{name}.gif"' in page
        with PIL.Image.open(run / f"{name}.gif") as film:
            assert film.n_frames == 9  # 40 ticks
        with PIL.Image.open(run / f"{name}.png") as sheet:
            assert sheet.width == 1280


def test_what_is_missing_is_named_and_the_rest_is_there(run: Path) -> None:
    shutil.rmtree(run / "checkpoints" / "imitation")
    (run / "checkpoints" / "model" / "model.safetensors").write_bytes(b"nonsense")
    (run / "heldout.npz").unlink()
    page = write_report(run).read_text()
    assert "There is no film before reinforcement learning: checkpoints/imitation holds no model." in page
    assert "There is no film after reinforcement learning: " in page
    assert "heldout.npz is missing" in page
    assert "Held-out routes" in page
    assert "Learning curve" in page
    assert ".gif" not in page


def test_scenarios_are_compared_without_the_worlds_that_failed(run: Path) -> None:
    held = read_run(run).heldout
    assert held is not None
    rows = {row["kind"]: row for row in by_scenario(held, list(DRIVERS))}
    # routes 0 and 2 are of the first type, 1 and 3 of the second; imitation is 1 above the first driver, rl 2
    crossing, light = rows[TYPES[0]], rows[TYPES[1]]
    assert (crossing["count"], light["count"]) == (2, 2)
    assert crossing["means"][1] == (pytest.approx(21.0), 0.5)
    assert crossing["means"][2][0] == pytest.approx(47.0)
    assert crossing["gain"] == pytest.approx(26.0)
    assert light["means"][2][0] == pytest.approx(42.0)  # the second route has no score
    assert list(rows) == TYPES  # most gained first
    assert most_improved(held) == held.tokens[2]


def test_what_cannot_be_told_is_none() -> None:
    assert most_improved(None) is None
    nothing = Heldout(["a"], {}, {"imitation": {}, "rl": {"score": np.array([1.0])}}, ["Accident"])
    assert most_improved(nothing) is None
    failed = {name: {"score": np.array([np.nan])} for name in DRIVERS}
    assert most_improved(Heldout(["a"], {}, failed, ["Accident"])) is None
    (row,) = by_scenario(Heldout(["a"], {}, failed, ["Accident"]), list(DRIVERS))
    assert row["means"] == [(None, None)] * 4
    assert row["gain"] is None
