"""The report of a run: complete from a complete run, honest about an incomplete one, never fooled by markup."""

from __future__ import annotations

import base64
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from vla_models.errors import MissingDependency, VLAModelsError
from vla_models.render.camera import CameraRenderer, CameraSpec
from vla_models.report import write_report
from vla_models.report.report import duration, lost_by
from vla_models.report.run import PLANNERS, RunError, read_run
from vla_models.scenes.neutral import read_scene
from vla_models.scenes.store import write_scenes

GOLDEN = sorted((Path(__file__).parent.parent / "data" / "pdm").glob("*.json.gz"))[:6]
SUBS = ("nc", "dac", "ddc", "ttc", "ep", "comfort")


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as the trainer leaves it, over six official scenes."""
    run = tmp_path_factory.mktemp("runs") / "a-run"
    run.mkdir()
    scenes = [read_scene(path) for path in GOLDEN]
    with CameraRenderer(CameraSpec(width=80, height=48)) as camera:
        scenes = [scene.with_(images={"front": camera.render(scene)}, kind=f"kind_{i % 2}") for i, scene in enumerate(scenes)]
    store = write_scenes(run / "scenes.arrow", scenes)
    random = np.random.default_rng(0)
    n = len(scenes)
    arrays = {"tokens": np.array(store.tokens), "scene_store": np.array(str(store.path))}
    for k, name in enumerate(PLANNERS):
        arrays[f"{name}_plans"] = np.cumsum(random.uniform(0.0, 4.0, (n, 8, 3)) * [1.0, 0.1, 0.0], axis=1).astype(np.float32)
        arrays |= {f"{name}_{key}": np.full(n, 1.0) for key in SUBS}
        arrays[f"{name}_score"] = np.clip(0.2 * k + random.uniform(0.0, 0.2, n), 0.0, 1.0)
    arrays["rl_nc"][0], arrays["rl_score"][0] = 0.0, 0.0
    arrays["rl_ttc"][1] = 0.0
    np.savez(run / "heldout.npz", **arrays)
    summary = {
        "framework": "local",
        "env": "navsim",
        "seed": 7,
        "heldout": {name: float(arrays[f"{name}_score"].mean()) for name in PLANNERS},
        "subscores": {
            name: {key: float(arrays[f"{name}_{key}"].mean()) for key in SUBS} | {"progress_raw": 20.0 + k, "reverse": 0.25}
            for k, name in enumerate(PLANNERS)
        },
        "wall_s": 421.0,
        "versions": {"python": "3.11", "torch": "2.13.0", "score": "v1"},
    }
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "config.yaml").write_text("seed: 7\nname: <script>alert(1)</script>\n")
    rows = [{"phase": "imitation", "step": i + 1, "wall_s": 0.1 * i, "loss": 3.0 / (i + 1)} for i in range(30)]
    for i in range(40):
        numbers = {"reward_mean": 0.3 + 0.01 * i, "kl": 1e-3 * i, "entropy": 2.0, "grad_norm": 1.0, "sample_s": 1.0, "nc": 0.9}
        numbers |= {"score": 0.3, "progress_raw": 21.0, "reverse": 0.01 * i}
        rows.append({"phase": "rl", "step": i + 1, "wall_s": 3.0 + i, **numbers})
        if i % 20 == 0:
            rows.append({"phase": "eval", "step": i, "wall_s": 3.0 + i, "name": "rl", "score": 0.4, "nc": 0.9, "ep": 0.5})
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


@pytest.fixture
def run(whole_run: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    import shutil

    return Path(shutil.copytree(whole_run, tmp_path / "a-run"))


class Page(HTMLParser):
    """Text, pictures and tags of a page; complains about tags that are not closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.images: list[str] = []
        self.words = ""
        self.feed(path.read_text())
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs)["src"] or "")
        if tag not in ("img", "meta", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["script"]):
            self.words += data


def test_a_whole_run(run: Path) -> None:
    path = write_report(run)
    assert path == run / "report.html"
    page = Page(path)
    summary = json.loads((run / "summary.json").read_text())
    for name, (title, _) in PLANNERS.items():
        assert title in page.words
        assert f"{summary['heldout'][name]:.3f}" in page.words
    for part in ("Learning curve", "Sub-scores", "Improved most", "Worst that remain", "Where points are lost", "7 min 01 s"):
        assert part in page.words
    assert "Not everything was there" not in page.words
    assert "nc: at-fault collisions" in page.words
    assert "ttc: coming too close to a collision" in page.words
    assert "kind 0" in page.words
    assert "Is the reward being gamed?" in page.words
    assert "metres driven backwards" in page.words
    assert "20.00" in page.words
    assert "0.25" in page.words
    assert "torch" in page.words
    # self-contained: every picture is inside and is a PNG
    assert len(page.images) > 8
    for image in page.images:
        head, data = image.split(",", 1)
        assert head == "data:image/png;base64"
        assert base64.b64decode(data).startswith(b"\x89PNG")
    assert not re.search(r'(src|href)="(?!data:)', path.read_text())


def test_a_driving_reward_gets_its_own_scale(run: Path) -> None:
    from vla_models.report.pictures import learning_curve

    rows = [{"phase": "rl", "step": i, "reward_mean": -9.0 + i} for i in range(12)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    picture = learning_curve(read_run(run))
    assert picture is not None
    assert picture.startswith(b"\x89PNG")


def test_markup_in_the_files_is_only_text(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    summary["env"] = "<img src=x onerror=alert(2)>"
    summary["versions"]["<b>"] = "</td><script>"
    (run / "summary.json").write_text(json.dumps(summary))
    page = Page(write_report(run))
    assert "script" not in page.tags
    assert "<script>alert(1)</script>" in page.words
    assert "<img src=x onerror=alert(2)>" in page.words


@pytest.mark.parametrize("gone", ["metrics.jsonl", "config.yaml", "heldout.npz", "scenes.arrow"])
def test_what_is_missing_is_said(run: Path, gone: str) -> None:
    if gone == "scenes.arrow":
        with np.load(run / "heldout.npz") as file:
            arrays = dict(file)
        arrays["scene_store"] = np.array(str(run / "nowhere.arrow"))
        np.savez(run / "heldout.npz", **arrays)
        gone = "nowhere.arrow"
    else:
        (run / gone).unlink()
    page = Page(write_report(run))
    assert "Not everything was there" in page.words
    assert gone in page.words
    assert "Held-out scores" in page.words


def test_only_a_summary_is_enough(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"heldout": {"rl": 0.5}}))
    page = Page(write_report(tmp_path))
    assert "0.500" in page.words
    assert "constant_velocity" in page.words  # named as missing


@pytest.mark.parametrize("store", ["", "other"])
def test_scenes_that_cannot_be_found(run: Path, store: str) -> None:
    with np.load(run / "heldout.npz") as file:
        arrays = dict(file)
    if store:
        write_scenes(run / "other.arrow", [read_scene(GOLDEN[-1]).with_(token="another")])
        arrays["scene_store"] = np.array(str(run / "other.arrow"))
    else:
        arrays["scene_store"] = np.array("")
    np.savez(run / "heldout.npz", **arrays)
    assert "Not everything was there" in Page(write_report(run)).words


def test_damaged_parts_are_said(run: Path) -> None:
    (run / "heldout.npz").write_bytes(b"PK\x03\x04 not a zip")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"phase": "rl", "st')
    page = Page(write_report(run))
    assert "heldout.npz could not be read" in page.words
    assert "1 line(s) of metrics.jsonl" in page.words


@pytest.mark.parametrize("text", [None, "{", "[]", '{"heldout": 3}'])
def test_without_a_summary_there_is_no_report(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "summary.json").write_text(text)
    with pytest.raises(RunError, match=r"summary\.json") as caught:
        write_report(tmp_path)
    assert isinstance(caught.value, VLAModelsError)
    assert not (tmp_path / "report.html").exists()


def test_missing_packages_are_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingDependency, match="pip install matplotlib jinja2"):
        write_report(run)


def test_failures_are_named_by_what_they_cost() -> None:
    scores = {key: np.ones(4) for key in ("nc", "dac", "ddc", "ttc", "ep", "comfort")}
    scores["nc"][0], scores["ep"][0] = 0.0, 0.0  # a collision voids progress: it is not a second failure
    scores["ep"][1], scores["comfort"][1] = 0.5, 0.0
    scores["ddc"][2] = 0.0  # reported but not counted in v1
    assert [lost_by(scores, row) for row in range(4)] == [["nc"], ["ep", "comfort"], [], []]
    assert lost_by(scores, 2, "v2") == ["ddc"]


def test_the_score_version_is_read_or_seen(run: Path) -> None:
    assert read_run(run).version == "v1"
    summary = json.loads((run / "summary.json").read_text())
    del summary["versions"]
    summary["subscores"]["rl"]["tlc"] = 1.0
    (run / "summary.json").write_text(json.dumps(summary))
    assert read_run(run).version == "v2"


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (42, "42 s"), (425, "7 min 05 s"), (3725, "1 h 02 min")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
