"""The embedded trainer (framework ``local``): imitation, then GRPO or PPO, with evaluation before, between and after.

Reads top to bottom. Everything random in a step comes from (seed, phase, step), and a checkpoint is taken between two steps, so
a run that was killed and resumed writes the same metrics as one that was not (times apart).
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vla_models.training.checkpoint import data_order, latest_checkpoint, load_checkpoint, random_stream, save_checkpoint
from vla_models.training.imitation import cosine
from vla_models.training.learner import Learner
from vla_models.training.metrics import MetricsLog
from vla_models.training.practice import Practice
from vla_models.training.progress import Bar
from vla_models.training.results import keep_results, summarise
from vla_models.training.rollout import select

if TYPE_CHECKING:
    from vla_models.config import VLAConfig
    from vla_models.interface import VLAInterface

log = logging.getLogger(__name__)


class Trainer:
    """One run in one folder. ``Trainer(…).run()`` starts it, or goes on from the folder's last checkpoint.

    Args:
        config: the run's configuration.
        run_dir: its folder (exists).
        model: a freshly made model; its weights are replaced when the run is resumed.
        practice: where it learns, and where it is evaluated (``practice.make_practice``).

    Raises:
        SceneError: if a whole batch of episodes was invalid.
        CheckpointError: if the last checkpoint is damaged or belongs to another model.
        DivergenceError: if a loss, gradient or log-probability is not finite or not reproducible.
    """

    def __init__(self, config: VLAConfig, run_dir: Path, model: VLAInterface, practice: Practice) -> None:
        config.check_model(model)
        self.config, self.model, self.run_dir, self.practice = config, model, Path(run_dir), practice
        self.learner = Learner(config, model)
        self.threads = config.training.threads or len(os.sched_getaffinity(0))
        self.checkpoints = self.run_dir / "checkpoints"
        self.log: MetricsLog
        self._started, self._earlier = time.monotonic(), 0.0

    def run(self) -> dict[str, Any]:
        """Train to the end; returns what ``summary.json`` holds."""
        torch.set_num_threads(self.threads)
        phase, done = self._restore()
        with self.log:
            if phase == "imitation":
                done = self._warm_up(done)
            if self.config.training.steps:
                self._reinforce(done)
            return self._conclude(self.config.training.steps)

    def warm_start(self) -> None:
        """Only what comes before reinforcement learning, for frameworks that do that elsewhere: imitation and its evaluation.

        The imitated model is in ``self.model`` and in ``checkpoints/imitation`` afterwards. It is done once: in a run that has
        it, it is restored.
        """
        torch.set_num_threads(self.threads)
        phase, done = self._restore()
        with self.log:
            if phase == "imitation":
                self._warm_up(done)

    def conclude(self, steps: int) -> dict[str, Any]:
        """Evaluate ``self.model`` as what ``steps`` updates gave, save it, write ``summary.json``; returns what is in there."""
        torch.set_num_threads(self.threads)
        with MetricsLog(self.run_dir, keep_bytes=(self.run_dir / "metrics.jsonl").stat().st_size) as self.log:
            return self._conclude(steps)

    def _warm_up(self, done: int) -> int:
        self._imitate(done)
        self._evaluate("imitation", 0)
        return self._enter_rl()

    def _conclude(self, steps: int) -> dict[str, Any]:
        if steps:
            self._evaluate("rl", steps)
        self.model.save_pretrained(self.checkpoints / "model")
        return summarise(self.config, self.run_dir, self.practice, self._wall())

    def _restore(self) -> tuple[str, int]:
        """Phase and steps done of the last checkpoint (imitation, 0 in a new run), with weights, optimiser and log put back."""
        found = latest_checkpoint(self.checkpoints)
        if found is None:
            with tempfile.TemporaryDirectory() as folder:  # a model that cannot be saved says so now, not after the training
                self.model.save_pretrained(Path(folder) / "model")
            self.log = MetricsLog(self.run_dir)
            self.learner.optimizer = self.learner.make_optimizer("imitation")
            return "imitation", 0
        restored = load_checkpoint(found, self.model, self.learner.make_optimizer)
        self.learner.optimizer = restored.optimizer
        if restored.phase == "rl" and self.learner.uses_reference:
            self.model.make_reference(restored.reference)
        if restored.practice:
            self.practice.restore(restored.practice)
        self.log = MetricsLog(self.run_dir, keep_bytes=restored.state["metrics_bytes"])
        self._earlier = restored.state["wall_s"]
        self.model.statistics = restored.state.get("statistics", {})
        return restored.phase, restored.step

    # -- imitation -------------------------------------------------------------------------------------------------------

    def _imitate(self, done: int) -> None:
        """Steps ``done`` … of the warm start."""
        settings, seed = self.config.training.imitation, self.config.seed
        if done >= settings.steps:
            return
        record = self.practice.imitation_record(self.model)
        size = len(next(iter(record.values())))
        self.model.train()
        with Bar("imitation", settings.steps, done) as bar:
            for step in range(done, settings.steps):
                torch.manual_seed(random_stream(seed, "imitation", step))
                rows = torch.as_tensor(data_order(seed, "imitation", step, size, settings.batch_size))
                self.learner.set_lr(settings.lr * cosine(step, settings.steps, warmup=min(50, settings.steps // 10)))
                loss = self.model.imitation_loss(select(record, rows))
                norm = self.learner.update(loss, "imitation", step)
                self._write("imitation", step + 1, {"loss": loss.item(), "grad_norm": norm})
                bar.advance(f"loss {loss.item():.3f}")
                self._checkpoint_if_due("imitation", step + 1, settings.steps)

    # -- reinforcement learning ------------------------------------------------------------------------------------------

    def _enter_rl(self) -> int:
        """Freeze the reference, take a fresh optimiser, keep the imitated model, and make that the first RL checkpoint."""
        self.model.save_pretrained(self.checkpoints / "imitation")
        if self.learner.uses_reference:
            self.model.make_reference()
        self.learner.optimizer = self.learner.make_optimizer("rl")
        self._checkpoint("rl", 0)
        return 0

    def _reinforce(self, done: int) -> None:
        """Updates ``done`` … of GRPO or PPO: sample decisions, have them scored, learn from the comparison."""
        training, algorithm, seed = self.config.training, self.config.algorithm, self.config.seed
        self.model.eval()  # dropout would make the replayed probabilities differ from the sampled ones
        with Bar(algorithm.name, training.steps, done) as bar:
            for step in range(done, training.steps):
                stream = random_stream(seed, "rl", step)
                torch.manual_seed(stream)
                self.learner.set_lr(training.optimizer.lr * cosine(step, training.steps, training.warmup_steps))
                batch = self.practice.collect(self.model, step)
                learned = self.learner.learn(batch, step, np.random.default_rng(stream))
                times = {"sample_s": batch.sample_s, "score_s": batch.score_s, "update_s": learned.pop("update_s")}
                self._write("rl", step + 1, {**batch.log, **learned, **times})
                bar.advance(f"reward {batch.log['reward_mean']:.3f}")
                if training.eval_every and (step + 1) % training.eval_every == 0 and step + 1 < training.steps:
                    self._evaluate("rl", step + 1, keep=False)
                    self.model.eval()
                self._checkpoint_if_due("rl", step + 1, training.steps)

    # -- what both phases share ------------------------------------------------------------------------------------------

    def _evaluate(self, name: str, step: int, *, keep: bool = True) -> None:
        """Greedy plans on everything held out: a row in the log and, if ``keep``, arrays in ``heldout.npz``."""
        self.model.eval()
        result = self.practice.evaluate(self.model)
        means = result.means()
        self._write("eval", step, {"name": name, **means, "invalid_answers": result.invalid_answers})
        log.info("held-out score %.3f (%s, %d updates)", means["score"], name, step)
        if keep:
            others = self.practice.baselines() if name == "imitation" else {}
            keep_results(self.run_dir, self.practice, {name: result, **others})

    def _write(self, phase: str, step: int, values: dict[str, Any]) -> None:
        self.log.write({"phase": phase, "step": step, "wall_s": round(self._wall(), 3), **values})

    def _wall(self) -> float:
        """Seconds that the run has taken, earlier parts of a resumed run included."""
        return self._earlier + time.monotonic() - self._started

    def _checkpoint_if_due(self, phase: str, step: int, steps: int) -> None:
        every = self.config.training.checkpoint_every
        if step == steps or (every and step % every == 0):
            self._checkpoint(phase, step)

    def _checkpoint(self, phase: str, step: int) -> None:
        state = {"metrics_bytes": self.log.size(), "wall_s": self._wall(), "statistics": self.model.statistics}
        reference = self.model.reference_weights() if phase == "rl" and self.learner.uses_reference else None
        save_checkpoint(
            self.checkpoints,
            self.model,
            self.learner.optimizer,
            phase,
            step,
            state,
            reference=reference,
            practice=self.practice.state() if phase == "rl" else None,
        )
