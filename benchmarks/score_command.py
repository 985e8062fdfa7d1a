"""``vla-models score`` over 1,000 scenes x 64 proposals: wall and CPU seconds, and what a SIGKILL half-way costs.

Run ``python benchmarks/score_command.py``. The scenes are the golden ones (tests/data/pdm) again and again, under names of
their own: as ``.json.gz`` files with an ``.npy`` of proposals each, and as a scene store with one ``.npy``. Every time is that
of the whole command, from the start of Python to the written file; CPU seconds are those of all its processes. A first run,
which compiles the kernels, is not counted. Results go to benchmarks/results/score_command.json.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from pdm_scoring import DATA, HERE, cpu_name

from vla_models.scenes.neutral import read_scene
from vla_models.scenes.store import write_scenes

SCENES = 1000
_SUBREAPER = 36  # prctl: orphans below become our children, so that their CPU time is counted


def main() -> None:
    """Measure, print, write."""
    ctypes.CDLL(None).prctl(_SUBREAPER, 1)
    machine: dict[str, object] = {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}
    machine["load"] = os.getloadavg()[0]  # wall seconds mean little where others use the cores
    results: dict[str, object] = {"machine": machine, "scenes": SCENES, "proposals": 64}
    with tempfile.TemporaryDirectory() as folder:
        files, store = make_inputs(Path(folder))
        out = Path(folder) / "scores.parquet"
        run(files, out, "v1"), run(files, out, "v2")  # compiles
        print(f"{'':>26}{'wall s':>9}{'CPU s':>9}")
        for name, inputs in (("files", files), ("store", store)):
            for version in ("v1", "v2"):
                results[f"{name} {version}"] = report(f"{name}, {version}", run(inputs, out, version))
        results["killed"] = killed = kill_half_way(files, out)
        print(f"\nkilled with {killed['kept']} of {killed['shares']} shares of 32 scenes finished")
        results["resumed"] = report("files, v2, resumed", run(files, out, "v2"))
    (HERE / "results" / "score_command.json").write_text(json.dumps(results, indent=1) + "\n")


def make_inputs(folder: Path) -> tuple[list[str], list[str]]:
    """--scene and --proposals as files and as a store."""
    paths = sorted(DATA.glob("*.json.gz"))
    plans = [np.load(str(path).replace(".json.gz", ".npz"))["proposals"] for path in paths]
    (folder / "scenes").mkdir()
    (folder / "plans").mkdir()
    for i in range(SCENES):
        shutil.copy(paths[i % len(paths)], folder / "scenes" / f"scene_{i:04d}.json.gz")
        np.save(folder / "plans" / f"scene_{i:04d}.npy", plans[i % len(paths)])
    scenes = [read_scene(path) for path in paths]
    write_scenes(folder / "S.arrow", (scenes[i % len(scenes)].with_(token=f"scene_{i:04d}") for i in range(SCENES)))
    np.save(folder / "P.npy", np.stack([plans[i % len(plans)] for i in range(SCENES)]))
    files = ["--scene", str(folder / "scenes"), "--proposals", str(folder / "plans")]
    return files, ["--scene", str(folder / "S.arrow"), "--proposals", str(folder / "P.npy")]


def start(inputs: list[str], out: Path, version: str) -> subprocess.Popen[bytes]:
    """The command, running."""
    command = [sys.executable, "-m", "vla_models", "score", *inputs, "--version", version, "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def run(inputs: list[str], out: Path, version: str) -> tuple[float, float]:
    """Wall and CPU seconds of the command."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = start(inputs, out, version)
    if process.wait():
        raise SystemExit(f"the command failed: {process.args}")
    wall = time.perf_counter() - began
    reap()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def kill_half_way(inputs: list[str], out: Path) -> dict[str, int]:
    """SIGKILL to the command when half of its shares are finished."""
    shares = -(-SCENES // 32)
    process = start(inputs, out, "v2")
    folder = out.with_name(f".{out.name}.parts")
    while len(list(folder.glob("[!.]*.npz"))) < shares // 2:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reap()
    return {"shares": shares, "kept": len(list(folder.glob("[!.]*.npz")))}


def reap() -> None:
    """Wait for all processes that the command has left behind."""
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return


def report(name: str, spent: tuple[float, float]) -> dict[str, float]:
    """Print a line; the same as JSON."""
    print(f"{name:>26}{spent[0]:>9.2f}{spent[1]:>9.2f}")
    return {"wall_s": round(spent[0], 2), "cpu_s": round(spent[1], 2)}


if __name__ == "__main__":
    main()
