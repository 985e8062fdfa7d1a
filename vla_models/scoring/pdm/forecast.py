"""What PDM-Closed believes about the others: today's boxes, carried on at constant velocity.

The official planner sees the tracks and the traffic lights of t = 0 only. Agents keep their heading and slide along it
(backwards if that is where they go); the forecast has one map per 0.2 s, so an odd step shows the even step before it; red
lights stay red. Whatever the ego already touches at t = 0 is ignored for good. Numbers: NavSim's ``PDMObservation`` and
``PDMObjectManager``, with the map radius of its metric caching.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from vla_models.errors import SceneError
from vla_models.geometry import FloatArray, box_corners, wrap_angle
from vla_models.kernels import numba
from vla_models.scenes.scene import AGENT_KINDS, DT, TRACK_STEPS, Scene, Tracks
from vla_models.scoring.pdm.clearance import box_gap, polygon_centroid, polygon_within
from vla_models.scoring.pdm.track import LENGTH, REAR_AXLE_TO_CENTER, WIDTH

SIGHT: Final = 100.0
"""Agents whose centre is farther than this from the ego's centre are not seen (m)."""
MAX_SEEN: Final = {"vehicle": 50, "pedestrian": 25, "bicycle": 10}
"""Of each dynamic kind only the nearest so many are seen …"""
MAX_STATIC_SEEN: Final = 50
"""… and of all static objects together so many."""
FORECAST_STRIDE: Final = 2
"""Steps between two forecast maps."""


@dataclass(frozen=True)
class Forecast:
    """The obstacles of the planner, in the scene's local frame; the A agents are in the official order (static first)."""

    tracks: Tracks
    """The agents in sight that the ego does not touch at t = 0; ``states`` [A, 51, 5] is the forecast."""
    dynamic: npt.NDArray[np.bool_]
    """[A] vehicles, pedestrians and bicycles, as opposed to static objects."""
    red_polygons: npt.NDArray[np.int64]
    """[Q] index into ``Scene.polygons`` of the on-route lane connectors that are red at t = 0."""
    red_rings: FloatArray
    """[V, 2] vertices of those of them that stop the ego (it does not stand in them yet), one polygon after the other."""
    red_offsets: npt.NDArray[np.int64]
    """[R + 1] where each polygon of ``red_rings`` starts and the last one ends."""
    red_centroids: FloatArray
    """[R, 2] their centroids."""


def forecast(scene: Scene) -> Forecast:
    """Constant-velocity forecast of ``scene`` as the official planner makes it from the tracks and lights of t = 0."""
    x, y, heading = scene.ego[:3]
    x, y = x + REAR_AXLE_TO_CENTER * np.cos(heading), y + REAR_AXLE_TO_CENTER * np.sin(heading)
    seen = _in_sight(scene, x, y)
    now, size = scene.tracks.states[seen, 0], scene.tracks.size[seen]
    if not (np.isfinite(now).all() and np.isfinite(size).all()):
        raise SceneError(f"scene {scene.token!r} has agents at t = 0 with numbers that are not finite (absent: NaN in all).")
    apart = _apart(now, size, x, y, heading)
    seen, now, size = seen[apart], now[apart], size[apart]
    dynamic = scene.tracks.kind[seen] < len(MAX_SEEN)

    forward = np.abs(wrap_angle(now[:, 2] - np.arctan2(now[:, 4], now[:, 3]))) < np.pi / 2
    speed = np.where(dynamic, np.hypot(now[:, 3], now[:, 4]), 0.0) * np.where(forward, 1.0, -1.0)
    velocity = speed[:, None] * np.stack([np.cos(now[:, 2]), np.sin(now[:, 2])], axis=-1)
    elapsed = np.arange(TRACK_STEPS) // FORECAST_STRIDE * FORECAST_STRIDE * DT
    states = np.repeat(now[:, None], TRACK_STEPS, axis=1)
    states[..., :2] += elapsed[:, None] * velocity[:, None]
    tracks = Tracks(scene.tracks.kind[seen], size, states, tuple(scene.tracks.ids[a] for a in seen))
    return Forecast(tracks, dynamic, *_red_polygons(scene, box_corners(x, y, heading, LENGTH, WIDTH)))


@numba.njit(cache=True)
def _apart(now: FloatArray, size: FloatArray, x: float, y: float, heading: float) -> npt.NDArray[np.bool_]:
    """Which agents (states ``now`` [A, 5], ``size`` [A, 3]) do not touch the ego, whose box has its centre at (x, y)."""
    apart = np.empty(len(now), dtype=np.bool_)
    for a in range(len(now)):
        apart[a] = box_gap(x, y, heading, LENGTH, WIDTH, now[a, 0], now[a, 1], now[a, 2], size[a, 0], size[a, 1]) > 0.0
    return apart


def _in_sight(scene: Scene, x: float, y: float) -> npt.NDArray[np.int64]:
    """Indices of the agents that the planner sees: nearest first within static, vehicle, pedestrian, bicycle."""
    tracks = scene.tracks
    if not len(tracks):
        return np.zeros(0, dtype=np.int64)
    distance = np.hypot(tracks.states[:, 0, 0] - x, tracks.states[:, 0, 1] - y)
    order = np.argsort(distance, kind="stable")
    order = order[~(distance[order] > SIGHT) & ~np.isnan(tracks.states[order, 0, 0])]
    kinds = tracks.kind[order]
    seen = [order[kinds >= len(MAX_SEEN)][:MAX_STATIC_SEEN]]
    seen += [order[kinds == AGENT_KINDS.index(kind)][:most] for kind, most in MAX_SEEN.items()]
    return np.concatenate(seen).astype(np.int64)


def _red_polygons(scene: Scene, ego: FloatArray) -> tuple[npt.NDArray[np.int64], FloatArray, npt.NDArray[np.int64], FloatArray]:
    """The four ``red_`` fields of the forecast; ``ego`` [4, 2] are the corners of the ego at t = 0."""
    lights = scene.red_lights
    red = lights.polygon[lights.red[:, 0] & scene.polygons.on_route[lights.polygon]].astype(np.int64)
    rings = [scene.polygons.ring(int(p)).copy() for p in red]
    rings = [ring for ring in rings if not polygon_within(ego, ring)]
    offsets = np.concatenate([[0], np.cumsum([len(ring) for ring in rings])]).astype(np.int64)
    centroids = np.array([polygon_centroid(ring) for ring in rings]).reshape(-1, 2)
    return red, np.concatenate([*rings, np.zeros((0, 2))]), offsets, centroids
