"""Registering and finding models: names, duplicates, options, plugins."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from typing import Any

import pytest

from vla_models import VLAForDriving, create_model, register_framework_adapter, register_vla_model
from vla_models.errors import RegistryError


class Small(VLAForDriving):
    def __init__(self, size: int = 3) -> None:
        self.size = size


class Other(Small):
    pass


def test_register_get_and_create(registry: Any) -> None:
    assert register_vla_model("small")(Small) is Small
    assert registry.get_model("small") is Small
    assert registry.name_of(Small) == "small"
    assert registry.name_of(Other) is None
    assert "small" in registry.list_models()
    assert create_model("small", size=5).size == 5


def test_the_built_in_model_is_found_by_name(registry: Any) -> None:
    assert "tiny_vla" in registry.list_models()
    assert registry.get_model("tiny_vla").__name__ == "TinyVLA"


def test_unknown_names_list_what_exists_and_the_nearest(registry: Any) -> None:
    with pytest.raises(RegistryError, match=r"there is no model 'tiny_vl'; known: .*tiny_vla.* Did you mean 'tiny_vla'\?"):
        create_model("tiny_vl")


def test_a_second_registration_is_an_error_unless_override(registry: Any) -> None:
    register_vla_model("small")(Small)
    register_vla_model("small")(Small)  # the same class again changes nothing
    with pytest.raises(RegistryError, match=r"model 'small' is already registered \(.*Small\); .*override=True"):
        register_vla_model("small")(Other)
    assert register_vla_model("small", override=True)(Other) is Other
    assert registry.get_model("small") is Other
    register_framework_adapter("verl", "small")(len)
    with pytest.raises(RegistryError, match="verl adapter of model 'small' is already registered"):
        register_framework_adapter("verl", "small")(max)
    assert register_framework_adapter("verl", "small", override=True)(max) is max


def test_a_built_in_name_is_taken_even_before_it_was_imported(registry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_models", {})
    with pytest.raises(RegistryError, match="'tiny_vla' is built in"):
        register_vla_model("tiny_vla")(Small)


@pytest.mark.parametrize("thing", [object, len, "Small"])
def test_only_models_can_be_registered(registry: Any, thing: Any) -> None:
    with pytest.raises(RegistryError, match="not a subclass of VLAInterface"):
        register_vla_model("thing")(thing)


@pytest.mark.parametrize("name", ["", 3])
def test_names_are_strings(registry: Any, name: Any) -> None:
    with pytest.raises(RegistryError, match="non-empty string"):
        register_vla_model(name)(Small)


def test_adapters_are_keyed_by_framework(registry: Any) -> None:
    @register_framework_adapter("a_new_framework", "small")
    def adapter(cfg: Any) -> Any:
        return cfg

    assert registry._adapters["a_new_framework"] == {"small": adapter}
    assert registry.get_adapter("a_new_framework", "small") is adapter
    assert registry.get_adapter("a_new_framework", "tiny_vla") is None, "then the generic adapter serves"
    assert registry.list_adapters()["a_new_framework"] == ["small"]


def test_an_adapter_that_nobody_would_ask_is_refused(registry: Any) -> None:
    with pytest.raises(RegistryError, match="local trains the registered model itself"):
        register_framework_adapter("local", "small")(len)


def test_options_that_the_constructor_does_not_take(registry: Any, tmp_path: Path) -> None:
    register_vla_model("small")(Small)
    with pytest.raises(RegistryError, match=r"'small' does not take 'sise'; known: size\. Did you mean 'size'\?"):
        create_model("small", sise=5)
    with pytest.raises(RegistryError, match="takes no model_path"):
        create_model("small", model_path=tmp_path)


def test_model_path_is_passed_on_or_loaded(registry: Any, tmp_path: Path) -> None:
    @register_vla_model("pathed")
    class Pathed(VLAForDriving):
        def __init__(self, model_path: Any, size: int = 3) -> None:
            self.given, self.size = model_path, size

    assert create_model("pathed", model_path="hub/name").given == "hub/name"
    assert create_model("pathed").given is None
    Pathed("base", size=4).save_pretrained(tmp_path / "saved")
    loaded = create_model("pathed", model_path=tmp_path / "saved")
    assert (loaded.given, loaded.size) == ("base", 4), "built from the saved arguments"
    assert create_model("pathed", model_path=tmp_path / "saved", size=5).size == 5
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert create_model("pathed", model_path=tmp_path).given == tmp_path, "another library's folder is the model's affair"


@pytest.fixture
def plugins(registry: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Two installed packages: one that registers a model when it is imported, one that is broken."""
    (tmp_path / "good_plugin.py").write_text(
        "from vla_models import VLAForDriving, VLAModelRegistry, register_vla_model\n"
        "VLAModelRegistry.list_models()  # a plugin may look something up\n"
        "@register_vla_model('from_plugin')\n"
        "class FromPlugin(VLAForDriving):\n    pass\n"
    )
    (tmp_path / "bad_plugin.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    entries = [importlib.metadata.EntryPoint(name, f"{name}_plugin", "vla_models.plugins") for name in ("good", "bad")]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: entries if group == "vla_models.plugins" else [])
    monkeypatch.setattr(registry, "_plugin_errors", None)
    yield registry
    sys.modules.pop("good_plugin", None)


def test_plugins_are_loaded_once_and_failures_are_named(plugins: Any) -> None:
    with pytest.warns(UserWarning, match=r"plugin 'bad' \(bad_plugin\) failed: ModuleNotFoundError"):
        assert "from_plugin" in plugins.list_models()
    assert plugins.load_plugins().keys() == {"bad"}
    assert create_model("from_plugin") is not None
    with pytest.raises(RegistryError, match=r"Plugins that failed to load: bad \(ModuleNotFoundError"):
        plugins.get_model("nothing")
