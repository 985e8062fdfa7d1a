"""RLinf's policy on our model contract: one wrapper for every ``VLAForDriving`` with a record.

RLinf (0.3.0) calls ``predict_action_batch`` in its rollout workers and ``forward(forward_inputs=…)`` in its actor. What goes
from one to the other is the model's record (``frameworks.records``), so both log-probabilities come out of one code path.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from vla_models.errors import ConfigError, NotImplementedByModel
from vla_models.frameworks.model_adapter import build_model
from vla_models.frameworks.observations import ObservationLayout, Packed
from vla_models.frameworks.records import RecordLayout, unpack
from vla_models.frameworks.rlinf.compat import find
from vla_models.inputs import VLAInput
from vla_models.interface import VLAInterface
from vla_models.training.checkpoint import random_stream
from vla_models.training.rollout import every

BasePolicy: Any = find("BasePolicy")
ForwardType: Any = find("ForwardType")

MODEL_TYPE: Final = "vla_models"
"""RLinf's ``model_type`` of every model of ours."""
_OLD: Final = "rollout_logprobs"
_NO_LAYERS: Final = "no class has this name"


def build(cfg: Any, torch_dtype: Any = None) -> RLinfPolicy:
    """RLinf's model builder: ``cfg`` is ``actor.model`` with our part under ``vla`` (written by ``native``)."""
    vla = cfg.vla
    model = build_model("rlinf", cfg, cfg.model_path)
    model = model.to(torch_dtype) if torch_dtype not in (None, torch.float32) else model
    return RLinfPolicy(
        model,
        ObservationLayout.from_dict(vla.observation),
        RecordLayout.from_dict(vla.record),
        value_coef=float(vla.value_coef),
        with_values=bool(cfg.add_value_head),
        seed=int(vla.seed),
    )


class RLinfPolicy(nn.Module, BasePolicy):
    """A ``VLAInterface`` as an RLinf policy.

    ``nn.Module`` comes first and ``forward`` is written out: FSDP2 puts its own class before ours, and must find it.

    Args:
        model: what decides.
        observation: how observations are packed into RLinf's five keys.
        record: the fixed shapes of records.
        value_coef: weight of the value loss. RLinf adds policy and value loss as they are, so the value's gradient is scaled.
        with_values: whether state values are wanted (PPO).
        seed: of sampling; a step's samples depend on it, on the step, and on which rollout worker draws them.
    """

    def __init__(
        self,
        model: VLAInterface,
        observation: ObservationLayout,
        record: RecordLayout,
        *,
        value_coef: float = 1.0,
        with_values: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        model.require("trained")
        self.model = model
        for parameter in model.parameters():  # FSDP2 shards contiguous ones only, and channels-last weights are not
            parameter.data = parameter.data.contiguous()
        self.observation, self.record = observation, record
        self.value_coef, self.with_values, self.seed = value_coef, with_values, seed
        self.action_dim = 3 * model.spec.horizon
        self.parts = -(-record.parts // self.action_dim) * self.action_dim  # RLinf wants a multiple of action_dim
        layers = {name for m in model.modules() for name in getattr(m, "_no_split_modules", None) or ()}
        self._no_split_modules = sorted(layers) or [_NO_LAYERS]
        # FSDP2 wraps embeddings apart from the rest, which breaks models that read an embedding's weight; it does not where
        # weights are tied. A model that names its layers is a transformers model and knows for itself.
        configs = [getattr(m, "config", None) for m in model.modules()] if layers else []
        tied = next((c for c in configs if hasattr(c, "tie_word_embeddings")), None)
        self.config = tied or SimpleNamespace(tie_word_embeddings=True)
        self._rank = int(os.environ.get("RANK", "0"))
        self._generator: torch.Generator | None = None
        self._last: dict[str, Any] | None = None
        self._step = 0
        super().train(False)

    # -- what RLinf looks for --------------------------------------------------------------------------------------------

    @property
    def value_head(self) -> nn.Module:
        """Its presence tells RLinf that truncated episodes can be bootstrapped."""
        if not self.__dict__.get("with_values", False):
            raise AttributeError("value_head")
        return self.model

    def train(self, mode: bool = True) -> RLinfPolicy:
        """Stay in evaluation mode: dropout would make the replayed probabilities differ from the sampled ones."""
        super().train(False)
        return self

    def set_global_step(self, global_step: int) -> None:
        """RLinf says which update comes next: sampling starts the random stream of that step.

        It says so twice, and the second time (with the weights) sometimes still with the number of the step before: RLinf does
        not wait for the actor to learn the new one. Only a higher number counts.
        """
        if int(global_step) > self._step:
            self._step, self._generator = int(global_step), None

    def forward(self, forward_type: Any = ForwardType.DEFAULT, **kwargs: Any) -> dict[str, Tensor]:
        """RLinf's entry of the actor; only the default kind of pass exists."""
        if forward_type != ForwardType.DEFAULT:
            raise NotImplementedByModel(f"models of vla_models have no {forward_type} pass in RLinf; use grpo or ppo")
        return self.default_forward(**kwargs)

    # -- rollout ---------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict_action_batch(
        self,
        env_obs: Mapping[str, Any],
        *,
        do_sample: bool = True,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_new_tokens: int | None = None,
        **unused: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Plans [B, 1, 3·T] and what the actor will need; evaluation is recognised by ``do_sample=False``.

        RLinf goes on asking when episodes are over, and once more after a rollout's last decision, for values alone. Where all
        rows are over the model is not run: the last decision is said again (RLinf masks it out) and the value is 0.

        An answer that is no plan is sent as NaN, which the environment's adapter rewards as ``reward.invalid`` says.
        """
        over, packed = self._read(env_obs)
        rows = len(over)
        if bool(over.all()):
            plans = torch.zeros(rows, 1, self.action_dim)
            if not do_sample:
                return plans, {"prev_logprobs": None, "prev_values": None, "forward_inputs": {}}
            if self._last is not None and len(self._last["prev_logprobs"]) == rows:
                return plans, self._last | {"prev_values": torch.zeros(rows, 1) if self.with_values else None}
        group = _group_size(packed)
        inputs = VLAInput.batch(every(self.observation.unpack(packed), group))
        options: dict[str, Any] = {} if max_new_tokens is None else {"max_new_tokens": int(max_new_tokens)}
        if do_sample:
            options |= {"temperature": float(temperature), "top_p": float(top_p), "generator": self._random()}
        prediction = self.model.predict(inputs, deterministic=not do_sample, num_samples=group, **options)
        waypoints = prediction.waypoints  # finite, a VLAPrediction sees to it
        if prediction.valid is not None:
            waypoints = np.where(np.asarray(prediction.valid)[:, None, None], waypoints, np.nan)
        plans = torch.from_numpy(np.ascontiguousarray(waypoints, dtype=np.float32)).reshape(rows, 1, self.action_dim)
        if not do_sample:
            return plans, {"prev_logprobs": None, "prev_values": None, "forward_inputs": {}}
        if prediction.record is None or prediction.logprobs is None:
            raise NotImplementedByModel(
                f"{type(self.model).__name__} cannot be trained: "
                "its predict returns no record and logprobs (see docs/models.md)"
            )
        logprobs = self._pad(self.record.pack_logprobs(prediction.logprobs))
        inputs_of_actor = {**self.record.pack(prediction.record), _OLD: logprobs.view(torch.int32)}
        values = None
        if self.with_values:
            if prediction.values is None:
                raise NotImplementedByModel(f"{type(self.model).__name__} cannot be trained with ppo: predict gives no values")
            values = prediction.values.detach().float().cpu().reshape(rows, 1)
        forward_inputs = {**inputs_of_actor, "action": plans.reshape(rows, -1).nan_to_num()}
        self._last = {"prev_logprobs": logprobs, "prev_values": values, "forward_inputs": forward_inputs}
        return plans, dict(self._last)

    def _read(self, env_obs: Mapping[str, Any]) -> tuple[Tensor, Packed]:
        """Which rows are over, and the observation without that column."""
        states = env_obs["states"]
        if states.shape[1] != self.observation.width + 1:
            raise ConfigError(
                f"RLinf delivered states of width {states.shape[1]}, the environment packs {self.observation.width + 1}; "
                "env and rollout workers must run the same configuration"
            )
        main, extra = (env_obs.get(name) for name in ("main_images", "extra_view_images"))
        packed = Packed(
            main=None if main is None else main.cpu().numpy(),
            extra=None if extra is None else extra.cpu().numpy(),
            states=states[:, 1:].cpu().float().numpy(),
            text=env_obs.get("task_descriptions"),
        )
        return states[:, 0] > 0.5, packed

    def _random(self) -> torch.Generator:
        device = next(self.model.parameters()).device
        if self._generator is None or self._generator.device != device:
            stream = random_stream(self.seed, f"rollout-{self._rank}", self._step)
            self._generator = torch.Generator(device).manual_seed(stream)
        return self._generator

    # -- learning --------------------------------------------------------------------------------------------------------

    def default_forward(
        self,
        forward_inputs: Mapping[str, Tensor],
        compute_logprobs: bool = True,
        compute_entropy: bool = False,
        compute_values: bool = False,
        **unused: Any,
    ) -> dict[str, Tensor]:
        """Replay records: ``logprobs`` float32 [B, parts], on request ``entropy`` [B, parts] and ``values`` [B, 1].

        RLinf knows no mask for parts of an action and sums them. Where the model's mask is false (padding of a text, say) the
        log-probability of the rollout is given back, so these parts cancel in the ratio and have no gradient.
        """
        old = forward_inputs[_OLD].view(torch.float32)
        out = self.model.evaluate_actions(unpack(forward_inputs), entropy=compute_entropy, values=compute_values)
        mask = self._pad(out["mask"].flatten(1))
        result: dict[str, Tensor] = {}
        if compute_logprobs:
            result["logprobs"] = torch.where(mask, self._pad(out["logprobs"].float().flatten(1)), old.to(mask.device))
        if compute_entropy:
            entropy = self._pad(out["entropy"].float().flatten(1))
            result["entropy"] = torch.where(mask, entropy, torch.zeros_like(entropy))
        if compute_values:
            values = out["values"].float()[:, None]
            result["values"] = values.detach() + self.value_coef * (values - values.detach())
        return result

    def _pad(self, value: Tensor) -> Tensor:
        """[B, n] -> [B, parts]: zeros (False) on the right."""
        return nn.functional.pad(value, (0, self.parts - value.shape[1]))


def _group_size(packed: Packed) -> int:
    """G if the rows are runs of G equal observations each (a group whose scene is read once), else 1."""
    rows = len(packed.states)
    same = (packed.states[1:] == packed.states[:-1]).all(axis=1)
    for pictures in (packed.main, packed.extra):
        if pictures is not None and same.any():
            flat = pictures.reshape(rows, -1)
            same[same] = [np.array_equal(flat[i], flat[i + 1]) for i in np.flatnonzero(same)]
    if packed.text is not None:
        same &= np.array([a == b for a, b in zip(packed.text[1:], packed.text[:-1], strict=True)], dtype=bool)
    starts = np.flatnonzero(np.concatenate([[True], ~same]))
    lengths = np.diff(np.append(starts, rows))
    return int(lengths[0]) if (lengths == lengths[0]).all() else 1
