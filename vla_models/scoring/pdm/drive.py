"""One scene's plans driven and rated, in the traffic that is asked for: what ``score`` and the human filter share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, Final, Literal

import numpy as np
import numpy.typing as npt

from vla_models.scoring.pdm.collide import Agents, constant_velocity_agents
from vla_models.scoring.pdm.comfort import CENTER_LEVER, NO_PAST, operators
from vla_models.scoring.pdm.prepare import PreparedScene
from vla_models.scoring.pdm.rate import (
    DAC_ROW,
    DDC_ROW,
    MULT_ROW,
    PROGRESS_ROW,
    TABLE_ROWS,
    TLC_ROW,
    drive_kernel,
    follow_kernel,
    reactive_kernel,
)  # fmt: skip
from vla_models.scoring.pdm.react import Rails, make_world, prepare_rails
from vla_models.scoring.pdm.track import STEPS, VELOCITY_OPERATOR, owned, plan_headings

FloatArray = npt.NDArray[np.float64]
Version = Literal["v1", "v2"]
Traffic = Literal["log_replay", "constant_velocity", "reactive_idm"]

VERSIONS: Final = ("v1", "v2")
_MAX_IDLE: Final = 8
_MAX_KEPT: Final = 1024  # plans: 7 MB
TRAFFIC: Final = ("log_replay", "constant_velocity", "reactive_idm")


class Scratch:
    """What the kernels write for one scene of N plans; one a thread, used again for scene after scene and call after call."""

    _idle: ClassVar[list[Scratch]] = []

    def __init__(self, plans: int) -> None:
        self.plans = plans
        self.poses = np.empty((plans, STEPS, 3))
        self.states = np.empty((plans, STEPS, 11))
        self.boxes = np.empty((plans, STEPS, 5))
        self.flags = np.empty((plans, STEPS), np.uint8)
        self.status = np.zeros(plans, np.int64)
        """Per plan: 0, or why its traffic could not be simulated (``react.STUCK``)."""
        self.agents: Agents | None = None
        """The traffic that the last plan met."""

    @classmethod
    @contextmanager
    def borrowed(cls, plans: int) -> Iterator[Scratch]:
        """A scratch for ``plans`` plans, kept for the next borrower afterwards: fresh memory costs more than a plan."""
        try:
            scratch = cls._idle.pop()
        except IndexError:  # none, or another thread was faster
            scratch = cls(plans)
        if scratch.plans != plans:
            scratch = cls(plans)
        yield scratch
        if len(cls._idle) < _MAX_IDLE and plans <= _MAX_KEPT:
            cls._idle.append(scratch)


class _Reference:
    """The reference of a scene, driven and rated in recorded traffic."""

    def __init__(self, scene: PreparedScene, agents: Agents, version: int) -> None:
        self.scratch = Scratch(1)
        table = np.zeros((TABLE_ROWS, 1))
        s = self.scratch
        follow_kernel(
            scene.reference_poses, scene.ego, VELOCITY_OPERATOR, agents, scene.areas, scene.red_areas, scene.line,
            *comfort_terms(scene, version), version, s.states, s.boxes, s.flags, table,
        )  # fmt: skip
        self.progress = float(table[PROGRESS_ROW, 0])
        self.mult = float(table[MULT_ROW, 0])
        self.mult_but_nc = float(table[DAC_ROW, 0] * table[DDC_ROW, 0] * table[TLC_ROW, 0])


def comfort_terms(scene: PreparedScene, version: int) -> tuple[FloatArray, bool, float, FloatArray]:
    """(past states, whether comfort is rated at all, lever, filters) of the comfort kernel for score ``version`` 1 or 2."""
    if version == 1:
        return NO_PAST, True, 0.0, operators(1, STEPS)
    if scene.past is None:
        return NO_PAST, False, 0.0, operators(2, STEPS)
    return scene.past, True, CENTER_LEVER, operators(2, STEPS + len(scene.past))


def _agents(scene: PreparedScene, traffic: Traffic) -> Agents:
    """Traffic that does not react; for reactive traffic the recorded one."""
    if traffic != "constant_velocity":
        return scene.agents
    known = scene.memo.get(traffic)
    if known is None:
        known = scene.memo[traffic] = constant_velocity_agents(scene.tracks, scene.ego)
    return known


def _rails(scene: PreparedScene) -> Rails:
    known = scene.memo.get("reactive_idm")
    if known is None:
        known = scene.memo["reactive_idm"] = prepare_rails(scene.token, scene.ego, scene.tracks, scene.agent_paths)
    return known


def _reference(scene: PreparedScene, version: Version, traffic: Traffic) -> _Reference:
    key = f"reference {version} {traffic}"
    known = scene.memo.get(key)
    if known is None:
        known = scene.memo[key] = _Reference(scene, _agents(scene, traffic), VERSIONS.index(version) + 1)
    return known


def rate_plans(
    scene: PreparedScene, plans: FloatArray, version: Version, traffic: Traffic, scratch: Scratch, table: FloatArray,
    ref_mult: FloatArray,
) -> tuple[float, float]:  # fmt: skip
    """Drive and rate plans [N, 8, 3]: all rows of ``table`` [14, N] but the last two, and the reference's multiplicative
    product ``ref_mult`` [N] in each plan's traffic; returns its progress (m) and its product in traffic that does not react.

    Raises SceneError where the scene lacks what the traffic needs. Plans whose ``scratch.status`` is not 0 are not rated.
    """
    number = VERSIONS.index(version) + 1
    agents = _agents(scene, traffic)
    rails = _rails(scene) if traffic == "reactive_idm" else None
    reference = _reference(scene, version, traffic)
    scratch.status[:] = 0
    drive_kernel(
        plans, plan_headings(plans, float(scene.ego[2])), scene.ego, scene.interval, scene.fraction, VELOCITY_OPERATOR, agents,
        scene.areas, scene.red_areas, scene.line, *comfort_terms(scene, number), number, scratch.poses, scratch.states,
        scratch.boxes, scratch.flags, table,
    )  # fmt: skip
    ref_mult[:] = reference.mult
    scratch.agents = agents
    if rails is not None:
        reacting = agents._replace(
            boxes=np.empty_like(agents.boxes), extents=agents.extents.copy(), overlapping=np.zeros_like(agents.overlapping)
        )
        scratch.agents = reacting
        other = reference.scratch
        reactive_kernel(
            scratch.states, scratch.boxes, scratch.flags, other.states, other.boxes, other.flags, agents.boxes,
            owned(scene.tracks.size), rails, make_world(rails), reacting, table, ref_mult, scratch.status,
        )  # fmt: skip
        ref_mult *= reference.mult_but_nc
    return reference.progress, reference.mult
