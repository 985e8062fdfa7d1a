"""Group sampling: each scene is seen once, rows stay where they belong, and what was sampled replays exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from golden import visible_scenes
from tabular import Tabular

from vla_models.envs.navsim import NavSimEnv, observe
from vla_models.errors import NotImplementedByModel
from vla_models.inputs import VLAInput
from vla_models.interface import VLAForDriving, VLASpec
from vla_models.models.tiny_vla import TinyVLA
from vla_models.training.evaluate import score_plans
from vla_models.training.rollout import Rollout, every, sample_groups, select


def sample(model: VLAForDriving, groups: int = 2, group_size: int = 4, seed: int = 0, **options: Any) -> Rollout:
    env = NavSimEnv(groups * group_size, scenes=visible_scenes(4))
    generator = torch.Generator().manual_seed(seed)
    return sample_groups(
        model, env, env.tokens[:groups], group_size=group_size, temperature=1.0, top_p=1.0, generator=generator, **options
    )


def test_a_scene_is_seen_once_however_large_its_group() -> None:
    model = Tabular()
    rollout = sample(model, groups=3, group_size=5)
    assert model.calls == [3]
    assert rollout.rewards.shape == rollout.valid.shape == (3, 5)
    assert len(rollout.logprobs) == len(rollout.record["tokens"]) == 15


def test_rewards_belong_to_their_plans() -> None:
    rollout = sample(Tabular(), groups=2, group_size=6)
    scenes = visible_scenes(4)
    for g in range(2):
        for s in range(6):
            plan = np.zeros((1, 8, 3))
            token = int(rollout.record["tokens"][g * 6 + s])
            plan[0, :, 0] = (0.0, 1.0, 3.0, 6.0, 12.0)[token] * 0.5 * np.arange(1, 9)
            assert rollout.rewards[g, s].item() == pytest.approx(score_plans([scenes[g]], plan).means()["score"], abs=1e-6)
    assert rollout.means["score"] == pytest.approx(rollout.rewards.mean().item(), abs=1e-6)
    assert "term/collision" in rollout.means


def test_what_tiny_vla_sampled_replays_exactly() -> None:
    torch.manual_seed(0)
    model = TinyVLA(dim=32, layers=1, heads=2).eval()
    rollout = sample(model)
    rows = torch.tensor([4, 5, 6, 7, 0, 1, 2, 3])
    replayed = model.evaluate_actions(select(rollout.record, rows))["logprobs"]
    assert torch.allclose(replayed, rollout.logprobs[rows], atol=1e-5)
    again = sample(model)
    assert torch.equal(again.record["action_tokens"], rollout.record["action_tokens"])
    assert not torch.equal(sample(model, seed=1).record["action_tokens"], rollout.record["action_tokens"])


def test_an_answer_that_is_no_plan_is_rewarded_as_configured_or_left_out() -> None:
    whole = sample(Tabular(), groups=2, group_size=6)
    wrong = torch.isin(whole.record["tokens"], torch.tensor([2, 4])).view(2, 6)
    assert 0 < wrong.sum() < 12
    model = Tabular(no_plan=(2, 4))
    rewarded = sample(model, groups=2, group_size=6, invalid=-0.5)
    assert rewarded.valid.all()
    assert (rewarded.rewards[wrong] == -0.5).all()
    excluded = sample(model, groups=2, group_size=6, invalid="exclude")
    assert torch.equal(excluded.valid, ~wrong)
    assert excluded.rewards[wrong].isnan().all()
    for rollout in (rewarded, excluded):
        assert rollout.invalid_answers == int(wrong.sum())
        assert torch.equal(rollout.rewards[~wrong], whole.rewards[~wrong])
        assert rollout.means["score"] == pytest.approx(whole.rewards[~wrong].mean().item(), abs=1e-6)
    nothing = sample(Tabular(no_plan=(0, 1, 2, 3, 4)), invalid="exclude")
    assert not nothing.valid.any()
    assert nothing.means == {}
    assert whole.invalid_answers == 0


def test_every_takes_one_row_of_each_group() -> None:
    observation = observe(visible_scenes(2) * 3)
    thinned = every(observation, 2)
    assert len(VLAInput.batch(thinned)) == 3
    assert np.array_equal(thinned["ego"], observation["ego"][::2])  # type: ignore[arg-type]


def test_a_model_without_a_record_cannot_be_trained() -> None:
    class Mute(VLAForDriving):
        spec = VLASpec(horizon=8)

        def predict_waypoints(self, text: str, images: object, num_waypoints: int = 8, **kwargs: object) -> object:
            return np.zeros((8, 3), dtype=np.float32)

    with pytest.raises(NotImplementedByModel, match="Mute cannot be trained: its predict returns no record"):
        sample(Mute())
