"""Reading YAML so that an error can say where: values, the line of every key, dotted overrides.

Two things differ from PyYAML's defaults: ``1e-4`` is a float (YAML 1.2; PyYAML's 1.1 makes it a string), and a key that is
given twice is an error instead of the last one winning.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vla_models.errors import ConfigError

KeyPath = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's floats."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"), list("-+0123456789.")
)


@dataclass
class YamlSource:
    """A mapping read from YAML, and where each of its keys came from."""

    data: Any
    name: str = ""
    """The file's name, for messages; empty where there is no file."""
    origins: dict[KeyPath, str] = field(default_factory=dict)
    """key path -> "run.yaml line 12" or "command line"."""

    @classmethod
    def read(cls, path: Path) -> YamlSource:
        """Read a file; ``ConfigError`` if it is missing, not YAML, or not a mapping. An empty file is an empty mapping."""
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            beside = sorted(p.name for p in path.parent.glob("*.y*ml"))[:8] if path.parent.is_dir() else []
            hint = f"; {path.parent} has {', '.join(beside)}" if beside else ""
            raise ConfigError(f"there is no configuration file {str(path)!r} (looked in {Path.cwd()}){hint}") from None
        except (OSError, UnicodeDecodeError) as e:
            raise ConfigError(f"the configuration file {str(path)!r} cannot be read: {e}") from e
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str, name: str = "") -> YamlSource:
        """Read YAML text."""
        try:
            loader = _Loader(text)
            try:
                node = loader.get_single_node()
                source = cls({}, name)
                if node is not None:
                    source._locate(node, ())
                    source.data = loader.construct_document(node)
            finally:
                loader.dispose()
        except yaml.YAMLError as e:
            raise ConfigError(f"{name or 'the YAML text'} is not valid YAML: {' '.join(str(e).split())}") from e
        if source.data is None:
            source.data = {}
        if not isinstance(source.data, dict):
            raise ConfigError(
                f"{name or 'the YAML text'} holds a {type(source.data).__name__}; expected a mapping (key: value)"
            )
        return source

    def override(self, assignments: Iterable[str]) -> None:
        """Set values from ``a.b.c=value`` strings; values are YAML (``1e-4``, ``true``, ``[Town01, Town02]``, ``null``)."""
        for assignment in assignments:
            dotted, equals, text = assignment.partition("=")
            keys = dotted.strip().split(".")
            if not equals or not all(keys):
                raise ConfigError(f"override {assignment!r}: expected key=value, as in training.steps=100")
            try:
                value = yaml.load(text, Loader=_Loader)
            except yaml.YAMLError as e:
                raise ConfigError(f"override {assignment!r}: {text!r} is not valid YAML: {' '.join(str(e).split())}") from e
            section = self.data
            for i, key in enumerate(keys[:-1]):
                if section.get(key) is None:
                    section[key] = {}
                if not isinstance(section[key], dict):
                    raise ConfigError(f"override {assignment!r}: {'.'.join(keys[: i + 1])} is {section[key]!r}, not a section")
                section = section[key]
            section[keys[-1]] = value
            path = tuple(keys)
            self.origins = {p: where for p, where in self.origins.items() if p[: len(path)] != path}
            self.origins[path] = "command line"

    def where(self, path: KeyPath) -> str:
        """ " (run.yaml line 12)" for the nearest enclosing key whose origin is known, or ""."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.origins:
                return f" ({self.origins[path[:end]]})"
        return f" ({self.name})" if self.name else ""

    def _locate(self, node: yaml.Node, path: KeyPath) -> None:
        """Remember the line of every key below ``node``; refuse a key that is given twice."""
        if isinstance(node, yaml.SequenceNode):
            for i, item in enumerate(node.value):
                self._locate(item, (*path, i))
        if not isinstance(node, yaml.MappingNode):
            return
        seen: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen and name != "<<":
                dotted = ".".join(map(str, (*path, name)))
                raise ConfigError(f"{dotted}: given twice (lines {seen[name]} and {line} of {self.name or 'the YAML text'})")
            seen[name] = line
            self.origins[(*path, name)] = f"{self.name or 'YAML'} line {line}"
            self._locate(value, (*path, name))


def dump(data: Mapping[str, Any]) -> str:
    """YAML text that ``YamlSource.parse`` reads back to equal values."""
    return yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True, width=120)
