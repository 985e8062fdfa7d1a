"""verl's training engine for our models: log-probabilities and values are recomputed from records.

``DrivingEngine`` is verl's FSDP engine (verl/workers/engine/fsdp/transformer_impl.py) with another module and another forward
pass. Everything per token that it returns is as verl's own engines return it: jagged over prompt + response, and shifted, so
position t has what belongs to token t + 1 (verl/workers/utils/padding.py, ``no_padding_2_padding``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id
from verl.utils.torch_dtypes import PrecisionType
from verl.workers.engine.fsdp.transformer_impl import FSDPEngine
from verl.workers.engine.utils import detach_tree

from vla_models.errors import DivergenceError, NotImplementedByModel
from vla_models.frameworks.verl.fields import packed_records
from vla_models.frameworks.verl.model import Replay, own_names
from vla_models.frameworks.verl.runner import WEIGHTS


class DrivingEngine(FSDPEngine):
    """The actor and the reference."""

    with_values = False

    def _build_module(self) -> Replay:
        dtype = PrecisionType.to_dtype(self.engine_config.model_dtype or "fp32")
        return Replay.load(self.model_config, dtype)

    def forward_step(self, micro_batch: TensorDict, loss_function: Any, forward_only: bool) -> tuple[Tensor, dict[str, Any]]:
        """Loss (1 without a loss function) and what verl reports, for rows of ``DecisionOutput``."""
        micro_batch = micro_batch.to(get_device_id())
        asked = bool(tu.get_non_tensor_data(data=micro_batch, key="calculate_entropy", default=False))
        out = self.module(packed=packed_records(micro_batch), entropy=asked and not self.with_values, values=self.with_values)
        model_output = self.per_token(out, micro_batch, entropy=asked)
        loss, metrics = torch.tensor(1.0), {}
        if loss_function is not None:
            group = self.get_data_parallel_group()
            loss, metrics = loss_function(model_output=model_output, data=micro_batch, dp_group=group)
        return loss, {"model_output": detach_tree(model_output), "loss": loss.detach().item(), "metrics": metrics}

    def per_token(self, out: dict[str, Tensor], micro_batch: TensorDict, *, entropy: bool) -> dict[str, Tensor]:
        """``log_probs`` and, if asked for, ``entropy``: the counted parts of each decision, in order, on its response's tokens.

        verl always asks for the entropy of a whole batch, to show it; a model that has none shows none (NaN).
        """
        places = Places(micro_batch)
        found = {"log_probs": places.spread(out["logprobs"], out["mask"])}
        if entropy:
            nothing = torch.full_like(out["logprobs"], float("nan"))
            found["entropy"] = places.spread(out.get("entropy", nothing), out["mask"])
        return found

    def save_checkpoint(self, local_path: str, *args: Any, **kwargs: Any) -> None:
        """verl's own checkpoint, and ``WEIGHTS``."""
        super().save_checkpoint(local_path, *args, **kwargs)
        weights = {name: value.detach().cpu().contiguous() for name, value in self.get_per_tensor_param()[0]}
        if self.rank == 0:
            save_file(own_names(weights), Path(local_path) / WEIGHTS)


class DrivingCritic(DrivingEngine):
    """PPO's critic: a copy of the model, of which the values are trained."""

    with_values = True

    def per_token(self, out: dict[str, Tensor], micro_batch: TensorDict, *, entropy: bool) -> dict[str, Tensor]:
        """``values``: a decision's value, on each token of its response."""
        if "values" not in out:
            raise NotImplementedByModel("algorithm.name: ppo needs state values, and evaluate_actions gives none; use grpo")
        places = Places(micro_batch)
        values = out["values"].float()[:, None].expand(-1, int(places.lengths.max()))
        return {"values": places.spread(values, places.mask)}


class Places:
    """Where the tokens of responses are in verl's jagged layout of prompt + response."""

    def __init__(self, micro_batch: TensorDict) -> None:
        ids, prompts, responses = micro_batch["input_ids"], micro_batch["prompts"], micro_batch["responses"]
        self.offsets: Tensor = ids.offsets()
        self.total = int(self.offsets[-1])
        if responses.is_nested:
            self.lengths: Tensor = responses.offsets().diff()
        else:  # padded on both sides, as in a DataProto
            self.lengths = micro_batch["attention_mask"][:, prompts.shape[1] :].sum(dim=1)
        self.mask = torch.arange(int(self.lengths.max()), device=self.lengths.device) < self.lengths[:, None]
        mask = micro_batch["response_mask"]
        self.counts: Tensor = (mask.to_padded_tensor(0) if mask.is_nested else mask).sum(dim=1)

    def spread(self, values: Tensor, mask: Tensor) -> Tensor:
        """The parts of ``values`` [B, S] that ``mask`` counts, in order, on the responses' tokens; 0 elsewhere.

        Raises ``DivergenceError`` if a row counts other parts than when it was sampled (rows that verl filled a batch up with
        may).
        """
        found = mask.sum(dim=1)
        if (wrong := (found != self.counts) & (self.counts > 0)).any():
            row = int(wrong.nonzero()[0])
            raise DivergenceError(
                f"evaluate_actions counts {int(found[row])} parts of a decision that had {int(self.counts[row])} when it was "
                "sampled; its mask must depend on the record alone"
            )
        kept = mask & (mask.cumsum(dim=1) <= self.lengths[:, None])
        rank = (kept.cumsum(dim=1) - 1)[kept]
        first = (self.offsets[1:] - self.lengths - 1)[:, None].expand_as(kept)[kept]
        flat = torch.zeros(self.total, dtype=torch.float32, device=values.device)
        flat = flat.index_copy(0, first + rank, values.float()[kept])
        return torch.nested.nested_tensor_from_jagged(flat, self.offsets)
