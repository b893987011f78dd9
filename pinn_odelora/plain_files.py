"""YAML and JSON of others, read as plain values: such a file makes no objects, and is not larger than it looks.

YAML can refer to a part of itself by an alias, and nine lines of nine aliases each are 9⁹ values; JSON and YAML can be
nested more deeply than Python can follow, or follow in time. No file of this program is either, and both are refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

PARSER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""That of C where there is one, which is not slow in what is nested."""
DEPTH = 50
"""Of YAML: lists and maps inside of each other."""


def read_yaml_text(path: Path) -> str:
    """The text of a YAML file, for a reader that makes plain values of it.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not YAML in UTF-8, or has aliases or tags.
    """
    text = path.read_text(encoding="utf-8")
    try:
        depth = 0
        for event in yaml.parse(text, Loader=PARSER):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("it refers to parts of itself")
            if getattr(event, "tag", None) is not None:
                raise ValueError("it has tags")  # which may call things, or fail in any way: !!int ''
            if depth > DEPTH:
                raise ValueError("it is nested too deeply")
    except yaml.YAMLError as error:
        raise ValueError(f"it is no YAML ({type(error).__name__})") from None
    return text


def read_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not YAML, or has aliases or tags.
    """
    try:
        return yaml.safe_load(read_yaml_text(path))
    except yaml.YAMLError as error:
        raise ValueError(f"it is no YAML of plain values ({type(error).__name__})") from None


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_mapping(path: Path) -> dict[str, Any]:
    """The names with values that a JSON file holds.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not JSON, or holds something else.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"it holds a {type(found).__name__} in place of names with values")
    return found
