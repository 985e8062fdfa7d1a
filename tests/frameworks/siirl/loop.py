"""A training step of siiRL with its real arguments, graph, nodes and classes, in one process and without Ray.

What siirl/main_dag.py and siirl/dag_worker/dagworker.py do with what our adapters give them, in the same order.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla_models.frameworks.siirl.compat import before_import

before_import()

import bring_your_own_model  # noqa: E402, F401 - a stranger's model, registers my_vla
import numpy as np  # noqa: E402
import small_models  # noqa: E402, F401 - registers models
import torch  # noqa: E402
from golden import visible_scenes  # noqa: E402
from gymnasium.vector import VectorEnv  # noqa: E402
from siirl.dag_worker.dagworker import DAGWorker  # noqa: E402
from siirl.data_coordinator import Dict2Samples, Samples2Dict, preprocess_dataloader  # noqa: E402
from siirl.execution.dag import NodeRole  # noqa: E402
from siirl.execution.scheduler.graph_updater import update_task_graph_node_configs  # noqa: E402
from siirl.execution.scheduler.reward import create_reward_manager  # noqa: E402
from siirl.main_dag import load_pipeline  # noqa: E402
from siirl.params import parse_config  # noqa: E402
from toy_world import HORIZON, ToyDrive  # noqa: E402

from vla_models.config import VLAConfig  # noqa: E402
from vla_models.envs.navsim import NavSimEnv  # noqa: E402
from vla_models.frameworks.probing import lay_out  # noqa: E402
from vla_models.frameworks.siirl import native, plugin  # noqa: E402
from vla_models.frameworks.siirl.env import NavSimVLAAdapter, SiirlEnvAdapter  # noqa: E402
from vla_models.frameworks.siirl.policy import Policy  # noqa: E402
from vla_models.frameworks.siirl.worker import DriveWorker  # noqa: E402
from vla_models.inputs import VLASpec  # noqa: E402
from vla_models.model_registry import VLAModelRegistry, create_model, register_env_adapter  # noqa: E402

plugin.register()

HEADS = ("small_tokens", "small_gaussian", "small_flow", "tiny_vla", "tiny_vla/gaussian", "tiny_vla/flow", "my_vla")
BENCH2DRIVE = {
    "train_towns": ["Town01"], "heldout_towns": ["Town02"], "scenario_types": ["DynamicObjectCrossing"], "max_ticks": 15,
    "camera": {"width": 32, "height": 24},
}  # fmt: skip
"""Short episodes on real routes."""
PLACES = {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
"""What siiRL's ``Worker`` reads."""


@register_env_adapter("navsim", "siirl")
class GoldenNavSim(NavSimVLAAdapter):
    @classmethod
    def make_env(cls, config: VLAConfig, part: Any, num_envs: int, spec: VLASpec) -> VectorEnv:
        return NavSimEnv(num_envs, scenes=visible_scenes(6)[:4] if part == "train" else visible_scenes(6)[4:])


@register_env_adapter("toy", "siirl")
class Toy(SiirlEnvAdapter):
    """A world of many decisions that can be reasoned about; its last scene crashes at the second decision."""

    @classmethod
    def make_env(cls, config: VLAConfig, part: Any, num_envs: int, spec: VLASpec) -> VectorEnv:
        env = ToyDrive(num_envs, horizon=spec.horizon)
        env.tokens.append("crash3")
        return env


def configuration(environment: str, model: str, algorithm: str = "grpo", **changes: Any) -> VLAConfig:
    name, _, head = model.partition("/")
    if name == "tiny_vla":
        options: dict[str, Any] = {"dim": 32, "layers": 1, "heads": 2, "image_size": [32, 64]}
    else:
        options = {"horizon": HORIZON} if environment == "toy" else {}
    more: dict[str, Any] = {"bench2drive": BENCH2DRIVE}.get(environment, {})
    reward = {"type": "driving", "weights": {"success": 1.0}}
    return VLAConfig.from_dict(
        {
            "framework": "siirl",
            "model": {"name": name, "options": options} | ({"policy_head": {"type": head}} if head else {}),
            "environment": {"type": environment, "train_scenes": 4, "heldout_scenes": 2, **more},
            **({"reward": reward} if environment == "toy" else {}),
            "algorithm": {
                "name": algorithm, "group_size": 4, "entropy_coef": 0.0 if head or name == "my_vla" else 0.01, **changes,
            },
            "training": {
                "steps": 2, "scenes_per_step": 2, "threads": 1, "warmup_steps": 0, "optimizer": {"lr": 1e-3},
                "imitation": {"steps": 0, "batch_size": 4},
            },
        }
    )  # fmt: skip


@dataclass
class Rank:
    """What one process of siiRL holds."""

    config: VLAConfig
    native: dict[str, Any]
    args: Any
    graph: Any
    dag: Any
    workers: dict[Any, DriveWorker]
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def policy(self) -> Policy:
        return self.workers[NodeRole.ACTOR].policy

    def node(self, name: str, batch: Any) -> Any:
        """DAGWorker._run_training_step, for one node."""
        node = self.graph.nodes[name]
        given: dict[str, Any] = {"_dag_worker_instance": self.dag, "process_group": None, "agent_group": self.workers}
        given["cur_tp_rank"] = 0
        if node.node_role == NodeRole.REWARD:
            given["tp_size"] = 1
        elif node.node_role == NodeRole.ADVANTAGE:
            given["cur_node"] = node
        output = node.run(batch=batch, config=self.args, **given)
        metrics = output.metrics
        self.metrics |= metrics if isinstance(metrics, dict) else metrics.data
        return output.batch

    def until(self, last: str, scenes: list[int]) -> Any:
        """The batch as it leaves node ``last``."""
        batch = manifest(scenes, int(self.args.actor_rollout_ref.rollout.n))
        for name in self.graph.nodes:
            batch = self.node(name, batch)
            if name == last:
                return batch
        raise KeyError(last)


def manifest(scenes: list[int], n: int) -> Any:
    """What siiRL's data loader and preprocess_dataloader make of our parquet's rows."""
    rows = {
        "task_id": torch.tensor(scenes),
        "trial_id": torch.zeros(len(scenes), dtype=torch.int64),
        "task_suite_name": np.array(["x"] * len(scenes), dtype=object),
    }
    return preprocess_dataloader(rows, n)


def parsed(settings: dict[str, Any]) -> Any:
    """siiRL's own reading of our arguments."""
    before, sys.argv = sys.argv, ["siirl", *native.arguments(settings)]
    try:
        return parse_config()
    finally:
        sys.argv = before


def rank(folder: Path, config: VLAConfig) -> Rank:
    """siiRL's main program up to the first step."""
    os.environ.update({name: os.environ.get(name, value) for name, value in PLACES.items()})
    adapter = VLAModelRegistry.get_env_adapter(config.environment.type, "siirl")
    folder.mkdir(exist_ok=True)
    config.to_yaml(folder / "config.yaml")
    torch.manual_seed(config.seed)
    model = create_model(config.model.name, **config.model.arguments())
    model.save_pretrained(folder / "start")
    layout = lay_out(config, model, adapter.make_env)
    heldout = len(adapter.make_env(config, "heldout", 1, model.spec).tokens)
    settings = native.make(
        config, folder, folder / "start", decisions=adapter.decisions or layout.max_decisions, heldout=heldout,
        record=layout.record, devices=1,
    )  # fmt: skip
    native.write_inputs(settings, config, 4, heldout)
    args = parsed(settings)
    graph = load_pipeline(args)
    update_task_graph_node_configs(graph, args)
    Policy._shared.clear()
    workers, made = {}, importlib.import_module("siirl.dag_worker.dagworker").get_worker_classes(args, "fsdp")
    for node in graph.nodes.values():
        if node.node_role in made and node.node_type.value.startswith("MODEL") and node.node_role not in workers:
            cfg = node.config["intern_config"]
            cfg.actor.optim.total_training_steps = config.training.steps
            workers[node.node_role] = made[node.node_role](config=cfg, process_group=None)
            workers[node.node_role].init_model()
    dag = DAGWorker.__new__(DAGWorker)
    dag.config, dag.validate_tokenizer, dag.rollout_mode, dag._multi_agent = args, None, "sync", False
    dag.reward_fn = create_reward_manager(args, None, num_examine=0, **args.reward_model.reward_kwargs)
    return Rank(config, settings, args, graph, dag, workers)


def moved(batch: Any) -> Any:
    """A batch that siiRL has taken apart into samples and put together again, as between ranks."""
    try:
        asyncio.get_event_loop()
    except RuntimeError:
        asyncio.set_event_loop(asyncio.new_event_loop())
    return Samples2Dict(Dict2Samples(batch))
