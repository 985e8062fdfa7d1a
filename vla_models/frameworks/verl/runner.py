"""verl's own trainer, started on a native configuration, with our run folder listening.

What happens here is what ``python -m verl.trainer.main_ppo`` does (verl/trainer/main_ppo.py); beside it, a thread reads what
verl logs and saves, and puts rows and readable checkpoints into the run folder.
"""

from __future__ import annotations

import _thread
import importlib
import json
import math
import os
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from safetensors.torch import load_file
from torch import Tensor

from vla_models.errors import CheckpointError, ConfigError, DivergenceError, MissingDependency, VLAModelsError, did_you_mean
from vla_models.frameworks.ray_head import ray_head
from vla_models.frameworks.verl import native as native_config
from vla_models.frameworks.verl.compat import NAME, PLUGIN, check_version

if TYPE_CHECKING:
    from vla_models.frameworks.run_folder import FrameworkRun

EXTERNAL, VENDOR = "VERL_USE_EXTERNAL_MODULES", "VERL_ENGINE_VENDOR"
WEIGHTS: Final = "vla_models.safetensors"
"""The whole model beside verl's own shards in a checkpoint, under the model's own names."""
LISTEN_S: Final = 0.5
"""Seconds between two looks at what verl wrote."""
_NAMES: Final = {
    "actor/pg_loss": "policy_loss", "actor/loss": "loss", "actor/grad_norm": "grad_norm",
    "actor/pg_clipfrac": "clip_fraction", "actor/ppo_kl": "approx_kl", "actor/entropy": "entropy", "actor/kl_loss": "kl",
    "critic/vf_loss": "value_loss", "training/rollout_probs_diff_max": "replay_probs_diff_max",
    "timing_s/gen": "rollout_s", "timing_s/old_log_prob": "replay_s", "timing_s/update_actor": "update_s",
    "timing_s/update_weights": "sync_s", "timing_s/step": "step_s", "vla_models/return": "reward_mean",
    "vla_models/dropped": "invalid",
}  # fmt: skip
"""verl's name of a number -> ours (those that ``local`` uses)."""


def load_plugin() -> None:
    """Have verl load this package, here and in all processes of the run, and look for a device.

    Raises ``MissingDependency`` where verl is missing or another version, the plugin cannot be loaded, or there is no device
    that verl can train on.
    """
    check_version()
    modules = [name for name in os.environ.get(EXTERNAL, "").split(",") if name]
    if PLUGIN not in modules:
        modules.append(PLUGIN)
    os.environ[EXTERNAL] = ",".join(modules)
    os.environ.setdefault(VENDOR, NAME)
    try:
        for name in ("verl", *modules):
            importlib.import_module(name)
    except ImportError as e:
        raise MissingDependency(f"{EXTERNAL}={os.environ[EXTERNAL]} cannot be loaded: {e}") from e
    importlib.import_module(PLUGIN).check()
    from verl.plugin.platform import get_platform

    if os.environ.get("RAY_ADDRESS", "local") == "local" and not get_platform().is_available():
        raise MissingDependency(
            "this machine has no accelerator, and verl has no CPU path (its workers ask for a device); use a machine with a "
            "GPU, a cluster through RAY_ADDRESS, or framework: local"
        )


def compose(path: Path) -> Any:
    """verl's whole configuration from the native one at ``path``; ``ConfigError`` names keys that verl does not have."""
    from hydra import compose, initialize_config_dir, initialize_config_module
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from vla_models.yaml_source import YamlSource

    with initialize_config_module("verl.trainer.config", version_base=None):
        known = OmegaConf.to_container(compose("ppo_trainer"), resolve=False)
    written = YamlSource.read(path).data
    if unknown := native_config.unknown_keys(written, known):
        name = unknown[0].rsplit(".", 1)
        near = OmegaConf.select(OmegaConf.create(known), name[0]) if len(name) > 1 else known
        raise ConfigError(
            f"framework_options.{unknown[0]}: verl has no such key; {did_you_mean(name[-1], map(str, near or ()))}"
        )
    try:
        with initialize_config_dir(str(path.resolve().parent), version_base=None):
            return compose(path.stem)
    except (HydraException, OmegaConfBaseException) as e:
        raise ConfigError(f"framework_options: verl's configuration {path} cannot be composed: {e}") from e


def run(path: Path, record: FrameworkRun, logged: Path, keep: Callable[[int, Path], object]) -> dict[str, float]:
    """Train to the end in verl; returns the means of its last evaluation (empty without one).

    path: the native configuration. logged: where verl's file logger writes. keep: called with the number of updates and verl's
    own checkpoint after them, whenever there is a new one.
    """
    load_plugin()
    cfg = compose(path)
    from verl.trainer.main_ppo import TaskRunnerV1, run_ppo
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config
    from verl.utils.device import auto_set_device

    auto_set_device(cfg)
    try:
        validate_config(cfg, use_reference_policy=need_reference_policy(cfg), use_critic=need_critic(cfg))
    except (AssertionError, ValueError) as e:
        raise ConfigError(f"verl refuses its configuration {path}: {e}") from e
    with ray_head(), Listener(record, logged, checkpoints(record.path), keep) as listener:
        try:
            run_ppo(cfg, task_runner_class=TaskRunnerV1)
        except KeyboardInterrupt:
            if listener.error is None:
                raise
        except VLAModelsError:
            raise
        except Exception as e:
            said = str(e).strip().splitlines() or [type(e).__name__]
            raise VLAModelsError(f"verl stopped: {said[-1]}; all that it said stands above") from e
    return listener.evaluation


class Listener:
    """Reads what verl logs and saves while it trains, and writes it into ``record``.

    A number that says that training has diverged stops the run: ``error`` is raised when the block ends.
    """

    def __init__(self, record: FrameworkRun, logged: Path, saved: Path, keep: Callable[[int, Path], object]) -> None:
        self.record, self.logged, self.saved, self.keep = record, logged, saved, keep
        self.evaluation: dict[str, float] = {}
        self.error: VLAModelsError | None = None
        self._read, self._kept = 0, record.done()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="verl-listener", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        if self.error is None:
            self._look()  # what came after the last look
        if self.error is not None and kind is None:
            raise self.error

    def _listen(self) -> None:
        while not self._stop.wait(LISTEN_S):
            try:
                self._look()
            except VLAModelsError as e:
                self.error = e
                _thread.interrupt_main()
                return

    def _look(self) -> None:
        """Rows first: a checkpoint that is kept ends its step."""
        for step, numbers in self._new_rows():
            if means := evaluation_of(numbers):
                self.evaluation = means
                self.record.write("eval", step, {"name": "rl", **means})
            if "training/global_step" in numbers:
                self.record.write("rl", step, row_of(numbers, step))
        tracker = self.saved / "latest_checkpointed_iteration.txt"
        if tracker.is_file() and (step := int(tracker.read_text() or 0)) > self._kept:
            self.keep(step, self.saved / f"global_step_{step}")
            self._kept = step

    def _new_rows(self) -> list[tuple[int, dict[str, float]]]:
        if not self.logged.is_file():
            return []
        with self.logged.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        rows = [json.loads(line) for line in whole.splitlines()]
        return [(int(r["step"]), {k: float(v) for k, v in r["data"].items() if isinstance(v, int | float)}) for r in rows]


def checkpoints(run_folder: Path) -> Path:
    """Where verl keeps its own checkpoints of a run."""
    return run_folder / "verl" / "checkpoints"


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The model's weights, under its own names, from verl's checkpoint ``global_step_<n>``."""
    file = folder / "actor" / WEIGHTS
    if not file.is_file():
        raise CheckpointError(f"verl's checkpoint {folder} has no {file.relative_to(folder)}: it was not written to its end")
    weights: dict[str, Tensor] = load_file(file)
    return weights


def evaluation_of(numbers: Mapping[str, float]) -> dict[str, float]:
    """Means over held-out scenes from what verl logged of a validation: ``val-<kind>/<source>/<name>/mean@1``."""
    means = {}
    for key, value in numbers.items():
        found = re.fullmatch(r"val-\w+/[^/]+/(.+)/mean@1", key)
        if found and found[1] != "reward" and math.isfinite(value):
            means[found[1]] = value
    return means


def row_of(numbers: Mapping[str, float], step: int) -> dict[str, float]:
    """One row of metrics.jsonl from everything that verl logged in a step."""
    loss = numbers.get("actor/pg_loss", math.nan)
    if not math.isfinite(loss) or not math.isfinite(numbers.get("actor/grad_norm", math.nan)):  # verl writes NaN as null
        raise DivergenceError(f"rl step {step}: the loss is {loss}; lower training.optimizer.lr, or resume with another seed")
    own = {key.removeprefix("vla_models/"): value for key, value in numbers.items() if key.startswith("vla_models/")}
    named = {_NAMES[key]: value for key, value in numbers.items() if key in _NAMES}
    return {"loss": loss, **{k: v for k, v in own.items() if f"vla_models/{k}" not in _NAMES}, **named}
