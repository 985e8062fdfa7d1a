"""The camera: what stands where is seen where, the same scene gives the same bytes, several cameras and processes work."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

from vla_models.errors import ConfigError, MissingDependency, SceneError
from vla_models.render import camera
from vla_models.render.camera import CameraRenderer, CameraSpec
from vla_models.scenes.scene import Scene

Street = Callable[..., Scene]


@pytest.fixture(scope="module")
def front():
    with CameraRenderer(CameraSpec()) as renderer:
        yield renderer


@pytest.fixture(scope="module")
def fine():
    with CameraRenderer(CameraSpec(width=640, height=384)) as renderer:
        yield renderer


def one(kind: str, size: tuple[float, float, float], state: tuple[float, ...], name: str = "it") -> tuple:
    return ((name, kind, size, state),)


def pixel(spec: CameraSpec, x: float, y: float, z: float) -> tuple[int, int]:
    """Row and column at which the default mounting sees a point of the ego frame: the pinhole model, on its own."""
    pitch = np.radians(spec.pitch)
    ahead, up = x - spec.position[0], z - spec.position[2]
    depth = ahead * np.cos(pitch) + up * np.sin(pitch)
    height = -ahead * np.sin(pitch) + up * np.cos(pitch)
    focal = spec.width / 2 / np.tan(np.radians(spec.fov) / 2)
    return int(spec.height / 2 - focal * height / depth), int(spec.width / 2 - focal * (y - spec.position[1]) / depth)


def reddish(image: np.ndarray) -> np.ndarray:
    rgb = image.astype(int)
    return (rgb[..., 0] > 200) & (rgb[..., 1] < 110) & (rgb[..., 2] < 110)


def test_image_shape_and_determinism(front: CameraRenderer, street: Street) -> None:
    image = front.render(street())
    assert image.shape == (96, 160, 3)
    assert image.dtype == np.uint8
    front.render(street(pose=(20.0, 1.0, 0.4)))
    np.testing.assert_array_equal(front.render(street()), image)
    with CameraRenderer() as another:
        np.testing.assert_array_equal(another.render(street()), image)


def test_the_scene_frame_does_not_matter(front: CameraRenderer, street: Street) -> None:
    """A rigid motion of everything leaves the picture as it was, the sun's direction apart."""
    empty = street(agents=(), pose=(5.0, 0.3, 0.1))
    turned = street(agents=(), pose=(5.0, 0.3, 0.1))
    angle, shift = 0.9, np.array([120.0, -40.0])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    ego = turned.ego.copy()
    ego[:2], ego[2] = turn @ ego[:2] + shift, ego[2] + angle
    polygons = turned.polygons
    moved = type(polygons)(
        polygons.vertices @ turn.T + shift, polygons.offsets, polygons.layer, polygons.on_route, polygons.ids
    )
    heads = np.zeros((0, 4))
    a = front.render(empty.with_(light_heads=heads)).astype(int)
    b = front.render(turned.with_(ego=ego, polygons=moved, light_heads=heads)).astype(int)
    assert (np.abs(a - b).max(axis=2) > 40).mean() < 0.005  # single pixels on an edge may round the other way


def test_things_are_where_the_pinhole_model_says(fine: CameraRenderer, street: Street) -> None:
    spec = fine.spec
    empty = fine.render(street(agents=()))
    for x, y in ((15.0, 0.0), (20.0, 6.0), (12.0, -5.0)):
        image = fine.render(street(agents=one("generic_object", (1.0, 1.0, 1.0), (x, y, 0.0, 0.0, 0.0))))
        rows, columns = np.nonzero((image != empty).any(axis=2))
        row, column = pixel(spec, x - 0.5, y, 0.5)
        assert rows.min() < row < rows.max()
        assert columns.min() < column < columns.max()
        assert abs(columns.mean() - column) < 0.15 * (columns.max() - columns.min()) + 4.0
        top, _ = pixel(spec, x - 0.5, y, 1.0)
        assert abs(rows.min() - top) <= 2


def test_road_grass_sky_and_lines(fine: CameraRenderer, street: Street) -> None:
    pose = (26.0, 2.5, 0.0)
    image = fine.render(street(agents=(), pose=pose)).astype(int)

    def at(x: float, y: float) -> np.ndarray:
        """The picture's colour at a point of the street."""
        return image[pixel(fine.spec, x - pose[0], y - pose[1], 0.0)]

    assert np.ptp(at(36.0, 0.0)) < 12  # grey road
    assert at(38.0, -4.0).sum() < at(38.0, 0.0).sum()  # the car park is darker
    assert at(37.0, 10.5)[1] > at(37.0, 10.5)[2] + 20  # grass
    assert image[5, 320, 2] > image[5, 320, 0]  # sky
    assert (at(37.0, -1.75) > 200).all()  # solid white edge
    yellow = at(36.0, 5.25)
    assert yellow[0] > 180
    assert yellow[2] < 120  # between two directions
    assert (at(40.0, 0.0) > 180).all()  # stop line before the closed connector
    dashed = street(agents=(), pose=(0.0, 1.75, 0.0))
    image, pose = fine.render(dashed).astype(int), (0.0, 1.75, 0.0)
    dashes = [bool((at(x, 1.75) > 180).all()) for x in np.arange(4.5, 30.0, 0.5)]
    assert 0.2 < np.mean(dashes) < 0.5  # between lanes of one direction


def test_closed_rings_look_like_open_ones(front: CameraRenderer, street: Street, rings: tuple) -> None:
    other = tuple((name, layer, np.concatenate([ring, ring[:1]]), on) for name, layer, ring, on in rings)
    np.testing.assert_array_equal(front.render(street(rings=other)), front.render(street()))


@pytest.mark.parametrize("light", [0, 1, 2])
def test_traffic_lights_show_their_colour(fine: CameraRenderer, street: Street, light: int) -> None:
    scene = street(agents=(), light=light, pose=(40.0, 0.0, 0.0))
    dark = scene.with_(light_heads=np.zeros((0, 4)))
    image, empty = fine.render(scene), fine.render(dark)
    changed = image[(image != empty).any(axis=2)].astype(int)
    bright = changed[changed.max(axis=1) > 200].mean(axis=0)
    assert bright.argmax() == (1 if light == 0 else 0)
    assert (bright[1] > 150) == (light != 2)
    behind = scene.light_heads.copy()
    behind[:, 2] = 0.0  # seen from behind no lamp shines
    back = fine.render(scene.with_(light_heads=behind))
    assert np.ptp(back[(back != empty).any(axis=2)].astype(int), axis=1).max() < 70


def test_brake_lights(fine: CameraRenderer, street: Street) -> None:
    car = (4.5, 1.9, 1.5)

    def red(vx: float, slope: float) -> int:
        scene = street(agents=one("vehicle", car, (14.0, 0.0, 0.0, vx, 0.0)), light=0)
        states = scene.tracks.states.copy()
        states[0, :, 3] += slope * 0.1 * np.arange(51)
        tracks = type(scene.tracks)(scene.tracks.kind, scene.tracks.size, states, scene.tracks.ids)
        return int(reddish(fine.render(scene.with_(tracks=tracks))).sum())

    assert red(8.0, 0.0) == 0
    assert red(8.0, 1.0) == 0
    assert red(8.0, -2.0) > 50
    assert red(0.0, 0.0) > 50  # standing


def test_absent_agents_are_not_drawn(front: CameraRenderer, street: Street) -> None:
    scene = street()
    tracks = scene.tracks
    gone = type(tracks)(tracks.kind, tracks.size, np.full_like(tracks.states, np.nan), tracks.ids)
    np.testing.assert_array_equal(front.render(scene.with_(tracks=gone)), front.render(street(agents=())))


def test_every_kind_of_agent_is_seen(fine: CameraRenderer, street: Street) -> None:
    from vla_models.scenes.scene import AGENT_KINDS

    empty = fine.render(street(agents=()))
    pictures = []
    for kind in AGENT_KINDS:
        image = fine.render(street(agents=one(kind, (1.6, 1.6, 1.6), (10.0, 0.0, 0.0, 1.0, 0.0))))
        assert ((image != empty).any(axis=2)).sum() > 200, kind
        pictures.append(image.tobytes())
    assert len(set(pictures)) == len(AGENT_KINDS)


def test_vehicles_keep_their_colour_and_differ(fine: CameraRenderer, street: Street) -> None:
    looks = {
        fine.render(street(agents=one("vehicle", (4.5, 1.9, 1.5), (14.0, 0.0, 0.0, 9.0, 0.0), name))).tobytes()
        for name in ("a", "b", "c", "d", "e", "f", "g", "h", "i", "k")
    }
    assert 3 <= len(looks) <= len(camera.solids.__globals__["CAR_COLOURS"])


def test_surfaces_pass_under_the_camera(fine: CameraRenderer, street: Street) -> None:
    """A big polygon around the ego fills the road down to the picture's lower edge (it is clipped, not dropped)."""
    square = np.array([[-200.0, -200.0], [200.0, -200.0], [200.0, 200.0], [-200.0, 200.0]])
    image = fine.render(street(agents=(), rings=(("all", "drivable_area", square, False),)))
    lower = image[220:].astype(int)
    assert np.ptp(lower, axis=2).max() < 12
    close = fine.render(street(agents=one("vehicle", (4.5, 1.9, 1.5), (4.0, 0.6, 0.0, 0.0, 0.0))))  # around the camera's mast
    assert close.shape == (384, 640, 3)


def test_side_cameras_look_sideways(street: Street) -> None:
    scene = street(agents=one("generic_object", (2.0, 2.0, 2.0), (1.7, 12.0, 0.0, 0.0, 0.0)))
    seen = {}
    for name, yaw in (("left", 90.0), ("right", -90.0), ("back", 180.0)):
        with CameraRenderer(CameraSpec(name=name, yaw=yaw)) as renderer:
            seen[name] = (renderer.render(scene) != renderer.render(street(agents=()))).any()
    assert seen == {"left": True, "right": False, "back": False}


@pytest.mark.parametrize(("width", "height"), [(33, 17), (2, 2), (161, 95), (448, 448)])
def test_any_size(street: Street, width: int, height: int) -> None:
    with CameraRenderer(CameraSpec(width=width, height=height)) as renderer:
        image = renderer.render(street())
    assert image.shape == (height, width, 3)
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 1


@pytest.mark.parametrize(("fov", "pitch"), [(10.0, 0.0), (170.0, -45.0), (120.0, 45.0)])
def test_extreme_lenses(street: Street, fov: float, pitch: float) -> None:
    with CameraRenderer(CameraSpec(fov=fov, pitch=pitch)) as renderer:
        assert renderer.render(street()).std() > 1.0


def test_an_odd_width_shows_the_same_picture(street: Street) -> None:
    """The renderer pads widths that it cannot draw; the padding is cut off without moving anything."""
    with CameraRenderer(CameraSpec(width=161, height=96)) as odd, CameraRenderer(CameraSpec(width=160, height=96)) as even:
        a, b = odd.render(street()).astype(int), even.render(street()).astype(int)
    assert (np.abs(a[:, :160] - b).max(axis=2) > 60).mean() < 0.05


def test_an_empty_scene_can_be_seen(front: CameraRenderer, street: Street) -> None:
    scene = street(agents=(), rings=()).with_(light_heads=np.zeros((0, 4)))
    assert front.render(scene).std() > 1.0


def test_bad_scenes_and_closed_renderers(street: Street) -> None:
    renderer = CameraRenderer()
    scene = street()
    ego = scene.ego.copy()
    ego[1] = np.nan
    with pytest.raises(SceneError, match="street"):
        renderer.render(scene.with_(ego=ego))
    renderer.close()
    renderer.close()
    with pytest.raises(RuntimeError, match="closed"):
        renderer.render(scene)


@pytest.mark.parametrize(
    "wrong",
    [
        {"width": 0},
        {"height": -3},
        {"width": 12.5},
        {"fov": 5.0},
        {"fov": 175.0},
        {"fov": float("nan")},
        {"pitch": -60.0},
        {"yaw": float("inf")},
        {"position": (1.0, 0.0, 0.0)},
        {"position": (1.0, float("nan"), 1.5)},
    ],
)
def test_bad_specs_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        CameraSpec(**wrong)


def test_missing_panda3d_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "panda3d", None)
    camera._engine.cache_clear()
    try:
        with pytest.raises(MissingDependency, match="pip install panda3d"):
            CameraRenderer()
    finally:
        monkeypatch.undo()
        camera._engine.cache_clear()


def _render_elsewhere(scene: Scene, renderer: CameraRenderer | None, queue) -> None:
    queue.put((renderer or CameraRenderer()).render(scene).tobytes())


@pytest.mark.parametrize(("method", "inherit"), [("fork", True), ("fork", False), ("spawn", False)])
def test_other_processes_see_the_same(front: CameraRenderer, street: Street, method: str, inherit: bool) -> None:
    scene = street()
    expected = front.render(scene).tobytes()
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=_render_elsewhere, args=(scene, front if inherit else None, queue))
    process.start()
    assert queue.get(timeout=120) == expected
    process.join(timeout=30)
    assert process.exitcode == 0
    assert front.render(scene).tobytes() == expected


_THREADS = """
import threading
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from vla_models.render.camera import CameraSpec, Canvas, shared_engine

triangle = np.float32([[3, 20, 0], [-3, 20, 0], [0, 20, 4]]), np.full((3, 4), 200, np.uint8)
nothing = np.zeros((0, 3), np.float32), np.zeros((0, 4), np.uint8)
start, canvases = threading.Barrier(4), []

def make():
    start.wait()
    canvases.append(Canvas(CameraSpec(width=64, height=32), shared_engine()))

def draw(canvas, things):
    return canvas.draw(nothing, things, nothing).tobytes()

with ThreadPoolExecutor(4) as pool:
    for done in [pool.submit(make) for _ in range(4)]:
        done.result()
    jobs = [(canvases[i % 4], triangle if i % 3 else nothing) for i in range(300)]
    pictures = list(pool.map(lambda job: draw(*job), jobs))
alone = [draw(*job) for job in jobs]
assert pictures == alone and len(set(alone)) == 2, len(set(alone))
"""


def test_threads_may_draw_with_any_canvas_in_turn() -> None:
    """Frameworks make and step environments in threads of a pool; panda3d's locks belong to the thread that drew last."""
    subprocess.run([sys.executable, "-c", _THREADS], check=True, timeout=120)
