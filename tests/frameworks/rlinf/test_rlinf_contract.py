"""The contract suite against the real RLinf: every head × both environments through RLinf's own data path and algorithms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import loop
import numpy as np
import pytest
import torch

pairs = pytest.mark.parametrize(
    ("environment", "head"), [(environment, head) for environment in loop.ENVIRONMENTS for head in loop.HEADS]
)


@pytest.fixture(autouse=True)
def registered() -> None:
    from vla_models.frameworks.rlinf import plugin

    plugin.register()


def test_everything_is_registered_where_rlinf_looks_for_it(tmp_path: Path) -> None:
    from omegaconf import OmegaConf
    from rlinf.algorithms.registry import ADV_REGISTRY
    from rlinf.config import EMBODIED_MODEL, SupportedModel
    from rlinf.models import get_model
    from rlinf.workers.env import env_worker

    from vla_models.frameworks.rlinf.env import RLinfBench2DriveAdapter, RLinfNavSimAdapter
    from vla_models.frameworks.rlinf.model import RLinfPolicy

    assert SupportedModel("vla_models") in EMBODIED_MODEL
    for name, adapter in (("navsim", RLinfNavSimAdapter), ("bench2drive", RLinfBench2DriveAdapter)):
        cfg = OmegaConf.create({"init_params": {"id": f"vla_models/{name}"}})
        assert env_worker.get_env_cls("isaaclab", cfg) is adapter
    assert {"vla_grpo", "vla_grpo_centred", "gae"} <= ADV_REGISTRY.keys()

    s = loop.setting(tmp_path, loop.configuration("navsim", "small_gaussian"))
    s.policy.model.save_pretrained(tmp_path / "model")
    built = get_model(s.cfg.actor.model)
    assert isinstance(built, RLinfPolicy)
    assert not hasattr(built, "value_head")
    for name, weight in s.policy.state_dict().items():
        torch.testing.assert_close(built.state_dict()[name], weight)


@pairs
def test_observations_arrive_whole(environment: str, head: str, tmp_path: Path) -> None:
    """Nothing that the environment says is lost in RLinf's five keys."""
    s = loop.setting(tmp_path, loop.configuration(environment, head))
    seen = s.env.episodes.begin(s.env.scenes())
    over, packed = s.policy._read(loop.forwarded(s.env._pack(seen)))
    back = s.policy.observation.unpack(packed)
    assert back.keys() == seen.keys()
    assert not over.any()
    for name, value in seen.items():
        if name == "images":
            assert {k: v.tobytes() for k, v in back["images"].items()} == {k: v.tobytes() for k, v in value.items()}
        elif name == "text":
            assert back["text"] == value
        else:
            np.testing.assert_array_equal(back[name], value)
            assert back[name].dtype == np.asarray(value).dtype


@pairs
@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_a_step_of_training(environment: str, head: str, algorithm: str, tmp_path: Path) -> None:
    """Shapes, replay, advantages, ratio and gradients of one rollout and one update."""
    if (head, algorithm) == ("my_vla", "ppo"):
        pytest.skip("it has no state values, and launch says so")
    s = loop.setting(tmp_path, loop.configuration(environment, head, algorithm))
    raw, infos = loop.rollout(s)
    t, b = s.decisions, s.env.num_envs
    assert raw["rewards"].shape == (t, b, 1)
    assert raw["prev_logprobs"].shape[:2] == (t, b)
    assert raw["prev_logprobs"].shape[2] % s.cfg.actor.model.action_dim == 0
    for name in ("dones", "terminations", "truncations"):
        assert raw[name].shape == (t + 1, b, 1)
    assert not any(tensor.is_floating_point() for k, tensor in raw["forward_inputs"].items() if k != "action")
    if algorithm == "ppo":
        assert raw["prev_values"].shape == (t + 1, b, 1)
        assert hasattr(s.policy, "value_head")
    for info in infos:
        assert all(len(values) == b for values in info["episode"].values())

    batch = loop.training_batch(loop.advantages(s, raw))
    value, metrics, out = loop.loss(s, batch)
    torch.testing.assert_close(out["logprobs"], batch["prev_logprobs"], atol=1e-5, rtol=0)
    assert abs(metrics["actor/ratio"] - 1.0) < 1e-5
    assert torch.isfinite(value)
    before = batch["advantages"].abs().max()
    if algorithm == "grpo":
        groups = loop.advantages(s, raw)["advantages"][0].reshape(-1, s.env.group_size)
        assert groups.sum(dim=1).abs().max() < 1e-4
    value.backward()
    norm = sum(p.grad.square().sum() for p in s.policy.parameters() if p.grad is not None) ** 0.5
    assert torch.isfinite(norm)
    assert bool(norm > 0) == bool(before > 0) or algorithm == "ppo"


@pairs
def test_members_of_a_group_share_a_scene_and_groups_do_not_repeat(environment: str, head: str, tmp_path: Path) -> None:
    s = loop.setting(tmp_path, loop.configuration(environment, head))
    names = []
    for _ in range(2):
        scenes = s.env.scenes()
        groups = np.array(scenes).reshape(-1, s.env.group_size)
        assert (groups == groups[:, :1]).all()
        names += list(groups[:, 0])
        s.env.reset()
        assert s.env.episodes.scenes == scenes
        s.env.update_reset_state_ids()
    assert sorted(names) == sorted(s.env.env.tokens)  # two rounds of two groups: every scene once


def test_processes_share_the_scenes_of_a_round(tmp_path: Path) -> None:
    config = loop.configuration("navsim", "small_gaussian")
    whole = loop.setting(tmp_path, config).env.scenes()
    parts = [loop.setting(tmp_path, config, place=(i, 2)).env.scenes() for i in range(2)]
    assert parts[0] + parts[1] == whole


@pairs
def test_evaluation_is_deterministic_and_in_order(environment: str, head: str, tmp_path: Path) -> None:
    s = loop.setting(tmp_path, loop.configuration(environment, head), part="heldout")
    plans = []
    for _ in range(2):
        obs, _ = s.env.reset()
        actions, result = s.policy.predict_action_batch(env_obs=loop.forwarded(obs), **loop.sampling(s.cfg, do_sample=False))
        assert result["prev_logprobs"] is None
        plans.append(actions)
    torch.testing.assert_close(plans[0], plans[1], atol=0, rtol=0)
    if environment == "navsim":
        assert s.env.scenes() == s.env.env.tokens


@pairs
def test_padding_is_inert(environment: str, head: str, tmp_path: Path) -> None:
    """More room in the record changes no log-probability, and no gradient comes from what a mask leaves out."""
    from vla_models.frameworks.records import RecordLayout, unpack

    s = loop.setting(tmp_path, loop.configuration(environment, head))
    obs = loop.forwarded(s.env.reset()[0])
    outs = []
    for extra in (0, 5):
        growing = {"tokens", "spoken", "input_ids", "attention_mask"}
        sizes = {k: (n[0] + extra, *n[1:]) if k in growing else n for k, n in s.policy.record.sizes.items()}
        s.policy.record = RecordLayout(sizes, s.policy.record.parts)
        s.policy._generator = None
        _, result = s.policy.predict_action_batch(env_obs=obs, **loop.sampling(s.cfg))
        out = s.policy(forward_inputs=result["forward_inputs"], compute_logprobs=True)["logprobs"]
        torch.testing.assert_close(out, result["prev_logprobs"], atol=1e-5, rtol=0)
        outs.append(out)
    torch.testing.assert_close(outs[0], outs[1], atol=1e-6, rtol=0)
    if head == "small_tokens":
        mask = s.policy.model.evaluate_actions(unpack(result["forward_inputs"]))["mask"]
        assert not mask.all()
        pads = ~torch.nn.functional.pad(mask, (0, outs[1].shape[1] - mask.shape[1]))
        unspoken = outs[1][pads].sum() + 0.0 * outs[1].sum()
        (gradient,) = torch.autograd.grad(unspoken, s.policy.model.words.weight)
        assert gradient.abs().max() == 0.0


def test_a_model_that_does_not_replay_or_lacks_something_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import small_models

    from vla_models.errors import DivergenceError, NotImplementedByModel

    score = small_models.SmallGaussian.score
    config = loop.configuration("navsim", "small_gaussian", "ppo")
    monkeypatch.setattr(small_models.SmallGaussian, "score", lambda *a: {**score(*a), "logprobs": score(*a)["logprobs"] + 0.01})
    with pytest.raises(DivergenceError, match=r"differ by 0\.01; SmallGaussian\.evaluate_actions does not recompute"):
        loop.setting(tmp_path, config)

    evaluate = small_models.Small.evaluate_actions
    monkeypatch.setattr(small_models.SmallGaussian, "score", score)
    for key, said in (("entropy", "entropy_coef: SmallGaussian has no entropy"), ("values", "ppo needs state values")):

        def without(self: Any, record: Any, *, key: str = key, **options: Any) -> Any:
            return {k: v for k, v in evaluate(self, record, **options).items() if k != key}

        monkeypatch.setattr(small_models.Small, "evaluate_actions", without)
        with pytest.raises(NotImplementedByModel, match=said):
            loop.setting(tmp_path, config)


def test_a_resumed_step_samples_what_it_sampled_before(tmp_path: Path) -> None:
    """Samples depend on the step; RLinf's late word of an earlier step changes nothing."""
    s = loop.setting(tmp_path, loop.configuration("navsim", "small_gaussian"))
    obs = loop.forwarded(s.env.reset()[0])

    def sample(*steps: int) -> torch.Tensor:
        policy = loop.setting(tmp_path, s.config).policy
        for step in steps:
            policy.set_global_step(step)
        return policy.predict_action_batch(env_obs=obs, **loop.sampling(s.cfg))[0]

    first = sample(3)
    assert not torch.equal(first, sample(4))
    assert torch.equal(first, sample(2, 3))
    assert torch.equal(first, sample(3, 3))
    assert torch.equal(first, sample(2, 3, 2))


def test_dropout_is_off_in_the_actor(tmp_path: Path) -> None:
    s = loop.setting(tmp_path, loop.configuration("navsim", "small_gaussian"))
    assert not any(m.training for m in s.policy.train().modules())


def test_the_value_coefficient_scales_the_gradient_and_not_the_value(tmp_path: Path) -> None:
    s = loop.setting(tmp_path, loop.configuration("navsim", "small_gaussian", "ppo"))
    obs = loop.forwarded(s.env.reset()[0])
    _, result = s.policy.predict_action_batch(env_obs=obs, **loop.sampling(s.cfg))
    gradients = []
    for coefficient in (1.0, 0.5):
        s.policy.value_coef = coefficient
        values = s.policy(forward_inputs=result["forward_inputs"], compute_values=True)["values"]
        torch.testing.assert_close(values, result["prev_values"], atol=1e-5, rtol=0)
        gradients.append(torch.autograd.grad(values.sum(), s.policy.model.value.weight)[0])
    torch.testing.assert_close(gradients[1], 0.5 * gradients[0])


def test_adapters_alone_are_trained_and_sent(tmp_path: Path) -> None:
    """LoRA: RLinf's weight sync sends what is trainable; a rollout worker that gets just that computes the same."""
    from rlinf.utils.utils import collect_param_names_need_sync

    config = loop.configuration("navsim", "small_adapted")
    s = loop.setting(tmp_path, config)
    worker = loop.setting(tmp_path, config).policy
    raw, _ = loop.rollout(s)
    sent = collect_param_names_need_sync(s.policy)
    assert any("lora_A" in name for name in sent)
    assert not any("base_layer" in name for name in sent)
    before = {name: value.clone() for name, value in s.policy.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in s.policy.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # the second one moves lora_A, too
        batch = loop.training_batch(loop.advantages(s, raw))
        optimizer.zero_grad()
        loop.loss(s, batch)[0].backward()
        optimizer.step()
    after = s.policy.state_dict()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert any("lora_A" in name for name in moved)
    assert moved <= set(sent)
    worker.load_state_dict({name: after[name] for name in sent}, strict=False)
    inputs = raw["forward_inputs"]
    flat = {name: value.flatten(0, 1) for name, value in inputs.items()}
    torch.testing.assert_close(worker(forward_inputs=flat)["logprobs"], s.policy(forward_inputs=flat)["logprobs"])


def test_a_users_adapter_gets_rlinfs_model_section_and_what_it_returns_is_trained(tmp_path: Path, registry: Any) -> None:
    from rlinf.models import get_model

    from vla_models.model_registry import create_model, register_framework_adapter

    s = loop.setting(tmp_path, loop.configuration("navsim", "small_gaussian"))
    start = s.policy.model
    start.save_pretrained(tmp_path / "model")
    made: list[Any] = []

    @register_framework_adapter("rlinf", "small_gaussian")
    def rlinf_adapter(cfg: Any) -> Any:
        assert (cfg.model_type, cfg.num_action_chunks) == ("vla_models", 1)
        made.append(create_model("small_gaussian"))
        return made[-1]

    s.policy = get_model(s.cfg.actor.model)
    assert made
    assert s.policy.model is made[-1]
    for name, weight in start.state_dict().items():
        torch.testing.assert_close(made[-1].state_dict()[name], weight)
    raw, _ = loop.rollout(s)
    batch = loop.training_batch(loop.advantages(s, raw))
    loop.loss(s, batch)[0].backward()
    assert any(p.grad is not None and p.grad.any() for p in made[-1].parameters())


# -- many decisions ---------------------------------------------------------------------------------------------------------


def drive(env: Any, metres: float) -> Any:
    return env.chunk_step(np.tile(np.float32([metres, 0.0, 0.0]), (env.num_envs, 1, 8)))


def test_rows_reset_themselves_and_truncation_is_told_from_the_end(tmp_path: Path) -> None:
    """PPO: an ended row goes on with a new scene; its last observation and totals come along, and only truncation
    bootstraps."""
    s = loop.setting(tmp_path, loop.configuration("bench2drive", "small_gaussian", "ppo"), loop.ToyBench2Drive)
    assert s.cfg.env.train.auto_reset
    s.env.reset()
    s.env.episodes.begin(["go0"] * 4 + ["go3"] * 4)  # goals at 2 m and 8 m
    observations, rewards, terminated, truncated, infos = drive(s.env, 1.5)
    assert terminated[:4, 0].all()
    assert not terminated[4:].any()
    assert not truncated.any()
    torch.testing.assert_close(rewards[:, 0], torch.full((8,), 1.5))
    info = infos[0]
    assert info["_final_info"].tolist() == [True] * 4 + [False] * 4
    assert info["final_info"]["episode"]["return"][:4].tolist() == [1.5] * 4
    assert not torch.equal(observations[0]["states"][:4], info["final_observation"]["states"][:4])
    torch.testing.assert_close(observations[0]["states"][4:], info["final_observation"]["states"][4:])
    for _ in range(3):
        _, _, terminated, truncated, infos = drive(s.env, 0.1)
    assert truncated[4:, 0].all()
    assert not terminated[4:].any()
    assert infos[0]["final_info"]["episode"]["decisions"][4:].tolist() == [4.0] * 4


def test_truncation_adds_the_discounted_value_of_the_last_observation(tmp_path: Path) -> None:
    s = loop.setting(tmp_path, loop.configuration("bench2drive", "small_gaussian", "ppo"), loop.ToyBench2Drive)
    raw, _ = loop.rollout(s)
    truncated = raw["truncations"][1:]
    assert truncated.any()
    s.env.episodes.env.steps_asked = 0
    plain = loop.setting(tmp_path, loop.configuration("bench2drive", "small_gaussian", "ppo"), loop.ToyBench2Drive)
    plain.cfg.algorithm.gamma = 0.0
    without, _ = loop.rollout(plain)
    difference = (raw["rewards"] - without["rewards"]).abs()
    assert (difference[truncated] > 0).all()
    assert (difference[~truncated] == 0).all()


def test_rows_that_are_over_wait_and_are_masked(tmp_path: Path) -> None:
    """GRPO: no row resets itself; after its end a row is not driven, earns nothing and is masked."""
    s = loop.setting(tmp_path, loop.configuration("bench2drive", "small_gaussian"), loop.ToyBench2Drive)
    assert not s.cfg.env.train.auto_reset
    s.env.episodes.begin(["go0"] * 4 + ["go3"] * 4)
    drive(s.env, 1.5)
    where = s.env.env.where.copy()
    observations, rewards, terminated, _, infos = drive(s.env, 1.5)
    assert not terminated[:4].any()
    assert rewards[:4].abs().max() == 0.0
    assert observations[0]["states"][:, 0].tolist() == [1.0] * 4 + [0.0] * 4
    assert infos[0]["episode"]["return"][:4].tolist() == [1.5] * 4
    assert (s.env.env.where[:4] == where[:4]).all()
    for _ in range(2):
        drive(s.env, 1.5)
    asked = s.env.env.steps_asked
    drive(s.env, 1.5)
    assert s.env.env.steps_asked == asked  # all rows are over: the environment is left alone


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_a_crashed_world_is_left_out_and_counted(algorithm: str, tmp_path: Path) -> None:
    """Its reward is NaN, its advantage 0, the others' advantages are what they would be without it, and the loss is finite."""
    config = loop.configuration("bench2drive", "small_gaussian", algorithm)
    s = loop.setting(tmp_path, config, loop.CrashingBench2Drive)
    s.env.scenes = lambda: ["go2", "crash2", "go2", "go2", *["go3"] * 4]  # type: ignore[method-assign]
    raw, infos = loop.rollout(s)
    assert raw["rewards"][:, 1].isnan().any()
    done = loop.advantages(s, raw)
    assert torch.isfinite(done["advantages"]).all()
    first = slice(0, 2)  # the crash comes at the second decision
    assert (done["advantages"][first, 1] == 0).all()
    assert (done["advantages"][:, 0] != 0).any()
    value, _, _ = loop.loss(s, loop.training_batch(done))
    assert torch.isfinite(value)
    totals = infos[1]["episode"]
    assert totals["valid"][1] == 0.0
    assert totals["return"][1] == 0.0
    if algorithm == "grpo":
        scores = raw["rewards"][..., 0].sum(0)[[0, 2, 3]]
        expected = (scores - scores.mean()) / (scores.std() + 1e-6)
        torch.testing.assert_close(done["advantages"][0, [0, 2, 3], 0], expected)


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
@pytest.mark.parametrize("invalid", [-1.0, "exclude"])
def test_an_answer_that_is_no_plan_is_rewarded_as_configured(
    algorithm: str, invalid: float | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = loop.configuration("navsim", "small_gaussian", algorithm)
    config = config.model_copy(update={"reward": config.reward.model_copy(update={"invalid": invalid})})
    s = loop.setting(tmp_path, config)
    predict = s.policy.model.predict

    def wordy(*args: Any, **options: Any) -> Any:
        said = predict(*args, **options)
        said.valid = np.ones(len(said.waypoints), dtype=bool)
        said.valid[1] = False
        return said

    monkeypatch.setattr(s.policy.model, "predict", wordy)
    raw, infos = loop.rollout(s)
    reward = raw["rewards"][0, :, 0]
    assert torch.isfinite(reward[[0, 2, 3]]).all()
    done = loop.advantages(s, raw)
    if invalid == "exclude":
        assert reward[1].isnan()
        assert done["advantages"][0, 1] == 0
        assert infos[0]["episode"]["valid"].tolist() == [1, 0, *[1] * 6]
    else:
        assert reward[1] == -1.0
        assert infos[0]["episode"]["invalid_answers"].tolist() == [0, 1, *[0] * 6]
    value, _, _ = loop.loss(s, loop.training_batch(done))
    assert torch.isfinite(value)


def test_gae_is_rlinfs_own_where_nothing_is_invalid() -> None:
    from rlinf.algorithms import advantages as original
    from rlinf.algorithms.registry import get_adv_and_returns

    g = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(6, 5, generator=g), torch.randn(7, 5, generator=g)
    dones = torch.rand(7, 5, generator=g) > 0.7
    given: dict[str, Any] = {"values": values, "dones": dones, "gamma": 0.9, "gae_lambda": 0.8, "loss_mask": None}
    ours = get_adv_and_returns("gae")(rewards=rewards, **given)
    theirs = original.compute_gae_advantages_and_returns.__wrapped__(rewards=rewards, **given)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
