"""The stored batch: what was sampled, how it was rewarded, and the policy that is trained on it.

Four scenes × four plans for each case. One scene's rewards have no spread, and one plan's world has failed. The policy differs
from the one that sampled, so that ratios are not 1 and some are clipped. ``batch.npz`` holds records, log-probabilities,
values, plans and rewards; the weights (3.6 MB for the flow head) are made again from a seed, and their sums say whether they
are those.
"""

from __future__ import annotations

import hashlib
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

HERE: Final = Path(__file__).parent
TESTS: Final = HERE.parent.parent / "tests"
for _folder in (TESTS, TESTS / "frameworks"):
    if str(_folder) not in sys.path:
        sys.path.insert(0, str(_folder))

import small_models  # noqa: E402, F401 - registers small_tokens
from golden import visible_scenes  # noqa: E402

from vla_models.config import VLAConfig  # noqa: E402
from vla_models.envs.navsim import NavSimEnv  # noqa: E402
from vla_models.inputs import VLAInput, VLAPrediction  # noqa: E402
from vla_models.interface import VLAInterface  # noqa: E402
from vla_models.model_registry import create_model, register_vla_model  # noqa: E402
from vla_models.models.tiny_vla import TinyVLA  # noqa: E402

STORE: Final = HERE / "batch.npz"
SCENES: Final = 4
GROUP: Final = 4
SPREADLESS: Final = 2
"""Scene whose rewards are all equal."""
FAILED: Final = 13
"""Row whose world has failed."""
SEED: Final = 0


@dataclass(frozen=True)
class Case:
    """A model, and how far its policy has moved since it sampled."""

    model: str
    head: str | None
    decided: str
    """The record's tensor that tells rows apart."""
    weight: str
    """The weight whose gradient is written down."""
    moved: float
    """Standard deviation of what was added to each weight, in units of the tensor's own."""


CASES: Final[Mapping[str, Case]] = {
    "tokens": Case("tiny_vla", "tokens", "action_tokens", "head.project.bias", 0.5),
    "gaussian": Case("tiny_vla", "gaussian", "raw_action", "head.mean.bias", 0.8),
    "flow": Case("tiny_vla", "flow", "chain", "head.out.bias", 0.8),
    "words": Case("small_tokens", None, "tokens", "poses.bias", 0.8),
    "decision": Case("parity_decision", "gaussian", "raw_action", "head.mean.bias", 0.5),
}
"""``words`` says texts of varying length, so parts of its records do not count; ``decision`` has one log-probability for a
whole plan, and with it the level at which ratios are taken makes no difference."""
REWARD: Final = {"off_road": -1.0, "wrong_way": -1.0, "comfort": 0.5, "ttc": 0.5}
"""Untrained plans score 0 almost always; these terms tell them apart."""


@register_vla_model("parity_decision")
class OneLogprob(TinyVLA):
    """``tiny_vla`` whose record has one log-probability for the whole plan."""

    def predict(self, *args: Any, **kwargs: Any) -> VLAPrediction:
        """The plan's poses are decided together."""
        said = super().predict(*args, **kwargs)
        if said.logprobs is not None:
            said.logprobs = said.logprobs.flatten(1).sum(1, keepdim=True)
        return said

    def evaluate_actions(
        self, record: Mapping[str, Tensor], *, entropy: bool = False, values: bool = False
    ) -> dict[str, Tensor]:
        """[B, 1] each."""
        out = super().evaluate_actions(record, entropy=entropy, values=values)
        whole = {"logprobs": out["logprobs"].flatten(1).sum(1, keepdim=True)}
        whole["mask"] = torch.ones_like(whole["logprobs"], dtype=torch.bool)
        return {**{k: v for k, v in out.items() if k == "values"}, **whole}


def configuration(case: str, algorithm: str, framework: str = "local", **options: Any) -> VLAConfig:
    """The documented setting: one minibatch, one pass, no KL, no entropy bonus, gradients not clipped."""
    which = CASES[case]
    tiny = {"dim": 16, "layers": 1, "heads": 2, "image_size": [32, 64]}
    section: dict[str, Any] = {"name": which.model, "options": {} if which.head is None else tiny}
    if which.head is not None:
        section["policy_head"] = {"type": which.head}
    return VLAConfig.from_dict(
        {
            "framework": framework,
            "seed": SEED,
            "model": section,
            "environment": {"type": "navsim", "train_scenes": SCENES, "heldout_scenes": 2},
            "reward": {"type": "driving", "weights": REWARD},
            "algorithm": {"name": algorithm, "group_size": GROUP},
            "training": {
                "steps": 1, "scenes_per_step": SCENES, "warmup_steps": 0, "eval_every": 0, "checkpoint_every": 0, "threads": 1,
                "optimizer": {"lr": 1e-3, "grad_clip": 1e9}, "imitation": {"steps": 0, "batch_size": 4},
            },
            "framework_options": options,
        }
    )  # fmt: skip


def sampler(case: str) -> VLAInterface:
    """The model that sampled, with weights from the seed."""
    config = configuration(case, "grpo")
    torch.manual_seed(SEED)
    return create_model(config.model.name, **config.model.arguments()).eval()


def policy(case: str) -> VLAInterface:
    """The model that is trained: the sampler, moved."""
    model = sampler(case)
    generator = torch.Generator().manual_seed(SEED + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            size = float(parameter.std()) if parameter.numel() > 1 else 0.0
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=CASES[case].moved * (size or 0.1))
    return model


def sums(model: VLAInterface) -> Tensor:
    """float64: the sum of each tensor of weights, by which one sees whether a seed gave the same ones."""
    return torch.stack([value.double().sum() for _, value in sorted(model.state_dict().items())])


@dataclass(frozen=True)
class Batch:
    """B = 16 decisions, a scene's four in consecutive rows."""

    case: str
    record: dict[str, Tensor]
    logprobs: Tensor
    """float32 [B, *S] under the sampler."""
    values: Tensor
    """float32 [B] under the sampler."""
    plans: npt.NDArray[np.float32]
    """[B, T, 3]."""
    rewards: Tensor
    """float32 [B]; where not ``valid`` the number that was measured before the world failed, which nobody may use."""
    valid: Tensor
    """bool [B]."""
    weights: Tensor
    """``sums`` of the policy."""

    def without_failure(self) -> Batch:
        """The same batch as if no world had failed."""
        return replace(self, valid=torch.ones_like(self.valid))


def write(path: Path = STORE) -> None:
    """Sample and score with the local trainer's own functions, and store what came out."""
    from vla_models.scoring.rewards import Reward
    from vla_models.training.rollout import sample_groups

    arrays: dict[str, Any] = {}
    for case in CASES:
        model = sampler(case)
        scenes = visible_scenes(6)[:SCENES]
        env = NavSimEnv(SCENES * GROUP, scenes=scenes, reward=Reward("driving", REWARD, "v1"), threads=1)
        plans: list[Any] = []
        step = env.step

        def noted(actions: Any, plans: list[Any] = plans, step: Any = step) -> Any:
            plans.append(np.array(actions))
            return step(actions)

        env.step = noted  # type: ignore[method-assign]
        got = sample_groups(
            model, env, env.tokens, group_size=GROUP, temperature=1.0, top_p=1.0,
            generator=torch.Generator().manual_seed(SEED),
        )  # fmt: skip
        assert got.values is not None
        rewards = got.rewards.clone()
        rewards[SPREADLESS] = rewards[SPREADLESS, 0].item()
        valid = torch.ones(SCENES * GROUP, dtype=torch.bool)
        valid[FAILED] = False
        arrays |= {f"{case}/record/{name}": value.numpy() for name, value in got.record.items()}
        arrays |= {f"{case}/logprobs": got.logprobs.numpy(), f"{case}/values": got.values.numpy()}
        arrays |= {f"{case}/plans": plans[0], f"{case}/rewards": rewards.flatten().numpy(), f"{case}/valid": valid.numpy()}
        arrays[f"{case}/weights"] = sums(policy(case)).numpy()
    np.savez_compressed(path, **arrays)


def read(case: str, path: Path = STORE) -> Batch:
    """The stored batch of a case."""
    with np.load(path) as arrays:
        mine = {name.removeprefix(f"{case}/"): arrays[name] for name in arrays.files if name.startswith(f"{case}/")}
    record = {name.removeprefix("record/"): torch.from_numpy(mine[name]) for name in mine if name.startswith("record/")}
    tensors = {name: torch.from_numpy(mine[name]) for name in ("logprobs", "values", "rewards", "valid", "weights")}
    batch = Batch(case=case, record=record, plans=mine["plans"], **tensors)
    if not torch.allclose(sums(policy(case)), batch.weights, atol=1e-4, rtol=0):
        raise AssertionError(f"{case}: the seed gives other weights than where {path.name} was made; run parity.py store")
    return batch


def rows_of(batch: Batch, record: Mapping[str, Tensor]) -> Tensor:
    """int64 [n] which rows of the batch a framework's rows are, by what was decided in them."""
    key = CASES[batch.case].decided
    known, asked = (value[key].flatten(1).double() for value in (batch.record, record))
    distance = torch.cdist(asked[:, : known.shape[1]], known)
    if float(distance.min(dim=1).values.max()) > 0:
        raise AssertionError(f"{batch.case}: a record came back that is not in the stored batch")
    return distance.argmin(dim=1)


class Replay:
    """Stands in for sampling and scoring: a model that decides what is stored, a world that rewards it as stored."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self._seen = [_key(scene.images["front"]) for scene in visible_scenes(6)[:SCENES]]
        self._next = [0] * SCENES
        self._lock = threading.Lock()

    def predict(
        self, inputs: VLAInput | Sequence[VLAInput], *, num_samples: int = 1, deterministic: bool = False, **unused: Any
    ) -> VLAPrediction:
        """The next ``num_samples`` stored decisions of each input's scene."""
        rows = []
        for given in [inputs] if isinstance(inputs, VLAInput) else inputs:
            scene = self._seen.index(_key(given.images["front"]))  # type: ignore[index,call-overload]
            with self._lock:
                for _ in range(num_samples):
                    rows.append(scene * GROUP + self._next[scene] % GROUP)
                    self._next[scene] += 1
        at = torch.tensor(rows)
        return VLAPrediction(
            self.batch.plans[rows], 0.5, logprobs=self.batch.logprobs[at], values=self.batch.values[at],
            record={name: value[at] for name, value in self.batch.record.items()},
        )  # fmt: skip

    @contextmanager
    def world(self) -> Iterator[None]:
        """NavSim as it is stored, in this process."""
        step, batch = NavSimEnv.step, self.batch

        def stored(env: NavSimEnv, actions: Any) -> Any:
            seen, rewards, terminated, truncated, info = step(env, actions)
            distance = np.abs(np.asarray(actions)[:, None] - batch.plans[None]).max(axis=(2, 3))
            rows = distance.argmin(axis=1)
            known = distance.min(axis=1) == 0
            rewards = np.where(known, batch.rewards.numpy()[rows], rewards).astype(np.float32)
            return seen, rewards, terminated, truncated, info | {"valid": np.where(known, batch.valid.numpy()[rows], True)}

        with patch.object(NavSimEnv, "step", stored):
            yield


def _key(image: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(np.asarray(image)).tobytes()).hexdigest()
