"""Functions of raw logits that sampling and replay share."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_models.heads.warpers import ACTION, TEXT, counted, entropy_of, log_softmax_within, nucleus, pack_mask, unpack_mask


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(0, 10**6))
def test_a_packed_mask_is_unpacked(size: int, seed: int) -> None:
    mask = torch.rand(3, 5, size, generator=torch.Generator().manual_seed(seed)) < 0.3
    packed = pack_mask(mask)
    assert packed.dtype == torch.uint8
    assert packed.shape == (3, 5, -(-size // 8))
    assert torch.equal(unpack_mask(packed, size), mask)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.2, 3.0), st.floats(0.05, 1.0))
def test_a_logit_mask_and_a_nucleus_leave_a_distribution(seed: int, temperature: float, top_p: float) -> None:
    logits = 5.0 * torch.randn(6, 40, generator=torch.Generator().manual_seed(seed))
    allowed = torch.arange(40) >= 12  # say, the action tokens
    warp = torch.full((6,), temperature), torch.full((6,), top_p)
    support = allowed & nucleus(logits.masked_fill(~allowed, -1e9), *warp, (40,))
    logp = log_softmax_within(logits.bfloat16(), warp[0], support)
    assert logp.dtype == torch.float32
    torch.testing.assert_close(logp.exp().sum(-1), torch.ones(6))
    assert (logp[:, :12] == -torch.inf).all()
    entropy = entropy_of(logp)
    assert (entropy >= -1e-6).all()
    assert (entropy <= support.sum(-1).float().log() + 1e-5).all()


def test_reasoning_and_plan_are_counted_apart() -> None:
    segment = torch.tensor([[TEXT, TEXT, ACTION, 0], [ACTION, 0, 0, 0]], dtype=torch.int8)
    assert counted(segment, "text").tolist() == [[True, True, False, False], [False] * 4]
    assert counted(segment, "action").tolist() == [[False, False, True, False], [True, False, False, False]]
    assert torch.equal(counted(segment), segment != 0)
