"""AReaL's own ``PPOTrainer``, with our engines in the place of its two, and our run folder listening.

What is swapped: how engines are made (record route only), where batches of scenes come from (so that a run in which nothing can
be learned ends with an error instead of going on for ever), and when checkpoints are written. The training loop is AReaL's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Final

from areal import PPOTrainer
from areal.api import SaveLoadMeta
from areal.utils.environ import is_single_controller
from datasets import Dataset

from vla_models.errors import SceneError
from vla_models.frameworks.areal.engine import VLAPPOActor
from vla_models.frameworks.areal.inference import VLAInferenceEngine
from vla_models.frameworks.areal.recording import plain_folder
from vla_models.frameworks.areal.sequences import Staleness, staleness

if TYPE_CHECKING:
    from vla_models.frameworks.areal.recording import Recorder

FRUITLESS: Final = 8
"""Batches' worth of groups that may be rejected in a row before a run is ended."""


class WatchedLoader:
    """AReaL's data loader, which ends the run when nothing but rejected groups comes back.

    AReaL asks for more scenes as long as groups are rejected, without an end and without a word.
    """

    def __init__(self, loader: Any, trainer: RecordedTrainer) -> None:
        self.loader, self.trainer = loader, trainer
        self.batch_size, self.sampler = loader.batch_size, loader.sampler
        self._accepted, self._rejected = 0, 0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            self._look()
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """How far it is."""
        state: dict[str, Any] = self.loader.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.loader.load_state_dict(state)

    def _look(self) -> None:
        manager = self.trainer.staleness_manager()
        if manager is None:
            return
        stats = manager.get_stats()
        if stats.accepted > self._accepted:
            self._accepted, self._rejected = stats.accepted, stats.rejected
        in_a_row = stats.rejected - self._rejected
        if in_a_row >= FRUITLESS * self.batch_size:
            raise SceneError(
                f"{in_a_row} groups were rejected in a row and none was accepted, so there is nothing to learn from; the last "
                f"reason: {self.trainer.last_failure() or 'see the log'}"
            )


class RecordedTrainer(PPOTrainer):
    """AReaL's trainer with our run folder listening.

    Args:
        config: AReaL's ``GRPOConfig``.
        recorder: writes rows and checkpoints.
        train_scenes, heldout_scenes: names of scenes, in order.
        workflow, eval_workflow: what drives them.
    """

    def __init__(
        self,
        config: Any,
        recorder: Recorder,
        train_scenes: Sequence[str],
        heldout_scenes: Sequence[str],
        workflow: Any,
        eval_workflow: Any,
    ) -> None:
        self.recorder = recorder
        self.workflow, self.eval_workflow = workflow, eval_workflow
        self._late: Staleness | None = None
        self._due: tuple[int, int, int] | None = None
        heldout = Dataset.from_list([{"scene": scene} for scene in heldout_scenes]) if heldout_scenes else None
        super().__init__(config, Dataset.from_list([{"scene": scene} for scene in train_scenes]), heldout)
        self._watch_batches()

    def run(self, **kwargs: Any) -> None:
        """Train to the end."""
        self.train(workflow=self.workflow, eval_workflow=self.eval_workflow, **kwargs)

    def staleness_manager(self) -> Any:
        """AReaL's count of rollouts; None before there is one."""
        rollout = getattr(self, "rollout", None)
        if rollout is None:
            return None
        return rollout.staleness_manager if is_single_controller() else rollout.workflow_executor.staleness_manager

    def last_failure(self) -> str:
        """Why the last group was rejected, where the workflow runs in this process."""
        return str(getattr(self.workflow, "last_failure", ""))

    def _create_dataloader(self, dataset: Any, dataset_config: Any, rank: int, world_size: int) -> Any:
        loader = super()._create_dataloader(dataset, dataset_config, rank, world_size)
        return WatchedLoader(loader, self) if dataset_config is self.config.train_dataset else loader

    def _watch_batches(self) -> None:
        """Look at every batch before it is trained on."""
        prepare = self.actor.prepare_batch
        bound = self.config.rollout.max_head_offpolicyness

        def prepared(*args: Any, **kwargs: Any) -> Any:
            batch = prepare(*args, **kwargs)
            if not is_single_controller():  # there, batches stay with the workers
                self._late = staleness(batch, self.actor.get_version(), bound)
            return batch

        self.actor.prepare_batch = prepared

    def _save_recover_checkpoint(self, epoch: int, epoch_step: int, global_step: int) -> None:
        """Put off until the row of this step is written (``_export_and_commit_stats`` comes last in a step)."""
        self._due = epoch, epoch_step, global_step

    def _export_and_commit_stats(self, epoch: int, epoch_step: int, global_step: int) -> None:
        committed: dict[str, float] = {}
        commit = self.stats_logger.commit

        def listen(epoch: int, step: int, global_step: int, data: Any) -> None:
            for part in data if isinstance(data, list) else [data]:
                committed.update(part)
            commit(epoch, step, global_step, data)

        self.stats_logger.commit = listen
        try:
            super()._export_and_commit_stats(epoch, epoch_step, global_step)
        finally:
            self.stats_logger.commit = commit
        step = global_step + 1
        self.recorder.update(step, committed, self._late)
        if self._due is not None and self.recorder.is_due(step):
            super()._save_recover_checkpoint(*self._due)
            self._export_weights(step)
            self.recorder.checkpoint(step)

    def _export_weights(self, step: int) -> None:
        """Write what ``Recorder.weights`` reads, if the checkpoint just written is not that."""


class TokenTrainer(RecordedTrainer):
    """AReaL's own engines."""

    def _export_weights(self, step: int) -> None:
        folder = plain_folder(self.recorder.record.path, step)
        self.actor.save(SaveLoadMeta(str(folder), "hf", False, self.tokenizer, self.processor, None))


class RecordTrainer(RecordedTrainer):
    """Our engines: any model with a record."""

    def _create_train_engine(self, actor_config: Any, alloc: Any) -> Any:
        if is_single_controller():
            engine = VLAPPOActor.as_controller(actor_config, self.scheduler)
        else:
            engine = VLAPPOActor(actor_config)
        engine.create_process_group(parallel_strategy=alloc.parallel)
        return engine

    def _init_rollout(self, rollout_config: Any, is_eval: bool = False, lora_path: str | None = None) -> Any:
        config = deepcopy(rollout_config)
        if is_eval:
            config.max_head_offpolicyness = int(1e12)
        if is_single_controller():
            if is_eval:
                return None
            controller = VLAInferenceEngine.as_controller(config, self.scheduler)
            controller.initialize(role="rollout", server_args={}, seed=self.config.seed)
            return controller
        engine = VLAInferenceEngine(config, self.rollout.decider if is_eval else None)
        rank, size = self.actor.data_parallel_rank, self.actor_alloc.parallel.dp_size
        engine.initialize(engine_id=str(rank), train_data_parallel_size=size, seed=self.config.seed)
        return engine
