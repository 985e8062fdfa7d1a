"""One process of a run in AReaL, taken apart: its engines, executor and actor, as ``RecordTrainer`` puts them together."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bring_your_own_model  # noqa: F401 - registers my_vla
import small_models  # noqa: F401 - registers models
import torch
from areal.api import FinetuneSpec
from golden import visible_scenes
from gymnasium.vector import VectorEnv
from toy_world import HORIZON, ToyDrive

from vla_models.config import VLAConfig
from vla_models.envs.navsim import NavSimEnv
from vla_models.frameworks.areal import native as native_config
from vla_models.frameworks.areal.engine import VLAPPOActor
from vla_models.frameworks.areal.env import AReaLBench2DriveAdapter, AReaLNavSimAdapter
from vla_models.frameworks.areal.inference import VLAInferenceEngine
from vla_models.frameworks.areal.runner import structured
from vla_models.frameworks.areal.workflow import DrivingWorkflow
from vla_models.frameworks.probing import lay_out
from vla_models.inputs import VLASpec
from vla_models.model_registry import VLAModelRegistry, create_model, register_env_adapter


class GoldenNavSim(AReaLNavSimAdapter):
    @classmethod
    def make_env(cls, config: VLAConfig, part: Any, num_envs: int, spec: VLASpec) -> VectorEnv:
        scenes = visible_scenes(6)[:4] if part == "train" else visible_scenes(6)[4:]
        return NavSimEnv(num_envs, scenes=scenes, reward=config.reward.model_dump(exclude={"invalid"}))


class ToyBench2Drive(AReaLBench2DriveAdapter):
    crashing = False
    kind: type[ToyDrive] = ToyDrive

    @classmethod
    def make_env(cls, config: VLAConfig, part: Any, num_envs: int, spec: VLASpec) -> VectorEnv:
        return cls.kind(num_envs, crashing=cls.crashing, horizon=spec.horizon)


class CrashingBench2Drive(ToyBench2Drive):
    crashing = True


register_env_adapter("toy_drive", "areal")(ToyBench2Drive)  # an environment that only the framework knows
ENVIRONMENTS: dict[str, Any] = {"navsim": GoldenNavSim, "bench2drive": AReaLBench2DriveAdapter, "toy_drive": ToyBench2Drive}
BENCH2DRIVE = {
    "train_towns": ["Town01"], "heldout_towns": ["Town02"], "train_scenes": 4, "heldout_scenes": 2,
    "scenario_types": ["DynamicObjectCrossing", "VanillaSignalizedTurnEncounterRedLight"],
    "max_ticks": 40, "camera": {"width": 32, "height": 24},
}  # fmt: skip
"""Four short episodes of four decisions on real routes."""
SCENES = {"navsim": [scene.token for scene in visible_scenes(6)[:4]]}
HEADS = ("small_tokens", "small_gaussian", "small_flow", "tiny_vla", "tiny_vla/gaussian", "tiny_vla/flow", "my_vla")


def configuration(environment: str, model: str, *overrides: str) -> VLAConfig:
    name, _, head = model.partition("/")
    options: dict[str, Any] = {}
    if name == "tiny_vla":
        options = {"dim": 32, "layers": 1, "heads": 2, "image_size": [32, 64]}
    elif name.startswith("small"):
        options = {"horizon": HORIZON if environment == "toy_drive" else 8}
    section = {"name": name, "options": options} | ({"policy_head": {"type": head}} if head else {})
    # untrained plans score 0 almost always; these terms tell them apart
    weights = {"off_road": -1.0, "wrong_way": -1.0, "comfort": 0.5, "ttc": 0.5} if environment == "navsim" else {"success": 1.0}
    reward = {"type": "driving_score"} if environment == "bench2drive" else {"type": "driving", "weights": weights}
    data: dict[str, Any] = {
        "framework": "areal",
        "seed": 1,
        "model": section,
        "environment": {"type": environment, "train_scenes": 4, "heldout_scenes": 2}
        | (BENCH2DRIVE if environment == "bench2drive" else {}),
        "reward": reward,
        "algorithm": {"group_size": 4},
        "training": {
            "steps": 4, "scenes_per_step": 2, "warmup_steps": 0, "eval_every": 0, "threads": 1, "optimizer": {"lr": 1e-3},
            "imitation": {"steps": 0, "batch_size": 4},
        },
    }  # fmt: skip
    return VLAConfig.from_dict(data, overrides)


@dataclass
class Setting:
    """Everything that one process holds."""

    config: VLAConfig
    native: dict[str, Any]
    workflow: DrivingWorkflow
    rollout: VLAInferenceEngine
    actor: VLAPPOActor
    scenes: list[str]

    def batch(self, scenes: list[str] | None = None) -> list[dict[str, Any]]:
        """What AReaL's executor makes of these scenes (rejected ones are left out)."""
        found: list[dict[str, Any]] = self.rollout.rollout_batch(
            [{"scene": scene} for scene in scenes or self.scenes], self.workflow
        )
        return found

    def update(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """PPOTrainer.train from a batch to its update; returns the batch with advantages."""
        if self.actor.config.should_compute_prox_logp():
            for d, logprobs in zip(batch, self.actor.compute_logp(batch), strict=True):
                d["prox_logp"] = logprobs
        done = self.actor.compute_advantages(batch)
        self.actor.ppo_update([dict(d) for d in done])
        self.actor.step_lr_scheduler()
        return done

    def next_version(self) -> None:
        """PPOTrainer.train after an update."""
        version = self.actor.get_version() + 1
        self.rollout.pause()
        self.actor.update_weights(type("Meta", (), {"version": version, "path": None})())
        self.actor.set_version(version)
        self.rollout.set_version(version)
        self.rollout.resume()

    def close(self) -> None:
        self.rollout.destroy()
        self.workflow.close()


def setting(folder: Path, config: VLAConfig, adapter: Any = None, monkeypatch: Any = None) -> Setting:
    adapter = adapter or ENVIRONMENTS[config.environment.type]
    monkeypatch.setitem(VLAModelRegistry._env_adapters, config.environment.type, {"areal": adapter})
    config.to_yaml(folder / "config.yaml")
    torch.manual_seed(config.seed)
    model = create_model(config.model.name, **config.model.arguments())
    start = model.save_pretrained(folder / "start")
    scenes: list[str] = []

    def make_env(*args: Any) -> VectorEnv:
        env = adapter.make_env(*args)
        scenes[:] = env.tokens
        return env

    layout = lay_out(config, model, make_env)
    native = native_config.make(config, folder, start, folder / "tokenizer", 0)
    native_config.check(native)
    spec = {"horizon": model.spec.horizon, "dt": model.spec.dt, "controller": model.spec.controller}
    limits = {key: native["vla"][key] for key in ("environments", "threads", "limit")}
    settings = {
        "config": str(folder / "config.yaml"), "route": "record", "record": layout.record.to_dict(), "spec": spec,
        "environments": limits,
    }  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(settings))
    areal = structured(native)
    actor = VLAPPOActor(areal.actor)
    actor.create_process_group()
    each = config.training.scenes_per_step
    actor.initialize(ft_spec=FinetuneSpec(1, config.training.steps * each, each))
    rollout = VLAInferenceEngine(areal.rollout)
    rollout.initialize(engine_id="0", train_data_parallel_size=1, seed=config.seed)
    actor.connect_engine(rollout, None)
    return Setting(config, native, DrivingWorkflow(str(folder / "settings.json")), rollout, actor, scenes[:2])
