"""Our half of a run against AReaL's real classes: trajectories, its executor, its data functions, its actor and its loss."""

from __future__ import annotations

import asyncio
import copy
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import loop
import numpy as np
import pytest
import torch
from areal.api.cli_args import MicroBatchSpec
from areal.infra.workflow_executor import check_trajectory_format
from areal.utils import stats_tracker
from areal.utils.data import concat_padded_tensors, split_padded_tensor_dict_into_mb_list
from torch import Tensor

from vla_models.errors import DivergenceError
from vla_models.frameworks.areal.engine import VLATrainEngine
from vla_models.frameworks.areal.inference import VLAInferenceEngine
from vla_models.frameworks.areal.sequences import PAYLOAD, check
from vla_models.model_registry import create_model, register_framework_adapter
from vla_models.training.objective import group_advantages, policy_terms

EVERY = [(environment, model) for environment in ("navsim", "bench2drive") for model in loop.HEADS]
Make = Callable[..., loop.Setting]
AHEAD = "framework_options.rollout.max_head_offpolicyness=4"
"""So that AReaL drives more groups than one update takes."""


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Settings that are closed afterwards."""
    made: list[loop.Setting] = []

    def setting(environment: str, model: str, *overrides: str, adapter: Any = None) -> loop.Setting:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(loop.setting(folder, loop.configuration(environment, model, *overrides), adapter, monkeypatch))
        return made[-1]

    yield setting
    for s in made:
        s.close()
    stats_tracker.export_all()


def rolled(d: dict[str, Any], name: str) -> Tensor:
    """AReaL's convention: position t holds what belongs to slot t + 1."""
    return torch.roll(d[name], -1, dims=-1)


# -- trajectories ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("environment", "model"), EVERY)
def test_a_group_replays_and_trains(environment: str, model: str, make: Make) -> None:
    """Format, AReaL's cutting, ratio 1, AReaL's loss against ours, its gradient, and the next version of the weights."""
    s = make(environment, model)
    batch = s.batch()
    assert len(batch) == 2
    keys = set(batch[0])
    for d in batch:
        assert check_trajectory_format(d, expected_keys=keys)
        check(d)
        assert len(d["rewards"]) == (4 if environment == "navsim" else 16)  # four episodes of one or of four decisions
        counts = d["loss_mask"].bool()
        assert (d["versions"][counts] == 0).all()
        assert (d["versions"][~counts] == -1).all()
        assert (d["logprobs"][~counts] == 0).all()

    # the log-probabilities of sampling come back, row for row, after AReaL has joined, cut and shuffled
    joined = concat_padded_tensors(batch)
    halves = split_padded_tensor_dict_into_mb_list(joined, MicroBatchSpec(n_mbs=2))
    assert len(halves.mbs) == 2
    for part in halves.mbs:
        assert len(part[PAYLOAD]) == len(part["input_ids"])
        replayed, _ = s.actor.replay(part[PAYLOAD], part)
        counts = rolled(part, "loss_mask").bool()
        torch.testing.assert_close(replayed[counts], rolled(part, "logprobs")[counts], atol=1e-5, rtol=0)
    for d, logprobs in zip(batch, s.actor.compute_logp(batch), strict=True):
        counts = rolled(d, "loss_mask").bool()
        assert logprobs.shape == counts.shape
        assert float((logprobs - rolled(d, "logprobs"))[counts].abs().max()) < 1e-5

    # AReaL's loss and gradient are those of the local trainer's objective
    done = s.actor.compute_advantages(copy.deepcopy(batch))
    whole = concat_padded_tensors(done)
    counts = whole["loss_mask"].bool()
    torch.testing.assert_close(whole["advantages"][counts], whole["rewards"][:, None].expand_as(counts)[counts])
    with torch.no_grad():  # a policy that differs from the one that sampled, so that some ratios are clipped
        for parameter in s.actor.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)), alpha=0.02)
    logprobs, _ = s.actor.replay(whole[PAYLOAD], whole)
    expected = policy_terms(
        logprobs, whole["logprobs"], whole["rewards"], counts,
        clip_low=s.config.algorithm.clip_low, clip_high=s.config.algorithm.clip_high,
    )  # fmt: skip
    trained = [p for p in s.actor.model.parameters() if p.requires_grad]
    gradient = torch.autograd.grad(expected.loss, trained, allow_unused=True)
    s.actor.set_version(1)  # what was sampled is of version 0: no replay is expected any more
    s.actor.optimizer = torch.optim.SGD(trained, lr=1.0)
    s.actor.config.optimizer.gradient_clipping = 1e9
    before = [p.detach().clone() for p in trained]
    stats_tracker.export_all()
    s.actor.ppo_update(done)
    stats = s.actor.export_stats()
    assert stats["ppo_actor/update/actor_loss/avg"] == pytest.approx(expected.loss.item(), abs=1e-5)
    assert stats["ppo_actor/update/clip_ratio/avg"] == pytest.approx(expected.clip_fraction.item(), abs=1e-5)
    moved = 0.0
    for was, parameter, wanted in zip(before, trained, gradient, strict=True):
        step = was - parameter.detach()
        torch.testing.assert_close(step, torch.zeros_like(step) if wanted is None else wanted, atol=2e-5, rtol=1e-3)
        moved = max(moved, float(step.abs().max()))
    if float(whole["rewards"].abs().max()) > 0:
        assert moved > 1e-6

    # the acting side has the new weights, and says so
    s.actor.set_version(0)
    s.next_version()
    fresh = s.batch()
    for d, logprobs in zip(fresh, s.actor.compute_logp(fresh), strict=True):
        assert (d["versions"][d["loss_mask"].bool()] == 1).all()
        counts = rolled(d, "loss_mask").bool()
        assert float((logprobs - rolled(d, "logprobs"))[counts].abs().max()) < 1e-5


def test_advantages_compare_the_episodes_of_a_group(make: Make) -> None:
    """Bench2Drive: every decision of an episode has the advantage of its episode's return, however many there are."""
    s = make("toy_drive", "small_gaussian")
    (d,) = s.batch(["go3"])
    stats = s.actor.export_stats()
    lengths = stats["rollout/decisions"]
    assert len(d["rewards"]) == round(4 * lengths)
    distinct = d["rewards"].unique()
    assert 1 < len(distinct) <= 4
    # episodes are laid end to end: the advantages of a group sum to zero, each episode counted once
    episodes = [float(d["rewards"][0])]
    for value in d["rewards"].tolist()[1:]:
        if value != episodes[-1]:
            episodes.append(value)
    if len(episodes) == 4:
        assert sum(episodes) == pytest.approx(0.0, abs=1e-5)


def test_a_crashed_world_takes_no_part_and_is_counted(make: Make) -> None:
    class Half(loop.ToyDrive):
        """The first two rows crash at their second decision."""

        def step(self, actions: Any) -> Any:
            seen, reward, ended, limit, info = super().step(actions)
            info["valid"] = ~((np.arange(self.num_envs) < 2) & (self.decided >= 2))
            return seen, reward, ended & (self.decided > 1), limit, info

    adapter = type("HalfBench2Drive", (loop.ToyBench2Drive,), {"kind": Half})
    s = make("toy_drive", "small_gaussian", adapter=adapter)
    (d,) = s.batch(["go3"])
    stats = s.actor.export_stats()
    assert stats["rollout/invalid"] == 2.0
    assert len(d["rewards"]) == round(2 * stats["rollout/decisions"])
    assert d["rewards"].unique().sum() == pytest.approx(0.0, abs=1e-5)
    returns = torch.tensor([[1.0, 2.0, float("nan"), 5.0]])
    valid = torch.tensor([[True, True, False, True]])
    assert group_advantages(returns, valid)[0, 2] == 0

    s = make("toy_drive", "small_gaussian", adapter=loop.CrashingBench2Drive)
    assert s.batch(["crash2"]) == []  # nothing is left to compare
    assert s.workflow.rejected == {"nothing_to_compare": 1}
    assert s.actor.export_stats()["rollout/invalid"] == 4.0


# -- AReaL's executor --------------------------------------------------------------------------------------------------------


class Slow(loop.ToyDrive):
    """Counts the episodes that are in flight."""

    def step(self, actions: Any) -> Any:
        time.sleep(0.02)
        return super().step(actions)


def test_episodes_that_raise_hang_or_cannot_be_compared_are_rejected_and_counted(make: Make) -> None:
    class Faulty(loop.ToyDrive):
        def step(self, actions: Any) -> Any:
            if self.names[0] == "go0":
                raise RuntimeError("the bridge is closed")
            if self.names[0] == "go1":
                time.sleep(1.5)
            return super().step(actions)

    adapter = type("FaultyBench2Drive", (loop.ToyBench2Drive,), {"kind": Faulty})
    s = make("toy_drive", "small_gaussian", "framework_options.vla.limit=0.5", AHEAD, adapter=adapter)
    batch = s.batch(["go0", "go1", "go2", "go3"])
    assert len(batch) == 2
    assert s.workflow.rejected == {"failed": 1, "timed_out": 1}
    counts = s.rollout.workflow_executor.staleness_manager.get_stats()
    assert (counts.accepted, counts.rejected, counts.running, counts.enqueued) == (2, 2, 0, 0)
    assert s.workflow.pool.counts == {"begun": 4, "closed": 2, "failed": 1, "timed_out": 1, "cancelled": 0}
    stats = s.actor.export_stats()
    assert (stats["rollout/rejected_failed__count"], stats["rollout/rejected_timed_out__count"]) == (1, 1)
    assert len(s.batch(["go2", "go3"])) == 2  # the run goes on


def test_one_bad_input_fails_alone(make: Make) -> None:
    """Requests that were decided together: only the one that the model cannot read is rejected."""

    class Blind(loop.ToyDrive):
        def reset(self, **given: Any) -> Any:
            seen, info = super().reset(**given)
            if self.names[0] == "go1":
                seen["ego"] = seen["ego"] * np.float32(np.nan)
            return seen, info

    adapter = type("BlindBench2Drive", (loop.ToyBench2Drive,), {"kind": Blind})
    s = make("toy_drive", "small_gaussian", AHEAD, "framework_options.vla.environments=4", adapter=adapter)
    original = s.rollout.decider.model.predict

    def predict(inputs: Any, **options: Any) -> Any:
        if any(not np.isfinite(given.ego_state["speed"]) for given in inputs):
            raise ValueError("the speed is not a number")
        return original(inputs, **options)

    s.rollout.decider.model.predict = predict  # type: ignore[method-assign]
    s.rollout.pause_generation()  # so that all four come together
    threading.Timer(0.3, s.rollout.continue_generation).start()
    assert len(s.batch(["go0", "go1", "go2", "go3"])) == 3
    assert s.workflow.rejected == {"failed": 1}
    assert "the speed is not a number" in s.workflow.last_failure


def test_a_cancelled_rollout_leaves_nothing_running(make: Make) -> None:
    driving, cancelled = threading.Event(), threading.Event()

    class Held(loop.ToyDrive):
        def step(self, actions: Any) -> Any:
            driving.set()
            assert cancelled.wait(30)
            return super().step(actions)

    adapter = type("HeldBench2Drive", (loop.ToyBench2Drive,), {"kind": Held})
    s = make("toy_drive", "small_gaussian", adapter=adapter)

    async def cancel() -> None:
        from areal.infra import workflow_context
        from areal.infra.workflow_context import WorkflowContext

        workflow_context.set(WorkflowContext(is_eval=False, task_id=0))
        tasks = [asyncio.create_task(s.workflow.arun_episode(s.rollout, {"scene": "go3"})) for _ in range(6)]
        while not driving.is_set():
            await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        cancelled.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(e, asyncio.CancelledError) for e in found)
        counts = s.workflow.pool.counts
        assert counts["begun"] == counts["cancelled"] + counts["closed"]

    asyncio.run(cancel())
    assert s.workflow.rejected == {}


def test_the_executor_bounds_what_is_in_flight(make: Make) -> None:
    """``max_concurrent_rollouts`` groups at most, and (staleness + 1) batches at most that no update has consumed."""
    adapter = type("SlowBench2Drive", (loop.ToyBench2Drive,), {"kind": Slow})
    options = ["framework_options.rollout.max_head_offpolicyness=1", "framework_options.rollout.max_concurrent_rollouts=3"]
    s = make("toy_drive", "small_gaussian", *options, adapter=adapter)
    flying, most = 0, 0
    original = s.workflow.arun_episode

    async def counted(engine: Any, data: Any) -> Any:
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        try:
            return await original(engine, data)
        finally:
            flying -= 1

    s.workflow.arun_episode = counted  # type: ignore[method-assign]
    for i in range(8):
        s.rollout.submit({"scene": f"go{i % 4}"}, s.workflow)
    assert len(s.rollout.wait(4, timeout=30)) == 4  # two batches of two: bound 1 at version 0
    with pytest.raises(TimeoutError):
        s.rollout.wait(1, timeout=0.5)
    s.rollout.set_version(1)
    s.rollout.workflow_executor.dispatcher.resume()  # wakes the producer, as after an update
    assert len(s.rollout.wait(2, timeout=30)) == 2
    assert most <= 3


def test_what_is_asked_together_is_decided_together(make: Make) -> None:
    s = make("navsim", "tiny_vla", AHEAD)
    s.rollout.pause_generation()
    threading.Timer(0.3, s.rollout.continue_generation).start()
    calls = s.rollout.decider.calls
    assert len(s.batch(loop.SCENES["navsim"])) == 4
    assert s.rollout.decider.calls == calls + 1
    assert s.rollout.decider.decided == 16


def test_new_weights_come_between_decisions(make: Make) -> None:
    """Groups that drive while weights change: each decision has the version that sampled it, and replays under it."""
    adapter = type("SlowBench2Drive", (loop.ToyBench2Drive,), {"kind": Slow})
    s = make("toy_drive", "small_gaussian", AHEAD, adapter=adapter)
    kept = [copy.deepcopy(s.actor.model.state_dict())]
    for i in range(6):
        s.rollout.submit({"scene": f"go{i % 4}"}, s.workflow)
    for _ in range(5):
        time.sleep(0.05)
        with torch.no_grad():
            for parameter in s.actor.model.parameters():
                parameter.mul_(1.05)
        kept.append(copy.deepcopy(s.actor.model.state_dict()))
        s.next_version()
    batch = s.rollout.wait(6, timeout=30)
    versions = {int(v) for d in batch for v in d["versions"][d["loss_mask"].bool()]}
    assert len(versions) > 1
    for d in batch:
        for i in range(len(d["rewards"])):
            row = {name: value[i : i + 1] for name, value in d.items()}
            (version,) = row["versions"][row["loss_mask"].bool()].unique().tolist()
            s.actor.model.load_state_dict(kept[version])
            counts = rolled(row, "loss_mask").bool()
            replayed, _ = s.actor.replay(row[PAYLOAD], row)
            torch.testing.assert_close(replayed[counts], rolled(row, "logprobs")[counts], atol=1e-5, rtol=0)


# -- learning ----------------------------------------------------------------------------------------------------------------


def test_micro_batches_learn_what_the_whole_batch_learns(make: Make) -> None:
    """``mb_spec`` bounds a forward; the step is that of the whole batch."""
    s = make("navsim", "small_flow")
    batch, start = s.batch(), copy.deepcopy(s.actor.model.state_dict())
    weights, parts = [], []
    for most in (None, 80):
        s.actor.model.load_state_dict(start)
        s.actor.optimizer = torch.optim.SGD(s.actor.model.parameters(), lr=1.0)
        s.actor.config.mb_spec.max_tokens_per_mb = most
        s.update(copy.deepcopy(batch))
        weights.append(copy.deepcopy(s.actor.model.state_dict()))
        parts.append(s.actor.export_stats()["ppo_actor/update/num_micro_batches"])
    assert parts[0] == 1
    assert parts[1] == 3  # rows of 25 slots: three fit
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], atol=1e-5, rtol=1e-3)
    assert any(not torch.equal(value, start[name]) for name, value in weights[0].items())


def test_adapters_alone_are_trained_and_sent(make: Make) -> None:
    s = make("navsim", "small_adapted")
    before = copy.deepcopy(s.actor.model.state_dict())
    for _ in range(2):  # the second one moves lora_A, too
        s.update(s.batch())
        s.next_version()
    after = s.actor.model.state_dict()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert any("lora_A" in name for name in moved)
    assert not any("base_layer" in name for name in moved)
    acting = s.rollout.decider.model.state_dict()
    assert all(torch.equal(acting[name], value) for name, value in after.items())


def test_a_users_adapter_gets_areals_section_and_what_it_returns_is_trained(make: Make, registry: Any) -> None:
    made: dict[str, Any] = {}

    @register_framework_adapter("areal", "small_gaussian")
    def areal_adapter(config: Any) -> Any:
        made[type(config).__name__] = create_model("small_gaussian", horizon=8)
        return made[type(config).__name__]

    s = make("navsim", "small_gaussian")
    assert s.actor.model is made["PPOActorConfig"]
    assert s.rollout.decider.model is made["InferenceEngineConfig"]
    before = copy.deepcopy(s.actor.model.state_dict())
    batch = s.batch()
    for d, logprobs in zip(batch, s.actor.compute_logp(batch), strict=True):
        counts = rolled(d, "loss_mask").bool()
        torch.testing.assert_close(logprobs[counts], rolled(d, "logprobs")[counts], atol=1e-5, rtol=0)
    s.update(batch)
    assert any(not torch.equal(value, before[name]) for name, value in s.actor.model.state_dict().items())


def test_a_model_that_does_not_replay_is_caught(make: Make) -> None:
    s = make("navsim", "small_gaussian")
    batch = s.batch()
    for d in batch:
        d["logprobs"] += 0.01 * d["loss_mask"]
    with pytest.raises(DivergenceError, match=r"before any update the log-probabilities differ by 0\.01"):
        s.update(batch)


def test_a_mask_that_changes_is_caught(make: Make) -> None:
    s = make("navsim", "small_gaussian")
    batch = s.batch()
    original = s.actor.model.evaluate_actions

    def another(*args: Any, **kwargs: Any) -> Any:
        out = original(*args, **kwargs)
        out["mask"][:, 0] = False
        return out

    s.actor.model.evaluate_actions = another  # type: ignore[method-assign]
    with pytest.raises(DivergenceError, match="its mask must depend on the record alone"):
        s.actor.compute_logp(batch)


def test_a_gradient_that_is_not_finite_ends_the_run(make: Make) -> None:
    s = make("navsim", "small_gaussian")
    s.actor.model.body[0].weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(DivergenceError, match=r"the gradient is (inf|nan)"):
        s.update(s.batch())


def test_a_kl_penalty_is_areals(make: Make) -> None:
    """``kl_coef``: a reward of minus coefficient × (log p - log p_ref) for each part, from a second engine."""
    s = make("navsim", "small_gaussian", "algorithm.kl_coef=0.1")
    batch = s.batch()
    reference = copy.deepcopy(s.actor.model)
    with torch.no_grad():
        reference.mean.bias.add_(0.3)
    for d in batch:
        counts = rolled(d, "loss_mask").bool()
        own, s.actor.model = s.actor.model, reference
        d["ref_logp"], _ = s.actor.replay(d[PAYLOAD], d)
        s.actor.model = own
        expected = -0.1 * (rolled(d, "logprobs") - d["ref_logp"].detach())[counts]
        d["ref_logp"] = d["ref_logp"].detach()
        (done,) = s.actor.compute_advantages([copy.deepcopy(d)])
        torch.testing.assert_close(done["kl_rewards"][counts], expected, atol=1e-5, rtol=0)


def test_the_engine_keeps_areals_contract() -> None:
    """Every abstract method of AReaL's engines is there, with parameters that its callers give."""
    import inspect

    from areal.api import InferenceEngine, TrainEngine

    assert not VLATrainEngine.__abstractmethods__
    assert not VLAInferenceEngine.__abstractmethods__
    for base, own in ((TrainEngine, VLATrainEngine), (InferenceEngine, VLAInferenceEngine)):
        for name, method in vars(base).items():
            if name.startswith("_") or not callable(method) or name not in vars(own):
                continue
            wanted = inspect.signature(method).parameters
            given = inspect.signature(getattr(own, name)).parameters
            anything = any(p.kind is p.VAR_KEYWORD for p in given.values())
            missing = {n for n, p in wanted.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)} - given.keys()
            assert anything or not missing, (own.__name__, name, missing)
