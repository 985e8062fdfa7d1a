"""NavSim-like scenes on the CARLA towns' roads, all from a seed: ``generate(ProceduralSpec(("Town01",), count=100, seed=0))``.

A candidate is a place in a town, a cast (``situations``), a traffic simulation with a human-like ego (``simulation.traffic``)
and a moment cut out of it (``cutting``). Candidates are filtered the way NavSim filtered navtrain and navtest:

- a scene that a constant-velocity plan solves (PDMS v1 above ``TRIVIAL``) is dropped, but for a share of ``KEEP_TRIVIAL``:
  a planner must also learn when there is nothing to do;
- a scene in which both the recorded human and PDM-Closed do badly (PDMS v1 below ``SOUND``) is dropped;
- a scene in which one of them does badly is kept with probability ``KEEP_HARD``: NavSim's test set has such scenes (PDM-Closed
  has 0.89 there, people 0.95), and without them everything that its tracker finds hard, like tight turns, would be missing.

Over 1,000 scenes this gives constant velocity about 0.29, the human 0.94 and PDM-Closed 0.94 (``benchmarks/scenes.py``);
NavSim's navtest has 0.21, 0.95 and 0.89.

Scene i depends on the spec without ``count`` and on i alone: the first 100 scenes of 200 are those of 100, and a scene's token
names the same scene everywhere. The other agents follow the recorded log; they do not react to a plan.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from vla_models.errors import SceneError, did_you_mean
from vla_models.files import cache_dir, code_hash
from vla_models.scenes.cutting import cut_scene
from vla_models.scenes.routes import road_net
from vla_models.scenes.scene import Scene
from vla_models.scenes.signals import light_states, stop_points
from vla_models.scenes.situations import SITUATIONS, set_stage
from vla_models.scenes.stage import Unsuitable
from vla_models.scenes.store import SceneStore, write_scenes
from vla_models.scenes.surfaces import town_surfaces
from vla_models.simulation.traffic import TICK, simulate
from vla_models.workers import end_with_parent

if TYPE_CHECKING:
    from vla_models.render.camera import CameraRenderer, CameraSpec

KINDS: Final = tuple(SITUATIONS)
"""Kinds of scenes."""
TRIVIAL: Final = 0.8
"""Constant velocity should score at most this (NavSim's own bound) …"""
KEEP_TRIVIAL: Final = 0.2
"""… where it scores more, the scene is kept with this probability."""
SOUND: Final = 0.8
"""The human (NavSim's own rule) and PDM-Closed should score at least this …"""
KEEP_HARD: Final = 0.25
"""… where exactly one of the two does not, the scene is kept with this probability."""
GENERATOR_VERSION: Final = 1
"""Part of every token; raised when scenes of the same spec change their meaning."""

_STEPS = 125
_ATTEMPTS = 400
_ATTEMPTS_PER_KIND = 40
_LIGHT_RADIUS = 150.0
_SCENES_PER_WORKER = 100  # a worker takes some seconds to start


@dataclass(frozen=True)
class ProceduralSpec:
    """What to generate. Validated when made; two equal specs give the same scenes, bit for bit."""

    towns: tuple[str, ...]
    """CARLA towns (``towns.TOWNS``) from which places are drawn, each equally often."""
    count: int
    """Number of scenes."""
    seed: int
    """Any non-negative number; another seed gives other scenes."""
    kinds: tuple[str, ...] | None = None
    """Kinds to draw from (of ``KINDS``), None for all; their shares are those of ``situations.SITUATIONS``."""
    camera: CameraSpec | None = None
    """The camera whose image each scene gets, None for none. It does not change anything else about a scene."""

    def __post_init__(self) -> None:
        from vla_models.scenes.towns import TOWNS

        object.__setattr__(self, "towns", tuple(self.towns))
        object.__setattr__(self, "kinds", None if self.kinds is None else tuple(self.kinds))
        if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 1:
            raise SceneError(f"cannot generate {self.count!r} scenes: an empty scene set is of no use; ask for 1 or more")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise SceneError(f"the seed of procedural scenes must be a whole number from 0, got {self.seed!r}")
        for what, names, known in (("town", self.towns, TOWNS), ("kind of scene", self.kinds, KINDS)):
            if names is not None and not names:
                raise SceneError(f"no {what} to generate scenes from; known: {', '.join(known)}")
            for name in names or ():
                if name not in known:
                    raise SceneError(f"there is no {what} {name!r}; {did_you_mean(name, known)}")


@dataclass(frozen=True)
class Candidate:
    """A scene with what the filter looks at: PDMS v1 of three plans."""

    scene: Scene
    constant_velocity: float
    human: float
    pdm_closed: float

    def accepted(self, rng: np.random.Generator) -> bool:
        """Whether the filter lets the scene pass; chance decides for the trivial and the hard ones."""
        trivial, hard = rng.random(2)
        failed = (self.human < SOUND) + (self.pdm_closed < SOUND)
        if self.constant_velocity > TRIVIAL and trivial >= KEEP_TRIVIAL:
            return False
        return failed == 0 or (failed == 1 and hard < KEEP_HARD)


def _identity(spec: ProceduralSpec) -> str:
    """What all scenes of a spec share and their tokens depend on."""
    return json.dumps([GENERATOR_VERSION, spec.towns, spec.seed, spec.kinds])


def _rng(spec: ProceduralSpec, index: int, attempt: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(spec.seed, spawn_key=(index, attempt))))


def draw_scene(kind: str, town: str, rng: np.random.Generator, token: str) -> Scene:
    """One unfiltered scene without reference and image. Raises ``stage.Unsuitable`` where the draw does not work out."""
    net = road_net(town)
    stage = set_stage(kind, net, rng)
    paths, agents = stage.finish()
    lights = light_states(net, stage.at(stage.target)[:2], _LIGHT_RADIUS, _STEPS, TICK, rng, stage.light, stage.yellow_at)
    stop_at, stop_light = stop_points(net, paths, lights[0])
    motion = simulate(paths.pose, paths.limit, paths.length, agents, _STEPS, stop_at, stop_light, lights[1])
    return cut_scene(stage, paths, agents, motion, lights, town_surfaces(town), token, kind)


def judge(scene: Scene) -> Candidate:
    """Plan the reference, and score constant velocity, the human and PDM-Closed."""
    from vla_models.scoring.pdm import score
    from vla_models.scoring.pdm.baselines import constant_velocity_plan
    from vla_models.scoring.pdm.closed import plan_pdm_closed, reference_plan

    scene = scene.with_(reference=plan_pdm_closed(scene))
    plans = np.stack([constant_velocity_plan(scene), np.asarray(scene.human), reference_plan(scene)])
    cv, human, closed = score(scene, plans, version="v1").score[0]
    return Candidate(scene, float(cv), float(human), float(closed))


def generate_scene(spec: ProceduralSpec, index: int) -> Scene:
    """Scene ``index`` of a spec (without its image)."""
    kinds = spec.kinds or KINDS
    share = np.array([SITUATIONS[kind][1] for kind in kinds])
    token = hashlib.sha256(f"{_identity(spec)}/{index}".encode()).hexdigest()[:16]
    kind = kinds[0]
    for attempt in range(_ATTEMPTS):
        rng = _rng(spec, index, attempt)
        if attempt % _ATTEMPTS_PER_KIND == 0:
            kind = kinds[int(rng.choice(len(kinds), p=share / share.sum()))]
        town = spec.towns[int(rng.integers(len(spec.towns)))]
        try:
            candidate = judge(draw_scene(kind, town, rng, token))
        except Unsuitable:
            continue
        if candidate.accepted(rng):
            return candidate.scene
    raise SceneError(
        f"no scene of {' or '.join(kinds)} could be made in {', '.join(spec.towns)} in {_ATTEMPTS} attempts "
        f"(scene {index} of seed {spec.seed}); give more towns or kinds"
    )


@lru_cache(maxsize=1)
def _renderer(camera: CameraSpec) -> CameraRenderer:
    """This process's renderer; panda3d's engine is made once and kept."""
    from vla_models.render.camera import CameraRenderer

    return CameraRenderer(camera)


def _finished(spec: ProceduralSpec, index: int) -> Scene:
    """Scene ``index`` of a spec, its image included."""
    scene = generate_scene(spec, index)
    return scene if spec.camera is None else scene.with_(images={spec.camera.name: _renderer(spec.camera).render(scene)})


def _scenes(spec: ProceduralSpec, workers: int, progress: Callable[[int, int], None] | None) -> Iterator[Scene]:
    """All scenes of a spec in order; several processes where that is worth their start."""
    workers = min(workers, spec.count // _SCENES_PER_WORKER)
    with ExitStack() as stack:
        made: Iterable[Scene]
        if workers > 1:
            # spawn: neither panda3d nor numba's threads like to be forked
            pool = stack.enter_context(ProcessPoolExecutor(workers, get_context("spawn"), end_with_parent))
            stack.callback(pool.shutdown, wait=False, cancel_futures=True)  # an interrupted generation does not run on
            made = pool.map(partial(_finished, spec), range(spec.count), chunksize=8)
        else:
            made = map(partial(_finished, spec), range(spec.count))
        for done, scene in enumerate(made, start=1):
            yield scene
            if progress is not None:
                progress(done, spec.count)


@lru_cache(maxsize=1)
def source_hash() -> str:
    """Hash of the code that shapes scenes: another generator, planner or renderer never reads an old cache."""
    root = Path(__file__).parent.parent
    files = [root / "geometry.py", *(root / "simulation").glob("*.py"), *(root / "render").glob("*.py")]
    files += [*(root / "scenes").glob("*.py"), *(root / "scoring" / "pdm").glob("*.py")]
    return code_hash(files)


def store_path(spec: ProceduralSpec) -> Path:
    """Where ``generate`` keeps this spec's scenes."""
    what = json.dumps([_identity(spec), spec.count, None if spec.camera is None else asdict(spec.camera), source_hash()])
    return cache_dir() / "scenes" / f"{hashlib.sha256(what.encode()).hexdigest()[:20]}.arrow"


def generate(spec: ProceduralSpec, progress: Callable[[int, int], None] | None = None, workers: int = 1) -> SceneStore:
    """The scenes of ``spec``, from the cache or made now; ``progress(done, count)`` is called after each new one.

    ``workers`` processes share the work; the scenes do not depend on it.

    Raises ``SceneError`` where a kind cannot be found in the towns. A generation that is killed leaves nothing behind.
    """
    path = store_path(spec)
    if path.exists():
        try:
            return SceneStore.open(path)
        except SceneError:
            path.unlink(missing_ok=True)  # damaged: made again below
    provenance = {
        "generator": f"vla_models.scenes.procedural/{GENERATOR_VERSION}",
        "source": source_hash(),
        "spec": json.dumps(asdict(spec), sort_keys=True),
    }
    return write_scenes(path, _scenes(spec, workers, progress), provenance)
