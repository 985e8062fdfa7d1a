"""How fast the closed loop's world is: environment ticks a second on one core, memory, and what a snapshot costs.

Run ``python benchmarks/simulator.py``. 64 environments in one town, each with 20 other vehicles on the road; CPU time of the
calling thread, after compilation; the world alone (plans given), then with the rule-based driver that makes the plans. Where
highway-env is installed (``pip install highway-env``), the ratio to its steps a second in the same run, with as many vehicles.
Results go to benchmarks/results/simulator.json.
"""

from __future__ import annotations

import importlib.util
import json
import platform
import time
from pathlib import Path

import numba
import numpy as np
from pdm_scoring import cpu_name  # beside this file

from vla_models.scenes.bench2drive.made_routes import generate_route
from vla_models.simulation.baselines import blind_follower, rule_based
from vla_models.simulation.episodes import stage
from vla_models.simulation.world import World

HERE = Path(__file__).parent
TOWN = "Town03"
COUNT = 64
OTHERS = 20
DECISIONS = 40
TICKS = 20


def crowded(count: int) -> World:
    """A world of ``count`` environments in which the road is full: ``OTHERS`` vehicles drive around each ego."""
    kinds = ("PriorityAtJunction", "T_Junction", "VanillaSignalizedTurnEncounterRedLight", "ControlLoss")
    routes = [generate_route(TOWN, kind, seed) for kind in kinds for seed in range(4)]
    episodes = [stage(routes[n % len(routes)], n, vehicles=OTHERS, density=3.0) for n in range(count)]
    return World(episodes)


def ticks_a_second(world: World, policy: object) -> tuple[float, float]:
    """(environment ticks a second of CPU time, vehicles present on the average); the ego creeps, so that no episode ends."""
    ticks, seconds, present = 0, 0.0, []
    plans = 0.1 * blind_follower(world, 2.0)
    for _ in range(DECISIONS):
        before = int(world.ticks.sum())
        start = time.thread_time()
        if policy is not None:
            plans = policy(world)  # type: ignore[operator]
        world.step(plans, dt=0.5, ticks=TICKS)
        seconds += time.thread_time() - start
        ticks += int(world.ticks.sum()) - before
        present.append(np.mean([len(world.present(n)[0]) - 1 for n in range(len(world))]))
    return ticks / seconds, float(np.mean(present))


def highway_steps() -> float | None:
    """highway-env's steps a second with as many vehicles, or None where it is not installed."""
    if importlib.util.find_spec("highway_env") is None:
        return None
    import gymnasium
    import highway_env

    gymnasium.register_envs(highway_env)
    config = {"vehicles_count": OTHERS, "simulation_frequency": 15, "policy_frequency": 15, "duration": 10_000}
    environment = gymnasium.make("highway-v0", config=config)
    environment.reset(seed=0)
    start = time.thread_time()
    for _ in range(150):
        if environment.step(1)[2]:
            environment.reset(seed=0)
    return 150 / (time.thread_time() - start)


def main() -> None:
    """Measure, print, write."""
    start = time.thread_time()
    world = crowded(COUNT)
    staging = (time.thread_time() - start) / COUNT
    for _ in range(3):  # compile
        world.step(0.1 * blind_follower(world, 2.0), ticks=2)
        rule_based(world)
    state = world.snapshot()
    alone, present = ticks_a_second(world, None)
    world.restore(state)
    driven, _ = ticks_a_second(world, rule_based)
    start = time.thread_time()
    for _ in range(20):
        world.restore(world.snapshot([0]), [1])
    branch = (time.thread_time() - start) / 20
    highway = highway_steps()
    results = {
        "machine": {"cpu": cpu_name(), "python": platform.python_version(), "numba": numba.__version__},
        "environments": COUNT,
        "other_vehicles": round(present, 1),
        "ticks_per_second": round(alone),
        "ticks_per_second_with_rule_based_driver": round(driven),
        "memory_mb": round(world.nbytes / 1e6, 1),
        "staging_ms": round(1e3 * staging, 1),
        "branch_us": round(1e6 * branch),
        "highway_env_steps_per_second": None if highway is None else round(highway, 1),
        "ratio_to_highway_env": None if highway is None else round(alone / highway),
    }
    print(f"{COUNT} environments in {TOWN}, {present:.1f} other vehicles in each, one core\n")
    print(f"world alone            {alone:>10,.0f} environment ticks/s (20 Hz: {alone / 20 / COUNT:,.0f} times real time each)")
    print(f"with rule-based driver {driven:>10,.0f} environment ticks/s, a decision every {TICKS} ticks")
    print(f"memory                 {world.nbytes / 1e6:>10.1f} MB for all tables")
    print(f"staging an episode     {1e3 * staging:>10.1f} ms (compilation included the first time)")
    print(f"branch (copy a state)  {1e6 * branch:>10.0f} us")
    if highway is None:
        print("highway-env            not installed: no ratio")
    else:
        print(f"highway-env            {highway:>10.1f} steps/s with {OTHERS} vehicles: {alone / highway:,.0f} times as fast")
    target = HERE / "results" / "simulator.json"
    target.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
