"""Options of a config, for comparisons."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]


def read_config(path: Path) -> dict[str, Any]:
    """Content of a config file.

    Raises:
        ValueError: if it is missing, or not a mapping in YAML.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist: give the path of a config")
    try:
        tree = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path} is not a config: it must be a mapping, such as model: ...")
    return tree


def options_of(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Path and value of each option; callbacks by their class instead of their place."""
    if isinstance(node, list):
        named = {
            each["class_path"].rsplit(".", 1)[-1]: each.get("init_args") or {}
            for each in node
            if isinstance(each, dict) and "class_path" in each
        }
        if len(named) < len(node):  # not a list of parts
            yield path, node
            return
        node = {name: options or None for name, options in named.items()}
    if not isinstance(node, dict):
        yield path, node
        return
    for name, value in node.items():
        own = name in ("class_path", "init_args")  # a class is the value of its option
        inner = path if own else f"{path}.{name}".removeprefix(".")
        yield from options_of(value, inner)
