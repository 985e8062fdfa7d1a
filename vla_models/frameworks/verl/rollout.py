"""verl's rollout side for our models: a server that decides, its replica, and how weights get there.

A request is one observation; the server decides on all that wait at once, and reads an observation that several trajectories
share only once (``num_samples``).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import ray
import torch
from torch import Tensor
from verl.utils.device import get_device_name, get_resource_name, get_torch_device
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, TokenOutput

from vla_models.errors import CheckpointError, ConfigError, NotImplementedByModel
from vla_models.frameworks.model_adapter import build_model
from vla_models.frameworks.observations import ObservationLayout, Packed, concatenate
from vla_models.frameworks.records import RecordLayout
from vla_models.frameworks.verl.fields import record_fields, rows_of
from vla_models.frameworks.verl.model import ACTION, DrivingModelConfig, own_names
from vla_models.inputs import VLAInput
from vla_models.training.checkpoint import random_stream

GATHER_S: Final = 0.005
"""Seconds without a new request after which the server decides on those that wait."""


@dataclass
class Request:
    """One observation that waits for a plan."""

    observation: Packed
    temperature: float
    top_p: float
    answer: asyncio.Future[TokenOutput]

    def same(self) -> Any:
        """Equal for requests that see the same and want it sampled alike."""
        seen = self.observation
        pictures = [None if part is None else part.tobytes() for part in (seen.main, seen.extra)]
        return self.temperature, self.top_p, seen.states.tobytes(), *pictures, *(seen.text or ())


class DrivingServer:
    """A model that decides, for one replica.

    Args:
        config: verl's ``actor_rollout_ref.model``.
        rank: of the replica: its samples depend on it.
        device: what the model is on while it decides.
    """

    def __init__(self, config: DrivingModelConfig, rank: int, device: str = "cpu") -> None:
        self.model = build_model("verl", config, config.path).eval()
        vla = config.vla
        self.observations = ObservationLayout.from_dict(vla["observation"])
        self.records = RecordLayout.from_dict(vla["record"])
        self.masked = bool(vla["masked"])
        self.seed, self.rank, self.device = int(vla["seed"]), rank, device
        self.version: int | None = None
        self.batches = 0
        self._waiting: list[Request] = []
        self._deciding: asyncio.Task[None] | None = None
        self._model_is_free = asyncio.Lock()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="decide")

    async def generate(
        self, request_id: str, prompt_ids: list[int], sampling_params: Mapping[str, Any], observation: Packed, **unused: Any
    ) -> TokenOutput:
        """Decide: ``extra_fields`` has ``plan`` [T, 3], ``valid``, ``record`` (see ``fields``) and ``global_steps``, the
        version of the weights. Temperature 0 asks for the likeliest plan, and gives no record."""
        temperature, top_p = float(sampling_params.get("temperature", 1.0)), float(sampling_params.get("top_p", 1.0))
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append(Request(observation, temperature, top_p, answer))
        if self._deciding is None or self._deciding.done():
            self._deciding = asyncio.create_task(self._decide())
        return await answer

    async def load(self, weights: Mapping[str, Tensor], version: int | None) -> None:
        """Take new weights, all of them. Raises ``CheckpointError`` if they are those of another model."""
        async with self._model_is_free:
            own = self.model.state_dict()
            if different := sorted(own.keys() ^ weights.keys()):
                raise CheckpointError(
                    f"the weights that verl sent do not fit {type(self.model).__name__}: {len(different)} have no counterpart, "
                    f"for example {different[0]!r}"
                )
            self.model.load_state_dict(dict(weights))
            self.model.to(self.device)
            self.version = version

    async def state(self) -> dict[str, Any]:
        """Version of the weights, and batches decided so far."""
        return {"version": self.version, "batches": self.batches}

    async def sleep(self, *unused: Any) -> None:
        """Leave the accelerator to the trainer."""
        async with self._model_is_free:
            self.model.to("cpu")
            get_torch_device().empty_cache()

    async def wake_up(self, *unused: Any) -> None:
        """Come back to the accelerator."""
        async with self._model_is_free:
            self.model.to(self.device)

    async def nothing(self, *unused: Any, **also: Any) -> None:
        """What verl asks of servers that keep a cache or can be interrupted: a decision is short and keeps nothing."""

    abort_all_requests = resume_generation = clear_kv_cache = release_kv_cache = resume_kv_cache = nothing
    start_profile = stop_profile = nothing

    async def _decide(self) -> None:
        """Decide on what waits, until nothing does."""
        while self._waiting:
            known = -1
            while known != len(self._waiting):
                known = len(self._waiting)
                await asyncio.sleep(GATHER_S)
            async with self._model_is_free:
                batch, self._waiting = self._waiting, []
                await asyncio.get_running_loop().run_in_executor(self._executor, self._settle, batch)

    def _settle(self, batch: list[Request]) -> None:
        """Answer requests, those with equal observations together. What the model raises is their answer."""
        self.batches += 1
        generator = torch.Generator(self.device)
        generator.manual_seed(random_stream(self.seed, f"rollout-{self.rank}-{self.version}", self.batches))
        alike: dict[Any, list[Request]] = {}
        for request in batch:
            alike.setdefault(request.same(), []).append(request)
        sets: dict[Any, list[list[Request]]] = {}
        for group in alike.values():
            first = group[0]
            sets.setdefault((first.temperature, first.top_p, len(group)), []).append(group)
        for (temperature, top_p, size), groups in sets.items():
            members = [request for group in groups for request in group]
            try:
                answers = self._predict([group[0].observation for group in groups], temperature, top_p, size, generator)
            except Exception as e:  # a user's model may fail in any way: the trajectory learns why
                _tell(members, [e] * len(members))
                continue
            _tell(members, answers)

    @torch.no_grad()
    def _predict(
        self, observations: list[Packed], temperature: float, top_p: float, samples: int, generator: torch.Generator
    ) -> list[TokenOutput]:
        """Decisions on observations [1] each, ``samples`` of them side by side."""
        inputs = VLAInput.batch(self.observations.unpack(concatenate(observations)))
        if temperature == 0.0:
            decided = self.model.predict(inputs, deterministic=True, num_samples=samples)
            logprobs = None
            records: list[dict[str, Any]] = [{} for _ in range(len(inputs) * samples)]
        else:
            decided = self.model.predict(inputs, num_samples=samples, temperature=temperature, top_p=top_p, generator=generator)
            if decided.record is None or decided.logprobs is None:
                raise NotImplementedByModel(
                    f"{type(self.model).__name__} cannot be trained: its predict returns no record and logprobs "
                    "(see docs/models.md)"
                )
            logprobs = decided.logprobs.float().flatten(1).cpu()
            records = rows_of(record_fields(self.records.pack(decided.record)))
            mask = torch.ones_like(logprobs, dtype=torch.bool)
            if self.masked:
                mask = self.model.evaluate_actions(decided.record)["mask"].flatten(1).cpu()
        plans = decided.waypoints.reshape(-1, *decided.waypoints.shape[-2:])
        valid = [True] * len(plans) if decided.valid is None else decided.valid.tolist()
        parts: list[list[float]] = [[] for _ in plans]
        if logprobs is not None:
            rows = zip(logprobs.tolist(), mask.tolist(), strict=True)
            parts = [[part for part, counts in zip(*row, strict=True) if counts] for row in rows]
        answers = []
        for row, own in enumerate(parts):
            fields = {
                "plan": plans[row],
                "valid": bool(valid[row]),
                "record": records[row],
                "global_steps": self.version,
            }
            answers.append(
                TokenOutput(token_ids=[ACTION] * len(own), log_probs=own, stop_reason="completed", extra_fields=fields)
            )
        return answers


def _tell(requests: Sequence[Request], answers: Sequence[TokenOutput | Exception]) -> None:
    """Answer requests of one event loop from another thread."""

    def settle() -> None:
        for request, answer in zip(requests, answers, strict=True):
            if request.answer.done():
                continue
            if isinstance(answer, Exception):
                request.answer.set_exception(answer)
            else:
                request.answer.set_result(answer)

    requests[0].answer.get_loop().call_soon_threadsafe(settle)


class DrivingReplica(RolloutReplica):
    """One server beside a training process, on the same accelerator."""

    server_class: type = DrivingServer

    def server_arguments(self) -> tuple[Any, ...]:
        """What the server is made of."""
        return self.model_config, self.replica_rank, get_device_name()

    async def launch_servers(self) -> None:
        """Start the server on the node, and with the devices, of this replica's training process."""
        if self.world_size != 1:
            raise ConfigError(
                "framework_options.actor_rollout_ref.rollout: a server of vla_models holds a whole model; tensor, data and "
                f"pipeline parallel sizes must be 1, and they make {self.world_size}"
            )

        def whereabouts(worker: Any) -> tuple[str, list[str]]:
            context = ray.get_runtime_context()
            return context.get_node_id(), context.get_accelerator_ids().get(get_resource_name(), [])

        node, devices = await self.workers[0].__ray_call__.remote(whereabouts)
        visible = {"CUDA_VISIBLE_DEVICES": ",".join(devices), "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}
        options = {
            "name": server_name(self.replica_rank),
            "num_cpus": 0,
            "max_concurrency": self.max_concurrency,
            "scheduling_strategy": ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False),
            "runtime_env": {"env_vars": visible if get_device_name() != "cpu" else {}},
        }
        server = ray.remote(self.server_class).options(**options).remote(*self.server_arguments())
        await server.state.remote()  # it has loaded its model
        self.servers, self._server_handle = [server], server
        self._server_address = server_name(self.replica_rank)


class DrivingRollout(BaseRollout):
    """Sits in a training process and sends its weights to the replica's server."""

    def __init__(self, config: Any, model_config: Any, device_mesh: Any, *args: Any, replica_rank: int = -1, **kw: Any) -> None:
        super().__init__(config, model_config, device_mesh)
        self.replica_rank = int(os.environ["RANK"]) if replica_rank == -1 else replica_rank
        self.is_leader_rank = True

    names = staticmethod(own_names)

    async def resume(self, tags: list[str]) -> None:
        """The server takes its memory when it gets weights."""

    async def release(self) -> None:
        """The trainer tells the server itself to sleep."""

    async def update_weights(
        self,
        weights: Iterable[tuple[str, Tensor]],
        wire_format: str = "named_tensors",
        global_steps: int | None = None,
        **unused: Any,
    ) -> None:
        """Send whole weights; their version is ``global_steps``."""
        if wire_format != "named_tensors":
            raise ConfigError(
                f"framework_options.actor_rollout_ref.rollout.checkpoint_engine: weights as {wire_format!r} cannot be read by "
                "the server of vla_models; choose an engine that sends whole tensors"
            )
        whole = self.names({name: value.detach().cpu().contiguous() for name, value in weights})
        await ray.get_actor(server_name(self.replica_rank)).load.remote(whole, global_steps)


def server_name(rank: int) -> str:
    """Name of a replica's server within the run's Ray namespace."""
    return f"vla_models_server_{rank}"
