"""siiRL: a worker's rollout, log-probabilities and update."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

from adapter_steps.clock import Clock, Step, take
from vla_models.config import VLAConfig
from vla_models.model_registry import VLAModelRegistry, create_model


def step(config: VLAConfig, folder: Path) -> Step:
    """One step of siiRL's worker (rollout, log-probabilities, update), whose worlds and model run in threads of their own."""
    from vla_models.frameworks.siirl import native, plugin
    from vla_models.frameworks.siirl.compat import before_import

    before_import()
    plugin.register()
    os.environ |= {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    from dacite import Config as DaciteConfig
    from dacite import from_dict
    from siirl.params import ActorRolloutRefArguments
    from tensordict import TensorDict

    from vla_models.frameworks.probing import lay_out
    from vla_models.frameworks.siirl.worker import DriveWorker

    config.to_yaml(folder / "config.yaml")
    torch.manual_seed(config.seed)
    model = create_model(config.model.name, **config.model.arguments())
    model.save_pretrained(folder / "start")
    kind = VLAModelRegistry.get_env_adapter(config.environment.type, "siirl")
    layout = lay_out(config, model, kind.make_env)
    settings = native.make(
        config, folder, folder / "start", decisions=layout.max_decisions, heldout=1, record=layout.record, devices=1
    )
    native.write_inputs(settings, config, config.environment.train_scenes, 1)
    given = from_dict(ActorRolloutRefArguments, settings["actor_rollout_ref"], DaciteConfig(check_types=False))
    given.actor.optim.total_training_steps = 1000
    worker = DriveWorker(given, None)
    worker.init_model()
    policy, worlds = worker.policy, worker._rollout("train").worlds
    outer, inner = Clock(time.process_time), Clock()
    policy.model.predict = inner.wrap(policy.model.predict)  # type: ignore[method-assign]
    policy.model.evaluate_actions = inner.wrap(policy.model.evaluate_actions)  # type: ignore[method-assign]
    policy.optimizer.step = inner.wrap(policy.optimizer.step)  # type: ignore[method-assign]
    torch.autograd.backward = inner.wrap(torch.autograd.backward)
    for world in worlds:
        world.env.step, world.env.reset = inner.wrap(world.env.step), inner.wrap(world.env.reset)
    generate, replay, update = (
        outer.wrap(f) for f in (worker.generate_sequences, worker.compute_log_prob, worker.update_actor)
    )
    group, scenes = config.algorithm.group_size, config.training.scenes_per_step
    ids = torch.arange(scenes).repeat_interleave(group)

    def once() -> float:
        batch = generate(TensorDict({"task_id": ids}, batch_size=len(ids)))
        returns = batch["episode_return"].view(scenes, group)
        advantages = (returns - returns.mean(dim=1, keepdim=True)).reshape(-1, 1)
        batch["advantages"] = advantages * batch["response_mask"]
        update(replay(batch))
        return take(outer, inner)

    return once
