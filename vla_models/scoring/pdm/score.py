"""NavSim's PDM score of many plans in many scenes: ``score``.

Version 1 is NavSim v1.1, version 2 is v2.2. Every plan is scored with the scene's reference as the official code scores a
pair [PDM-Closed, plan]: only progress (and, where the traffic reacts, the traffic) couples the two.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from vla_models.errors import PlanError, SceneError, did_you_mean
from vla_models.scenes.scene import Scene
from vla_models.scoring.pdm.check import as_plans, plan_problems
from vla_models.scoring.pdm.collide import MULTIPLE_LANES, NON_DRIVABLE, ONCOMING
from vla_models.scoring.pdm.drive import TRAFFIC, VERSIONS, Scratch, Traffic, Version, rate_plans
from vla_models.scoring.pdm.prepare import AbsentScene, PreparedScene, prepared
from vla_models.scoring.pdm.rate import (
    COMFORT_ROW,
    DAC_ROW,
    DDC_ROW,
    EP_ROW,
    LK_ROW,
    MULT_ROW,
    NC_INDEX_ROW,
    NC_ROW,
    PROGRESS_ROW,
    REVERSE_ROW,
    SCORE_ROW,
    TABLE_ROWS,
    TLC_ROW,
    TTC_INDEX_ROW,
    TTC_ROW,
    total_kernel,
)  # fmt: skip
from vla_models.scoring.pdm.results import PDMScores, Problem, listed
from vla_models.scoring.pdm.track import STEPS

__all__ = ["AnyScene", "OnError", "Traffic", "Version", "score"]

OnError = Literal["raise", "mark"]
AnyScene = Scene | PreparedScene | AbsentScene

ON_ERROR: Final = ("raise", "mark")

_STUCK: Final = "a vehicle leaves its own lane's strip, where the official traffic model gives up; score it in recorded traffic"


def score(
    scenes: AnyScene | Sequence[AnyScene],
    proposals: npt.ArrayLike,
    version: Version = "v1",
    states: bool = False,
    threads: int = 1,
    on_error: OnError = "raise",
    traffic: Traffic = "log_replay",
) -> PDMScores:
    """PDM scores of ``proposals`` [S, N, 8, 3] (or [N, 8, 3] for one scene): x, y, heading of the rear axle in the ego frame
    at 0.5 … 4.0 s.

    Args:
        scenes: one scene or S of them. An ``AbsentScene`` stands for one that could not be found or read.
        proposals: the plans; other dtypes and memory layouts are copied.
        version: "v1" (NavSim v1.1) or "v2" (v2.2).
        states: asks for the driven states and ego areas as well (memory: 3.7 kB a plan).
        threads: share the scenes; the result does not depend on it.
        on_error: "raise": nothing is returned unless all can be scored; the error names all that cannot. "mark": what can be
            scored is; the other rows are NaN, False in ``valid`` and named in ``problems``.
        traffic: "log_replay" (recorded), and in version 2 "constant_velocity" (vehicles) or "reactive_idm": NavSim's reactive
            vehicles, each plan with its own traffic; needs ``Scene.agent_paths``. The reference of a pair is then rated in
            the plan's traffic, so ``ref_mult`` is [S, N].

    Raises:
        ValueError: for an unknown version, traffic or ``on_error``, and for version 1 with other traffic than the log's.
        PlanError: for proposals of a wrong shape (always), or with rows that cannot be scored (``on_error="raise"``).
        SceneError: for no scenes at all, or scenes that cannot be scored (``on_error="raise"``).
    """
    single = isinstance(scenes, AnyScene)
    given: list[AnyScene] = [scenes] if isinstance(scenes, AnyScene) else list(scenes)
    if version not in VERSIONS:
        raise ValueError(f"version {version!r} of the PDM score is unknown; {did_you_mean(str(version), VERSIONS)}")
    if on_error not in ON_ERROR:
        raise ValueError(f"on_error={on_error!r} is unknown; {did_you_mean(str(on_error), ON_ERROR)}")
    if traffic not in TRAFFIC:
        raise ValueError(f"traffic={traffic!r} is unknown; {did_you_mean(str(traffic), TRAFFIC)}")
    if version == "v1" and traffic != "log_replay":
        raise ValueError(f"NavSim v1 has recorded traffic only, not {traffic!r}; score with version='v2'")
    if not given:
        raise SceneError("no scenes to score")
    plans = as_plans(proposals, len(given), single)
    scene_count, plan_count = plans.shape[:2]
    number = VERSIONS.index(version) + 1
    valid = np.ones((scene_count, plan_count), np.bool_)
    bad_plans = plan_problems(plans)
    if bad_plans:
        plans = plans.copy()
        for s, n, _ in bad_plans:
            valid[s, n] = False
            plans[s, n] = 0.0
    bad_scenes: dict[int, str] = {}
    stuck: list[tuple[int, int, str]] = []
    table = np.empty((scene_count, TABLE_ROWS, plan_count))
    reference = np.full((scene_count, 2), np.nan)
    ref_mult = np.full((scene_count, plan_count), np.nan)
    all_states = np.empty((scene_count, plan_count, STEPS, 11)) if states else None
    all_flags = np.empty((scene_count, plan_count, STEPS), np.uint8) if states else None
    queue = itertools.count()

    def work() -> None:
        if states:  # the kernels write into the result itself
            work_with(Scratch(plan_count))
        else:
            with Scratch.borrowed(plan_count) as scratch:
                work_with(scratch)

    def work_with(scratch: Scratch) -> None:
        while (s := next(queue)) < scene_count:
            if all_states is not None and all_flags is not None:
                scratch.states, scratch.flags = all_states[s], all_flags[s]
            try:
                scene = prepared(given[s])
                if on_error == "raise" and (bad_plans or bad_scenes):
                    continue  # nothing will be returned: only look for what else is wrong
                reference[s] = rate_plans(scene, plans[s], version, traffic, scratch, table[s], ref_mult[s])
            except SceneError as error:
                bad_scenes[s] = str(error).removeprefix(f"scene {given[s].token!r} ")
                continue
            total_kernel(table[s], number, reference[s, 0], ref_mult[s])
            stuck.extend((s, int(n), _STUCK) for n in np.flatnonzero(scratch.status) if valid[s, n])

    if threads > 1 and scene_count > 1:
        with ThreadPoolExecutor(min(threads, scene_count)) as pool:
            for done in [pool.submit(work) for _ in range(min(threads, scene_count))]:
                done.result()
    else:
        work()

    bad_rows = bad_plans + stuck
    found = [(s, -1, why) for s, why in bad_scenes.items()] + [bad for bad in bad_rows if bad[0] not in bad_scenes]
    problems = [Problem(given[s].token, None if n < 0 else n, why) for s, n, why in sorted(found)]
    if problems and on_error == "raise":
        raise (SceneError if bad_scenes else PlanError)(f"{len(problems)} cannot be scored: {listed(problems)}")
    for s, n, _ in found:
        valid[s, slice(None) if n < 0 else n] = False
    if problems:
        ref_mult[~valid] = np.nan
        table.transpose(0, 2, 1)[~valid] = np.nan
        if all_states is not None and all_flags is not None:
            all_states[~valid] = np.nan
            all_flags[~valid] = 0

    row = np.ascontiguousarray(table.transpose(1, 0, 2))
    bits = (MULTIPLE_LANES, NON_DRIVABLE, ONCOMING)
    areas = None if all_flags is None else np.stack([(all_flags & bit) != 0 for bit in bits], axis=-1)
    return PDMScores(
        version=version, tokens=tuple(s.token for s in given), score=row[SCORE_ROW],
        nc=row[NC_ROW], dac=row[DAC_ROW], ddc=row[DDC_ROW], tlc=None if number == 1 else row[TLC_ROW], ep=row[EP_ROW],
        ttc=row[TTC_ROW], lk=None if number == 1 else row[LK_ROW], comfort=row[COMFORT_ROW], mult=row[MULT_ROW],
        progress_raw=row[PROGRESS_ROW], reverse=row[REVERSE_ROW], nc_idx=row[NC_INDEX_ROW], ttc_idx=row[TTC_INDEX_ROW],
        ref_progress_raw=reference[:, 0], ref_mult=ref_mult if traffic == "reactive_idm" else reference[:, 1],
        traffic=traffic, valid=valid, problems=tuple(problems), states=all_states, ego_areas=areas,
    )  # fmt: skip
