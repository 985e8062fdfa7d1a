"""Where caches lie, and how a file is written so that nobody ever sees half of it."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_dir() -> Path:
    """Folder of what can be made again (lane graphs, generated scenes): ``$VLA_MODELS_CACHE`` or ``~/.cache/vla_models``."""
    return Path(os.environ.get("VLA_MODELS_CACHE") or Path.home() / ".cache" / "vla_models")


def code_hash(files: Iterable[Path]) -> str:
    """16 hex digits of the contents of source files: what was made by other code is not taken for ours."""
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of ``path``; on success it takes the place of ``path`` in one step, else it is removed.

    Works for a file or a folder (an existing folder is replaced: moved aside first, removed after).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        if temporary.is_dir() and path.exists():
            aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.old")
            os.replace(path, aside)
            os.replace(temporary, path)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
