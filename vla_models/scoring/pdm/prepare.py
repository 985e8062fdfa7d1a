"""What the kernels need of a scene, computed once: ``PreparedScene``.

Preparing takes a fraction of a millisecond. ``score`` prepares the scenes it is given and remembers the latest few, by
identity; whoever scores the same scenes for a long time may hold on to ``prepare(scene)`` itself.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vla_models.errors import SceneError
from vla_models.scenes.scene import PLAN_DT, PLAN_STEPS, AgentPaths, Scene, Tracks
from vla_models.scoring.pdm.area import Areas, RedAreas, prepare_areas, prepare_red_areas
from vla_models.scoring.pdm.check import scene_problems
from vla_models.scoring.pdm.collide import Agents, prepare_agents
from vla_models.scoring.pdm.comfort import past_states
from vla_models.scoring.pdm.progress import Line, prepare_line
from vla_models.scoring.pdm.track import owned, reference_poses, reference_time_table, time_table

FloatArray = npt.NDArray[np.float64]

_KEPT: Final = 256
"""Prepared scenes that are remembered (about 0.3 MB each)."""


@dataclass(frozen=True)
class AbsentScene:
    """Takes the place of a scene that could not be found or read, so that the rest of a batch can be scored."""

    token: str
    problem: str
    """What went wrong and what to do, as a sentence."""


@dataclass(frozen=True)
class PreparedScene:
    """Columnar form of one scene; every array is C-contiguous."""

    token: str
    ego: FloatArray
    """[11]"""
    interval: npt.NDArray[np.int64]
    fraction: FloatArray
    """[41] each: ``track.time_table`` of the plans."""
    reference_poses: FloatArray
    """[1, 41, 3] the reference at the official sample times."""
    past: FloatArray | None
    """[B, 11] states before the driven ones (history comfort), or None where the scene has no history."""
    agents: Agents
    areas: Areas
    red_areas: RedAreas
    line: Line
    human: FloatArray | None
    """[1, 8, 3] the human's plan, or None."""
    tracks: Tracks
    agent_paths: AgentPaths | None
    """What other kinds of traffic are made of."""
    memo: dict[str, Any] = field(default_factory=dict)
    """What ``score`` has worked out when it was first needed: the reference's terms and other kinds of traffic."""


def prepare(scene: Scene) -> PreparedScene:
    """``scene`` as the kernels want it. SceneError, saying all that it lacks, if it cannot be scored."""
    problems = scene_problems(scene)
    if problems:
        raise SceneError(f"scene {scene.token!r} " + "; it ".join(problems))
    assert scene.reference is not None
    ego = owned(scene.ego)
    interval, fraction = time_table(scene.time_us, PLAN_STEPS, PLAN_DT)
    reference = owned(scene.reference)
    poses = reference_poses(reference, *reference_time_table(scene.time_us, len(reference)))
    return PreparedScene(
        token=scene.token,
        ego=ego,
        interval=interval,
        fraction=fraction,
        reference_poses=poses[None],
        past=None if scene.ego_history is None else past_states(scene.ego_history, scene.ego_history_us),
        agents=prepare_agents(scene.tracks, scene.ego),
        areas=prepare_areas(scene),
        red_areas=prepare_red_areas(scene),
        line=prepare_line(scene),
        human=None if scene.human is None else owned(scene.human)[None],
        tracks=scene.tracks,
        agent_paths=scene.agent_paths,
    )


class _Memory:
    """The latest prepared scenes by the scene's identity; forgets a scene that died (its id may be used again)."""

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._lock = threading.Lock()
        self._entries: OrderedDict[int, tuple[weakref.ref[Scene], PreparedScene]] = OrderedDict()

    def get(self, scene: Scene) -> PreparedScene:
        key = id(scene)
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None and entry[0]() is scene:
                self._entries.move_to_end(key)
                return entry[1]
        prepared = prepare(scene)
        with self._lock:
            self._entries[key] = (weakref.ref(scene), prepared)
            while len(self._entries) > self._kept:
                self._entries.popitem(last=False)
        return prepared


_MEMORY: Final = _Memory(_KEPT)


def prepared(scene: Scene | PreparedScene | AbsentScene) -> PreparedScene:
    """``scene`` prepared, from memory where it was prepared lately. SceneError where it cannot be scored or is absent."""
    if isinstance(scene, AbsentScene):
        raise SceneError(scene.problem)
    return scene if isinstance(scene, PreparedScene) else _MEMORY.get(scene)
