"""A run whose reinforcement learning happens in a framework, in the same folder and with the same files as a ``local`` one.

``FrameworkRun`` does what comes before and after: the warm start and its evaluation, rows of ``metrics.jsonl`` while the
framework trains, a readable copy of each of its checkpoints, and the held-out evaluation, summary and report at the end.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vla_models.errors import CheckpointError, ConfigError
from vla_models.files import atomic_path
from vla_models.model_registry import create_model
from vla_models.training.launch import check_same, new_run_dir
from vla_models.training.metrics import MetricsLog, read_metrics
from vla_models.training.practice import PRACTISED, make_practice
from vla_models.training.scenes import build_scenes
from vla_models.training.trainer import Trainer

if TYPE_CHECKING:
    from vla_models.config import VLAConfig
    from vla_models.interface import VLAInterface


class FrameworkRun:
    """One run folder.

    Args:
        config: the run's configuration.
        resume: folder of a run to go on with; else a new one is made.

    Raises:
        ConfigError: if the configuration cannot be run, or is not that of the run to resume.
    """

    def __init__(self, config: VLAConfig, resume: str | Path | None = None) -> None:
        self.config = config
        torch.manual_seed(config.seed)  # initial weights
        self.model: VLAInterface = create_model(
            config.model.name, model_path=config.model.checkpoint_path, **config.model.arguments()
        )
        config.check_model(self.model)
        if resume is None:
            self.path = new_run_dir(config)
            config.to_yaml(self.path / "config.yaml")
        else:
            self.path = Path(resume)
            check_same(config, self.path)
        self._trainer: Trainer | None = None
        self._started: float
        self._log: MetricsLog

    @property
    def start(self) -> Path:
        """The model checkpoint from which reinforcement learning starts (after ``prepare``)."""
        return self.path / "checkpoints" / "imitation"

    def prepare(self) -> None:
        """Warm start and first evaluation, or the configured model as it is in an environment that only the framework knows."""
        config = self.config
        if config.environment.type in PRACTISED:
            self._trainer = Trainer(config, self.path, self.model, make_practice(config, self.model.spec, build_scenes))
            self._started = time.monotonic()  # as the trainer: scenes are made before a run's time begins
            rows = [row for row in read_metrics(self.path) if row["phase"] != "imitation" and row["step"] > 0]
            self._trainer.warm_start()
            self._log = MetricsLog(self.path, keep_bytes=(self.path / "metrics.jsonl").stat().st_size)
            self._keep(rows)
            return
        if config.training.imitation.steps:
            raise ConfigError(
                f"training.imitation.steps: there is nobody to imitate in {config.environment.type}, only in "
                f"{' and '.join(PRACTISED)}; set it to 0 and start from a trained model with model.checkpoint_path"
            )
        if not (self.start / "config.json").exists():
            self.model.save_pretrained(self.start)
        rows = read_metrics(self.path)
        self._started = time.monotonic()
        self._log = MetricsLog(self.path)
        self._keep(rows)

    def _keep(self, rows: list[dict[str, Any]]) -> None:
        """Rows up to the checkpoint that the run goes on from (the last evaluation is always done anew)."""
        done, last = self.done(), self.config.training.steps
        for row in rows:
            if row["step"] <= done and not (row["phase"] == "eval" and row["step"] == last):
                self._log.write(row)
                self._started = min(self._started, time.monotonic() - row["wall_s"])

    def done(self) -> int:
        """Updates at the newest checkpoint, 0 without one."""
        return max((int(p.name.removeprefix("update-")) for p in self._copies()), default=0)

    def _copies(self) -> list[Path]:
        return sorted(p for p in (self.path / "checkpoints").glob("update-*") if (p / "config.json").is_file())

    def write(self, phase: str, step: int, values: Mapping[str, Any]) -> None:
        """A row of ``metrics.jsonl``; numbers that are not finite are left out (a framework's mean over nothing).

        The last evaluation is left to ``finish``, which sees every scene, where the environment has a local one.
        """
        if phase == "eval" and self._trainer is not None and step == self.config.training.steps:
            return
        finite = {k: v for k, v in values.items() if not isinstance(v, float) or math.isfinite(v)}
        self._log.write({"phase": phase, "step": step, "wall_s": round(time.monotonic() - self._started, 3), **finite})

    def keep_checkpoint(self, step: int, weights: Mapping[str, Tensor]) -> Path:
        """Write the framework's weights after ``step`` updates as a checkpoint that ``vla-models eval`` reads.

        Also marks the framework's own checkpoint of that step as complete, so call it last.
        """
        self.load(weights)
        return self.keep_model(step, self.model)

    def keep_model(self, step: int, model: VLAInterface) -> Path:
        """As ``keep_checkpoint``, of a model that holds the framework's weights already; it is ``model`` from now on."""
        self.replace_model(model)
        folder = self.path / "checkpoints" / f"update-{step:07d}"
        with atomic_path(folder) as temporary:
            self.model.save_pretrained(temporary)
        return folder

    def replace_model(self, model: VLAInterface) -> None:
        """Go on with another model: the same one around weights that a framework has in another form."""
        self.model = model
        if self._trainer is not None:
            self._trainer.model = model

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Put a framework's weights (names as in the model's own state dict) into ``model``."""
        own = self.model.state_dict()
        if different := sorted(own.keys() ^ weights.keys()):
            raise CheckpointError(
                f"the framework's checkpoint does not fit {type(self.model).__name__}: {len(different)} tensors have no "
                f"counterpart, for example {different[0]!r}"
            )
        self.model.load_state_dict(dict(weights))

    def finish(self, steps: int, summary: Callable[[], Mapping[str, Any]]) -> Path:
        """Held-out evaluation of ``model``, ``summary.json`` and the report; returns the folder.

        summary: means of the framework's own evaluation, for environments that the local evaluation does not know.
        """
        from vla_models.report import write_report

        self._log.__exit__(None, None, None)
        if self._trainer is not None:
            self._trainer.conclude(steps)
            write_report(self.path)
            return self.path
        self.model.save_pretrained(self.path / "checkpoints" / "model")
        means = dict(summary())
        written = {
            "framework": self.config.framework,
            "env": self.config.environment.type,
            "seed": self.config.seed,
            "heldout": {"rl": means.get("score", means.get("return"))},
            "subscores": {"rl": means},
            "wall_s": round(time.monotonic() - self._started, 1),
        }
        with atomic_path(self.path / "summary.json") as temporary:
            temporary.write_text(json.dumps(written, indent=2) + "\n")
        return self.path
