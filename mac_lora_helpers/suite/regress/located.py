"""YAML with the line of every value, so that a mistake can be told with its place."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from mac_lora_helpers.errors import InputError
from mac_lora_helpers.files import portable

Model = TypeVar("Model", bound=BaseModel)
Keys = tuple[str | int, ...]


@dataclass
class Located:
    """A file's plain data, and the line (from 1) of every key or list item in it."""

    file: Path
    data: Any
    lines: dict[Keys, int] = field(default_factory=dict)

    def place(self, *path: str | int) -> str:
        """``file:line`` of the nearest thing on the way to ``path`` that the file holds."""
        while path and path not in self.lines:
            path = path[:-1]
        return f"{portable(str(self.file))}:{self.lines.get(path, 1)}"

    def error(self, what: str, *path: str | int, fix: str) -> InputError:
        return InputError(what, where=self.place(*path), fix=fix)


def read(file: Path) -> Located:
    """Reads YAML (JSON is YAML too).

    Raises:
        InputError: no such file, not YAML, or one key twice.
    """
    try:
        text = file.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        found = Located(file, None)
        found.data = _plain(node, (), found) if node is not None else None
    except (OSError, UnicodeError) as error:
        raise InputError(f"the file cannot be read: {error}", where=portable(str(file)), fix="check the path") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        what = getattr(error, "problem", None) or "it cannot be parsed"
        raise InputError(f"not YAML: {what}", where=f"{portable(str(file))}:{line}", fix="mend that line") from None
    except RecursionError:
        raise InputError("the file holds itself, or is nested too deep", where=portable(str(file)), fix="mend its aliases") from None
    return found


def _plain(node: Any, path: Keys, found: Located) -> Any:
    found.lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, found)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*path, index), found) for index, item in enumerate(node.value)]
    return yaml.constructor.SafeConstructor().construct_object(node)


def _mapping(node: Any, path: Keys, found: Located) -> dict[str, Any]:
    values: dict[str, Any] = {}
    merged: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key, line = str(key_node.value), key_node.start_mark.line + 1
        if key == "<<" and isinstance(value_node, yaml.MappingNode):
            merged = _plain(value_node, path, found)
            continue
        if key in values:
            raise InputError(f"{key!r} stands there twice", where=f"{portable(str(found.file))}:{line}", fix="keep one of the two")
        found.lines[(*path, key)] = line
        values[key] = _plain(value_node, (*path, key), found)
    return {**merged, **values}


def checked(model: type[Model], found: Located, value: Any, *path: str | int) -> Model:
    """``value`` as a pydantic model; every mistake in it is told with its line, unknown keys with the nearest known one.

    Raises:
        InputError: it does not fit.
    """
    if not isinstance(value, Mapping):
        raise found.error(f"a mapping is wanted here, not {type(value).__name__}", *path, fix=f"keys: {', '.join(model.model_fields)}")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        told = [_told(model, item) for item in error.errors()]
        places = [found.place(*path, *item["loc"]) for item in error.errors()]
        fix = "; ".join(dict.fromkeys(fix for _, fix in told if fix)) or f"keys: {', '.join(model.model_fields)}"
        raise InputError("; ".join(what for what, _ in told), where=", ".join(dict.fromkeys(places)), fix=fix) from None


def _told(model: type[BaseModel], item: Any) -> tuple[str, str]:
    name = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"unknown key {name!r}", nearest(name.rsplit(".", 1)[-1], model.model_fields)
    if item["type"] == "missing":
        return f"{name} is missing", ""
    message = item["msg"].removeprefix("Value error, ")
    return f"{name}: {message[:1].lower()}{message[1:]}" if name else message, ""


def nearest(name: str, known: Iterable[str]) -> str:
    """``did you mean …?`` with the known name that is nearest, or the list of them."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"one of: {', '.join(known)}"
