"""siiRL's own main program, started with our arguments, and our run folder listening to what it writes."""

from __future__ import annotations

import importlib
import json
import logging
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from vla_models.errors import CheckpointError, DivergenceError, MissingDependency, VLAModelsError
from vla_models.frameworks.ray_head import ray_head
from vla_models.frameworks.siirl import plugin
from vla_models.frameworks.siirl.native import arguments, checkpoint_folder
from vla_models.frameworks.siirl.policy import make_optimizer
from vla_models.frameworks.user_code import SOURCES
from vla_models.training.checkpoint import latest_checkpoint, load_checkpoint

if TYPE_CHECKING:
    from vla_models.frameworks.run_folder import FrameworkRun

log = logging.getLogger(__name__)

LISTEN_SECONDS: Final = 1.0
"""How often what siiRL has written is looked at."""
TRACKER: Final = "latest_checkpointed_iteration.txt"
"""File with which siiRL says that a checkpoint is complete."""
_ACTOR: Final = "actor_agent_0"


def prepare() -> None:
    """Load in this process what siiRL's processes load. Raises ``MissingDependency`` where siiRL cannot run here, or there is
    no device that it can train on."""
    plugin.register()
    device: Any = importlib.import_module("siirl.utils.extras.device")
    try:
        device.get_nccl_backend()
    except RuntimeError as e:
        if os.environ.get("RAY_ADDRESS", "local") == "local":
            raise MissingDependency(
                f"this machine has no accelerator that siiRL knows ({e}), and siiRL has no CPU path; use a machine with a GPU, "
                "a cluster through RAY_ADDRESS, or framework: local"
            ) from e


def run(native: Mapping[str, Any], record: FrameworkRun) -> dict[str, float]:
    """Train to the end in siiRL; returns the means of its last validation (empty without one).

    The model of ``record`` holds the trained weights afterwards.
    """
    prepare()
    folder = record.path / "siirl"
    listener = Listener(native, record, folder / f"log-{record.done()}.jsonl")
    variables = {"TOKENIZERS_PARALLELISM": "false", "NCCL_DEBUG": "WARN", plugin.LOG: str(listener.path.resolve())}
    variables["SIIRL_LOG_DIRECTORY"] = str((folder / "log").resolve())
    variables |= {key: os.environ[key] for key in (SOURCES, "PYTHONPATH", "OMP_NUM_THREADS") if key in os.environ}
    with ray_head() as address:
        ray: Any = importlib.import_module("ray")
        ray.init(address, runtime_env={"env_vars": variables, "worker_process_setup_hook": plugin.HOOK}, log_to_driver=True)
        _watch(ray, native, listener)
    listener.listen()
    if listener.kept < record.config.training.steps:
        raise VLAModelsError(
            f"siiRL ended after {listener.kept} of {record.config.training.steps} updates without an error; its log stands "
            "above"
        )
    return listener.evaluation


def _watch(ray: Any, native: Mapping[str, Any], listener: Listener) -> None:
    """siirl.main_dag.main from its parse_config on, looking at what it writes in the meantime."""
    main: Any = importlib.import_module("siirl.main_dag")
    before, sys.argv = sys.argv, ["siirl.main_dag", *arguments(native)]
    try:
        settings = importlib.import_module("siirl.params").parse_config()
    finally:
        sys.argv = before
    runner = main.MainRunner.remote()
    running = [runner.run.remote(settings)]
    while running:
        done, running = ray.wait(running, timeout=LISTEN_SECONDS)
        listener.listen()
        for finished in done:
            try:
                ray.get(finished)
            except ray.exceptions.RayError as e:
                raise cause(e) from e


def cause(error: BaseException) -> VLAModelsError:
    """Our own error at the bottom of one that Ray and siiRL have wrapped, or one that has their last words."""
    own = {c.__name__: c for c in _subclasses(VLAModelsError)}
    text = str(error)
    for line in reversed(text.splitlines()):
        name, colon, message = line.strip().partition(": ")
        if colon and (kind := own.get(name.rpartition(".")[2])) is not None:
            return kind(message)
    said = [line for line in text.splitlines() if line.strip()]
    return VLAModelsError(f"siiRL stopped: {said[-1].strip() if said else type(error).__name__}")


def _subclasses(kind: type[VLAModelsError]) -> list[type[VLAModelsError]]:
    return [kind, *(c for child in kind.__subclasses__() for c in _subclasses(child))]


class Listener:
    """Rows of metrics.jsonl and readable checkpoints from what siiRL writes while it trains.

    Args:
        native: siiRL's arguments.
        record: the run.
        path: file that ``plugin`` writes siiRL's numbers to.
    """

    def __init__(self, native: Mapping[str, Any], record: FrameworkRun, path: Path) -> None:
        self.native, self.record, self.path = native, record, path
        self.kept = self._learned = record.done()
        self.evaluation: dict[str, float] = {}
        self._waiting: list[tuple[str, int, dict[str, Any]]] = []
        path.unlink(missing_ok=True)
        self._evaluations = Path(native["vla"]["evaluations"])
        self._evaluations.unlink(missing_ok=True)
        self._read = {self.path: 0, self._evaluations: 0}

    def listen(self) -> None:
        """Take over what is new: each step's own row, then its evaluation, whichever file had it first."""
        learned = [("rl", int(row["step"]), row_of(row)) for row in self._rows(self.path)]
        self._learned = max([self._learned, *(step for _, step, _ in learned)])
        for row in self._rows(self._evaluations):
            step = int(row.pop("step"))
            self.evaluation = row
            self._waiting.append(("eval", step, {"name": "rl", **row}))
        ready = [row for row in self._waiting if row[1] <= self._learned]
        self._waiting = [row for row in self._waiting if row[1] > self._learned]
        for phase, step, values in sorted(learned + ready, key=lambda row: (row[1], row[0] == "eval")):
            self.record.write(phase, step, values)
        self._keep_checkpoints()

    def _rows(self, path: Path) -> list[dict[str, Any]]:
        """Whole lines that were not read yet."""
        if not path.exists():
            return []
        text = path.read_bytes()[self._read[path] :]
        whole = text[: text.rfind(b"\n") + 1]
        self._read[path] += len(whole)
        return [json.loads(line) for line in whole.splitlines()]

    def _keep_checkpoints(self) -> None:
        tracker = checkpoint_folder(self.record.path, 0).parent / TRACKER
        if not tracker.exists() or not (said := tracker.read_text().strip()).isdigit():
            return
        steps = [int(p.name.removeprefix("global_step_")) for p in tracker.parent.glob("global_step_*")]
        for step in sorted(s for s in steps if self.kept < s <= int(said)):
            read_weights(self.native, self.record, step)
            self.record.keep_model(step, self.record.model)
            self.kept = step


def read_weights(native: Mapping[str, Any], record: FrameworkRun, step: int) -> None:
    """Put the weights of siiRL's checkpoint after ``step`` updates into the run's model."""
    folder = checkpoint_folder(record.path, step) / _ACTOR
    found = latest_checkpoint(folder)
    if found is None:
        raise CheckpointError(f"siiRL's checkpoint {folder} is empty: it was not written to its end")
    optim = SimpleNamespace(**native["actor_rollout_ref"]["actor"]["optim"])
    load_checkpoint(found, record.model, lambda phase: make_optimizer(record.model, optim))


def row_of(logged: Mapping[str, float]) -> dict[str, Any]:
    """A row of metrics.jsonl from what siiRL logged in a step, under the names that ``local`` uses."""
    row = {key.split("/", 1)[1]: value for key, value in logged.items() if key.startswith(("drive/", "actor/"))}
    loss = row.get("loss", math.nan)
    if not math.isfinite(loss):
        raise DivergenceError(f"rl step {int(logged['step'])}: siiRL reported the loss {loss}; see its log")
    times = {"model_s": "sample_s", "world_s": "score_s"}
    row = {times.get(name, name): value for name, value in row.items()}
    nodes = {"train": "update_s", "old_log_prob": "replay_s"}
    return row | {
        ours: logged[f"perf/delta_time/{node}"] for node, ours in nodes.items() if f"perf/delta_time/{node}" in logged
    }
