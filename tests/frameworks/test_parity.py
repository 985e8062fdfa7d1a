"""The stored batch, ``local``'s answer to it, and the tables of docs/01_framework_comparison.md."""

from __future__ import annotations

import json

import parity_checks  # noqa: F401 - finds benchmarks/
import pytest
import torch
from documents import COMPARISON
from parities import batch, compare
from parity import FRAMEWORKS, RESULTS, document, stored_results

from vla_models.training.objective import group_advantages


@pytest.mark.parametrize("case", batch.CASES)
def test_the_batch_has_what_tells_frameworks_apart(case: str) -> None:
    stored = batch.read(case)
    advantages = group_advantages(stored.rewards.view(4, 4), stored.valid.view(4, 4))
    assert (advantages[batch.SPREADLESS] == 0).all()
    assert (advantages != 0).any(dim=1).sum() >= 2
    assert (~stored.valid).nonzero().flatten().tolist() == [batch.FAILED]
    with torch.no_grad():
        out = batch.policy(case).evaluate_actions(stored.record)
    mask = out["mask"].flatten(1)
    assert bool(mask.all()) == (case != "words")
    ratio = (out["logprobs"].flatten(1) - stored.logprobs.flatten(1)).exp()
    clipped = (ratio < 0.8) | (ratio > 1.28)
    assert 0.05 < clipped[mask].float().mean() < 0.8
    if case == "flow":  # where a dual clip shows
        assert ((advantages.view(-1, 1) < 0) & (ratio > 3)).any()


@pytest.mark.parametrize(("case", "algorithm"), [("decision", "ppo"), ("words", "grpo")])
def test_local_still_says_what_was_stored(case: str, algorithm: str) -> None:
    stored = json.loads((RESULTS / "parity_local.json").read_text())["cases"][f"{case}/failed/{algorithm}"]
    now = compare.as_json(case, compare.local(batch.read(case), algorithm))
    assert now.keys() == stored.keys()
    for name, value in now.items():
        if name == "weight":
            assert value == stored[name]
        elif isinstance(value, list):
            assert [v is None for v in value] == [v is None for v in stored[name]]
            given = [(v, w) for v, w in zip(value, stored[name], strict=True) if v is not None]
            assert max(abs(v - w) for v, w in given) <= compare.EQUAL
        else:
            assert value == pytest.approx(stored[name], abs=compare.EQUAL)


def test_no_difference_is_unexplained() -> None:
    results = stored_results()
    assert list(results) == list(FRAMEWORKS)
    for name, result in results.items():
        assert result["differences"], name
        for difference in result["differences"]:
            assert difference["before"] > compare.EQUAL >= difference["after"], difference["name"]
        for key, case in result["cases"].items():
            assert max(case["left"].values()) <= compare.EQUAL, (name, key)
            _, _, algorithm = key.split("/")
            if name != "rlinf" and algorithm == "grpo":
                assert max(case["apart"].values()) <= compare.EQUAL, (name, key)
    whole = results["rlinf"]["cases"]["decision/whole/grpo"]["apart"]
    assert max(whole.values()) <= compare.EQUAL


def test_the_document_has_these_numbers() -> None:
    for path in COMPARISON:
        text = path.read_text(encoding="utf-8")
        assert document(text, stored_results()) == text, "run benchmarks/parity.py table"


def test_a_batch_from_other_weights_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "policy", lambda case: batch.sampler(case))
    with pytest.raises(AssertionError, match="decision: the seed gives other weights"):
        batch.read("decision")
