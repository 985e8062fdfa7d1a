"""PDM-Closed, NavSim's rule-based reference planner, as its metric caching runs it: the plan that normalises progress.

Three paths (the route's centre line, 1 m right and 1 m left of it) times five IDM policies give 15 proposals of 4 s. They are
driven by NavSim's tracker and scored by the PDM score over a constant-velocity forecast, progress relative to the best of
the 15; the first best one is carried on to 5 s. What is returned are the proposal's own poses on the path, not the driven
ones: row 0 is the ego's projection on that path, not the ego's pose. NavSim does not use the planner's emergency brake.

NavSim 2.2 and 1.1 generate and drive the same proposals, and each chooses with its own score. The golden references of
``pdm-scene/1`` were made by 2.2: there the planner also minds lanes, driving direction and red lights (history comfort is
always 1, extended comfort is not known yet). Differences from the official code that remain:

* GEOS approximates the corridor that decides which objects count as "ahead": it simplifies the line and rounds joins by
  segments, up to about 1 cm. Here the corridor is exact; an object that just grazes it may count in one and not in the other.
* Where two objects have equal distance from the ego (both overlap it), the official choice depends on its search tree; here
  it is static objects, vehicles, pedestrians, bicycles, red lights, the nearest at t = 0 first.
* The official map ends 100 m from the ego; here it is whatever the scene holds.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from vla_models.errors import SceneError, did_you_mean
from vla_models.geometry import FloatArray, project, to_frame
from vla_models.scenes.scene import DT, PLAN_DT, PLAN_STEPS, TRACK_STEPS, RedLights, Scene
from vla_models.scoring.pdm.area import prepare_areas, prepare_red_areas
from vla_models.scoring.pdm.collide import prepare_agents
from vla_models.scoring.pdm.comfort import NO_PAST, operators
from vla_models.scoring.pdm.drive import VERSIONS, Version
from vla_models.scoring.pdm.forecast import Forecast, forecast
from vla_models.scoring.pdm.idm import SPEED_FRACTIONS, unroll
from vla_models.scoring.pdm.paths import LATERAL_OFFSETS, build_paths, pose_at
from vla_models.scoring.pdm.progress import prepare_line
from vla_models.scoring.pdm.rate import MULT_ROW, PROGRESS_ROW, SCORE_ROW, TABLE_ROWS, rate_kernel, total_kernel
from vla_models.scoring.pdm.track import STEPS, track

_POLICIES: Final = len(SPEED_FRACTIONS)
_PROPOSALS: Final = len(LATERAL_OFFSETS) * _POLICIES


def plan_pdm_closed(scene: Scene, version: Version = "v2") -> FloatArray:
    """PDM-Closed's trajectory [51, 3] for ``scene``: rear-axle poses in the scene's local frame at t = 0.0 … 5.0 s.

    Uses the centre line, the speed limit, the map, the ego state, and of tracks and red lights only what is known at t = 0;
    ``scene.reference`` is not looked at. ``version`` is that of the score that chooses ("v2": NavSim 2.2, "v1": NavSim 1.1).
    Deterministic. Raises ``SceneError`` naming the scene where the centre line has fewer than two points or no length, and
    where ego state, agents or speed limit cannot be used.
    """
    if version not in VERSIONS:
        raise ValueError(f"version {version!r} of the PDM score is unknown; {did_you_mean(str(version), VERSIONS)}")
    if not np.isfinite(scene.ego).all():
        raise SceneError(f"scene {scene.token!r}: its ego state {scene.ego.tolist()} is not finite.")
    if not 0.0 < scene.speed_limit < np.inf:
        raise SceneError(f"scene {scene.token!r}: its speed limit is {scene.speed_limit}; PDM-Closed needs one above 0 m/s.")
    paths, seen = build_paths(scene), forecast(scene)
    targets = scene.speed_limit * np.array(SPEED_FRACTIONS)
    drive = np.zeros((_PROPOSALS, TRACK_STEPS, 2))
    lead = np.zeros((_PROPOSALS, TRACK_STEPS, 3))
    poses = np.zeros((_PROPOSALS, TRACK_STEPS, 3))
    for p in range(_PROPOSALS):
        points, progress = paths.points[p // _POLICIES], paths.progress[p // _POLICIES]
        drive[p, 0] = project(points, scene.ego[0], scene.ego[1])[0], scene.ego[3]
        pose_at(points, paths.heading, progress, drive[p, 0, 0], poses[p, 0])

    def carry_on(first: int, last: int, one: int) -> None:
        unroll(
            first, last, one, paths.points, paths.heading, paths.progress, targets,
            seen.tracks.states, seen.tracks.size, seen.dynamic, seen.red_rings, seen.red_offsets, seen.red_centroids,
            drive, lead, poses,
        )  # fmt: skip

    carry_on(1, STEPS - 1, -1)
    best = int(np.argmax(proposal_scores(scene, seen, poses[:, :STEPS], version)))
    carry_on(STEPS, TRACK_STEPS - 1, best)
    return np.array(poses[best])


def proposal_scores(scene: Scene, seen: Forecast, poses: FloatArray, version: Version) -> FloatArray:
    """PDM scores [N] of proposals [N, 41, 3] over the forecast; progress is relative to the best proposal."""
    red_now = RedLights(seen.red_polygons, np.ones((len(seen.red_polygons), TRACK_STEPS), dtype=np.bool_))
    believed = scene.with_(tracks=seen.tracks, red_lights=red_now)
    number = VERSIONS.index(version) + 1
    states = track(poses, scene.ego.copy())  # a copy is writable: kernels are compiled anew for read-only arrays
    boxes, flags = np.empty((len(poses), STEPS, 5)), np.empty((len(poses), STEPS), np.uint8)
    table = np.empty((TABLE_ROWS, len(poses)))
    rate_kernel(
        states, prepare_agents(believed.tracks, scene.ego), prepare_areas(believed), prepare_red_areas(believed),
        prepare_line(scene), NO_PAST, number == 1, 0.0, operators(number, STEPS), number, boxes, flags, table,
    )  # fmt: skip
    total_kernel(table, number, float((table[PROGRESS_ROW] * table[MULT_ROW]).max()), np.ones(len(poses)))
    return np.array(table[SCORE_ROW])


def reference_plan(scene: Scene) -> FloatArray:
    """``scene.reference`` as a plan [8, 3]: its poses at t = 0.5 … 4.0 s in the ego frame.

    Raises ``SceneError`` where the scene has no reference (plan one with ``plan_pdm_closed``) or a malformed one.
    """
    if scene.reference is None:
        raise SceneError(f"scene {scene.token!r} has no reference; add one: scene.with_(reference=plan_pdm_closed(scene)).")
    if scene.reference.shape != (TRACK_STEPS, 3) or not np.isfinite(scene.reference).all():
        raise SceneError(
            f"scene {scene.token!r}: its reference has shape {scene.reference.shape}; expected finite [{TRACK_STEPS}, 3] poses."
        )
    every = round(PLAN_DT / DT)
    return to_frame(scene.reference[every : every * PLAN_STEPS + 1 : every], scene.ego)
