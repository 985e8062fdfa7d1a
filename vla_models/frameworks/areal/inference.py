"""AReaL's inference engine around any model with a record: the acting side of the record route.

AReaL's own engines speak to SGLang or vLLM. This one asks a model in its own process (``deciding.Decider``), and leaves the
rest, submitting, waiting, staleness control, to AReaL's ``WorkflowExecutor`` unchanged.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final

from areal.api import InferenceEngine
from areal.api.io_struct import LocalInfServerInfo
from areal.infra import RolloutController, WorkflowExecutor
from areal.infra.platforms import current_platform
from areal.infra.remote_inf_engine import RemoteInfEngine
from areal.utils import logging as areal_logging
from areal.utils import perf_tracer, stats_tracker
from safetensors.torch import load_file
from torch import Tensor

from vla_models.errors import VLAModelsError
from vla_models.frameworks.areal.deciding import Decider, Decision, Sampling
from vla_models.frameworks.model_adapter import build_model
from vla_models.frameworks.user_code import import_sources
from vla_models.inputs import VLAInput
from vla_models.training.checkpoint import random_stream

MOST_ROWS: Final = 256
"""Plans that are decided together, at most."""


class VLAInferenceEngine(InferenceEngine):
    """A model that episodes ask.

    Args:
        config: AReaL's ``rollout``; ``model`` is a checkpoint that ``save_pretrained`` wrote.
        decider: the model of another engine, to share; left out, one is loaded.
    """

    resolve: Any = RemoteInfEngine._resolve_workflow
    accept: Any = RemoteInfEngine._resolve_should_accept_fn

    def __init__(self, config: Any, decider: Decider | None = None) -> None:
        self.config = config
        self.logger = areal_logging.getLogger("VLAInferenceEngine")
        self._shared = decider is not None
        self._decider = decider
        self._version, self._lock = 0, threading.Lock()
        self._executor: WorkflowExecutor | None = None
        self._proxy_gateway_addr = None  # what AReaL's workflow resolution reads

    def initialize(
        self, engine_id: str | None = None, train_data_parallel_size: int | None = None, seed: int = 0, **unused: Any
    ) -> None:
        """Load the model, unless it is shared, and start AReaL's executor. ``seed`` and the engine's id seed the samples."""
        import_sources()
        if self._decider is None:
            model = build_model("areal", self.config, self.config.model).to(current_platform.current_device())
            stream = random_stream(seed, f"engine-{engine_id or 0}", 0)
            self._decider = Decider(model, seed=stream, most_rows=MOST_ROWS)
        self._executor = WorkflowExecutor(config=self.config, inference_engine=self)
        self._executor.initialize(logger=self.logger, train_data_parallel_size=train_data_parallel_size)

    def destroy(self) -> None:
        """End the executor and, if it is this engine's own, the model's thread."""
        if self._executor is not None:
            self._executor.destroy()
            self._executor = None
        if self._decider is not None and not self._shared:
            self._decider.close()

    @property
    def initialized(self) -> bool:
        """Whether ``initialize`` was called, and ``destroy`` was not."""
        return self._executor is not None

    @property
    def decider(self) -> Decider:
        """The model and its thread."""
        if self._decider is None:
            raise VLAModelsError("the inference engine was not initialised")
        return self._decider

    @property
    def workflow_executor(self) -> WorkflowExecutor:
        """AReaL's own."""
        if self._executor is None:
            raise VLAModelsError("the inference engine was not initialised")
        return self._executor

    # -- deciding --------------------------------------------------------------------------------------------------------

    async def adecide(self, inputs: list[VLAInput], sampling: Sampling) -> Decision:
        """Plans for inputs, decided together with what other episodes ask at the moment."""
        return await asyncio.wrap_future(self.decider.decide(inputs, sampling))

    # -- weights ---------------------------------------------------------------------------------------------------------

    def take_weights(self, weights: dict[str, Tensor], version: int) -> None:
        """New weights, from a train engine in this process."""
        self.decider.load(weights, version)

    def update_weights_from_disk(self, meta: Any) -> Future[None]:
        """New weights, from a train engine in another process."""
        done: Future[None] = Future()
        self.decider.load(load_file(Path(meta.path) / "weights.safetensors"), meta.version)
        done.set_result(None)
        return done

    def set_version(self, version: int) -> None:
        """Updates that the weights have had, for AReaL's staleness control."""
        with self._lock:
            self._version = version

    def get_version(self) -> int:
        """See ``set_version``."""
        with self._lock:
            return self._version

    def pause_generation(self) -> None:
        """Let requests wait, when the one that runs has ended."""
        self.decider.pause()

    def continue_generation(self) -> None:
        """Decide what waits."""
        self.decider.resume()

    # -- AReaL's executor ------------------------------------------------------------------------------------------------

    def submit(
        self,
        data: dict[str, Any],
        workflow: Any,
        workflow_kwargs: dict[str, Any] | None = None,
        should_accept_fn: Any = None,
        group_size: int = 1,
        task_id: int | None = None,
        callback_addr: str | None = None,
        is_eval: bool = False,
        proxy_addr: str | None = None,
    ) -> int:
        """See AReaL's ``RemoteInfEngine.submit``."""
        if callback_addr and task_id is not None:
            self.workflow_executor.dispatcher.register_callback(task_id, callback_addr)
        resolved = self.resolve(workflow, workflow_kwargs, group_size, proxy_addr=proxy_addr)
        accept = self.accept(should_accept_fn)
        number: int = self.workflow_executor.submit(
            data, workflow=resolved, should_accept_fn=accept, task_id=task_id, is_eval=is_eval
        )
        return number

    def wait(self, count: int, timeout: float | None = None, raise_timeout: bool = True) -> Any:
        """See AReaL's ``RemoteInfEngine.wait``."""
        return self.workflow_executor.wait(count, timeout=timeout, raise_timeout=raise_timeout)

    def wait_for_task(self, task_id: int, timeout: float | None = None, raise_timeout: bool = True) -> Any:
        """See AReaL's ``RemoteInfEngine.wait_for_task``."""
        return self.workflow_executor.wait_for_task(task_id, timeout, raise_timeout)

    def rollout_batch(
        self, data: list[dict[str, Any]], workflow: Any, workflow_kwargs: dict[str, Any] | None = None, group_size: int = 1
    ) -> Any:
        """See AReaL's ``RemoteInfEngine.rollout_batch``."""
        return self.workflow_executor.rollout_batch(data=data, workflow=self.resolve(workflow, workflow_kwargs, group_size))

    def prepare_batch(
        self,
        dataloader: Any,
        workflow: Any,
        workflow_kwargs: dict[str, Any] | None = None,
        should_accept_fn: Any = None,
        group_size: int = 1,
        dynamic_bs: bool = False,
    ) -> Any:
        """See AReaL's ``RemoteInfEngine.prepare_batch``."""
        return self.workflow_executor.prepare_batch(
            dataloader=dataloader,
            workflow=self.resolve(workflow, workflow_kwargs, group_size),
            should_accept_fn=self.accept(should_accept_fn),
            dynamic_bs=dynamic_bs,
        )

    def pause(self) -> None:
        """Begin no more episodes."""
        self.workflow_executor.pause()

    def resume(self) -> None:
        """Go on beginning episodes."""
        self.workflow_executor.resume()

    def export_stats(self) -> dict[str, float]:
        """AReaL's statistics of rollouts (none where a train engine in this process exports them, too)."""
        stats: dict[str, float] = stats_tracker.export_all(reduce_group=None)
        return stats

    def save_perf_tracer(self, step: int | None = None, force: bool = False) -> None:
        """Write AReaL's trace, if one is made."""
        perf_tracer.save(step=step, force=force)

    def config_perf_tracer(self, config: Any, rank: int, role: str) -> None:
        """Make AReaL's trace."""
        if not perf_tracer.is_configured():
            perf_tracer.configure(config, rank=rank, role=role)

    # -- single-controller mode ------------------------------------------------------------------------------------------

    def launch_server(self, server_args: dict[str, Any]) -> LocalInfServerInfo:
        """There is no server: the model lives in this process."""
        return LocalInfServerInfo(host="127.0.0.1", port=0, process=None)

    def teardown_server(self) -> None:
        """Nothing was launched."""

    @classmethod
    def as_controller(cls, config: Any, scheduler: Any) -> RolloutController:
        """For AReaL's single-controller mode."""
        return RolloutController(inf_engine=cls, config=config, scheduler=scheduler)
