"""Why a plan lost its points: ``explain`` gives facts (who, where, at what second), ``report.explanation`` words and a picture.

Every fact comes from the scorer's own kernels, asked smaller questions than the score asks: about one agent alone, one red
light at one step, one position, one step's corners. So facts and score cannot disagree; a test holds them together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt

from vla_models.errors import PlanError
from vla_models.geometry import project
from vla_models.scenes.scene import AGENT_KINDS, LAYERS, Scene
from vla_models.scoring.pdm.area import (
    CORNERS,
    RedAreas,
    ego_corners,
    inside,
    red_light_kernel,
    wrong_way_kernel,
)
from vla_models.scoring.pdm.collide import (
    BOX_SPEED,
    BOX_X,
    BOX_Y,
    CENTER_IN_INTERSECTION,
    MULTIPLE_LANES,
    NON_DRIVABLE,
    TTC_OFFSETS,
    TTC_STRIDE,
    Agents,
    collision_kernel,
    time_to_collision_kernel,
)
from vla_models.scoring.pdm.comfort import COMFORT_BOUNDS, COMFORT_QUANTITIES, comfort_quantity_kernel
from vla_models.scoring.pdm.drive import VERSIONS, Scratch, Traffic, Version, comfort_terms, rate_plans
from vla_models.scoring.pdm.prepare import PreparedScene, prepare
from vla_models.scoring.pdm.progress import lane_keeping_kernel
from vla_models.scoring.pdm.rate import TABLE_ROWS
from vla_models.scoring.pdm.results import PDMScores
from vla_models.scoring.pdm.score import score
from vla_models.scoring.pdm.track import DT, STEPS, owned

FloatArray = npt.NDArray[np.float64]

_DRIVABLE: Final = tuple(LAYERS.index(name) for name in ("roadblock", "intersection", "carpark", "drivable_area"))


@dataclass(frozen=True)
class Contact:
    """An agent that the ego hits, or comes too close to."""

    agent: str
    """Its id."""
    track: int
    """Its index in the scene's tracks."""
    kind: str
    """Its type, of ``AGENT_KINDS``."""
    step: int
    """The step (0.1 s) of the ego."""
    how: str
    """Why it is the ego's fault: "stopped" (the agent stands still), "front" (the ego's front hits it, or it is ahead within 30
    degrees) or "lateral" (from the side, while the ego is where it should not be)."""
    place: str
    """For "lateral": "in several lanes", "off the drivable area" or "in an intersection"; else empty."""
    pose: tuple[float, float, float]
    """x, y, heading of its box when they touch, local frame."""


@dataclass(frozen=True)
class Collision(Contact):
    """An at-fault collision."""

    term: ClassVar[str] = "nc"
    cost: float
    """What no-collision becomes: 0, or 1/2 for an object."""
    speed: float
    """The ego's speed at that moment, m/s."""


@dataclass(frozen=True)
class TooClose(Contact):
    """A projected collision: at constant velocity the ego would hit the agent within a second."""

    term: ClassVar[str] = "ttc"
    ahead: float
    """Seconds until then: 0, 0.3, 0.6 or 0.9."""
    speed: float
    """The ego's speed at that moment, m/s."""


@dataclass(frozen=True)
class OffRoad:
    """Corners of the ego leave the drivable area."""

    term: ClassVar[str] = "dac"
    step: int
    """The first step."""
    corners: tuple[str, ...]
    """Which are outside then, of ``CORNERS``."""
    points: FloatArray
    """[k, 2] where they are, local frame."""
    steps: tuple[int, ...]
    """All steps with a corner outside."""


@dataclass(frozen=True)
class WrongWay:
    """Metres against the driving direction within a second."""

    term: ClassVar[str] = "ddc"
    step: int
    """The step at which the worst second ends."""
    metres: float
    """Within that second."""
    steps: tuple[int, ...]
    """All steps that add to it."""


@dataclass(frozen=True)
class RedLight:
    """A lane connector entered while its light is red."""

    term: ClassVar[str] = "tlc"
    light: str
    """The lane connector's id."""
    polygon: int
    """Its index in the scene's polygons."""
    step: int
    """The first step."""


@dataclass(frozen=True)
class OffCentre:
    """Too long too far from the route's centre line."""

    term: ClassVar[str] = "lk"
    first: int
    step: int
    """First step of the stretch, and the one at which it has become too long."""
    deviation: float
    """Largest distance from the centre line in it, metres, left positive."""


@dataclass(frozen=True)
class Harsh:
    """A quantity of comfort out of bounds."""

    term: ClassVar[str] = "comfort"
    quantity: str
    """Of ``COMFORT_QUANTITIES``."""
    value: float
    bound: float
    """The extreme value and the bound that it exceeds."""
    seconds: float
    """When; negative: before the plan begins (score v2 counts the way here as well)."""


@dataclass(frozen=True)
class Slow:
    """Less progress than the better of plan and reference."""

    term: ClassVar[str] = "ep"
    metres: float
    """Along the route."""
    factor: float
    """v1 multiplies the plan's metres by its multiplicative terms before comparing (v2: always 1 here)."""
    best: float
    """Metres that would be full progress; 0 where both come to nothing."""
    reference: float
    """The reference's metres."""


Fact = Collision | OffRoad | WrongWay | RedLight | TooClose | OffCentre | Harsh | Slow


@dataclass(frozen=True)
class Explanation:
    """A plan's scores and what explains each that is below 1."""

    scores: PDMScores
    """[1, 1], with driven states."""
    facts: tuple[Fact, ...]
    """In the order nc, dac, ddc, tlc, ttc, lk, comfort, ep."""


def explain(scene: Scene, plan: npt.ArrayLike, version: Version = "v1", traffic: Traffic = "log_replay") -> Explanation:
    """Why ``plan`` [8, 3] (ego frame) has not got all points in ``scene``.

    Raises PlanError or SceneError where there is no score to be explained.
    """
    array = np.asarray(plan, dtype=np.float64)
    if array.ndim != 2:
        raise PlanError(f"one plan [8, 3] is explained at a time, got shape {array.shape}")
    ready = prepare(scene)
    scores = score(ready, array[None], version, states=True, traffic=traffic)
    driven = _Driven(scene, ready, array[None], version, traffic)
    facts: list[Fact] = []
    if scores.nc[0, 0] < 1.0:
        facts += driven.collisions()
    if scores.dac[0, 0] < 1.0:
        facts.append(driven.off_road())
    if scores.ddc[0, 0] < 1.0:
        facts.append(driven.wrong_way())
    if scores.tlc is not None and scores.tlc[0, 0] < 1.0:
        facts += driven.red_lights()
    if scores.ttc[0, 0] < 1.0:
        facts += driven.too_close()
    if scores.lk is not None and scores.lk[0, 0] < 1.0:
        facts.append(driven.off_centre())
    if scores.comfort[0, 0] < 1.0:
        facts += driven.harsh()
    if scores.ep[0, 0] < 1.0:
        facts.append(_slow(scores))
    return Explanation(scores, tuple(facts))


class _Driven:
    """One driven plan, and the scorer's kernels to question it."""

    def __init__(self, scene: Scene, ready: PreparedScene, plan: FloatArray, version: Version, traffic: Traffic) -> None:
        self.scene, self.ready, self.version = scene, ready, VERSIONS.index(version) + 1
        scratch = Scratch(1)
        rate_plans(ready, owned(plan), version, traffic, scratch, np.empty((TABLE_ROWS, 1)), np.empty(1))
        assert scratch.agents is not None
        self.states, self.boxes, self.flags, self.agents = scratch.states, scratch.boxes, scratch.flags, scratch.agents

    def collisions(self) -> list[Collision]:
        """All at-fault collisions, the first one first."""
        found = []
        for a in range(len(self.scene.tracks)):
            cost, at = self._contact(a, collision_kernel, self.flags)
            if cost < 1.0:
                step = int(at)
                how, place = self._fault(a, step, collision_kernel)
                found.append(Collision(*self._agent(a), step, how, place, self._pose(a, step), cost, self._speed(step)))
        return sorted(found, key=lambda fact: fact.step)

    def too_close(self) -> list[TooClose]:
        """The agents that the ego comes too close to first."""
        first = [self._contact(a, time_to_collision_kernel, self.flags)[1] for a in range(len(self.scene.tracks))]
        step = int(min(first))
        found = []
        for a in np.flatnonzero(np.array(first) == step):
            how, place = self._fault(int(a), step, time_to_collision_kernel)
            after = self._ahead(int(a), step)
            pose = self._pose(int(a), step + after)
            found.append(TooClose(*self._agent(int(a)), step, how, place, pose, after * DT, self._speed(step)))
        return found

    def off_road(self) -> OffRoad:
        """Where the drivable area is left."""
        steps = tuple(int(t) for t in np.flatnonzero(self.flags[0] & NON_DRIVABLE))
        x, y, c, s, _ = self.boxes[0, steps[0]]
        xs, ys = np.empty(4), np.empty(4)
        ego_corners(x, y, c, s, xs, ys)
        areas, covered = self.ready.areas, 0
        for p in np.flatnonzero(np.isin(areas.layer, _DRIVABLE)):
            covered |= inside(areas.shapes, areas.cells, areas.edges, int(p), xs, ys, 0b1111)
        out = [k for k in range(4) if not covered & (1 << k)]
        return OffRoad(steps[0], tuple(CORNERS[k] for k in out), np.stack([xs[out], ys[out]], axis=1), steps)

    def wrong_way(self) -> WrongWay:
        """The worst second against the driving direction."""
        metres, recent = np.empty(STEPS), np.empty(STEPS)
        wrong_way_kernel(self.boxes, self.flags, 0, self.version, metres, recent)
        return WrongWay(int(recent.argmax()), float(recent.max()), tuple(int(t) for t in np.flatnonzero(metres)))

    def red_lights(self) -> list[RedLight]:
        """All red lights that are run."""
        found, lights = [], self.ready.red_areas
        for r in range(len(lights.polygon)):
            step = next((t for t in np.flatnonzero(lights.red[r]) if self._runs(lights, r, int(t))), None)
            if step is not None:
                p = int(lights.polygon[r])
                found.append(RedLight(self.scene.polygons.ids[p], p, int(step)))
        return sorted(found, key=lambda fact: fact.step)

    def off_centre(self) -> OffCentre:
        """The stretch that is too long too far from the centre line."""
        kept = np.empty(STEPS)
        # a plan that stood still at a step's position for all steps would lose its point exactly if that step counts
        standing = np.ascontiguousarray(np.repeat(self.boxes[0][:, None], STEPS, axis=1))
        lane_keeping_kernel(standing, np.zeros((STEPS, STEPS), np.uint8), self.ready.line, kept)
        crossing = (self.flags[0] & CENTER_IN_INTERSECTION) != 0
        run: list[int] = []
        for t in range(STEPS):
            if crossing[t]:
                continue
            run = [] if kept[t] else [*run, t]
            if self._too_long(run):
                break
        offsets = [project(self.scene.centerline, *self.boxes[0, t, [BOX_X, BOX_Y]])[1] for t in run]
        return OffCentre(run[0], run[-1], float(max(offsets, key=abs)))

    def harsh(self) -> list[Harsh]:
        """All quantities of comfort that leave their bounds, each at its worst."""
        past, _, lever, operator = comfort_terms(self.ready, self.version)
        before = len(past)
        column, smooth, out = (np.empty(before + STEPS) for _ in range(3))
        found = []
        for kind, (low, high) in enumerate(COMFORT_BOUNDS):
            comfort_quantity_kernel(kind, self.states[0], past, operator, lever, column, smooth, out)
            if low < out.min() and out.max() < high:
                continue
            at = int(out.argmin()) if low - out.min() > out.max() - high else int(out.argmax())
            bound = float(low) if low - out.min() > out.max() - high else float(high)
            seconds = (at - before if at >= before else at - before - 1) * DT  # the sample at -0.1 s is left out officially
            found.append(Harsh(COMFORT_QUANTITIES[kind], float(out[at]), bound, seconds))
        return found

    def _contact(
        self, a: int, kernel: Callable[..., None], flags: npt.NDArray[np.uint8], only_at: int | None = None
    ) -> tuple[float, float]:
        """(sub-score, first step) that a collision kernel gives for agent ``a`` alone, there at all or ``only_at`` a step."""
        alone = Agents(*(column[a : a + 1].copy() for column in self.agents))  # type: ignore[arg-type]  # two dtypes
        if only_at is not None:
            here = alone.boxes[0, only_at, 0]
            alone.boxes[0, :, 0] = np.nan
            alone.boxes[0, only_at, 0] = here
        value, at = np.empty(1), np.empty(1)
        kernel(self.states, self.boxes, flags, alone, self.version, value, at)
        return float(value[0]), float(at[0])

    def _fault(self, a: int, step: int, kernel: Callable[..., None]) -> tuple[str, str]:
        """How a contact is the ego's fault: what would have to be otherwise for it not to be."""
        if kernel is collision_kernel and self.agents.stopped[a]:
            return "stopped", ""
        if self._contact(a, kernel, np.zeros_like(self.flags))[1] == step:
            return "front", ""
        flags = int(self.flags[0, step])
        if flags & NON_DRIVABLE:
            return "lateral", "off the drivable area"
        return "lateral", "in several lanes" if flags & MULTIPLE_LANES else "in an intersection"

    def _ahead(self, a: int, step: int) -> int:
        """Steps from ``step`` until the ego, at constant velocity, meets agent ``a``."""
        for k in range(TTC_OFFSETS):
            at = step + k * TTC_STRIDE
            if self._contact(a, time_to_collision_kernel, self.flags, only_at=at)[1] == step:
                return k * TTC_STRIDE
        raise AssertionError("the time-to-collision kernel met an agent that it does not meet at any of its offsets")

    def _too_long(self, run: list[int]) -> bool:
        """Whether steps off the centre line, in a row, are enough to lose the lane."""
        flags = np.full((1, STEPS), CENTER_IN_INTERSECTION, np.uint8)  # steps in intersections do not count
        flags[0, run] = 0
        kept = np.empty(1)
        lane_keeping_kernel(self.boxes, flags, self.ready.line, kept)
        return bool(kept[0] == 0.0)

    def _runs(self, lights: RedAreas, r: int, t: int) -> bool:
        """Whether the ego is on the connector of light ``r`` at step ``t``."""
        begin, end = lights.offsets[r], lights.offsets[r + 1]
        red = np.zeros((1, lights.red.shape[1]), np.bool_)
        red[0, t] = True
        alone = RedAreas(lights.vertices[begin:end].copy(), np.array([0, end - begin]), lights.polygon[r : r + 1].copy(), red)
        value = np.empty(1)
        red_light_kernel(self.boxes, self.ready.areas, alone, value)
        return bool(value[0] == 0.0)

    def _agent(self, a: int) -> tuple[str, int, str]:
        tracks = self.scene.tracks
        return tracks.ids[a], a, AGENT_KINDS[tracks.kind[a]]

    def _pose(self, a: int, step: int) -> tuple[float, float, float]:
        x, y, c, s = self.agents.boxes[a, step].tolist()
        return x, y, math.atan2(s, c)

    def _speed(self, step: int) -> float:
        return float(self.boxes[0, step, BOX_SPEED])


def _slow(scores: PDMScores) -> Slow:
    metres, mult = float(scores.progress_raw[0, 0]), float(scores.mult[0, 0])
    reference, ref_mult = float(np.ravel(scores.ref_progress_raw)[0]), float(np.ravel(scores.ref_mult)[0])
    return Slow(metres, mult if scores.version == "v1" else 1.0, max(metres * mult, reference * ref_mult), reference)
