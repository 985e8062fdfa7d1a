"""The columnar scene: everything known about one driving situation, as NumPy arrays.

All geometry is in the scene's *local frame*: SI units, right-handed, headings counter-clockwise from +x, translated (not
rotated) by ``origin`` so that coordinates stay small enough for float32. Arrays are float64 and C-contiguous; nothing in a
scene is ever written to after it was built.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

DT: Final = 0.1
"""Seconds between two rows of tracks, traffic lights and the reference (NavSim's simulation step)."""
PLAN_STEPS: Final = 8
"""Poses in a NavSim plan."""
PLAN_DT: Final = 0.5
"""Seconds between two poses of a NavSim plan."""
TRACK_STEPS: Final = 51
"""Rows of a track: t = 0.0 … 5.0 s (the score looks 4 s ahead of each of its 1 s time-to-collision offsets)."""

EGO_COLUMNS: Final = ("x", "y", "heading", "vx", "vy", "ax", "ay", "steering", "steering_rate", "yaw_rate", "yaw_acc")
"""Columns of ``Scene.ego``: the rear axle's pose, body-frame velocity and acceleration, tyre steering angle, yaw motion."""

LAYERS: Final = ("roadblock", "lane", "lane_connector", "intersection", "carpark", "drivable_area")
"""Map layers, in the order of their integer codes (``Polygons.layer``); names are those of ``pdm-scene/1``."""

AGENT_KINDS: Final = ("vehicle", "pedestrian", "bicycle", "traffic_cone", "barrier", "czone_sign", "generic_object")
"""Agent types, in the order of their integer codes (``Tracks.kind``); names are those of ``pdm-scene/1``."""

COMMANDS: Final = ("left", "straight", "right", "unknown")
"""Driving commands, in the order of their integer codes (NavSim's ``driving_command`` one-hot)."""


@dataclass(frozen=True)
class Polygons:
    """Map polygons as one ragged array; the order is the map's own and is kept (the official scorer depends on it)."""

    vertices: FloatArray
    """[V, 2] ring vertices of all polygons one after the other; a ring may be open (the closing edge is implied)."""
    offsets: npt.NDArray[np.int64]
    """[P + 1] polygon p owns ``vertices[offsets[p]:offsets[p + 1]]``."""
    layer: npt.NDArray[np.int8]
    """[P] index into ``LAYERS``."""
    on_route: npt.NDArray[np.bool_]
    """[P] whether the polygon belongs to the route."""
    ids: tuple[str, ...]
    """[P] the map's own names."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def ring(self, p: int) -> FloatArray:
        """Vertices of polygon ``p``, [n, 2] (a view)."""
        return self.vertices[self.offsets[p] : self.offsets[p + 1]]


@dataclass(frozen=True)
class Tracks:
    """Other agents: boxes by time. ``states`` is NaN where an agent is absent."""

    kind: npt.NDArray[np.int8]
    """[A] index into ``AGENT_KINDS``."""
    size: FloatArray
    """[A, 3] length, width, height in metres."""
    states: FloatArray
    """[A, 51, 5] x, y (box centre), heading, vx, vy (velocity in the scene frame), one row per 0.1 s from t = 0."""
    ids: tuple[str, ...]
    """[A] names, stable over time."""

    def __len__(self) -> int:
        return len(self.kind)


@dataclass(frozen=True)
class RedLights:
    """Lane connectors that a red light closes, by time."""

    polygon: npt.NDArray[np.int64]
    """[R] index into ``Scene.polygons`` of the closed lane connector."""
    red: npt.NDArray[np.bool_]
    """[R, 51] whether it is red at each 0.1 s step."""

    def __len__(self) -> int:
        return len(self.polygon)


@dataclass(frozen=True)
class AgentPaths:
    """The lane on which each agent would drive on if it reacted to the ego (NavSim's reactive traffic), one row a track.

    ``scenes.agent_paths`` finds them in a nuPlan map or in a lane graph. Agents that no lane was found for (all but vehicles,
    vehicles off the road, agents that are not there at t = 0) own no points; their other numbers are NaN.
    """

    points: FloatArray
    """[V, 3] x, y, heading of the lanes' centre lines as the map has them, one lane after the other, in driving direction."""
    offsets: npt.NDArray[np.int64]
    """[A + 1] agent a owns ``points[offsets[a]:offsets[a + 1]]``."""
    progress: FloatArray
    """[A] metres along the line of its point nearest to the agent's centre at t = 0."""
    snapped: FloatArray
    """[A, 3] that nearest point, with the line's heading there."""
    speed_limit: FloatArray
    """[A] m/s; NaN where the map has none."""
    in_lane: npt.NDArray[np.bool_]
    """[A] whether the agent's centre lies on a lane or in an intersection at t = 0 (known without a lane line, too)."""

    def __len__(self) -> int:
        return len(self.progress)


@dataclass(frozen=True)
class Scene:
    """One driving situation, complete enough to be seen, driven and scored. Frame and units: see the module."""

    token: str
    """Unique name; deterministic for generated scenes."""
    origin: FloatArray
    """[2] global position of the local frame's origin (subtracted from every coordinate)."""
    ego: FloatArray
    """[11] ego state at decision time, columns ``EGO_COLUMNS``."""
    ego_history: FloatArray | None
    """[H, 11] ego states at t = -1.5, -1.0, -0.5, 0.0 s (current last), or None where unknown (then history comfort is 1)."""
    centerline: FloatArray
    """[C, 3] x, y, heading of the route's centre line, from a little behind the ego to beyond any plan's reach."""
    speed_limit: float
    """m/s; only the reference planner uses it."""
    polygons: Polygons
    tracks: Tracks
    red_lights: RedLights
    reference: FloatArray | None = None
    """[51, 3] PDM-Closed's rear-axle trajectory at 0.1 s, row 0 at t = 0: it normalises progress. None until planned."""
    human: FloatArray | None = None
    """[8, 3] the recorded human plan in the ego frame at 2 Hz, or None."""
    command: int = COMMANDS.index("unknown")
    """Index into ``COMMANDS``."""
    images: dict[str, npt.NDArray[np.uint8]] = field(default_factory=dict)
    """camera name ("front") -> RGB uint8 [H, W, 3] at decision time; empty where there is no camera."""
    light_heads: FloatArray = field(default_factory=lambda: np.zeros((0, 4)))
    """[K, 4] x, y, heading (the way it faces), state (0 green, 1 yellow, 2 red) of traffic lights at t = 0, for the camera."""
    route: FloatArray = field(default_factory=lambda: np.zeros((0, 2)))
    """[R, 2] points of the route ahead of the ego in the EGO frame, 5 m apart (5, 10, … 50 m): what the model is told."""
    town: str = ""
    """Where the scene lies (a CARLA town or a log name)."""
    kind: str = ""
    """What happens, for statistics ("turn_left", "lead_braking", …)."""
    ego_history_us: npt.NDArray[np.int64] | None = None
    """[H] microseconds of ``ego_history``'s rows relative to t = 0 where a log has them (its clock is off by a few, and the
    official score then takes a sample more); None: exactly 0.5 s apart."""
    agent_paths: AgentPaths | None = None
    """What reactive traffic drives on, or None where it is not known (then only recorded traffic can be scored)."""
    time_us: int = 0
    """Microseconds since 1970 at t = 0. The official score truncates times to microseconds, which moves states by ~1e-5 m."""

    def with_(self, **changes: object) -> Scene:
        """A copy with some fields replaced (``dataclasses.replace`` under a name that reads well)."""
        return replace(self, **changes)  # type: ignore[arg-type]
