"""A model's own adapter builds what a framework trains, and a framework that would not ask it says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import small_models  # noqa: F401 - registers models
import torch

from vla_models.config import VLAConfig
from vla_models.errors import CheckpointError, ConfigError, RegistryError
from vla_models.frameworks import get_launcher
from vla_models.frameworks.model_adapter import build_model
from vla_models.interface import VLAInterface
from vla_models.model_registry import create_model, register_framework_adapter

FRAMEWORKS = ("areal", "rlinf", "siirl", "verl")


@pytest.fixture
def start(tmp_path: Path) -> VLAInterface:
    torch.manual_seed(0)
    model = create_model("small_gaussian")
    model.statistics = {"steps": 3}
    model.save_pretrained(tmp_path)
    return model


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_what_the_adapter_returns_gets_the_checkpoints_weights(
    framework: str, start: VLAInterface, tmp_path: Path, registry: Any
) -> None:
    given: list[Any] = []

    @register_framework_adapter(framework, "small_gaussian")
    def adapter(native: Any) -> VLAInterface:
        given.append(native)
        return create_model("small_gaussian")

    arguments = object()
    built = build_model(framework, arguments, tmp_path)
    assert given == [arguments]
    assert built.statistics == {"steps": 3}
    for name, weight in start.state_dict().items():
        torch.testing.assert_close(built.state_dict()[name], weight)
    other = next(name for name in FRAMEWORKS if name != framework)
    build_model(other, arguments, tmp_path)
    assert given == [arguments], "an adapter serves its own framework alone"


def test_an_adapter_that_builds_something_else_is_named(start: VLAInterface, tmp_path: Path, registry: Any) -> None:
    register_framework_adapter("rlinf", "small_gaussian")(lambda native: "no model")
    with pytest.raises(RegistryError, match="the rlinf adapter of model 'small_gaussian' returned a str"):
        build_model("rlinf", None, tmp_path)
    register_framework_adapter("verl", "small_gaussian")(lambda native: create_model("small_flow"))
    with pytest.raises(CheckpointError, match="do not fit"):
        build_model("verl", None, tmp_path)


@pytest.mark.parametrize(("framework", "section"), [("areal", "vla"), ("verl", "vla_models")])
def test_a_route_that_would_not_ask_an_adapter_is_refused(framework: str, section: str, registry: Any) -> None:
    register_framework_adapter(framework, "small_tokens")(lambda native: create_model("small_tokens"))
    config = VLAConfig.from_dict(
        {
            "framework": framework,
            "model": {"name": "small_tokens"},
            "environment": {"type": "navsim"},
            "framework_options": {section: {"route": "tokens"}},
        }
    )
    with pytest.raises(ConfigError, match=rf"framework_options\.{section}\.route: tokens: .*adapter .* 'small_tokens'"):
        get_launcher(framework)(config)
