"""A sharded checkpoint of two processes is exported as that of one process."""

from pathlib import Path

import pytest
import torch
from resumed_runs import CONFIG, TRAINER, run
from safetensors.torch import load_file

from lit_adaptive.cli.main import main

MODEL = "{hidden_size: 32, layers: 2, heads: 2, max_positions: 64, seed: 0%s}"
LORA = ", lora: {class_path: lit_adaptive.modules.LoRA, init_args: {rank: 4}}"


@pytest.mark.multiprocess
@pytest.mark.parametrize("lora", ["", LORA])
def test_two_sharded_processes_export_what_one_exports(lora: str, tmp_path: Path) -> None:
    common = [
        *("-m", "lit_adaptive", "fit", "--config", str(CONFIG.parent / "sft.yaml")),
        *("--model.model.init_args", MODEL % lora, "--trainer.max_epochs=1"),
        *("--data.dataset.source.size=64", "--data.val_dataset=null"),
        "--trainer.callbacks+=recorder.Recorder",
    ]
    exported = []
    for ranks, more in (
        (1, ["--data.batch_size=8"]),
        (2, ["--config", str(TRAINER / "fsdp2.yaml"), "--data.batch_size=4"]),
    ):
        folder = tmp_path / str(ranks)
        run([*common, *more, f"--trainer.callbacks.folder={folder}", f"--runs={folder}"])
        (checkpoint,) = folder.glob("sft/*/checkpoints/last.ckpt")
        assert checkpoint.is_dir() == (ranks == 2)
        main(["export", str(checkpoint), str(folder / "out"), *(["--merge"] if lora else [])])
        exported.append(load_file(folder / "out" / "model.safetensors"))
    assert exported[0].keys() == exported[1].keys()
    for name, weight in exported[0].items():
        torch.testing.assert_close(exported[1][name], weight, rtol=1e-4, atol=1e-5)
    if not lora:
        end = torch.load(tmp_path / "2" / "end-0.pt", weights_only=True)["parameters"]
        for name, weight in exported[1].items():
            assert torch.equal(end[f"language.model.{name}"], weight), name
