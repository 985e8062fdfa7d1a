"""NavSim's logs as scenes, through navsim itself: for those who have logs and maps but no metric caches.

navsim (1.1 or 2.2, whichever is installed) loads the log, asks nuPlan's maps and computes the metric cache as its own
``run_metric_caching.py`` does; the result is read like any other metric cache, and the log adds cameras and command. Metric
caches themselves need none of this (``scenes.metric_cache``), but for the lanes that reactive traffic drives on, which only the
maps have: ``with_agent_paths``.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from vla_models.errors import MissingDependency, SceneError
from vla_models.scenes.agent_paths import from_nuplan_map
from vla_models.scenes.metric_cache import read_metric_cache
from vla_models.scenes.navsim_logs import Logs, attach_log, read_log
from vla_models.scenes.scene import Scene

MAP_VERSION: Final = "nuplan-maps-v1.0"
_FILTER_FIELDS: Final = ("num_history_frames", "num_future_frames", "frame_interval", "has_route", "log_names", "tokens")


@dataclass(frozen=True)
class Devkit:
    """What navsim needs beside the logs."""

    maps: Path
    """nuPlan's map folder (``NUPLAN_MAPS_ROOT``)."""
    scene_filter: Path | None = None
    """One of navsim's ``scene_filter/*.yaml`` (navtrain, navtest …): which frames are scenes. None: every 14th frame."""
    images: Logs | None = None
    """Where images lie and which are wanted (its ``logs`` is not used: a log is given by its path)."""


def scenes_of_log(path: Path, devkit: Devkit) -> Iterator[Scene]:
    """All scenes of the log file ``path`` that the filter admits.

    Raises MissingDependency without navsim and nuplan; SceneError for a damaged log. The file is read through
    ``scenes.restricted`` before navsim may unpickle it.
    """
    read_log(path)
    official = _official(devkit.maps)
    chosen = {} if devkit.scene_filter is None else _filter_fields(devkit.scene_filter)
    if chosen.get("log_names") and path.stem not in chosen["log_names"]:
        return
    scene_filter = official.SceneFilter(**{**chosen, "log_names": [path.stem]})
    sensors = "original_sensor_path" if _takes(official.SceneLoader, "original_sensor_path") else "sensor_blobs_path"
    loader = official.SceneLoader(data_path=path.parent, scene_filter=scene_filter, **{sensors: None})
    logs = replace(devkit.images or Logs(path.parent), logs=path.parent)
    with tempfile.TemporaryDirectory() as folder:
        processor = _processor(official, folder)
        for token in loader.tokens:
            scene = official.Scene.from_scene_dict_list(
                loader.scene_frames_dicts[token],
                None,
                num_history_frames=scene_filter.num_history_frames,
                num_future_frames=scene_filter.num_future_frames,
                sensor_config=official.SensorConfig.build_no_sensors(),
            )
            scenario = official.NavSimScenario(scene, map_root=str(devkit.maps), map_version=MAP_VERSION)
            entry = processor(scenario)
            found = attach_log(read_metric_cache(entry.file_name), path.stem, logs)
            yield found.with_(agent_paths=from_nuplan_map(found.tracks, found.origin, scenario.map_api))
            Path(entry.file_name).unlink()


def with_agent_paths(scene: Scene, devkit: Devkit) -> Scene:
    """``scene`` of a metric cache with the lanes that reactive traffic drives on, from nuPlan's map of its town."""
    official = _official(devkit.maps)
    if not scene.town:
        raise SceneError(f"scene {scene.token!r} does not say in which map it lies; give the logs, which do (--logs)")
    map_api = official.get_maps_api(str(devkit.maps), MAP_VERSION, scene.town)
    return scene.with_(agent_paths=from_nuplan_map(scene.tracks, scene.origin, map_api))


def _processor(official: SimpleNamespace, folder: str) -> Any:
    """navsim's own metric caching: a function of a scenario that writes a cache into ``folder`` and names the file."""
    arguments: dict[str, Any] = {"cache_path": folder, "force_feature_computation": True}
    if _takes(official.MetricCacheProcessor, "proposal_sampling"):
        arguments["proposal_sampling"] = official.TrajectorySampling(num_poses=40, interval_length=0.1)
        return official.MetricCacheProcessor(**arguments).compute_and_save_metric_cache
    return official.MetricCacheProcessor(**arguments).compute_metric_cache


def _takes(what: Any, argument: str) -> bool:
    return argument in inspect.signature(what).parameters


def _filter_fields(path: Path) -> dict[str, Any]:
    """What navsim 1.1 and 2.2 both know of a scene filter's YAML."""
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {name: data[name] for name in _FILTER_FIELDS if data.get(name) is not None}
    except (OSError, yaml.YAMLError, AttributeError, TypeError) as error:
        raise SceneError(f"{path} is no scene filter of navsim: {error}") from error


def _official(maps: Path) -> SimpleNamespace:
    """The parts of navsim and nuplan that are used. MissingDependency where they are not installed."""
    try:
        from navsim.common import dataclasses
        from navsim.common.dataloader import SceneLoader
        from navsim.planning.metric_caching.metric_cache_processor import MetricCacheProcessor
        from navsim.planning.scenario_builder.navsim_scenario import NavSimScenario
        from nuplan.common.maps.nuplan_map.map_factory import get_maps_api
        from nuplan.planning.simulation.trajectory.trajectory_sampling import TrajectorySampling
    except ImportError as error:
        raise MissingDependency(
            f"reading NavSim's logs with their maps needs navsim and nuplan-devkit ({error}); install them as "
            "github.com/autonomousvision/navsim says, or import metric caches, which need neither"
        ) from error
    dataclasses.NUPLAN_MAPS_ROOT = str(maps)  # navsim reads the environment once, at import
    return SimpleNamespace(
        Scene=dataclasses.Scene,
        SceneFilter=dataclasses.SceneFilter,
        SceneLoader=SceneLoader,
        SensorConfig=dataclasses.SensorConfig,
        MetricCacheProcessor=MetricCacheProcessor,
        NavSimScenario=NavSimScenario,
        TrajectorySampling=TrajectorySampling,
        get_maps_api=get_maps_api,
    )
