"""Write official NavSim metric caches of `pdm-scene/1` files, by the official classes (made: ``tests/data/metric_cache``).

Runs in an environment that has navsim (1.1 or 2.2, the one on the path decides) and nuplan-devkit, and needs nothing of this
package:

    python tests/scenes/official/make_metric_caches.py OUT SCENE.json.gz...
"""

from __future__ import annotations

import gzip
import inspect
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import shapely
from navsim.planning.metric_caching import metric_cache as official
from navsim.planning.simulation.planner.pdm_planner.observation.pdm_observation import PDMObservation
from navsim.planning.simulation.planner.pdm_planner.observation.pdm_occupancy_map import PDMDrivableMap
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

TWO = "log_name" in inspect.signature(official.MetricCache).parameters
LAYERS = {
    "roadblock": SemanticMapLayer.ROADBLOCK,
    "lane": SemanticMapLayer.LANE,
    "lane_connector": SemanticMapLayer.LANE_CONNECTOR,
    "intersection": SemanticMapLayer.INTERSECTION,
    "carpark": SemanticMapLayer.CARPARK_AREA,
    "drivable_area": SemanticMapLayer.DRIVABLE_AREA,
}


def ego(row: list[float], time_us: int) -> EgoState:
    x, y, heading, vx, vy, ax, ay, steering, steering_rate, yaw_rate, yaw_acc = row
    return EgoState.build_from_rear_axle(
        StateSE2(x, y, heading), StateVector2D(vx, vy), StateVector2D(ax, ay), steering, TimePoint(time_us),
        get_pacifica_parameters(), True, yaw_rate, yaw_acc, steering_rate,
    )  # fmt: skip


def detections(scene: dict, t: int) -> DetectionsTracks:
    found = []
    for k, track in enumerate(scene["tracks"]):
        row = track["states"][t]
        if row is None:
            continue
        kind = TrackedObjectType.__members__[track["type"].upper()]
        box = OrientedBox(StateSE2(*row[:3]), track["length"], track["width"], track["height"])
        metadata = SceneObjectMetadata(scene["time_us"], f"{track['id']}_{t}", k, track["id"], track["type"])
        if kind in AGENT_TYPES:
            found.append(Agent(kind, box, StateVector2D(*row[3:]), metadata))
        else:
            found.append(StaticObject(kind, box, metadata))
    return DetectionsTracks(TrackedObjects(found))


def cache(scene: dict, path: Path) -> official.MetricCache:
    now = scene["time_us"]
    e = scene["ego"]
    columns = [
        "x",
        "y",
        "heading",
        "vx",
        "vy",
        "ax",
        "ay",
        "steering",
        "steering_rate",
        "angular_velocity",
        "angular_acceleration",
    ]
    present = ego([e[c] for c in columns], now)
    poses = scene["reference"]["poses"]
    plan = [ego([*p, *[0.0] * 8], now + 100_000 * k) for k, p in enumerate(poses)]
    polygons = {m["id"]: shapely.Polygon(m["polygon"]) for m in scene["map"]}
    drivable = PDMDrivableMap(
        [m["id"] for m in scene["map"]], [LAYERS[m["type"]] for m in scene["map"]], [polygons[m["id"]] for m in scene["map"]]
    )
    long, short = TrajectorySampling(num_poses=50, interval_length=0.1), TrajectorySampling(num_poses=40, interval_length=0.1)
    common = {
        "file_path": path,
        "trajectory": InterpolatedTrajectory(plan),
        "ego_state": present,
        "centerline": PDMPath([StateSE2(*p) for p in scene["centerline"]]),
        "route_lane_ids": [m["id"] for m in scene["map"] if m["on_route"]],
        "drivable_area_map": drivable,
    }
    if not TWO:
        observation = PDMObservation(long, short, 100, observation_sample_res=1)
        observation.update_detections_tracks([detections(scene, t) for t in range(51)])
        return official.MetricCache(**common, observation=observation)

    from navsim.common.dataclasses import Trajectory
    from navsim.common.enums import SceneFrameType

    tracks = [detections(scene, t) for t in range(41)]
    lights = [
        [
            TrafficLightStatusData(TrafficLightStatusType.RED, light["id"], now)
            for light in scene["red_lights"]
            if light["steps"][t]
        ]
        for t in range(41)
    ]
    route = {i: SimpleNamespace(polygon=polygons[i]) for i in common["route_lane_ids"]}
    observation = PDMObservation(short, short, 100, observation_sample_res=1, extend_observation_for_ttc=False)
    observation.update_detections_tracks(tracks, lights, route, compute_traffic_light_data=True)
    history = scene["ego_history"]
    human = scene["human"]
    return official.MetricCache(
        **common,
        log_name="2026.11.24.made",
        timepoint=TimePoint(now),
        scene_type=SceneFrameType.SYNTHETIC if human is None else SceneFrameType.ORIGINAL,
        human_trajectory=None
        if human is None
        else Trajectory(np.array(human), TrajectorySampling(num_poses=8, interval_length=0.5)),
        past_human_trajectory=None
        if history is None
        else InterpolatedTrajectory([ego(row, now - 500_000 * (len(history) - 1 - k)) for k, row in enumerate(history)]),
        observation=observation,
        past_detections_tracks=[],
        current_tracked_objects=[tracks[0]],
        future_tracked_objects=tracks[1:],
        map_parameters=official.MapParameters("maps", "nuplan-maps-v1.0", "us-nv-las-vegas-strip"),
    )


def main(out: Path, files: list[Path]) -> None:
    entries = []
    for file in files:
        scene = json.loads(gzip.decompress(file.read_bytes()))
        path = out / "2026.11.24.made" / "unknown" / scene["name"] / "metric_cache.pkl"
        cache(scene, path).dump()
        entries.append(path)
        print(path, path.stat().st_size)
    metadata = out / "metadata" / f"{out.name}_metadata_node_0.csv"
    metadata.parent.mkdir(exist_ok=True)
    metadata.write_text("file_name\n" + "".join(f"{path}\n" for path in entries))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
