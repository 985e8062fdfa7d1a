"""``VLAConfig``: everything that a run depends on, as one YAML file.

Every key has a default, so ``{}`` is a whole configuration (the small model, GRPO, NavSim on procedural scenes). Validation is
strict: an unknown key, a wrong type or an impossible combination is a ``ConfigError`` that lists every problem with its path,
its value, what is allowed, and the line it stands in.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, ValidationInfo, field_validator, model_validator

from vla_models.config_errors import Problem, Problems, describe_problems
from vla_models.errors import ConfigError, did_you_mean
from vla_models.files import atomic_path
from vla_models.yaml_source import YamlSource, dump

if TYPE_CHECKING:
    from vla_models.interface import VLAInterface

FRAMEWORKS = ("local", "areal", "rlinf", "verl", "siirl")
"""Frameworks of this package; a registered framework adapter adds its own."""
BACKENDS = {"navsim": ("procedural", "devkit"), "bench2drive": ("embedded", "carla")}
"""environment type -> where its world can come from; the first is the default."""
NAVSIM_HORIZON_S = 4.0
"""Seconds that a NavSim plan covers."""


class Section(BaseModel):
    """Base of all sections: strict types, no unknown keys, no NaN, immutable."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, validate_default=True, use_attribute_docstrings=True,
        protected_namespaces=(),
    )  # fmt: skip


class VisionEncoderConfig(Section):
    """What the model sees with; passed to its constructor as the dict ``vision_encoder``."""

    type: str
    """Kind of encoder, as the model names it ("clip", "siglip", …)."""
    pretrained_path: str | None = None
    """Name or folder of pretrained weights."""


class LanguageModelConfig(Section):
    """What the model reads and thinks with; passed to its constructor as the dict ``language_model``."""

    base_model: str
    """Name or folder of the base model ("gpt2", …)."""
    lora_enabled: bool = False
    """Train low-rank adapters and leave the base weights as they are."""


class PolicyHeadConfig(Section):
    """How the model decides; passed to its constructor as the dict ``policy_head``."""

    type: str
    """Kind of head, as the model names it ("waypoint", "tokens", …)."""
    action_dim: int | None = Field(default=None, gt=0, multiple_of=3)
    """Numbers in a plan: three (x, y, heading) for each waypoint, so 15 is five waypoints."""


class ModelConfig(Section):
    """Which model, and what its constructor is told."""

    name: str = "tiny_vla"
    """Registered name (``vla-models list`` shows them)."""
    checkpoint_path: str | None = None
    """What ``create_model`` gets as ``model_path``: a saved checkpoint, or whatever the model makes of it."""
    vision_encoder: VisionEncoderConfig | None = None
    language_model: LanguageModelConfig | None = None
    policy_head: PolicyHeadConfig | None = None
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """Further keyword arguments of the model's constructor."""

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for ``create_model`` beside ``model_path``: ``options``, and as dicts the sections that are set."""
        sections = {key: getattr(self, key) for key in ("vision_encoder", "language_model", "policy_head")}
        return {**{k: v.model_dump() for k, v in sections.items() if v is not None}, **self.options}


class CameraConfig(Section):
    """The front camera's picture."""

    width: int = Field(default=160, ge=16, le=4096)
    """Pixels."""
    height: int = Field(default=96, ge=16, le=4096)
    """Pixels."""
    fov: float = Field(default=90.0, ge=10.0, le=170.0)
    """Horizontal field of view in degrees."""


class EnvironmentConfig(Section):
    """Where the model drives."""

    type: str = "navsim"
    """navsim, bench2drive, or the name of a registered environment."""
    backend: str = Field(default="")
    """navsim: procedural or devkit; bench2drive: embedded or carla. Left out: the first, which needs nothing installed."""
    train_towns: list[str] = ["Town01", "Town03", "Town04", "Town05"]
    """CARLA towns whose roads training scenes are cut from."""
    heldout_towns: list[str] = ["Town02", "Town06", "Town10HD"]
    """Towns for evaluation; none may be among ``train_towns``."""
    train_scenes: int = Field(default=1000, ge=1)
    """Scenes to train on."""
    heldout_scenes: int = Field(default=200, ge=1)
    """Scenes to evaluate on."""
    scenes_seed: int = Field(default=0, ge=0)
    """Seed of scene generation (apart from ``seed``, so that several runs share their scenes)."""
    score_version: Literal["v1", "v2"] = "v1"
    """NavSim's score: v1 (PDMS) or v2 (EPDMS)."""
    camera: CameraConfig = CameraConfig()

    @field_validator("type")
    @classmethod
    def _known_type(cls, value: str) -> str:
        if value not in BACKENDS:
            from vla_models.model_registry import VLAModelRegistry

            known = [*BACKENDS, *VLAModelRegistry.list_env_adapters()]
            if value not in known:
                raise ValueError(f"there is no such environment; {did_you_mean(value, known)}")
        return value

    @field_validator("backend")
    @classmethod
    def _default_backend(cls, value: str, info: ValidationInfo) -> str:
        kind = info.data.get("type")
        allowed = BACKENDS.get(kind or "")
        if not value and allowed:
            return allowed[0]
        if allowed and value not in allowed:
            raise ValueError(f"environment {kind} has no such backend; {did_you_mean(value, allowed)}")
        return value


class RewardConfig(Section):
    """What the model is rewarded for."""

    type: Literal["pdms", "driving"] = "pdms"
    """pdms: the benchmark's own score; driving: the weighted sum of ``weights``."""
    weights: dict[str, float] = Field(default_factory=dict)
    """Reward term -> weight, for type driving: ``{collision: -10.0, success: 10.0}``."""


class AlgorithmConfig(Section):
    """How plans and their rewards become a gradient."""

    name: Literal["grpo", "ppo"] = "grpo"
    """grpo compares the plans of a group; ppo compares with a predicted value."""
    group_size: int = Field(default=16, ge=1)
    """Plans sampled for each scene."""
    temperature: float = Field(default=1.0, gt=0.0)
    """Of sampling; log-probabilities are those of the tempered distribution."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Nucleus sampling; 1 keeps the whole distribution."""
    clip_low: float = Field(default=0.2, gt=0.0, lt=1.0)
    """The probability ratio is clipped below at 1 - clip_low …"""
    clip_high: float = Field(default=0.28, gt=0.0)
    """… and above at 1 + clip_high (DAPO's clip-higher)."""
    kl_coef: float = Field(default=0.0, ge=0.0)
    """Weight of the KL divergence from the reference (the model after imitation)."""
    entropy_coef: float = Field(default=0.0, ge=0.0)
    """Weight of the entropy bonus."""
    epochs: int = Field(default=1, ge=1)
    """Passes over each batch of plans."""
    minibatches: int = Field(default=1, ge=1)
    """Optimiser steps in each pass."""
    normalize_advantage: bool = True
    """Divide advantages by their standard deviation (grpo: within the group; ppo: over the batch)."""
    value_coef: float = Field(default=0.5, ge=0.0)
    """ppo: weight of the value loss."""


class OptimizerConfig(Section):
    """The optimiser of the RL phase."""

    type: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = Field(default=1e-4, gt=0.0)
    """Learning rate."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    grad_clip: float = Field(default=1.0, gt=0.0)
    """Gradients longer than this are scaled down to it."""


class ImitationConfig(Section):
    """The warm start: the model imitates PDM-Closed on the training scenes."""

    steps: int = Field(default=300, ge=0)
    """Optimiser steps; 0 leaves the warm start out."""
    batch_size: int = Field(default=32, ge=1)
    """Scenes in a step."""
    lr: float = Field(default=1e-3, gt=0.0)
    """Learning rate."""


class TrainingConfig(Section):
    """How long, how fast, and what is kept."""

    steps: int = Field(default=100, ge=0)
    """RL updates; 0 stops after imitation."""
    scenes_per_step: int = Field(default=16, ge=1)
    """Scenes in an update; plans in an update = scenes_per_step × algorithm.group_size."""
    optimizer: OptimizerConfig = OptimizerConfig()
    imitation: ImitationConfig = ImitationConfig()
    warmup_steps: int = Field(default=5, ge=0)
    """RL updates over which the learning rate rises from 0."""
    eval_every: int = Field(default=25, ge=0)
    """RL updates between two held-out evaluations; 0: only before and after."""
    checkpoint_every: int = Field(default=25, ge=0)
    """Steps (of either phase) between two checkpoints; 0: only at the end of a phase."""
    threads: int = Field(default=0, ge=0)
    """CPU threads for the model and the scorer; 0 uses what the machine has."""


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
        if self.training.steps > 0 and (lacking := model.missing("trained")):
            problems.append(f"model.name: {self.model.name} cannot be trained: it does not implement {' and '.join(lacking)}")
        if self.algorithm.name == "ppo" and self.training.steps > 0 and not spec.has_value:
            problems.append(f"algorithm.name: ppo needs state values, and {self.model.name} has no value head; use grpo")
        if problems:
            raise ConfigError("\n".join(problems))

    @field_validator("framework")
    @classmethod
    def _known_framework(cls, value: str) -> str:
        if value not in FRAMEWORKS:
            from vla_models.model_registry import VLAModelRegistry

            known = {
                *FRAMEWORKS,
                *VLAModelRegistry.list_adapters(),
                *(f for fs in VLAModelRegistry.list_env_adapters().values() for f in fs),
            }
            if value not in known:
                raise ValueError(f"there is no such framework; {did_you_mean(value, known)}")
        return value

    @model_validator(mode="after")
    def _possible(self) -> Self:
        """Combinations that cannot work."""
        if problems := list(self._impossible()):
            raise Problems(problems)
        return self

    def _impossible(self) -> Iterable[Problem]:
        env, algorithm, training = self.environment, self.algorithm, self.training
        if env.backend in ("procedural", "embedded"):
            yield from self._town_problems()
        if training.scenes_per_step > env.train_scenes:
            yield (
                ("training", "scenes_per_step"),
                f"at most environment.train_scenes ({env.train_scenes}) can be taken in one step",
            )
        if training.imitation.batch_size > env.train_scenes and training.imitation.steps:
            yield (
                ("training", "imitation", "batch_size"),
                f"at most environment.train_scenes ({env.train_scenes}) can be taken in one step",
            )
        if algorithm.name == "grpo" and algorithm.group_size < 2:
            yield ("algorithm", "group_size"), "grpo compares plans of one scene with each other: at least 2"
        plans = training.scenes_per_step * algorithm.group_size
        if algorithm.minibatches > plans:
            yield ("algorithm", "minibatches"), f"at most scenes_per_step × group_size = {plans}"
        if env.type == "bench2drive" and self.reward.type == "pdms":
            yield ("reward", "type"), "pdms is NavSim's score; bench2drive needs type driving with weights"
        if env.type == "navsim":
            from vla_models.scoring.rewards import Reward

            try:
                Reward(type=self.reward.type, weights=self.reward.weights, version=env.score_version)
            except ConfigError as e:
                path, _, message = str(e).partition(": ")
                yield tuple(path.split(".")), message

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
