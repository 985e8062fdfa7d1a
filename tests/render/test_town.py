"""Frames of a closed loop: the same town from moving cameras, with whoever is there."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

pytest.importorskip("panda3d")

from vla_models.geometry import from_frame
from vla_models.render.camera import CameraSpec
from vla_models.render.rigs import LINCOLN_REAR_AXLE, bench2drive_cameras
from vla_models.render.town import Actors, Rig, TownView
from vla_models.scenes.bench2drive.made_routes import generate_route
from vla_models.scenes.bench2drive.routes import LocalTown, Route, local


@pytest.fixture(scope="module")
def place() -> tuple[Route, LocalTown, TownView]:
    route = generate_route("Town05", "SignalizedJunctionLeftTurn", 2)
    part = local(route, radius=120.0)
    return route, part, TownView(part.graph)


def actors(*poses: np.ndarray, kind: int = 0, acceleration: float = 0.0) -> Actors:
    count = len(poses)
    return Actors(
        np.full(count, kind, np.int8), np.tile([4.6, 1.9, 1.6] if kind == 0 else [0.6, 0.6, 1.75], (count, 1)),
        np.array(poses).reshape(-1, 3), np.full(count, 5.0), np.full(count, acceleration),
        tuple(f"car_{i}" for i in range(count)),
    )  # fmt: skip


FRONT = CameraSpec("front", 96, 64, 70.0, pitch=0.0)


def test_the_ego_sees_the_road_and_who_is_ahead_of_it(place: tuple[Route, LocalTown, TownView]) -> None:
    route, _, view = place
    ego = route.points[20, :3]
    ahead, behind = from_frame([[14.0, 0.0, 0.0], [-14.0, 0.0, 0.0]], ego)
    with Rig([FRONT]) as rig:
        empty = rig.render(view.frame(ego, actors()))["front"]
        seen = rig.render(view.frame(ego, actors(ahead)))["front"]
        unseen = rig.render(view.frame(ego, actors(behind)))["front"]
        again = rig.render(view.frame(ego, actors()))["front"]
    assert empty.shape == (64, 96, 3)
    assert np.array_equal(empty, unseen)
    assert np.array_equal(empty, again)
    changed = np.any(empty != seen, axis=-1)
    assert 60 < changed.sum() < 1500
    assert changed[20:50, 30:66].sum() > 0.9 * changed.sum()  # a car in the middle of the picture
    road = empty[-4:, 40:56].reshape(-1, 3).astype(int)
    assert np.ptp(road, axis=1).max() < 90  # grey, perhaps a line
    sky = empty[:8].reshape(-1, 3).astype(int)
    assert (sky[:, 2] >= sky[:, 0]).all()


def test_the_picture_moves_with_the_ego_over_tiles_and_is_the_same_each_time(
    place: tuple[Route, LocalTown, TownView],
) -> None:
    route, part, view = place
    lights = np.full(len(part.graph.light_pose), 2)
    with Rig([FRONT]) as rig:
        first = [rig.render(view.frame(p[:3], actors(), lights))["front"] for p in route.points[:100:10]]
        rig.render(view.frame(route.points[-1, :3], actors(), lights))
        second = [rig.render(view.frame(p[:3], actors(), lights))["front"] for p in route.points[:100:10]]
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(np.any(a != b) for a, b in itertools.pairwise(first))


def test_red_and_green_are_told_apart(place: tuple[Route, LocalTown, TownView]) -> None:
    route, part, view = place
    entry = int(np.flatnonzero(part.graph.junction[part.lanes] >= 0)[0])
    ego = route.points[max(0, entry - 12), :3]
    count = len(part.graph.light_pose)
    with Rig([CameraSpec("front", 160, 96, 70.0, pitch=0.0)]) as rig:
        red, green = (rig.render(view.frame(ego, actors(), np.full(count, s)))["front"].astype(int) for s in (2, 0))
    redder = (red[..., 0] - green[..., 0]) > 60
    assert 2 < redder.sum() < 400
    assert (green[..., 1] - red[..., 1])[~redder].max() > 60 or (green[..., 1] - red[..., 1]).max() > 60


def test_brake_lights_walkers_and_colours(place: tuple[Route, LocalTown, TownView]) -> None:
    route, _, view = place
    ego = route.points[20, :3]
    (ahead,) = from_frame([[10.0, 0.0, 0.0]], ego)
    with Rig([FRONT]) as rig:
        calm = rig.render(view.frame(ego, actors(ahead)))["front"]
        braking = rig.render(view.frame(ego, actors(ahead, acceleration=-3.0)))["front"]
        walker = rig.render(view.frame(ego, actors(ahead, kind=1)))["front"]
    assert (braking[..., 0].astype(int) - calm[..., 0]).max() > 80
    assert np.any(walker != calm)


def test_the_six_cameras_look_where_bench2drives_do(place: tuple[Route, LocalTown, TownView]) -> None:
    specs = bench2drive_cameras(64, 36)
    assert [s.name for s in specs] == ["front", "front_left", "front_right", "back", "back_left", "back_right"]
    assert {s.name: s.fov for s in specs}["back"] == 110.0
    assert sum(s.fov == 70.0 for s in specs) == 5
    assert specs[0].position == (0.80 + LINCOLN_REAR_AXLE, 0.0, 1.60)
    left, right = specs[1], specs[2]
    assert (left.position[1], left.yaw) == (-right.position[1], -right.yaw) == (0.55, 55.0)
    route, _, view = place
    ego = route.points[20, :3]
    middle = from_frame(np.array([LINCOLN_REAR_AXLE, 0.0, 0.0]), ego)
    with Rig(specs) as rig:
        empty = rig.render(view.frame(ego, actors()))
        for spec in specs:
            (there,) = from_frame([[12.0, 0.0, 0.0]], np.array([*middle[:2], middle[2] + np.radians(spec.yaw)]))
            seen = rig.render(view.frame(ego, actors(there)))
            most = max(seen, key=lambda name: int(np.any(seen[name] != empty[name], axis=-1).sum()))
            assert most == spec.name


def test_stop_signs_and_houses_stand_beside_the_road() -> None:
    route = generate_route("Town05", "VanillaNonSignalizedTurnEncounterStopsign", 1)
    part = local(route, radius=120.0)
    view = TownView(part.graph)
    x, y, h = part.graph.stop_pose[0]
    ego = np.array([x + 9.0 * np.cos(h), y + 9.0 * np.sin(h), h + np.pi])  # looks at the sign's face
    with Rig([CameraSpec("front", 96, 64, 70.0, pitch=0.0)]) as rig:
        picture = rig.render(view.frame(ego, actors()))["front"].astype(int)
    assert ((picture[..., 0] > 120) & (picture[..., 1] < 60) & (picture[..., 2] < 60)).sum() > 10
    _, _, _, away = part.driving.nearest(view.houses[:, :2])
    assert len(view.houses) > 5
    assert away.min() > 12.0
