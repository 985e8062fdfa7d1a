"""The contract between verl 0.9.1 and what it calls of ours: real classes, one process, no Ray."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import one_process as one
import pytest
import torch

from vla_models.errors import ConfigError, DivergenceError
from vla_models.model_registry import create_model, register_framework_adapter

SCENES = {"navsim": lambda s: names(s)[:2], "bench2drive": lambda s: ["go2", "go3"]}


def names(s: one.Setting) -> list[str]:
    import json

    return list(json.loads(Path(s.cfg.data.train_files).read_text())["scenes"])


def rollout(s: one.Setting) -> Any:
    scenes = SCENES[s.config.environment.type](s)
    return one.trajectories(s, [scene for scene in scenes for _ in range(4)])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One setting for each (environment, model, algorithm), with its engine and a rollout."""
    known: dict[Any, Any] = {}

    def get(environment: str, model: str, algorithm: str = "grpo") -> Any:
        key = (environment, model, algorithm)
        if key not in known:
            folder = tmp_path_factory.mktemp("run")
            s = one.setting(folder, one.configuration(environment, model, algorithm))
            known[key] = (s, s.engine(), *rollout(s))
        return known[key]

    return get


EVERY = pytest.mark.parametrize(
    ("environment", "model"),
    [*((e, m) for e in ("navsim", "bench2drive") for m in one.HEADS), ("navsim", "tiny_vla/flow"), ("navsim", "my_vla")],
)


@EVERY
def test_the_engine_recomputes_what_the_server_sampled_with(made: Any, environment: str, model: str) -> None:
    _, engine, data, keys = made(environment, model)
    assert len(keys) == len(set(keys))
    assert len(keys) > 8 if environment == "bench2drive" else len(keys) == 8
    out = one.replayed(engine, data)
    sampled = data["rollout_log_probs"].to_padded_tensor(0.0)
    mask = data["response_mask"].to_padded_tensor(0).bool()
    assert mask.sum() >= 8 * 8
    assert (out["log_probs"] - sampled)[mask].abs().max() <= 1e-5
    assert torch.isfinite(out["log_probs"]).all()
    wrong = torch.roll(out["log_probs"], 1, dims=1)  # as if the shift by one token had been forgotten
    assert (wrong - sampled)[mask].abs().max() > 1e-2


@EVERY
def test_a_step_of_grpo_changes_the_weights_and_favours_what_was_better(made: Any, environment: str, model: str) -> None:
    s, engine, data, keys = made(environment, model)
    out = one.replayed(engine, data)
    given = one.advantages(s, data, keys)
    assert (given["advantages"] != 0).any()
    before = one.weights(engine)
    metrics = one.train(engine, data, s.loss(), old_log_probs=out["log_probs"], advantages=given["advantages"])
    assert metrics["grad_norm"] > 0
    after = one.weights(engine)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    now = one.replayed(engine, data)["log_probs"]
    mask = data["response_mask"].to_padded_tensor(0).bool()
    gained = ((now - out["log_probs"]) * given["advantages"])[mask].sum()
    assert gained > 0


def test_rows_of_a_many_decision_episode_share_its_group_relative_return(made: Any) -> None:
    """verl takes the last row of each episode and gives the result to all of them: right for the return of an episode."""
    s, _, data, keys = made("bench2drive", "small_gaussian")
    given = one.advantages(s, data, keys)["advantages"]
    returns: dict[str, float] = {}
    for i, key in enumerate(keys):
        session, _ = key.rsplit("_", 1)
        returns[session] = float(data["rm_scores"][i].sum())
        info = data["extra"][i].get("reward_extra_info")
        if info:
            assert info["return"] == pytest.approx(returns[session], abs=1e-5)
            assert info["decisions"] == sum(k.rsplit("_", 1)[0] == session for k in keys)
    for i, key in enumerate(keys):
        group = key.rsplit("_", 2)[0]
        scores = torch.tensor([value for session, value in returns.items() if session.rsplit("_", 1)[0] == group])
        expected = (returns[key.rsplit("_", 1)[0]] - scores.mean()) / (scores.std() + 1e-6)
        count = int(data["response_mask"][i].sum())
        torch.testing.assert_close(given[i, :count], expected.expand(count), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("environment", ["navsim", "bench2drive"])
def test_ppo_learns_values_and_gives_each_decision_what_came_after_it(made: Any, environment: str) -> None:
    s, engine, data, keys = made(environment, "small_gaussian", "ppo")
    critic = s.engine("critic")
    assert type(critic).__name__ == "DrivingCritic"
    with critic.eval_mode():
        out = critic.infer_batch(one.meta(data.clone()))["model_output"]["values"]
    values = one.response_from_nested(out, data["response_mask"]).to_padded_tensor(0.0)
    assert (values == values[:, :1]).all()  # one value a decision
    given = one.advantages(s, data, keys, values)
    gamma = 0.5 if environment == "bench2drive" else 1.0
    for i, key in enumerate(keys):
        session, index = key.rsplit("_", 1)
        own = [j for j, other in enumerate(keys) if other.rsplit("_", 1)[0] == session]
        order = sorted(own, key=lambda j: int(keys[j].rsplit("_", 1)[1]))
        assert int(index) == order.index(i)
        if (k := order.index(i)) + 1 < len(order):
            ahead = float(data["rm_scores"][order[k + 1]].sum())
            step = float(data["rm_scores"][i].sum()) - gamma * ahead
            assert abs(step) <= 2.0 + 1e-5  # the reward of one decision in the toy world
        torch.testing.assert_close(given["returns"][i, 0], data["rm_scores"][i].sum(), atol=1e-4, rtol=1e-4)
    before = one.weights(critic)
    metrics = one.train(critic, data, s.loss("critic"), values=values, returns=given["returns"])
    assert metrics["grad_norm"] > 0
    assert not torch.equal(before["model.value.weight"], one.weights(critic)["model.value.weight"])
    replay = one.replayed(engine, data)
    one.train(engine, data, s.loss(), old_log_probs=replay["log_probs"], advantages=given["advantages"])


@pytest.mark.parametrize("model", one.HEADS)
def test_the_agent_loop_worker_makes_a_dataproto(tmp_path: Path, model: str) -> None:
    s = one.setting(tmp_path, one.configuration("navsim", model))
    scenes = names(s)[:2]
    out = one.dataproto(s, [scenes[0]] * 2 + [scenes[1]] * 2)
    width = s.cfg.data.max_response_length
    assert out.batch["prompts"].shape == (4, 1)
    assert out.batch["responses"].shape == out.batch["response_mask"].shape == (4, width)
    assert out.batch["rollout_log_probs"].shape == out.batch["rm_scores"].shape == (4, width)
    counted = out.batch["response_mask"].sum(1)
    assert (counted >= 8).all()
    for i in range(4):
        scores = out.batch["rm_scores"][i]
        assert (scores.nonzero() == counted[i] - 1).all()
        assert scores.sum() == pytest.approx(out.non_tensor_batch["score"][i], abs=1e-6)
    assert set(out.non_tensor_batch["record"][0]) == {"record/words", "record/form"}


def test_evaluation_is_deterministic_and_needs_no_record(made: Any) -> None:
    s, *_ = made("navsim", "small_gaussian")
    import json

    scenes = json.loads(Path(s.cfg.data.val_files).read_text())["scenes"]

    def score() -> list[float]:
        worker = one.AgentLoopWorker(s.cfg, one.Client(s.server), None, None)
        batch = one.DataProto.from_single_dict(one.fields_of(s, scenes, "heldout"))
        batch.meta_info = {"global_steps": 1, "validate": True}
        out = one.asyncio.run(worker.generate_sequences(batch))
        assert out.non_tensor_batch["record"][0] == {}
        return out.batch["rm_scores"].sum(1).tolist()

    assert score() == score()


# -- weights ----------------------------------------------------------------------------------------------------------------


def test_weights_reach_the_server_whole_and_change_what_it_does(tmp_path: Path) -> None:
    s = one.setting(tmp_path, one.configuration("navsim", "small_gaussian"))
    engine = s.engine()
    data, keys = rollout(s)
    old = one.replayed(engine, data)
    given = one.advantages(s, data, keys)
    one.train(engine, data, s.loss(), old_log_probs=old["log_probs"], advantages=given["advantages"])
    sent = one_names(one.weights(engine))

    async def load() -> None:
        await s.server.load(sent, 7)
        assert (await s.server.state())["version"] == 7
        with pytest.raises(Exception, match="do not fit SmallGaussian: 1 have no counterpart"):
            await s.server.load({**sent, "stranger": torch.zeros(1)}, 8)

    one.asyncio.run(load())
    fresh, _ = rollout(s)
    out = one.replayed(engine, fresh)["log_probs"]
    assert (out - fresh["rollout_log_probs"].to_padded_tensor(0.0)).abs().max() <= 1e-5
    assert fresh["extra"][0]["min_global_steps"] == 7


def one_names(weights: Any) -> Any:
    from vla_models.frameworks.verl.model import own_names

    return own_names(weights)


def test_a_checkpoint_has_verls_state_and_a_readable_model(tmp_path: Path) -> None:
    from vla_models.frameworks.verl.runner import read_weights

    s = one.setting(tmp_path, one.configuration("navsim", "small_flow"))
    engine = s.engine()
    data, keys = rollout(s)
    old = one.replayed(engine, data)["log_probs"]
    given = one.advantages(s, data, keys)["advantages"]
    one.train(engine, data, s.loss(), old_log_probs=old, advantages=given)
    engine.save_checkpoint(str(tmp_path / "global_step_1" / "actor"), None, 1)
    saved = read_weights(tmp_path / "global_step_1")
    assert saved.keys() == s.server.model.state_dict().keys()
    trained = one_names(one.weights(engine))
    other = s.engine()
    other.load_checkpoint(str(tmp_path / "global_step_1" / "actor"), None, False)
    for name, value in one_names(one.weights(other)).items():
        torch.testing.assert_close(value, trained[name], atol=0, rtol=0)
        torch.testing.assert_close(saved[name], trained[name], atol=0, rtol=0)
    assert other.optimizer.state_dict()["state"]


def test_adapters_alone_are_trained(tmp_path: Path) -> None:
    """LoRA is the model's own: verl's engine trains what requires a gradient, and sends everything."""
    s = one.setting(tmp_path, one.configuration("navsim", "small_adapted"))
    engine = s.engine()
    before = one.weights(engine)
    for _ in range(2):  # the second one moves lora_A, too
        data, keys = rollout(s)
        old = one.replayed(engine, data)["log_probs"]
        given = one.advantages(s, data, keys)["advantages"]
        one.train(engine, data, s.loss(), old_log_probs=old, advantages=given)
    after = one.weights(engine)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("lora_A" in name for name in moved)
    assert not any("base_layer" in name for name in moved)


def test_a_users_adapter_gets_verls_model_section_and_what_it_returns_decides_and_is_trained(
    tmp_path: Path, registry: Any
) -> None:
    from vla_models.frameworks.verl.model import DrivingModelConfig

    made: list[Any] = []

    @register_framework_adapter("verl", "small_gaussian")
    def verl_adapter(config: Any) -> Any:
        assert isinstance(config, DrivingModelConfig)
        made.append(create_model("small_gaussian", horizon=8))
        return made[-1]

    s = one.setting(tmp_path, one.configuration("navsim", "small_gaussian"))
    assert s.server.model is made[0]
    engine = s.engine()
    assert len(made) == 2
    data, keys = rollout(s)
    before = one.weights(engine)
    old = one.replayed(engine, data)["log_probs"]
    sampled, mask = data["rollout_log_probs"].to_padded_tensor(0), data["response_mask"].to_padded_tensor(0).bool()
    assert (old - sampled)[mask].abs().max() <= 1e-5, "the same weights decide and are trained"
    one.train(engine, data, s.loss(), old_log_probs=old, advantages=one.advantages(s, data, keys)["advantages"])
    assert any(not torch.equal(value, before[name]) for name, value in one.weights(engine).items())


# -- what goes wrong ----------------------------------------------------------------------------------------------------------


def test_rows_that_verl_fills_a_batch_up_with_do_not_disturb(made: Any) -> None:
    from verl.trainer.ppo.padding_utils import construct_minimal_padding_template

    _, engine, data, keys = made("navsim", "small_gaussian")
    dense = {k: v for k, v in data.items() if k != "extra"}
    rows = [{k: v[i] for k, v in dense.items()} for i in range(len(keys))]
    template, _ = construct_minimal_padding_template({**rows[0], "position_ids": torch.arange(9)}, {}, 1)
    template = {k: v for k, v in template.items() if k in rows[0]}
    jagged = {"prompts", "responses", "response_mask", "loss_mask", "rm_scores", "rollout_log_probs", "input_ids"}
    filled = {
        k: torch.nested.as_nested_tensor([r[k] for r in [*rows, template]], layout=torch.jagged)
        if k in jagged
        else torch.stack([r[k] for r in [*rows, template]])
        for k in rows[0]
    }
    whole = one.TensorDict(filled, batch_size=len(rows) + 1)
    alone, with_it = one.replayed(engine, data)["log_probs"], one.replayed(engine, whole)["log_probs"]
    torch.testing.assert_close(with_it[:-1], alone)


def test_a_mask_that_changes_between_sampling_and_training_is_told(made: Any) -> None:
    _, engine, data, _ = made("navsim", "small_gaussian")
    shorter = data.clone()
    shorter["response_mask"] = torch.nested.as_nested_tensor(
        [torch.tensor([1] * 7 + [0]) for _ in range(len(data))], layout=torch.jagged
    )
    with pytest.raises(DivergenceError, match="counts 8 parts of a decision that had 7 when it was sampled"):
        one.replayed(engine, shorter)


def test_a_dataset_without_our_agent_is_refused(made: Any, tmp_path: Path) -> None:
    import json

    from vla_models.frameworks.verl.dataset import DrivingDataset

    s, *_ = made("navsim", "small_gaussian")
    data = json.loads(Path(s.cfg.data.train_files).read_text())
    for name in (None, "single_turn_agnet", "vla_models_records"):
        file = tmp_path / "scenes.json"
        file.write_text(json.dumps({**data, "agent_name": name}))
        with pytest.raises(ConfigError, match=r"agent_name .*known: .*vla_models_record"):
            DrivingDataset(str(file))


def test_an_answer_is_sent_with_its_own_record_alone(made: Any) -> None:
    """Ray sends all that a tensor is a view of, and pickles it with torch: rows of a batch are copied, into arrays."""
    s, *_ = made("navsim", "small_gaussian")
    answers = []

    class Watched:
        async def generate(self, *args: Any, **more: Any) -> Any:
            answers.append(await s.server.generate(*args, **more))
            return answers[-1]

    rollout(dataclasses.replace(s, server=Watched()))
    records = [answer.extra_fields["record"] for answer in answers]
    assert len(records) == 8
    assert all(value.flags.owndata for record in records for value in record.values())


def test_a_model_that_fails_tells_the_trajectory(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    s, *_ = made("navsim", "small_gaussian")

    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("no such plan")

    monkeypatch.setattr(s.server.model, "predict", broken)
    with pytest.raises(ZeroDivisionError, match="no such plan"):
        rollout(s)


def test_keys_that_verl_does_not_have_are_named(tmp_path: Path) -> None:
    wrong = {"actor_rollout_ref": {"actor": {"clip_ratio_hihg": 0.3}}}
    with pytest.raises(ConfigError, match=r"framework_options\.actor_rollout_ref\.actor\.clip_ratio_hihg: .* Did you mean"):
        one.setting(tmp_path, one.configuration("navsim", "small_gaussian", framework_options=wrong))


def test_the_composed_configuration_is_what_was_asked_for(made: Any) -> None:
    s, *_ = made("navsim", "small_gaussian")
    actor = one.omega_conf_to_dataclass(s.cfg.actor_rollout_ref.actor)
    assert (actor.clip_ratio_low, actor.clip_ratio_high) == (0.2, 0.28)
    assert actor.engine.mixed_precision["param_dtype"] == "fp32"
    assert s.cfg.algorithm.adv_estimator == "grpo"
    assert s.cfg.actor_rollout_ref.rollout.agent.default_agent_loop == "vla_models_record"
    assert np.isclose(s.cfg.trainer.v1.sampler.sampler_kwargs.max_dropped, 0.1)
