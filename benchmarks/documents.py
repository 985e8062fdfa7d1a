"""Parts of the documents that a command writes: between ``<!-- name: command -->`` and ``<!-- end of name -->``."""

from __future__ import annotations

from pathlib import Path
from typing import Final

COMPARISON: Final = tuple(Path(__file__).parents[1] / "docs" / p / "01_framework_comparison.md" for p in ("", "zh"))
"""The comparison of the frameworks: English, Chinese."""


def fill(text: str, name: str, command: str, made: str) -> str:
    """``text`` with that part as it is now; ``ValueError`` if it has no such part."""
    start, end = f"<!-- {name}: {command} -->", f"<!-- end of {name} -->"
    if start not in text or end not in text:
        raise ValueError(f"the document has no part between {start} and {end}")
    before, rest = text.split(start)
    return f"{before}{start}\n{made}\n{end}{rest.split(end)[1]}"
