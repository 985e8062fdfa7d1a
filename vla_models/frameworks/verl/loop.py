"""verl's agent loops: an episode is driven by asking the rollout server, decision after decision.

verl makes one instance a trajectory and calls ``run`` (verl/experimental/agent_loop/agent_loop.py). Each decision becomes one
output, a row of verl's batch: prompts do not grow with an episode. A trajectory whose world or environment failed has no
outputs; ``sampler`` counts those.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from pathlib import Path
from typing import Any, ClassVar

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput, register
from verl.workers.rollout.replica import TokenOutput

from vla_models.config import VLAConfig
from vla_models.frameworks.verl.env import Decision, EpisodeFailed, EpisodePool, Part, Row
from vla_models.frameworks.verl.fields import tensors_of
from vla_models.frameworks.verl.model import ACTION, OBSERVATION
from vla_models.frameworks.verl.native import AGENTS
from vla_models.inputs import VLASpec
from vla_models.model_registry import VLAModelRegistry

log = logging.getLogger(__name__)


class DecisionOutput(AgentLoopOutput):
    """One decision. ``score`` is its row's reward; verl itself would give every row of an episode the last one's."""

    score: float

    def as_dict(self) -> dict[str, Any]:
        """The row's fields; those of the record are fields of their own."""
        row: dict[str, Any] = super().as_dict()
        row.pop("score")
        row["rm_scores"] = row["response_mask"].float() * 0.0
        row["rm_scores"][-1] = self.score
        fields = dict(row["extra_fields"])
        record = tensors_of(fields.pop("record", {}))
        return row | {"extra_fields": fields} | record


class EpisodeLoop(AgentLoopBase):
    """Drives one episode; how the server is asked is left to subclasses."""

    _pools: ClassVar[dict[Any, EpisodePool]] = {}
    """(run, part, event loop) -> its episodes, shared by all trajectories of a process."""

    def __init__(self, *args: Any, hf_model_type: str | None = None, **kwargs: Any) -> None:
        # verl would look for a family's chat tokens, and a tokenizer of ours has none
        super().__init__(*args, hf_model_type=None, **kwargs)
        self.settings = self.config.vla_models

    async def run(self, sampling_params: dict[str, Any], **fields: Any) -> Any:
        """One trajectory of scene ``fields["scene"]``: its decisions, or an empty list if its world failed."""
        scene, part = str(fields["scene"]), fields["part"]
        try:
            async with self.pool(part).episode(scene) as row:
                outputs = await self.drive(row, sampling_params)
        except EpisodeFailed as e:
            log.warning("a trajectory was dropped: %s", e)
            note = {"part": part, "scene": scene, "reason": str(e), "step": int(fields.get("global_steps", -1))}
            with Path(self.settings.dropped).open("a", encoding="utf-8") as file:
                file.write(json.dumps(note) + "\n")
            return []
        score(outputs, self.settings.gamma if part == "train" else None)
        return outputs[0] if len(outputs) == 1 else outputs

    async def drive(self, row: Row, sampling_params: dict[str, Any]) -> list[DecisionOutput]:
        """The decisions of an episode that has begun; ``score`` of each is its own reward so far."""
        outputs: list[DecisionOutput] = []
        spent = {"generate": 0.0, "drive": 0.0}
        told: Decision | None = None
        while told is None or not told.over:
            started = time.monotonic()
            answer, output = await self.ask(row, sampling_params)
            decided = time.monotonic()
            outputs.append(output)
            told = await row.decide(answer.extra_fields["plan"] if answer.extra_fields["valid"] else None)
            output.score = told.reward
            spent["generate"] += decided - started
            spent["drive"] += time.monotonic() - decided
        last = outputs[-1]
        last.metrics = AgentLoopMetrics(generate_sequences=spent["generate"], tool_calls=spent["drive"])
        last.extra_fields["reward_extra_info"] = told.totals
        for output in outputs:
            output.num_turns = len(outputs)
        return outputs

    async def ask(self, row: Row, sampling_params: dict[str, Any]) -> tuple[TokenOutput, DecisionOutput]:
        """One decision: what the server answered (``plan`` and ``valid`` among its fields), and the row that it makes."""
        raise NotImplementedError

    def pool(self, part: Part) -> EpisodePool:
        """The episodes of this process."""
        loop = asyncio.get_running_loop()
        key = (self.settings.config, part, id(loop))
        if key not in self._pools:
            config = VLAConfig.from_yaml(self.settings.config)
            adapter = VLAModelRegistry.get_env_adapter(config.environment.type, "verl")
            rows, environments = int(self.settings.rows), int(self.settings.environments)
            spec = VLASpec(**self.settings.spec)
            self._pools[key] = adapter(config, part, spec, rows=rows, environments=environments).pool
        return self._pools[key]


@register(AGENTS["record"])
class RecordAgentLoop(EpisodeLoop):
    """For every model with a record: the server of ``rollout`` sees the observation and answers with plan and record."""

    async def ask(self, row: Row, sampling_params: dict[str, Any]) -> tuple[TokenOutput, DecisionOutput]:
        """See ``EpisodeLoop.ask``."""
        answer: TokenOutput = await self.server_manager.generate(
            row.scene, prompt_ids=[OBSERVATION], sampling_params=sampling_params, observation=row.observation
        )
        counted = len(answer.token_ids)
        fields = answer.extra_fields
        versions = {key: fields.get(key, fields["global_steps"]) for key in ("min_global_steps", "max_global_steps")}
        return answer, DecisionOutput(
            prompt_ids=[OBSERVATION],
            response_ids=answer.token_ids or [ACTION],  # verl wants a token where no part of the decision counts
            response_mask=[1] * counted or [0],
            response_logprobs=answer.log_probs or [0.0],
            metrics=AgentLoopMetrics(),
            extra_fields={"record": fields["record"], **versions},
            score=0.0,
        )


def score(outputs: list[DecisionOutput], gamma: float | None) -> None:
    """Turn the rewards of an episode's decisions into what verl's advantages expect.

    gamma: None for GRPO and for evaluation: every row has the episode's return, of which verl compares the last rows of a group
    and gives the result to all rows of the episode (verl/trainer/ppo/v1/utils.py). A number for PPO: every row has the
    discounted rewards from its decision on, because verl's GAE sees each row as an episode of its own.
    """
    rewards = [output.score for output in outputs]
    total = sum(rewards)
    ahead = 0.0
    for output, reward in zip(reversed(outputs), reversed(rewards), strict=True):
        ahead = reward + (gamma or 0.0) * ahead
        output.score = total if gamma is None else ahead
    outputs[-1].reward_score = total
