"""Supervised fine-tuning before a policy-gradient run."""

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import BatchSampler, RandomSampler

from lit_adaptive.core.bounds import check_at_least
from lit_adaptive.data.seeding import derive_seed, reseed
from lit_adaptive.data.text.demonstration_dataset import DemonstrationDataset

_STREAM = 7  # of random numbers, beside those of the datamodule
_CLIP_NORM = 1.0


class SupervisedWarmup(Callback):
    """Fine-tunes the policy on demonstrations before the first step of a new run.

    A model that never succeeds learns nothing from rewards. The warm-up runs outside the trainer's
    loop, so that it does not count as optimizer steps and leaves no optimizer state behind. All
    ranks train on the same batches, so the models stay equal. A resumed run is not warmed up again;
    a run that dies during the warm-up has no checkpoint yet and starts anew.

    For a warm-up with its own datamodule, metrics and checkpoints train
    ``lit_adaptive.modules.IWSFT`` and pass its checkpoint as ``weights`` of the policy.

    Needs: ``data.tokenizer`` and ``model.sample`` (a policy).
    Changes: the policy's weights, before training; nothing afterwards.

    Args:
        dataset: demonstrations with ``prompt`` and ``completion``, as ``DemonstrationDataset``
            reads them; by default None, which disables the warm-up.
        steps: optimizer steps, at least 0.
        batch_size: demonstrations per step, above 0.
        learning_rate: initial learning rate of AdamW, above 0; it falls linearly to 0.
        chat: whether to render prompts and completions with the chat template.

    Raises:
        ValueError: if an argument is out of range.
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
        check_at_least(steps=(steps, 0), batch_size=(batch_size, 1))
        if not 0 < learning_rate < math.inf:
            raise ValueError(f"learning_rate is {learning_rate}; it must be above 0 and finite")
        self.dataset, self.steps, self.batch_size = dataset, steps, batch_size
        self.learning_rate, self.chat = learning_rate, chat

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fine-tune, unless the run resumes from a checkpoint."""
        resumed = trainer.global_step > 0 or trainer.fit_loop.restarting
        if self.dataset is None or self.steps == 0 or resumed:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        demonstrations = DemonstrationDataset(self.dataset, data.tokenizer, chat=self.chat)
        with isolate_rng(), trainer.precision_plugin.forward_context():
            reseed(derive_seed(data.seed, _STREAM))
            loss = self._fine_tune(demonstrations, pl_module, trainer)
        rank_zero_info(f"warm-up: {self.steps} steps on {demonstrations.source}, loss {loss:.3f}")

    def _fine_tune(
        self, demonstrations: DemonstrationDataset, model: Any, trainer: Trainer
    ) -> float:
        """Minimize the mean negative log-likelihood per token; returns the last batch's."""
        parameters = [each for each in model.policy.parameters() if each.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=0.0)
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=self.steps)
        order = RandomSampler(demonstrations, num_samples=self.steps * self.batch_size)
        loss = torch.zeros(())
        for index in BatchSampler(order, self.batch_size, drop_last=True):
            cpu_batch = demonstrations.gather(torch.tensor(index))
            batch: Any = trainer.strategy.batch_to_device(cpu_batch)
            loss = -model.policy.score_targets(batch)[0].log_prob.mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, _CLIP_NORM)
            optimizer.step()
            scheduler.step()
        optimizer.zero_grad()
        return float(loss.detach())
