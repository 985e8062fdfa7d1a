"""What tests read out of the documents: links, headings, versions, citations, and code blocks that are marked to be run.

``<!-- run -->`` before a Python block means: run it wherever the tests run; ``<!-- run: verl -->``: where verl is installed.
The blocks of a document share one namespace and run in their order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MARKED = re.compile(r"^<!-- run(?:: (\w+))? -->\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CITED = re.compile(r"\b((?:areal|rlinf|verl|siirl)/[\w/]+\.(?:py|yaml)):(\d+)")
FRAMEWORK_VERSION = re.compile(r"\b(areal|rlinf|verl|siirl)[ =]{1,2}(\d+\.\d+\.\d+)", re.IGNORECASE)


def documents() -> list[Path]:
    """Every Markdown file of the repository that people read."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def prose(path: Path) -> str:
    """A document without its code blocks."""
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def anchors(path: Path) -> set[str]:
    """Anchors of a document's headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.*)$", prose(path), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        number = sum(other == slug or re.fullmatch(re.escape(slug) + r"-\d+", other) is not None for other in found)
        found.add(f"{slug}-{number}" if number else slug)
    return found


def citations(path: Path) -> list[tuple[str, int]]:
    """(file, line) in a framework's package, wherever a document names one."""
    return [(file, int(line)) for file, line in CITED.findall(prose(path).replace("\\_", "_"))]


@dataclass(frozen=True)
class Block:
    """A marked Python block."""

    framework: str | None
    code: str
    line: int
    """Where it begins in its document."""


def marked(path: Path) -> Iterator[Block]:
    """The blocks of a document that are to be run."""
    text = path.read_text(encoding="utf-8")
    for match in MARKED.finditer(text):
        yield Block(match[1], match[2], text.count("\n", 0, match.start(2)))


def run(path: Path, framework: str | None = None) -> int:
    """Run a document's blocks, those for ``framework`` among them; returns how many. A failure names document and line."""
    namespace: dict[str, Any] = {"__name__": "document"}
    done = 0
    for block in marked(path):
        if block.framework in (None, framework):
            exec(compile("\n" * block.line + block.code, str(path), "exec"), namespace)
            done += block.framework == framework
    return done


def check_citations(framework: str) -> None:
    """Every file and line of an installed framework that the documents cite is there and not empty."""
    import importlib.util

    spec = importlib.util.find_spec(framework)
    assert spec, f"{framework} is not installed here"
    site = Path(str(spec.origin)).parent.parent
    cited = {place for path in (ROOT / "docs").glob("0*.md") for place in citations(path)}
    found = sorted((file, line) for file, line in cited if file.startswith(f"{framework}/"))
    assert found, f"the documents cite nothing of {framework}"
    for file, line in found:
        lines = (site / file).read_text(encoding="utf-8").splitlines()
        assert "".join(lines[line - 1 : line]).strip(), f"{file}:{line} is empty, or the file ends before it"
