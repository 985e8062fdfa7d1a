"""One scene in full: every array that the official code has, by the official data's own keys, in global coordinates."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vla_models.scenes.scene import Scene
from vla_models.scoring.bulk.work import Options
from vla_models.scoring.pdm import extended_comfort, extended_score, human_filtered, prepare, score
from vla_models.scoring.pdm.track import interpolate, track

Arrays = dict[str, npt.NDArray[Any]]


def official_arrays(scene: Scene, plans: npt.NDArray[np.float64], options: Options, mark: bool = False) -> Arrays:
    """Scores of ``plans`` [N, 8, 3] in one scene with all that leads to them.

    nc dac ddc ep ttc comfort|hc (v2 also tlc lk), mult, score, progress_raw, nc_idx, ttc_idx, valid [N];
    ref_progress_raw, ref_mult (scalars); states [N, 41, 11], interp [N, 41, 3] (the plan at 0.1 s) and
    ref_states [41, 11], global; ego_areas [N, 41, 3]. v2: ec_pairs [N - 1], extended comfort of each plan with the next one
    as its previous frame, and, where the scene has a human, ``f_*``: sub-scores after the human filter, and the total
    over them without extended comfort, [N].

    ``mark``: rows of plans that cannot be scored are NaN; else they raise PlanError. A bad scene is a SceneError.
    """
    ready = prepare(scene)
    scores = score(ready, plans, options.version, states=True, on_error="mark" if mark else "raise", traffic=options.traffic)
    out: Arrays = {name: values[0] for name, values in scores.arrays().items()}
    states, valid = np.asarray(out["states"]), np.asarray(out["valid"])
    if options.version == "v2":
        both = valid[:-1] & valid[1:]
        out["ec_pairs"] = np.where(both, extended_comfort(states[:-1], states[1:]), np.nan)
        if scene.human is not None:
            filtered = human_filtered(ready, scores)
            out |= {f"f_{name}": values[0] for name, values in filtered.terms().items()}
            out |= {"f_mult": filtered.mult[0], "f_score": extended_score(filtered, np.nan)[0]}
    interp = np.full((len(plans), *states.shape[1:2], 3), np.nan)
    interp[valid] = interpolate(plans[valid], scene.ego, scene.time_us)
    out["ref_states"] = _moved(track(ready.reference_poses, scene.ego)[0], scene)
    return out | {"states": _moved(states, scene), "interp": _moved(interp, scene)}


def _moved(poses: npt.NDArray[np.float64], scene: Scene) -> npt.NDArray[np.float64]:
    """Local frame -> global."""
    poses = poses.copy()
    poses[..., :2] += scene.origin
    return poses
