"""A scene seen from above, for people: the ego drives up the page, plans are lines with a dot every half second."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from vla_models.errors import ConfigError, MissingDependency, PlanError, SceneError
from vla_models.geometry import box_corners, from_frame, to_frame
from vla_models.scenes.scene import AGENT_KINDS, LAYERS, Scene

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FloatArray = npt.NDArray[np.float64]

EGO_LENGTH: Final = 5.176
EGO_WIDTH: Final = 2.297
EGO_CENTRE: Final = 1.461
"""NuPlan's Pacifica: length, width, and how far its centre lies ahead of the rear axle, in metres."""

PLAN_COLOURS: Final[dict[str, str]] = {
    "constant_velocity": "#8a8f98",
    "imitation": "#e08a00",
    "before": "#e08a00",
    "rl": "#0b62d6",
    "after": "#0b62d6",
    "pdm_closed": "#12925a",
    "rule_based": "#12925a",
    "human": "#8a3fc4",
}
"""Colours of plans by their label; other labels take the ones of ``_OTHER_PLANS`` in turn."""
_OTHER_PLANS: Final = ("#c2185b", "#00838f", "#6d4c41", "#5e35b1", "#9e9d24")

_OPEN_GROUND: Final = "#e9efe4"
_SURFACE: Final = {
    "drivable_area": "#ccd0d5",
    "carpark": "#bcc2ca",
    "roadblock": "#ccd0d5",
    "intersection": "#c6cacf",
    "lane": "#ccd0d5",
    "lane_connector": "#c6cacf",
}
_AGENT: Final = {
    "vehicle": ("#5b7894", "#34495e"),
    "pedestrian": ("#d6336c", "#8f1d45"),
    "bicycle": ("#9c36b5", "#5f1f70"),
    "traffic_cone": ("#f76707", "#a34200"),
    "barrier": ("#f08c00", "#9c5b00"),
    "czone_sign": ("#f08c00", "#9c5b00"),
    "generic_object": ("#7f6a55", "#4f4235"),
}
_LIGHTS: Final = ("#2fb344", "#f5b301", "#e02b20")


def draw_scene(
    scene: Scene,
    plans: Mapping[str, npt.ArrayLike] | None = None,
    ax: Axes | None = None,
    *,
    extent: float = 60.0,
    behind: float = 0.2,
    legend: bool = True,
    title: str | None = None,
) -> Axes:
    """Draw a scene from above and return the axes (``axes.figure.savefig("scene.png")`` stores it).

    Shown are the road with its lane edges, the route's centre line (dashed), closed connectors (red), traffic lights (dots),
    agents at t = 0 by kind with their next 4 s as a faint line, the ego and the plans.

    Args:
        scene: what to draw.
        plans: label -> plan [T, 3] (or [T, 2]) in the ego frame. Known labels have fixed colours (``PLAN_COLOURS``).
        ax: matplotlib axes to draw into; None makes a figure of its own, without pyplot and its global state.
        extent: height of the picture in metres; the width follows the axes' own proportions.
        behind: share of the height that lies behind the ego's rear axle.
        legend: whether to name the plans in a corner.
        title: text above the picture.

    Raises:
        MissingDependency: matplotlib is not installed.
        PlanError: a plan is not [T, 3] or not finite.
    """
    try:
        from matplotlib.collections import LineCollection, PolyCollection
        from matplotlib.figure import Figure
    except ImportError as e:
        raise MissingDependency(f"scene pictures need matplotlib ({e}): pip install matplotlib") from e
    if not (np.isfinite(extent) and extent > 0.0 and 0.0 <= behind <= 1.0):
        raise ConfigError(f"extent must be positive metres and behind a share from 0 to 1, got {extent!r} and {behind!r}")
    ego = scene.ego[:3]
    if not np.isfinite(ego).all():
        raise SceneError(f"scene {scene.token!r}: the ego pose is not finite ({ego}); it cannot be drawn")
    lines = {label: _checked(label, plan) for label, plan in (plans or {}).items()}
    if ax is None:
        ax = Figure(figsize=(5.0, 5.0), layout="constrained").add_subplot()

    def up(points: FloatArray) -> FloatArray:
        return on_page(points, ego)

    box = ax.get_window_extent()
    width = extent * box.width / box.height
    ax.set(xlim=(-width / 2, width / 2), ylim=(-behind * extent, (1.0 - behind) * extent), aspect="equal")
    ax.set_facecolor(_OPEN_GROUND)
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)
    if title is not None:
        ax.set_title(title, fontsize=9, loc="left", color="#222")

    polygons = scene.polygons
    rings = [up(polygons.ring(p)) for p in range(len(polygons))]
    for name in ("drivable_area", "carpark", "roadblock", "intersection", "lane_connector", "lane"):
        chosen = [rings[p] for p in np.nonzero(polygons.layer == LAYERS.index(name))[0] if len(rings[p]) > 2]
        edge = "#f7f8f9" if name == "lane" else _SURFACE[name]
        ax.add_collection(PolyCollection(chosen, facecolors=_SURFACE[name], edgecolors=edge, linewidths=0.9, zorder=1))
    red = [rings[p] for p, steps in zip(scene.red_lights.polygon, scene.red_lights.red, strict=True) if steps[0]]
    ax.add_collection(PolyCollection(red, facecolors="#e02b2038", edgecolors="#e02b20a0", linewidths=0.8, zorder=2))
    if len(scene.centerline) > 1:
        ax.plot(*up(scene.centerline).T, color="#3c6e9f", lw=1.0, ls=(0, (5, 4)), alpha=0.75, zorder=3)

    tracks = scene.tracks
    futures, outlines, fills, edges, fronts = [], [], [], [], []
    for states, size, kind in zip(tracks.states, tracks.size, tracks.kind, strict=True):
        if np.isnan(states[0]).any():
            continue
        ahead = states[:41, :2][~np.isnan(states[:41, :2]).any(axis=1)]
        if len(ahead) > 1 and np.ptp(ahead, axis=0).max() > 0.3:
            futures.append((up(ahead), _AGENT[AGENT_KINDS[kind]][0]))
        corners = up(box_corners(states[0, 0], states[0, 1], states[0, 2], size[0], size[1]))
        outlines.append(corners)
        fill, edge = _AGENT[AGENT_KINDS[kind]]
        fills.append(fill)
        edges.append(edge)
        if AGENT_KINDS[kind] == "vehicle":  # a dark band near the front tells which way it looks
            fronts.append(_band(corners))
    ax.add_collection(
        LineCollection([f for f, _ in futures], colors=[c for _, c in futures], linewidths=1.6, alpha=0.45, zorder=4)
    )
    ax.add_collection(PolyCollection(outlines, facecolors=fills, edgecolors=edges, linewidths=0.8, zorder=5))
    ax.add_collection(PolyCollection(fronts, facecolors="#22303d", edgecolors="none", zorder=6))
    body = _page(box_corners(EGO_CENTRE, 0.0, 0.0, EGO_LENGTH, EGO_WIDTH))
    ax.add_collection(PolyCollection([body], facecolors="#15202b", edgecolors="#ffffff", linewidths=1.0, zorder=7))
    ax.add_collection(PolyCollection([_band(body)], facecolors="#8fd3ff", edgecolors="none", zorder=8))
    if len(scene.light_heads):
        at = up(scene.light_heads)
        colours = [_LIGHTS[int(state)] for state in scene.light_heads[:, 3]]
        ax.scatter(at[:, 0], at[:, 1], s=34, c=colours, edgecolors="#222", linewidths=0.8, zorder=9)

    others = iter(_OTHER_PLANS * (1 + len(lines) // len(_OTHER_PLANS)))
    for label, plan in lines.items():
        colour = PLAN_COLOURS.get(label) or next(others)
        xy = _page(np.concatenate([np.zeros((1, 2)), plan[:, :2]]))
        style: dict[str, Any] = {"zorder": 10, "solid_capstyle": "round", "solid_joinstyle": "round"}
        ax.plot(*xy.T, color="white", lw=4.2, alpha=0.8, **style)
        ax.plot(
            *xy.T, color=colour, lw=2.0, marker="o", ms=3.4, markevery=slice(1, None), label=label.replace("_", " "), **style
        )
        if plan.shape[1] == 3:  # where the car would end
            end = from_frame(box_corners(EGO_CENTRE, 0.0, 0.0, EGO_LENGTH, EGO_WIDTH), plan[-1])
            ax.add_collection(PolyCollection([_page(end)], facecolors="none", edgecolors=colour, linewidths=1.0, zorder=9))
    if legend and lines:
        shown = ax.legend(loc="lower right", fontsize=8, framealpha=0.92, edgecolor="none", handlelength=1.6, borderpad=0.5)
        shown.set_zorder(20)
    return ax


def on_page(points: FloatArray, ego: FloatArray) -> FloatArray:
    """Points [n, >=2] in the scene's frame -> coordinates [n, 2] of the axes that ``draw_scene`` returns."""
    return _page(to_frame(points[:, :2], ego[:3]))


def _page(points: FloatArray) -> FloatArray:
    """Ego frame (x ahead, y left) -> page (x right, y up), [n, 2]."""
    return np.stack([-points[:, 1], points[:, 0]], axis=1)


def _band(corners: FloatArray) -> FloatArray:
    """A strip across a box [4, 2] (front left, rear left, rear right, front right) where its windscreen would be."""
    left, right = corners[1] - corners[0], corners[2] - corners[3]
    inner = 0.08 * (corners[3] - corners[0])
    a, b = corners[0] + inner, corners[3] - inner
    return np.stack([a + 0.22 * left, a + 0.34 * left, b + 0.34 * right, b + 0.22 * right])


def _checked(label: str, plan: npt.ArrayLike) -> FloatArray:
    array = np.asarray(plan, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] not in (2, 3) or len(array) == 0:
        raise PlanError(f"plan {label!r}: expected [T, 3] poses in the ego frame, got shape {array.shape}")
    if not np.isfinite(array).all():
        rows = np.nonzero(~np.isfinite(array).all(axis=1))[0].tolist()
        raise PlanError(f"plan {label!r}: poses {rows} are not finite")
    return array
