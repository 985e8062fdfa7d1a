"""What the kernels need of a scene, computed once: ``PreparedScene``.

Preparing takes a fraction of a millisecond. ``score`` prepares the scenes it is given and remembers the latest few, by
identity; whoever scores the same scenes for a long time may hold on to ``prepare(scene)`` itself.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from vla_models.errors import SceneError
from vla_models.scenes.scene import PLAN_DT, PLAN_STEPS, TRACK_STEPS, Scene
from vla_models.scoring.pdm.area import Areas, RedAreas, prepare_areas, prepare_red_areas
from vla_models.scoring.pdm.collide import Agents, prepare_agents
from vla_models.scoring.pdm.comfort import past_states
from vla_models.scoring.pdm.progress import Line, prepare_line
from vla_models.scoring.pdm.track import owned, reference_poses, reference_time_table, time_table

FloatArray = npt.NDArray[np.float64]

_KEPT: Final = 256
"""Prepared scenes that are remembered (about 0.3 MB each)."""


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
    reference_terms: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Version -> the reference's (raw progress, multiplicative product), filled by ``score`` when first needed."""


def prepare(scene: Scene) -> PreparedScene:
    """``scene`` as the kernels want it. SceneError, naming the scene and what it lacks, if it cannot be scored."""
    _check(scene)
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
        agents=prepare_agents(scene),
        areas=prepare_areas(scene),
        red_areas=prepare_red_areas(scene),
        line=prepare_line(scene),
        human=None if scene.human is None else owned(scene.human)[None],
    )


def _check(scene: Scene) -> None:
    """SceneError for what would make a score meaningless."""
    name = f"scene {scene.token!r}"
    if scene.reference is None:
        raise SceneError(
            f"{name} has no reference, which normalises progress; make one with "
            "vla_models.scoring.pdm.closed.plan_pdm_closed(scene) and scene.with_(reference=...)"
        )
    if scene.reference.shape != (TRACK_STEPS, 3):
        raise SceneError(f"{name} has a reference of shape {scene.reference.shape}, expected ({TRACK_STEPS}, 3)")
    if len(scene.centerline) < 2:
        raise SceneError(f"{name} has a centre line of {len(scene.centerline)} points, at least 2 are needed")
    if scene.tracks.states.shape[1:] != (TRACK_STEPS, 5):
        raise SceneError(f"{name} has tracks of shape {scene.tracks.states.shape}, expected [A, {TRACK_STEPS}, 5]")
    for what, values in (
        ("ego", scene.ego), ("ego_history", scene.ego_history), ("reference", scene.reference), ("human", scene.human),
        ("centerline", scene.centerline), ("polygons", scene.polygons.vertices), ("tracks.size", scene.tracks.size),
    ):  # fmt: skip
        if values is not None and not np.isfinite(values).all():
            raise SceneError(f"{name} has numbers in {what!r} that are not finite")
    absent = np.isnan(scene.tracks.states[:, :, 0])
    if not np.isfinite(scene.tracks.states[~absent]).all():
        raise SceneError(f"{name} has track rows that are partly missing: an absent agent's row must be NaN throughout")


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


def prepared(scene: Scene | PreparedScene) -> PreparedScene:
    """``scene`` prepared, from memory where it was prepared lately."""
    return scene if isinstance(scene, PreparedScene) else _MEMORY.get(scene)
