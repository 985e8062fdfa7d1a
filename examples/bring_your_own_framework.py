"""An RL framework of your own, started like the others: python examples/bring_your_own_framework.py CONFIG [KEY=VALUE …]

Best of group: of the episodes that one scene was driven in, the model imitates the best. The warm start, the run's folder,
checkpoints that ``vla-models eval`` reads and the last evaluation come from ``FrameworkRun``; what is new stands in ``launch``.
"""

import sys

import torch

from vla_models import VLAConfig, VLAInput, VLAModelRegistry, register_env_adapter, register_framework
from vla_models.errors import VLAModelsError
from vla_models.frameworks import get_launcher
from vla_models.frameworks.environments import make_vector_env
from vla_models.frameworks.episodes import Episodes
from vla_models.frameworks.run_folder import FrameworkRun
from vla_models.training.checkpoint import data_order, random_stream
from vla_models.training.objective import masked_mean
from vla_models.training.rollout import select


@register_env_adapter("navsim", "best_of_group")
@register_env_adapter("bench2drive", "best_of_group")
class EveryEnvironment:
    """What ``best_of_group`` wants of an environment is its VectorEnv; other environments' adapters have ``make_env``, too."""

    make_env = staticmethod(make_vector_env)


def drive(model, episodes, scenes, **sampling):
    """One episode in each row: what was decided at each decision (the record, and which rows it counts for), and the totals."""
    observation, decided, totals = episodes.begin(scenes), [], {}
    while not episodes.over.all():
        running = torch.as_tensor(~episodes.over)
        plans = model.predict(VLAInput.batch(observation), **sampling)
        step = episodes.decide(plans.waypoints.reshape(episodes.env.num_envs, -1, 3), plans.valid)
        decided.append((plans.record, running))
        observation, totals = step.observation, step.totals
    return decided, totals


@register_framework("best_of_group")
def launch(config, *, resume=None):
    run = FrameworkRun(config, resume)
    run.prepare()
    if run.done():
        run.load(type(run.model).from_pretrained(run.path / "checkpoints" / f"update-{run.done():07d}").state_dict())
    model, training, group = run.model, config.training, config.algorithm.group_size
    optimizer = torch.optim.AdamW(model.parameters(), training.optimizer.lr)
    make_env = VLAModelRegistry.get_env_adapter(config.environment.type, "best_of_group").make_env
    rows = training.scenes_per_step * group
    episodes = Episodes(make_env(config, "train", rows, model.spec), invalid=config.reward.invalid)
    for step in range(run.done(), training.steps):
        drawn = data_order(config.seed, "rl", step, len(episodes.env.tokens), training.scenes_per_step)
        scenes = [episodes.env.tokens[i] for i in drawn for _ in range(group)]
        generator = torch.Generator().manual_seed(random_stream(config.seed, "rl", step))
        model.eval()
        decided, totals = drive(model, episodes, scenes, generator=generator, temperature=config.algorithm.temperature)
        returns = torch.as_tensor(totals["return"]).where(torch.as_tensor(totals["valid"]) > 0, -torch.inf)
        best = torch.zeros(rows, dtype=torch.bool)
        best[returns.view(-1, group).argmax(1) + group * torch.arange(training.scenes_per_step)] = True
        best &= returns.isfinite()
        losses = []
        for record, running in decided:
            chosen = torch.nonzero(best & running)[:, 0]
            if len(chosen):
                out = model.evaluate_actions(select(record, chosen))
                losses.append(-masked_mean(out["logprobs"], out["mask"]))
        if not losses:
            raise VLAModelsError(f"step {step + 1}: no episode was valid, so there is none to imitate; look at the environment")
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.optimizer.grad_clip)
        optimizer.step()
        valid = returns.isfinite()
        row = {"reward_mean": returns[valid].mean().item(), "loss": loss.item(), "invalid": int((~valid).sum())}
        run.write("rl", step + 1, row)
        if step + 1 == training.steps or (training.checkpoint_every and (step + 1) % training.checkpoint_every == 0):
            run.keep_checkpoint(step + 1, model.state_dict())

    def evaluate():  # for an environment that only this framework knows: greedily, everything that is held out
        model.eval()
        scenes = make_env(config, "heldout", 1, model.spec).tokens
        held = Episodes(make_env(config, "heldout", len(scenes), model.spec), invalid=config.reward.invalid)
        _, totals = drive(model, held, scenes, deterministic=True)
        return {name: float(values.sum() / totals["valid"].sum()) for name, values in totals.items()}

    return run.finish(training.steps, evaluate)


if __name__ == "__main__":
    config = VLAConfig.from_yaml(sys.argv[1], ["framework=best_of_group", *sys.argv[2:]])
    print(get_launcher(config.framework)(config))
