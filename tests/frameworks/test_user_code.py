"""A class that a script registered is found in another process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import small_models

from vla_models.config import VLAConfig
from vla_models.errors import RegistryError
from vla_models.frameworks.user_code import SOURCES, import_sources, remember_sources, sources_of
from vla_models.model_registry import create_model, register_framework_adapter
from vla_models.models.tiny_vla import TinyVLA

SCRIPT = """
import json, os, subprocess, sys
from vla_models import VLAForDriving, register_vla_model
from vla_models.frameworks.user_code import SOURCES, sources_of

@register_vla_model("scripted")
class Scripted(VLAForDriving):
    pass

if __name__ == "__main__":
    code = (
        "from vla_models.frameworks.user_code import import_sources; import_sources(); import_sources();"
        "from vla_models import VLAModelRegistry; print(VLAModelRegistry.get_model('scripted').__name__)"
    )
    environment = {**os.environ, SOURCES: sources_of(Scripted)}
    print(subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True))
"""


def test_a_scripts_model_is_registered_in_a_worker(tmp_path: Path) -> None:
    script = tmp_path / "my_script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script)], env=dict(os.environ), cwd=Path.cwd(), capture_output=True, text=True, check=True
    )
    assert "stdout='Scripted\\n'" in done.stdout, done.stdout


def test_our_own_classes_need_no_source() -> None:
    assert json.loads(sources_of(TinyVLA)) == []


def test_a_source_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "broken.py"
    file.write_text("raise ValueError('no such weights')")
    monkeypatch.setenv(SOURCES, json.dumps([{"module": "__main__", "file": str(file)}]))
    with pytest.raises(RegistryError, match=r"broken\.py.*cannot be imported by a worker: ValueError: no such weights"):
        import_sources()
    monkeypatch.setenv(SOURCES, json.dumps([{"module": "__main__", "file": str(tmp_path / "gone.py")}]))
    with pytest.raises(RegistryError, match="there is no file"):
        import_sources()
    monkeypatch.setenv(SOURCES, "[]")
    import_sources()


def test_a_run_names_its_own_classes_and_no_others(registry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    @register_framework_adapter("areal", "small_gaussian")
    def adapter(config: Any) -> Any:
        return create_model("small_gaussian")

    monkeypatch.setenv(SOURCES, "[]")  # put back afterwards
    navsim = {"framework": "areal", "environment": {"type": "navsim"}}
    remember_sources(VLAConfig.from_dict({**navsim, "model": {"name": "small_gaussian"}}))
    assert {source["module"] for source in json.loads(os.environ[SOURCES])} == {small_models.__name__, __name__}
    remember_sources(VLAConfig.from_dict({**navsim, "model": {"name": "tiny_vla"}}))
    assert json.loads(os.environ[SOURCES]) == []
