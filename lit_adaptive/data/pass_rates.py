"""Pass rates of several policies, from which a difficulty predictor is trained before a run."""

from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from lit_adaptive.core.bounds import check_at_least
from lit_adaptive.data.sources.rows import RowSource, load_rows
from lit_adaptive.data.text.prompt_dataset import PromptDataset
from lit_adaptive.rollout.models.embeddings import SentenceEncoder, cached_embeddings

Batch = dict[str, Any]


class PassRateDataModule(LightningDataModule):
    """Prompts with the pass rates that several policies have on them.

    A batch holds rows of a policy and a prompt each, and one set of reference prompts for all of
    them: ``query`` ``[B, F]`` embeddings, ``target`` ``[B]`` pass rates, ``reference`` ``[K, F]``
    embeddings and ``pass_rate`` ``[B, K]``, those of the references under the policy of each row
    (Sun et al., 2025, arXiv:2506.05316, section 4.1). A tenth of the prompts is kept for
    validation, and a quarter of the others for references.

    Args:
        dataset: the prompts; their ``ids`` are those of the table.
        table: rows with ``policy`` (a name), ``prompt_id`` and ``pass_rate`` in [0, 1], from
            whatever ``PromptDataset`` reads; every policy has a row for every prompt.
        val_policies: policies for validation only; by default all policies are trained on, and
            validated on the prompts kept for validation.
        encoder: gives the embeddings; by default all-MiniLM-L6-v2.
        references: reference prompts K of a batch; 256 in the paper.
        batch_size: rows of a batch; 256 in the paper.
        cache_dir: folder in which embeddings are kept; None: nowhere.
        seed: seed of the division of the prompts and of the batches.

    Raises:
        ValueError: if an option is out of range, a pass rate is missing, repeated or outside
            [0, 1] (naming policy and prompt), or there are too few prompts.
    """

    def __init__(
        self,
        dataset: PromptDataset,
        table: RowSource,
        *,
        val_policies: list[str] | None = None,
        encoder: SentenceEncoder | None = None,
        references: int = 256,
        batch_size: int = 256,
        cache_dir: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_at_least(
            references=(references, 1), batch_size=(batch_size, 1), seed=(seed, -(2**63))
        )
        self.dataset, self.encoder = dataset, encoder or SentenceEncoder()
        self.references, self.batch_size = references, batch_size
        self.cache_dir, self.seed = cache_dir, seed
        self.policies, self.rates = _rate_matrix(dataset, table)
        val_policies = val_policies or []
        unknown = sorted({*val_policies} - {*self.policies})
        if unknown or len(val_policies) == len(self.policies):
            raise ValueError(
                f"val_policies is {val_policies}; the table has the policies {self.policies}: name "
                "some of them, but not all"
            )
        held_out = [policy in val_policies for policy in self.policies]
        self._train = (~torch.tensor(held_out)).nonzero().flatten()
        self._val = torch.tensor(held_out).nonzero().flatten() if val_policies else self._train
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
        parts = len(dataset) // 10, (len(dataset) - len(dataset) // 10) // 4
        self._val_prompts, self._pool = order[: parts[0]], order[parts[0] : sum(parts)]
        self._prompts = order[sum(parts) :]
        if len(self._pool) < references or not parts[0]:
            raise ValueError(
                f"references is {references}, but a quarter of {len(dataset)} prompts, less "
                f"a tenth for validation, is {len(self._pool)}: lower "
                "references, or give more prompts"
            )
        self.embeddings = torch.empty(0)

    def setup(self, stage: str) -> None:  # noqa: ARG002
        """Compute the embeddings."""
        if not len(self.embeddings):
            rows = self.dataset.texts(torch.arange(len(self.dataset)))
            texts = [row["prompt"] for row in rows]
            self.embeddings = cached_embeddings(
                self.cache_dir, self.encoder.key, texts, self.encoder
            )

    def _batch(self, policy: Tensor, prompt: Tensor, reference: Tensor) -> Batch:
        return {
            "query": self.embeddings[prompt],
            "target": self.rates[policy, prompt],
            "reference": self.embeddings[reference],
            "pass_rate": self.rates[policy][:, reference],
        }

    def _with_references(self, pairs: list[Tensor]) -> Batch:
        pair = torch.stack(pairs)
        chosen = torch.randperm(len(self._pool))[: self.references]
        return self._batch(pair[:, 0], pair[:, 1], self._pool[chosen])

    def train_dataloader(self) -> DataLoader[Any]:
        """Every pair of a training policy and a prompt, shuffled; new references in each batch.

        Each rank serves its share of the pairs.
        """
        pairs: Any = torch.cartesian_prod(self._train, self._prompts)
        trainer: Any = self.trainer
        ranks, rank = (1, 0) if trainer is None else (trainer.world_size, trainer.global_rank)
        sampler: Any = DistributedSampler(pairs, ranks, rank, seed=abs(self.seed))
        return DataLoader(pairs, self.batch_size, sampler=sampler, collate_fn=self._with_references)

    def _validation(self, policies: list[Tensor]) -> Batch:
        chosen, (policy,) = self._pool[: self.references], policies
        return self._batch(policy.repeat(len(self._val_prompts)), self._val_prompts, chosen)

    def val_dataloader(self) -> DataLoader[Any]:
        """One batch per policy: the prompts kept for validation."""
        policies: Any = self._val
        return DataLoader(policies, batch_size=1, collate_fn=self._validation)


def _rate_matrix(dataset: PromptDataset, table: RowSource) -> tuple[list[str], Tensor]:
    """Names of the policies, and their pass rates ``[P, N]`` float32."""
    rows = load_rows(table)
    names = {"policy", "prompt_id", "pass_rate"}
    missing = sorted(names - {*rows.dataset.column_names})
    if missing:
        raise ValueError(f"{rows.source} lacks the columns {missing}; it must have {sorted(names)}")
    ids = {str(_plain(one)): place for place, one in enumerate(dataset.ids)}
    policies: dict[str, int] = {}
    columns = [rows.dataset[name] for name in ("policy", "prompt_id", "pass_rate")]
    cells: dict[tuple[int, int], float] = {}
    for policy, prompt, rate in zip(*columns, strict=True):
        where = f"policy {policy!r}, prompt_id {prompt!r} of {rows.source}"
        if str(prompt) not in ids:
            raise ValueError(f"{where}: there is no such prompt")
        if not isinstance(rate, int | float) or not 0 <= rate <= 1:
            raise ValueError(f"{where}: pass_rate is {rate!r}; it must lie in [0, 1]")
        cell = policies.setdefault(str(policy), len(policies)), ids[str(prompt)]
        if cell in cells:
            raise ValueError(f"{where}: there are two pass rates")
        cells[cell] = float(rate)
    rates = torch.full((len(policies), len(dataset)), torch.nan)
    place = torch.tensor([*cells], dtype=torch.int64).reshape(-1, 2)
    rates[place[:, 0], place[:, 1]] = torch.tensor([*cells.values()])
    unknown = rates.isnan().nonzero()[:8].tolist()
    if unknown or not policies:
        found = [([*policies][p], _plain(dataset.ids[n])) for p, n in unknown]
        raise ValueError(
            f"{rows.source} lacks pass rates, for instance of (policy, prompt_id) {found}: give "
            "every policy a row for every prompt"
        )
    return [*policies], rates


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value
