"""Between NavSim's words and ours, on plain data of the official shapes: navsim is not installed here."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vla_models.envs.navsim import observe
from vla_models.errors import ConfigError, ImageError, MissingDependency, PlanError, SceneError
from vla_models.inputs import VLAInput, VLASpec
from vla_models.leaderboard.submission import Team, submission_entries, write_submission
from vla_models.leaderboard.translate import check_spec, sensor_frames, to_input, to_poses

SPEC = VLASpec(horizon=8, dt=0.5, cameras=("front", "front_left"), image_size=(54, 96))
TEAM = Team("t", "a", "e@x", "i", "c")
NAMES = ("cam_f0", "cam_l0", "cam_l1", "cam_l2", "cam_r0", "cam_r1", "cam_r2", "cam_b0")


def agent_input(command: tuple[int, ...] = (0, 0, 1, 0), **pictures: Any) -> SimpleNamespace:
    statuses = [
        SimpleNamespace(
            ego_pose=np.array([2.0 * k - 6.0, 0.1 * k, 0.0], dtype=np.float32),
            ego_velocity=np.array([4.0 + k, 0.5], dtype=np.float32),
            ego_acceleration=np.array([1.0, -0.25], dtype=np.float32),
            driving_command=np.array(command),
        )
        for k in range(4)
    ]
    empty = {name: SimpleNamespace(image=None) for name in NAMES}
    shown = {name: SimpleNamespace(image=picture) for name, picture in pictures.items()}
    cameras = [SimpleNamespace(**empty)] * 3 + [SimpleNamespace(**{**empty, **shown})]
    return SimpleNamespace(ego_statuses=statuses, cameras=cameras, lidars=[None] * 4)


def picture(shade: int) -> np.ndarray:
    return np.full((1080, 1920, 3), shade, dtype=np.uint8)


def test_an_agent_input_becomes_a_model_input() -> None:
    given = to_input(agent_input(cam_f0=picture(10), cam_l0=picture(200)), SPEC)
    assert isinstance(given, VLAInput)
    assert isinstance(given.images, dict)
    assert list(given.images) == ["front", "front_left"]
    assert all(image.shape == (54, 96, 3) and image.dtype == np.uint8 for image in given.images.values())
    assert given.images["front"].max() == 10
    assert given.images["front_left"].min() == 200
    assert given.command == "right"
    assert given.ego_state == {
        "speed": 7.0, "acceleration": 1.0, "lateral_acceleration": -0.25, "steering": 0.0, "yaw_rate": 0.0
    }  # fmt: skip
    assert given.history is not None
    np.testing.assert_allclose(given.history[0], [-6.0, 0.0, 0.0])
    np.testing.assert_allclose(given.history[-1], [0.0, 0.3, 0.0])
    assert given.route is None


def test_it_is_what_the_environment_tells() -> None:
    """A model must not notice whether it drives in our environment or in NavSim's scripts."""
    from tests.golden import visible_scenes

    scene = visible_scenes(1)[0]
    ours = VLAInput.batch(observe([scene]))[0]
    official = agent_input(tuple(int(k == scene.command) for k in range(4)), cam_f0=scene.images["front"])
    official.ego_statuses[-1].ego_velocity = scene.ego[3:5]
    official.ego_statuses[-1].ego_acceleration = scene.ego[5:7]
    theirs = to_input(official, VLASpec(horizon=8, image_size=scene.images["front"].shape[:2]))
    assert isinstance(ours.images, dict)
    assert isinstance(theirs.images, dict)
    np.testing.assert_array_equal(theirs.images["front"], ours.images["front"])
    assert (theirs.text, theirs.command) == (ours.text, ours.command)
    assert theirs.ego_state is not None
    assert ours.ego_state is not None
    for name in ("speed", "acceleration", "lateral_acceleration"):
        assert theirs.ego_state[name] == pytest.approx(ours.ego_state[name], rel=1e-6)


@pytest.mark.parametrize(
    ("command", "word"), [((1, 0, 0, 0), "left"), ((0, 1, 0, 0), "straight"), ((0, 0, 0, 1), "unknown"), ((0,) * 4, "unknown")]
)
def test_commands(command: tuple[int, ...], word: str) -> None:
    assert to_input(agent_input(command), VLASpec(horizon=8, cameras=())).command == word


def test_bad_inputs_are_named() -> None:
    with pytest.raises(ImageError, match=r"no picture of cam_l0 \('front_left'\)"):
        to_input(agent_input(cam_f0=picture(1)), SPEC)
    with pytest.raises(SceneError, match=r"\[1, 1, 0, 0\] is no one-hot"):
        to_input(agent_input((1, 1, 0, 0)), VLASpec(horizon=8, cameras=()))


def test_sensors_are_asked_for_at_the_present_frame_only() -> None:
    frames = sensor_frames(SPEC)
    assert frames.pop("cam_f0") == [3]
    assert frames.pop("cam_l0") == [3]
    assert set(frames) == {"cam_l1", "cam_l2", "cam_r0", "cam_r1", "cam_r2", "cam_b0", "lidar_pc"}
    assert not any(frames.values())


def test_models_that_cannot_drive_there() -> None:
    check_spec(SPEC)
    with pytest.raises(PlanError, match=r"plans 5 poses 0\.5 s apart"):
        check_spec(VLASpec())
    with pytest.raises(ImageError, match="looks at rear; NavSim has front"):
        check_spec(VLASpec(horizon=8, cameras=("rear",)))


def test_plans() -> None:
    plan = np.arange(24.0).reshape(8, 3)
    assert to_poses(plan).dtype == np.float32
    np.testing.assert_array_equal(to_poses(plan), plan)
    for bad, message in ((plan[:5], "has 5 poses"), (plan[None], "one plan"), (np.full((8, 3), np.nan), "not finite")):
        with pytest.raises(PlanError, match=message):
            to_poses(bad)


def test_submission_entries_have_the_official_keys() -> None:
    plans = {"0123456789abcdef": np.zeros((8, 3))}
    who = {"team_name", "authors", "email", "institution", "country / region"}
    assert set(submission_entries(TEAM, plans)) == who | {"predictions"}
    two = submission_entries(TEAM, plans, {})
    assert set(two) == who | {"first_stage_predictions", "second_stage_predictions"}
    assert two["second_stage_predictions"] == [{}]
    with pytest.raises(PlanError, match="plan of 'x' is not finite"):
        submission_entries(TEAM, {"x": np.full((8, 3), np.inf)})
    with pytest.raises(PlanError, match="tokens must be text, got 7"):
        submission_entries(TEAM, {7: np.zeros((8, 3))})  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match="wants to know email, country"):
        submission_entries(Team("t", "a", "", "i", " "), plans)


def test_without_navsim_the_agent_says_what_is_missing(tmp_path: Any) -> None:
    pytest.importorskip("vla_models")
    code = "import sys; sys.modules['navsim'] = None\nimport vla_models.leaderboard.agent"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert "MissingDependency: VLANavSimAgent runs inside navsim's scripts and needs navsim" in done.stderr


def test_without_navsim_nothing_is_written(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "navsim", None)
    with pytest.raises(MissingDependency, match="needs navsim and nuplan-devkit to be written"):
        write_submission(tmp_path / "submission.pkl", TEAM, {"x": np.zeros((8, 3))})
    assert list(tmp_path.iterdir()) == []
