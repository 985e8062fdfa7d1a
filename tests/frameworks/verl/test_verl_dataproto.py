"""Decisions travel through a DataProto unchanged, whatever is done to the batch on the way."""

from __future__ import annotations

from typing import Any

import pytest
import small_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from verl.protocol import DataProto

from vla_models.errors import ConfigError
from vla_models.frameworks.records import RecordLayout
from vla_models.frameworks.verl.dataproto import PADDING, Decisions, from_dataproto, to_dataproto
from vla_models.inputs import VLAInput

MODELS = {kind.head: kind() for kind in (small_models.SmallTokens, small_models.SmallGaussian, small_models.SmallFlow)}


def decided(head: str, rows: int, seed: int) -> tuple[Any, Decisions, RecordLayout]:
    model = MODELS[head].eval()
    generator = torch.Generator().manual_seed(seed)
    inputs = [
        VLAInput(
            ego_state={"speed": float(i)}, route=torch.ones(2, 2).numpy() * i,
            images={"front": torch.full((4, 4, 3), 9 * i % 255, dtype=torch.uint8).numpy()},
        )
        for i in range(rows)
    ]  # fmt: skip
    prediction = model.predict(inputs, generator=generator)
    with torch.no_grad():
        out = model.evaluate_actions(prediction.record)
    rewards = torch.randn(rows, generator=generator)
    scenes = [f"scene{i // 2}" for i in range(rows)]
    made = Decisions(prediction.record, prediction.logprobs.flatten(1), out["mask"].flatten(1), rewards, scenes)
    return model, made, RecordLayout.of([(prediction.record, torch.zeros(1, 40))])


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(sorted(MODELS)), st.integers(1, 7), st.integers(1, 5), st.integers(0, 99))
def test_a_round_trip_gives_back_what_counts(head: str, rows: int, multiple: int, seed: int) -> None:
    model, made, layout = decided(head, rows, seed)
    data = to_dataproto(made, layout, multiple=multiple)
    assert len(data) % multiple == 0
    assert 0 <= data.meta_info[PADDING] < multiple
    assert data.batch["response_mask"][rows:].sum() == 0
    assert data.batch["rm_scores"][rows:].abs().sum() == 0
    parts = data.chunk(multiple)
    back = from_dataproto(DataProto.concat(parts))
    assert list(back.scenes) == list(made.scenes)
    torch.testing.assert_close(back.rewards, made.rewards)
    for row in range(rows):
        torch.testing.assert_close(back.logprobs[row][back.mask[row]], made.logprobs[row][made.mask[row]])
    with torch.no_grad():
        again = model.evaluate_actions(back.record)
    for row in range(rows):
        replayed = again["logprobs"].flatten(1)[row][again["mask"].flatten(1)[row]]
        torch.testing.assert_close(replayed, back.logprobs[row][back.mask[row]], atol=1e-5, rtol=0)


def test_rows_of_a_scene_are_a_group_and_padding_is_none() -> None:
    from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

    _, made, layout = decided("gaussian", 5, 0)
    data = to_dataproto(made, layout, multiple=4)
    given, _ = compute_grpo_outcome_advantage(
        data.batch["rm_scores"].clone(), data.batch["response_mask"].float(), data.non_tensor_batch["uid"]
    )
    first = made.rewards[:2]
    expected = (first - first.mean()) / (first.std() + 1e-6)
    torch.testing.assert_close(given[:2, 0], expected)
    assert given[5:].abs().sum() == 0


def test_sizes_that_do_not_fit_are_refused() -> None:
    _, made, layout = decided("flow", 3, 0)
    with pytest.raises(ConfigError, match="3 decisions cannot be filled up to a multiple of 0"):
        to_dataproto(made, layout, multiple=0)
    with pytest.raises(ConfigError, match="3 decisions with 2 scenes"):
        to_dataproto(Decisions(made.record, made.logprobs, made.mask, made.rewards, made.scenes[:2]), layout)
