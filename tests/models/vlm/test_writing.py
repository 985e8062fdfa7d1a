"""The writer and its replay on made-up logits: what is drawn, how probable it was, and that the grammar is kept."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vla_models.errors import DivergenceError, VLAModelsError
from vla_models.heads.warpers import ACTION, TEXT
from vla_models.models.vlm.writing import GIVEN, Grammar, Writer, replay

V, MARKER, END, PAD = 12, 9, 10, 11
CODES = torch.tensor([7, 5, 6, 8])


def grammar(*, marked: bool = True, reasoning: int = 3, codes: bool = True, length: int = 2) -> Grammar:
    """Words 0 … 4, codes 5 … 8, then marker, end and padding."""
    words = torch.arange(V) < 5
    return Grammar(words, MARKER, END, PAD, marked, reasoning if marked else 0, CODES if codes else None, length)


def write(g: Grammar, logits: Tensor, temperature: float = 1.0, top_p: float = 1.0, seed: int = 0, **options: object) -> Writer:
    """Logits [R, steps, V] read step by step, as ``generate`` would."""
    rows = len(logits)
    writer = Writer(
        g,
        torch.full((rows,), temperature),
        torch.full((rows,), top_p),
        generator=torch.Generator().manual_seed(seed),
        **options,
    )
    ids = torch.zeros(rows, 0, dtype=torch.int64)
    for step in range(g.most):
        scores = writer(ids, logits[:, step])
        assert ((scores == 0.0).sum(1) == 1).all()
        ids = torch.cat([ids, scores.argmax(1, keepdim=True)], dim=1)
        if writer.stop(ids, scores).all():
            break
    assert torch.equal(ids, writer.written()[0])
    return writer


def record_of(writer: Writer) -> tuple[dict[str, Tensor], Tensor]:
    ids, segment, logprobs, kept = writer.written()
    record = {"completion_ids": ids, "segment": segment, "kept": kept, "temperature": writer.temperature}
    return record, logprobs


def logits_of(rows: int, g: Grammar, seed: int = 1) -> Tensor:
    return 2.0 * torch.randn(rows, g.most, V, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("codes", [True, False])
@pytest.mark.parametrize("marked", [True, False])
def test_completions_keep_the_grammar(codes: bool, marked: bool) -> None:
    g = grammar(marked=marked, codes=codes, length=2 if codes else 4)
    ids, segment, logprobs, _ = write(g, logits_of(200, g)).written()
    for row, kinds, logp in zip(ids.tolist(), segment.tolist(), logprobs, strict=True):
        there = [(t, k) for t, k in zip(row, kinds, strict=True) if k != 0]
        assert all(t == PAD for t, k in zip(row, kinds, strict=True) if k == 0)
        text = [t for t, k in there if k in (TEXT, GIVEN)]
        plan = [t for t, k in there if k == ACTION]
        assert [k for _, k in there] == sorted((k for _, k in there), key=lambda k: k == ACTION)
        assert (len(text) - 1 if marked else 0) <= 3
        assert text.count(MARKER) == int(marked)
        assert not text or (text[-1] == MARKER and all(t < 5 for t in text[:-1]))
        if marked:
            assert (GIVEN in kinds) == (len(text) == 4)
        assert (set(plan) <= set(CODES.tolist()) and len(plan) == 2) if codes else all(t < 5 or t == END for t in plan)
        if not codes:
            assert END not in plan[:-1]
            assert plan[-1] == END or len(plan) == 4
        assert all((p == 0) == (k <= 0) for p, k in zip(logp.tolist(), kinds, strict=True))


@given(
    st.floats(0.3, 3.0), st.sampled_from([1.0, 0.9, 0.5, 0.05]), st.booleans(), st.booleans(), st.integers(0, 1000)
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_replay_gives_the_probabilities_of_sampling(
    temperature: float, top_p: float, codes: bool, marked: bool, seed: int
) -> None:
    g = grammar(codes=codes, marked=marked)
    logits = logits_of(8, g, seed)
    record, logprobs = record_of(write(g, logits, temperature, top_p, seed))
    seen = logits[:, : logprobs.shape[1]]
    again, entropy = replay(g, seen, record, entropy=True)
    torch.testing.assert_close(again, logprobs, atol=1e-6, rtol=0)
    assert entropy is not None
    assert (entropy >= 0).all()
    # Noise as of another batch, which may exchange two tokens at the nucleus' edge, moves the probabilities as little.
    noisy, _ = replay(g, seen + 1e-6 * torch.randn(seen.shape, generator=torch.Generator().manual_seed(seed)), record)
    torch.testing.assert_close(noisy, logprobs, atol=2e-5, rtol=0)


def test_frequencies_are_the_stated_probabilities_and_add_up_to_one() -> None:
    g = grammar(marked=False, length=1)
    logits = logits_of(1, g).expand(20_000, -1, -1)
    for top_p in (1.0, 0.7):
        ids, _, logprobs, kept = write(g, logits, 0.8, top_p).written()
        drawn = ids[:, 0].unique()
        stated = [float(logprobs[ids == token][0].exp()) for token in drawn]
        assert sum(stated) == pytest.approx(1.0, abs=1e-5)
        for token, p in zip(drawn, stated, strict=True):
            assert float((ids == token).float().mean()) == pytest.approx(p, abs=0.015)
        assert kept.unique().tolist() == ([0] if top_p == 1.0 else [len(drawn)])


def test_a_changed_model_replays_within_the_nucleus_of_its_own() -> None:
    """The written token always counts, and the rest are as many of the now likeliest as there were."""
    g = grammar(marked=False, length=1)
    record, _ = record_of(write(g, logits_of(50, g), 1.0, 0.6))
    changed = logits_of(50, g, seed=9).requires_grad_()
    logprobs, _ = replay(g, changed[:, :1], record)
    assert torch.isfinite(logprobs).all()
    logprobs.sum().backward()
    assert torch.isfinite(changed.grad).all()
    for row in range(50):
        size, token = int(record["kept"][row, 0]), int(record["completion_ids"][row, 0])
        best = CODES[changed[row, 0, CODES].argsort(descending=True)][:size].tolist()
        support = sorted({*best, token})
        expected = changed[row, 0, token] - changed[row, 0, support].logsumexp(0)
        assert float(logprobs[row, 0].detach()) == pytest.approx(float(expected.detach()), abs=1e-5)


def test_deterministic_takes_the_likeliest_that_is_allowed() -> None:
    g = grammar()
    logits = logits_of(20, g)
    ids, segment, _, _ = write(g, logits, deterministic=True).written()
    allowed = torch.cat([torch.arange(5), torch.tensor([MARKER])])
    assert torch.equal(ids[:, 0], allowed[logits[:, 0, allowed].argmax(1)])
    first = (segment == ACTION).long().argmax(1)
    rows = torch.arange(20)
    assert torch.equal(ids[rows, first], CODES[logits[rows, first][:, CODES].argmax(1)])


def test_limits() -> None:
    assert grammar().most == 6
    whole = grammar()
    assert whole.limit(None) is whole.limit(6) is whole.limit(99) is whole
    assert grammar().limit(4).reasoning == 1
    assert grammar().limit(3).reasoning == 0
    assert grammar().limit(3).most == 3
    words = grammar(codes=False, length=20)
    assert (words.limit(10).length, words.limit(10).reasoning) == (9, 0)
    alone = grammar(length=0)
    assert (alone.most, alone.limit(2).reasoning, alone.limit(1).most) == (4, 1, 1)
    for g, too_few in ((grammar(), 2), (words, 1), (grammar(marked=False), 1), (alone, 0)):
        with pytest.raises(VLAModelsError, match=f"max_new_tokens={too_few}"):
            g.limit(too_few)


def test_logits_that_are_not_finite_are_named() -> None:
    g = grammar()
    logits = logits_of(3, g)
    logits[1, 0, 2] = torch.nan
    with pytest.raises(DivergenceError, match=r"rows \[1\] of 3"):
        write(g, logits)
