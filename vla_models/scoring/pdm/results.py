"""What a score is: ``PDMScores``, one array a sub-score, and ``Problem``, a row that could not be scored and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from vla_models.scoring.pdm.drive import Traffic

FloatArray = npt.NDArray[np.float64]

_SHOWN: Final = 10
"""Problems that an error message lists; the others are counted."""


@dataclass(frozen=True)
class Problem:
    """Something that cannot be scored. ``str()`` of it is a sentence with scene, row and remedy."""

    token: str
    """The scene."""
    row: int | None
    """The plan's row, or None where the scene itself is bad and with it all of its rows."""
    message: str
    """What is wrong, and what to do about it."""

    def __str__(self) -> str:
        where = f"scene {self.token!r}" if self.row is None else f"scene {self.token!r}, row {self.row}"
        return f"{where}: {self.message}"


def listed(problems: list[Problem]) -> str:
    """The first problems as text, and how many more there are."""
    text = "; ".join(str(problem) for problem in problems[:_SHOWN])
    more = len(problems) - _SHOWN
    return text + (f"; and {more} more" if more > 0 else "")


@dataclass(frozen=True)
class PDMScores:
    """Scores of S scenes x N plans; arrays are float64 [S, N] unless said otherwise. Sub-scores lie in [0, 1], 1 is good.

    Every array is NaN in the rows that are not ``valid`` (``ego_areas`` is False there).
    """

    version: str
    """"v1" or "v2"."""
    tokens: tuple[str, ...]
    """[S] the scenes."""
    score: FloatArray
    """The official total. v2: the ``pdm_score`` column, which leaves extended comfort out and is not human-filtered."""
    nc: FloatArray
    """No at-fault collision: 0, 1/2 (an object was hit), 1."""
    dac: FloatArray
    """Drivable area compliance: 0, 1."""
    ddc: FloatArray
    """Driving direction compliance: 0, 1/2, 1 (v1: reported, weight 0)."""
    tlc: FloatArray | None
    """Traffic light compliance: 0, 1; None in v1."""
    ep: FloatArray
    """Ego progress relative to the better of plan and reference."""
    ttc: FloatArray
    """Time to collision within bound: 0, 1."""
    lk: FloatArray | None
    """Lane keeping: 0, 1; None in v1."""
    comfort: FloatArray
    """Comfort (v1) or history comfort (v2): 0, 1."""
    mult: FloatArray
    """Product of the multiplicative terms: nc dac (v1), nc dac ddc tlc (v2)."""
    progress_raw: FloatArray
    """Metres along the route's centre line."""
    reverse: FloatArray
    """Metres driven backwards: no part of the score, but of what a reward that is being gamed looks like."""
    nc_idx: FloatArray
    """First step (0.1 s) of an at-fault collision, or inf."""
    ttc_idx: FloatArray
    """First step that violates time to collision, or inf."""
    ref_progress_raw: FloatArray
    """[S] the reference's metres along the centre line (reactive traffic: [S, N], see ``score``)."""
    ref_mult: FloatArray
    """[S] the reference's multiplicative product (reactive traffic: [S, N])."""
    valid: npt.NDArray[np.bool_]
    """[S, N] whether the row could be scored; all True unless ``score`` was called with ``on_error="mark"``."""
    problems: tuple[Problem, ...] = ()
    """Why rows are not valid, in the order of scenes and rows."""
    states: FloatArray | None = None
    """[S, N, 41, 11] driven states in the scenes' local frames, on request."""
    ego_areas: npt.NDArray[np.bool_] | None = None
    """[S, N, 41, 3] in several lanes, off the drivable area, against the traffic; on request."""
    traffic: Traffic = "log_replay"
    """How the other agents move: "log_replay", "constant_velocity" or "reactive_idm"."""

    def terms(self) -> dict[str, FloatArray]:
        """The sub-scores by their short names (v1 has ``comfort``, v2 ``hc``, ``tlc`` and ``lk``), without the total."""
        terms = {"nc": self.nc, "dac": self.dac, "ddc": self.ddc, "ep": self.ep, "ttc": self.ttc}
        if self.tlc is None or self.lk is None:
            return {**terms, "comfort": self.comfort}
        return {**terms, "tlc": self.tlc, "lk": self.lk, "hc": self.comfort}

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """All results by the short names of the official arrays (``docs/navsim.md``), with the scenes in front.

        nc dac ddc ep ttc comfort|hc (v2 also tlc lk), mult, score, progress_raw, reverse, ref_progress_raw, ref_mult, nc_idx,
        ttc_idx, valid, and states and ego_areas where they were asked for.
        """
        out: dict[str, npt.NDArray[np.generic]] = dict(self.terms())
        for name in ("mult", "score", "progress_raw", "reverse", "ref_progress_raw", "ref_mult", "nc_idx", "ttc_idx", "valid"):
            out[name] = getattr(self, name)
        for name in ("states", "ego_areas"):
            value = getattr(self, name)
            if value is not None:
                out[name] = value
        return out
