"""Plans as text: ``(4.00,0.05,0.010) (8.01,0.11,0.014) …``, one triple x, y (metres), heading (radians) for each pose.

A language model may write anything, so reading never fails: it gives a plan or ``None``.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any, Final

import numpy as np
import numpy.typing as npt

FARTHEST: Final = 1000.0
"""Metres; a pose that lies farther away is a slip of the pen, not a plan."""
TOKENS_PER_POSE: Final = 32
"""Room for one pose in an answer, in tokens: a tokenizer may spend one on each digit."""
_NUMBER = r"\s*([+-]?(?:\d{1,6}(?:\.\d{0,15})?|\.\d{1,15}))\s*"
_POSE = re.compile(rf"[(\[]{_NUMBER},{_NUMBER},{_NUMBER}[)\]]")


def write_plan(plan: Any) -> str:
    """A plan [T, 3] as text."""
    return " ".join(f"({x:.2f},{y:.2f},{heading:.3f})" for x, y, heading in np.asarray(plan, dtype=np.float64))


def read_plan(text: str, horizon: int) -> npt.NDArray[np.float32] | None:
    """The plan float32 [T, 3] that ``text`` states, or None unless it has exactly ``horizon`` poses, all of them sensible.

    Words around the poses, spaces, square brackets and full-width punctuation do not matter.
    """
    poses = _POSE.findall(unicodedata.normalize("NFKC", text))
    if len(poses) != horizon:
        return None
    plan = np.array(poses, dtype=np.float64)
    if (np.abs(plan[:, :2]) > FARTHEST).any() or (np.abs(plan[:, 2]) > 2 * np.pi).any():
        return None
    plan[:, 2] = np.arctan2(np.sin(plan[:, 2]), np.cos(plan[:, 2]))
    return plan.astype(np.float32)
