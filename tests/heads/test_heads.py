"""Every head over features: what it draws is replayed, integrates to one, and is learned from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_models.errors import ConfigError, DivergenceError, VLAModelsError
from vla_models.heads import make_head
from vla_models.heads.base import PlanHead
from vla_models.heads.chain import SIGMA_MIN, ChainHead, DDIMHead, FlowHead
from vla_models.heads.gaussian import BOX, GaussianHead
from vla_models.heads.kinematics import start_state
from vla_models.heads.spaces import SPACES, ControlSpace, WaypointSpace, make_space
from vla_models.heads.trajectories import TrajectoryCodebook

DIM, T = 24, 8


def some_plans(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Plans [rows, 8, 3] of smooth driving and the speeds they start from."""
    rng = np.random.default_rng(seed)
    speed = rng.uniform(0.5, 12, rows)
    space = ControlSpace()
    bend = rng.uniform(-0.8, 0.8, (rows, 1)) * np.sin(np.linspace(0, rng.uniform(0.5, 3), T))[None]
    controls = np.stack([rng.uniform(-1.5, 1.5, (rows, 1)) * np.ones(T), bend], axis=-1)
    plans = space.plans(torch.from_numpy(controls), torch.from_numpy(speed))
    return plans, torch.from_numpy(speed)


HEADS: dict[str, dict[str, Any]] = {
    "gaussian": {"type": "gaussian"},
    "gaussian, plain": {"type": "gaussian", "squash": False, "sigma": 0.3},
    "waypoint": {"type": "waypoint", "action_dim": 24},
    "flow": {"type": "flow", "steps": 4},
    "flow, two steps": {"type": "flow", "chosen_steps": 2, "space": "waypoints"},
    "ddim": {"type": "ddim", "steps": 3, "eta": 1.0},
    "tokens": {"type": "tokens"},
    "bins": {"type": "tokens", "codebook": "bins"},
    "trajectories": {"type": "tokens", "codebook": "FILE"},
}


@pytest.fixture(scope="module")
def codebook_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TrajectoryCodebook(some_plans(40, 5)[0]).save(tmp_path_factory.mktemp("codebook") / "plans.npz")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """How many threads share a sum decides how it rounds; without this, which tests ran before would."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=HEADS)
def head(request: pytest.FixtureRequest, codebook_file: Path) -> PlanHead:
    settings = dict(HEADS[request.param])
    if settings.get("codebook") == "FILE":
        settings["codebook"] = str(codebook_file)
    torch.manual_seed(3)
    made = make_head(settings, DIM, horizon=T, dt=0.5)
    with torch.no_grad():  # far from its first weights, as after training
        for p in made.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return made


def draw(head: PlanHead, rows: int = 30, seed: int = 0, **options: Any) -> tuple[torch.Tensor, Any]:
    generator = torch.Generator().manual_seed(seed)
    features, speed = torch.randn(rows, DIM, generator=generator), torch.rand(rows, generator=generator) * 12
    warp = {"temperature": torch.full((rows,), 0.8), "top_p": torch.ones(rows)}
    dtype = next(head.parameters()).dtype
    return features.to(dtype), head.sample(features.to(dtype), speed, **warp, generator=generator, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_drawn_is_replayed(head: PlanHead, dtype: torch.dtype) -> None:
    head = head.to(dtype)
    features, drawn = draw(head)
    assert drawn.plans.shape == (30, T, 3)
    assert drawn.plans.dtype == drawn.logprobs.dtype == torch.float32
    assert all(len(part) == 30 for part in drawn.record.values())
    again = head.log_prob(features, drawn.record)
    assert again["logprobs"].dtype == torch.float32
    assert again["logprobs"].shape == again["mask"].shape == drawn.logprobs.shape
    assert torch.equal(again["logprobs"], drawn.logprobs)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    parts = [head.log_prob(features[i], {k: v[i] for k, v in drawn.record.items()})["logprobs"] for i in order.split(7)]
    # another batch is rounded otherwise: some 2e-7 of a mean, which a chain's s of 0.064 and three of these from it make 1e-5
    apart = 3e-5 if isinstance(head, ChainHead) else 1e-5
    torch.testing.assert_close(torch.cat(parts), drawn.logprobs[order], atol=apart, rtol=0)


def test_the_generator_decides_and_the_likeliest_plan_needs_none(head: PlanHead) -> None:
    assert torch.equal(draw(head)[1].plans, draw(head)[1].plans)
    assert not torch.equal(draw(head)[1].plans, draw(head, seed=1)[1].plans)
    features, speed, warp = torch.randn(5, DIM), torch.rand(5) * 9, {"temperature": torch.ones(5), "top_p": torch.ones(5)}
    greedy = [head.sample(features, speed, **warp, deterministic=True).plans for _ in range(2)]
    assert torch.equal(*greedy)


def test_gradients_are_finite_and_reach_the_whole_head(head: PlanHead) -> None:
    features, drawn = draw(head)
    features.requires_grad_()
    head.log_prob(features, drawn.record)["logprobs"].sum().backward()
    assert torch.isfinite(features.grad).all()
    without = [name for name, p in head.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_imitation_brings_the_likeliest_plan_to_the_expert(head: PlanHead) -> None:
    torch.manual_seed(0)
    plans, speed = some_plans(6, 1)
    if found := head.measure(plans, speed):
        head.normalise(found)
    features = 2.0 * torch.randn(6, DIM)
    record = head.record_from_plans(plans, speed)
    assert head.imitation_loss(features, record).shape == (6,)
    wide = {k: v.repeat_interleave(8, 0) for k, v in record.items()}
    optimizer = torch.optim.AdamW(head.parameters(), 5e-3)
    warp = {"temperature": torch.ones(6), "top_p": torch.ones(6), "deterministic": True}
    before = (head.sample(features, speed, **warp).plans - plans)[..., :2].norm(dim=-1).mean()
    for _ in range(100):
        optimizer.zero_grad()
        head.imitation_loss(features.repeat_interleave(8, 0), wide).mean().backward()
        optimizer.step()
    after = (head.sample(features, speed, **warp).plans - plans)[..., :2].norm(dim=-1).mean()
    coarse = isinstance(getattr(head, "codebook", None), TrajectoryCodebook)  # as near as its forty trajectories are
    nearest = head.codebook.decode(record["action_tokens"], speed) if coarse else plans  # type: ignore[union-attr]
    least = (nearest - plans)[..., :2].norm(dim=-1).mean()
    assert after < 0.35 * before + least
    assert after < 0.7 + least


def test_features_that_overflowed_are_named(head: PlanHead) -> None:
    features, drawn = draw(head.bfloat16())
    features[3] = torch.inf
    with pytest.raises(DivergenceError, match=r"rows \[3\] of 30.*bfloat16"):
        head.log_prob(features, drawn.record)


# -- one by one ------------------------------------------------------------------------------------------------------------


@settings(max_examples=8, deadline=None)
@given(st.booleans(), st.floats(0.1, 1.5), st.integers(0, 10**6))
def test_the_gaussian_integrates_to_one(squash: bool, sigma: float, seed: int) -> None:
    """Over the action, squashing included: of one step and one number, the others held where they are."""
    torch.manual_seed(seed)
    head = GaussianHead(4, make_space("controls", 1, 0.5), sigma=sigma, squash=squash)
    features = torch.randn(1, 4)
    edge = BOX * (1 - 1e-6) if squash else 12.0
    action = torch.linspace(-edge, edge, 4001, dtype=torch.float64)
    raw = (BOX * torch.atanh(action / BOX) if squash else action).float()
    both = torch.stack(torch.meshgrid(raw[::20], raw[::20], indexing="ij"), -1).reshape(-1, 1, 2)
    record = {"raw_action": both, "temperature": torch.ones(len(both))}
    density = head.log_prob(features.expand(len(both), -1), record)["logprobs"].exp().double().reshape(201, 201)
    grid = action[::20]
    assert torch.trapezoid(torch.trapezoid(density, grid), grid).item() == pytest.approx(1.0, abs=2e-2)


def test_the_squashed_density_is_stable_far_out() -> None:
    head = GaussianHead(4, make_space("controls", 1, 0.5), sigma=1.0)
    raw = torch.tensor([-400.0, 400.0]).reshape(2, 1, 1).repeat(1, 1, 2).requires_grad_()
    logp = head.log_prob(torch.zeros(2, 4), {"raw_action": raw, "temperature": torch.ones(2)})["logprobs"]
    logp.sum().backward()
    assert torch.isfinite(logp).all()
    assert torch.isfinite(raw.grad).all()


def test_entropy_is_there_where_it_is_closed() -> None:
    plain = GaussianHead(4, make_space("controls", T, 0.5), sigma=0.3, squash=False)
    features, speed, one = torch.randn(4000, 4), torch.ones(4000), torch.ones(4000)
    drawn = plain.sample(features, speed, temperature=0.5 * one, top_p=one, generator=torch.Generator().manual_seed(0))
    entropy = plain.log_prob(features, drawn.record, entropy=True)["entropy"]
    assert entropy.shape == drawn.logprobs.shape
    assert entropy.mean().item() == pytest.approx(2 * (math.log(0.15) + 0.5 * math.log(2 * math.pi * math.e)), abs=1e-5)
    assert -drawn.logprobs.mean().item() == pytest.approx(entropy.mean().item(), abs=0.02)
    for settings_ in ({"type": "gaussian"}, {"type": "flow"}, {"type": "ddim"}):
        head = make_head(settings_, DIM, horizon=T, dt=0.5)
        features, drawn = draw(head)
        assert "entropy" not in head.log_prob(features, drawn.record, entropy=True)


@pytest.mark.parametrize("kind", [FlowHead, DDIMHead])
@pytest.mark.parametrize("chosen", [None, 1, 3])
def test_a_chain_scores_exactly_its_stochastic_steps(kind: type[ChainHead], chosen: int | None) -> None:
    torch.manual_seed(0)
    head = kind(DIM, make_space("controls", T, 0.5), 5, 0.6, chosen)
    rows, count = 1000, chosen or 5
    features, one = torch.randn(1, DIM).expand(rows, -1), torch.ones(rows)
    drawn = head.sample(features, one, temperature=one, top_p=one, generator=torch.Generator().manual_seed(0))
    chain, steps = drawn.record["chain"], drawn.record["chosen"]
    assert chain.shape == (rows, 6, T, 2)
    assert steps.shape == (rows, count)
    assert drawn.logprobs.shape == (rows, count, T)
    assert (steps[:, 1:] > steps[:, :-1]).all()
    assert torch.bincount(steps.flatten(), minlength=5).min() > 0.8 * rows * count / 5
    # The density of a Gaussian step: E[-log p] is its entropy, step by step of the chain.
    left = [head.level(torch.tensor((k + 1) / 5))[1].item() for k in range(5)]
    for k in range(5):
        sigma = max(0.6 * left[k], SIGMA_MIN)
        wanted = 2 * (math.log(sigma) + 0.5 * math.log(2 * math.pi * math.e))
        assert -drawn.logprobs[steps == k].mean().item() == pytest.approx(wanted, abs=0.1)


@pytest.mark.parametrize("kind", [FlowHead, DDIMHead])
@pytest.mark.parametrize("eta", [0.01, 0.5, 1.0])
def test_fresh_noise_leaves_the_marginal_as_it_is(kind: type[ChainHead], eta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the network knows the data (a point), every level has standard deviation beta, whatever eta is."""
    head = kind(DIM, make_space("controls", T, 0.5), 6, eta)
    point = 0.7

    def knows(x: torch.Tensor, condition: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        alpha, beta = (part[..., None, None] for part in head.level(time))
        noise = (x - alpha * point) / beta
        return head.target(torch.full_like(x, point), noise, alpha, beta)

    monkeypatch.setattr(head, "_network", knows)
    one = torch.ones(1000)
    drawn = head.sample(torch.zeros(1000, DIM), one, temperature=one, top_p=one, generator=torch.Generator().manual_seed(0))
    for k in range(1, 7):
        alpha, beta = (part.item() for part in head.level(torch.tensor(k / 6)))
        state = drawn.record["chain"][:, k]
        assert state.mean().item() == pytest.approx(alpha * point, abs=0.02)
        assert state.std().item() == pytest.approx(max(beta, SIGMA_MIN), abs=0.02)


def test_what_cannot_be_built_or_asked_is_named(codebook_file: Path) -> None:
    def build(**settings_: Any) -> PlanHead:
        return make_head(settings_, DIM, horizon=T, dt=0.5)

    with pytest.raises(ConfigError, match=r"policy_head.type: there is no head 'guassian'.*Did you mean 'gaussian'"):
        build(type="guassian")
    with pytest.raises(ConfigError, match=r"policy_head.steps: a gaussian head does not take it; known: sigma, space, squash"):
        build(type="gaussian", steps=3)
    with pytest.raises(ConfigError, match=r"action_dim: 15 numbers are 5 waypoints, this model plans 8; use 24"):
        build(type="waypoint", action_dim=15)
    with pytest.raises(ConfigError, match="action_dim: 14"):
        build(type="waypoint", action_dim=14)
    with pytest.raises(ConfigError, match=r"space: there is no action space 'control'.*Did you mean 'controls'"):
        build(type="flow", space="control")
    for wrong in ({"steps": 0}, {"eta": 0.0}, {"chosen_steps": 9}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            build(type="flow", **wrong)
    with pytest.raises(ConfigError, match="sigma"):
        build(type="gaussian", sigma=-1.0)
    with pytest.raises(ConfigError, match=r"plans of 8 × 0.5 s, and this model plans 5"):
        make_head({"type": "tokens", "codebook": str(codebook_file)}, DIM, horizon=5, dt=0.5)
    with pytest.raises(ConfigError, match=r"no codebook and no .npz file"):
        build(type="tokens", codebook="kinematics")
    head = build(type="flow")
    with pytest.raises(VLAModelsError, match=r"top_p must be 1, not 0\.9"):
        head.sample(torch.zeros(1, DIM), torch.ones(1), temperature=torch.ones(1), top_p=torch.tensor([0.9]))


# -- action spaces ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPACES)
def test_actions_give_back_the_plans_that_they_were_made_from(name: str) -> None:
    space = make_space(name, T, 0.5)
    plans, speed = some_plans(64)
    found = space.measure(plans, speed)
    space.normalise(found)
    actions = space.encode(plans, speed)
    assert actions.shape == (64, T, space.dim)
    torch.testing.assert_close(actions.mean(0), torch.zeros(T, space.dim), atol=1e-4, rtol=0)
    again = space.decode(actions, speed)
    assert (again - plans)[..., :2].norm(dim=-1).max() < 0.1
    assert (again - plans)[..., 2].abs().max() < 0.02
    cast = make_space(name, T, 0.5)
    cast.normalise(found)
    assert torch.equal(cast.bfloat16().decode(actions, speed), again)  # geometry is not cast with the weights


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.0, 30.0), st.floats(0.1, 30.0))
def test_whatever_the_controls_the_plan_can_be_driven(seed: int, speed: float, size: float) -> None:
    space = ControlSpace()
    actions = size * torch.randn(32, T, 2, generator=torch.Generator().manual_seed(seed))
    plans = space.decode(actions, torch.full((32,), speed)).double()
    before = torch.cat([start_state(torch.zeros(32))[:, None, :3], plans[:, :-1]], dim=1)
    step = (plans - before)[..., :2].norm(dim=-1)
    assert torch.isfinite(plans).all()
    assert (step <= (speed + 3.0 * 0.5 * torch.arange(1, T + 1)) * 0.5 + 1e-4).all()


def test_waypoints_are_told_apart_from_driving_straight_on() -> None:
    space = WaypointSpace()
    t = 0.5 * torch.arange(1, T + 1)
    straight = torch.stack([6.0 * t, torch.zeros(T), torch.zeros(T)], dim=-1)[None]
    torch.testing.assert_close(space.encode(straight, torch.tensor([6.0])), torch.zeros(1, T, 3))
