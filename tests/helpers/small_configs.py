"""Options that make the data of a config small."""

from pathlib import Path
from typing import Any

import yaml


def small_data(path: Path) -> list[str]:
    """Options by which the datasets and the replay of a config are small, and soon built."""
    data = yaml.safe_load(path.read_text())["data"]["init_args"]
    return ["--data.capacity=500"] * ("capacity" in data) + _small("data", data)


def _small(option: str, node: dict[str, Any]) -> list[str]:
    found: list[str] = []
    for name, value in node.items():
        if isinstance(value, dict):
            found += _small(option if name == "init_args" else f"{option}.{name}", value)
        elif name == "size" and value > 200:
            found.append(f"--{option}.size=200")
        elif value == "lit_adaptive.data.TaskQuestions":
            found.append(f"--{option}.per_class=10")
    return found
