"""Driving for siiRL without siiRL: the event loop, what it gives, and the tensors that go to siiRL."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import small_models  # noqa: F401 - registers models
import torch
from gymnasium.vector import VectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from test_siirl_env import GoldenNavSim
from toy_world import GOALS, HORIZON, ToyDrive

from vla_models.config import VLAConfig
from vla_models.errors import ConfigError, NotImplementedByModel
from vla_models.frameworks.probing import lay_out
from vla_models.frameworks.siirl.batch import RecordWords, counted_groups, decision_mask, encode_names, training_batch
from vla_models.frameworks.siirl.embedding import MOMENTS, load_video_embedding, trajectory
from vla_models.frameworks.siirl.env import Bench2DriveVLAAdapter
from vla_models.frameworks.siirl.policy import make_optimizer
from vla_models.frameworks.siirl.rollout import Asked, Rollout
from vla_models.inputs import VLASpec
from vla_models.model_registry import create_model

HEADS = ("small_tokens", "small_gaussian", "small_flow")
CRASH = 4
"""Place of the toy world's scene that crashes."""


class Toy(Bench2DriveVLAAdapter):
    slow = 0.0

    @classmethod
    def make_env(cls, config: VLAConfig, part: Any, num_envs: int, spec: VLASpec) -> VectorEnv:
        env = ToyDrive(num_envs, horizon=spec.horizon)
        env.tokens.append("crash3")  # its goal is too far to be reached before it crashes, at its second decision
        step = env.step

        def slowly(plans: Any) -> Any:
            time.sleep(cls.slow)
            return step(plans)

        env.step = slowly  # type: ignore[method-assign]
        return env


class SlowToy(Toy):
    slow = 0.05


def rollout(head: str, kind: Any = Toy, rows: int = 4, worlds: int = 2, **options: Any) -> Rollout:
    config = VLAConfig.from_dict({"framework": "siirl", "algorithm": {"name": "ppo"}, "reward": {"invalid": "exclude"}})
    torch.manual_seed(0)
    one = kind is GoldenNavSim
    model = create_model(head, horizon=8 if one else HORIZON)
    layout = lay_out(config, model, kind.make_env)
    made = [kind(config, "train", rows, model.spec) for _ in range(worlds)]
    return Rollout(
        model, made, RecordWords(layout.record), 1 if one else layout.max_decisions, options.pop("asked", Asked()), **options
    )


def test_a_model_that_shares_what_samples_do_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = VLAConfig.from_dict({"framework": "siirl", "algorithm": {"name": "ppo"}})
    model = create_model("small_gaussian", horizon=HORIZON)
    monkeypatch.setattr(type(model), "prompt_keys", ("temperature", "raw_action"))
    with pytest.raises(NotImplementedByModel, match=r"SmallGaussian\.prompt_keys names \['raw_action'\], which differ"):
        lay_out(config, model, Toy.make_env)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", [GoldenNavSim, Toy])
def test_episodes_come_back_in_order_and_their_records_replay(head: str, kind: Any) -> None:
    r = rollout(head, kind)
    ids = [0, 0, 1, 1, 2, 2, 3, 3, 2, 2]  # more than fit at once, and a chunk that is not full
    driven = r.drive(ids, 2, stream=lambda chunk: chunk)
    again = r.drive(ids, 2, stream=lambda chunk: chunk)
    assert torch.equal(driven.records, again.records)
    assert torch.equal(driven.rewards, again.rewards)
    other = r.drive(ids, 2, stream=lambda chunk: chunk + 100)
    assert not torch.equal(driven.records, other.records)

    active = decision_mask(driven.decisions, driven.records.shape[1])
    assert not driven.records[~active].any()
    assert driven.totals["decisions"].tolist() == driven.decisions.tolist()
    np.testing.assert_allclose(driven.totals["return"], driven.returns.numpy(), atol=1e-5)
    record = r.records.unpack(driven.records, active.nonzero())
    out = r.model.evaluate_actions(record, values=True)
    assert driven.values is not None
    torch.testing.assert_close(out["values"].detach(), driven.values[active], atol=1e-5, rtol=0)
    if kind is Toy:  # the route begins with the distance to the goal: the record is that of the right episode
        distances = [np.abs(GOALS[ids[row]]) - float(driven.rewards[row, :at].sum()) for row, at in active.nonzero().tolist()]
        assert (record["seen"][:, 1].abs() * 10).tolist() == pytest.approx(distances, abs=1e-4)
    r.close()


def test_a_crash_an_unfit_group_and_the_batch_that_siirl_gets() -> None:
    r = rollout("small_gaussian", embeds=True)
    ids = [3, 3, CRASH, CRASH, 2, 2]
    driven = r.drive(ids, 2, stream=lambda chunk: chunk)
    assert driven.valid.tolist() == [True, True, False, False, True, True]
    assert driven.rewards[2:4].abs().max() == 0
    assert driven.embedding[2:4].abs().max() == 0
    assert (driven.embedding[[0, 1, 4, 5]].abs().sum(1) > 0).all()
    counted = counted_groups(torch.tensor([True, True, True, False, True, True]), 2)
    assert counted.tolist() == [True, True, False, False, True, True]

    parts = r.records.parts
    uid = torch.arange(3).repeat_interleave(2)
    batch = training_batch(driven, parts, [f"scene{i}" for i in ids], counted_groups(driven.valid, 2), uid)
    finish, longest = batch["finish_step"], driven.rewards.shape[1]
    assert finish.tolist()[2:4] == [0, 0]
    assert batch["uid"].min() == 1
    assert len({int(u) for u in batch["uid"][2:4]} & {int(u) for u in batch["uid"][[0, 1, 4, 5]]}) == 0
    assert batch["responses"].shape == (6, longest, parts)
    assert batch["attention_mask"].shape == (6, 1 + longest * parts)
    assert batch["response_mask"].sum(1).tolist() == (finish * parts).tolist()
    assert batch["attention_mask"][:, 1:].sum(1).tolist() == (finish * parts).tolist()
    r.close()


def test_evaluation_is_deterministic_and_keeps_no_records() -> None:
    r = rollout("small_flow")
    first, second = (r.drive([0, 1, 2, 3, 0], 1, deterministic=True) for _ in range(2))
    assert first.records.shape[2] == 0
    assert torch.equal(first.rewards, second.rewards)
    r.close()


def test_worlds_and_model_work_at_the_same_time() -> None:
    """A trace of a world of 50 ms: the whole takes clearly less than its parts one after the other."""
    r = rollout("small_gaussian", SlowToy)
    predict = r.model.predict

    def slowly(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.05)
        return predict(*args, **kwargs)

    r.model.predict = slowly  # type: ignore[method-assign]
    driven = r.drive([3] * 16, 4, stream=lambda chunk: chunk)
    assert driven.world_s > 0.5
    assert driven.model_s > 0.5
    assert driven.wall_s < 0.8 * (driven.world_s + driven.model_s)
    r.close()


def test_an_error_in_a_world_or_model_comes_out_as_itself() -> None:
    r = rollout("small_gaussian")
    r.model.predict = lambda *a, **k: (_ for _ in ()).throw(NotImplementedByModel("no plans today"))  # type: ignore
    with pytest.raises(NotImplementedByModel, match="no plans today"):
        r.drive([0, 0, 1, 1], 2)
    r.close()


def test_answers_that_are_no_plans_are_left_out_or_rewarded_as_configured() -> None:
    r = rollout("small_gaussian")
    predict = r.model.predict

    def sometimes(*args: Any, **kwargs: Any) -> Any:
        prediction = predict(*args, **kwargs)
        if len(prediction.waypoints) == 4:  # the first decision of all four
            prediction.valid = np.array([True, False, True, False])
        return prediction

    r.model.predict = sometimes  # type: ignore[method-assign]
    driven = r.drive([3, 3, 2, 2], 2, stream=lambda chunk: chunk)
    assert driven.valid.tolist() == [True, False, True, False]  # reward.invalid: exclude
    assert driven.invalid_answers == 2
    r.close()


@given(made=st.lists(st.integers(1, 20), min_size=1, max_size=5), poses=st.integers(1, 6), one=st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_trajectory_looks_at_what_was_driven_and_is_never_zero(made: list[int], poses: int, one: bool) -> None:
    """One width whatever was driven, and nothing behind an episode's last decision has a say."""
    rows, moments = len(made), 1 if one else MOMENTS
    made = [1] * rows if one else made
    random = np.random.default_rng(0)
    plans = random.normal(size=(rows, 20, poses, 3)).astype(np.float32)
    seen = {name: random.normal(size=(rows, 20, *shape)) for name, shape in (("ego", (5,)), ("route", (4, 2)))}
    embedding = trajectory(plans, seen, np.array(made), one)
    assert embedding.shape == (rows, moments * (3 * poses + 5) + 8 + 1)
    assert (embedding[:, -1] == 1).all()
    for row, count in enumerate(made):
        plans[row, count:], seen["ego"][row, count:], seen["route"][row, 1:] = 7.0, 7.0, 7.0
        assert (embedding[row, : 3 * poses] == plans[row, 0].ravel()).all()
        assert (embedding[row, (moments - 1) * 3 * poses : moments * 3 * poses] == plans[row, count - 1].ravel()).all()
    assert np.array_equal(trajectory(plans, seen, np.array(made), one), embedding)


class Video:
    """A video embedding of a stranger: the mean of each picture at the beginning and at the end."""

    def __init__(self, model_path: str, img_size: int, enable_fp16: bool) -> None:
        self.model_path = model_path

    def get_embeddings(self, names: list[str], frames: list[Any]) -> list[Any]:
        return [np.float32([f[0].mean(), f[-1].mean()]) for f in frames]


def test_a_video_embedding_is_loaded_by_name_and_sees_the_episode() -> None:
    embodied = SimpleNamespace(
        embedding_model_class=f"{__name__}.Video",
        video_embedding_model_path="x.pt",
        embedding_img_size=384,
        embedding_enable_fp16=True,
    )
    video = load_video_embedding(embodied)
    assert video is not None
    r = rollout("small_gaussian", embeds=True, video=video)
    driven = r.drive([3, 3, 1, 1], 2, stream=lambda chunk: chunk)
    assert driven.embedding.shape == (4, 2)
    assert (driven.embedding[:, 0] == 100).all()  # where every episode begins
    assert (driven.embedding[:, 1] != 100).any()
    r.close()
    embodied.embedding_model_class = None
    assert load_video_embedding(embodied) is None
    for name, said in (("no_such_module.Model", "cannot be imported"), ("vla_models.inputs.VLAInput", "could not be built")):
        embodied.embedding_model_class = name
        with pytest.raises(ConfigError, match=rf"embedding_model_class: '{name}' {said}"):
            load_video_embedding(embodied)


def test_names_fit_their_bytes_and_stay_apart() -> None:
    names = ["go0", "x" * 50, "x" * 60 + "a", "x" * 60 + "b"]
    encoded = encode_names(names)
    assert encoded.shape == (4, 50)
    assert bytes(encoded[0].numpy()).rstrip(b"\0") == b"go0"
    assert len({bytes(row.numpy()) for row in encoded}) == 4


def test_only_matrices_decay() -> None:
    model = create_model("small_gaussian")
    optimizer = make_optimizer(model, SimpleNamespace(lr=1e-3, weight_decay=0.1, betas=[0.9, 0.99]))
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.0]
    assert all(p.ndim >= 2 for p in optimizer.param_groups[0]["params"])
