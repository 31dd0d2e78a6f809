"""Handwritten digits that come with scikit-learn, long-tailed and optionally mislabelled.

1,797 images of 8 x 8 pixels (the test set of UCI's "Optical Recognition of Handwritten Digits").
Each class has 45 test and 15 validation images, always the same ones; the others, at least 114 per
class, are for training.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import Dataset

from lit_adaptive.core.bounds import check_at_least
from lit_adaptive.core.shares import share_count

CLASSES = 10
_TEST, _VALIDATION, _TRAIN = 45, 15, 114


class LongTailedDigits(Dataset[dict[str, Any]]):
    """Digits with rare classes, as items ``{"input": [1, 8, 8] float32, "target": int}``.

    The c-th most frequent class of training keeps ``114 * imbalance ** (-c / 9)`` images, rounded
    and at least one. Validation and test are balanced and never mislabelled.

    Args:
        split: ``train``, ``validation`` (150 images) or ``test`` (450).
        imbalance: size of the most frequent class divided by that of the rarest, at least 1.
        shares: fraction of its training images that each class keeps, in (0, 1], instead of
            ``imbalance``; ``[0.01] * 5 + [1.0] * 5`` is the test of Schaul et al. (2016), sec. 6.
        label_noise: fraction of training labels replaced by another class, in [0, 1).
        seed: seed of the choice of images, rare classes and wrong labels.

    Attributes:
        inputs: ``[N, 1, 8, 8]`` float32 in [0, 1].
        targets: ``[N]`` int64, the labels to learn, wrong ones included.
        true_targets: ``[N]`` int64, the right labels.
        ids: ``[N]`` int64, row numbers in scikit-learn's table.

    Raises:
        ValueError: if an argument is out of range.
    """

    classes = tuple("0123456789")

    def __init__(
        self,
        split: Literal["train", "validation", "test"] = "train",
        *,
        imbalance: float = 100.0,
        shares: Sequence[float] | None = None,
        label_noise: float = 0.0,
        seed: int = 0,
    ) -> None:
        if split not in ("train", "validation", "test"):
            raise ValueError(f"split is {split!r}; it must be 'train', 'validation' or 'test'")
        if not 1 <= imbalance < math.inf:
            raise ValueError(
                f"imbalance is {imbalance}; it must be at least 1 (balanced) and finite"
            )
        if not 0 <= label_noise < 1:
            raise ValueError(f"label_noise is {label_noise}; it must lie in [0, 1)")
        if shares is not None and not (
            len(shares) == CLASSES and all(0 < share <= 1 for share in shares)
        ):
            raise ValueError(f"shares is {shares}; give {CLASSES} shares in (0, 1]")
        check_at_least(seed=(seed, -(2**63)))
        loaded: Any = load_digits()
        self._pixels = torch.from_numpy(loaded.images).float().div_(16)[:, None]
        self._labels = torch.from_numpy(loaded.target).long()
        generator = torch.Generator().manual_seed(seed)
        self.ids = self._rows(split, imbalance, shares, generator)
        self.inputs = self._pixels[self.ids]
        self.true_targets = self._labels[self.ids]
        self.targets = self.true_targets.clone()
        if split == "train" and label_noise:
            self._mislabel(label_noise, generator)

    def _rows(
        self,
        split: str,
        imbalance: float,
        shares: Sequence[float] | None,
        generator: torch.Generator,
    ) -> Tensor:
        fixed = torch.Generator().manual_seed(20_160_225)
        frequency = torch.randperm(CLASSES, generator=generator).tolist()
        rows: list[Tensor] = []
        for c in range(CLASSES):
            members = (self._labels == c).nonzero().flatten()
            members = members[torch.randperm(len(members), generator=fixed)]
            test, validation = members[:_TEST], members[_TEST : _TEST + _VALIDATION]
            rest = members[_TEST + _VALIDATION :]
            kept = rest[torch.randperm(len(rest), generator=generator)]
            share = imbalance ** (-frequency[c] / (CLASSES - 1)) if shares is None else shares[c]
            train = kept[: max(1, share_count(share, _TRAIN, rounding=round))]
            rows.append({"train": train, "validation": validation, "test": test}[split])
        return torch.cat(rows)

    def _mislabel(self, share: float, generator: torch.Generator) -> None:
        wrong = torch.rand(len(self), generator=generator) < share
        other = torch.randint(1, CLASSES, (len(self),), generator=generator)
        self.targets = torch.where(wrong, (self.true_targets + other) % CLASSES, self.true_targets)

    def column(self, name: str) -> Tensor:
        """``difficulty`` ``[N]`` float64: relative distance from the mean image of the class.

        The distance to the mean training image of the label, divided by that to the nearest mean
        image of another class; above 1 the sample looks more like another digit.

        Raises:
            ValueError: if ``name`` is not ``difficulty``.
        """
        if name != "difficulty":
            raise ValueError(f"there is no column {name!r}; the digits have 'difficulty'")
        flat = self.inputs.flatten(1).double()
        means = torch.stack([flat[self.targets == c].mean(0) for c in range(CLASSES)]).nan_to_num(
            nan=1e3
        )  # a class without samples is far from everything
        distance = torch.cdist(flat, means)
        to_class = distance.gather(1, self.targets[:, None]).squeeze(1)
        to_nearest = distance.scatter(1, self.targets[:, None], torch.inf).amin(1)
        return to_class / to_nearest

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input": self.inputs[index], "target": int(self.targets[index])}

    def gather(self, index: Tensor) -> dict[str, Any]:
        """The collated batch of the rows ``index`` ``[B]`` int64."""
        return {"input": self.inputs[index], "target": self.targets[index]}
