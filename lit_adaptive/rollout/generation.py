"""Completions of prompts, token by token, with the log-probability each token was drawn at."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

_COMPACT = 0.25  # share of finished rows at which the others go on alone
_TILE = 512  # entries of the vocabulary that are summed up together


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen.

    Args:
        max_new_tokens: above 0.
        temperature: logits are divided by it; 0: the likeliest token (greedy).
        top_p: draw from the fewest likeliest tokens that together have this probability, in (0, 1].
        top_k: draw from so many likeliest tokens; 0: from all.

    Raises:
        ValueError: naming the argument that is out of its range.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens <= 0:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; it must be above 0")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(
                f"temperature is {self.temperature}; it must be at least 0 (0: greedy) and finite"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must lie in (0, 1]")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; it must be at least 0 (0: all tokens)")


class Completions(NamedTuple):
    """What was generated, one for each prompt.

    Attributes:
        tokens: ``[T_i]`` int64 each, on the CPU, with the token that ended it.
        log_probs: ``[T_i]`` float32 each: of the law at the sampling temperature (greedy: 1) over
            the whole vocabulary, before ``top_p`` and ``top_k`` cut it.
        finish: ``"stop"``, or ``"length"`` if ``max_new_tokens`` cut it.
        version: of the policy that wrote them, where it changes.
    """

    tokens: list[Tensor]
    log_probs: list[Tensor]
    finish: list[str]
    version: int = 0


class Decode(Protocol):
    """One forward pass over new tokens."""

    def __call__(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, cache: Any
    ) -> Tensor:
        """Logits ``[B, V]`` after the last of ``input_ids`` ``[B, T]``; ``cache`` is written."""
        ...


def left_padded(prompts: Sequence[Sequence[int] | Tensor], pad_id: int) -> tuple[Tensor, Tensor]:
    """Prompts that end together: ids ``[B, P]`` int64 and mask ``[B, P]`` bool.

    Raises:
        ValueError: if there are none, or one is empty (which).
    """
    lengths = torch.tensor([len(each) for each in prompts])
    if len(lengths) == 0 or int(lengths.min()) == 0:
        empty = (lengths == 0).nonzero().flatten()[:8].tolist()
        raise ValueError(f"prompts {empty} of {len(lengths)} are empty: give each a token at least")
    width = int(lengths.max())
    ids = torch.full((len(lengths), width), pad_id)
    for row, prompt in zip(ids, prompts, strict=True):
        row[width - len(prompt) :] = torch.as_tensor(prompt)
    return ids, torch.arange(width) >= width - lengths[:, None]


def truncated(logits: Tensor, top_p: float, top_k: int) -> Tensor:
    """``logits`` ``[B, V]`` with minus infinity for what may not be drawn.

    The token at which the probability reaches ``top_p`` is still drawn (Holtzman et al., 2020).
    """
    if top_k and top_k < logits.shape[-1]:
        least = logits.topk(top_k, -1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        logits = logits.masked_fill((before >= top_p).gather(-1, order.argsort(-1)), -torch.inf)
    return logits


def drawn(mass: Tensor, uniform: Tensor) -> Tensor:
    """A token of each row, as likely as its ``mass`` says, by inverting the law: ``[B]``.

    Tiles of the vocabulary are summed up as ``mass`` is, tiles and the entries of the tile that is
    met in float64.

    Args:
        mass: ``[B, V]``, at least 0 and finite, somewhere above 0 in each row.
        uniform: ``[B]`` in [0, 1), one for each row, so no row's token depends on its neighbours.
    """
    count, size = mass.shape
    width = min(_TILE, size)
    tiles = nn.functional.pad(mass, (0, -size % width)).view(count, -1, width)
    sums = tiles.sum(-1).double()
    bounds = sums.cumsum(-1)
    target = uniform.to(bounds)[:, None] * bounds[:, -1:]
    tile = _first_above(sums, bounds, target)
    own = tiles[torch.arange(count, device=mass.device), tile].double()
    before = (bounds - sums).gather(-1, tile[:, None])
    return tile * width + _first_above(own, own.cumsum(-1), target - before)


def _first_above(mass: Tensor, bounds: Tensor, target: Tensor) -> Tensor:
    """Where ``bounds``, the sums of ``mass`` ``[B, n]``, first exceed ``target`` ``[B, 1]``."""
    found = torch.searchsorted(bounds, target, right=True)[:, 0]
    last = (mass > 0).long().cumsum(-1).argmax(-1)  # rounding may lead past the last that counts
    return torch.minimum(found, last)


class _Rows:
    """The rows still decoded: which they are, and what the next pass needs of them."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask.long()
        self.next = self.mask.sum(1)  # position of the next token
        self.index = torch.arange(len(mask), device=mask.device)

    def repeat(self, times: int, cache: Any) -> None:
        """Each row as so many, one behind another."""
        cache.batch_repeat_interleave(times)
        self.mask = self.mask.repeat_interleave(times, 0)
        self.next = self.next.repeat_interleave(times)
        self.index = torch.arange(len(self.mask), device=self.mask.device)

    def select(self, kept: Tensor, cache: Any) -> None:
        cache.batch_select_indices(kept)
        self.index, self.mask, self.next = self.index[kept], self.mask[kept], self.next[kept]


def _choose(
    logits: Tensor, sampling: SamplingParams, uniform: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Tokens ``[B]`` and their log-probabilities ``[B]``."""
    logits = logits.float()
    if sampling.temperature not in (0, 1):
        logits = logits / sampling.temperature
    law = logits.log_softmax(-1)
    if uniform is None:
        token = logits.argmax(-1)
    else:
        token = drawn(truncated(law, sampling.top_p, sampling.top_k).exp(), uniform)
    return token, law.gather(-1, token[:, None])[:, 0]


def _cache() -> Any:
    from transformers import DynamicCache

    return DynamicCache()


@torch.no_grad()
def generate(
    decode: Decode,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    sampling: SamplingParams,
    stop_token_ids: Sequence[int],
    *,
    samples: int = 1,
    generator: torch.Generator | None = None,
    dice: Tensor | None = None,
    all_done: Callable[[bool], bool] | None = None,
) -> Completions:
    """Completions of left-padded prompts.

    A prompt is read once, however many completions it gets. Rows that are finished leave the batch
    when a quarter of it is. Each step draws one uniform number for each completion, finished or
    not, so a completion depends on the generator and its place in the batch, not on when others
    end.

    Args:
        decode: see ``Decode``.
        prompt_ids: ``[B, P]`` int64.
        prompt_mask: ``[B, P]`` bool, False where padded on the left.
        sampling: how tokens are chosen.
        stop_token_ids: tokens that end a completion.
        samples: completions of each prompt, above 0; those of a prompt follow one another.
        generator: on the CPU, for what is random; by default torch's global one.
        dice: ``[B * samples, max_new_tokens]`` in [0, 1): what is random, in place of a generator.
        all_done: told whether this rank is done, says whether all are; a rank that is done but not
            alone goes on with a row whose tokens nobody keeps. By default there is one rank.

    Raises:
        ValueError: if a prompt is empty.
    """
    if not bool(prompt_mask[:, -1].all()):
        empty = (~prompt_mask[:, -1]).nonzero().flatten()[:8].tolist()
        raise ValueError(
            f"prompts {empty} are empty or padded on the right: pad prompts on the left"
        )
    count, device = len(prompt_ids) * samples, prompt_ids.device
    stops = torch.tensor(list(stop_token_ids), device=device)
    rows, cache = _Rows(prompt_mask), _cache()
    tokens = torch.zeros(count, sampling.max_new_tokens, dtype=torch.int64, device=device)
    log_probs = torch.zeros(count, sampling.max_new_tokens, device=device)
    length = torch.zeros(count, dtype=torch.int64, device=device)
    stopped = torch.zeros(count, dtype=torch.bool, device=device)
    positions = (rows.mask.cumsum(1) - 1).clamp(min=0)
    logits = decode(prompt_ids, rows.mask, positions, cache)
    if samples > 1:
        rows.repeat(samples, cache)
        logits = logits.repeat_interleave(samples, 0)
    for step in range(sampling.max_new_tokens):
        uniform = None
        if sampling.temperature > 0:
            if dice is None:
                thrown = torch.rand(count, dtype=torch.float64, generator=generator).to(device)
            else:
                thrown = dice[:, step]
            uniform = thrown[rows.index]
        token, log_prob = _choose(logits, sampling, uniform)
        going = ~stopped[rows.index]
        alive = rows.index[going]
        tokens[alive, step], log_probs[alive, step] = token[going], log_prob[going]
        length[alive] = step + 1
        stopped[alive] = torch.isin(token[going], stops)
        done = bool(stopped.all()) or step + 1 == sampling.max_new_tokens
        if done if all_done is None else all_done(done):
            break
        keep = (~stopped[rows.index]).nonzero().flatten()
        if len(keep) == 0:  # other ranks are not done: one row keeps them company
            keep = torch.zeros(1, dtype=torch.int64, device=device)
        if len(keep) <= (1 - _COMPACT) * len(rows.index):
            rows.select(keep, cache)
            token = token[keep]
        rows.mask = torch.cat([rows.mask, rows.mask.new_ones(len(rows.mask), 1)], 1)
        logits = decode(token[:, None], rows.mask, rows.next[:, None], cache)
        rows.next = rows.next + 1
    tokens, log_probs = tokens.cpu(), log_probs.cpu()
    lengths = length.tolist()
    return Completions(
        [row[:n].clone() for row, n in zip(tokens, lengths, strict=True)],
        [row[:n].clone() for row, n in zip(log_probs, lengths, strict=True)],
        ["stop" if each else "length" for each in stopped.tolist()],
    )
