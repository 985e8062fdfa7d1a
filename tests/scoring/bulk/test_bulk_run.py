"""Many scenes at once: the same rows whoever scores them, killed workers and killed runs cost only what was unfinished."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from vla_models.errors import MissingDependency, OutputError, WorkerError
from vla_models.scenes.neutral import read_scene
from vla_models.scenes.store import write_scenes
from vla_models.scoring.bulk import Options, ScoreTable, find_jobs, find_scenes, score_jobs
from vla_models.scoring.bulk.run import SHARE
from vla_models.scoring.bulk.sources import PlansRef

DATA = Path(__file__).parents[2] / "data" / "pdm"
GOLDEN = sorted(DATA.glob("*.json.gz"))[:4]
SCENES, N = 20 * SHARE, 24


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of many scenes (four official ones again and again) and 24 proposals for each."""
    folder = tmp_path_factory.mktemp("many")
    four = [read_scene(path) for path in GOLDEN]
    write_scenes(folder / "S.arrow", (four[i % 4].with_(token=f"scene_{i:04d}") for i in range(SCENES)))
    plans = np.stack([np.load(str(path).replace(".json.gz", ".npz"))["proposals"][:N] for path in GOLDEN])
    np.save(folder / "P.npy", np.stack([plans[i % 4] for i in range(SCENES)]))
    return folder


@pytest.fixture(scope="module")
def expected(inputs: Path) -> ScoreTable:
    return score_jobs(jobs_of(inputs), Options("v2"))


def jobs_of(folder: Path):
    return find_jobs(find_scenes(folder / "S.arrow"), folder / "P.npy")


def assert_same(found: ScoreTable, expected: ScoreTable) -> None:
    assert found.columns.keys() == expected.columns.keys()
    for name, values in expected.columns.items():
        np.testing.assert_array_equal(found.columns[name], values, err_msg=name)
    assert found.provenance == expected.provenance


def command(folder: Path, out: Path, *more: str) -> list[str]:
    files = ["--scene", str(folder / "S.arrow"), "--proposals", str(folder / "P.npy")]
    return [sys.executable, "-m", "vla_models", "score", *files, "--version", "v2", "--out", str(out), *more]


def wait_for(what: Callable[[], object], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.002)


def shares(out: Path) -> list[Path]:
    return sorted(out.with_name(f".{out.name}.parts").glob("[!.]*.npz"))


def test_the_rows_are_the_scenes_in_order(expected: ScoreTable) -> None:
    assert len(expected) == N * SCENES
    assert expected.columns["token"][::N].tolist() == [f"scene_{i:04d}" for i in range(SCENES)]
    for k, path in enumerate(GOLDEN):
        official = np.load(str(path).replace(".json.gz", ".npz"))["v2_score"][:N]
        for i in (k, SCENES - 4 + k):
            np.testing.assert_allclose(expected.columns["score"][N * i : N * i + N], official, atol=1e-6)


def test_a_killed_worker_costs_its_share_again_and_nothing_else(inputs: Path, expected: ScoreTable) -> None:
    killed: list[int] = []

    def kill(scenes: int) -> None:
        if not killed:
            # of the processes below the fork server, the one that has worked most is a worker, and it is at work
            below = [w for child in psutil.Process().children() for w in child.children()]
            victim = max(below, key=lambda process: process.cpu_times().user)
            killed.append(victim.pid)
            victim.kill()

    assert_same(score_jobs(jobs_of(inputs), Options("v2"), workers=2, advance=kill), expected)
    assert len(killed) == 1
    assert not psutil.pid_exists(killed[0])


class Deadly(PlansRef):
    """Proposals that end whoever loads them."""

    def load(self):
        os._exit(1)


def test_workers_that_keep_dying_end_the_run_with_a_name(inputs: Path) -> None:
    jobs = jobs_of(inputs)[: 2 * SHARE]
    jobs[SHARE] = replace(jobs[SHARE], plans=Deadly(inputs / "P.npy", None, SHARE, ""))
    with pytest.raises(WorkerError, match="3 workers in a row died, the last one over scenes 'scene_0032'"):
        score_jobs(jobs, Options(), workers=2)


def test_a_killed_run_goes_on_where_it_was(inputs: Path, expected: ScoreTable, tmp_path: Path) -> None:
    out = tmp_path / "scores.npz"
    run = subprocess.Popen(command(inputs, out, "--threads", "2"), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    wait_for(lambda: len(shares(out)) >= 3)
    below = psutil.Process(run.pid).children(recursive=True)
    run.send_signal(signal.SIGKILL)
    run.wait()
    finished = {path.name: path.stat().st_mtime_ns for path in shares(out)}
    assert 3 <= len(finished) < 20, "killed in the middle"
    assert not out.exists()
    wait_for(lambda: not any(process.is_running() and process.status() != "zombie" for process in below))

    kept: dict[str, int] = {}
    advances: list[int] = []

    def look(scenes: int) -> None:
        advances.append(scenes)
        kept.update({path.name: path.stat().st_mtime_ns for path in shares(out)})

    folder = out.with_name(f".{out.name}.parts")
    assert_same(score_jobs(jobs_of(inputs), Options("v2"), keep=folder, advance=look), expected)
    assert finished.items() <= kept.items(), "finished shares were not written again"
    assert len(kept) == 20
    assert sum(advances) == SCENES

    again = subprocess.run(command(inputs, out, "--threads", "2"), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    written = np.load(out)
    for name, values in expected.columns.items():
        np.testing.assert_array_equal(written[name], values, err_msg=name)
    assert list(tmp_path.iterdir()) == [out], "nothing is left beside the result"


@pytest.mark.parametrize("change", ["proposals", "scene", "version", "filter", "order"])
def test_other_inputs_take_over_nothing_that_they_change(inputs: Path, tmp_path: Path, change: str) -> None:
    scenes = [read_scene(GOLDEN[i % 4]).with_(token=f"s{i}") for i in range(2 * SHARE)]
    plans = np.load(str(GOLDEN[0]).replace(".json.gz", ".npz"))["proposals"][:2]
    np.savez(tmp_path / "P.npz", **{scene.token: plans for scene in scenes})
    write_scenes(tmp_path / "S.arrow", scenes)
    keep = tmp_path / "parts"
    score_jobs(find_jobs(find_scenes(tmp_path / "S.arrow"), tmp_path / "P.npz"), Options("v2"), keep=keep)
    before = {path.name for path in keep.glob("*.npz")}
    options = Options("v2")
    if change == "proposals":
        np.savez(tmp_path / "P.npz", **{scene.token: plans * 0.9 for scene in scenes})
    elif change == "scene":
        scenes[-1] = scenes[-1].with_(speed_limit=scenes[-1].speed_limit + 1.0)
        write_scenes(tmp_path / "S.arrow", scenes)
    elif change == "version":
        options = Options("v1")
    elif change == "filter":
        options = Options("v2", human_filter=True)
    else:
        write_scenes(tmp_path / "S.arrow", scenes[::-1])
    jobs = find_jobs(find_scenes(tmp_path / "S.arrow"), tmp_path / "P.npz")
    found = score_jobs(jobs, options, keep=keep)
    assert_same(found, score_jobs(jobs, options))
    new = {path.name for path in keep.glob("*.npz")} - before
    assert len(new) == (1 if change == "scene" else 2), "only the share with the changed scene is scored again"


def test_a_damaged_share_is_scored_again(inputs: Path, tmp_path: Path) -> None:
    jobs = jobs_of(inputs)[: 2 * SHARE]
    first = score_jobs(jobs, Options(), keep=tmp_path / "parts")
    for path in (tmp_path / "parts").glob("*.npz"):
        path.write_bytes(path.read_bytes()[:1000])
    assert_same(score_jobs(jobs, Options(), keep=tmp_path / "parts"), first)


def test_two_runs_do_not_share_a_result(inputs: Path, tmp_path: Path) -> None:
    jobs = jobs_of(inputs)[:SHARE]

    def second(scenes: int) -> None:
        with pytest.raises(OutputError, match="another run is writing"):
            score_jobs(jobs, Options(), keep=tmp_path / "parts")

    score_jobs(jobs, Options(), keep=tmp_path / "parts", advance=second)
    with pytest.raises(OutputError, match="cannot be kept"):
        score_jobs(jobs, Options(), keep=tmp_path / "no" / "parts")


# -- Ray -------------------------------------------------------------------------------------------------------------------


def test_without_ray_the_command_that_installs_it_is_named(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependency, match=r"pip install 'vla_models\[ray\]'"):
        score_jobs(jobs_of(inputs)[:SHARE], Options(), engine="ray")


class DeadlyOnce(PlansRef):
    """Proposals that end the first worker that loads them."""

    def load(self):
        died = self.path.with_name("died")
        if self.content is not None and not died.exists():  # carried: this is a worker
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().load()


@pytest.mark.slow
def test_ray_gives_the_same_though_a_worker_is_killed(
    inputs: Path, expected: ScoreTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    jobs = jobs_of(inputs)
    plans = jobs[3 * SHARE].plans
    assert plans is not None
    jobs[3 * SHARE] = replace(jobs[3 * SHARE], plans=DeadlyOnce(**vars(plans)))
    assert_same(score_jobs(jobs, Options("v2"), engine="ray", workers=2), expected)
    assert plans.path.with_name("died").exists()
    assert not ray.is_initialized(), "the head that was started is gone"


@pytest.mark.slow
def test_a_ray_cluster_that_is_there_is_used_and_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files need not be readable where the work is done, and a cluster of others goes on afterwards."""
    ray = pytest.importorskip("ray")
    (tmp_path / "scenes").mkdir()
    for path in GOLDEN:
        shutil.copy(path, tmp_path / "scenes")
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        jobs = find_jobs(find_scenes(tmp_path / "scenes"), DATA)
        alone = score_jobs(jobs, Options("v2"))
        monkeypatch.setattr("pathlib.Path.read_bytes", reading_once(tmp_path / "scenes"))
        assert_same(score_jobs(jobs, Options("v2"), engine="ray"), alone)
        assert ray.is_initialized()
    finally:
        ray.shutdown()
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(WorkerError, match=r"RAY_ADDRESS='127\.0\.0\.1:1' cannot be reached"):
        score_jobs(jobs, Options("v2"), engine="ray")


def reading_once(folder: Path) -> Callable[[Path], bytes]:
    """``Path.read_bytes`` that takes a scene file away when it has been read."""
    original = Path.read_bytes

    def read(path: Path) -> bytes:
        content = original(path)
        if path.parent == folder:
            path.unlink()
        return content

    return read
