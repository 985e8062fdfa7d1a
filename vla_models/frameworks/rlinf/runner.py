"""RLinf's own runner and workers, started on a native configuration, with our run folder listening.

What happens here is what RLinf's examples/embodiment/train_embodied_agent.py does; beside it, metrics and checkpoints go into
the run folder as well.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vla_models.errors import CheckpointError, DivergenceError, MissingDependency, VLAModelsError
from vla_models.frameworks.ray_head import ray_head
from vla_models.frameworks.rlinf.compat import find
from vla_models.frameworks.rlinf.plugin import EXT_MODULE, PluginFailed

if TYPE_CHECKING:
    from vla_models.frameworks.run_folder import FrameworkRun

EXT_VARIABLE = "RLINF_EXT_MODULE"
_WEIGHT_PREFIX = "model."


def load_extension() -> None:
    """Load in this process what RLinf loads in its workers (``RLINF_EXT_MODULE``, ours unless it is set) and look for a device.

    Raises ``MissingDependency`` where the extension cannot be loaded, or no device is there that RLinf can train on.
    """
    name = os.environ.setdefault(EXT_VARIABLE, EXT_MODULE)
    try:
        importlib.import_module(name).register()
    except (PluginFailed, ImportError, AttributeError) as e:
        raise MissingDependency(f"{EXT_VARIABLE}={name} cannot be loaded: {e}") from e
    if not _has_cluster() and find("Worker").torch_platform is None:
        raise MissingDependency(
            "this machine has no accelerator, and RLinf has no CPU path (its workers ask the accelerator for a device); use a "
            "machine with a GPU, a cluster through RAY_ADDRESS, or framework: local"
        )


def run(native: Mapping[str, Any], record: FrameworkRun) -> dict[str, float]:
    """Train to the end in RLinf; returns the means of its last evaluation (empty without one).

    The model of ``record`` holds the trained weights afterwards.
    """
    from omegaconf import OmegaConf

    load_extension()
    foreign = _has_cluster()
    with _failures_as_errors(), ray_head():
        return _run(OmegaConf.create(dict(native)), record, foreign)


def _run(cfg: Any, record: FrameworkRun, foreign: bool) -> dict[str, float]:
    cfg = find("validate_cfg")(cfg)
    cluster = find("Cluster")(cluster_cfg=cfg.cluster, distributed_log_dir=cfg.runner.per_worker_log_path)
    signal.signal(signal.SIGUSR1, _worker_failed)  # RLinf's own handler asks Ray's dashboard, which may not run
    if foreign:
        check_workers()
    placement = find("HybridComponentPlacement")(cfg, cluster)
    groups = {
        part: find(worker)
        .create_group(cfg)
        .launch(cluster, name=cfg[part].group_name, placement_strategy=placement.get_strategy(part))
        for part, worker in (("actor", "Actor"), ("rollout", "RolloutWorker"), ("env", "EnvWorker"))
    }
    runner = recording_runner(record)(cfg=cfg, **groups)
    runner.init_workers()
    runner.run()
    means: dict[str, float] = runner.evaluation
    return means


def _has_cluster() -> bool:
    """Whether the user named a Ray cluster."""
    return os.environ.get("RAY_ADDRESS", "local") != "local"


class _WorkerFailed(BaseException):
    """Raised in the main thread when RLinf signals that a worker failed; nothing on the way may catch it."""


def _worker_failed(*unused: Any) -> None:
    raise _WorkerFailed


@contextlib.contextmanager
def _failures_as_errors() -> Iterator[None]:
    """Turn a failed worker, which RLinf answers by ending the process, into an error of ours."""
    before = signal.getsignal(signal.SIGUSR1)
    try:
        yield
    except (_WorkerFailed, SystemExit) as e:
        raise VLAModelsError("RLinf stopped because one of its workers failed; what the worker said stands above") from e
    finally:
        signal.signal(signal.SIGUSR1, before)


def check_workers() -> None:
    """Load the extension in a Ray worker of every node of a cluster: RLinf only warns. ``MissingDependency`` says what
    failed."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def load(name: str) -> str | None:
        import importlib

        try:
            importlib.import_module(name).register()
        except BaseException as e:
            return f"{type(e).__name__}: {e}"
        return None

    load.__module__ = "__main__"  # sent by value: a node that lacks vla_models must be able to say so
    variables = {key: os.environ[key] for key in (EXT_VARIABLE, "VLA_MODELS_SOURCES", "PYTHONPATH") if key in os.environ}
    probe = ray.remote(num_cpus=0)(load)
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        where = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        options = {"scheduling_strategy": where, "runtime_env": {"env_vars": variables}}
        failure = ray.get(probe.options(**options).remote(os.environ[EXT_VARIABLE]))
        if failure is not None:
            raise MissingDependency(
                f"a Ray worker on {node['NodeManagerAddress']} cannot load {os.environ[EXT_VARIABLE]}: {failure}. vla_models "
                "must be importable there (install it, or let PYTHONPATH point to it), and so must the module of your model"
            )


def recording_runner(record: FrameworkRun) -> type[Any]:
    """RLinf's ``EmbodiedRunner`` whose metrics and checkpoints also go into ``record``."""
    base: type[Any] = find("EmbodiedRunner")

    class RecordingRunner(base):
        """Adds to ``EmbodiedRunner``: rows of metrics.jsonl, and a readable copy of each checkpoint."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.evaluation: dict[str, float] = {}
            self._logged: dict[str, Any] = {}
            original = self.metric_logger.log

            def log(data: Mapping[str, Any], step: int, **options: Any) -> None:
                original(data, step, **options)
                self._listen(data, step)

            self.metric_logger.log = log

        def _listen(self, data: Mapping[str, Any], step: int) -> None:
            if any(key.startswith("eval/") for key in data):
                self.evaluation = episode_means(data, "eval/")
                record.write("eval", step + 1, {"name": "rl", **self.evaluation})
                return
            self._logged |= data
            if any(key.startswith("train/") for key in data):  # the last of a step
                record.write("rl", step + 1, row_of(self._logged, step + 1))
                self._logged = {}

        def _save_checkpoint(self) -> None:
            super()._save_checkpoint()
            step = int(self.global_step)
            record.keep_checkpoint(step, read_weights(checkpoint_folder(record.path, step)))

    return RecordingRunner


def checkpoint_folder(run: Path, step: int) -> Path:
    """RLinf's own checkpoint after ``step`` updates (EmbodiedRunner._save_checkpoint)."""
    return run / "rlinf" / "run" / "checkpoints" / f"global_step_{step}"


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The model's weights, under its own names, from RLinf's checkpoint."""
    file = folder / "actor" / "model_state_dict" / "full_weights.pt"
    if not file.is_file():
        raise CheckpointError(f"RLinf's checkpoint {folder} has no {file.relative_to(folder)}: it was not written to its end")
    weights: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    return {name.removeprefix(_WEIGHT_PREFIX): value for name, value in weights.items()}


def episode_means(data: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """RLinf's means over episodes -> means over the valid ones, ``invalid``: how many were not, and ``invalid_answers``: how
    many answers were no plans.

    Invalid episodes have 0 in every total (``Episodes``), so RLinf's mean is too small by the share that is valid.
    """
    raw = {key.removeprefix(prefix): float(value) for key, value in data.items() if key.startswith(prefix)}
    episodes, share = raw.pop("num_trajectories", 0.0), raw.pop("valid", 1.0)
    answers = round(episodes * raw.pop("invalid_answers", 0.0))
    means = {name: value / share for name, value in raw.items()} if share > 0 else {}
    return {**means, "invalid": round(episodes * (1.0 - share)), "invalid_answers": answers}


def row_of(logged: Mapping[str, Any], step: int) -> dict[str, Any]:
    """One row of metrics.jsonl from everything that RLinf logged in a step, under the names that ``local`` uses."""
    numbers = {key: float(value) for key, value in logged.items() if np.ndim(value) == 0}
    loss = numbers.get("train/actor/total_loss", math.nan)
    if not math.isfinite(loss):
        raise DivergenceError(f"rl step {step}: the loss is {loss}; lower training.optimizer.lr, or resume with another seed")
    episodes = episode_means(numbers, "env/")
    row = {"reward_mean": episodes.pop("return", math.nan), "loss": loss, **episodes}
    renamed = {
        "grad_norm": "grad_norm",
        "lr": "lr",
        "clip_fraction": "clip_fraction",
        "approx_kl": "approx_kl",
        "ratio": "ratio",
    }
    renamed |= {"policy_loss": "policy_loss", "entropy_loss": "entropy"}
    row |= {name: numbers[f"train/actor/{key}"] for key, name in renamed.items() if f"train/actor/{key}" in numbers}
    if row.get("entropy") == 0.0:  # what RLinf says where it did not compute it
        del row["entropy"]
    row |= {key.removeprefix("train/critic/"): value for key, value in numbers.items() if key.startswith("train/critic/")}
    times = {"generate_rollouts": "rollout_s", "rollout/predict": "sample_s", "env/env_interact_step": "score_s"}
    times |= {"cal_adv_and_returns": "advantage_s", "actor/run_training": "update_s", "sync_weights": "sync_s"}
    times |= {"step": "step_s"}
    return row | {name: numbers[f"time/{key}"] for key, name in times.items() if f"time/{key}" in numbers}
