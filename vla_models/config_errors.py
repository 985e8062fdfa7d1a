"""From pydantic's errors to sentences: the key's path, the value, what is allowed, the nearest known key, the line."""

from __future__ import annotations

import types
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from vla_models.errors import did_you_mean
from vla_models.yaml_source import KeyPath, YamlSource

Problem: TypeAlias = tuple[KeyPath, str]
"""Where, and what is wrong."""

_KINDS = {int: "an integer", float: "a number", str: "a string", bool: "true or false", list: "a list", dict: "a mapping"}
_BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


class Problems(ValueError):
    """Problems that a whole configuration has although each value alone is fine."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(f"{'.'.join(map(str, path))}: {message}" for path, message in problems))
        self.problems = problems


def describe_problems(error: ValidationError, root: type[BaseModel], source: YamlSource) -> str:
    """One line for each problem in ``error``."""
    lines = []
    for item in error.errors():
        if item["type"] == "default_factory_not_called":  # another key, on which this default depends, has an error of its own
            continue
        cause = item.get("ctx", {}).get("error")
        found: list[Problem] = cause.problems if isinstance(cause, Problems) else [(item["loc"], _message(item, root))]
        for path, message in found:
            dotted = ".".join(map(str, path)) or "the configuration"
            value = _value_at(source.data, path) if isinstance(cause, Problems) else item["input"]
            got = (
                ""
                if item["type"] in ("extra_forbidden", "missing") or value is _ABSENT
                else f"got {value!r} ({type(value).__name__}); "
            )
            lines.append(f"{dotted}: {got}{message}{source.where(path)}")
    if len(lines) == 1:
        return lines[0]
    return f"{len(lines)} problems in {source.name or 'the configuration'}:\n" + "\n".join(f"  {line}" for line in lines)


_ABSENT = object()


def _value_at(data: Any, path: KeyPath) -> Any:
    for key in path:
        if not isinstance(data, dict) or key not in data:
            return _ABSENT
        data = data[key]
    return data


def _message(item: Any, root: type[BaseModel]) -> str:
    """What is wrong with one value, in our words."""
    if item["type"] == "value_error":  # raised by one of our validators
        return str(item["ctx"]["error"])
    if item["type"] == "extra_forbidden":
        section = _annotation(root, item["loc"][:-1])
        fields = section.model_fields if isinstance(section, type) and issubclass(section, BaseModel) else {}
        return f"unknown key; {did_you_mean(str(item['loc'][-1]), fields)}"
    owner = _annotation(root, item["loc"][:-1])
    name = item["loc"][-1] if item["loc"] else ""
    if item["type"] == "missing":
        return "this key is missing; its section needs it"
    if item["type"] == "literal_error" and isinstance(item["input"], str):
        return f"it is not among the {did_you_mean(item['input'], map(str, get_args(_annotation(root, item['loc']))))}"
    if isinstance(owner, type) and issubclass(owner, BaseModel) and name in owner.model_fields:
        return f"expected {_expected(owner.model_fields[str(name)])}"
    inner = _annotation(root, item["loc"])
    return f"expected {_kind(inner)}" if inner is not Any else str(item["msg"])


def _annotation(root: type[BaseModel], path: KeyPath) -> Any:
    """The type that the schema gives to the key at ``path`` (Any where it says nothing)."""
    current: Any = root
    for key in path:
        current = _without_none(current)
        if isinstance(current, type) and issubclass(current, BaseModel):
            current = current.model_fields[str(key)].annotation if key in current.model_fields else Any
        elif get_origin(current) in (dict, list):
            current = get_args(current)[-1]
        else:
            return Any
    return _without_none(current)


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        rest = [a for a in get_args(annotation) if a is not type(None)]
        return rest[0] if len(rest) == 1 else annotation
    return annotation


def _expected(field: FieldInfo) -> str:
    """ "a number > 0", "one of grpo, ppo", "an integer >= 1 or null"."""
    parts = [_kind(_without_none(field.annotation))]
    bounds = []
    for constraint in field.metadata:
        bounds += [
            f"{sign} {getattr(constraint, name)}"
            for name, sign in _BOUNDS.items()
            if getattr(constraint, name, None) is not None
        ]
        if getattr(constraint, "multiple_of", None) is not None:
            bounds.append(f"a multiple of {constraint.multiple_of}")
        if getattr(constraint, "pattern", None) is not None:
            bounds.append(f"matching {constraint.pattern}")
    if bounds:
        parts.append(" and ".join(bounds))
    if _without_none(field.annotation) is not field.annotation:
        parts.append("or null")
    return " ".join(parts)


def _kind(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(map(str, get_args(annotation)))
    origin = get_origin(annotation) or annotation
    if origin in (list, dict):
        inner = get_args(annotation)
        return _KINDS[origin] + (
            f" of {_KINDS[inner[-1]].split(' ', 1)[1]}s" if inner and inner[-1] in (int, float, str) else ""
        )
    if isinstance(origin, type) and issubclass(origin, BaseModel):
        return f"a section with the keys {', '.join(origin.model_fields)}"
    return _KINDS.get(origin, str(annotation))
