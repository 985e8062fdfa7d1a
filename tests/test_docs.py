"""The documents say what is so: code runs, links lead somewhere, versions are the pins, and the Chinese ones are in step."""

from __future__ import annotations

import ast
import itertools
import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

import bring_your_own_environment  # noqa: F401 - registered before a test's registry is made
import bring_your_own_model  # noqa: F401
import doc_blocks

ROOT = doc_blocks.ROOT
DOCUMENTS = doc_blocks.documents()
COMPARISON = sorted((ROOT / "docs").glob("0*.md"))
NAMES = {path: str(path.relative_to(ROOT)) for path in DOCUMENTS}
HISTORY = {("rlinf", "0.4.0"): "its main branch, which was read and never run"}
"""Versions that documents name and nothing pins, with the reason."""


def pins(framework: str) -> dict[str, str]:
    """distribution (lower case) -> version, of one framework's environment."""
    lines = (ROOT / "requirements" / f"{framework}.txt").read_text().splitlines()
    return {name.lower(): version for name, _, version in (line.partition("==") for line in lines) if version}


@pytest.mark.parametrize("name", ["02_model_integration_guide.md", "04_online_rl_interfaces.md"])
def test_code_blocks_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert doc_blocks.run(ROOT / "docs" / name) >= 4


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES.get)
def test_links_and_anchors_lead_somewhere(path: Path) -> None:
    broken = []
    for target in doc_blocks.LINK.findall(doc_blocks.prose(path)):
        file, _, anchor = target.partition("#")
        if "://" in target:
            parts = urlparse(target)
            if parts.scheme != "https" or "." not in parts.netloc:
                broken.append(target)
            continue
        to = (path.parent / file).resolve() if file else path
        inside = to.is_relative_to(ROOT) and to.exists()
        if not inside or (anchor and (to.suffix != ".md" or anchor not in doc_blocks.anchors(to))):
            broken.append(target)
    assert not broken, f"{NAMES[path]}: {broken}"


@pytest.mark.parametrize("path", [p for p in DOCUMENTS if p.name != "CHANGELOG.md"], ids=NAMES.get)
def test_versions_are_the_pins(path: Path) -> None:
    text, stale = path.read_text(encoding="utf-8"), []
    for name, version in doc_blocks.FRAMEWORK_VERSION.findall(text):
        file = ROOT / "requirements" / f"{name.lower()}.txt"
        if (name.lower(), version) not in HISTORY and file.is_file() and pins(name.lower())[name.lower()] != version:
            stale.append(f"{name} {version}: requirements/{name.lower()}.txt has {pins(name.lower())[name.lower()]}")
    if path.parent.name == "frameworks":
        own = pins(path.stem)
        for name in ("ray", "torch", "transformers", "tensordict", "TransferQueue", "peft"):
            for version in re.findall(rf"\b{name} (\d+\.\d+\.\d+)", text):
                if own[name.lower()] != version:
                    stale.append(f"{name} {version}: requirements/{path.stem}.txt has {own[name.lower()]}")
    assert not stale, f"{NAMES[path]}: {stale}"


@pytest.mark.parametrize("folder", ["docs", "docs/zh"])
def test_the_comparison_names_the_four_transformers_that_are_pinned(folder: str) -> None:
    text = (ROOT / folder / "01_framework_comparison.md").read_text(encoding="utf-8")
    named = re.search(r"transformers ((?:\d+\.\d+\.\d+(?:, | and |、)?){4})", text)
    assert named
    four = [pins(framework)["transformers"] for framework in ("areal", "rlinf", "verl", "siirl")]
    assert re.findall(r"\d+\.\d+\.\d+", named[1]) == four


def test_commands_in_shell_blocks_exist() -> None:
    """``make`` targets, subcommands of ``vla-models`` and scripts that the four documents tell people to type."""
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    commands = {
        name.strip('"')
        for file in (ROOT / "vla_models" / "cli").glob("*.py")
        for name in re.findall(r'^@app\.command\((?:\s*)("\w+")?', file.read_text(), re.MULTILINE)
    } | {
        node.name
        for file in (ROOT / "vla_models" / "cli").glob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef) and any("app.command" in ast.unparse(d) for d in node.decorator_list)
    }
    seen = 0
    for path in COMPARISON:
        for language, code in doc_blocks.FENCE.findall(path.read_text(encoding="utf-8")):
            for line in code.splitlines() if language == "sh" else ():
                words = line.split("#")[0].split()
                for word, after in itertools.pairwise(words):
                    seen += word in ("make", "vla-models", "python")
                    assert word != "make" or after in targets, line
                    assert word not in ("vla-models", "vla_models") or after in commands, line
                    assert word != "python" or (ROOT / after).is_file(), line
    assert seen >= 2


@pytest.mark.parametrize("path", COMPARISON, ids=NAMES.get)
def test_a_document_opens_with_its_answer_in_ten_lines_and_has_a_chinese_twin(path: Path) -> None:
    head = path.read_text(encoding="utf-8").split("\n", 2)[2]
    assert re.match(r"\*\*The answer in ten lines\.\*\*\n(?:\d+\. .*\n){10}\n", head)
    twin = path.parent / "zh" / path.name
    assert [block.code for block in doc_blocks.marked(twin)] == [block.code for block in doc_blocks.marked(path)]
    assert sorted(doc_blocks.citations(twin)) == sorted(doc_blocks.citations(path))
    levels = [re.findall(r"^(#+) ", doc_blocks.prose(p), re.MULTILINE) for p in (path, twin)]
    assert levels[0] == levels[1]
    rows = [len(re.findall(r"^\|", doc_blocks.prose(p), re.MULTILINE)) for p in (path, twin)]
    assert rows[0] == rows[1], "tables of different length"


def test_nothing_that_was_measured_is_called_unmeasured() -> None:
    measured = (ROOT / "benchmarks" / "results" / "staleness_areal.json").exists()
    for path, words in (
        ("docs/03_async_training_analysis.md", "Not measured yet"),
        ("docs/zh/03_async_training_analysis.md", "尚未测量"),
    ):
        said = words in (ROOT / path).read_text(encoding="utf-8")
        assert said != measured, f"{path}: fill its last section from benchmarks/results/staleness_areal.json"


@pytest.mark.parametrize("index", ["docs/index.md", "docs/zh/index.md"])
def test_the_index_has_every_document(index: str) -> None:
    path = ROOT / index
    linked = {(path.parent / target).resolve() for target in doc_blocks.LINK.findall(path.read_text(encoding="utf-8"))}
    folders = [path.parent] if path.parent.name == "zh" else [path.parent, path.parent / "frameworks"]
    there = {file.resolve() for folder in folders for file in folder.glob("*.md")} - {path.resolve()}
    assert there <= linked, sorted(str(file.relative_to(ROOT)) for file in there - linked)


def test_a_broken_link_a_stale_version_and_a_failing_block_would_be_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One `two` (three)\n# One two three\n[a](no.md) verl 0.9.0\n\n<!-- run -->\n```python\n\n1 / 0\n```\n")
    assert doc_blocks.anchors(page) == {"one-two-three", "one-two-three-1"}
    assert doc_blocks.LINK.findall(doc_blocks.prose(page)) == ["no.md"]
    assert doc_blocks.FRAMEWORK_VERSION.findall(page.read_text()) == [("verl", "0.9.0")]
    with pytest.raises(ZeroDivisionError) as raised:
        doc_blocks.run(page)
    assert raised.traceback[-1].lineno + 1 == 8  # the line in the document
