"""Our model as verl sees one: its configuration, a tokenizer of placeholders, and the module that verl trains.

verl's trainer counts tokens: a prompt, a response, a log-probability for each token of the response. Here a decision is a
prompt of one token (``OBSERVATION``) and a response with one ``ACTION`` for each part of the decision that counts (a token, a
pose, a denoising step of a pose). What the tokens stand for is in the record beside them (``frameworks.records``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedTokenizerFast
from verl.utils.import_utils import import_external_libs
from verl.workers.config import HFModelConfig

from vla_models.frameworks.model_adapter import build_model
from vla_models.frameworks.records import unpack
from vla_models.frameworks.verl.compat import MODEL_TYPE

TOKENS: Final = MappingProxyType({"<pad>": 0, "<eos>": 1, "<observation>": 2, "<action>": 3})
OBSERVATION, ACTION = TOKENS["<observation>"], TOKENS["<action>"]
WEIGHT_PREFIX: Final = "model."
"""Before the names of the model's own weights in the module that verl trains."""


class DrivingConfig(PretrainedConfig):
    """What verl looks up in a transformers configuration. Tied embeddings, because FSDP2 would wrap every embedding apart from
    the rest, and a model may read an embedding's weight outside of it."""

    model_type = "vla_models"

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"tie_word_embeddings": True, "architectures": ["Replay"], **options})


@dataclass
class DrivingModelConfig(HFModelConfig):
    """verl's ``actor_rollout_ref.model`` and ``critic.model`` for models of ours: ``path`` is a checkpoint of ours, nothing is
    read from it as a transformers model."""

    model_type: str = MODEL_TYPE
    vla: dict[str, Any] = field(default_factory=dict)
    """``seed`` of sampling, whether parts of its decisions are ``masked``, and ``observation`` and ``record``, the
    layouts (written by ``native``)."""

    def __post_init__(self) -> None:
        import_external_libs(self.external_lib)
        self.local_path = self.path
        self.tokenizer = placeholder_tokenizer()
        self.hf_config = DrivingConfig()
        self.architectures = list(self.hf_config.architectures)


def placeholder_tokenizer() -> Any:
    """A tokenizer of ``TOKENS``, because verl pads with one and prints what responses say."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel(dict(TOKENS), unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<pad>",
        chat_template="{% for message in messages %}{{ message['content'] }}{% endfor %}",
    )  # fmt: skip


class NoLayer(nn.Module):
    """A layer without weights: verl refuses a module in which it finds no layer to shard by itself, and many models are shards
    as a whole."""


class Replay(nn.Module):
    """The module that verl shards and trains: one forward recomputes the log-probabilities of records.

    ``forward`` is written out and the records come packed: FSDP2 puts a class of its own before this one, and casts floats.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        for parameter in model.parameters():  # FSDP2 shards contiguous ones only, and channels-last weights are not
            parameter.data = parameter.data.contiguous()
        self.config = DrivingConfig()
        layers = {name for m in model.modules() for name in getattr(m, "_no_split_modules", None) or ()}
        self.nothing = NoLayer()
        self._no_split_modules = [*sorted(layers), NoLayer.__name__]
        super().train(False)

    @classmethod
    def load(cls, config: DrivingModelConfig, dtype: torch.dtype = torch.float32) -> Replay:
        """The model that verl's ``actor_rollout_ref.model`` or ``critic.model`` names."""
        model = build_model("verl", config, config.path)
        model.require("trained")
        return cls(model.to(dtype))

    def train(self, mode: bool = True) -> Replay:
        """Stay in evaluation mode: dropout would make the replayed probabilities differ from the sampled ones."""
        super().train(False)
        return self

    def can_generate(self) -> bool:
        """Not by transformers' generate (asked when verl saves)."""
        return False

    def forward(self, packed: Mapping[str, Tensor], entropy: bool = False, values: bool = False) -> dict[str, Tensor]:
        """``evaluate_actions`` of packed records [B]: flat ``logprobs`` and ``mask`` [B, S], on request ``entropy``, ``values``
        [B]."""
        out = self.model.evaluate_actions(unpack(packed), entropy=entropy, values=values)
        flat = {name: out[name].flatten(1) for name in ("logprobs", "mask", "entropy") if name in out}
        return flat | ({"values": out["values"]} if values else {})


def own_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of ``Replay`` under the model's own names."""
    return {name.removeprefix(WEIGHT_PREFIX): value for name, value in weights.items()}
