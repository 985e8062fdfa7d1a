"""RLinf: its environment class and policy, called as its workers call them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch

from adapter_steps.clock import Clock, Step, take
from vla_models.config import VLAConfig
from vla_models.model_registry import VLAModelRegistry, create_model


def step(config: VLAConfig, folder: Path) -> Step:
    """Steps through RLinf's adapters: their calls, without model and environment inside them."""
    from vla_models.frameworks.probing import lay_out
    from vla_models.frameworks.rlinf.model import RLinfPolicy

    config.to_yaml(folder / "config.yaml")
    torch.manual_seed(config.seed)
    model = create_model(config.model.name, **config.model.arguments())
    kind = VLAModelRegistry.get_env_adapter(config.environment.type, "rlinf")
    layout = lay_out(config, model, kind.make_env)
    group, plans = config.algorithm.group_size, config.training.scenes_per_step * config.algorithm.group_size
    init = SimpleNamespace(config=str(folder / "config.yaml"), part="train", first_round=0)
    env = kind(SimpleNamespace(init_params=init, group_size=group, auto_reset=False, rollout_epoch=1), plans, 0, 1)
    policy = RLinfPolicy(model, layout.observation, layout.record)
    outer, inner = Clock(), Clock()
    model.predict = inner.wrap(model.predict)  # type: ignore[method-assign]
    model.evaluate_actions = inner.wrap(model.evaluate_actions)  # type: ignore[method-assign]
    env.env.step, env.env.reset = inner.wrap(env.env.step), inner.wrap(env.env.reset)
    reset, step, predict, forward = (outer.wrap(f) for f in (env.reset, env.chunk_step, policy.predict_action_batch, policy))

    def once() -> float:
        outer.seconds = inner.seconds = 0.0
        seen, _ = reset()
        actions, result = predict(env_obs=seen, do_sample=True, temperature=config.algorithm.temperature)
        _, rewards, *_ = step(actions.numpy())
        out = forward(forward_inputs=result["forward_inputs"], compute_logprobs=True)
        (out["logprobs"].sum(1) * rewards[:, 0]).mean().backward()
        env.update_reset_state_ids()
        return take(outer, inner)

    return once
