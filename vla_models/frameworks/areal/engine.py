"""AReaL's train engine around any model with a record: the learning side of the record route.

AReaL's own engines (FSDP, Megatron, Archon) load Hugging Face models and read log-probabilities off ``outputs.logits``. This
one asks ``evaluate_actions``. AReaL's ``PPOActor`` works on it unchanged, with its advantages, losses and statistics.

Data parallel: every rank holds the whole model, gradients are summed. AReaL's convention is kept that position t of a row holds
the log-probability of what stands at t + 1 (``trainer/ppo/actor.py`` rolls masks and old log-probabilities by -1).
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from areal.api import TrainEngine
from areal.api.io_struct import DeviceRuntimeInfo
from areal.engine.core.train_engine import aggregate_eval_losses, compute_total_loss_weight
from areal.engine.fsdp_utils import get_cosine_schedule_with_warmup
from areal.infra.platforms import current_platform
from areal.trainer.ppo.actor import PPOActor, PPOActorController
from areal.utils import perf_tracer, stats_tracker
from areal.utils.constants import DIST_GROUP_DEFAULT_TIMEOUT
from areal.utils.data import concat_batch, split_batch, split_padded_tensor_dict_into_mb_list
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import get_constant_schedule_with_warmup, get_linear_schedule_with_warmup

from vla_models.errors import CheckpointError, ConfigError, DivergenceError
from vla_models.files import atomic_path
from vla_models.frameworks.areal.coordinator import RolloutCoordinator
from vla_models.frameworks.areal.sequences import PAYLOAD, joined_record
from vla_models.frameworks.model_adapter import build_model
from vla_models.frameworks.user_code import import_sources
from vla_models.interface import VLAForDriving, VLAInterface
from vla_models.training.learner import HALF_TOLERANCE, REPLAY_TOLERANCE

KEPT: Final = 2
"""Checkpoints to go on from that are kept: a crash while one is written leaves the one before."""


class VLATrainEngine(TrainEngine):
    """The 30 methods of AReaL's ``TrainEngine`` on a ``VLAInterface``.

    config: ``path`` is a checkpoint that ``save_pretrained`` wrote; ``optimizer`` (adam, which is AdamW, or sgd), ``mb_spec``
    (``max_tokens_per_mb`` bounds the slots of one forward), ``use_lora`` must be false: a model brings its own adapters.
    """

    def __init__(self, config: Any) -> None:
        if config.use_lora:
            raise ConfigError("actor.use_lora: models do LoRA themselves on this route; use model.language_model.lora_enabled")
        self.config = config
        self.model: VLAInterface
        self.optimizer: torch.optim.Optimizer
        self.lr_scheduler: Any
        self.rollout_engine: Any = None
        self.has_entropy = True
        self._coordinator: RolloutCoordinator | None = None
        self._version, self._initialized, self._own_group = 0, False, False
        self._checked: int | None = None
        """Weight version whose replay has been compared with sampling."""

    # -- processes -------------------------------------------------------------------------------------------------------

    def create_process_group(self, parallel_strategy: Any = None) -> None:
        """Join the other ranks (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT), or be alone."""
        size = 1 if parallel_strategy is None else parallel_strategy.world_size
        if parallel_strategy is not None and parallel_strategy.dp_size != size:
            raise ConfigError(
                "actor.backend: on the record route every process holds the whole model; give data parallelism alone (fsdp:d2)"
            )
        if not dist.is_initialized():
            dist.init_process_group(backend=current_platform.communication_backend, timeout=DIST_GROUP_DEFAULT_TIMEOUT)
            self._own_group = True
        if dist.get_world_size() != size:
            raise ConfigError(f"actor.backend asks for {size} processes, and {dist.get_world_size()} were started")
        self.rank = dist.get_rank()
        self._cpu_group = dist.new_group(timeout=DIST_GROUP_DEFAULT_TIMEOUT, backend="gloo")
        self._dp_group = dist.group.WORLD
        alone = [dist.new_group([rank], timeout=DIST_GROUP_DEFAULT_TIMEOUT) for rank in range(size)]
        self._own = alone[self.rank]

    def initialize(self, addr: str | None = None, ft_spec: Any = None, *args: Any, **kwargs: Any) -> None:
        """Load the model, make optimiser and schedule."""
        import_sources()
        if torch.cuda.is_available():
            current_platform.set_device(0 if torch.cuda.device_count() == 1 else self.rank % torch.cuda.device_count())
        self.device = torch.device(current_platform.current_device())
        self.model = build_model("areal", self.config, self.config.path).to(self.device).eval()
        self.model.require("trained")
        if self.config.optimizer is not None:
            self._make_optimizer(ft_spec.total_train_steps)
        self._initialized = True

    def _make_optimizer(self, steps: int) -> None:
        wanted = self.config.optimizer
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        if wanted.type == "adam":
            self.optimizer = torch.optim.AdamW(
                parameters, wanted.lr, (wanted.beta1, wanted.beta2), wanted.eps, wanted.weight_decay
            )
        elif wanted.type == "sgd":
            self.optimizer = torch.optim.SGD(parameters, wanted.lr, weight_decay=wanted.weight_decay)
        else:
            raise ConfigError(f"actor.optimizer.type: {wanted.type!r} is not known on the record route; use adam or sgd")
        warm = int(wanted.warmup_steps_proportion * steps)
        if wanted.lr_scheduler_type == "cosine":
            schedule = get_cosine_schedule_with_warmup(self.optimizer, warm, steps, min_lr_ratio=wanted.min_lr_ratio)
        elif wanted.lr_scheduler_type == "linear":
            schedule = get_linear_schedule_with_warmup(self.optimizer, warm, steps)
        else:
            schedule = get_constant_schedule_with_warmup(self.optimizer, warm)
        self.lr_scheduler = schedule

    def destroy(self) -> None:
        """Leave the process group, if this engine made it."""
        self._initialized = False
        if self._own_group and dist.is_initialized():
            dist.barrier(group=self._cpu_group)
            dist.destroy_process_group()
            self._own_group = False

    @property
    def initialized(self) -> bool:
        """Whether ``initialize`` was called."""
        return self._initialized

    @property
    def data_parallel_group(self) -> Any:
        """All ranks."""
        return self._dp_group

    @property
    def data_parallel_rank(self) -> int:
        """Of this process."""
        return int(self.rank)

    @property
    def data_parallel_world_size(self) -> int:
        """Ranks."""
        return dist.get_world_size()

    @property
    def context_and_model_parallel_group(self) -> Any:
        """This process alone: nothing is cut but the batch."""
        return self._own

    @property
    def cpu_group(self) -> Any:
        """All ranks, on the CPU."""
        return self._cpu_group

    def current_data_parallel_head(self) -> int:
        """Every rank is its own head."""
        return int(self.rank)

    def is_data_parallel_head(self) -> bool:
        """Every rank is one."""
        return True

    # -- rollout ---------------------------------------------------------------------------------------------------------

    def connect_engine(self, engine: Any, meta: Any) -> None:
        """Take rollouts from this inference engine and give it new weights."""
        self.rollout_engine = engine
        self._coordinator = RolloutCoordinator(rollout_engine=engine, train_engine=self)

    def rollout_batch(self, *args: Any, **kwargs: Any) -> Any:
        """See AReaL's ``DistRolloutCoordinator``."""
        assert self._coordinator is not None
        return self._coordinator.rollout_batch(*args, **kwargs)

    def prepare_batch(self, *args: Any, **kwargs: Any) -> Any:
        """See AReaL's ``DistRolloutCoordinator``."""
        assert self._coordinator is not None
        return self._coordinator.prepare_batch(*args, **kwargs)

    def update_weights(self, meta: Any) -> None:
        """Give the present weights to the inference side, as version ``meta.version``: directly if it lives in this process,
        else through a file in ``meta.path``."""
        take = getattr(self.rollout_engine, "take_weights", None)
        if take is not None:
            take(self.model.state_dict(), meta.version)
        elif self.rank == 0:
            self.rollout_engine.pause_generation()
            self._write_weights(Path(meta.path))
            self.rollout_engine.update_weights_from_disk(meta).result()
            self.rollout_engine.continue_generation()
        dist.barrier(group=self._cpu_group)

    def _write_weights(self, folder: Path) -> None:
        with atomic_path(folder) as temporary:
            temporary.mkdir(parents=True)
            save_file(_own_storage(self.model.state_dict()), temporary / "weights.safetensors")

    def set_version(self, version: int) -> None:
        """Updates that the weights have had."""
        self._version = version

    def get_version(self) -> int:
        """See ``set_version``."""
        return self._version

    # -- checkpoints -----------------------------------------------------------------------------------------------------

    def save(self, meta: Any) -> None:
        """``hf``: a checkpoint that ``vla-models eval`` reads. ``dcp`` (AReaL's name for what a run goes on from): weights,
        optimiser and schedule as ``version-<n>``, the newest ``KEPT`` of them."""
        if self.rank == 0:
            if meta.weight_format == "hf":
                self.model.save_pretrained(meta.path)
            else:
                self._save_to_go_on(Path(meta.path))
        dist.barrier(group=self._cpu_group)

    def load(self, meta: Any) -> None:
        """What ``save`` wrote."""
        if meta.weight_format == "hf":
            self.model.load_state_dict(VLAForDriving.from_pretrained(meta.path).state_dict())
            return
        root = Path(meta.path)
        recorded = root.parent.parent / "recover_info" / "step_info.json"
        step = int(json.loads(recorded.read_text())["global_step"]) + 1
        folder = version_folder(root, step)
        try:
            weights = load_file(folder / "weights.safetensors")
            state = torch.load(folder / "optimizer.pt", map_location=self.device, weights_only=True)
        except (OSError, RuntimeError, ValueError) as e:
            raise CheckpointError(
                f"{folder}, from which the run should go on, is missing or damaged ({e}); start a new run from "
                "checkpoints/update-<n> with model.checkpoint_path"
            ) from e
        self.model.load_state_dict(weights)
        if meta.with_optim:
            self.optimizer.load_state_dict(state["optimizer"])
        self.lr_scheduler.load_state_dict(state["schedule"])

    def _save_to_go_on(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        with atomic_path(version_folder(root, self._version)) as temporary:
            temporary.mkdir()
            save_file(_own_storage(self.model.state_dict()), temporary / "weights.safetensors")
            state = {"optimizer": self.optimizer.state_dict(), "schedule": self.lr_scheduler.state_dict()}
            torch.save(state, temporary / "optimizer.pt")
        for old in sorted(p for p in root.glob("version-*") if p.is_dir())[:-KEPT]:
            shutil.rmtree(old)

    # -- learning --------------------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> VLATrainEngine:
        """The model stays in evaluation mode: dropout would make the replayed probabilities differ from the sampled ones."""
        self.model.eval()
        return self

    def optimizer_zero_grad(self) -> None:
        """Forget gradients."""
        self.optimizer.zero_grad()

    def optimizer_step(self) -> dict[str, float]:
        """Clip and step; ``DivergenceError`` if the gradient is not finite (AReaL would go on without a word)."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.config.optimizer.gradient_clipping))
        if not math.isfinite(norm):
            raise DivergenceError(
                f"weight version {self._version}: the gradient is {norm}; lower training.optimizer.lr, or take another seed"
            )
        self.optimizer.step()
        return {"update_successful": 1.0, "grad_norm": norm, "lr": float(self.lr_scheduler.get_last_lr()[0])}

    def lr_scheduler_step(self) -> None:
        """Once an update."""
        self.lr_scheduler.step()

    def train_batch(
        self,
        input_: Mapping[str, Any],
        loss_fn: Callable[..., Tensor],
        loss_weight_fn: Callable[[Mapping[str, Any]], Tensor],
    ) -> dict[str, float]:
        """One optimiser step on a minibatch [B, S]."""
        self.optimizer_zero_grad()
        parts = self._parts(input_)
        total = compute_total_loss_weight(parts, loss_weight_fn, self._dp_group)

        def learn(logprobs: Tensor, entropy: Tensor, part: dict[str, Any]) -> None:
            self._check_replay(logprobs, part)
            loss = loss_fn(logprobs, entropy, part) * loss_weight_fn(part) / total
            loss.backward()

        self.forward_backward_batch(parts, learn)
        self._sum_gradients()
        return self.optimizer_step() | {"num_micro_batches": len(parts.mbs)}

    @torch.no_grad()
    def eval_batch(
        self,
        input_: Mapping[str, Any],
        loss_fn: Callable[..., Tensor],
        loss_weight_fn: Callable[[Mapping[str, Any]], Tensor],
    ) -> Tensor:
        """The loss of a minibatch."""
        parts, losses = self._parts(input_), list[Tensor]()
        total = compute_total_loss_weight(parts, loss_weight_fn, self._dp_group)

        def collect(logprobs: Tensor, entropy: Tensor, part: dict[str, Any]) -> None:
            losses.append(loss_fn(logprobs, entropy, part) * loss_weight_fn(part) / total)

        self.forward_backward_batch(parts, collect)
        mean: Tensor = aggregate_eval_losses(losses, self._dp_group)
        return mean

    @torch.no_grad()
    def forward_batch(self, input_: Any, output_seqlens: Any = None, aggregate_fn: Any = None) -> Any:
        """Log-probabilities [B, S], in the rows' order; a list of them for a list of trajectories."""
        if isinstance(input_, list):
            whole, meta = concat_batch(input_)
            return split_batch(self.forward_batch(whole), meta)
        parts, found = self._parts(input_), list[Tensor]()
        self.forward_backward_batch(parts, lambda logprobs, entropy, part: found.append(logprobs))
        out = torch.cat(found)
        return out[torch.tensor(parts.backward_indices, device=out.device)]

    def forward_backward_batch(self, mb_list: Any, process_output_fn: Callable[..., Any], forward_only: bool = False) -> None:
        """Give ``process_output_fn`` the log-probabilities and entropies [b, S] of each part."""
        for part in mb_list.mbs:
            payload = part.pop(PAYLOAD)
            process_output_fn(*self.replay(payload, part), part)

    def _parts(self, input_: Mapping[str, Any]) -> Any:
        """AReaL's micro-batches of at most ``mb_spec.max_tokens_per_mb`` slots."""
        return split_padded_tensor_dict_into_mb_list(dict(input_), self.config.mb_spec)

    def replay(self, payload: list[dict[str, Tensor]], part: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies float32 [b, S] of b decisions (position t: of slot t + 1; 0 where nothing counts).

        The n-th part that counts for the model is the n-th slot that counts in the row, wherever padding lies: rows come from
        batches of different widths.
        """
        record = {name: value.to(self.device) for name, value in joined_record(payload).items()}
        out = self.model.evaluate_actions(record, entropy=self.has_entropy)
        self.has_entropy = self.has_entropy and "entropy" in out
        counts = part["loss_mask"].bool().to(self.device)
        if "advantages" not in part:  # before AReaL has rolled it
            counts = torch.roll(counts, -1, dims=-1)
        mask = out["mask"].flatten(1)
        if not torch.equal(mask.sum(1), counts.sum(1)):
            raise DivergenceError(
                f"{type(self.model).__name__}.evaluate_actions counts {mask.sum(1)[:4].tolist()} … parts where sampling had "
                f"{counts.sum(1)[:4].tolist()} …; its mask must depend on the record alone"
            )
        logprobs = torch.zeros(counts.shape, device=self.device)
        logprobs = logprobs.masked_scatter(counts, out["logprobs"].flatten(1).float()[mask])
        entropy = torch.zeros_like(logprobs)
        if self.has_entropy:
            entropy = entropy.masked_scatter(counts, out["entropy"].flatten(1).float()[mask].detach())
        return logprobs, entropy

    def _check_replay(self, logprobs: Tensor, part: Mapping[str, Any]) -> None:
        """Before the first step of an update, decisions of the present weights must replay to what they were sampled with."""
        if self._checked == self._version:
            return
        self._checked = self._version
        counts = part["loss_mask"].bool()
        fresh = counts & (torch.roll(part["versions"], -1, dims=-1) == self._version)
        if not bool(fresh.any()):
            return
        error = float((logprobs.detach() - part["logprobs"].to(logprobs))[fresh.to(logprobs.device)].abs().max())
        half = any(p.dtype in (torch.bfloat16, torch.float16) for p in self.model.parameters())
        if error > (HALF_TOLERANCE if half else REPLAY_TOLERANCE):
            raise DivergenceError(
                f"weight version {self._version}: before any update the log-probabilities differ by {error:.2g}; "
                f"{type(self.model).__name__}.evaluate_actions does not recompute what predict sampled with"
            )

    def _sum_gradients(self) -> None:
        if dist.get_world_size() == 1:
            return
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:  # an unused weight here may be used by another rank
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad, group=self._dp_group)

    # -- the rest --------------------------------------------------------------------------------------------------------

    def export_stats(self) -> dict[str, float]:
        """AReaL's statistics since the last call, over all ranks."""
        stats: dict[str, float] = stats_tracker.export_all(reduce_group=self._dp_group)
        return stats

    def onload(self) -> None:
        """Nothing is offloaded here."""

    def offload(self) -> None:
        """Refused: the record route keeps its model where it is."""
        raise ConfigError("enable_offload: the record route does not offload its model; set it to false")

    def get_device_stats(self) -> Any:
        """Memory of the device."""
        return DeviceRuntimeInfo.get_current()

    def save_perf_tracer(self, step: int | None = None, force: bool = False) -> None:
        """Write AReaL's trace, if one is made."""
        perf_tracer.save(step=step, force=force)

    def config_perf_tracer(self, config: Any, rank: int, role: str) -> None:
        """Make AReaL's trace."""
        if not perf_tracer.is_configured():
            perf_tracer.configure(config, rank=rank, role=role)

    def clear_batches(self, shard_ids: list[str]) -> None:
        """Forget tensors that were fetched from other processes (single-controller mode)."""
        from areal.infra.rpc.rtensor import clear_fetch_buffer

        clear_fetch_buffer(shard_ids)

    def fetch_buffer_stats(self) -> dict[str, int]:
        """How many of those are held."""
        from areal.infra.rpc.rtensor import fetch_buffer_stats

        stats: dict[str, int] = fetch_buffer_stats()
        return stats


class VLAPPOActor(VLATrainEngine):
    """The engine with AReaL's own ``PPOActor``, as AReaL's ``FSDPPPOActor`` is."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.actor = PPOActor(config, self)

    @torch.no_grad()
    def compute_logp(self, data: list[dict[str, Any]]) -> Any:
        """Log-probabilities under the present weights, one [n, S] for each trajectory."""
        return self.actor.compute_logp(data)

    @torch.no_grad()
    def compute_advantages(self, data: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """AReaL's advantages. Records are put aside meanwhile: AReaL would copy all of them into each trajectory
        (``utils/data.py``, split_and_unpad_tensor)."""
        payloads = [d[PAYLOAD] for d in data]
        made: list[dict[str, Any]] = self.actor.compute_advantages(
            [{name: value for name, value in d.items() if name != PAYLOAD} for d in data]
        )
        return [{**d, PAYLOAD: payload} for d, payload in zip(made, payloads, strict=True)]

    def ppo_update(self, data: list[dict[str, Any]]) -> None:
        """One pass over the batch, in ``ppo_n_minibatches`` steps."""
        self.actor.ppo_update(data)

    @classmethod
    def as_controller(cls, config: Any, scheduler: Any) -> PPOActorController:
        """For AReaL's single-controller mode."""
        return PPOActorController(train_engine=cls, config=config, scheduler=scheduler)


def version_folder(root: Path, version: int) -> Path:
    """What a run goes on from after ``version`` updates."""
    return root / f"version-{version:07d}"


def _own_storage(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies: safetensors refuses tied weights."""
    return {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
