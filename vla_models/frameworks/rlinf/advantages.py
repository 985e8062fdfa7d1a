"""RLinf's advantages with invalid episodes taken out.

A world that crashed leaves a NaN reward (``env.RLinfEnvAdapter``). RLinf knows no such thing: one NaN would poison its group,
or every earlier step of its row. The functions here are registered with RLinf's own ``register_advantage``: they find the
episodes that a NaN spoils, keep them out of all statistics, and give them advantage 0 and no value error.

Shapes as in RLinf (rlinf/algorithms/utils.py, ``preprocess_embodied_advantages_inputs``): n steps × B rows, dones and values
have n + 1 rows, and dones[t + 1] says that step t was an episode's last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from vla_models.frameworks.rlinf.compat import find
from vla_models.training.objective import group_advantages

GRPO: Final = "vla_grpo"
"""adv_type: reward minus the group's mean, over its standard deviation."""
GRPO_CENTRED: Final = "vla_grpo_centred"
"""adv_type: reward minus the group's mean."""


def register() -> None:
    """Make ``GRPO`` and ``GRPO_CENTRED`` known to RLinf, and let its "gae" leave out what is invalid.

    "gae" keeps its name because RLinf asks for values under that name alone; without a NaN it computes what it always did.
    """
    register_advantage, registered = find("register_advantage"), find("get_adv_and_returns")
    register_advantage(GRPO)(_grouped(normalize=True))
    register_advantage(GRPO_CENTRED)(_grouped(normalize=False))
    original = registered("gae")
    if not getattr(original, "leaves_out_invalid", False):
        register_advantage("gae")(_without_invalid(original))
        registered("gae").leaves_out_invalid = True


def _grouped(normalize: bool) -> Callable[..., tuple[Tensor, None]]:
    def advantages(rewards: Tensor, loss_mask: Tensor, group_size: int, **unused: Any) -> tuple[Tensor, None]:
        """rewards [groups, G] are the episodes' returns; loss_mask [n, B]. Returns advantages [n, B]."""
        scores = rewards.reshape(-1, group_size)
        out = group_advantages(scores, torch.isfinite(scores), normalize=normalize)
        return out.reshape(1, -1) * loss_mask, None

    return advantages


def _without_invalid(original: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    def advantages(
        rewards: Tensor,
        values: Tensor,
        dones: Tensor,
        loss_mask: Tensor | None = None,
        normalize_advantages: bool = True,
        **options: Any,
    ) -> tuple[Tensor, Tensor]:
        """``original`` over the steps [n, B] of valid episodes; elsewhere advantage 0, and the return is the value itself."""
        bad = ~torch.isfinite(rewards)
        if not bad.any():
            options |= {"loss_mask": loss_mask, "normalize_advantages": normalize_advantages}
            return original(rewards=rewards, values=values, dones=dones, **options)
        invalid = spoiled(bad, dones)
        kept = ~invalid if loss_mask is None else ~invalid & loss_mask
        out, returns = original(
            rewards=torch.where(invalid, torch.zeros_like(rewards), rewards),
            values=values,
            dones=dones,
            loss_mask=kept,
            normalize_advantages=normalize_advantages and int(kept.sum()) > 1,
            **options,
        )
        return torch.where(invalid, torch.zeros_like(out), out), torch.where(invalid, values[:-1], returns)

    return advantages


def spoiled(bad: Tensor, dones: Tensor) -> Tensor:
    """Steps [n, B] of episodes in which a step is ``bad`` [n, B], from the episode's first step to the bad one."""
    out, flag = torch.zeros_like(bad), torch.zeros_like(bad[0])
    for step in reversed(range(len(bad))):
        flag = (flag & ~dones[step + 1]) | bad[step]
        out[step] = flag
    return out
