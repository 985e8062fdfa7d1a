"""How a plan is decided inside a rollout: through our engine and a record, or through AReaL's engine and tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vla_models.frameworks.areal.deciding import Decision, Sampled, Sampling
from vla_models.frameworks.areal.sequences import Rows, record_rows
from vla_models.frameworks.records import RecordLayout
from vla_models.inputs import VLAInput

if TYPE_CHECKING:
    from vla_models.config import VLAConfig


class RecordPolicy:
    """Any model with a record, through ``VLAInferenceEngine``."""

    def __init__(self, config: VLAConfig, settings: Mapping[str, Any]) -> None:
        self.layout = RecordLayout.from_dict(settings["record"])
        self.temperature, self.top_p = config.algorithm.temperature, config.algorithm.top_p
        self._packed: tuple[Sampled, Rows] | None = None

    async def decide(
        self, engine: Any, inputs: list[VLAInput], samples: int, *, deterministic: bool
    ) -> tuple[Any, Rows | None]:
        """See ``driving.Policy``."""
        decision: Decision = await engine.adecide(inputs, Sampling(samples, self.temperature, self.top_p, deterministic))
        if decision.sampled is None:
            return decision.plans, None
        return decision.plans, self._rows(decision.sampled)[decision.place]

    def _rows(self, sampled: Sampled) -> Rows:
        """All that was sampled together, packed once for the groups that asked together."""
        if self._packed is None or self._packed[0] is not sampled:
            rows = record_rows(self.layout, sampled.record, sampled.logprobs, sampled.mask, sampled.version, sampled.samples)
            self._packed = sampled, rows
        return self._packed[1]
