"""Who drives: the checkpoint or the baseline that ``eval`` and ``view`` are given, and the configuration that goes with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vla_models.cli.train import read_config
from vla_models.errors import CheckpointError, ConfigError, did_you_mean
from vla_models.yaml_source import YamlSource

if TYPE_CHECKING:
    from vla_models.config import VLAConfig
    from vla_models.interface import VLAForDriving


@dataclass(frozen=True)
class Policy:
    """A driver and where it drives."""

    name: str
    """The checkpoint's path, or the baseline's name."""
    settings: VLAConfig
    is_baseline: bool

    def load(self) -> VLAForDriving:
        """The checkpoint's model."""
        from vla_models.interface import VLAForDriving

        model = VLAForDriving.from_pretrained(self.name).eval()
        model.require("evaluated")
        return model


def baselines(kind: str) -> tuple[str, ...]:
    """Names of the planners that need no model, for environment ``kind``."""
    if kind == "bench2drive":
        from vla_models.training.evaluate_routes import ROUTE_BASELINES

        return tuple(ROUTE_BASELINES)
    from vla_models.training.evaluate import BASELINES

    return tuple(BASELINES)


def find_policy(what: str, config: Path | None, overrides: Sequence[str], kind: str | None = None) -> Policy:
    """What ``what`` means: a run's folder, a checkpoint, or a baseline's name.

    The configuration is ``config``, else the run's own (the defaults where ``overrides`` name another type of environment than
    the run's: its other keys mean nothing there), else the defaults. ``kind``: the type of environment where nothing says it. A
    baseline that only Bench2Drive has means that type.

    Raises CheckpointError for a path without a model, ConfigError for a configuration that cannot be, or a baseline of another
    environment.
    """
    path = Path(what)
    names = {name: [env for env in ("navsim", "bench2drive") if name in baselines(env)] for name in _all_baselines()}
    if what in names and not path.exists():
        default = kind or (names[what][0] if len(names[what]) == 1 else None)
        settings = _settings(config, overrides, default)
        if what not in (here := baselines(settings.environment.type)):
            raise ConfigError(f"{what} is no baseline of {settings.environment.type}; {did_you_mean(what, here)}")
        return Policy(what, settings, is_baseline=True)
    if not path.exists():
        raise CheckpointError(f"there is no checkpoint folder {what!r}, and no such baseline; {did_you_mean(what, names)}")
    checkpoint = checkpoint_in(path)
    own = next((p for p in (path / "config.yaml", path.parent.parent / "config.yaml") if p.is_file()), None)
    if config is None and own is not None:
        there = read_config(own, []).environment.type
        wanted = _type_in(overrides) or kind or there
        config = own if wanted == there else None
    return Policy(str(checkpoint), _settings(config, overrides, kind), is_baseline=False)


def checkpoint_in(path: Path) -> Path:
    """The model checkpoint that ``path`` means: itself, or the newest of a run (after RL, else after imitation)."""
    from vla_models.pretrained import is_checkpoint, read_config

    for folder in (path, path / "checkpoints" / "model", path / "checkpoints" / "imitation"):
        if is_checkpoint(folder):
            return folder
    if (path / "config.yaml").is_file():
        raise CheckpointError(f"run {str(path)!r} has no finished model yet; go on with it: vla-models train --resume {path}")
    read_config(path)  # says what is wrong with it
    raise CheckpointError(f"{str(path)!r} holds no model")


def _settings(config: Path | None, overrides: Sequence[str], kind: str | None) -> VLAConfig:
    """The configuration, of environment type ``kind`` where neither the file nor the overrides say one."""
    if config is None and kind is not None and _type_in(overrides) is None:
        overrides = [f"environment.type={kind}", *overrides]
    return read_config(config, list(overrides))


def _type_in(overrides: Sequence[str]) -> str | None:
    """The environment type that overrides ask for."""
    source = YamlSource({})
    source.override(overrides)
    section = source.data.get("environment")
    value = section.get("type") if isinstance(section, dict) else None
    return None if value is None else str(value)


def _all_baselines() -> list[str]:
    return list(dict.fromkeys([*baselines("navsim"), *baselines("bench2drive")]))
