"""ReferenceLogProbs: computed once, cached, and rejected for other data or another model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from quiet_trainer import quiet_trainer
from safetensors.torch import save_file

from callbacks import ReferenceLogProbs
from lit_adaptive.data import Arithmetic, DemonstrationDataset, DemonstrationsDataModule
from lit_adaptive.modules import IWSFT, ConfiguredLM, Optimization

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
]


def model(seed: int = 1, **options: Any) -> IWSFT:
    recipe = ConfiguredLM(hidden_size=32, layers=1, heads=2, max_positions=32, seed=seed)
    return IWSFT(recipe, optimization=Optimization(learning_rate=0.05), max_new_tokens=0, **options)


def data(**options: Any) -> DemonstrationsDataModule:
    return DemonstrationsDataModule(
        DemonstrationDataset(Arithmetic(**({"split": "train", "size": 30} | options))),
        batch_size=8,
        seed=0,
    )


def fit(
    module: IWSFT,
    datamodule: DemonstrationsDataModule,
    call: ReferenceLogProbs,
    **options: Any,
) -> Trainer:
    seed_everything(0, verbose=False)
    trainer = quiet_trainer(
        **{"max_steps": 2} | options,
        callbacks=[call],
    )
    trainer.fit(module, datamodule)
    return trainer


class Counted(IWSFT):
    """Counts the batches scored."""

    scored = 0

    def token_log_probs(self, batch: dict[str, Any]) -> torch.Tensor:
        self.scored += 1
        return super().token_log_probs(batch)


def counted() -> Counted:
    recipe = ConfiguredLM(hidden_size=32, layers=1, heads=2, max_positions=32, seed=1)
    return Counted(recipe, optimization=Optimization(learning_rate=0.05), max_new_tokens=0)


def test_every_token_has_the_log_probability_of_the_initial_model() -> None:
    module, datamodule = model(), data()
    fit(module, datamodule, ReferenceLogProbs())
    fresh = module.recipe.build(datamodule.tokenizer)
    batch = datamodule.dataset.gather(torch.arange(30))
    logits = fresh.model(
        batch["input_ids"], attention_mask=torch.ones_like(batch["input_ids"])
    ).logits.flatten(0, 1)[batch["position"]]
    expected = logits.log_softmax(-1).gather(1, batch["target"][:, None])[:, 0].detach()
    torch.testing.assert_close(batch["ref_log_probs"], expected, rtol=1e-4, atol=1e-5)


def test_a_file_is_written_once_and_read_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "reference.safetensors"
    first, second = counted(), counted()
    writer, reader = ReferenceLogProbs(str(path)), ReferenceLogProbs(str(path))
    fit(first, data(), writer)
    fit(second, data(), reader)
    assert (first.scored, second.scored) == (1, 0)  # 30 samples in one batch of 32
    assert torch.equal(writer.state_dict()["log_probs"], reader.state_dict()["log_probs"])


@pytest.mark.parametrize(
    ("module", "datamodule", "words"),
    [
        (lambda: model(seed=2), data, "computed with another model: delete it"),
        (model, lambda: data(seed=1), "computed with another data or tokenizer: delete it"),
        (lambda: model(seed=2), lambda: data(size=29), "another data or tokenizer and another mod"),
    ],
)
def test_a_file_of_another_model_or_other_data_is_rejected(
    module: Any, datamodule: Any, words: str, tmp_path: Path
) -> None:
    path = str(tmp_path / "reference.safetensors")
    fit(model(), data(), ReferenceLogProbs(path))
    with pytest.raises(ValueError, match=words):
        fit(module(), datamodule(), ReferenceLogProbs(path))


def test_a_file_without_log_probabilities_is_named(tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"
    path.write_text("no tensors here")
    with pytest.raises(ValueError, match="is not a file of reference log-probabilities"):
        fit(model(), data(), ReferenceLogProbs(str(path)))
    save_file({"other": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="is not a file of reference log-probabilities"):
        fit(model(), data(), ReferenceLogProbs(str(path)))


def test_a_run_resumes_with_the_reference_of_its_checkpoint(tmp_path: Path) -> None:
    trainer = fit(module := model(), data(), call := ReferenceLogProbs())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert module is trainer.lightning_module
    again = counted()
    resumed = ReferenceLogProbs()
    seed_everything(0, verbose=False)
    more = quiet_trainer(
        max_steps=3,
        callbacks=[resumed],
    )
    more.fit(again, data(), ckpt_path=tmp_path / "last.ckpt")
    assert again.scored == 0
    assert torch.equal(resumed.state_dict()["log_probs"], call.state_dict()["log_probs"])
    with pytest.raises(ValueError, match=r"are not those of the checkpoint: prompt, completion"):
        quiet_trainer(
            max_steps=4,
            callbacks=[ReferenceLogProbs()],
        ).fit(counted(), data(seed=5), ckpt_path=tmp_path / "last.ckpt")


def test_a_model_that_gives_nan_is_rejected() -> None:
    class Broken(Counted):
        def token_log_probs(self, batch: dict[str, Any]) -> torch.Tensor:
            return super().token_log_probs(batch) * torch.nan

    recipe = ConfiguredLM(hidden_size=32, layers=1, heads=2, max_positions=32, seed=1)
    with pytest.raises(ValueError, match=r"gives \d+ of \d+ tokens .* not finite"):
        fit(Broken(recipe, max_new_tokens=0), data(), ReferenceLogProbs())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"path": "reference.pt"}, r"must end in .safetensors"),
        ({"after_epochs": -1}, "after_epochs is -1"),
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ReferenceLogProbs(**options)


def test_a_reference_after_the_last_epoch_is_refused() -> None:
    recipe = ConfiguredLM(hidden_size=32, layers=1, heads=2, max_positions=32, seed=1)
    with pytest.raises(ValueError, match=r"after_epochs is 1 and .* max_epochs 1"):
        fit(
            IWSFT(recipe, max_new_tokens=0), data(), ReferenceLogProbs(after_epochs=1), max_epochs=1
        )
