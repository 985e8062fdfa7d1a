"""Explanations as words and pictures: every fact of the official scenes can be said and drawn."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from vla_models.errors import MissingDependency, OutputError
from vla_models.report.explanation import explained, title, write_picture
from vla_models.scenes.neutral import read_scene
from vla_models.scoring.pdm import human_terms
from vla_models.scoring.pdm.explain import Fact, Harsh, TooClose, explain

DATA = Path(__file__).parents[1] / "data" / "pdm"
GOLDEN = sorted(DATA.glob("*.json.gz"))


@pytest.fixture(scope="module")
def examples():
    """Kind of fact -> (scene, plan, explanation), and all lines that were written on the way."""
    found, lines = {}, []
    for path in GOLDEN:
        scene = read_scene(path)
        for plan in np.load(str(path).replace(".json.gz", ".npz"))["proposals"][::3]:
            for version in ("v1", "v2"):
                explanation = explain(scene, plan, version)
                said = explained(scene, explanation)
                assert [line.term for line in said] == [fact.term for fact in explanation.facts]
                lines += [(version, line, fact) for line, fact in zip(said, explanation.facts, strict=True)]
                for fact in explanation.facts:
                    found.setdefault(type(fact), (scene, plan, explanation))
    return found, lines


def test_every_kind_of_fact_is_said(examples) -> None:
    found, lines = examples
    assert set(found) == set(Fact.__args__)
    for version, line, fact in lines:
        assert len(line.text) > 20
        assert "{" not in line.text
        if line.term in ("nc", "dac", "tlc") or (line.term == "ddc" and version == "v2"):
            assert line.cost == f"total × {line.value:g}"
        elif line.term == "ddc":
            assert line.cost == "not counted"
        else:
            weight = {"ttc": 5, "ep": 5, "lk": 2, "comfort": 2}[line.term] / (12 if version == "v1" else 14)
            assert float(line.cost.removeprefix("mean − ")) == pytest.approx(weight * (1.0 - line.value), abs=5e-4)
        if isinstance(fact, TooClose):
            assert f"{fact.ahead:.1f} s from hitting {fact.kind} {fact.agent!r}" in line.text
        if isinstance(fact, Harsh):
            assert f"{fact.quantity} of {fact.value:.2f} {'rad/s' if 'yaw' in fact.quantity else 'm/s'}" in line.text


def test_what_the_human_lost_too_is_said() -> None:
    scene = read_scene(DATA / "18_intersection_straight.json.gz")
    plan = np.load(DATA / "18_intersection_straight.npz")["proposals"][5]
    human = human_terms(scene)
    assert human is not None
    for line in explained(scene, explain(scene, plan, "v2"), human):
        assert ("the human filter forgives it" in line.text) == (human.get(line.term) == 0.0)


def test_every_kind_of_fact_is_drawn(examples, tmp_path: Path) -> None:
    from PIL import Image

    found, _ = examples
    drawn = {id(explanation): (scene, plan, explanation) for scene, plan, explanation in found.values()}
    for k, (scene, plan, explanation) in enumerate(drawn.values()):
        path = tmp_path / f"{k}.png"
        write_picture(path, scene, plan, explanation, explained(scene, explanation), k)
        image = np.asarray(Image.open(path).convert("RGB")).astype(int)
        assert image.shape == (720, 1320, 3)
        red = (image[..., 0] > 200) & (image[..., 1:].max(axis=-1) < 60)
        assert red[:, :720].sum() > 100, "the marks"
        assert (image[:, 730:].sum(axis=-1) < 300).sum() > 1000, "the words"
        assert f"proposal {k}: " in title(explanation, k)


def test_what_is_missing_is_named(examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene, plan, explanation = next(iter(examples[0].values()))
    with pytest.raises(OutputError, match=r"/proc/why\.png cannot be written"):
        write_picture(Path("/proc/why.png"), scene, plan, explanation, [], 0)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependency, match="pip install matplotlib"):
        write_picture(tmp_path / "why.png", scene, plan, explanation, [], 0)
