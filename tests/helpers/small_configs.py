"""Configs with small data and few steps."""

import json
from pathlib import Path
from typing import Any

import yaml

from lit_adaptive.data import Arithmetic, PromptDataset


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


def pass_rate_table(folder: Path, arithmetic: dict[str, Any]) -> str:
    """A table of two policies' pass rates on the prompts of ``Arithmetic``."""
    ids = PromptDataset(Arithmetic(**arithmetic)).ids
    rows = [
        {"policy": policy, "prompt_id": one, "pass_rate": (place % 5) / 4}
        for policy in ("a", "b")
        for place, one in enumerate(ids)
    ]
    path = folder / "pass_rates.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def shrunk(
    tree: dict[str, Any], folder: Path, *, epochs: int = 1, steps: int = 2
) -> dict[str, Any]:
    """The experiment ``tree`` with a few ``steps`` of everything that takes long."""
    trainer, data = tree["trainer"], tree["data"]["init_args"]
    trainer |= {"max_epochs": epochs, "check_val_every_n_epoch": 1, "limit_val_batches": 1}
    trainer |= {"log_every_n_steps": 1, "enable_progress_bar": False}
    if "steps_per_epoch" in data:
        data |= {"steps_per_epoch": steps, "batch_size": 4}
    else:
        trainer["limit_train_batches"] = 2 * steps
    if "table" in data:
        source = data["dataset"]["source"]["init_args"]
        source["size"] = 100
        data |= {"table": pass_rate_table(folder, source), "references": 8, "batch_size": 32}
    if "capacity" in data:
        data |= {"capacity": 500, "evaluation_episodes": 1}
    names = [callback["class_path"].rsplit(".", 1)[-1] for callback in trainer["callbacks"]]
    if "InfluenceRefresh" in names:
        data["dataset"]["source"]["init_args"]["size"] = 400
    for callback in trainer["callbacks"]:
        options = callback.setdefault("init_args", {})
        match callback["class_path"].rsplit(".", 1)[-1]:
            case "SupervisedWarmup":  # a prompt without any success has no gradient
                options["steps"] = 300 if "InfluenceRefresh" in names else steps
            case "TransitionCollector":
                options["warmup"] = 100
            case "PassAtK":
                options["every_n_epochs"] = 1
            case "ReferenceLogProbs":
                options["after_epochs"] = 0
            case "ReducibleLossSelector":
                options["holdout"] = str(folder / "holdout.ckpt")
            case "ModelCheckpoint" if "dirpath" in options:
                options["dirpath"] = str(folder / "checkpoints")
            case _:
                pass
    return tree
