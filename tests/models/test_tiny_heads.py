"""Every head × tiny_vla: ratio 1, nothing depends on the batch, gradients reach all, saving keeps the plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_tiny_vla import draw, some_inputs

from vla_models.errors import ConfigError, DivergenceError, PlanError, VLAModelsError
from vla_models.heads.trajectories import TrajectoryCodebook
from vla_models.interface import VLAInterface
from vla_models.model_registry import create_model
from vla_models.models.byte_text import WIDTH
from vla_models.models.tiny_vla import TinyVLA

SMALL = {"dim": 32, "layers": 2, "heads": 2}
HEADS: dict[str, dict[str, Any]] = {
    "tokens": {"type": "tokens"},
    "bins": {"type": "tokens", "codebook": "bins"},
    "trajectories": {"type": "tokens", "codebook": "FILE"},
    "gaussian": {"type": "gaussian"},
    "gaussian, fixed": {"type": "gaussian", "sigma": 0.3, "squash": False},
    "waypoint": {"type": "waypoint"},
    "flow": {"type": "flow", "steps": 3},
    "ddim": {"type": "ddim", "steps": 3, "chosen_steps": 2},
}


@pytest.fixture(scope="module", params=HEADS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyVLA:
    head = dict(HEADS[request.param])
    torch.manual_seed(1)
    if head.get("codebook") == "FILE":
        plans = torch.cumsum(torch.rand(20, 8, 3), dim=1) * torch.tensor([3.0, 0.3, 0.05])
        head["codebook"] = str(TrajectoryCodebook(plans).save(tmp_path_factory.mktemp("codebook") / "plans.npz"))
    made = create_model("tiny_vla", policy_head=head, **SMALL)
    assert isinstance(made, TinyVLA)
    with torch.no_grad():
        for p in made.head.parameters():
            p.add_(0.03 * torch.randn_like(p))
    return made


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 4), st.floats(0.6, 1.5))
def test_unchanged_weights_give_ratio_one_in_any_batch(
    model: TinyVLA, seed: int, inputs: int, samples: int, temperature: float
) -> None:
    """Order, minibatches and padding included."""
    drawn = draw(model, some_inputs(inputs, seed), seed, num_samples=samples, temperature=temperature)
    rows = inputs * samples
    assert drawn.waypoints.shape == (rows, 8, 3) or rows == 1
    again = model.evaluate_actions(drawn.record, entropy=True, values=True)
    assert again["logprobs"].shape == again["mask"].shape == drawn.logprobs.shape
    torch.testing.assert_close(again["logprobs"], drawn.logprobs, atol=1e-5, rtol=0)
    torch.testing.assert_close(again["values"], drawn.values, atol=1e-5, rtol=0)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    mixed = {key: part[order] for key, part in drawn.record.items()}
    mixed |= {k: torch.nn.functional.pad(mixed[k], (0, 2 * WIDTH + 5)) for k in ("input_ids", "attention_mask")}
    for size in (rows, 3):
        parts = [
            model.evaluate_actions({k: v[i] for k, v in mixed.items()}, values=True) for i in torch.arange(rows).split(size)
        ]
        for key in ("logprobs", "values"):
            torch.testing.assert_close(torch.cat([part[key] for part in parts]), again[key][order], atol=2e-5, rtol=0)


def test_bfloat16_replays_within_two_percent(model: TinyVLA, tmp_path: Path) -> None:
    half = create_model("tiny_vla", model_path=model.save_pretrained(tmp_path / "m")).bfloat16()
    drawn = draw(half, some_inputs(6), num_samples=4, temperature=0.8)  # type: ignore[arg-type]
    assert drawn.logprobs.dtype == torch.float32
    again = half.evaluate_actions(drawn.record, values=True)
    assert again["logprobs"].dtype == again["values"].dtype == torch.float32
    assert ((again["logprobs"] - drawn.logprobs).exp() - 1.0).abs().max() < 2e-2
    with torch.no_grad():
        half.summary.fill_(3e38)
        half.summary.mul_(3.0)
    with pytest.raises(DivergenceError, match="bfloat16"):
        draw(half, some_inputs(2))  # type: ignore[arg-type]


def test_gradients_reach_picture_text_ego_and_head(model: TinyVLA) -> None:
    drawn = draw(model, some_inputs(4), num_samples=2)
    model.zero_grad()
    out = model.evaluate_actions(drawn.record, values=True)
    (out["logprobs"].square().mean() + out["values"].mean()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
    model.zero_grad()


def test_saving_keeps_plan_statistics_and_value_apart(model: TinyVLA, tmp_path: Path) -> None:
    inputs = some_inputs(3)
    rng = np.random.default_rng(0)
    plans = np.cumsum(rng.uniform(0, [4, 0.3, 0.05], (30, 8, 3)), axis=1).astype(np.float32)
    model.fit_statistics("some drive", plans, rng.uniform(0, 9, 30))
    folder = model.save_pretrained(tmp_path / "saved")
    assert (folder / "value_head.safetensors").is_file()
    loaded = VLAInterface.from_pretrained(folder)
    assert isinstance(loaded, TinyVLA)
    assert (loaded.spec, loaded.statistics) == (model.spec, model.statistics)
    np.testing.assert_array_equal(draw(loaded, inputs).waypoints, draw(model, inputs).waypoints)
    torch.testing.assert_close(draw(loaded, inputs).values, draw(model, inputs).values, atol=0, rtol=0)


def test_imitation_has_a_loss_that_falls(model: TinyVLA) -> None:
    torch.manual_seed(0)
    student = TinyVLA(**SMALL, **{k: v for k, v in model.constructor_arguments().items() if k == "policy_head"})
    student.load_state_dict(model.state_dict())
    inputs = some_inputs(8, 3)
    record = student.record_from_plans(inputs, draw(model, inputs, 5).waypoints)
    optimizer = torch.optim.AdamW(student.parameters(), 3e-3)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = student.imitation_loss(record)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < np.mean(losses[:3]) - 0.1


# -- once ------------------------------------------------------------------------------------------------------------------


def test_five_waypoints_are_what_the_yaml_asks_for() -> None:
    model = TinyVLA(**SMALL, policy_head={"type": "waypoint", "action_dim": 15})
    assert (model.spec.head, model.spec.horizon) == ("waypoint", 5)
    (given_,) = some_inputs(1)
    assert model.predict(given_).waypoints.shape == (5, 3)
    assert model.predict_waypoints("go", given_.images, 5, ego_state=given_.ego_state).shape == (5, 3)
    with pytest.raises(PlanError, match="5 poses; 6"):
        model.predict_waypoints("go", given_.images, 6)
    assert TinyVLA(**SMALL, policy_head={"type": "tokens", "action_dim": 15}).spec.horizon == 5


def test_what_a_head_does_not_take_is_named() -> None:
    with pytest.raises(ConfigError, match=r"policy_head\.eta: a tokens head does not take it"):
        TinyVLA(**SMALL, policy_head={"type": "tokens", "eta": 0.5})
    with pytest.raises(ConfigError, match="Did you mean 'waypoint'"):
        TinyVLA(**SMALL, policy_head={"type": "waypoints"})
    with pytest.raises(VLAModelsError, match="top_p"):
        TinyVLA(**SMALL, policy_head={"type": "flow"}).predict(some_inputs(1), top_p=0.9)
    model = TinyVLA(**SMALL, policy_head={"type": "gaussian"})
    with pytest.raises(VLAModelsError, match="no statistics of 'nuplan'"):
        model.use_statistics("nuplan")


def test_statistics_of_several_data_sets_are_kept_and_chosen() -> None:
    model = TinyVLA(**SMALL, policy_head={"type": "waypoint"})
    (given_,) = some_inputs(1)
    slow = np.tile(np.arange(1, 9)[None, :, None] * np.array([0.5, 0.01, 0.001]), (4, 1, 1))
    model.fit_statistics("slow", slow, np.ones(4))
    before = model.predict(given_, deterministic=True).waypoints
    model.fit_statistics("fast", 9.0 * slow, np.ones(4))
    assert not np.array_equal(model.predict(given_, deterministic=True).waypoints, before)
    model.use_statistics("slow")
    np.testing.assert_array_equal(model.predict(given_, deterministic=True).waypoints, before)
    kept = model.statistics["slow"]
    model.fit_statistics("slow", 2.0 * slow, np.ones(4))  # known: what it was trained with stays
    assert model.statistics["slow"] is kept
