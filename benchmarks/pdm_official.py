"""Scores ``pdm-scene/1`` scenes with the official NavSim code itself: what ours is compared with, in numbers and in speed.

Run by the interpreter of an environment in which navsim and nuplan-devkit can be imported (this file needs nothing of
vla_models), with the wanted version first on its path:

    PYTHONPATH=$NAVSIM_DEVKIT/navsim-v2.2:$NAVSIM_DEVKIT/nuplan-devkit $NAVSIM_PYTHON benchmarks/pdm_official.py v2 FOLDER

For every ``NAME.json.gz`` in FOLDER the plans ``NAME.npz["proposals"]`` [N, 8, 3] are scored as the pairs [PDM-Closed, plan],
and ``NAME.v1.npz`` or ``NAME.v2.npz`` is written: nc dac ddc ep ttc comfort|hc (v2 also tlc lk) mult score progress_raw
nc_idx ttc_idx [N], states [N, 41, 11], ego_areas [N, 41, 3], ref_progress_raw, ref_mult; v2 with a human also f_* (the human
filter's result).

All plans are scored in one call of the official scorer, and the progress of each pair is then worked out as its own
``_aggregate_pdm_scores`` does for two proposals; ``--pairs K`` also calls the official ``pdm_score`` for the first K plans and
compares. ``--times`` prints, as JSON, the milliseconds a plan of both ways.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from navsim.common.dataclasses import Trajectory
from navsim.evaluate.pdm_score import get_trajectory_as_array, pdm_score, transform_trajectory
from navsim.planning.metric_caching.metric_cache import MetricCache
from navsim.planning.simulation.planner.pdm_planner.observation.pdm_observation import PDMObservation
from navsim.planning.simulation.planner.pdm_planner.observation.pdm_occupancy_map import PDMDrivableMap
from navsim.planning.simulation.planner.pdm_planner.scoring.pdm_scorer import PDMScorer, PDMScorerConfig
from navsim.planning.simulation.planner.pdm_planner.simulation.pdm_simulator import PDMSimulator
from navsim.planning.simulation.planner.pdm_planner.utils.pdm_enums import MultiMetricIndex, WeightedMetricIndex
from navsim.planning.simulation.planner.pdm_planner.utils.pdm_path import PDMPath
from nuplan.common.actor_state.agent import Agent
from nuplan.common.actor_state.ego_state import EgoState
from nuplan.common.actor_state.oriented_box import OrientedBox
from nuplan.common.actor_state.scene_object import SceneObjectMetadata
from nuplan.common.actor_state.state_representation import StateSE2, StateVector2D, TimePoint
from nuplan.common.actor_state.static_object import StaticObject
from nuplan.common.actor_state.tracked_objects import TrackedObjects
from nuplan.common.actor_state.tracked_objects_types import AGENT_TYPES, TrackedObjectType
from nuplan.common.actor_state.vehicle_parameters import get_pacifica_parameters
from nuplan.common.maps.maps_datatypes import SemanticMapLayer, TrafficLightStatusData, TrafficLightStatusType
from nuplan.planning.simulation.observation.observation_type import DetectionsTracks
from nuplan.planning.simulation.trajectory.interpolated_trajectory import InterpolatedTrajectory
from nuplan.planning.simulation.trajectory.trajectory_sampling import TrajectorySampling
from shapely.geometry import Polygon

SAMPLING = TrajectorySampling(num_poses=40, interval_length=0.1)
PLAN_SAMPLING = TrajectorySampling(num_poses=8, interval_length=0.5)
LAYERS = {"carpark": SemanticMapLayer.CARPARK_AREA, "drivable_area": SemanticMapLayer.DRIVABLE_AREA}


def ego_state(x, y, heading, vx, vy, ax, ay, steering, steering_rate, yaw_rate, yaw_acc, time_us) -> EgoState:  # type: ignore[no-untyped-def]
    """The official ego state at the rear axle."""
    return EgoState.build_from_rear_axle(
        rear_axle_pose=StateSE2(x, y, heading),
        rear_axle_velocity_2d=StateVector2D(vx, vy),
        rear_axle_acceleration_2d=StateVector2D(ax, ay),
        tire_steering_angle=steering,
        time_point=TimePoint(time_us),
        vehicle_parameters=get_pacifica_parameters(),
        is_in_auto_mode=True,
        angular_vel=yaw_rate,
        angular_accel=yaw_acc,
        tire_steering_rate=steering_rate,
    )


def tracked_objects(scene: dict[str, Any], step: int) -> DetectionsTracks:
    """The agents that are there at ``step``."""
    found = []
    for track in scene["tracks"]:
        state = track["states"][step]
        if state is None:
            continue
        kind = TrackedObjectType[track["type"].upper()]
        x, y, heading, vx, vy = state
        box = OrientedBox(StateSE2(x, y, heading), track["length"], track["width"], track["height"])
        metadata = SceneObjectMetadata(scene["time_us"], track["id"], None, track["id"], track["type"])
        if kind in AGENT_TYPES:
            found.append(Agent(kind, box, StateVector2D(vx, vy), metadata))
        else:
            found.append(StaticObject(kind, box, metadata))
    return DetectionsTracks(TrackedObjects(found))


def metric_cache(scene: dict[str, Any], version: str) -> MetricCache:
    """The official metric cache that holds what ``scene`` holds."""
    start = scene["time_us"]
    ego = ego_state(*scene["ego"].values(), start)
    polygons = [Polygon(row["polygon"]) for row in scene["map"]]
    layers = [LAYERS.get(row["type"]) or SemanticMapLayer[row["type"].upper()] for row in scene["map"]]
    tokens = [row["id"] for row in scene["map"]]
    lanes = (SemanticMapLayer.LANE, SemanticMapLayer.LANE_CONNECTOR)
    route = {
        token: SimpleNamespace(id=token, polygon=polygon)
        for token, polygon, layer, row in zip(tokens, polygons, layers, scene["map"], strict=True)
        if row["on_route"] and layer in lanes
    }
    reference = InterpolatedTrajectory(
        [ego_state(*pose, *[0.0] * 8, start + 100_000 * k) for k, pose in enumerate(scene["reference"]["poses"])]
    )
    shared = {
        "file_path": Path(),
        "trajectory": reference,
        "ego_state": ego,
        "centerline": PDMPath([StateSE2(*pose) for pose in scene["centerline"]]),
        "route_lane_ids": list(route),
        "drivable_area_map": PDMDrivableMap(tokens, layers, np.array(polygons, dtype=object)),
    }
    if version == "v1":
        observation = PDMObservation(TrajectorySampling(num_poses=50, interval_length=0.1), SAMPLING, 100, 1)
        observation.update_detections_tracks([tracked_objects(scene, t) for t in range(51)])
        return MetricCache(observation=observation, **shared)

    from navsim.common.enums import SceneFrameType

    tracks = [tracked_objects(scene, t) for t in range(41)]
    red = TrafficLightStatusType.RED
    lights = [
        [TrafficLightStatusData(red, light["id"], start) for light in scene["red_lights"] if light["steps"][t]]
        for t in range(41)
    ]
    observation = PDMObservation(SAMPLING, SAMPLING, 100, 1, extend_observation_for_ttc=False)
    observation.update_detections_tracks(tracks, lights, route, compute_traffic_light_data=True)
    past = scene["ego_history"]
    if past is not None:
        first = start - 500_000 * (len(past) - 1)
        past = InterpolatedTrajectory([ego_state(*row, first + 500_000 * k) for k, row in enumerate(past)])
    human = scene["human"]
    return MetricCache(
        observation=observation,
        log_name="log",
        timepoint=TimePoint(start),
        scene_type=SceneFrameType.SYNTHETIC if human is None else SceneFrameType.ORIGINAL,
        human_trajectory=None if human is None else Trajectory(np.array(human), PLAN_SAMPLING),
        past_human_trajectory=past,
        past_detections_tracks=[],
        current_tracked_objects=[tracks[0]],
        future_tracked_objects=tracks[1:],
        map_parameters=None,
        **shared,
    )


class Official:
    """The official scorer and simulator of one version."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.simulator = PDMSimulator(SAMPLING)
        self.scorer = PDMScorer(SAMPLING, PDMScorerConfig())
        if version == "v2":
            from navsim.traffic_agents_policies.log_replay_traffic_agents import LogReplayTrafficAgents

            self.traffic = LogReplayTrafficAgents(SAMPLING)
            self.filtering = PDMScorer(SAMPLING, PDMScorerConfig(human_penalty_filter=True))

    def batch(self, cache: MetricCache, plans: np.ndarray) -> np.ndarray:
        """All ``plans`` and the reference in one call, the reference first; returns the driven states."""
        start = cache.ego_state.time_point
        trajectories = [cache.trajectory]
        trajectories += [transform_trajectory(Trajectory(plan, PLAN_SAMPLING), cache.ego_state) for plan in plans]
        states = self.simulator.simulate_proposals(
            np.stack([get_trajectory_as_array(t, SAMPLING, start) for t in trajectories]), cache.ego_state
        )
        rest = [cache.observation, cache.centerline, cache.route_lane_ids, cache.drivable_area_map]
        if self.version == "v2":
            rest += [None, self.traffic.simulate_environment(states[1], cache), cache.past_human_trajectory]
        self.scorer.score_proposals(states, *rest)
        return states

    def pair(self, cache: MetricCache, plan: np.ndarray, filtered: bool = False) -> dict[str, float]:
        """The official ``pdm_score`` of one plan."""
        trajectory = Trajectory(plan, PLAN_SAMPLING)
        if self.version == "v1":
            result = vars(pdm_score(cache, trajectory, SAMPLING, self.simulator, self.scorer))
        else:
            scorer = self.filtering if filtered else self.scorer
            frame, _ = pdm_score(cache, trajectory, SAMPLING, self.simulator, scorer, self.traffic)
            result = frame.iloc[0].to_dict()
        names = {
            "no_at_fault_collisions": "nc", "drivable_area_compliance": "dac", "driving_direction_compliance": "ddc",
            "traffic_light_compliance": "tlc", "ego_progress": "ep", "time_to_collision_within_bound": "ttc",
            "lane_keeping": "lk", "history_comfort": "hc", "comfort": "comfort", "multiplicative_metrics_prod": "mult",
            "pdm_score": "score", "score": "score",
        }  # fmt: skip
        return {names[key]: float(value) for key, value in result.items() if key in names}

    def score(self, cache: MetricCache, plans: np.ndarray) -> dict[str, np.ndarray]:
        """Arrays of all ``plans``, each paired with the reference."""
        states = self.batch(cache, plans)
        s, weighted = self.scorer, self.scorer._weighted_metrics
        m = s._multi_metrics
        out = {"nc": m[MultiMetricIndex.NO_COLLISION], "dac": m[MultiMetricIndex.DRIVABLE_AREA]}
        out["ttc"] = weighted[WeightedMetricIndex.TTC]
        if self.version == "v1":
            out["ddc"], out["comfort"] = (
                weighted[WeightedMetricIndex.DRIVING_DIRECTION],
                weighted[WeightedMetricIndex.COMFORTABLE],
            )
        else:
            out["ddc"] = m[MultiMetricIndex.DRIVING_DIRECTION]
            out["tlc"] = m[MultiMetricIndex.TRAFFIC_LIGHT_COMPLIANCE]
            out["lk"], out["hc"] = weighted[WeightedMetricIndex.LANE_KEEPING], weighted[WeightedMetricIndex.HISTORY_COMFORT]
        out["progress_raw"] = s._progress_raw
        out = {key: np.array(value[1:], dtype=np.float64) for key, value in out.items()} | {
            "ref_progress_raw": np.float64(out["progress_raw"][0])
        }
        mult = m.prod(axis=0)
        out["mult"], out["ref_mult"] = mult[1:], np.float64(mult[0])
        out["nc_idx"], out["ttc_idx"] = s._collision_time_idcs[1:].copy(), s._ttc_time_idcs[1:].copy()
        out["states"], out["ego_areas"] = states[1:], s._ego_areas[1:].copy()
        best = np.maximum(out["progress_raw"] * out["mult"], out["ref_progress_raw"] * out["ref_mult"])
        if self.version == "v1":
            ep = np.where(out["mult"] == 0.0, 0.0, 1.0)
            ep[best > 5.0] = (out["progress_raw"] * out["mult"])[best > 5.0] / best[best > 5.0]
            out["score"] = out["mult"] * (5 * ep + 5 * out["ttc"] + 2 * out["comfort"]) / 12
        else:
            ep = np.ones_like(best)
            ep[best > 5.0] = np.clip(out["progress_raw"][best > 5.0] / best[best > 5.0], 0.0, 1.0)
            out["score"] = out["mult"] * (5 * ep + 5 * out["ttc"] + 2 * out["lk"] + 2 * out["hc"]) / 14
        out["ep"] = ep
        return out


def read(path: Path) -> dict[str, Any]:
    """One scene file."""
    data: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    return data


def times(official: Official, cache: MetricCache, plans: np.ndarray, sizes: tuple[int, ...]) -> dict[str, Any]:
    """CPU milliseconds a plan: ``pdm_score`` (best of 3) and the batched scorer by batch size (best of 2)."""

    def best(call, count: int) -> float:  # type: ignore[no-untyped-def]
        spent = []
        for _ in range(count):
            start = time.thread_time()
            call()
            spent.append(time.thread_time() - start)
        return min(spent) * 1e3

    official.pair(cache, plans[0])
    batched = {n: best(lambda n=n: official.batch(cache, np.resize(plans, (n, 8, 3))), 2) / n for n in sizes}
    return {"pdm_score_ms": best(lambda: official.pair(cache, plans[0]), 3), "batched_ms": batched}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("version", choices=["v1", "v2"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=0)
    parser.add_argument("--times", type=int, nargs="*")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    official = Official(options.version)
    for path in sorted(options.folder.glob("*.json.gz")):
        name = path.name.removesuffix(".json.gz")
        cache = metric_cache(read(path), options.version)
        plans = np.load(options.folder / f"{name}.npz")["proposals"]
        if options.times is not None:
            print(json.dumps({name: times(official, cache, plans, tuple(options.times))}), flush=True)
            continue
        out = official.score(cache, plans)
        for n in range(min(options.pairs, len(plans))):
            for key, value in official.pair(cache, plans[n]).items():
                assert abs(out[key][n] - value) < 1e-9, (name, n, key, out[key][n], value)
        if options.version == "v2" and cache.human_trajectory is not None:
            rows = [official.pair(cache, plan, filtered=True) for plan in plans[:4]]
            out |= {f"f_{key}": np.array([row[key] for row in rows]) for key in rows[0]}
        np.savez_compressed(options.folder / f"{name}.{options.version}.npz", **out)


if __name__ == "__main__":
    main()
