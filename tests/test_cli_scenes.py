"""``vla-models scenes``: import and show."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.scenes.navsim_files import write_log
from vla_models.cli import app
from vla_models.errors import SceneError
from vla_models.scenes.metric_cache import metric_cache_files, read_metric_cache
from vla_models.scenes.store import SceneStore

CACHES = Path(__file__).parent / "data" / "metric_cache" / "v2.2"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in ("scenes", *arguments)], env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    logs, sensors = write_log(folder, [read_metric_cache(path) for path in metric_cache_files(CACHES)])
    arguments = ("--logs", logs, "--sensors", sensors, "--cameras", "cam_f0, cam_l0", "--size", "64x36")
    done = run("import", CACHES, "--out", folder / "s.store", "--workers", 1, *arguments)
    assert done.exit_code == 0, done.output
    assert "5 scenes in" in done.output
    return folder / "s.store"


def test_import_with_logs(store: Path) -> None:
    scene = SceneStore.open(store)[0]
    assert {name: image.shape for name, image in scene.images.items()} == {"front": (36, 64, 3), "front_left": (36, 64, 3)}


def test_show_a_store(store: Path) -> None:
    shown = run("show", store)
    assert shown.exit_code == 0
    assert f"5 scenes in {store}, content {SceneStore.open(store).hash}" in shown.output.replace("\n", "")
    for word in ("us-nv-las-vegas-strip", "made_by", "vla_models.scoring.pdm", "source_files"):
        assert word in shown.output


def test_show_a_scene(store: Path, tmp_path: Path) -> None:
    shown = run("show", store, "12_pedestrians", "--picture", tmp_path / "scene.png")
    assert shown.exit_code == 0
    for word in ("12_pedestrians", "4 pedestrian, 1 bicycle", "front 64x36", "command right", "reference, human, ego_history"):
        assert word in shown.output, shown.output
    assert (tmp_path / "scene.png").read_bytes()[:4] == b"\x89PNG"


def test_bad_files_end_with_exit_code_1(tmp_path: Path) -> None:
    folder = tmp_path / "caches"
    shutil.copytree(CACHES, folder)
    metric_cache_files(folder)[0].write_bytes(b"\xfd7zXZ\x00 and no more")
    metric_cache_files(folder)[1].write_bytes(b"\x80\x04cos[/red]\nsystem[bold]\n.")  # a name must not be taken for markup
    done = run("import", folder, "--out", tmp_path / "out", "--workers", 1)
    assert done.exit_code == 1
    assert "2 bad files: no store was made" in done.output
    assert "is damaged (lzma" in done.output
    assert "asks for os[/red].system[bold]" in done.output
    again = run("import", folder, "--out", tmp_path / "out", "--workers", 1, "--skip-bad")
    assert again.exit_code == 0
    assert "3 scenes in" in again.output
    assert "2 files left out" in again.output
    assert "3 parts were finished by an earlier run" in again.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "nothing.store"), "there is no scene file"),
        (("import", CACHES, "--out", "x", "--sensors", "y"), "add --logs"),
        (("import", CACHES, "--out", "x", "--logs", "y", "--size", "512"), "no width x height"),
        (("import", CACHES, "--out", "x", "--logs", ".", "--cameras", "front"), "no camera 'front'"),
        (("import", "nothing", "--out", "x"), "names no metric cache"),
    ],
)
def test_wrong_arguments_are_named(arguments: tuple[object, ...], message: str) -> None:
    failed = run(*arguments)
    assert isinstance(failed.exception, SceneError)
    assert message in str(failed.exception)


def test_a_token_that_is_absent(store: Path) -> None:
    assert "has no scene 'nowhere' among its 5" in str(run("show", store, "nowhere").exception)
    assert "name its token" in str(run("show", store, "--picture", "x.png").exception)
