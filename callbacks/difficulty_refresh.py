"""Difficulty of all prompts, predicted from a few that are rolled out."""

import math
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torchmetrics.functional import pearson_corrcoef, spearman_corrcoef

from callbacks._ranks import equal_share, interleave_ranks
from callbacks._run_files import local_run_directory
from callbacks._training_length import is_due
from lit_adaptive.core.advantages import has_spread
from lit_adaptive.core.bounds import check_at_least
from lit_adaptive.core.difficulty import (
    adaptive_difficulty,
    calibration_error,
    selection_precision,
    selection_scores,
)
from lit_adaptive.core.systematic import uniform_sample
from lit_adaptive.data.seeding import derive_seed, reseed
from lit_adaptive.modules import PolicyModule
from lit_adaptive.modules.base import evaluation_mode
from lit_adaptive.modules.difficulty_predictor import (
    DifficultyPredictor,
    PassRatePrediction,
    embed_prompts,
    load_predictor,
    predictor_loss,
)
from lit_adaptive.progress import progress_bar
from lit_adaptive.replay import RolloutGroups
from lit_adaptive.report.difficulty import draw_difficulty
from lit_adaptive.rollout import SentenceEncoder
from lit_adaptive.rollout.models.embeddings import cached_embeddings

_STREAM = 0x44F15  # of the datamodule's seed
_BINS = 20
_LEAST_FACTOR = 1e-6  # of replay priorities
_LEAST = 4  # observations that a predictor can be trained on or judged by
_ATTENDED = 256  # observations that serve as references, if there are as many; the paper's K
_BATCH = 64  # predicted prompts of an update


class _Observations(NamedTuple):
    """Prompts and their observed pass rates.

    Attributes:
        index: ``[K]`` int64.
        pass_rate: ``[K]`` float32 in [0, 1].
    """

    index: Tensor  # type: ignore[assignment]  # pyright: ignore[reportIncompatibleMethodOverride]
    pass_rate: Tensor

    @classmethod
    def of(cls, groups: RolloutGroups) -> "_Observations":
        """The groups that have rewards; demonstrations do not count."""
        own = ~groups.demonstration
        difficulty = adaptive_difficulty(groups.reward[own], groups.group[own], len(groups))
        known = ~difficulty.isnan()
        return cls(groups.prompt, (1 - difficulty).float()).select(known)

    def without(self, index: Tensor) -> "_Observations":
        """Those of other prompts than ``index``."""
        return self.select(~torch.isin(self.index, index))

    def select(self, part: Tensor | slice) -> "_Observations":
        """Those at some positions."""
        return _Observations(self.index[part], self.pass_rate[part])

    @classmethod
    def cat(cls, parts: "list[_Observations]") -> "_Observations":
        """All observations; ``parts`` may be empty."""
        if not parts:
            return cls(torch.empty(0, dtype=torch.int64), torch.empty(0))
        return cls(*map(torch.cat, zip(*parts, strict=True)))


class DifficultyRefresh(Callback):
    """Predicts the pass rate of every prompt, and hands the predictions to the sampler.

    Every ``every_n_steps`` steps some prompts, drawn uniformly from those that the sampler can
    draw, are rolled out by the policy as it is then. A predictor (``modules.DifficultyPredictor``)
    learns from these and from the steps' own rollouts, and predicts all prompts from *references*:
    the latest 256 observed prompts, or ``references`` if that is more. DOTS (Sun et al., 2025,
    arXiv:2506.05316), algorithm 1, lines 3 to 6.

    Where this departs from the paper:
      1. The predictor learns during the run from its own rollouts (``updates``), instead of before
         it from the pass rates of a dozen other models (``weights``); both can be combined.
      2. The informative references are trained on in the next step (the paper's appendix A.1; its
         code throws them away).
      3. Fewer than 256 prompts rolled out at a refresh are supplemented by the latest groups of the
         steps and by those of earlier refreshes.
      4. Embeddings are hidden states of the policy itself, mean and last token at two thirds of its
         depth, instead of the mean of the last layer of another, frozen model (``encoder``).

    Logs ``train/difficulty/*`` after each refresh: ``pearson``, ``spearman``, ``calibration``
    (mean gap over ten bins) and ``precision`` (of the prompts predicted nearest to one half, the
    share whose pass rate lies in [0.125, 0.875]) beside ``precision_bound`` and
    ``precision_random``, each of one half of the new references predicted from the other half and
    earlier ones, before the predictor learns from them; ``informative`` (share of informative
    references) and
    ``reference_tokens`` (generated for references so far).

    Needs: ``data.predictions`` (``RolloutDataModule`` with a ``DifficultySampler``),
        ``data.roll_out`` and ``data.finished_step``.
    Changes: the sampler's predictions, the next step's fresh groups, and with
        ``replay_priorities`` the replay's priorities. Writes
        ``difficulty.png`` at the end.

    Args:
        every_n_steps: steps between refreshes, above 0; the paper's mu. The sampler's ``window``
            should be the same.
        references: prompts rolled out at each refresh, over all ranks; the paper's K. With 0 the
            groups of the latest steps alone serve as references.
        train_on_references: train on informative references.
        replay_priorities: multiply the priority of each replayed group by p (1 - p) of the present
            estimate of its prompt's pass rate, so that prompts that have become too easy are
            replayed less. Needs a replay whose policy is ``prioritized`` or ``fresh``.
        encoder: gives the embedding of a prompt; by default the policy's own hidden states at
            two thirds of its depth (mean and last token), standardized over the prompts, as they
            are at the first refresh.
        hidden_size: width of the predictor's adapters, above 0; 896 in the paper.
        learning_rate: of the predictor's Adam, above 0; 1e-3 in the paper.
        updates: steps of the predictor's Adam at each refresh, at least 0.
        memory: number of latest refreshes whose observations the predictor learns from, above 0.
        weights: checkpoint of ``modules.PassRateModule`` to start from, of the same encoder and
            ``hidden_size``.
        cache_dir: folder in which an encoder's embeddings are kept; None: nowhere.
        file: name of the picture, which ends in ``.png``; None for none.

    Raises:
        ValueError: naming the argument that is out of range; in training, if ``references``
            exceeds the number of prompts, rewards are outside [0, 1], or a checkpoint is of
            another encoder.
    """

    needs = frozenset({"data.predictions", "data.roll_out", "data.finished_step"})
    provides: frozenset[str] = frozenset()
    remedies = {  # noqa: RUF012
        "data.predictions": "set data.sampler to lit_adaptive.samplers.DifficultySampler",
        "data.roll_out": "use lit_adaptive.data.RolloutDataModule",
    }

    def __init__(
        self,
        every_n_steps: int = 2,
        references: int = 256,
        *,
        train_on_references: bool = True,
        replay_priorities: bool = False,
        encoder: SentenceEncoder | None = None,
        hidden_size: int = 256,
        learning_rate: float = 1e-3,
        updates: int = 60,
        memory: int = 16,
        weights: str | None = None,
        cache_dir: str | None = None,
        file: str | None = "difficulty.png",
    ) -> None:
        check_at_least(
            every_n_steps=(every_n_steps, 1),
            references=(references, 0),
            hidden_size=(hidden_size, 1),
            updates=(updates, 0),
            memory=(memory, 1),
        )
        if not 0 < learning_rate < math.inf:
            raise ValueError(f"learning_rate is {learning_rate}; it must be above 0 and finite")
        if weights is not None and not Path(weights).is_file():
            raise ValueError(f"weights is {weights!r}, which is not a file")
        if file is not None and Path(file).suffix != ".png":
            raise ValueError(f"file is {file!r}; it must end in .png")
        self.every_n_steps, self.references = every_n_steps, references
        self.train_on_references, self.encoder = train_on_references, encoder
        self.replay_priorities = replay_priorities
        self.hidden_size, self.learning_rate = hidden_size, learning_rate
        self.updates, self.weights = updates, weights
        self.cache_dir, self.file = cache_dir, file
        self.predictor: DifficultyPredictor | None = None
        self.optimizer: torch.optim.Adam | None = None
        self.embeddings = torch.empty(0)
        self.reference_tokens = 0.0
        self._window: list[_Observations] = []  # of the steps since the last refresh
        self._referenced = torch.empty(0, dtype=torch.int64)  # prompts of the last refresh
        self._memory: deque[_Observations] = deque(maxlen=memory)
        self._metrics: dict[str, float] = {}  # to be logged
        self._pool: list[Tensor] = []  # histogram of the estimates after each refresh
        self._drawn: list[Tensor] = []  # histogram of the pass rates of each step
        self._restored: dict[str, Any] | None = None

    # Hooks ---------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the number of references, the replay and the module."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        size: int = data.sampler.size
        if self.references > size:
            raise ValueError(
                f"references is {self.references}, but there are {size} prompts: lower it"
            )
        if self.replay_priorities and (data.replay is None or data.replay.policy == "uniform"):
            raise ValueError(
                "replay_priorities is true, but there is no replay with priorities: set the "
                "replay's policy to prioritized or fresh, or replay_priorities to false"
            )
        if not isinstance(pl_module, PolicyModule) and self.encoder is None:
            raise ValueError(
                f"{type(pl_module).__name__} has no hidden states of prompts: set encoder to "
                "lit_adaptive.rollout.SentenceEncoder"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the predictor of a resumed run; predict at once if its prompts changed."""
        if self._restored is None:
            return
        self._build(trainer, pl_module)
        if trainer.datamodule.checkpoint_rows is not None:  # type: ignore[attr-defined]
            self._refresh(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the first refresh, after all warm-ups and before the first prompts are drawn."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if self.predictor is None:
            self._build(trainer, pl_module)
        if data.next_version == 0 and not self._memory:
            self._refresh(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
    ) -> None:
        """Observe a finished step, and refresh the predictions when it is time."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        step = data.finished_step
        if step is None:
            return
        observed = _Observations.of(step.fresh)
        self._window.append(observed.without(self._referenced))  # which are known already
        self._drawn.append(_histogram(observed.pass_rate))
        if is_due(trainer, data.next_version, self.every_n_steps):
            self._refresh(trainer, pl_module)
        if self._metrics:
            pl_module.log_dict(self._metrics)
            self._metrics = {}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what was predicted and what was drawn over time."""
        if self.file is not None and trainer.is_global_zero and self._drawn:
            path = local_run_directory(trainer) / self.file
            draw_difficulty(self._pool, self._drawn, self.every_n_steps, path)

    # Refresh -------------------------------------------------------------------------------------

    def _build(self, trainer: Trainer, module: Any) -> None:
        """Compute the embeddings, and create or restore the predictor."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        restored, self._restored = self._restored, None
        if data.checkpoint_rows is not None:
            self._renumber(data.checkpoint_rows)
        elif restored is not None and restored["embeddings"] is not None:
            self.embeddings = restored["embeddings"]
        if not len(self.embeddings):
            self.embeddings = self._embed(trainer, module)
        with isolate_rng():
            reseed(derive_seed(data.seed, _STREAM))
            predictor = DifficultyPredictor(self.embeddings.shape[1], self.hidden_size)
        if self.weights is not None:
            load_predictor(predictor, self.weights)
        self.predictor = predictor.to(module.device)
        self.optimizer = torch.optim.Adam(predictor.parameters(), lr=self.learning_rate, fused=True)
        if restored is not None:
            predictor.load_state_dict(restored["predictor"])
            self.optimizer.load_state_dict(restored["optimizer"])

    def _renumber(self, rows: Tensor) -> None:
        """Keep the observations of prompts that are still there, under their new numbers."""
        known = (rows >= 0).nonzero().flatten()
        before = max([0, *(int(each.index.max()) for each in self._memory if len(each.index))])
        place = torch.full((max(before, int(rows.max())) + 1,), -1)
        place[rows[known]] = known

        def move(observed: _Observations) -> _Observations:
            index = place[observed.index]
            return _Observations(index[index >= 0], observed.pass_rate[index >= 0])

        self._memory = deque(map(move, self._memory), maxlen=self._memory.maxlen)
        # A new refresh follows at once, without the step that was under way.
        self._window, self._referenced = [], torch.empty(0, dtype=torch.int64)

    def _embed(self, trainer: Trainer, module: Any) -> Tensor:
        """Embeddings of all prompts ``[N, F]``; each rank computes its share."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        size = data.sampler.size
        share = equal_share(size, trainer) % size
        if self.encoder is None:
            with evaluation_mode(module.policy), trainer.precision_plugin.forward_context():
                vectors = embed_prompts(module.policy, data.dataset.tokens(share))
        else:
            texts = [row["prompt"] for row in data.dataset.texts(share)]
            vectors = cached_embeddings(self.cache_dir, self.encoder.key, texts, self.encoder)
        vectors = interleave_ranks(vectors, size, trainer, module).cpu()
        if self.encoder is None:  # a few dimensions would hide all others
            std, mean = torch.std_mean(vectors, dim=0, correction=0)
            vectors = ((vectors - mean) / std.clamp(min=1e-6)).half()  # part of the checkpoint
        return vectors

    def _refresh(self, trainer: Trainer, module: Any) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        version = data.next_version
        generator = torch.Generator().manual_seed(derive_seed(data.seed, _STREAM, version))
        observed = _Observations.cat(self._window)
        new = self._observe_references(data, generator) if self.references else observed
        if len(new.index) >= _LEAST and version > 0:
            self._metrics |= self._judge(new, data.sampler.alpha)
        self._referenced = new.index if self.references else self._referenced
        self._memory.append(_Observations.cat([observed, new]) if self.references else observed)
        with isolate_rng():
            reseed(derive_seed(data.seed, _STREAM, version, 1))
            self._learn(generator)
        references = self._latest()
        if len(references.index):
            predicted = self._predict(self.embeddings, references)
            data.sampler.set_prediction(*trainer.strategy.broadcast(tuple(predicted)))
        if self.references:
            data.sampler.leave_out(new.index)
        estimates: Tensor = data.sampler.pass_rates()
        if self.replay_priorities:
            factor = selection_scores(estimates, "learnability")
            data.replay.set_factors(factor.clamp(min=_LEAST_FACTOR))
        self._pool.append(_histogram(estimates))
        self._window = []

    def _observe_references(self, data: Any, generator: torch.Generator) -> _Observations:
        drawable: Tensor = data.sampler.drawable
        count = min(self.references, len(drawable))
        index = drawable[uniform_sample(len(drawable), count, generator)]
        with progress_bar(f"rollouts of {count} references", None):
            groups, metrics = data.roll_out(index, train=self.train_on_references)
        self.reference_tokens += metrics["generated_tokens"]
        spread = has_spread(groups.reward, groups.group, len(groups))
        self._metrics["train/difficulty/informative"] = float(spread.float().mean())
        self._metrics["train/difficulty/reference_tokens"] = self.reference_tokens
        return _Observations.of(groups)

    def _latest(self, *, beside: int = 0) -> _Observations:
        """The latest observations that serve as references ``beside`` others."""
        known = _Observations.cat([*self._memory])
        count = max(_ATTENDED, self.references) - beside
        return known.select(slice(max(len(known.index) - count, 0), None))

    def _judge(self, new: _Observations, alpha: float) -> dict[str, float]:
        """Predict each half of the new observations from the other half and earlier ones."""
        half = len(new.index) // 2
        first, second = new.select(slice(half)), new.select(slice(half, None))
        earlier = self._latest(beside=half).without(new.index)
        parts = ((first, second), (second, first))
        predicted = torch.cat(
            [
                self._predict(
                    self.embeddings[part.index], _Observations.cat([earlier, known])
                ).pass_rate
                for part, known in parts
            ]
        ).float()
        true = new.pass_rate
        metrics = {"calibration": calibration_error(predicted, true)}
        if float(true.std()) > 0 and float(predicted.std()) > 0:
            metrics["pearson"] = float(pearson_corrcoef(predicted, true))
            metrics["spearman"] = float(spearman_corrcoef(predicted, true))
        precision = selection_precision(predicted, true, max(len(true) // 4, 1), alpha=alpha)
        names = ("precision", "precision_bound", "precision_random")
        metrics |= dict(zip(names, precision, strict=True))
        return {f"train/difficulty/{name}": value for name, value in metrics.items()}

    def _predict(self, query: Tensor, reference: _Observations) -> PassRatePrediction:
        """Beliefs about the prompts with embeddings ``query`` ``[B, F]``."""
        assert self.predictor is not None  # built before the first refresh
        return self.predictor.predict(query, self.embeddings[reference.index], reference.pass_rate)

    def _learn(self, generator: torch.Generator) -> None:
        """Train the predictor: of what is remembered, predict some from others."""
        assert self.predictor is not None  # built before the first refresh
        assert self.optimizer is not None
        device = next(self.predictor.parameters()).device
        known = _Observations.cat([*self._memory])
        size = len(known.index)
        if size < _LEAST:
            return
        embeddings = self.embeddings[known.index].float().to(device)
        pass_rate = known.pass_rate.to(device)
        for _ in range(self.updates):
            order = torch.randperm(size, generator=generator)
            query, others = order.tensor_split([min(_BATCH, size // 2)])
            # A prompt must not attend to itself: most prompts were never visited.
            same = torch.isin(known.index[others], known.index[query])
            references = others[~same][:_ATTENDED]
            if not len(references):
                continue
            loss = predictor_loss(
                self.predictor,
                embeddings[query],
                pass_rate[query],
                embeddings[references],
                pass_rate[references],
            )
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()

    # State ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Predictor, optimizer, observations and what the picture shows."""
        if self.predictor is None or self.optimizer is None:
            return self._restored or {}
        return {
            "encoder": self._encoder_key,
            "embeddings": self.embeddings if self.encoder is None else None,
            "predictor": self.predictor.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "window": [tuple(each) for each in self._window],
            "referenced": self._referenced,
            "memory": [tuple(each) for each in self._memory],
            "reference_tokens": self.reference_tokens,
            "metrics": dict(self._metrics),
            "pool": list(self._pool),
            "drawn": list(self._drawn),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume; the predictor is restored when training starts.

        Raises:
            ValueError: if the checkpoint's embeddings are of another encoder.
        """
        if not state_dict:
            return
        if state_dict["encoder"] != self._encoder_key:
            raise ValueError(
                f"the checkpoint's embeddings are of {state_dict['encoder']!r}, this run's of "
                f"{self._encoder_key!r}: resume with the encoder that was saved"
            )
        self._restored = state_dict
        self._window = [_Observations(*each) for each in state_dict["window"]]
        self._referenced = state_dict["referenced"]
        self._memory.extend(_Observations(*each) for each in state_dict["memory"])
        self.reference_tokens = state_dict["reference_tokens"]
        self._metrics = dict(state_dict["metrics"])
        self._pool, self._drawn = list(state_dict["pool"]), list(state_dict["drawn"])

    @property
    def _encoder_key(self) -> str:
        return "the policy's hidden states" if self.encoder is None else self.encoder.key


def _histogram(pass_rate: Tensor) -> Tensor:
    """Number of pass rates in each of 20 bins from 0 to 1."""
    return torch.histc(pass_rate.float(), _BINS, 0.0, 1.0)
