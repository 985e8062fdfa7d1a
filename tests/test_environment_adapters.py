"""The registry of environment adapters: one class and one decorator for each framework."""

from __future__ import annotations

from typing import Any

import pytest

from vla_models import VLAConfig, register_env_adapter
from vla_models.errors import ConfigError, RegistryError

FRAMEWORKS = ("siirl", "areal", "rlinf", "verl")


def test_an_environment_is_one_class_and_one_decorator_for_each_framework(registry: Any) -> None:
    adapters = {}
    for framework in FRAMEWORKS:

        @register_env_adapter("my_city", framework)
        class Adapter:
            pass

        adapters[framework] = Adapter
    assert registry._env_adapters["my_city"] == adapters
    assert registry.list_env_adapters()["my_city"] == sorted(FRAMEWORKS)
    assert all(registry.get_env_adapter("my_city", framework) is adapter for framework, adapter in adapters.items())


def test_unknown_environments_and_frameworks_are_named(registry: Any) -> None:
    @register_env_adapter("my_city", "areal")
    class Adapter:
        pass

    with pytest.raises(RegistryError, match=r"no environment 'my_cty' has an adapter; .*Did you mean 'my_city'\?"):
        registry.get_env_adapter("my_cty", "areal")
    with pytest.raises(
        RegistryError, match=r"'my_city' has no adapter for framework 'arael'.*Did you mean 'areal'\?.*@register_env_adapter"
    ):
        registry.get_env_adapter("my_city", "arael")


def test_a_second_adapter_is_an_error_unless_override(registry: Any) -> None:
    @register_env_adapter("my_city", "areal")
    class First:
        pass

    with pytest.raises(RegistryError, match="areal adapter of environment 'my_city' is already registered"):

        @register_env_adapter("my_city", "areal")
        class Second:
            pass

    @register_env_adapter("my_city", "areal", override=True)
    class Third:
        pass

    assert registry.get_env_adapter("my_city", "areal") is Third


def test_a_registered_environment_and_framework_can_be_configured(registry: Any) -> None:
    with pytest.raises(ConfigError, match=r"environment\.type: got 'my_city'"):
        VLAConfig.from_dict({"environment": {"type": "my_city"}})

    @register_env_adapter("my_city", "my_framework")
    class Adapter:
        pass

    config = VLAConfig.from_dict({"environment": {"type": "my_city"}, "framework": "my_framework"})
    assert (config.environment.type, config.framework, config.environment.backend) == ("my_city", "my_framework", "")
