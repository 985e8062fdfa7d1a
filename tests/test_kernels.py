"""Compiled kernels on disk: a change in an imported file is noticed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import vla_models
from vla_models.kernels import source_stamp

PACKAGE = Path(vla_models.__file__).parent


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A small package of the same name: the real ``kernels`` module, a constant, and a kernel that has it compiled in."""
    package = tmp_path / "vla_models"
    (package / "deep").mkdir(parents=True)
    for name in ("__init__.py", "deep/__init__.py"):
        (package / name).touch()
    shutil.copy(PACKAGE / "kernels.py", package)
    (package / "deep" / "constants.py").write_text("FACTOR = 2\n")
    (package / "deep" / "inner.py").write_text(
        "from vla_models.deep.constants import FACTOR\nfrom vla_models.kernels import numba\n\n\n"
        "@numba.njit(cache=True)\ndef scaled(x):\n    return FACTOR * x\n"
    )
    (package / "outer.py").write_text(
        "from vla_models.deep.inner import scaled\nfrom vla_models.kernels import numba\n\n\n"
        "@numba.njit(cache=True)\ndef total(x):\n    return scaled(x) + 1\n\n\n"
        "print(total(10), sum(total.stats.cache_hits.values()))\n"
    )
    return tmp_path


def run(folder: Path) -> list[int]:
    """[result, hits in the disk cache] of a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", "import vla_models.outer"], cwd=folder, capture_output=True, text=True, check=True
    )
    return [int(x) for x in done.stdout.split()]


def test_a_kernel_is_compiled_anew_when_what_it_imports_has_changed(copy: Path) -> None:
    assert run(copy) == [21, 0]
    assert run(copy) == [21, 1]
    (copy / "vla_models" / "deep" / "constants.py").write_text("FACTOR = 3\n")
    assert run(copy) == [31, 0]
    assert run(copy) == [31, 1]


def test_a_module_that_is_imported_by_its_package_counts_too(copy: Path) -> None:
    outer = copy / "vla_models" / "outer.py"
    text = outer.read_text().replace("from vla_models.deep.inner import scaled", "from vla_models.deep import inner")
    outer.write_text(text.replace("scaled(x)", "inner.scaled(x)"))
    assert run(copy) == [21, 0]
    (copy / "vla_models" / "deep" / "constants.py").write_text("FACTOR = 3\n")
    assert run(copy) == [31, 0]


def test_the_stamp_covers_what_is_imported_and_nothing_else() -> None:
    track = source_stamp(PACKAGE / "scoring" / "pdm" / "track.py")
    assert track == source_stamp(PACKAGE / "scoring" / "pdm" / "track.py")
    assert track != source_stamp(PACKAGE / "scoring" / "pdm" / "collide.py")


def test_every_kernel_gets_its_numba_here() -> None:
    plain = [p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "kernels.py" and "\nimport numba\n" in p.read_text()]
    assert not plain, f"write 'from vla_models.kernels import numba' in {plain}"
