"""NavSim's logs: what they add to a metric cache. The files are made here, in the official form."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.scenes.navsim_files import LOG_NAME, write_log
from tests.scenes.test_restricted import Calls
from vla_models.envs.navsim import observe
from vla_models.errors import ImageError, MissingDependency, SceneError, UnsafePickleError
from vla_models.scenes.metric_cache import metric_cache_files, read_metric_cache
from vla_models.scenes.navsim import Devkit, scenes_of_log
from vla_models.scenes.navsim_logs import CAMERAS, Logs, attach_log, driving_command, ego_pose, read_log
from vla_models.scenes.scene import Scene
from vla_models.scoring.pdm import score

CACHES = Path(__file__).parent.parent / "data" / "metric_cache"


@pytest.fixture(scope="module")
def first() -> list[Scene]:
    return [read_metric_cache(path) for path in metric_cache_files(CACHES / "v1.1")]


@pytest.fixture(scope="module")
def second() -> list[Scene]:
    return [read_metric_cache(path) for path in metric_cache_files(CACHES / "v2.2")]


@pytest.fixture(scope="module", params=[2, 4, 5])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, second: list[Scene]) -> Logs:
    logs, sensors = write_log(tmp_path_factory.mktemp("navsim"), second, request.param)
    return Logs(logs, sensors, tuple(CAMERAS), (96, 54))


def test_a_log_completes_a_metric_cache(source: Logs, second: list[Scene]) -> None:
    scenes = [attach_log(scene, LOG_NAME, source) for scene in second]
    assert [scene.command for scene in scenes] == [0, 1, 2, 3, 0]
    for scene, before in zip(scenes, second, strict=True):
        assert set(scene.images) == set(CAMERAS.values())
        assert all(image.shape == (54, 96, 3) and image.dtype == np.uint8 for image in scene.images.values())
        assert abs(int(scene.images["front_left"][0, 0, 0]) - 20) < 4  # the second camera's shade
        assert abs(int(scene.images["back"][0, 0, 0]) - 140) < 4
        for name in ("human", "ego_history"):  # what the cache has is kept
            if getattr(before, name) is not None:
                np.testing.assert_array_equal(getattr(scene, name), getattr(before, name))
    observation = observe(scenes)
    assert observation["images"]["front"].shape == (5, 54, 96, 3)


def test_what_version_1_lacks_comes_from_the_log(source: Logs, first: list[Scene], second: list[Scene]) -> None:
    for one, two in zip(first, second, strict=True):
        scene = attach_log(one, LOG_NAME, source)
        assert one.human is None
        assert one.ego_history is None
        if two.human is not None:
            assert scene.human is not None
            np.testing.assert_allclose(scene.human, two.human, atol=1e-8)
        assert scene.ego_history is not None
        assert scene.ego_history_us is not None
        assert scene.ego_history_us.tolist() == [-1_500_007, -1_000_007, -500_007, 0]
        np.testing.assert_allclose(scene.ego_history[-1, :7], scene.ego[:7], atol=1e-8)
        if two.ego_history is not None:
            np.testing.assert_allclose(scene.ego_history[:, :3], two.ego_history[:, :3], atol=1e-8)
        assert np.isfinite(score(scene, np.zeros((1, 8, 3)), version="v2").score).all()


def test_missing_things_are_named(source: Logs, second: list[Scene], tmp_path: Path) -> None:
    scene = second[0]
    with pytest.raises(SceneError, match=r"has no log other\.pkl"):
        attach_log(scene, "other", source)
    with pytest.raises(SceneError, match=rf"{LOG_NAME}\.pkl has no frame 'missing'"):
        attach_log(scene.with_(token="missing"), LOG_NAME, source)
    with pytest.raises(SceneError, match=r"the ego 9\.0 m away from where"):
        attach_log(scene.with_(origin=scene.origin + np.array([9.0, 0.0])), LOG_NAME, source)
    with pytest.raises(ImageError, match=r"CAM_F0.*jpg cannot be read"):
        attach_log(scene, LOG_NAME, Logs(source.logs, tmp_path))
    with pytest.raises(SceneError, match=r"no camera 'cam_x0'.*Did you mean"):
        Logs(source.logs, cameras=("cam_x0",)).check()
    with pytest.raises(SceneError, match="there is no folder"):
        Logs(tmp_path / "nothing").check()


def test_hostile_and_foreign_logs(tmp_path: Path) -> None:
    path, marker = tmp_path / "log.pkl", tmp_path / "marker"
    path.write_bytes(pickle.dumps([{"token": "a", "anns": Calls(os.system, f"touch {marker}")}]))
    with pytest.raises(UnsafePickleError, match=r"log\.pkl.*system"):
        read_log(path)
    with pytest.raises(UnsafePickleError, match=r"log\.pkl.*system"):
        list(scenes_of_log(path, Devkit(tmp_path)))
    assert not marker.exists()
    path.write_bytes(pickle.dumps({"token": "a"}))
    with pytest.raises(SceneError, match="is no NavSim log"):
        read_log(path)
    path.write_bytes(pickle.dumps([{"token": "a"}]))
    with pytest.raises(SceneError, match=r"log\.pkl: frame 'a' lacks something \(KeyError: 'ego2global_rotation'\)"):
        attach_log(read_metric_cache(metric_cache_files(CACHES)[0]).with_(token="a"), "log", Logs(tmp_path))


def test_yaw_is_that_of_the_official_loader() -> None:
    """pyquaternion's ``yaw_pitch_roll``, also for a car on a slope (numbers from pyquaternion 0.9.9)."""
    for rotation, yaw in (
        ([0.9689124217106447, 0.0, 0.0, 0.24740395925452294], 0.5),
        ([0.7, 0.02, -0.03, 0.7], 1.5713059068567812),
        ([-0.3, 0.01, 0.02, 0.9], -2.4979360721609454),
    ):
        pose = ego_pose({"ego2global_rotation": rotation, "ego2global_translation": [1.0, 2.0, 3.0]})
        np.testing.assert_allclose(pose, [1.0, 2.0, yaw], atol=1e-9)


@pytest.mark.parametrize("bad", [[1, 1, 0, 0], [1, 0, 0], 3])
def test_commands_that_are_none(bad: object) -> None:
    with pytest.raises(SceneError, match="is no one-hot of left, straight, right, unknown"):
        driving_command(bad)


def test_without_navsim_the_devkit_says_what_is_missing(source: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    missing: dict[str, ModuleType | None] = {"navsim": None, "navsim.common": None}
    for name, module in missing.items():
        monkeypatch.setitem(sys.modules, name, module)  # type: ignore[arg-type]
    with pytest.raises(MissingDependency, match="needs navsim and nuplan-devkit"):
        list(scenes_of_log(source.logs / f"{LOG_NAME}.pkl", Devkit(source.logs)))
