r"""A predictor of pass rates from a few reference prompts: DOTS (arXiv:2506.05316), section 4.1.

A frozen encoder gives the embedding of each prompt; an adapter turns it into features; attention
over the reference prompts averages their pass rates; and a calibration that depends on the mean
and standard deviation of these gives the prediction. Since the pass rates of the references are
those of the policy as it is now, the predictor serves policies that it was never trained on.

Departures from the paper:
  1. It predicts pass rates, as the authors' code, not difficulties; the two add up to 1.
  2. Query and reference adapters start equal, so that attention starts as similarity of prompts;
     and the calibration starts as the identity. Online training begins from few observations.
  3. The standard deviation is that of the population and the scale multiplies, as in the paper;
     the code uses n - 1 and divides. Its linear regression on the references' own predictions,
     which attend to themselves, is left out.
  4. It also predicts p(1-p), as the attention-weighted mean of the references' p(1-p), and is
     trained on both. A pass rate of 1/2 may be predicted because the prompt is like others of 1/2,
     or because it is like solved and like hopeless ones; only the former are worth rollouts.
"""

import math
import pickle
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torchmetrics.functional import pearson_corrcoef, spearman_corrcoef

from lit_adaptive.core.bounds import check_at_least
from lit_adaptive.core.difficulty import (
    attention_weights,
    calibrated_logits,
    calibration_error,
)
from lit_adaptive.modules.language.network import LanguageModel
from lit_adaptive.modules.optimization import learning_rate_schedule
from lit_adaptive.progress import progress_bar

CALIBRATION_WIDTH = 10


class PassRatePrediction(NamedTuple):
    """What a predictor says about prompts.

    Attributes:
        pass_rate: ``[B]`` float64 in [0, 1], mean of the belief about each pass rate.
        variance: ``[B]`` float64, variance of that belief.
    """

    pass_rate: Tensor
    variance: Tensor


class DifficultyPredictor(nn.Module):
    """Adapters, attention and calibration: from embeddings to beliefs about pass rates.

    Args:
        embedding_size: numbers in an embedding, above 0.
        hidden_size: width h of the adapters, above 0; 896 in the paper.
        dropout: dropout probability, in [0, 1); 0.1 in the paper.

    Raises:
        ValueError: naming the argument that is out of its range.
    """

    def __init__(self, embedding_size: int, hidden_size: int = 256, dropout: float = 0.1) -> None:
        super().__init__()
        check_at_least(embedding_size=(embedding_size, 1), hidden_size=(hidden_size, 1))
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}; it must lie in [0, 1)")
        self.embedding_size = embedding_size
        self.query = _adapter(embedding_size, hidden_size, dropout)
        self.reference = _adapter(embedding_size, hidden_size, dropout)
        self.reference.load_state_dict(self.query.state_dict())
        last = nn.Linear(CALIBRATION_WIDTH, 2)
        nn.init.zeros_(last.weight)
        with torch.no_grad():
            last.bias.copy_(torch.tensor([math.log(math.e - 1), 0.0]))  # scale 1, shift 0
        self.calibration = nn.Sequential(nn.Linear(2, CALIBRATION_WIDTH), nn.ReLU(), last)

    def forward(self, query: Tensor, reference: Tensor, pass_rate: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the pass rates p of prompts, and expected p (1 - p): ``[B]`` each.

        Args:
            query: ``[B, F]``, embeddings of the prompts.
            reference: ``[K, F]``, embeddings of the reference prompts.
            pass_rate: ``[K]`` in [0, 1], their observed pass rates; or ``[B, K]``.
        """
        return self._attend(self.query(query), self.reference(reference), pass_rate)

    def _attend(self, query: Tensor, reference: Tensor, pass_rate: Tensor) -> tuple[Tensor, Tensor]:
        weight = attention_weights(query, reference)
        values = torch.stack([pass_rate, pass_rate * (1 - pass_rate)], dim=-1)  # [K, 2], [B, K, 2]
        means = torch.einsum("bk,kv->bv" if values.dim() == 2 else "bk,bkv->bv", weight, values)
        base, signal = means.unbind(-1)
        statistics = torch.stack([pass_rate.mean(-1), pass_rate.std(-1, correction=0)], dim=-1)
        scale, shift = self.calibration(statistics).unbind(-1)
        logits = calibrated_logits(base, nn.functional.softplus(scale), shift.tanh())
        return logits, signal

    @torch.no_grad()
    def predict(
        self, query: Tensor, reference: Tensor, pass_rate: Tensor, *, rows: int = 8192
    ) -> PassRatePrediction:
        """Beliefs about the pass rates of prompts, without dropout, on the CPU.

        Args:
            query: ``[B, F]``, embeddings of the prompts, of any floating type and on any device.
            reference: ``[K, F]``, embeddings of the reference prompts, likewise.
            pass_rate: ``[K]`` in [0, 1], observed.
            rows: prompts at once.
        """
        device, training = next(self.parameters()).device, self.training
        self.eval()
        features = self.reference(reference.float().to(device))
        rate = pass_rate.float().to(device)
        parts = [
            self._attend(self.query(part.float().to(device)), features, rate)
            for part in torch.split(query, rows)
        ]
        self.train(training)
        logits, signal = (torch.cat(part).cpu().double() for part in zip(*parts, strict=True))
        mean = logits.sigmoid()
        return PassRatePrediction(mean, (mean * (1 - mean) - signal).clamp(min=0))


def _adapter(inputs: int, hidden: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(inputs),
        *(nn.Linear(inputs, hidden), nn.GELU(), nn.Dropout(dropout)),
        *(nn.Linear(hidden, hidden), nn.GELU(), nn.Dropout(dropout)),
        nn.Linear(hidden, hidden),
        nn.LayerNorm(hidden),
    )


class _LayersRead(Exception):  # noqa: N818
    """The layers whose hidden states are needed have run."""


@torch.no_grad()
def embed_prompts(language: LanguageModel, prompts: list[Tensor], *, rows: int = 256) -> Tensor:
    """Hidden states of each prompt at two thirds of a language model's depth.

    The mean over the tokens tells what is asked; at the last token the model is about to answer.
    Layers further up turn to the next token (``benchmarks/difficulty.py --part hidden``).

    Args:
        language: the model, in evaluation mode.
        prompts: tokens of each prompt, ``[L_i]``, at least one.
        rows: prompts read at once.

    Returns:
        ``[N, 2 H]`` float32, on the CPU: mean over the tokens, and last token, of width H each.
    """
    device = next(language.parameters()).device
    body = getattr(language.base, language.base.base_model_prefix)
    layers = language.layers
    sharded = any(isinstance(parameter, DTensor) for parameter in body.parameters())
    hidden: list[Tensor] = []

    def keep(_module: nn.Module, _arguments: Any, output: Any) -> None:
        hidden.append(output[0] if isinstance(output, tuple) else output)
        if not sharded:  # FSDP frees the weights at the end of the forward pass
            raise _LayersRead

    lengths = torch.tensor([len(prompt) for prompt in prompts])
    order = lengths.argsort(stable=True)
    vectors: list[Tensor] = []
    hook = layers[max(len(layers) * 2 // 3, 1) - 1].register_forward_hook(keep)
    with hook, progress_bar("embeddings of prompts", len(prompts)) as advance:
        for part in torch.split(order, rows):
            each = [prompts[i].long() for i in part]
            ids = nn.utils.rnn.pad_sequence(each, batch_first=True).to(device)
            length = lengths[part].to(device)
            mask = torch.arange(ids.shape[1], device=device) < length[:, None]
            with suppress(_LayersRead):
                body(input_ids=ids, attention_mask=mask.long(), use_cache=False)
            states = hidden.pop().float()
            mean = (states * mask[:, :, None]).sum(1) / length[:, None]
            last = states[torch.arange(len(part), device=device), length - 1]
            vectors.append(torch.cat([mean, last], dim=1).cpu())
            advance(len(part))
    return torch.cat(vectors)[order.argsort()]


def predictor_loss(
    predictor: DifficultyPredictor,
    query: Tensor,
    target: Tensor,
    reference: Tensor,
    pass_rate: Tensor,
) -> Tensor:
    """Binary cross-entropies of p, as in the paper, and of 4 p (1 - p), with soft labels; a scalar.

    Args:
        predictor: the predictor.
        query: ``[B, F]``, embeddings of prompts.
        target: ``[B]`` in [0, 1], their pass rates.
        reference: ``[K, F]``, embeddings of reference prompts.
        pass_rate: ``[K]`` or ``[B, K]`` in [0, 1], theirs.
    """
    logits, signal = predictor(query, reference, pass_rate)
    loss = nn.functional.binary_cross_entropy_with_logits(logits, target)
    spread = (4 * signal).clamp(1e-4, 1 - 1e-4)
    return loss + nn.functional.binary_cross_entropy(spread, 4 * target * (1 - target))


class PassRateModule(LightningModule):
    """Trains a ``DifficultyPredictor`` on the pass rates of several policies.

    Logs ``train/loss``, and on validation policies and prompts ``val/loss``, ``val/pearson``,
    ``val/spearman`` and ``val/calibration`` (means over the policies). The predictor starts
    ``callbacks.DifficultyRefresh(weights=...)``.

    Args:
        embedding_size: numbers in an embedding; 384 for all-MiniLM-L6-v2.
        hidden_size: width of the adapters; 896 in the paper.
        dropout: dropout probability; 0.1 in the paper.
        learning_rate: peak of Adam's learning rate, above 0, which rises over 100 steps (at most a
            tenth of training) and then falls linearly to 0; 1e-3 in the paper.

    Raises:
        ValueError: naming the argument that is out of its range.
    """

    def __init__(
        self,
        embedding_size: int = 384,
        *,
        hidden_size: int = 256,
        dropout: float = 0.1,
        learning_rate: float = 1e-3,
    ) -> None:
        super().__init__()
        if not 0 < learning_rate < math.inf:
            raise ValueError(f"learning_rate is {learning_rate}; it must be above 0 and finite")
        self.predictor = DifficultyPredictor(embedding_size, hidden_size, dropout)
        self.learning_rate = learning_rate

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of a batch of ``PassRateDataModule``."""
        loss = predictor_loss(self.predictor, **batch)
        self.log("train/loss", loss, sync_dist=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Compare predictions for one policy with its pass rates."""
        logits, _ = self.predictor(batch["query"], batch["reference"], batch["pass_rate"])
        predicted, target = logits.sigmoid(), batch["target"]
        values: dict[str, Tensor | float] = {
            "loss": nn.functional.binary_cross_entropy_with_logits(logits, target),
            "pearson": pearson_corrcoef(predicted, target),
            "spearman": spearman_corrcoef(predicted, target),
            "calibration": calibration_error(predicted, target),
        }
        for name, value in values.items():
            self.log(f"val/{name}", value, prog_bar=name == "pearson", batch_size=1)

    def configure_optimizers(self) -> Any:
        """Adam with a linear schedule."""
        steps = self.trainer.estimated_stepping_batches
        optimizer = torch.optim.Adam(self.parameters(), lr=self.learning_rate)
        schedule = learning_rate_schedule(optimizer, "linear", min(100 / steps, 0.1), steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def load_predictor(predictor: DifficultyPredictor, path: str) -> None:
    """Load the weights of a checkpoint of ``PassRateModule``.

    Raises:
        ValueError: if the file is not such a checkpoint, or its sizes are others.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        prefix = "predictor."
        predictor.load_state_dict({name.removeprefix(prefix): v for name, v in state.items()})
    except (KeyError, RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"weights is {path!r}, which is no checkpoint of lit_adaptive.modules.PassRateModule "
            f"with the same embeddings and hidden_size: {error}"
        ) from error
