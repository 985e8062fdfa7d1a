"""What the VLA sees: a scene drawn by panda3d's software renderer, which needs neither a display nor OpenGL.

Two lists of triangles make a frame: the road plane in painting order (``ground``), then what stands on it with a depth test
(``solids``). They are rebuilt for every scene and uploaded as two arrays. The same scene gives the same bytes.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vla_models.errors import ConfigError, MissingDependency, SceneError
from vla_models.geometry import from_frame
from vla_models.kernels import numba
from vla_models.render.ground import paint_ground, view_from_above
from vla_models.render.solids import build_solids, solids
from vla_models.scenes.scene import Scene

SUPERSAMPLE: Final = 2
"""Each pixel is the mean of 2 x 2 drawn ones: without it, lane lines and lamps flicker in and out from 10 m on."""
NEAR: Final = 0.4
FAR: Final = 3000.0

_SKY: Final = ((0.0, (198, 212, 224)), (12.0, (176, 200, 226)), (40.0, (138, 176, 220)), (400.0, (96, 144, 206)))
"""Height above the horizon's foot at 100 m -> colour."""
_GRASS: Final = (
    (-3000.0, (104, 124, 78)),
    (12.0, (104, 124, 78)),
    (60.0, (116, 134, 92)),
    (200.0, (140, 154, 124)),
    (2900.0, (186, 202, 212)),
)
"""Distance ahead -> colour of open ground: it fades towards the sky's foot."""


@dataclass(frozen=True)
class CameraSpec:
    """A pinhole camera on the car. Its image is RGB uint8 [height, width, 3]; angles are in degrees."""

    name: str = "front"
    """Key of the image in observations and in ``Scene.images``."""
    width: int = 160
    """Pixels."""
    height: int = 96
    """Pixels."""
    fov: float = 90.0
    """Horizontal field of view, between 10 and 170."""
    position: tuple[float, float, float] = (1.7, 0.0, 1.6)
    """Metres ahead of, left of and above the rear axle's foot on the road; the default is behind the windscreen."""
    pitch: float = -4.0
    """Upwards is positive; at most 45 either way."""
    yaw: float = 0.0
    """Leftwards is positive: 90 looks out of the left window."""

    def __post_init__(self) -> None:
        where = f"camera {self.name!r}"
        for key in ("width", "height"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 2 <= value <= 4096:
                raise ConfigError(f"{where}: {key} must be a whole number of pixels from 2 to 4096, got {value!r}")
        if not 10.0 <= self.fov <= 170.0:
            raise ConfigError(f"{where}: fov must be from 10 to 170 degrees (horizontal), got {self.fov!r}")
        if len(self.position) != 3 or not all(math.isfinite(v) for v in self.position) or not self.position[2] > 0.0:
            raise ConfigError(f"{where}: position must be (x, y, z) in metres with z above the road, got {self.position!r}")
        if not -45.0 <= self.pitch <= 45.0:
            raise ConfigError(f"{where}: pitch must be from -45 to 45 degrees, got {self.pitch!r}")
        if not math.isfinite(self.yaw):
            raise ConfigError(f"{where}: yaw must be a number of degrees, got {self.yaw!r}")


class CameraRenderer:
    """Draws scenes for one ``CameraSpec``. Any number may live in a process (they share one engine); close what you open.

    Rendering is serialised by a lock, so threads may call it but gain nothing: use processes. A process started by *spawn* or
    by *fork* may create renderers; one that was created before a fork works in both processes (the software renderer keeps
    no thread, no device and no connection).
    """

    def __init__(self, spec: CameraSpec | None = None) -> None:
        """``spec``: the camera (default: ``CameraSpec()``). Raises ``MissingDependency`` where panda3d is not installed."""
        self.spec = spec if spec is not None else CameraSpec()
        self._engine = shared_engine()
        self._canvas: Canvas | None = Canvas(self.spec, self._engine)

    def render(self, scene: Scene) -> npt.NDArray[np.uint8]:
        """The scene at t = 0 as RGB uint8 [height, width, 3]; only the scene's geometry is read, never ``scene.images``."""
        canvas = self._canvas
        if canvas is None:
            raise RuntimeError(f"camera {self.spec.name!r} was closed; make a new CameraRenderer")
        spec = self.spec
        ego = scene.ego[:3]
        if not np.isfinite(ego).all():
            raise SceneError(f"scene {scene.token!r}: the ego pose is not finite ({ego}); it cannot be drawn")
        x, y, z = spec.position
        mast = from_frame(np.array([x, y, math.radians(spec.yaw)]), ego)
        view = view_from_above(math.radians(spec.fov), spec.height / spec.width, math.radians(spec.pitch))
        pos, rgb, shadows = build_solids(solids(scene), mast, z, view)
        return canvas.draw(paint_ground(scene, mast, shadows, view), (pos, rgb))

    def close(self) -> None:
        """Free the drawing buffer; calling it twice is fine."""
        if self._canvas is not None:
            self._canvas.close()
            self._canvas = None

    def __enter__(self) -> CameraRenderer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Engine:
    """The process-wide parts of panda3d."""

    core: Any
    pipe: Any
    engine: Any
    vertex_format: Any
    lock: threading.RLock


_ONE_AT_A_TIME: Final = threading.RLock()
"""Two threads in panda3d's engine wait for each other for ever, also while its parts are made."""


def shared_engine() -> Engine:
    """The one engine of this process. Raises ``MissingDependency`` where panda3d is missing or has no software renderer."""
    with _ONE_AT_A_TIME:  # a cache alone would let two threads make two, each with a lock of its own
        return _engine()


@lru_cache(maxsize=1)
def _engine() -> Engine:
    try:
        from panda3d import core
    except ImportError as e:
        raise MissingDependency(f"camera images need panda3d ({e}): pip install panda3d") from e
    core.load_prc_file_data("vla_models", "audio-library-name null\nnotify-level-display error\nshow-frame-rate-meter false")
    pipe = core.GraphicsPipeSelection.get_global_ptr().make_pipe("TinyOffscreenGraphicsPipe", "p3tinydisplay")
    if pipe is None:
        raise MissingDependency(
            f"panda3d {core.PandaSystem.version_string} lacks its software renderer p3tinydisplay: "
            "pip install --force-reinstall panda3d"
        )
    array = core.GeomVertexArrayFormat()
    array.add_column(core.InternalName.get_vertex(), 3, core.Geom.NT_float32, core.Geom.C_point)
    array.add_column(core.InternalName.get_color(), 4, core.Geom.NT_uint8, core.Geom.C_color)
    fmt = core.GeomVertexFormat.register_format(core.GeomVertexFormat(array))
    return Engine(core, pipe, core.GraphicsEngine.get_global_ptr(), fmt, _ONE_AT_A_TIME)


_ROW: Final = np.dtype([("pos", np.float32, 3), ("rgb", np.uint8, 4)])


class _Triangles:
    """One node whose triangles can be replaced. ``bounded``: it is left out of frames that it does not reach into."""

    def __init__(self, shared: Engine, name: str, parent: Any, order: int, depth: bool, bounded: bool = False) -> None:
        core = shared.core
        self._shared, self._name = shared, name
        node = core.GeomNode(name)
        node.add_geom(self._empty())
        self._node = node
        if not bounded:
            node.set_bounds(core.OmniBoundingVolume())  # nothing to cull, no bounds to compute
            node.set_final(True)
        path = parent.attach_new_node(node)
        path.set_bin("fixed", order)
        path.set_depth_test(depth)
        path.set_depth_write(depth)
        path.set_two_sided(True)

    def _empty(self) -> Any:
        core = self._shared.core
        geom = core.Geom(core.GeomVertexData(self._name, self._shared.vertex_format, core.Geom.UH_dynamic))
        geom.add_primitive(core.GeomTriangles(core.Geom.UH_dynamic))
        return geom

    def renew(self) -> None:
        """Begin anew, without triangles."""
        self._node.set_geom(0, self._empty())

    def fill(self, pos: npt.NDArray[np.float32], rgb: npt.NDArray[np.uint8]) -> None:
        """Replace the triangles: positions [3m, 3] and colours [3m, 4]."""
        rows = np.empty(len(pos), _ROW)
        rows["pos"], rows["rgb"] = pos, rgb
        data = self._node.modify_geom(0).modify_vertex_data()
        data.unclean_set_num_rows(len(rows))
        if len(rows):
            data.modify_array_handle(0).copy_data_from(rows.view(np.uint8))
        primitive = self._node.modify_geom(0).modify_primitive(0)
        primitive.clear_vertices()
        if len(rows):
            primitive.add_consecutive_vertices(0, len(rows))


Pieces = Sequence[tuple[int, npt.NDArray[np.float32], npt.NDArray[np.uint8]]]
"""Painting order, positions [3m, 3], colours [3m, 4]; a list that is never changed."""
LAID: Final = 128
"""Grounds that a canvas keeps built."""


class Canvas:
    """An offscreen buffer with its scene graph: the road plane, and on the camera's mast the sky, shadows and solids.

    Without a mast's pose the road plane is in the mast's frame. With one, it may stay as it is while the mast moves over it.
    """

    def __init__(self, spec: CameraSpec, shared: Engine) -> None:
        self._shared, self._spec = shared, spec
        with shared.lock:
            self._make(spec, shared)

    def _make(self, spec: CameraSpec, shared: Engine) -> None:
        core = shared.core
        # the renderer wants a width that is a multiple of four: draw a little more to the right and cut it off
        w, h = spec.width * SUPERSAMPLE, spec.height * SUPERSAMPLE
        padded = -(-w // 4) * 4
        flags = core.GraphicsPipe.BF_refuse_window | core.GraphicsPipe.BF_fb_props_optional
        size, default = core.WindowProperties.size(padded, h), core.FrameBufferProperties.get_default()
        self._buffer = shared.engine.make_output(shared.pipe, f"camera-{spec.name}", 0, default, size, flags)
        if self._buffer is None:
            raise RuntimeError(f"panda3d made no {padded} x {h} buffer for camera {spec.name!r}")
        self._texture = core.Texture()
        self._buffer.add_render_texture(self._texture, core.GraphicsOutput.RTM_copy_ram, core.GraphicsOutput.RTP_color)
        self._buffer.set_clear_color(core.LColor(*(v / 255.0 for v in _SKY[-1][1]), 1.0))
        self._buffer.set_active(False)
        self._root = core.NodePath("scene")
        self._root.set_texture_off(1)
        lens = core.PerspectiveLens()
        lens.set_near_far(NEAR, FAR)
        half = math.tan(math.radians(spec.fov) / 2.0)
        lens.set_film_size(2.0 * half * padded / w, 2.0 * half * h / w)
        lens.set_focal_length(1.0)
        lens.set_film_offset(half * (padded - w) / w, 0.0)
        camera = core.Camera("camera", lens)
        camera.set_scene(self._root)
        self._mast = self._root.attach_new_node("mast")
        path = self._mast.attach_new_node(camera)
        path.set_pos(0.0, 0.0, spec.position[2])
        path.set_hpr(0.0, spec.pitch, 0.0)
        self._buffer.make_display_region().set_camera(path)
        _Triangles(shared, "backdrop", self._mast, 0, False).fill(*_backdrop())
        self._ground = _Triangles(shared, "ground", self._root, 10, False)
        self._laid: OrderedDict[int, tuple[Pieces, Any]] = OrderedDict()  # the last one is attached
        self._drawer = threading.get_ident()
        self._shadows = _Triangles(shared, "shadows", self._mast, 40, False)
        self._solids = _Triangles(shared, "solids", self._mast, 50, True)

    def lay(self, pieces: Pieces) -> None:
        """Replace the ground that stays; unseen pieces cost nothing. A list that was laid lately need not be built again."""
        with self._shared.lock:
            if self._laid:
                next(reversed(self._laid.values()))[1].detach_node()
            if id(pieces) in self._laid:
                self._laid.move_to_end(id(pieces))
                self._laid[id(pieces)][1].reparent_to(self._root)
                return
            town = self._root.attach_new_node("town")
            for order, pos, rgb in pieces:
                _Triangles(self._shared, "piece", town, 10 + order, False, bounded=True).fill(pos, rgb)
            self._laid[id(pieces)] = pieces, town  # holding the list keeps its id its own
            if len(self._laid) > LAID:
                self._laid.popitem(last=False)[1][1].remove_node()

    def draw(
        self,
        ground: tuple[Any, Any] | None,
        things: tuple[Any, Any],
        shadows: tuple[Any, Any] | None = None,
        mast: tuple[float, float, float] | None = None,
    ) -> npt.NDArray[np.uint8]:
        """Fill, draw, read back, average. ``ground`` None: only what ``lay`` laid; ``mast``: its x, y, heading over that."""
        shared = self._shared
        with shared.lock:
            if (drawer := threading.get_ident()) != self._drawer:
                # what a frame showed stays locked for the thread that drew it: another one would wait for ever to change it
                for triangles in (self._ground, self._shadows, self._solids):
                    triangles.renew()
                self._drawer = drawer
            if ground is not None:
                self._ground.fill(*ground)
            if shadows is not None:
                self._shadows.fill(*shadows)
            if mast is not None:
                self._mast.set_pos_hpr(mast[0], mast[1], 0.0, math.degrees(mast[2]) - 90.0, 0.0, 0.0)
            self._solids.fill(*things)
            self._buffer.set_active(True)
            try:
                shared.engine.render_frame()
            finally:
                self._buffer.set_active(False)
            raw = np.frombuffer(memoryview(self._texture.get_ram_image()), np.uint8)
            raw = raw.reshape(self._texture.get_y_size(), self._texture.get_x_size(), -1)
            return _shrink(raw, self._spec.height, self._spec.width)

    def close(self) -> None:
        with self._shared.lock:
            self._shared.engine.remove_window(self._buffer)
            self._root.remove_node()


@numba.njit(cache=True)
def _shrink(raw: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """BGRA rows from the bottom up, 2 x 2 times as many -> RGB rows from the top down (rounded mean)."""
    out = np.empty((height, width, 3), np.uint8)
    rows = len(raw)
    for i in range(height):
        a, b = rows - 1 - 2 * i, rows - 2 - 2 * i
        for j in range(width):
            for k in range(3):
                c = 2 - k
                total = int(raw[a, 2 * j, c]) + int(raw[a, 2 * j + 1, c]) + int(raw[b, 2 * j, c]) + int(raw[b, 2 * j + 1, c])
                out[i, j, k] = (total + 2) // 4
    return out


def _backdrop() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Open ground in strips ahead and a sky in bands around the mast, far enough to serve every camera."""
    pos: list[tuple[float, float, float]] = []
    rgb: list[tuple[int, int, int]] = []

    def quad(a: Any, b: Any, c: Any, d: Any, low: Any, high: Any) -> None:
        pos.extend((a, b, c, a, c, d))
        rgb.extend((low, low, high, low, high, high))

    for (z0, low), (z1, high) in pairwise(_SKY):
        for x0, y0, x1, y1 in ((-400.0, 100.0, 400.0, 100.0), (-400.0, -400.0, -400.0, 100.0), (400.0, 100.0, 400.0, -400.0)):
            quad((x0, y0, z0), (x1, y1, z0), (x1, y1, z1), (x0, y0, z1), low, high)
    for (y0, near), (y1, far) in pairwise(_GRASS):
        quad((-3000.0, y0, 0.0), (3000.0, y0, 0.0), (3000.0, y1, 0.0), (-3000.0, y1, 0.0), near, far)
    colours = np.full((len(pos), 4), 255, np.uint8)
    colours[:, :3] = rgb
    return np.array(pos, np.float32), colours
