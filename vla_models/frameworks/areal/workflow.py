"""``DrivingWorkflow``: what AReaL runs for each scene of its data, with any environment and any model.

One call drives a whole group (GRPO's G episodes of a scene), because its members share a scene, its scoring and their first
prompt, and because advantages are comparisons within the group. For AReaL it is one rollout, ``gconfig.n_samples`` is 1.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from areal import workflow_context
from areal.api import RolloutWorkflow
from areal.utils import stats_tracker

from vla_models.config import VLAConfig
from vla_models.frameworks.areal.driving import Group, Policy, drive
from vla_models.frameworks.areal.env import EnvironmentPool
from vla_models.frameworks.areal.policies import RecordPolicy
from vla_models.frameworks.user_code import import_sources
from vla_models.inputs import VLASpec
from vla_models.model_registry import VLAModelRegistry

log = logging.getLogger(__name__)


class DrivingWorkflow(RolloutWorkflow):
    """Drives the group of the scene that ``data["scene"]`` names.

    Args:
        settings: path of the run's ``areal/settings.json`` (written by ``launch``): the run's configuration, how records are
            laid out, limits of the environment pool.
        part: "train" samples groups; "heldout" drives the likeliest plans, one episode a scene.
    """

    def __init__(self, settings: str, part: Literal["train", "heldout"] = "train") -> None:
        import_sources()
        self.settings = json.loads(Path(settings).read_text(encoding="utf-8"))
        self.part = part
        self.config = VLAConfig.from_yaml(self.settings["config"])
        self.adapter = VLAModelRegistry.get_env_adapter(self.config.environment.type, "areal")
        self.policy: Policy
        if self.settings["route"] == "tokens":
            from vla_models.frameworks.areal.tokens import TokenPolicy

            self.policy = TokenPolicy(self.config, self.settings)
        else:
            self.policy = RecordPolicy(self.config, self.settings)
        self.rejected: Counter[str] = Counter()
        """Groups that were rejected, by reason: nothing_to_compare, failed, timed_out."""
        self.last_failure = ""
        self._pool: EnvironmentPool | None = None

    @property
    def pool(self) -> EnvironmentPool:
        """Environments, made in the event loop that drives."""
        if self._pool is None:
            limits = self.settings["environments"]
            self._pool = self.adapter.make_pool(self.config, self.part, VLASpec(**self.settings["spec"]), **limits)
        return self._pool

    def close(self) -> None:
        """End the environments' threads."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    async def arun_episode(self, engine: Any, data: dict[str, Any]) -> dict[str, Any] | None:
        """AReaL's trajectory of the group; None if it is rejected: nothing in it can be compared, or it failed."""
        sampled = self.part == "train"
        adapter = self.adapter(self.pool, self.config.algorithm.group_size if sampled else 1)
        group: Group | None = None
        try:
            await adapter.ainitialize()
            group = await drive(adapter, self.policy, engine, data["scene"], deterministic=not sampled)
        except asyncio.CancelledError:
            raise
        except Exception as e:
            self._reject("timed_out" if isinstance(e, TimeoutError) else "failed", f"{type(e).__name__}: {e}", data)
        finally:
            await adapter.aclose()
        if group is None:
            return None
        stats_tracker.get(workflow_context.stat_scope()).scalar(**group.means())
        if not sampled:
            return None  # measured, not learned from
        made = group.trajectory(normalize=self.config.algorithm.normalize_advantage)
        if made is None:
            self._reject("nothing_to_compare", "fewer than two of its episodes were valid", data)
        return made

    def _reject(self, reason: str, why: str, data: dict[str, Any]) -> None:
        self.rejected[reason] += 1
        self.last_failure = why
        stats_tracker.get(workflow_context.stat_scope()).scalar(**{f"rejected_{reason}": 1.0})
        log.warning("the group of scene %s is rejected (%s): %s", data["scene"], reason, why)
