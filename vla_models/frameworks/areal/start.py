"""Starts a native configuration: ``python -m vla_models.frameworks.areal.start RUN/areal/native.yaml`` (a dry run wrote it).

The warm start is not part of it. The run folder must be whole: config.yaml, the model to start from, ``areal/settings.json``
and ``areal/scenes.json``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from vla_models.config import VLAConfig
from vla_models.errors import CheckpointError
from vla_models.frameworks.areal import compat, runner
from vla_models.frameworks.areal import native as native_config
from vla_models.frameworks.run_folder import FrameworkRun
from vla_models.frameworks.user_code import import_sources
from vla_models.yaml_source import YamlSource


def start(path: Path) -> Path:
    """Run ``path``, as it is now; returns the run's folder."""
    compat.require()
    import_sources()
    folder = path.resolve().parent.parent
    scenes = folder / "areal" / runner.SCENES
    if not scenes.is_file():
        raise CheckpointError(f"{path} is not in a run folder: there is no {scenes}; make one with vla-models train --dry-run")
    native = YamlSource.read(path).data
    native_config.check(native)
    config = VLAConfig.from_yaml(folder / "config.yaml")
    record = FrameworkRun(config, folder)
    runner.adopt(record)
    record.prepare()
    found = json.loads(scenes.read_text(encoding="utf-8"))
    evaluation = runner.run(native, record, found["train"], found["heldout"])
    return record.finish(config.training.steps, lambda: evaluation)


if __name__ == "__main__":
    print(start(Path(sys.argv[1])))
