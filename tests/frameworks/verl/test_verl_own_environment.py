"""The environment of examples/bring_your_own_environment.py in verl's own agent loops, advantages, engine and loss."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent.parent.parent / "examples"))

import bring_your_own_environment  # registers parked_cars
import bring_your_own_model  # noqa: F401 - registers my_vla
import doc_blocks
from one_process import advantages, configuration, replayed, setting, train, trajectories

from vla_models.model_registry import VLAModelRegistry


def test_an_environment_from_outside_is_driven_and_learned_from(tmp_path: Path) -> None:
    assert VLAModelRegistry.get_env_adapter("parked_cars", "verl") is bring_your_own_environment.InVerl
    s = setting(tmp_path, configuration("parked_cars", "my_vla"))
    scenes = ["train-12-left"] * 4 + ["train-24-right"] * 4
    data, keys = trajectories(s, scenes)
    assert 16 <= len(data) <= 64  # eight episodes of at most eight decisions, and more than one each
    engine = s.engine()
    old, mask = replayed(engine, data)["log_probs"], data["response_mask"].to_padded_tensor(0).bool()
    sampled = data["rollout_log_probs"].to_padded_tensor(0.0)
    assert (old - sampled)[mask].abs().max() <= 1e-5
    given = advantages(s, data, keys)["advantages"]
    assert (given != 0).any()
    metrics = train(engine, data, s.loss(), old_log_probs=old, advantages=given)
    assert metrics["grad_norm"] > 0
    assert ((replayed(engine, data)["log_probs"] - old) * given)[mask].sum() > 0  # what was better became likelier


def test_the_guide_and_its_line_numbers_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of docs/02 for this framework, and every file and line of its package that the documents cite."""
    monkeypatch.chdir(tmp_path)
    assert doc_blocks.run(doc_blocks.ROOT / "docs" / "02_model_integration_guide.md", "verl") == 1
    doc_blocks.check_citations("verl")
