"""numba, with a disk cache that notices when an imported file has changed: ``from vla_models.kernels import numba``.

numba keeps compiled kernels on disk and compiles anew when the kernel's own file changes. It does not look at the files that
this one imports, although their kernels and constants are compiled into it: after an update, a kernel would go on computing
what an old version did. Here a kernel's stamp covers its file and every file of this package that it imports, directly or not.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path
from typing import Any, Final

import numba
from numba.core import caching

__all__ = ["numba"]

_PACKAGE: Final = Path(__file__).parent
_IMPORT: Final = re.compile(
    r"^\s*from (vla_models[\w.]*) import (\([^)]*\)|[^\n]*)|^\s*import (vla_models[\w.]*)", re.MULTILINE
)


@cache
def _imported(file: Path) -> tuple[Path, ...]:
    """The package's files that ``file`` imports itself, as modules or as names of a package."""
    names: set[str] = set()
    for match in _IMPORT.finditer(file.read_text(encoding="utf-8")):
        package, imported, module = match.groups(default="")
        names.update((package, module), (f"{package}.{name}" for name in re.findall(r"\w+", imported)))
    found: set[Path] = set()
    for name in names - {""}:
        at = _PACKAGE.parent.joinpath(*name.split("."))
        found.update(path for path in (at.with_suffix(".py"), at / "__init__.py") if path.is_file())
    return tuple(sorted(found))


@cache
def source_stamp(file: Path) -> bytes:
    """Hash of ``file`` and of all files of this package that it imports, directly or not."""
    reached: set[Path] = set()
    waiting = [file]
    while waiting:
        at = waiting.pop()
        if at not in reached:
            reached.add(at)
            waiting += _imported(at)
    digest = hashlib.sha256()
    for path in sorted(reached):
        digest.update(f"{path.relative_to(_PACKAGE)}\0".encode() + path.read_bytes())
    return digest.digest()


def _watching(locator: type[Any]) -> type[Any]:
    """``locator`` (where numba keeps a kernel's files) with our stamp; it is for kernels of this package only."""

    class Watching(locator):
        def get_source_stamp(self) -> bytes:
            return source_stamp(Path(self._py_file))

        @classmethod
        def from_function(cls, py_func: Any, py_file: str) -> Any:
            return super().from_function(py_func, py_file) if _PACKAGE in Path(py_file).parents else None

    return Watching


_KEEPERS: Final = (caching.UserProvidedCacheLocator, caching.InTreeCacheLocator, caching.UserWideCacheLocator)
caching.CacheImpl._locator_classes[:0] = [_watching(keeper) for keeper in _KEEPERS]
