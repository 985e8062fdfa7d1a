"""A street drawn by hand: two lanes ahead, one oncoming, a junction with a red light, one agent of every kind."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from vla_models.scenes.scene import AGENT_KINDS, LAYERS, Polygons, RedLights, Scene, Tracks


def _strip(x0: float, x1: float, left: float, right: float) -> np.ndarray:
    """Ring of a straight lane from x0 to x1: left side forward, right side back."""
    xs = np.linspace(x0, x1, 21)
    return np.concatenate([np.c_[xs, np.full(21, left)], np.c_[xs, np.full(21, right)][::-1]])


RINGS = (
    ("own_right", "lane", _strip(-20.0, 40.0, 1.75, -1.75), True),
    ("own_left", "lane", _strip(-20.0, 40.0, 5.25, 1.75), True),
    ("oncoming", "lane", _strip(40.0, -20.0, 5.25, 8.75), False),
    ("junction", "intersection", np.array([[40.0, -20.0], [60.0, -20.0], [60.0, 25.0], [40.0, 25.0]]), False),
    ("across", "lane_connector", _strip(40.0, 60.0, 1.75, -1.75), True),
    ("beyond", "lane", _strip(60.0, 120.0, 1.75, -1.75), True),
    ("parking", "carpark", _strip(-20.0, 40.0, -1.75, -7.0), False),
)

AGENTS = (
    ("lead", "vehicle", (4.6, 1.9, 1.5), (22.0, 0.0, 0.0, 0.0, 0.0)),
    ("bus", "vehicle", (11.0, 2.5, 3.1), (30.0, 7.0, np.pi, -8.0, 0.0)),
    ("parked", "vehicle", (4.4, 1.8, 1.5), (16.0, -5.0, 0.3, 0.0, 0.0)),
    ("walker", "pedestrian", (0.5, 0.6, 1.8), (12.0, -3.0, np.pi / 2, 0.0, 1.2)),
    ("cyclist", "bicycle", (1.8, 0.6, 1.7), (14.0, 3.0, 0.0, 4.0, 0.0)),
    ("cone", "traffic_cone", (0.5, 0.5, 0.9), (9.0, -2.4, 0.0, 0.0, 0.0)),
    ("fence", "barrier", (0.4, 2.2, 1.0), (26.0, -4.6, 0.0, 0.0, 0.0)),
    ("sign", "czone_sign", (0.3, 0.8, 1.5), (18.0, -2.2, 0.0, 0.0, 0.0)),
    ("crate", "generic_object", (1.0, 1.0, 0.8), (11.0, 6.6, 0.4, 0.0, 0.0)),
)


def build_street(
    pose: tuple[float, float, float] = (0.0, 0.0, 0.0),
    agents: tuple = AGENTS,
    rings: tuple = RINGS,
    speed: float = 8.0,
    light: int = 2,
) -> Scene:
    """The street with the ego's rear axle at ``pose`` of the street's frame; other agents move at constant velocity."""
    count = len(agents)
    states = np.full((count, 51, 5), np.nan)
    for i, (_, _, _, (x, y, heading, vx, vy)) in enumerate(agents):
        t = 0.1 * np.arange(51)
        states[i] = np.stack([x + vx * t, y + vy * t, np.full(51, heading), np.full(51, vx), np.full(51, vy)], axis=1)
    ego = np.zeros(11)
    ego[:4] = (*pose, speed)
    xs = np.arange(-10.0, 100.0)
    names = [name for name, *_ in rings]
    stop = [names.index("across")] if "across" in names else []
    return Scene(
        token="street",
        origin=np.zeros(2),
        ego=ego,
        ego_history=None,
        centerline=np.stack([xs, np.zeros_like(xs), np.zeros_like(xs)], axis=1),
        speed_limit=13.9,
        polygons=Polygons(
            vertices=np.concatenate([ring for _, _, ring, _ in rings]) if rings else np.zeros((0, 2)),
            offsets=np.cumsum([0] + [len(ring) for _, _, ring, _ in rings]).astype(np.int64),
            layer=np.array([LAYERS.index(layer) for _, layer, _, _ in rings], np.int8),
            on_route=np.array([on for *_, on in rings], bool),
            ids=tuple(names),
        ),
        tracks=Tracks(
            kind=np.array([AGENT_KINDS.index(kind) for _, kind, _, _ in agents], np.int8),
            size=np.array([size for _, _, size, _ in agents], float).reshape(-1, 3),
            states=states,
            ids=tuple(name for name, *_ in agents),
        ),
        red_lights=RedLights(polygon=np.array(stop, np.int64), red=np.full((len(stop), 51), light == 2)),
        reference=np.stack([np.linspace(0.0, 16.0, 51), np.zeros(51), np.zeros(51)], axis=1),
        light_heads=np.array([[62.0, -3.0, np.pi, float(light)]]),
    )


@pytest.fixture
def street() -> Callable[..., Scene]:
    """Builder of street scenes: ``street(pose=…, agents=…, rings=…, speed=…, light=…)``."""
    return build_street


@pytest.fixture
def rings() -> tuple:
    """The street's polygons: (name, layer, ring, on route)."""
    return RINGS
