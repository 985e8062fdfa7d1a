"""A route driven once and played again: the same plans in the same world are the same bits, so nothing else need be kept."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vla_models.envs.bench2drive import Bench2DriveEnv
from vla_models.errors import SceneError
from vla_models.geometry import from_frame
from vla_models.scenes.bench2drive.routes import Route
from vla_models.scenes.lanes import FloatArray
from vla_models.scoring.bench2drive.results import Record
from vla_models.simulation.world import World
from vla_models.training.evaluate_routes import decider

if TYPE_CHECKING:
    from vla_models.interface import VLAInterface


@dataclass(frozen=True)
class Drive:
    """One episode of a ``Bench2DriveEnv``."""

    driver: str
    """Who drove, for people."""
    route: Route
    plans: npt.NDArray[np.float32]
    """[D, T, 3] the plan of each decision, ego frame."""
    planned: npt.NDArray[np.bool_]
    """[D] False where an answer was no plan, and the car braked."""
    record: Record
    """The official route record."""
    ticks: int
    events: FloatArray
    """[K, 6] ``scoring.bench2drive.events.EVENT_COLUMNS``."""


@dataclass(frozen=True)
class Shot:
    """A moment of a drive. ``world`` goes on when the next one is asked for."""

    world: World
    plan: FloatArray | None
    """[T + 1, 2] the plan in force in the town's frame, from where it was made; None where an answer was none."""
    tick: int


def drive_route(policy: VLAInterface | str, env: Bench2DriveEnv, route: int | str, driver: str = "") -> Drive:
    """Drive one route of ``env``, which has one row, by its index or id.

    policy: as for ``evaluate_routes``. Raises SceneError if the world fails, or if there is no such route.
    """
    decide = decider(policy)
    row = np.zeros(1, dtype=np.int64)
    plans, planned = list[npt.NDArray[np.float32]](), list[bool]()
    observation, info = env.reset(options={"scenes": [route]})
    name = info["scene"][0]
    over = False
    while not over:
        found, good = decide(env, observation, row)
        plans.append(np.asarray(found[0], dtype=np.float32))
        planned.append(bool(good[0]))
        observation, _, terminated, truncated, info = env.step(plans[-1][None])
        if not info["valid"][0]:
            raise SceneError(f"the world of route {name!r} failed after {env.world.ticks[0]} ticks: a number is not finite")
        over = bool(terminated[0] or truncated[0])
    return Drive(
        driver=driver or (policy if isinstance(policy, str) else type(policy).__name__),
        route=env.routes[env.tokens.index(name)],
        plans=np.stack(plans),
        planned=np.array(planned),
        record=info["results"][0],
        ticks=int(env.world.ticks[0]),
        events=env.record(0).events,
    )


def play(env: Bench2DriveEnv, drive: Drive, ticks: Iterable[int]) -> Iterator[Shot]:
    """The drive again, in the row of ``env``: its moments after ``ticks`` ticks (ascending, up to ``drive.ticks``)."""
    env.reset(options={"scenes": [drive.route.id]})
    world = env.world
    wanted = deque(ticks)
    for k, plan in enumerate(drive.plans):
        start, before, pose = k * env.ticks, world.snapshot(), world.ego[0, :3]
        line = from_frame(np.concatenate([np.zeros((1, 2)), plan[:, :2]]), pose) if drive.planned[k] else None
        while wanted and wanted[0] <= start + env.ticks:
            world.restore(before)  # a plan is in force from where it was made: drive it anew, as far as is wanted
            if wanted[0] > start:
                world.step(plan[None], dt=env.plan_dt, ticks=wanted[0] - start)
            yield Shot(world, line, wanted.popleft())
        if not wanted:
            return
        world.restore(before)
        world.step(plan[None], dt=env.plan_dt, ticks=env.ticks)
