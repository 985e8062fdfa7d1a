"""PDM-Closed, NavSim's rule-based reference planner, as its metric caching runs it: the plan that normalises progress.

Three paths (the route's centre line, 1 m right and 1 m left of it) times five IDM policies give 15 proposals of 4 s. They are
driven by NavSim's tracker and scored by the PDM score over a constant-velocity forecast, progress relative to the best of
the 15; the first best one is carried on to 5 s. What is returned are the proposal's own poses on the path, not the driven
ones: row 0 is the ego's projection on that path, not the ego's pose. NavSim does not use the planner's emergency brake.

Scores are those of NavSim v1.1, with which the golden references of ``pdm-scene/1`` are reproduced (2.2 generates and drives
the same proposals, and differs by choosing with its own score). Known differences from the official code:

* GEOS approximates the corridor that decides which objects count as "ahead": it simplifies the line and rounds joins by
  segments, up to about 1 cm. Here the corridor is exact; an object that just grazes it may count in one and not in the other.
* Where two objects have equal distance from the ego (both overlap it), the official choice depends on its search tree; here
  it is static objects, vehicles, pedestrians, bicycles, red lights, the nearest at t = 0 first.
* The planner's map has a radius of 100 m around the ego; here it is the whole map of the scene.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from vla_models.errors import SceneError
from vla_models.geometry import FloatArray, project, to_frame
from vla_models.scenes.scene import DT, PLAN_DT, PLAN_STEPS, TRACK_STEPS, Scene
from vla_models.scoring.pdm.area import area_kernel, compliance_kernel, prepare_areas
from vla_models.scoring.pdm.collide import collision_kernel, prepare_agents, time_to_collision_kernel
from vla_models.scoring.pdm.comfort import NO_PAST, comfort_kernel, operators
from vla_models.scoring.pdm.forecast import Forecast, forecast
from vla_models.scoring.pdm.idm import SPEED_FRACTIONS, unroll
from vla_models.scoring.pdm.paths import LATERAL_OFFSETS, build_paths, pose_at
from vla_models.scoring.pdm.progress import PROGRESS_THRESHOLD, prepare_line, progress_kernel
from vla_models.scoring.pdm.track import REAR_AXLE_TO_CENTER, STEPS, track

_POLICIES: Final = len(SPEED_FRACTIONS)
_PROPOSALS: Final = len(LATERAL_OFFSETS) * _POLICIES
_VERSION: Final = 1  # of the score that chooses


def plan_pdm_closed(scene: Scene) -> FloatArray:
    """PDM-Closed's trajectory [51, 3] for ``scene``: rear-axle poses in the scene's local frame at t = 0.0 … 5.0 s.

    Uses the centre line, the speed limit, the map, the ego state, and of tracks and red lights only what is known at t = 0;
    ``scene.reference`` is not looked at. Deterministic. Raises ``SceneError`` naming the scene where the centre line has
    fewer than two points or no length, or where ego state or speed limit cannot be used.
    """
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
    best = int(np.argmax(_scores(scene, seen, poses[:, :STEPS])))
    carry_on(STEPS, TRACK_STEPS - 1, best)
    return poses[best].copy()


def _scores(scene: Scene, seen: Forecast, poses: FloatArray) -> FloatArray:
    """PDM scores [N] of proposals [N, 41, 3] over the forecast; progress is relative to the best proposal."""
    believed = scene.with_(tracks=seen.tracks)
    agents, areas, n = prepare_agents(believed), prepare_areas(believed), len(poses)
    states = track(poses, scene.ego)
    cos, sin = np.cos(states[..., 2]), np.sin(states[..., 2])
    x, y = states[..., 0] + REAR_AXLE_TO_CENTER * cos, states[..., 1] + REAR_AXLE_TO_CENTER * sin
    boxes = np.ascontiguousarray(np.stack([x, y, cos, sin, np.hypot(states[..., 3], states[..., 4])], axis=-1))
    flags = np.empty((n, STEPS), np.uint8)
    collision, collision_step, ttc, ttc_step, drivable, direction, progress, comfort = np.empty((8, n))

    area_kernel(states, boxes, areas, flags)
    collision_kernel(states, boxes, flags, agents, _VERSION, collision, collision_step)
    compliance_kernel(boxes, flags, _VERSION, drivable, direction)
    progress_kernel(boxes, prepare_line(scene), progress)
    time_to_collision_kernel(states, boxes, flags, agents, _VERSION, ttc, ttc_step)
    comfort_kernel(states, NO_PAST, operators(_VERSION, STEPS), 0.0, comfort)

    allowed = collision * drivable
    progress = progress * allowed
    furthest = progress.max()
    relative = progress / furthest if furthest > PROGRESS_THRESHOLD else np.where(allowed > 0.0, 1.0, 0.0)
    return allowed * (5.0 * relative + 5.0 * ttc + 2.0 * comfort) / 12.0


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
