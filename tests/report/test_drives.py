"""Drives that are played again, and the films of them."""

from __future__ import annotations

import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from vla_models.envs.bench2drive import Bench2DriveEnv
from vla_models.errors import ConfigError, MissingDependency, SceneError
from vla_models.interface import VLAForDriving, VLAPrediction, VLASpec
from vla_models.report import film
from vla_models.report.drives import Drive, drive_route, play
from vla_models.report.film import SHEET, SIZE, WORDS, sheet_ticks, write_drive
from vla_models.scenes.bench2drive.made_routes import generate_route
from vla_models.scoring.bench2drive.events import KIND, TICK, Event
from vla_models.simulation.tables import E_X
from vla_models.simulation.world import World

TICKS = 160


@lru_cache(maxsize=1)
def env() -> Bench2DriveEnv:
    """A red light that the blind driver runs, in one row."""
    route = generate_route("Town03", "VanillaSignalizedTurnEncounterRedLight", 5)
    return Bench2DriveEnv(1, routes=(route,), cameras=(), max_ticks=TICKS)


@lru_cache(maxsize=1)
def blind() -> Drive:
    return drive_route("blind_follower", env(), 0)


def test_a_drive_is_played_again_to_the_bit() -> None:
    drive = blind()
    log, events = env().record(0).log, env().record(0).events
    assert len(log) == drive.ticks
    assert np.array_equal(events, drive.events)
    ticks = [0, 3, 10, 11, 27, drive.ticks]
    poses = {}
    for shot in play(env(), drive, ticks):
        assert shot.world.ticks[0] == shot.tick
        assert shot.plan is not None
        poses[shot.tick] = shot.world.record(0).log[-1] if shot.tick else None
    assert list(poses) == ticks
    for tick in ticks[1:]:
        assert np.array_equal(poses[tick], log[tick - 1])
    assert np.array_equal(env().record(0).log, log)
    assert drive.driver == "blind_follower"
    assert drive.record["scores"]["score_penalty"] == pytest.approx(0.7 ** int((events[:, KIND] == Event.TRAFFIC_LIGHT).sum()))


def test_the_plan_in_force_starts_where_it_was_made() -> None:
    shots = [(shot.plan, shot.world.ego[0].copy()) for shot in play(env(), blind(), [50, 55, 60, 61])]
    for k in range(4):
        assert shots[k][0] is not None
    assert not np.allclose(shots[1][0][0], shots[1][1][:2])  # half a second old
    assert np.allclose(shots[1][0], shots[2][0])
    assert not np.allclose(shots[2][0], shots[3][0])
    assert np.hypot(*(shots[3][0][0] - shots[2][1][:2])) == pytest.approx(0.0, abs=1e-9)


def test_answers_that_are_no_plans_are_shown_as_none() -> None:
    class Mute(VLAForDriving):
        spec = VLASpec(horizon=8, dt=0.5)

        def predict(self, inputs: Any, **_: Any) -> VLAPrediction:
            return VLAPrediction(waypoints=np.ones((len(inputs), 8, 3)), valid=np.zeros(len(inputs), dtype=bool))

    drive = drive_route(Mute(), env(), env().tokens[0])
    assert drive.driver == "Mute"
    assert not drive.planned.any()
    assert np.all(drive.plans == 0.0)
    assert [shot.plan for shot in play(env(), drive, [0, 5, 15])] == [None] * 3
    assert np.allclose(env().record(0).log[:, 3], 0.0)


def test_a_world_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    step = World.step

    def broken(world: World, *args: Any, **kwargs: Any) -> None:
        step(world, *args, **kwargs)
        world.tables.env[0, E_X] = np.nan

    monkeypatch.setattr(World, "step", broken)
    with pytest.raises(SceneError, match="failed after 10 ticks"):
        drive_route("rule_based", env(), 0)


def test_a_sheet_shows_what_happened() -> None:
    drive = blind()
    ticks = sheet_ticks(drive)
    told = [int(row[TICK]) + 1 for row in drive.events if int(row[KIND]) in WORDS]
    assert told, "the blind driver runs the light"
    assert len(ticks) == SHEET
    assert ticks == sorted(set(ticks))
    assert (ticks[0], ticks[-1]) == (0, drive.ticks)
    assert all(min(abs(tick - other) for other in ticks) < 10 for tick in told)


def test_films_have_as_many_frames_as_the_drive_has_time(tmp_path: Path) -> None:
    drive = blind()
    with PIL.Image.open(write_drive(tmp_path / "drive.gif", env(), drive)) as gif:
        assert gif.n_frames == -(-drive.ticks // 5) + 1
        assert gif.info["duration"] == 250
        assert gif.size == (640, 360)
        first = np.asarray(gif.convert("RGB"))
        gif.seek(gif.n_frames - 1)
        assert np.abs(np.asarray(gif.convert("RGB")).astype(int) - first).mean() > 2.0
    with PIL.Image.open(write_drive(tmp_path / "drive.png", env(), drive)) as sheet:
        assert sheet.size == (2 * SIZE[0] * 2 // 3, SHEET // 2 * (SIZE[1] * 2 // 3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["drive.gif", "drive.png"]


def test_mp4(tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="PyAV is not installed (requirements/local.txt has it)")
    path = write_drive(tmp_path / "drive.mp4", env(), blind())
    with av.open(str(path)) as container:
        (stream,) = container.streams.video
        frames = list(container.decode(stream))
        assert len(frames) == blind().ticks // 2 + 1
        assert stream.average_rate == 10
        assert (frames[0].width, frames[0].height) == SIZE
        assert np.abs(frames[0].to_ndarray(format="rgb24").astype(int) - frames[-1].to_ndarray(format="rgb24")).mean() > 2.0


def test_what_cannot_be_filmed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"must end in \.mp4, \.gif, \.png"):
        film.check_format(Path("drive.avi"))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingDependency, match=r"pip install av, or write a \.gif"):
        write_drive(tmp_path / "drive.mp4", env(), blind())
    assert not list(tmp_path.iterdir())
