"""How a plan is decided inside a rollout: through our engine and a record, or through AReaL's engine and tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vla_models.frameworks.areal.deciding import Decision, Sampling
from vla_models.frameworks.areal.sequences import Row, record_rows
from vla_models.frameworks.records import RecordLayout
from vla_models.inputs import VLAInput

if TYPE_CHECKING:
    from vla_models.config import VLAConfig


class RecordPolicy:
    """Any model with a record, through ``VLAInferenceEngine``."""

    def __init__(self, config: VLAConfig, settings: Mapping[str, Any]) -> None:
        self.layout = RecordLayout.from_dict(settings["record"])
        self.temperature, self.top_p = config.algorithm.temperature, config.algorithm.top_p

    async def decide(self, engine: Any, inputs: list[VLAInput], samples: int, *, deterministic: bool) -> tuple[Any, list[Row]]:
        """See ``driving.Policy``."""
        sampling = Sampling(samples, self.temperature, self.top_p, deterministic)
        decision: Decision = await engine.adecide(inputs, sampling)
        if decision.record is None or decision.logprobs is None or decision.mask is None:
            return decision.plans, []
        rows = record_rows(self.layout, decision.record, decision.logprobs, decision.mask, decision.version)
        return decision.plans, rows
