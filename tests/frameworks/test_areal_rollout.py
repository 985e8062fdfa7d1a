"""The parts of AReaL's rollout that do not need AReaL: deciding together, driving a group, trajectories, staleness."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import CancelledError, Future
from typing import Any

import numpy as np
import pytest
import small_models  # noqa: F401 - registers models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from toy_world import HORIZON, ToyDrive

from vla_models.errors import VLAModelsError
from vla_models.frameworks.areal.deciding import WHOLE, Decider, Decision, Sampling
from vla_models.frameworks.areal.driving import drive
from vla_models.frameworks.areal.env import AReaLBench2DriveAdapter, EnvironmentPool
from vla_models.frameworks.areal.sequences import PAYLOAD, Rows, check, join, joined_record, record_rows, staleness, trajectory
from vla_models.frameworks.records import RecordLayout
from vla_models.inputs import VLAInput
from vla_models.model_registry import create_model


def inputs(count: int, speed: float = 5.0) -> list[VLAInput]:
    picture = np.full((6, 8, 3), 100, dtype=np.uint8)
    route = np.float32([[1, 0], [2, 0], [3, 0]])
    return [
        VLAInput(images={"front": picture}, ego_state={"speed": speed + i}, route=route, command="left") for i in range(count)
    ]


def decider(model: str = "small_gaussian", most_rows: int = 64) -> Decider:
    torch.manual_seed(0)
    return Decider(create_model(model, horizon=HORIZON), seed=3, most_rows=most_rows)


def together(d: Decider, *asked: tuple[int, Sampling]) -> list[Future[Decision]]:
    d.pause()
    futures = [d.decide(inputs(count), sampling) for count, sampling in asked]
    d.resume()
    return futures


# -- deciding ----------------------------------------------------------------------------------------------------------------


def test_requests_that_wait_are_decided_together_if_they_are_alike() -> None:
    d = decider(most_rows=10)
    four, likely = Sampling(samples=4), Sampling(deterministic=True)
    futures = together(d, (1, four), (2, likely), (1, four), (3, likely), (1, four))
    decided = [future.result(10) for future in futures]
    assert [len(x.plans) for x in decided] == [4, 2, 4, 3, 4]
    assert d.calls == 3  # 4 + 4 rows, the likely ones, and the third four, which would have made it more than 10
    assert d.decided == 17
    assert all(x.sampled is None for x in decided[1::2])
    sampled = decided[0].sampled
    assert sampled is not None
    assert decided[2].sampled is sampled
    assert (decided[0].place, decided[2].place) == (slice(0, 4), slice(4, 8))
    assert {len(value) for value in sampled.record.values()} == {8}
    d.close()


def test_what_is_decided_together_replays_apart() -> None:
    d = decider("small_tokens")
    decided = [f.result(10) for f in together(d, *[(1, Sampling(samples=3))] * 4)]
    assert d.calls == 1
    for x in decided:
        assert x.sampled is not None
        logprobs, mask = x.sampled.logprobs[x.place], x.sampled.mask[x.place]
        out = d.model.evaluate_actions({name: value[x.place] for name, value in x.sampled.record.items()})
        torch.testing.assert_close(out["logprobs"][out["mask"]], logprobs[mask])
        assert torch.equal(out["mask"].flatten(1), mask)
    d.close()


def test_masks_are_asked_for_until_every_part_has_counted_long_enough() -> None:
    d = decider()
    calls = 0
    original = d.model.evaluate_actions

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return original(*args, **kwargs)

    d.model.evaluate_actions = counted  # type: ignore[method-assign]
    for _ in range(5):
        decided = d.decide(inputs(1), Sampling(samples=WHOLE // 2)).result(10)
        assert decided.sampled is not None
        assert decided.sampled.mask.all()
    assert calls == 2
    d.close()


def test_weights_come_between_decisions_and_their_version_with_them() -> None:
    d = decider()
    state = {name: value.clone() for name, value in d.model.state_dict().items()}
    before = d.decide(inputs(1), Sampling(deterministic=True)).result(10)
    state["mean.bias"] = state["mean.bias"] + 5.0
    d.load(state, 1)
    after = d.decide(inputs(1), Sampling(deterministic=True)).result(10)
    sampled = d.decide(inputs(1), Sampling()).result(10).sampled
    assert sampled is not None
    assert sampled.version == 1
    np.testing.assert_allclose(after.plans, before.plans + 5.0, rtol=1e-5)
    d.close()


def test_a_pause_waits_for_what_runs_and_keeps_the_rest() -> None:
    d = decider()
    original, running = d.model.predict, threading.Event()

    def slow(*args: Any, **kwargs: Any) -> Any:
        running.set()
        time.sleep(0.2)
        return original(*args, **kwargs)

    d.model.predict = slow  # type: ignore[method-assign]
    first = d.decide(inputs(1), Sampling())
    assert running.wait(5)
    d.pause()
    assert len(first.result(5).plans) == 1
    second = d.decide(inputs(1), Sampling())
    time.sleep(0.1)
    assert not second.done()
    d.resume()
    assert len(second.result(10).plans) == 1
    d.close()


def test_what_waits_is_cancelled_when_it_closes() -> None:
    d = decider()
    d.pause()
    waiting = d.decide(inputs(1), Sampling())
    taken_back = d.decide(inputs(1), Sampling())
    assert taken_back.cancel()
    d.close()
    with pytest.raises(CancelledError):
        waiting.result(1)
    with pytest.raises(VLAModelsError, match="after the run has ended"):
        d.decide(inputs(1), Sampling())


def test_the_same_seed_and_version_decide_the_same() -> None:
    plans = []
    for _ in range(2):
        d = decider()
        plans.append(d.decide(inputs(2), Sampling(samples=2)).result(10).plans)
        d.close()
    assert np.array_equal(*plans)


# -- driving -----------------------------------------------------------------------------------------------------------------


class Scripted:
    """Drives so many metres in each row; the fourth row's second answer is no plan."""

    def __init__(self, metres: list[float]) -> None:
        self.metres, self.asked = metres, list[tuple[int, int]]()

    async def decide(self, engine: Any, given: list[VLAInput], samples: int, *, deterministic: bool) -> Any:
        self.asked.append((len(given), samples))
        rows = len(given) * samples
        metres = self.metres[-rows:]
        plans = np.zeros((rows, HORIZON, 3), dtype=np.float32)
        plans[:, :, 0] = np.float32(metres)[:, None]
        if len(self.asked) == 2:
            plans[-1] = np.nan
        return plans, None if deterministic else join([row(version=len(self.asked), parts=2) for _ in range(rows)])


def row(version: int = 0, parts: int = 3, prompt: int = 1, uncounted: tuple[int, ...] = ()) -> Rows:
    counts = torch.tensor([[False] * prompt + [i not in uncounted for i in range(parts)]])
    slots = torch.arange(counts.shape[1])[None]
    return Rows(
        ids=slots,
        logprobs=torch.where(counts, -slots.float(), 0.0),
        counts=counts,
        versions=torch.where(counts, version, -1).int(),
        payload=[{"pixel_values": torch.zeros(0), "x": torch.tensor([[version]])}],
        extra={},
    )


def test_a_group_is_asked_once_and_then_for_those_that_go_on() -> None:
    async def group() -> Any:
        pool = EnvironmentPool(ToyDrive, environments=1, threads=1, limit=30, invalid=-1.0)
        policy = Scripted([2.0, 1.0, 0.5, 0.5])
        async with AReaLBench2DriveAdapter(pool, 4) as adapter:
            found = await drive(adapter, policy, None, "go0")  # its goal is at 2 m
        return policy.asked, found

    asked, found = asyncio.run(group())
    assert asked == [(1, 4), (3, 1), (2, 1), (1, 1)]
    assert [len(rows) for rows in found.decisions] == [4, 3, 2, 1]
    assert [episode.tolist() for episode in found.episodes] == [[0, 1, 2, 3], [1, 2, 3], [2, 3], [3]]
    assert found.totals["decisions"].tolist() == [1, 2, 3, 4]
    assert found.totals["invalid_answers"].tolist() == [0, 0, 0, 1]
    made = found.trajectory(normalize=False)
    assert made is not None
    returns = torch.from_numpy(found.totals["return"])
    wanted = (returns - returns.mean())[[0, 1, 2, 3, 1, 2, 3, 2, 3, 3]]
    torch.testing.assert_close(made["rewards"], wanted)
    assert made["versions"].max(1).values.tolist() == [1] * 4 + [2] * 3 + [3] * 2 + [4]
    assert found.means()["invalid_answers"] == 1.0


def test_a_group_of_which_one_is_left_is_not_learned_from() -> None:
    async def group() -> Any:
        pool = EnvironmentPool(lambda n: ToyDrive(n, crashing=True), environments=1, threads=1, limit=30)
        async with AReaLBench2DriveAdapter(pool, 3) as adapter:
            return await drive(adapter, Scripted([0.1] * 3), None, "crash2")

    found = asyncio.run(group())
    assert not found.learnable
    assert found.trajectory(normalize=True) is None
    assert found.means() == {"invalid": 3.0, "invalid_answers": 1.0}


# -- trajectories ------------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 5), st.integers(1, 4), st.sets(st.integers(0, 4))), min_size=1, max_size=6
    )
)  # fmt: skip
def test_any_decisions_make_a_trajectory_that_areal_cuts(cases: list[tuple[int, int, set[int]]]) -> None:
    rows = [row(i, parts, prompt, tuple(left)) for i, (parts, prompt, left) in enumerate(cases)]
    rows = [r for r in rows if bool(r.counts.any())]
    if not rows:
        return
    made = trajectory(join(rows), torch.arange(len(rows)))
    shape = made["input_ids"].shape
    assert all(value.shape in (shape, shape[:1]) for value in made.values() if isinstance(value, Tensor))
    for i, r in enumerate(rows):
        counts = made["loss_mask"][i].bool()
        assert made["logprobs"][i][counts].tolist() == r.logprobs[r.counts].tolist()
        assert made["versions"][i][counts].tolist() == r.versions[r.counts].tolist()
        # AReaL adds the reward at the last slot that attention_mask covers: it must count
        last = int(made["attention_mask"][i].sum()) - 1
        assert bool(counts[last])
        assert not bool(made["attention_mask"][i][last + 1 :].any())
        assert made[PAYLOAD][i]["x"] is r.payload[0]["x"]


def test_a_record_travels_in_its_row() -> None:
    record = {"action": torch.randn(3, 4), "ids": torch.arange(6).reshape(3, 2)}
    logprobs = torch.randn(3, 4)
    mask = torch.tensor([[True] * 4, [True, False, True, False], [True] * 4])
    layout = RecordLayout.of([(record, logprobs)])
    rows = record_rows(layout, record, logprobs, mask, 7)
    made = trajectory(rows, torch.tensor([1.0, 2.0, 3.0]))
    joined = joined_record(made[PAYLOAD])
    assert joined.keys() == record.keys()
    assert all(torch.equal(value, record[name]) for name, value in joined.items())
    assert made["attention_mask"].sum(1).tolist() == [5, 4, 5]
    torch.testing.assert_close(made["logprobs"][1], torch.tensor([0.0, logprobs[1, 0], 0.0, logprobs[1, 2], 0.0]))
    assert made["versions"][1].tolist() == [-1, 7, -1, 7, -1]


def test_what_samples_of_an_input_share_is_kept_once() -> None:
    prompt = {"pixels": torch.randint(0, 255, (2, 4, 6, 3), dtype=torch.uint8), "prompt_id": torch.tensor([5, -3])}
    record = {name: value.repeat_interleave(3, dim=0) for name, value in prompt.items()} | {"action": torch.randn(6, 4)}
    logprobs, mask = torch.randn(6, 4), torch.ones(6, 4, dtype=torch.bool)
    layout = RecordLayout.of([(record, logprobs)], ("pixels", "prompt_id", "sentence"))
    rows = record_rows(layout, record, logprobs, mask, 0, 3)
    kept = [entry["prompt"] for entry in rows.payload]
    assert kept[0] is kept[1] is kept[2]
    assert kept[3] is kept[5] is not kept[0]
    assert 2 * kept[0].nbytes < record["pixels"].nbytes
    order = [4, 0, 5, 1]
    joined = joined_record([rows.payload[i] for i in order])
    assert joined.keys() == record.keys()
    assert all(torch.equal(value, record[name][order]) for name, value in joined.items())
    one = record_rows(layout, {name: value[::3] for name, value in record.items()}, logprobs[::3], mask[::3], 0)
    assert torch.equal(joined_record(one.payload)["pixels"], prompt["pixels"])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("actions", torch.zeros(2, 4, 3), r"actions has shape \[2, 4, 3\], and AReaL would not cut it into minibatches"),
        ("speeds", torch.zeros(3), r"speeds has shape \[3\], and AReaL would not cut it"),
        ("text", ["a", "b"], "text is a list; put it into multi_modal_input"),
        ("logprobs", torch.full((2, 4), float("nan")), "logprobs is not finite"),
        (PAYLOAD, [{}], "multi_modal_input must be a list with one entry for each of 2 sequences"),
        ("loss_mask", torch.ones(2, 4), "loss_mask counts slots that attention_mask leaves out, or a first slot"),
        ("versions", torch.full((2, 4), -1), "a part that counts has no weight version"),
        ("rewards", torch.zeros(2, 4), r"rewards have shape \[2, 4\], not one a sequence"),
    ],
)
def test_what_areal_would_silently_mistreat_is_refused(name: str, value: Any, message: str) -> None:
    made = trajectory(join([row(), row()]), torch.tensor([0.0, 1.0]))
    with pytest.raises(VLAModelsError, match=message):
        check(made | {name: value})


def test_keys_that_change_are_refused() -> None:
    other = row()
    with pytest.raises(VLAModelsError, match="hold different keys; a record's keys must not change"):
        join([row(), Rows(other.ids, other.logprobs, other.counts, other.versions, [{"y": torch.zeros(1)}], {})])
    with pytest.raises(VLAModelsError, match="a reward for each of its decisions: 1 and 2"):
        trajectory(row(), torch.tensor([0.0, 1.0]))


def test_staleness_looks_at_what_counts_alone() -> None:
    """AReaL pads versions with 0, which would look as old as the run."""
    made = trajectory(join([row(version=4, parts=2), row(version=2, parts=4)]), torch.tensor([0.0, 1.0]))
    padded = made | {"versions": torch.where(made["versions"] < 0, 0, made["versions"])}
    for batch in (made, padded):
        assert staleness([batch, batch], 5, 2) == staleness([batch] * 2, 5, 2)
        found = staleness([batch], 5, 2)
        assert (found.parts, found.most, found.too_old) == (6, 3, 4)
        assert found.mean == pytest.approx((2 * 1 + 4 * 3) / 6)
    assert staleness([], 5, 2).parts == 0
