"""What makes a scene or a plan impossible to score: everything is found and named, nothing is scored as 0 in silence.

Legal on purpose, with the official meaning:

* tracks with gaps: an agent is absent where its row is NaN, and may come back;
* polygons that cross themselves: points are tested by the even-odd rule and borders against borders, as GEOS does;
* scenes without agents, without history, without a human plan, without polygons of some layer or without a route.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from vla_models.errors import PlanError
from vla_models.scenes.scene import AGENT_KINDS, EGO_COLUMNS, LAYERS, PLAN_STEPS, TRACK_STEPS, Scene
from vla_models.scoring.pdm.track import owned

FloatArray = npt.NDArray[np.float64]

FURTHEST: Final = 1e7
"""Metres: a pose beyond this (a quarter of the Earth) is a mistake, and its squares would lose the digits that count."""
MOST_TURNED: Final = 1e6
"""Radians: likewise for headings."""

_DRIVABLE: Final = tuple(LAYERS.index(name) for name in ("roadblock", "intersection", "carpark", "drivable_area"))
_LANES: Final = tuple(LAYERS.index(name) for name in ("lane", "lane_connector"))
_NAMED: Final = 3  # so many bad things of one kind are listed by name


def scene_problems(scene: Scene) -> list[str]:
    """Why ``scene`` cannot be scored, each with its remedy; empty where it can."""
    return [*_reference_problems(scene), *_number_problems(scene), *_map_problems(scene), *_track_problems(scene)]


def _reference_problems(scene: Scene) -> list[str]:
    if scene.reference is None:
        return [
            "has no reference, which normalises progress; make one with "
            "vla_models.scoring.pdm.closed.plan_pdm_closed(scene) and scene.with_(reference=...)"
        ]
    if scene.reference.shape != (TRACK_STEPS, 3):
        return [f"has a reference of shape {scene.reference.shape}, expected ({TRACK_STEPS}, 3): one pose per 0.1 s"]
    return []


def _number_problems(scene: Scene) -> list[str]:
    """Arrays of a wrong shape, and numbers that are not finite."""
    found = []
    columns = len(EGO_COLUMNS)
    for what, values, shape in (
        ("ego", scene.ego, (columns,)),
        ("ego_history", scene.ego_history, (None, columns)),
        ("reference", scene.reference, (None, 3)),
        ("human", scene.human, (PLAN_STEPS, 3)),
        ("centerline", scene.centerline, (None, 3)),
        ("polygons", scene.polygons.vertices, (None, 2)),
        ("tracks.size", scene.tracks.size, (None, 3)),
    ):
        if values is None:
            continue
        if values.ndim != len(shape) or any(n is not None and n != m for n, m in zip(shape, values.shape, strict=True)):
            wanted = ", ".join("n" if n is None else str(n) for n in shape)
            found.append(f"has {what!r} of shape {values.shape}, expected [{wanted}]")
        elif not np.isfinite(values).all():
            row = int(np.argwhere(~np.isfinite(values))[0, 0])
            found.append(f"has numbers in {what!r} that are not finite (the first at index {row}); correct them at the source")
    if len(scene.centerline) < 2:
        found.append(f"has a centre line of {len(scene.centerline)} points, at least 2 are needed to measure progress")
    if scene.ego_history is not None and len(scene.ego_history) < 2:
        found.append(f"has an ego history of {len(scene.ego_history)} states; give 4 (current last), or None where unknown")
    return found


def _map_problems(scene: Scene) -> list[str]:
    """Missing layers, broken polygons, red lights on no lane connector."""
    found = []
    polygons, lights = scene.polygons, scene.red_lights
    if not np.isin(polygons.layer, _DRIVABLE).any():
        names = ", ".join(LAYERS[layer] for layer in _DRIVABLE)
        found.append(f"has no drivable ground (map layers {names}): every plan would count as off the road; add the layers")
    if not np.isin(polygons.layer, _LANES).any():
        found.append("has no lanes (map layers lane, lane_connector): driving direction would be a guess; add the layers")
    counts = np.diff(polygons.offsets)
    if len(counts) and (counts < 3).any():
        bad = [polygons.ids[int(p)] for p in np.flatnonzero(counts < 3)[:_NAMED]]
        found.append(f"has polygons with fewer than 3 vertices: {bad}; remove or complete them")
    if len(lights) and not ((lights.polygon >= 0) & (lights.polygon < len(polygons))).all():
        found.append(f"has red lights on polygons {lights.polygon.tolist()} of {len(polygons)}; name polygons of its own map")
    if lights.red.shape != (len(lights), TRACK_STEPS):
        found.append(f"has red lights of shape {lights.red.shape}, expected ({len(lights)}, {TRACK_STEPS})")
    return found


def _track_problems(scene: Scene) -> list[str]:
    tracks = scene.tracks
    if tracks.states.shape != (len(tracks), TRACK_STEPS, 5):
        return [f"has tracks of shape {tracks.states.shape}, expected [{len(tracks)}, {TRACK_STEPS}, 5]"]
    if len(tracks) == 0:
        return []
    found = []
    number = np.isfinite(tracks.states)
    bad = np.argwhere(~(number.all(axis=2) | np.isnan(tracks.states).all(axis=2)))
    if len(bad):
        where = ", ".join(f"{tracks.ids[a]!r} at step {t}" for a, t in bad[:_NAMED])
        found.append(f"has track rows that are partly missing ({where}): an absent agent's row must be NaN throughout")
    if not ((tracks.kind >= 0) & (tracks.kind < len(AGENT_KINDS))).all():
        found.append(f"has agents of unknown kind {tracks.kind.tolist()}; kinds are indices into {AGENT_KINDS}")
    flat = np.flatnonzero((tracks.size[:, :2] <= 0.0).any(axis=1))
    if len(flat):
        found.append(f"has agents without length or width: {[tracks.ids[int(a)] for a in flat[:_NAMED]]}; give them a size")
    return found


def as_plans(proposals: npt.ArrayLike, scene_count: int, single: bool) -> FloatArray:
    """``proposals`` as float64 [S, N, 8, 3] (owned, C-contiguous); PlanError where the shape is another."""
    try:
        plans = owned(proposals)
    except (TypeError, ValueError):
        raise PlanError(f"proposals are not one array of numbers [S, N, {PLAN_STEPS}, 3]") from None
    if single and plans.ndim == 3:
        plans = plans[None]
    if plans.ndim != 4 or plans.shape[0] != scene_count or plans.shape[2:] != (PLAN_STEPS, 3):
        horizon = f" with {plans.shape[-2]} poses a plan" if plans.ndim >= 2 and plans.shape[-2] != PLAN_STEPS else ""
        raise PlanError(
            f"proposals have shape {np.shape(proposals)}{horizon}, expected [{scene_count} scenes, N, {PLAN_STEPS}, 3]: "
            f"{PLAN_STEPS} poses x, y, heading in the ego frame, 0.5 s apart; resample plans of another horizon"
        )
    return plans


def plan_problems(plans: FloatArray) -> list[tuple[int, int, str]]:
    """(scene, row, why) of each plan of [S, N, 8, 3] that cannot be scored."""
    found: list[tuple[int, int, str]] = []
    with np.errstate(invalid="ignore"):
        if np.abs(plans).max(initial=0.0) <= min(FURTHEST, MOST_TURNED):  # not so where one is NaN
            return found
    finite = np.asarray(np.isfinite(plans).all(axis=(2, 3)))
    with np.errstate(invalid="ignore"):
        near = (np.abs(plans[..., :2]) <= FURTHEST).all(axis=(2, 3)) & (np.abs(plans[..., 2]) <= MOST_TURNED).all(axis=2)
    for s, n in np.argwhere(~(finite & near)):
        if not finite[s, n]:
            found.append((int(s), int(n), "the plan is not finite; the model has diverged, or a pose was never filled in"))
        else:
            text = f"the plan leaves {FURTHEST:.0e} m or {MOST_TURNED:.0e} rad; poses are metres and radians in the ego frame"
            found.append((int(s), int(n), text))
    return found
