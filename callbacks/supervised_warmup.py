"""Before policy gradients: some plain fine-tuning, so that there is something to reward."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from callbacks._shared import private_rng
from lit_adaptive.data.seeding import derive_seed
from lit_adaptive.data.text.demonstration_dataset import DemonstrationDataset
from lit_adaptive.modules.language_model import read
from lit_adaptive.modules.optimization import adamw, learning_rate_schedule

_STREAM = 7


class SupervisedWarmup(Callback):
    """Fine-tunes the policy on demonstrations before the first step of a run that begins.

    A model that never answers rightly learns nothing from rewards. Every rank takes the same
    batches, so all stay equal. A resumed run is not warmed up again, nor is a test.

    Needs: ``data.tokenizer`` and ``model.sample`` (a policy).
    Changes: the policy's weights, before training; nothing afterwards.

    Args:
        dataset: of ``prompt`` and ``completion``, as ``DemonstrationDataset`` reads them; by
            default none, and nothing happens.
        steps: optimizer steps, at least 0.
        batch_size: demonstrations of a step, above 0.
        learning_rate: of AdamW, above 0; it falls to 0 in a line.
        chat: put prompts and completions into the chat template.

    Raises:
        ValueError: naming the argument that is out of its range.
    """

    needs = frozenset({"data.tokenizer", "model.sample"})
    provides: frozenset[str] = frozenset()
    remedies = {  # noqa: RUF012
        "data.tokenizer": "use lit_adaptive.data.RolloutDataModule",
        "model.sample": "train a language model, such as lit_adaptive.modules.GRPO",
    }

    def __init__(
        self,
        dataset: Any = None,
        steps: int = 200,
        batch_size: int = 64,
        learning_rate: float = 1e-3,
        chat: bool = False,
    ) -> None:
        if steps < 0:
            raise ValueError(f"steps is {steps}; it must be at least 0")
        if batch_size <= 0:
            raise ValueError(f"batch_size is {batch_size}; it must be above 0")
        if not learning_rate > 0:
            raise ValueError(f"learning_rate is {learning_rate}; it must be above 0")
        self.dataset, self.steps, self.batch_size = dataset, steps, batch_size
        self.learning_rate, self.chat = learning_rate, chat

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fine-tune, unless the run goes on from a checkpoint."""
        if self.dataset is None or trainer.global_step > 0 or trainer.fit_loop.restarting:
            return
        data, model = trainer.datamodule, pl_module  # type: ignore[attr-defined]
        shown = DemonstrationDataset(self.dataset, data.tokenizer, chat=self.chat)
        with (
            private_rng(derive_seed(data.seed, _STREAM)),
            trainer.precision_plugin.forward_context(),
        ):
            loss = self._fine_tune(shown, model, trainer)
        rank_zero_info(f"warm-up: {self.steps} steps on {shown.source}, loss {loss:.3f}")

    def _fine_tune(self, shown: DemonstrationDataset, model: Any, trainer: Trainer) -> float:
        parameters = [each for each in model.policy.parameters() if each.requires_grad]
        optimizer = adamw(parameters, self.learning_rate, 0.0, (0.9, 0.999), fused=False)
        falling = learning_rate_schedule(optimizer, "linear", 0.0, self.steps)
        loss = torch.zeros(())
        order = torch.empty(0, dtype=torch.int64)
        for _ in range(self.steps):
            while len(order) < self.batch_size:
                order = torch.cat([order, torch.randperm(len(shown))])
            index, order = order[: self.batch_size], order[self.batch_size :]
            batch: Any = trainer.strategy.batch_to_device(shown.gather(index))
            loss = -read(model.policy, batch)[0].log_prob.mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            falling.step()
        optimizer.zero_grad()
        return float(loss.detach())
