"""A sharded checkpoint of two processes is exported as that of one process."""

from pathlib import Path

import pytest
import torch
from quiet_trainer import quiet_trainer
from resumed_runs import CONFIG, TRAINER, run
from safetensors.torch import load_file
from tiny_language import demonstrations

from lit_adaptive.cli.main import main
from lit_adaptive.data import DemonstrationsDataModule
from lit_adaptive.modules import IWSFT, ConfiguredLM

MODEL = "{hidden_size: 32, layers: 2, heads: 2, max_positions: 64, seed: 0%s}"
LORA = ", lora: {class_path: lit_adaptive.modules.LoRA, init_args: {rank: 4}}"


pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


@pytest.mark.multiprocess
@pytest.mark.parametrize("lora", ["", LORA])
def test_two_sharded_processes_export_what_one_exports(lora: str, tmp_path: Path) -> None:
    common = [
        *("fit", "--config", str(CONFIG.parent / "sft.yaml")),
        *("--model.model.init_args", MODEL % lora, "--trainer.max_epochs=1"),
        *("--data.dataset.source.size=64", "--data.val_dataset=null"),
        *("--trainer.log_every_n_steps=1", "--trainer.callbacks+=recorder.Recorder"),
    ]
    exported = []
    for ranks, more in (
        (1, ["--data.batch_size=8"]),
        (2, ["--config", str(TRAINER / "fsdp2.yaml"), "--data.batch_size=4"]),
    ):
        folder = tmp_path / str(ranks)
        arguments = [*common, f"--trainer.callbacks.folder={folder}", *more, f"--runs={folder}"]
        main(arguments) if ranks == 1 else run(["-m", "lit_adaptive", *arguments])
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
        weights = str(next((tmp_path / "2").glob("sft/*/checkpoints/last.ckpt")))
        recipe = ConfiguredLM(hidden_size=32, layers=2, heads=2, max_positions=64)
        module = IWSFT(recipe, objective="nll", weights=weights, max_new_tokens=0)
        dataset = demonstrations().dataset
        quiet_trainer().validate(module, DemonstrationsDataModule(dataset, val_dataset=dataset))
        state = module.transformer.state_dict()
        assert all(torch.equal(state[name], weight) for name, weight in exported[1].items())
