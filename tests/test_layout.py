"""The architecture as tests: imports point one way, and importing the package is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "vla_models"

# Lowest first (docs/architecture.md). A room imports from its own level only itself, and anything from below.
LEVELS: list[set[str]] = [
    {"kernels"},
    {"errors", "files", "geometry", "workers"},
    {"scenes", "yaml_source"},
    {"inputs", "pretrained", "config_errors", "lora"},
    {"scoring", "simulation", "render", "control"},
    {"envs", "interface"},
    {"heads", "model_registry"},
    {"models", "config_sections"},
    {"config"},
    {"training", "leaderboard"},
    {"frameworks"},
    {"report", "doctor", "__init__"},
    {"cli"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}

# Inner imports that run upwards on purpose, each with its reason.
ALLOWED = {
    ("simulation", "control"): "the batched controller is the PID of control, with its constants",
    ("scenes", "simulation"): "procedural scenes are what the traffic simulation leaves behind",
    ("scenes", "scoring"): "scenes carry PDM-Closed's reference and are filtered by it, as NavSim's own are",
    ("scenes", "render"): "scenes carry what the camera saw",
    ("interface", "model_registry"): "from_pretrained finds the class by name",
    ("training", "report"): "a run ends with its report",
    ("frameworks", "report"): "a run ends with its report",
}


def rooms_imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" if node.module == "vla_models" else str(node.module) for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("vla_models.")}
    return found & LEVEL.keys()


def test_every_room_has_a_level() -> None:
    rooms = {p.stem if p.is_file() else p.name for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert rooms <= LEVEL.keys(), f"add {sorted(rooms - LEVEL.keys())} to LEVELS in {__file__}"


def test_imports_point_downwards() -> None:
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for other in rooms_imported(path) - {room}:
            if LEVEL[other] >= LEVEL[room] and (room, other) not in ALLOWED:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {other}")
    assert not wrong, "\n".join(sorted(wrong))


def test_no_relative_imports() -> None:
    """Absolute imports only, so that the check above sees everything."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.ImportFrom) and node.level), path


@pytest.mark.parametrize("heavy", ["torch", "numba", "pyarrow", "matplotlib", "panda3d", "carla", "gymnasium", "pydantic"])
def test_importing_the_package_is_cheap(heavy: str) -> None:
    code = f"import sys, vla_models; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0, f"import vla_models loads {heavy}"
