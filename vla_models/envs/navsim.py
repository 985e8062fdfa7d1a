"""NavSim as a gymnasium vector environment: one observation, one plan, one score.

Batch first: N episodes are one call. An episode is one decision, so ``step`` always terminates; ``reset`` comes next (nothing
resets by itself). Rows that share a scene are scored together, which is what makes GRPO's groups cheap.
"""

from __future__ import annotations

import copy
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from vla_models.errors import ConfigError, PlanError, SceneError, did_you_mean
from vla_models.inputs import EGO_FEATURES, INSTRUCTION
from vla_models.scenes.scene import COMMANDS, EGO_COLUMNS, PLAN_STEPS, Scene
from vla_models.scoring.pdm import score
from vla_models.scoring.pdm.score import Version
from vla_models.scoring.rewards import METRICS, Reward

_EGO_SOURCE: Final = [EGO_COLUMNS.index(name) for name in ("vx", "ax", "ay", "steering", "yaw_rate")]
"""Where the columns of the observation ``ego`` (``EGO_FEATURES``) come from."""

ROUTE_POINTS: Final = 10
"""Points of the observation ``route``: 5, 10, … 50 m ahead along the route, ego frame."""

_STANDARD_SCENES: Final = 256
"""Scenes that the environment generates for itself when it is made without any."""


def observe(scenes: Sequence[Scene]) -> dict[str, Any]:
    """Observation of each scene, batch first: what the model may know, and nothing that the score knows.

    Returns ``images`` {camera: uint8 [N, H, W, 3]}, ``ego`` f32 [N, 5] (``EGO_FEATURES``), ``route`` f32 [N, 10, 2],
    ``command`` int64 [N] (index into ``COMMANDS``) and ``text`` list[str]. Raises SceneError where a scene lacks a camera that
    the first one has, or its route is not 10 points.
    """
    cameras = {name: image.shape for name, image in scenes[0].images.items()}
    for scene in scenes:
        if scene.route.shape != (ROUTE_POINTS, 2):
            raise SceneError(
                f"scene {scene.token!r}: its route has shape {scene.route.shape}, the observation needs ({ROUTE_POINTS}, 2): "
                "points 5 to 50 m ahead in the ego frame; extend the centre line and build the scene again"
            )
        if {name: image.shape for name, image in scene.images.items()} != cameras:
            raise SceneError(
                f"scene {scene.token!r}: its cameras {sorted(scene.images)} or their sizes differ from those of scene "
                f"{scenes[0].token!r} ({cameras}); render all scenes with one CameraSpec"
            )
    return {
        "images": {name: np.stack([scene.images[name] for scene in scenes]) for name in cameras},
        "ego": np.stack([scene.ego[_EGO_SOURCE] for scene in scenes]).astype(np.float32),
        "route": np.stack([scene.route for scene in scenes]).astype(np.float32),
        "command": np.array([scene.command for scene in scenes], dtype=np.int64),
        "text": [INSTRUCTION] * len(scenes),
    }


class NavSimEnv(VectorEnv):
    """N NavSim episodes at once; ``gymnasium.make_vec("NavSim-v0", num_envs=N, scenes=…)`` after ``import vla_models.envs``.

    Args:
        num_envs: episodes per batch (rows).
        scenes: what episodes are drawn from: a sequence of scenes, or the path of a scene store. Left out, 256 scenes of the
            procedural generator (made once, cached).
        reward: the reward; a ``Reward``, or its keyword arguments as a dict ({"type": "driving", "weights": {…}}).
        score_version: "v1" (NavSim 1.1) or "v2" (2.2).
        threads: threads of the scorer.

    ``step`` takes plans f32/f64 [N, 8, 3]: x, y, heading of the rear axle in the ego frame at t = 0.5 … 4.0 s.
    ``info`` of a step: ``terms`` {name: f32 [N]} all reward terms, ``metrics`` {name: f32 [N]} the sub-scores and the score,
    ``scene`` list[str] tokens, ``valid`` bool [N]. An invalid row (the scorer has no number for it) has reward NaN.

    Raises:
        SceneError: if there are no scenes, or one cannot be observed or scored.
        PlanError: if plans have the wrong shape or are not finite.
    """

    metadata = {"autoreset_mode": AutoresetMode.DISABLED, "render_modes": []}  # noqa: RUF012  # gymnasium declares it so

    def __init__(
        self,
        num_envs: int = 1,
        *,
        scenes: Sequence[Scene] | str | Path | None = None,
        reward: Reward | Mapping[str, Any] | None = None,
        score_version: Version = "v1",
        threads: int = 1,
    ) -> None:
        self.num_envs = num_envs
        self.scenes: Sequence[Scene] = _load(scenes)
        if len(self.scenes) == 0:
            raise SceneError("NavSim-v0 was given no scenes; pass some, or leave `scenes` out for generated ones")
        self.reward = reward if isinstance(reward, Reward) else Reward(**{"version": score_version, **(reward or {})})
        if self.reward.version != score_version:
            raise ConfigError(
                f"the reward expects score {self.reward.version}, the environment has {score_version}; make them equal"
            )
        self.threads = threads
        tokens = getattr(self.scenes, "tokens", None)
        self.tokens: list[str] = list(tokens) if tokens is not None else [scene.token for scene in self.scenes]
        self._index_of = {token: i for i, token in enumerate(self.tokens)}
        self._indices: npt.NDArray[np.int64] | None = None
        self._observation: dict[str, Any] = {}
        self._done = False

        first = self.scenes[0]
        self.single_observation_space = spaces.Dict(
            {
                "images": spaces.Dict(
                    {name: spaces.Box(0, 255, image.shape, np.uint8) for name, image in first.images.items()}
                ),
                "ego": spaces.Box(-np.inf, np.inf, (len(EGO_FEATURES),), np.float32),
                "route": spaces.Box(-np.inf, np.inf, (ROUTE_POINTS, 2), np.float32),
                "command": spaces.Discrete(len(COMMANDS)),
                "text": spaces.Text(4096, charset=string.printable),
            }
        )
        self.single_action_space = spaces.Box(-np.inf, np.inf, (PLAN_STEPS, 3), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin N episodes. ``options={"scenes": [...]}`` names them (N tokens or indices); without, they are drawn at random.

        Drawn episodes repeat no scene until all have been used. The same seed draws the same scenes.
        """
        if isinstance(seed, list):
            seed = int(np.random.SeedSequence([0 if s is None else s for s in seed]).generate_state(1)[0])
        super().reset(seed=seed)
        unknown = set(options or {}) - {"scenes"}
        if unknown:
            raise SceneError(f"reset option {sorted(unknown)[0]!r} is unknown; {did_you_mean(sorted(unknown)[0], ['scenes'])}")
        if options and options.get("scenes") is not None:
            self._indices = self._look_up(options["scenes"])
        else:
            rounds = -(-self.num_envs // len(self.scenes))
            drawn = np.concatenate([self.np_random.permutation(len(self.scenes)) for _ in range(rounds)])
            self._indices = drawn[: self.num_envs].astype(np.int64)
        return self._begin()

    def step(self, actions: npt.ArrayLike) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Score plans [N, 8, 3]; see the class for what comes back. The observation stays what it was: nothing has moved."""
        if self._indices is None or self._done:
            raise gymnasium.error.ResetNeeded("an episode of NavSim-v0 is one decision: call reset() before every step()")
        plans = check_plans(actions, self.num_envs)
        distinct, row_of, position = _groups(self._indices)
        group = int(position.max()) + 1
        proposals = np.empty((len(distinct), group, PLAN_STEPS, 3))
        first_row = np.zeros(len(distinct), dtype=np.int64)
        first_row[row_of[::-1]] = np.arange(self.num_envs)[::-1]
        proposals[:] = plans[first_row][:, None]  # groups of unequal size are filled up with their first plan
        proposals[row_of, position] = plans
        scores = score([self.scenes[i] for i in distinct], proposals, version=self.reward.version, threads=self.threads)
        reward, terms = self.reward(scores)

        def rows(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
            return np.asarray(values)[row_of, position].astype(np.float32)

        self._done = True
        rewards = rows(reward)
        info = {
            "terms": {name: rows(values) for name, values in terms.items()},
            "metrics": {name: rows(getattr(scores, name)) for name in METRICS[self.reward.version]},
            "scene": [self.tokens[i] for i in self._indices],
            "valid": np.isfinite(rewards),
        }
        ended = np.ones(self.num_envs, dtype=np.bool_)
        return self._observation, rewards, ended, ~ended, info

    def snapshot(self) -> dict[str, Any]:
        """Everything that the next ``reset`` and ``step`` depend on; give it to ``restore``."""
        indices = None if self._indices is None else self._indices.copy()
        return {"indices": indices, "done": self._done, "random": copy.deepcopy(self.np_random.bit_generator.state)}

    def restore(self, state: dict[str, Any]) -> Any:
        """Go back to a ``snapshot`` bit-exactly; returns the observation of that moment (None before the first reset)."""
        self.np_random.bit_generator.state = copy.deepcopy(state["random"])
        self._indices = None if state["indices"] is None else state["indices"].copy()
        if self._indices is None:
            return None
        observation, _ = self._begin()
        self._done = state["done"]
        return observation

    def _begin(self) -> tuple[Any, dict[str, Any]]:
        assert self._indices is not None
        distinct, row_of, _ = _groups(self._indices)
        once = observe([self.scenes[i] for i in distinct])
        self._observation = {
            "images": {name: images[row_of] for name, images in once["images"].items()},
            "ego": once["ego"][row_of],
            "route": once["route"][row_of],
            "command": once["command"][row_of],
            "text": [once["text"][i] for i in row_of],
        }
        self._done = False
        return self._observation, {"scene": [self.tokens[i] for i in self._indices]}

    def _look_up(self, names: Sequence[int | str]) -> npt.NDArray[np.int64]:
        if len(names) != self.num_envs:
            raise SceneError(f"reset was given {len(names)} scenes for {self.num_envs} episodes; give one for each")
        indices = np.empty(len(names), dtype=np.int64)
        for row, name in enumerate(names):
            if isinstance(name, str):
                if name not in self._index_of:
                    raise SceneError(f"scene {name!r} is not among the {len(self.tokens)} scenes of this environment")
                indices[row] = self._index_of[name]
            else:
                if not 0 <= int(name) < len(self.tokens):
                    raise SceneError(f"scene index {name} is outside 0 … {len(self.tokens) - 1}")
                indices[row] = int(name)
        return indices


def check_plans(plans: npt.ArrayLike, rows: int) -> npt.NDArray[np.float64]:
    """Plans as float64 [rows, 8, 3]; raises PlanError, naming the rows, if the shape is another or a number is not finite."""
    out = np.asarray(plans, dtype=np.float64)
    if out.shape != (rows, PLAN_STEPS, 3):
        raise PlanError(
            f"plans have shape {out.shape}, expected ({rows}, {PLAN_STEPS}, 3): x, y, heading in the ego frame every 0.5 s"
        )
    bad = np.flatnonzero(~np.isfinite(out).all(axis=(1, 2)))
    if len(bad):
        raise PlanError(
            f"plans of rows {bad[:8].tolist()}{' …' if len(bad) > 8 else ''} are not finite; the model has diverged"
        )
    return out


def _load(scenes: Sequence[Scene] | str | Path | None) -> Sequence[Scene]:
    if isinstance(scenes, (str, Path)):
        from vla_models.scenes.store import SceneStore

        return SceneStore.open(Path(scenes))
    if scenes is None:
        from vla_models.render.camera import CameraSpec
        from vla_models.scenes.procedural import ProceduralSpec, generate
        from vla_models.scenes.towns import TOWNS

        return generate(ProceduralSpec(towns=tuple(TOWNS[:1]), count=_STANDARD_SCENES, seed=0, camera=CameraSpec()))
    return scenes


def _groups(indices: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Distinct scenes in order of first appearance; for each row, its scene's place among them and its own in the group."""
    values, first, inverse = np.unique(indices, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    row_of = rank[inverse.reshape(-1)]
    position = np.empty(len(indices), dtype=np.int64)
    seen = np.zeros(len(values), dtype=np.int64)
    for row, scene in enumerate(row_of):
        position[row] = seen[scene]
        seen[scene] += 1
    return values[order], row_of, position
