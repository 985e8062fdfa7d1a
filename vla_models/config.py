"""``VLAConfig``: everything that a run depends on, as one YAML file.

Every key has a default, so ``{}`` is a whole configuration (the small model, GRPO, NavSim on procedural scenes). Validation is
strict: an unknown key, a wrong type or an impossible combination is a ``ConfigError`` that lists every problem with its path,
its value, what is allowed, and the line it stands in.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, JsonValue, ValidationError, ValidationInfo, field_validator, model_validator

from vla_models.config_errors import Problem, Problems, describe_problems
from vla_models.config_sections import (
    BACKENDS,
    SCORES,
    AlgorithmConfig,
    EnvironmentConfig,
    ModelConfig,
    RewardConfig,
    Section,
    TrainingConfig,
)
from vla_models.errors import ConfigError, did_you_mean
from vla_models.files import atomic_path
from vla_models.model_registry import BUILTIN_FRAMEWORKS, VLAModelRegistry
from vla_models.yaml_source import YamlSource, dump

if TYPE_CHECKING:
    from vla_models.interface import VLAInterface

__all__ = ["BACKENDS", "VLAConfig"]

CONTINUOUS = ("gaussian", "waypoint", "flow", "ddim")
"""Heads (``VLASpec.head``) whose actions are numbers, not tokens."""
NAVSIM_HORIZON_S = 4.0
"""Seconds that a NavSim plan covers."""
ELSEWHERE = {
    "navsim": ("train_routes", "routes", "skip_bad", "scenario_types", "ticks", "max_ticks", "cameras"),
    "bench2drive": ("train_store", "score_version"),
}
"""environment type -> keys of its section that only the other one reads."""


class VLAConfig(Section):
    """A whole run. ``from_yaml`` is how to get one."""

    seed: int = Field(default=0, ge=0)
    """Seed of everything random in the run (scenes have ``environment.scenes_seed``)."""
    framework: str = "local"
    """local, areal, rlinf, verl, siirl, or one that was registered."""
    output_dir: str = "runs"
    """Where the run's folder is made."""
    name: str | None = Field(default=None, pattern=r"^[\w.-]+$")
    """Beginning of the run folder's name; left out, it is made from framework, environment and algorithm."""
    model: ModelConfig = ModelConfig()
    environment: EnvironmentConfig = EnvironmentConfig()
    reward: RewardConfig = RewardConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    training: TrainingConfig = TrainingConfig()
    framework_options: dict[str, JsonValue] = Field(default_factory=dict)
    """Keys of the framework's own configuration, nested as it nests them: they replace what is made from the other sections."""

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Iterable[str] = ()) -> Self:
        """Read a file; ``overrides`` are ``training.steps=10``-like strings that take precedence over it."""
        source = YamlSource.read(Path(path))
        source.override(overrides)
        return cls._from_source(source)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], overrides: Iterable[str] = ()) -> Self:
        """As ``from_yaml``, from a nested dict."""
        source = YamlSource(copy.deepcopy(dict(data)))
        source.override(overrides)
        return cls._from_source(source)

    @classmethod
    def _from_source(cls, source: YamlSource) -> Self:
        try:
            return cls.model_validate(source.data)
        except ValidationError as e:
            raise ConfigError(describe_problems(e, cls, source)) from e

    def to_dict(self) -> dict[str, Any]:
        """All values, defaults included, as plain data."""
        return self.model_dump()

    def to_yaml(self, path: str | Path) -> Path:
        """Write all values, defaults included; ``from_yaml`` reads back an equal configuration."""
        with atomic_path(Path(path)) as temporary:
            temporary.write_text(dump(self.to_dict()), encoding="utf-8")
        return Path(path)

    def check_model(self, model: VLAInterface) -> None:
        """Raise ``ConfigError`` where this configuration asks of ``model`` what it cannot do (every launcher calls it)."""
        spec, problems = model.spec, []
        covers = spec.horizon * spec.dt
        if self.environment.type == "navsim" and abs(covers - NAVSIM_HORIZON_S) > 1e-6:
            problems.append(
                f"environment.type: navsim needs plans over {NAVSIM_HORIZON_S} s, and {self.model.name} plans {spec.horizon} × "
                f"{spec.dt} s; set its spec to VLASpec(horizon=8, dt=0.5, …)"
            )
        if self.environment.type == "bench2drive" and (
            unseen := [c for c in spec.cameras if c not in self.environment.cameras]
        ):
            problems.append(
                f"environment.cameras: {self.model.name} also looks through {', '.join(unseen)}; write "
                f"[{', '.join([*self.environment.cameras, *unseen])}]"
            )
        if self.training.steps > 0 and (lacking := model.missing("trained")):
            problems.append(f"model.name: {self.model.name} cannot be trained: it does not implement {' and '.join(lacking)}")
        if self.algorithm.name == "ppo" and self.training.steps > 0 and not spec.has_value:
            problems.append(f"algorithm.name: ppo needs state values, and {self.model.name} has no value head; use grpo")
        if spec.head in CONTINUOUS and self.algorithm.top_p < 1.0:
            problems.append(f"algorithm.top_p: a {spec.head} head has no tokens to leave out; use 1.0 and lower temperature")
        if problems:
            raise ConfigError("\n".join(problems))

    @field_validator("framework")
    @classmethod
    def _known_framework(cls, value: str) -> str:
        if value not in BUILTIN_FRAMEWORKS:
            known = {
                *VLAModelRegistry.list_frameworks(),
                *VLAModelRegistry.list_adapters(),
                *(f for fs in VLAModelRegistry.list_env_adapters().values() for f in fs),
            }
            if value not in known:
                raise ValueError(f"there is no such framework; {did_you_mean(value, known)}")
        return value

    @field_validator("reward", mode="after")
    @classmethod
    def _default_reward(cls, value: RewardConfig, info: ValidationInfo) -> RewardConfig:
        if value.type or "environment" not in info.data:
            return value
        return value.model_copy(update={"type": SCORES.get(info.data["environment"].type, SCORES["navsim"])})

    @model_validator(mode="after")
    def _possible(self) -> Self:
        """Combinations that cannot work."""
        if problems := list(self._impossible()):
            raise Problems(problems)
        return self

    def _impossible(self) -> Iterable[Problem]:
        env, algorithm, training = self.environment, self.algorithm, self.training
        untouched = EnvironmentConfig(type=env.type, backend=env.backend)
        for key in ELSEWHERE.get(env.type, ()):
            if getattr(env, key) != getattr(untouched, key):
                yield ("environment", key), f"{env.type} has no such thing; leave it out"
        if env.backend in ("procedural", "embedded"):
            yield from self._town_problems()
        for key in {*ModelConfig.model_fields, "model_path"} & self.model.options.keys():
            yield ("model", "options", key), "this belongs one level up, into the section model itself"
        generated = env.type != "bench2drive" or env.train_routes is None
        if training.scenes_per_step > env.train_scenes and generated:
            yield (
                ("training", "scenes_per_step"),
                f"at most environment.train_scenes ({env.train_scenes}) can be taken in one step",
            )
        if env.type != "bench2drive" and training.imitation.batch_size > env.train_scenes and training.imitation.steps:
            yield (
                ("training", "imitation", "batch_size"),
                f"at most environment.train_scenes ({env.train_scenes}) can be taken in one step",
            )
        if algorithm.name != "ppo" and algorithm.group_size < 2:
            yield ("algorithm", "group_size"), f"{algorithm.name} compares plans of one scene with each other: at least 2"
        if algorithm.name == "srpo" and self.framework != "siirl":
            yield ("algorithm", "name"), "srpo is siiRL's: set framework: siirl, or take grpo"
        plans = training.scenes_per_step * algorithm.group_size
        if algorithm.minibatches > plans:
            yield ("algorithm", "minibatches"), f"at most scenes_per_step × group_size = {plans}"
        if env.type == "navsim":
            from vla_models.scoring.rewards import Reward

            yield from _reward_problems(
                lambda: Reward(type=self.reward.type, weights=self.reward.weights, version=env.score_version)
            )
        if env.type == "bench2drive":
            from vla_models.scoring.bench2drive.rewards import RouteReward

            yield from _reward_problems(lambda: RouteReward(self.reward.type, self.reward.weights))
            yield from self._route_problems()

    def _route_problems(self) -> Iterable[Problem]:
        from vla_models.render.rigs import bench2drive_cameras
        from vla_models.scenes.bench2drive.scenario_types import SCENARIO_TYPES

        env = self.environment
        for kind in env.scenario_types:
            if kind not in SCENARIO_TYPES:
                yield (
                    ("environment", "scenario_types"),
                    f"there is no scenario type {kind!r}; {did_you_mean(kind, SCENARIO_TYPES)}",
                )
        known = {camera.name: camera.fov for camera in bench2drive_cameras()}
        for name in env.cameras:
            if name not in known:
                yield ("environment", "cameras"), f"there is no camera {name!r}; {did_you_mean(name, known)}"
        if env.camera.fov is not None:
            fixed = ", ".join(f"{name} {fov:g}" for name, fov in known.items())
            yield ("environment", "camera", "fov"), f"Bench2Drive's cameras have their own ({fixed}); leave it out"
        if env.routes is not None and env.routes == env.train_routes:
            yield ("environment", "routes"), "this file is trained on (train_routes); evaluate on another one"

    def _town_problems(self) -> Iterable[Problem]:
        from vla_models.scenes.towns import TOWNS

        env = self.environment
        for key, towns in (("train_towns", env.train_towns), ("heldout_towns", env.heldout_towns)):
            if not towns:
                yield ("environment", key), "name at least one town"
            for town in towns:
                if town not in TOWNS:
                    yield ("environment", key), f"there is no town {town!r}; {did_you_mean(town, TOWNS)}"
        if both := sorted(set(env.train_towns) & set(env.heldout_towns)):
            yield (
                ("environment", "heldout_towns"),
                f"{', '.join(both)} also among train_towns; held-out scenes must come from other towns",
            )


def _reward_problems(make: Callable[[], object]) -> Iterable[Problem]:
    """What the environment's own reward class says against the settings."""
    try:
        make()
    except ConfigError as e:
        path, _, message = str(e).partition(": ")
        yield tuple(path.split(".")), message
