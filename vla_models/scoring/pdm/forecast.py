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

from vla_models.geometry import FloatArray, wrap_angle
from vla_models.scenes.scene import AGENT_KINDS, DT, TRACK_STEPS, Scene, Tracks
from vla_models.scoring.pdm.clearance import gap, polygon_centroid, polygon_within
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
    corners: FloatArray
    """[A, 4, 2] corners of the boxes at t = 0."""
    velocity: FloatArray
    """[A, 2] velocity with which the boxes slide."""
    dynamic: npt.NDArray[np.bool_]
    """[A] vehicles, pedestrians and bicycles, as opposed to static objects."""
    red_rings: FloatArray
    """[V, 2] vertices of the closed lane connectors, one polygon after the other."""
    red_offsets: npt.NDArray[np.int64]
    """[R + 1] where each polygon of ``red_rings`` starts and the last one ends."""
    red_centroids: FloatArray
    """[R, 2] their centroids."""


def forecast(scene: Scene) -> Forecast:
    """Constant-velocity forecast of ``scene`` as the official planner makes it from the tracks and lights of t = 0."""
    ego = box_corners_of(scene.ego[None, :3], np.array([LENGTH]), np.array([WIDTH]), REAR_AXLE_TO_CENTER)[0]
    seen = _in_sight(scene, ego.mean(axis=0))
    now = scene.tracks.states[seen, 0]
    corners = box_corners_of(now[:, :3], scene.tracks.size[seen, 0], scene.tracks.size[seen, 1])
    free = np.array([gap(ego, box) > 0.0 for box in corners], dtype=bool)
    seen, now, corners = seen[free], now[free], np.ascontiguousarray(corners[free])

    dynamic = scene.tracks.kind[seen] < len(MAX_SEEN)
    forward = np.abs(wrap_angle(now[:, 2] - np.arctan2(now[:, 4], now[:, 3]))) < np.pi / 2
    course = np.where(forward, now[:, 2], wrap_angle(now[:, 2] + np.pi))
    speed = np.where(dynamic, np.hypot(now[:, 3], now[:, 4]), 0.0)
    velocity = np.stack([np.cos(course) * speed, np.sin(course) * speed], axis=-1)

    elapsed = np.arange(TRACK_STEPS) // FORECAST_STRIDE * FORECAST_STRIDE * DT
    states = np.repeat(now[:, None], TRACK_STEPS, axis=1)
    states[..., :2] += elapsed[:, None] * velocity[:, None]
    tracks = Tracks(scene.tracks.kind[seen], scene.tracks.size[seen], states, tuple(scene.tracks.ids[a] for a in seen))
    return Forecast(tracks, corners, velocity, dynamic, *_red_polygons(scene, ego))


def box_corners_of(poses: FloatArray, length: FloatArray, width: FloatArray, ahead: float = 0.0) -> FloatArray:
    """Corners [n, 4, 2] (front left, rear left, rear right, front right) of boxes whose centre lies ``ahead`` of ``poses`` [n, 3]."""
    forward = np.stack([np.cos(poses[:, 2]), np.sin(poses[:, 2])], axis=-1)[:, None]
    left = np.stack([-forward[..., 1], forward[..., 0]], axis=-1)
    along = ahead + length[:, None, None] * np.array([0.5, -0.5, -0.5, 0.5])[:, None]
    across = width[:, None, None] * np.array([0.5, 0.5, -0.5, -0.5])[:, None]
    return np.ascontiguousarray(poses[:, None, :2] + along * forward + across * left)


def _in_sight(scene: Scene, center: FloatArray) -> npt.NDArray[np.int64]:
    """Indices of the agents that the planner sees: nearest first within static, vehicle, pedestrian, bicycle."""
    tracks = scene.tracks
    if not len(tracks):
        return np.zeros(0, dtype=np.int64)
    distance = np.hypot(tracks.states[:, 0, 0] - center[0], tracks.states[:, 0, 1] - center[1])
    order = np.argsort(distance, kind="stable")
    order = order[distance[order] <= SIGHT]  # NaN, an agent that is absent now, compares false
    kinds = tracks.kind[order]
    seen = [order[kinds >= len(MAX_SEEN)][:MAX_STATIC_SEEN]]
    seen += [order[kinds == AGENT_KINDS.index(kind)][:most] for kind, most in MAX_SEEN.items()]
    return np.concatenate(seen).astype(np.int64)


def _red_polygons(scene: Scene, ego: FloatArray) -> tuple[FloatArray, npt.NDArray[np.int64], FloatArray]:
    """Rings, offsets and centroids of the on-route connectors that are red now and that the ego does not yet stand in."""
    rings, centroids = [], []
    for polygon, red in zip(scene.red_lights.polygon, scene.red_lights.red, strict=True):
        ring = np.ascontiguousarray(scene.polygons.ring(int(polygon)))
        if red[0] and scene.polygons.on_route[polygon] and not polygon_within(ego, ring):
            rings.append(ring)
            centroids.append(polygon_centroid(ring))
    offsets = np.concatenate([[0], np.cumsum([len(r) for r in rings])]).astype(np.int64)
    flat = np.concatenate(rings) if rings else np.zeros((0, 2))
    return np.ascontiguousarray(flat), offsets, np.array(centroids, dtype=np.float64).reshape(-1, 2)
