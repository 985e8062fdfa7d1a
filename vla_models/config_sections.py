"""The sections of ``VLAConfig``: every key, its type, its default and what it means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationInfo, field_validator

from vla_models.errors import did_you_mean

BACKENDS = {"navsim": ("procedural", "devkit"), "bench2drive": ("embedded", "carla")}
"""environment type -> where its world can come from; the first is the default."""
SCORES = {"navsim": "pdms", "bench2drive": "driving_score"}
"""environment type -> its benchmark's own score, which ``reward.type`` is by default."""


def _by_type(navsim: Any, bench2drive: Any) -> Callable[[dict[str, Any]], Any]:
    """Default of an environment's key, by the environment's type (a registered one has NavSim's)."""
    return lambda environment: bench2drive if environment["type"] == "bench2drive" else navsim


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


class LoraConfig(Section):
    """Low-rank adapters (peft)."""

    rank: int = Field(default=8, ge=1)
    """Of each adapter's two factors."""
    alpha: float = Field(default=16.0, gt=0.0)
    """An adapter's result counts alpha / rank times."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Of an adapter's input, while imitating (RL replays probabilities, and leaves dropout out)."""
    targets: list[str] = Field(default_factory=list)
    """Ends of the names of the linear layers that get one ("q_proj", …); left out, all."""


class LanguageModelConfig(Section):
    """What the model reads and thinks with; passed to its constructor as the dict ``language_model``."""

    base_model: str
    """Name or folder of the base model ("gpt2", …)."""
    lora_enabled: bool = False
    """Train low-rank adapters and leave the base weights as they are."""
    lora: LoraConfig | None = None
    """How the adapters are made, where ``lora_enabled``."""


class PolicyHeadConfig(Section):
    """How the model decides; passed to its constructor as the dict ``policy_head``."""

    type: str
    """Kind of head, as the model names it. Those of this package: tokens, gaussian, waypoint, flow, ddim (docs/models.md)."""
    action_dim: int | None = Field(default=None, gt=0, multiple_of=3)
    """Numbers in a plan: three (x, y, heading) for each waypoint, so 15 is five waypoints."""
    codebook: str | None = None
    """tokens: "kinematic", "bins" (256 a coordinate), a file that ``vla-models codebook`` wrote; for hf_vlm also "text"."""
    space: str | None = None
    """gaussian, flow, ddim: what an action is, "controls" (acceleration and steering, integrated) or "waypoints"."""
    sigma: float | None = Field(default=None, gt=0.0)
    """gaussian, waypoint: a fixed standard deviation, in units of the data's; left out, it is learned."""
    squash: bool | None = None
    """gaussian, waypoint: keep actions within 4 standard deviations of the data by a tanh."""
    steps: int | None = Field(default=None, ge=1)
    """flow, ddim: denoising steps in a decision."""
    chosen_steps: int | None = Field(default=None, ge=1)
    """flow, ddim: how many of them are stochastic and learned from; left out, all."""
    eta: float | None = Field(default=None, gt=0.0, le=1.0)
    """flow, ddim: share of the noise that a stochastic step draws afresh."""


class PromptConfig(Section):
    """How a vision-language model is asked; passed to its constructor as the dict ``prompt``."""

    language: Literal["en", "zh"] = "en"
    """English or Chinese."""
    template: str | None = None
    """Lines of your own with {images}, {ego}, {command}, {route}, {history}, {instruction}, {answer}; a line whose fields are
    all unknown is left out. Left out: the language's own template."""
    system: str | None = None
    """A system message before it."""


class ModelConfig(Section):
    """Which model, and what its constructor is told."""

    name: str = "tiny_vla"
    """Registered name (``vla-models list`` shows them)."""
    checkpoint_path: str | None = None
    """What ``create_model`` gets as ``model_path``: a saved checkpoint, or whatever the model makes of it."""
    vision_encoder: VisionEncoderConfig | None = None
    language_model: LanguageModelConfig | None = None
    policy_head: PolicyHeadConfig | None = None
    prompt: PromptConfig | None = None
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """Further keyword arguments of the model's constructor."""

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for ``create_model`` beside ``model_path``: ``options``, and as dicts the sections
        that are set (of these, the keys that are)."""
        sections = {key: getattr(self, key) for key in ("vision_encoder", "language_model", "policy_head", "prompt")}
        return {**{k: v.model_dump(exclude_none=True) for k, v in sections.items() if v is not None}, **self.options}


class CameraConfig(Section):
    """A camera's picture."""

    width: int = Field(default=160, ge=16, le=4096)
    """Pixels."""
    height: int = Field(default=96, ge=16, le=4096)
    """Pixels."""
    fov: float | None = Field(default=None, ge=10.0, le=170.0)
    """Horizontal field of view in degrees. Left out: 90 in navsim; Bench2Drive's cameras have their own."""


class EnvironmentConfig(Section):
    """Where the model drives."""

    type: str = "navsim"
    """navsim, bench2drive, or the name of a registered environment."""
    backend: str = Field(default="")
    """navsim: procedural or devkit; bench2drive: embedded or carla. Left out: the first, which needs nothing installed."""
    train_towns: list[str] = ["Town01", "Town03", "Town04", "Town05"]
    """CARLA towns on whose roads training scenes, or routes, are generated."""
    heldout_towns: list[str] = Field(
        default_factory=_by_type(["Town02", "Town06", "Town10HD"], ["Town02", "Town06", "Town10HD", "Town15"])
    )
    """Towns for evaluation; none may be among ``train_towns``. In bench2drive Town15 joins them by default: the other three
    have no kerbside parking."""
    train_store: str | None = None
    """navsim: a scene store to train on, all of it, instead of generated scenes."""
    train_scenes: int = Field(default_factory=_by_type(1000, 440), ge=1)
    """Generated scenes, or routes, to train on. Left out: 1000 scenes or 440 routes."""
    heldout_scenes: int = Field(default_factory=_by_type(200, 88), ge=1)
    """Generated scenes, or routes, to evaluate on. Left out: 200 scenes or 88 routes."""
    scenes_seed: int = Field(default=0, ge=0)
    """Seed of their generation (apart from ``seed``, so that several runs share their scenes)."""
    score_version: Literal["v1", "v2"] = "v1"
    """navsim: v1 (PDMS) or v2 (EPDMS)."""
    train_routes: str | None = None
    """bench2drive: a leaderboard XML to train on, all of it, instead of generated routes (``train_towns``, ``train_scenes`` and
    ``scenario_types`` then say nothing about training)."""
    routes: str | None = None
    """bench2drive: a leaderboard XML to evaluate on, all of it, instead of generated routes (``heldout_towns``,
    ``heldout_scenes`` and ``scenario_types`` then say nothing about the evaluation)."""
    skip_bad: bool = False
    """bench2drive: leave out routes of those files that cannot be read or staged, instead of stopping there."""
    scenario_types: list[str] = Field(default_factory=list)
    """bench2drive: scenarios of generated routes, in turn (docs/bench2drive.md lists them). Left out: all 44."""
    ticks: int = Field(default=10, ge=1)
    """bench2drive: ticks of 0.05 s that a decision drives of its plan."""
    max_ticks: int = Field(default=4000, ge=1)
    """bench2drive: ticks after which an episode is cut off (4000 is official)."""
    cameras: list[str] = Field(default=["front"], min_length=1)
    """bench2drive: which of its six cameras the car has: front, front_left, front_right, back, back_left, back_right."""
    camera: CameraConfig = CameraConfig()

    @property
    def dataset(self) -> str:
        """The name under which models keep the statistics of the training scenes."""
        return self.train_store or f"{self.type}-{self.backend}"

    @field_validator("type")
    @classmethod
    def _known_type(cls, value: str) -> str:
        if value not in BACKENDS:
            from vla_models.model_registry import VLAModelRegistry

            known = {*BACKENDS, *VLAModelRegistry.list_env_adapters()}
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

    type: str = ""
    """The benchmark's own score (pdms in navsim, driving_score in bench2drive), or driving: the weighted sum of ``weights``.
    Left out: the score."""
    weights: dict[str, float] = Field(default_factory=dict)
    """Reward term -> weight, for type driving: ``{collision: -10.0, success: 10.0}``."""
    invalid: float | Literal["exclude"] = 0.0
    """Reward of an answer that is no plan (a language model wrote something else): a number, or exclude, which leaves it out of
    learning like an episode whose world failed. Both are counted."""

    @field_validator("invalid", mode="before")
    @classmethod
    def _number_or_exclude(cls, value: Any) -> Any:
        if value != "exclude" and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError("give a number, or exclude")
        return value


class AlgorithmConfig(Section):
    """How plans and their rewards become a gradient."""

    name: Literal["grpo", "ppo", "srpo"] = "grpo"
    """grpo compares the plans of a group; ppo compares with a predicted value; srpo (framework siirl) is grpo with a reward for
    failures that is the higher the more they resemble the group's successes."""
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
    gamma: float = Field(default=0.99, gt=0.0, le=1.0)
    """What a reward is worth one decision earlier, where an episode has many (bench2drive)."""
    gae_lambda: float = Field(default=0.95, ge=0.0, le=1.0)
    """ppo, where an episode has many decisions: generalised advantage estimation, from 0 (one reward and the next value) to 1
    (all rewards)."""


class OptimizerConfig(Section):
    """The optimiser of the RL phase."""

    type: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = Field(default=1e-4, gt=0.0)
    """Learning rate."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    grad_clip: float = Field(default=1.0, gt=0.0)
    """Gradients longer than this are scaled down to it."""


class ImitationConfig(Section):
    """The warm start: the model imitates PDM-Closed on the training scenes, or the rule-based driver on the training routes."""

    steps: int = Field(default=300, ge=0)
    """Optimiser steps; 0 leaves the warm start out."""
    batch_size: int = Field(default=32, ge=1)
    """Scenes, or decisions on routes, in a step."""
    lr: float = Field(default=1e-3, gt=0.0)
    """Learning rate."""


class TrainingConfig(Section):
    """How long, how fast, and what is kept."""

    steps: int = Field(default=100, ge=0)
    """RL updates; 0 stops after imitation."""
    scenes_per_step: int = Field(default=16, ge=1)
    """Scenes, or routes, in an update, each in algorithm.group_size rows."""
    decisions_per_step: int = Field(default=8, ge=1)
    """bench2drive: decisions that a row drives in an update (an episode goes on in the next one). NavSim's episodes are one."""
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
