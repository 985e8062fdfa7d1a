"""The model of one rank, which its rollout, actor and reference workers share: they live in one process.

What siiRL's arguments have no place for (the run's configuration, the shapes of records) stands in a file beside the tokenizer
that ``actor_rollout_ref.model.path`` names; ``native`` writes both.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from vla_models.config import VLAConfig
from vla_models.frameworks.model_adapter import build_model
from vla_models.frameworks.records import RecordLayout
from vla_models.frameworks.siirl.batch import RecordWords

SETTINGS: Final = "vla_models.json"
"""Name of the file in ``actor_rollout_ref.model.path``."""


class Policy:
    """A model, its optimiser, and how many updates it has had.

    Args:
        cfg: siiRL's ``actor_rollout_ref`` arguments.
    """

    _shared: ClassVar[dict[str, Policy]] = {}

    def __init__(self, cfg: Any) -> None:
        self.settings: dict[str, Any] = json.loads((Path(cfg.model.path) / SETTINGS).read_text())
        self.config = VLAConfig.from_yaml(self.settings["config"])
        self.records = RecordWords(RecordLayout.from_dict(self.settings["record"]))
        self.model = build_model("siirl", cfg, self.settings["start"])
        self.model.require("trained")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model.to(self.device).eval()  # dropout would make the replayed probabilities differ from the sampled ones
        self.optimizer = make_optimizer(self.model, cfg.actor.optim)
        if cfg.actor.use_kl_loss:
            self.model.make_reference()
        self.updates = 0

    @classmethod
    def shared(cls, cfg: Any) -> Policy:
        """The policy of this process for these arguments, built once."""
        key = str(cfg.model.path)
        if key not in cls._shared:
            cls._shared[key] = cls(cfg)
        return cls._shared[key]

    @property
    def parts(self) -> int:
        """A, log-probabilities of a decision."""
        return self.records.parts

    def replay(self, records: Tensor, places: Tensor, *, entropy: bool = False, values: bool = False) -> dict[str, Tensor]:
        """``evaluate_actions`` of some decisions (``places``, int64 [n, 2]) of records [B, D, words].

        ``logprobs``, ``mask`` and ``entropy`` are [n, A], what is filled up is zero and not in the mask; ``values`` is [n].
        """
        record = {name: value.to(self.device) for name, value in self.records.unpack(records, places).items()}
        out = self.model.evaluate_actions(record, entropy=entropy, values=values)
        return {name: value if name == "values" else self._pad(value.flatten(1)) for name, value in out.items()}

    def replayed(self, records: Tensor, active: Tensor, most: int) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Replay all active decisions (bool [B, D]) of ``records`` [B, D, words], at most ``most`` at a time: their places
        (int64 [n, 2]) and what ``replay`` gives, without gradients."""
        places = active.nonzero()
        with torch.no_grad():
            for part in torch.split(places, most):
                yield part, self.replay(records, part)

    def _pad(self, value: Tensor) -> Tensor:
        return torch.nn.functional.pad(value, (0, self.parts - value.shape[1]))


def make_optimizer(model: torch.nn.Module, optim: Any) -> torch.optim.Optimizer:
    """AdamW as siiRL's ``actor.optim`` says; only matrices decay."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": float(optim.weight_decay)},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=float(optim.lr), betas=tuple(optim.betas), fused=True)
