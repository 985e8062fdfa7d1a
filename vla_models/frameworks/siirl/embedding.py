"""What SRPO compares episodes by: siiRL's V-JEPA video embedding, or an embedding of the driven trajectory.

siiRL's SRPO reward (siirl/utils/reward_score/embodied.py) gives a failed episode the more reward the nearer its embedding lies
to those of the successes of the same scene. ``trajectory`` needs no other model: it is what was driven and where, in metres and
radians. A video embedding is any class like siiRL's ``VideoEmbeddingModel``, named in
``actor_rollout_ref.embodied.embedding_model_class``; it sees the first camera's pictures, one for each decision.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from vla_models.errors import ConfigError

MOMENTS: Final = 8
"""Decisions of an episode that ``trajectory`` looks at, evenly spread from the first to the last."""


class VideoEmbedding(Protocol):
    """What is asked of a video embedding (siirl/utils/embodied/video_emb.py)."""

    def get_embeddings(self, names: list[str], frames: list[list[npt.NDArray[np.uint8]]]) -> list[npt.NDArray[np.float32]]:
        """A vector for each video [uint8 H, W, 3]; zeros where there is none."""


def trajectory(
    plans: npt.NDArray[np.float32], before: Mapping[str, npt.NDArray[Any]], made: npt.NDArray[np.int64], one_decision: bool
) -> npt.NDArray[np.float32]:
    """Embeddings [B, E] of episodes: the plans that were driven, the ego's state at each, and the route at the beginning.

    Args:
        plans: [B, D, T, 3] one for each decision.
        before: ``ego`` [B, D, F] and ``route`` [B, D, R, 2] at each decision, as far as the environment observes them.
        made: [B] decisions of each episode; what stands behind them is not looked at.
        one_decision: whether episodes have one decision, so that one moment is all there is to see.
    """
    rows = len(plans)
    spread = np.linspace(0.0, 1.0, 1 if one_decision else MOMENTS)
    at = np.round(spread * (made[:, None] - 1)).astype(np.int64), np.arange(rows)[:, None]
    parts = [plans[at[1], at[0]]]
    if "ego" in before:
        parts.append(before["ego"][at[1], at[0]])
    if "route" in before:
        parts.append(before["route"][:, 0])
    parts.append(np.ones((rows, 1), dtype=np.float32))  # siiRL takes a vector of zeros for "no embedding"
    return np.concatenate([part.reshape(rows, -1) for part in parts], axis=1).astype(np.float32)


def load_video_embedding(embodied: Any) -> VideoEmbedding | None:
    """The video embedding that siiRL's arguments name, or None (``trajectory`` serves); ``ConfigError`` says what failed."""
    named = embodied.embedding_model_class
    if not named:
        return None
    module, _, attribute = str(named).replace(":", ".").rpartition(".")
    key = "framework_options.actor_rollout_ref.embodied.embedding_model_class"
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as e:
        raise ConfigError(
            f"{key}: {named!r} cannot be imported: {e}. siiRL's V-JEPA (siirl.utils.embodied.video_emb.VideoEmbeddingModel) "
            "needs Meta's vjepa2 repository on PYTHONPATH and a CUDA device"
        ) from e
    try:
        model: VideoEmbedding = kind(
            model_path=embodied.video_embedding_model_path,
            img_size=int(embodied.embedding_img_size),
            enable_fp16=bool(embodied.embedding_enable_fp16),
        )
    except Exception as e:  # a stranger's class, a missing file, no CUDA: all of it is this key's affair
        raise ConfigError(f"{key}: {named!r} could not be built: {type(e).__name__}: {e}") from e
    return model


def embed_videos(
    model: VideoEmbedding, names: Sequence[str], frames: Sequence[Sequence[npt.NDArray[np.uint8]]]
) -> npt.NDArray[np.float32]:
    """Embeddings [B, E] of B videos."""
    return np.stack(model.get_embeddings(list(names), [list(f) for f in frames])).astype(np.float32)
