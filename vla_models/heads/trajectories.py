"""A plan as one token: the nearest of K trajectories that k-means found in a data set's plans.

``vla-models codebook STORE --size K --output F.npz`` makes the file; a model names it as ``policy_head.codebook``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vla_models.errors import CheckpointError, PlanError
from vla_models.files import atomic_path
from vla_models.heads.base import ExactBuffers, check_plans
from vla_models.heads.codebook import Codebook
from vla_models.heads.kinematics import wrap

HEADING_WEIGHT: Final = 5.0
"""Metres that a radian of heading counts for, where trajectories are compared."""
_ROUNDS: Final = 50
_CHUNK: Final = 4096


class TrajectoryCodebook(Codebook, ExactBuffers):
    """``anchors`` float32 [K, T, 3] (a buffer, saved with the model); token i is the i-th of them, whatever the speed."""

    anchors: Tensor

    def __init__(self, anchors: Any, dt: float = 0.5) -> None:
        super().__init__()
        plans = check_plans(anchors, np.shape(anchors)[1] if np.ndim(anchors) == 3 else 0).float()
        if len(plans) < 2:
            raise PlanError(f"a codebook needs two trajectories or more, not {len(plans)}")
        self.horizon, self.dt = plans.shape[1], dt
        self.register_buffer("anchors", plans)

    @property
    def length(self) -> int:
        """One token is the plan."""
        return 1

    @property
    def token_sizes(self) -> tuple[int]:
        """The number of trajectories."""
        return (len(self.anchors),)

    def encode(self, plans: Tensor, speed: Tensor) -> Tensor:
        """See ``Codebook``."""
        wanted = check_plans(plans, self.horizon).to(self.anchors.device)
        return torch.cat([self._distances(part).argmin(1, keepdim=True) for part in torch.split(wanted, _CHUNK)])

    def decode(self, tokens: Tensor, speed: Tensor) -> Tensor:
        """See ``Codebook``."""
        return self.anchors[tokens[:, 0]]

    def _distances(self, plans: Tensor) -> Tensor:
        """Squared distances [B, K], summed over the poses."""
        anchors = self.anchors.double()
        turn = wrap(plans[:, None, :, 2] - anchors[None, :, :, 2])
        across = torch.cdist(plans[..., :2].flatten(1), anchors[..., :2].flatten(1)).square()
        return across + HEADING_WEIGHT**2 * turn.square().sum(-1)

    def save(self, file: str | Path) -> Path:
        """Write the codebook as npz (plain arrays)."""
        path = Path(file)
        with atomic_path(path) as temporary, temporary.open("wb") as out:
            np.savez(out, anchors=self.anchors.cpu().numpy(), dt=np.float64(self.dt))
        return path

    @classmethod
    def load(cls, file: str | Path) -> Self:
        """Read what ``save`` wrote; ``CheckpointError`` if it is something else."""
        try:
            with np.load(Path(file), allow_pickle=False) as arrays:
                return cls(arrays["anchors"], float(arrays["dt"]))
        except (OSError, ValueError, KeyError, PlanError) as e:
            raise CheckpointError(
                f"{str(file)!r} is no trajectory codebook ({e}); make one: vla-models codebook STORE --size K --output F.npz"
            ) from e


def cluster(plans: npt.ArrayLike, size: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """K-means over plans [N, T, 3]: ``size`` anchors [size, T, 3], the most frequent first.

    k-means++ seeding (Arthur & Vassilvitskii 2007), then Lloyd's rounds until no plan changes its cluster; a cluster that loses
    all its plans starts again at the plan that lies farthest from its anchor. Deterministic for a seed.
    """
    given = np.asarray(plans, dtype=np.float64)
    plain = check_plans(given, given.shape[1] if given.ndim == 3 else 0).numpy()
    plain = np.concatenate([plain[..., :2], HEADING_WEIGHT * np.unwrap(plain[..., 2:], axis=1)], axis=-1)
    points = plain.reshape(len(plain), -1)
    distinct = len(np.unique(points, axis=0))
    if not 2 <= size <= distinct:
        raise PlanError(f"{size} clusters cannot be had: there are {distinct} different plans, and two is the least")
    random = np.random.default_rng(seed)
    centres = _seeds(points, size, random)
    owner = np.full(len(points), -1)
    for _ in range(_ROUNDS):
        nearest, distance = _nearest(points, centres)
        if np.array_equal(nearest, owner):
            break
        owner = nearest
        count = np.bincount(owner, minlength=size)
        sums = np.zeros_like(centres)
        np.add.at(sums, owner, points)
        centres = np.where(count[:, None] > 0, sums / np.maximum(count, 1)[:, None], centres)
        for empty, farthest in zip(np.flatnonzero(count == 0), np.argsort(-distance, kind="stable"), strict=False):
            centres[empty] = points[farthest]
    order = np.argsort(-np.bincount(_nearest(points, centres)[0], minlength=size), kind="stable")
    anchors = centres[order].reshape(size, -1, 3) / [1.0, 1.0, HEADING_WEIGHT]
    anchors[..., 2] = np.arctan2(np.sin(anchors[..., 2]), np.cos(anchors[..., 2]))
    return anchors.astype(np.float32)


def _seeds(points: npt.NDArray[np.float64], size: int, random: np.random.Generator) -> npt.NDArray[np.float64]:
    centres = np.empty((size, points.shape[1]))
    centres[0] = points[random.integers(len(points))]
    distance = ((points - centres[0]) ** 2).sum(1)
    for i in range(1, size):
        centres[i] = points[random.choice(len(points), p=distance / distance.sum())]
        distance = np.minimum(distance, ((points - centres[i]) ** 2).sum(1))
    return centres


def _nearest(points: npt.NDArray[np.float64], centres: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.int64], Any]:
    """Index of the nearest centre of each point and the squared distance to it."""
    index, distance = np.empty(len(points), dtype=np.int64), np.empty(len(points))
    norms = (centres**2).sum(1)
    for start in range(0, len(points), _CHUNK):
        part = points[start : start + _CHUNK]
        squared = (part**2).sum(1)[:, None] - 2.0 * part @ centres.T + norms
        rows = slice(start, start + len(part))
        index[rows] = squared.argmin(1)
        distance[rows] = np.maximum(squared.min(1), 0.0)
    return index, distance
