"""Everything that stands on the road: agents and traffic lights as shaded low-polygon solids.

A look is a short list of boxes in unit coordinates, scaled by the agent's size; each face has a role ("paint", "window",
"brake") that the agent gives a colour. Light comes from a sun fixed in the scene, so that faces of one box differ.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from vla_models.kernels import numba
from vla_models.scenes.scene import AGENT_KINDS, DT, Scene

FloatArray = npt.NDArray[np.float64]
ByteArray = npt.NDArray[np.uint8]

ROLES: Final = ("paint", "second", "window", "dark", "pale", "brake", "lamp_red", "lamp_yellow", "lamp_green")
"""What a face is made of; each solid gives every role a colour. ``brake`` and the lamps shine: they are not shaded."""
_SHINES: Final = np.array([role == "brake" or role.startswith("lamp") for role in ROLES])

CAR_COLOURS: Final = np.array(
    [
        (196, 200, 204), (46, 50, 58), (148, 28, 34), (32, 68, 132),
        (228, 228, 224), (110, 116, 122), (52, 92, 70), (176, 150, 104),
    ], dtype=np.uint8,
)  # fmt: skip
CLOTHES: Final = np.array(
    [(176, 58, 46), (40, 84, 150), (210, 170, 60), (70, 120, 80), (150, 90, 150), (220, 220, 215)], dtype=np.uint8
)
BRAKE_ON: Final = (255, 36, 22)
BRAKE_OFF: Final = (96, 14, 16)
BRAKING: Final = -0.6
"""m/s²: brake lights are lit below this acceleration …"""
STANDING: Final = 0.3
"""… or below this speed in m/s."""

_SUN: Final = np.array([0.45, -0.35, 0.82])
_FOG: Final = np.array([186.0, 202.0, 216.0])
FOG_RANGE: Final = 260.0
"""Metres by which a solid has faded to 1 - 1/e of the horizon's colour."""


def _box(
    x0: float, x1: float, y0: float, y1: float, z0: float, z1: float, roles: dict[str, str], inset: tuple[float, ...] = ()
) -> list[tuple[str, list[tuple[float, float, float]]]]:
    """Faces (role, four corners counter-clockwise from outside) of a box; ``inset`` = rear, front, side shift of its top."""
    r, f, s = inset or (0.0, 0.0, 0.0)
    b = [(x0, y0, z0), (x1, y0, z0), (x1, y1, z0), (x0, y1, z0)]
    t = [(x0 + r, y0 + s, z1), (x1 - f, y0 + s, z1), (x1 - f, y1 - s, z1), (x0 + r, y1 - s, z1)]
    faces = {
        "top": [t[0], t[1], t[2], t[3]],
        "rear": [b[3], b[0], t[0], t[3]],
        "front": [b[1], b[2], t[2], t[1]],
        "right": [b[0], b[1], t[1], t[0]],
        "left": [b[2], b[3], t[3], t[2]],
        "bottom": [b[3], b[2], b[1], b[0]],
    }
    every = roles.get("all")
    return [(roles.get(k, every or ""), corners) for k, corners in faces.items() if roles.get(k, every)]


def _wheels() -> list[tuple[str, list[tuple[float, float, float]]]]:
    out = []
    for x in (-0.31, 0.31):
        out += _box(x - 0.07, x + 0.07, -0.505, 0.505, 0.0, 0.36, {"all": "dark", "top": "", "bottom": ""})
    return out


_PAINT: Final = {"all": "paint", "bottom": ""}
_CAR: Final = (
    _wheels()
    + _box(-0.49, 0.49, -0.47, 0.47, 0.1, 0.22, {"all": "dark"})
    + _box(-0.5, 0.5, -0.5, 0.5, 0.2, 0.6, _PAINT, (0.01, 0.05, 0.03))
    + _box(-0.47, 0.24, -0.46, 0.46, 0.6, 0.94, {"all": "window", "top": "", "bottom": ""}, (0.09, 0.15, 0.07))
    + _box(-0.38, 0.09, -0.39, 0.39, 0.94, 1.0, _PAINT)
    + _box(-0.52, -0.5, 0.24, 0.49, 0.38, 0.56, {"all": "brake"})
    + _box(-0.52, -0.5, -0.49, -0.24, 0.38, 0.56, {"all": "brake"})
    + _box(-0.47, -0.45, -0.14, 0.14, 0.8, 0.88, {"all": "brake"})
    + _box(0.5, 0.515, 0.28, 0.48, 0.38, 0.5, {"all": "pale"})
    + _box(0.5, 0.515, -0.48, -0.28, 0.38, 0.5, {"all": "pale"})
)
_TRUCK: Final = (  # also buses and vans: one tall body
    _wheels()
    + _box(-0.49, 0.49, -0.46, 0.46, 0.05, 0.2, {"all": "dark"})
    + _box(-0.5, 0.5, -0.5, 0.5, 0.15, 1.0, _PAINT)
    + _box(-0.42, 0.505, -0.505, 0.505, 0.55, 0.82, {"front": "window", "left": "window", "right": "window"})
    + _box(-0.505, -0.5, -0.38, 0.38, 0.55, 0.85, {"rear": "window"})
    + _box(-0.512, -0.5, 0.3, 0.49, 0.22, 0.4, {"all": "brake"})
    + _box(-0.512, -0.5, -0.49, -0.3, 0.22, 0.4, {"all": "brake"})
    + _box(0.5, 0.508, 0.3, 0.47, 0.2, 0.3, {"all": "pale"})
    + _box(0.5, 0.508, -0.47, -0.3, 0.2, 0.3, {"all": "pale"})
)
_PEDESTRIAN: Final = (
    _box(-0.28, 0.28, -0.3, -0.03, 0.0, 0.48, {"all": "dark"})
    + _box(-0.28, 0.28, 0.03, 0.3, 0.0, 0.48, {"all": "dark"})
    + _box(-0.32, 0.32, -0.46, 0.46, 0.46, 0.84, {"all": "paint"}, (0.04, 0.04, 0.06))
    + _box(-0.2, 0.2, -0.2, 0.2, 0.85, 1.0, {"all": "pale"})
)
_BICYCLE: Final = (
    _box(-0.5, -0.12, -0.06, 0.06, 0.0, 0.38, {"all": "dark"})
    + _box(0.12, 0.5, -0.06, 0.06, 0.0, 0.38, {"all": "dark"})
    + _box(-0.3, 0.32, -0.05, 0.05, 0.34, 0.46, {"all": "second"})
    + _box(0.26, 0.32, -0.4, 0.4, 0.5, 0.55, {"all": "second"})
    + _box(-0.16, 0.08, -0.24, 0.24, 0.28, 0.52, {"all": "dark"})
    + _box(-0.16, 0.12, -0.36, 0.36, 0.5, 0.84, {"all": "paint"}, (0.08, -0.02, 0.08))
    + _box(-0.06, 0.1, -0.18, 0.18, 0.85, 1.0, {"all": "pale"})
)
_CONE: Final = (
    _box(-0.5, 0.5, -0.5, 0.5, 0.0, 0.06, {"all": "paint"})
    + _box(-0.36, 0.36, -0.36, 0.36, 0.06, 0.4, {"all": "paint", "top": "", "bottom": ""}, (0.12, 0.12, 0.12))
    + _box(-0.24, 0.24, -0.24, 0.24, 0.4, 0.66, {"all": "second", "top": "", "bottom": ""}, (0.09, 0.09, 0.09))
    + _box(-0.15, 0.15, -0.15, 0.15, 0.66, 1.0, {"all": "paint", "bottom": ""}, (0.1, 0.1, 0.1))
)
_BARRIER: Final = [
    face
    for i in range(6)  # stripes across its length or width, whichever lies along y or x
    for face in _box(-0.5, 0.5, -0.5 + i / 6, -0.5 + (i + 1) / 6, 0.1, 1.0, {"all": ("paint", "second")[i % 2]})
    if i in (0, 5) or face[1][0][1] != face[1][1][1] or face[1][0][2] != face[1][2][2]
]
_SIGN: Final = (
    _box(-0.06, 0.06, -0.08, 0.08, 0.0, 0.5, {"all": "dark"})
    + _box(-0.1, 0.1, -0.5, 0.5, 0.45, 1.0, {"all": "paint"})
    + _box(-0.12, 0.12, -0.3, 0.3, 0.6, 0.84, {"rear": "second", "front": "second"})
)
_OBJECT: Final = _box(-0.5, 0.5, -0.5, 0.5, 0.0, 1.0, _PAINT)
_LIGHT: Final = (  # size (1, 1, 1): metres; larger than life, or its colour would be lost below a pixel at 30 m
    _box(-0.08, 0.08, -0.08, 0.08, 0.0, 3.2, {"all": "second"})
    + _box(-0.25, 0.2, -0.42, 0.42, 3.2, 5.3, {"all": "dark"})
    # visors: from more than 65 degrees off its axis a lamp is hidden, so that cross traffic's green misleads nobody
    + _box(0.2, 0.55, -0.45, -0.4, 3.2, 5.3, {"all": "dark"})
    + _box(0.2, 0.55, 0.4, 0.45, 3.2, 5.3, {"all": "dark"})
    + _box(0.2, 0.26, -0.31, 0.31, 4.63, 5.22, {"front": "lamp_red"})
    + _box(0.2, 0.26, -0.31, 0.31, 3.95, 4.54, {"front": "lamp_yellow"})
    + _box(0.2, 0.26, -0.31, 0.31, 3.28, 3.86, {"front": "lamp_green"})
)
_LOOKS: Final = {
    "car": _CAR, "truck": _TRUCK, "pedestrian": _PEDESTRIAN, "bicycle": _BICYCLE, "traffic_cone": _CONE,
    "barrier": _BARRIER, "czone_sign": _SIGN, "generic_object": _OBJECT, "light": _LIGHT,
}  # fmt: skip
_NAMES: Final = tuple(_LOOKS)
_FACES: Final = np.array([corners for look in _LOOKS.values() for _, corners in look])  # [F, 4, 3]
_FACE_ROLE: Final = np.array([ROLES.index(role) for look in _LOOKS.values() for role, _ in look])
_FACE_OFFSETS: Final = np.cumsum([0] + [len(look) for look in _LOOKS.values()])

_DEFAULTS: Final[dict[str, tuple[int, int, int]]] = {
    "paint": (128, 112, 96), "second": (240, 240, 236), "window": (30, 36, 46), "dark": (30, 30, 34), "pale": (242, 236, 208),
    "brake": BRAKE_OFF, "lamp_red": (62, 18, 18), "lamp_yellow": (62, 52, 16), "lamp_green": (14, 54, 28),
}  # fmt: skip
_BASE: Final = np.array([_DEFAULTS[role] for role in ROLES], dtype=np.uint8)


@dataclass(frozen=True)
class Solids:
    """What stands in a scene at t = 0: n instances of looks."""

    look: npt.NDArray[np.int64]
    """[n] index into the looks."""
    pose: FloatArray
    """[n, 3] x, y, heading in the scene frame."""
    size: FloatArray
    """[n, 3] length, width, height in metres."""
    colours: ByteArray
    """[n, roles, 3] RGB by role."""


def _key(name: str) -> int:
    """A number that depends on the name only (``hash`` of a str changes between processes)."""
    return zlib.crc32(name.encode())


def braking(states: FloatArray) -> npt.NDArray[np.bool_]:
    """[A] whether an agent's brake lights are lit, from its states [A, 51, 5]: it stands or slows during the first 0.3 s."""
    first = states[:, : min(4, states.shape[1])]
    speed = np.hypot(first[..., 3], first[..., 4])
    known = ~np.isnan(speed)
    last = np.maximum(known.sum(axis=1) - 1, 0)
    at = speed[np.arange(len(speed)), last]
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = np.where(last > 0, (at - speed[:, 0]) / (np.maximum(last, 1) * DT), 0.0)
        return (slope < BRAKING) | (speed[:, 0] < STANDING)


def solids(scene: Scene) -> Solids:
    """The agents present at t = 0 and the traffic-light heads of a scene."""
    tracks = scene.tracks
    here = np.nonzero(~np.isnan(tracks.states[:, 0]).any(axis=1))[0]
    kinds = tracks.kind[here]
    size = tracks.size[here]
    heads = scene.light_heads
    n, k = len(here), len(heads)
    look = np.empty(n + k, np.int64)
    colours = np.repeat(_BASE[None], n + k, axis=0)
    lit = braking(tracks.states[here]) if n else np.zeros(0, bool)
    for i in range(n):
        kind = AGENT_KINDS[kinds[i]]
        key = _key(tracks.ids[here[i]])
        own = colours[i]
        if kind == "vehicle":
            look[i] = _NAMES.index("truck" if size[i, 2] > 2.3 or size[i, 0] > 6.5 else "car")
            own[0] = CAR_COLOURS[key % len(CAR_COLOURS)]
            own[5] = BRAKE_ON if lit[i] else BRAKE_OFF
            continue
        look[i] = _NAMES.index(kind)
        if kind in ("pedestrian", "bicycle"):
            own[0] = CLOTHES[key % len(CLOTHES)]
            own[1] = (60, 66, 74)
            own[4] = (208, 164, 134)
        elif kind in ("traffic_cone", "czone_sign"):
            own[0] = (244, 106, 20)
        elif kind == "barrier":
            own[0] = (208, 48, 38)
    look[n:] = _NAMES.index("light")
    colours[n:, 1] = (104, 108, 112)
    for i, state in enumerate(heads[:, 3].astype(np.int64) if k else ()):
        colours[n + i, 8 - state] = ((20, 236, 96), (255, 196, 24), (255, 32, 24))[state]
    pose = np.concatenate([tracks.states[here, 0, :3], heads[:, :3]])
    return Solids(look, pose, np.concatenate([size, np.ones((k, 3))]), colours)


@numba.njit(cache=True)
def _build(look, pose, size, colours, faces, face_role, face_offsets, shines, sun, fog, fog_range, eye, side, ahead):  # type: ignore[no-untyped-def]
    """Triangles of all faces that look at the eye; poses are in the mast frame with heading counter-clockwise from y."""
    total = 0
    for i in range(len(look)):
        total += face_offsets[look[i] + 1] - face_offsets[look[i]]
    pos = np.empty((6 * total, 3), np.float32)
    rgb = np.empty((6 * total, 4), np.uint8)
    n = 0
    q = np.empty((4, 3))
    for i in range(len(look)):
        reach = size[i, 0] + size[i, 1]
        if pose[i, 1] > ahead or (side > 0.0 and abs(pose[i, 0]) > side * (pose[i, 1] + reach) + reach):
            continue
        c, s = np.cos(pose[i, 2]), np.sin(pose[i, 2])
        distance = np.hypot(pose[i, 0], pose[i, 1])
        haze = 1.0 - np.exp(-distance / fog_range)
        for f in range(face_offsets[look[i]], face_offsets[look[i] + 1]):
            for k in range(4):
                u, v = faces[f, k, 0] * size[i, 0], faces[f, k, 1] * size[i, 1]
                # unit x is ahead of the agent: mast y at heading 0; unit y is to its left: mast -x
                q[k, 0] = pose[i, 0] - s * u - c * v
                q[k, 1] = pose[i, 1] + c * u - s * v
                q[k, 2] = faces[f, k, 2] * size[i, 2]
            d0, d1 = q[2] - q[0], q[3] - q[1]
            nx, ny, nz = d0[1] * d1[2] - d0[2] * d1[1], d0[2] * d1[0] - d0[0] * d1[2], d0[0] * d1[1] - d0[1] * d1[0]
            if nx * (eye[0] - q[0, 0]) + ny * (eye[1] - q[0, 1]) + nz * (eye[2] - q[0, 2]) <= 0.0:
                continue
            norm = np.sqrt(nx * nx + ny * ny + nz * nz)
            role = face_role[f]
            shade = 1.0
            if not shines[role] and norm > 0.0:
                shade = 0.58 + 0.42 * max(0.0, (nx * sun[0] + ny * sun[1] + nz * sun[2]) / norm)
            for k in range(6):
                corner = (0, 1, 2, 0, 2, 3)[k]
                for a in range(3):
                    pos[n, a] = q[corner, a]
                    colour = colours[i, role, a] * shade
                    rgb[n, a] = np.uint8(colour if shines[role] else colour + haze * (fog[a] - colour))
                rgb[n, 3] = 255
                n += 1
    return pos[:n], rgb[:n]


def build_solids(
    things: Solids, mast: FloatArray, height: float, view: tuple[float, float, float]
) -> tuple[npt.NDArray[np.float32], ByteArray, FloatArray]:
    """Triangles of the faces that a camera ``height`` metres up the mast can see, and the shadows under the solids.

    ``mast``: [3] pose in the scene frame; ``view``: from ``ground.view_from_above``. Returns positions [3m, 3], RGBA
    [3m, 4] (mast frame: x right, y ahead, z up) and footprints [n, 4, 2] a little larger than the solids, lights left out.
    """
    x, y, h = mast
    side, _, ahead = view
    c, s = np.cos(h), np.sin(h)
    dx, dy = things.pose[:, 0] - x, things.pose[:, 1] - y
    pose = np.stack([s * dx - c * dy, c * dx + s * dy, things.pose[:, 2] - h], axis=1)
    sun = np.array([s * _SUN[0] - c * _SUN[1], c * _SUN[0] + s * _SUN[1], _SUN[2]])
    pos, rgb = _build(
        things.look, pose, np.ascontiguousarray(things.size, np.float64), things.colours, _FACES, _FACE_ROLE, _FACE_OFFSETS,
        _SHINES, sun / np.linalg.norm(sun), _FOG, FOG_RANGE, np.array([0.0, 0.0, height]), side, ahead,
    )  # fmt: skip
    casts = things.look != _NAMES.index("light")
    half = 0.5 * things.size[casts, :2] + 0.12
    corners = np.stack([half * sign for sign in ((1, 1), (-1, 1), (-1, -1), (1, -1))], axis=1)  # [n, 4, 2]
    cs, sn = np.cos(pose[casts, 2])[:, None], np.sin(pose[casts, 2])[:, None]
    u, v = corners[..., 0], corners[..., 1]
    shadows = np.stack([pose[casts, 0, None] - sn * u - cs * v, pose[casts, 1, None] + cs * u - sn * v], axis=-1)
    return pos, rgb, np.ascontiguousarray(shadows)
