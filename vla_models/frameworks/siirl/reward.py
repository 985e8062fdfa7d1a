"""The reward of an episode for siiRL's ``custom_reward_function``: what the environment gave.

SRPO has siiRL's own reward function instead (siirl/utils/reward_score/embodied.py); both are called by its
``EmbodiedRewardManager``, which puts the score at the end of the last decision that counts.
"""

from __future__ import annotations

from typing import Any


def episode_return(batch_data: Any, **unused: Any) -> list[dict[str, Any]]:
    """Sum of rewards of each episode of a batch."""
    pairs = zip(batch_data["episode_return"].tolist(), batch_data["complete"].tolist(), strict=True)
    return [{"score": score, "format_correctness": 1.0, "is_success": bool(success)} for score, success in pairs]
