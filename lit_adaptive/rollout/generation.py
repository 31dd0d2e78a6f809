"""Generate completions of prompts, with the log-probability of each sampled token."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from lit_adaptive.core.bounds import check_at_least

_COMPACT = 0.25  # fraction of finished rows from which they are removed from the batch
_TILE = 512  # vocabulary entries that are summed together


@dataclass(frozen=True)
class SamplingParams:
    """Options of sampling.

    Args:
        max_new_tokens: greatest number of tokens of a completion, above 0.
        temperature: divisor of the logits, at least 0; 0 is greedy: the most probable token.
        top_p: sample from the smallest set of most probable tokens with this total probability, in
            (0, 1].
        top_k: sample from the ``top_k`` most probable tokens, at least 0; 0 for all tokens.
        min_p: sample only tokens of at least ``min_p`` times the greatest probability, in [0, 1).
        repetition_penalty: makes tokens of the prompt and completion less likely, above 0; 1 for
            none, which training requires.

    Raises:
        ValueError: naming the argument that is out of its range.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        check_at_least(max_new_tokens=(self.max_new_tokens, 1), top_k=(self.top_k, 0))
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(
                f"temperature is {self.temperature}; it must be at least 0 (0: greedy) and finite"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must lie in (0, 1]")
        if not 0 <= self.min_p < 1:
            raise ValueError(f"min_p is {self.min_p}; it must lie in [0, 1) (0: all tokens)")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ValueError(
                f"repetition_penalty is {self.repetition_penalty}; it must be above 0 and finite "
                "(1: no penalty)"
            )


class Completions(NamedTuple):
    """Generated completions; those of one prompt are adjacent.

    Attributes:
        tokens: ``[T_i]`` int64 for each completion, on the CPU, including the stop token.
        log_probs: ``[T_i]`` float32 for each completion: log-probabilities at the sampling
            temperature (greedy: 1) over the full vocabulary, before ``top_p``, ``top_k``,
            ``min_p`` and ``repetition_penalty``.
        finish: ``"stop"``, or ``"length"`` at ``max_new_tokens``, for each completion.
        version: version of the policy that generated them, for a policy in training.
    """

    tokens: list[Tensor]
    log_probs: list[Tensor]
    finish: list[str]
    version: int = 0


class Decode(Protocol):
    """A forward pass over new tokens."""

    def __call__(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, cache: Any
    ) -> Tensor:
        """Extend ``cache``; return logits ``[B, V]`` after the last of ``input_ids`` ``[B, T]``."""
        ...


def left_pad_sequences(
    prompts: Sequence[Sequence[int] | Tensor], pad_id: int
) -> tuple[Tensor, Tensor]:
    """Pad token ids on the left.

    Returns:
        Ids ``[B, P]`` int64, and a mask ``[B, P]`` bool, False where padded.

    Raises:
        ValueError: if there is no prompt, or one is empty.
    """
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    if len(lengths) == 0 or int(lengths.min()) == 0:
        empty = (lengths == 0).nonzero().flatten()[:8].tolist()
        raise ValueError(f"prompts {empty} of {len(lengths)} are empty; each needs a token")
    width = int(lengths.max())
    ids = torch.full((len(lengths), width), pad_id)
    for row, prompt in zip(ids, prompts, strict=True):
        row[width - len(prompt) :] = torch.as_tensor(prompt)
    return ids, torch.arange(width) >= width - lengths[:, None]


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make the tokens ``seen`` ``[B, V]`` bool less likely, or more with a ``penalty`` below 1.

    Their ``logits`` ``[B, V]`` are divided by ``penalty`` if positive, else multiplied (Keskar et
    al., 2019, arXiv:1909.05858, with transformers' rule for negative ones).
    """
    penalized = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, penalized, logits)


def mask_logits(logits: Tensor, top_p: float, top_k: int, min_p: float = 0.0) -> Tensor:
    """Set ``logits`` ``[B, V]`` of tokens outside the three bounds to minus infinity.

    The token at which the cumulative probability reaches ``top_p`` is kept (Holtzman et al., 2020),
    and those of at least ``min_p`` times the greatest probability (Nguyen et al., 2024).
    """
    if min_p > 0:
        bound = logits.amax(-1, keepdim=True) + math.log(min_p)
        logits = logits.masked_fill(logits < bound, -torch.inf)
    if top_k and top_k < logits.shape[-1]:
        threshold = logits.topk(top_k, -1).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(-1, descending=True)
        probability = ordered.softmax(-1)
        before = probability.cumsum(-1) - probability
        logits = logits.masked_fill((before >= top_p).gather(-1, order.argsort(-1)), -torch.inf)
    return logits


def sample_tokens(mass: Tensor, uniform: Tensor) -> Tensor:
    """Sample a token for each row, in proportion to its mass, by inverting the cumulative sum.

    Entries are summed in tiles, in the dtype of ``mass``; sums of tiles, and those within the
    selected tile, are in float64.

    Args:
        mass: ``[B, V]``, at least 0 and finite, with a positive entry in each row.
        uniform: ``[B]`` in [0, 1): a random number for each row.

    Returns:
        ``[B]`` int64.
    """
    count, size = mass.shape
    width = min(_TILE, size)
    tiles = nn.functional.pad(mass, (0, -size % width)).view(count, -1, width)
    sums = tiles.sum(-1).double()
    bounds = sums.cumsum(-1)
    target = uniform.to(bounds)[:, None] * bounds[:, -1:]
    tile = _first_above(sums, bounds, target)
    entries = tiles[torch.arange(count, device=mass.device), tile].double()
    before = (bounds - sums).gather(-1, tile[:, None])
    return tile * width + _first_above(entries, entries.cumsum(-1), target - before)


def _first_above(mass: Tensor, bounds: Tensor, target: Tensor) -> Tensor:
    """First position where ``bounds``, the cumulative sum of ``mass``, exceeds ``target``."""
    position = torch.searchsorted(bounds, target, right=True)[:, 0]
    last = (mass > 0).long().cumsum(-1).argmax(-1)  # rounding may lead past the last positive mass
    return torch.minimum(position, last)


class _ActiveRows:
    """The completions that are still decoded.

    Attributes:
        cache: keys and values of the tokens so far.
        mask: ``[R, T]`` int64, 0 at padding.
        next: ``[R]`` position of the next token.
        index: ``[R]`` number of the completion in each row.
    """

    def __init__(self, mask: Tensor) -> None:
        from transformers import DynamicCache

        self.cache: Any = DynamicCache()
        self.mask = mask.long()
        self.next = self.mask.sum(1)
        self.index = torch.arange(len(mask), device=mask.device)

    def repeat(self, times: int) -> None:
        """Repeat each row ``times`` times; its copies are adjacent."""
        self.cache.batch_repeat_interleave(times)
        self.mask = self.mask.repeat_interleave(times, 0)
        self.next = self.next.repeat_interleave(times)
        self.index = torch.arange(len(self.mask), device=self.mask.device)

    def drop_finished(self, stopped: Tensor, token: Tensor) -> Tensor:
        """Remove finished rows if they are many; returns the rest of ``token`` ``[R]``.

        Args:
            stopped: whether each completion has ended; one row stays if all have.
            token: token of each row.
        """
        kept = (~stopped[self.index]).nonzero().flatten()
        if len(kept) == 0:  # other ranks are not done: decode a dummy row
            kept = torch.zeros(1, dtype=torch.int64, device=token.device)
        if len(kept) > (1 - _COMPACT) * len(self.index):
            return token
        self.cache.batch_select_indices(kept)
        self.index, self.mask, self.next = self.index[kept], self.mask[kept], self.next[kept]
        return token[kept]

    def decode(self, decode: Decode, token: Tensor) -> Tensor:
        """Logits ``[R, V]`` after ``token`` ``[R]``, which becomes part of the rows."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], 1)
        logits = decode(token[:, None], self.mask, self.next[:, None], self.cache)
        self.next = self.next + 1
        return logits


class _Generated:
    """The tokens of all completions so far.

    Attributes:
        seen: ``[count, V]`` bool, the tokens of each prompt and completion; None if not needed.
    """

    def __init__(
        self, count: int, max_new_tokens: int, device: torch.device, seen: Tensor | None
    ) -> None:
        self.seen = seen
        self.tokens = torch.zeros(count, max_new_tokens, dtype=torch.int64, device=device)
        # The default dtype is bfloat16 under precision bf16-true.
        self.log_probs = torch.zeros(count, max_new_tokens, dtype=torch.float32, device=device)
        self.length = torch.zeros(count, dtype=torch.int64, device=device)
        self.stopped = torch.zeros(count, dtype=torch.bool, device=device)

    def add(self, index: Tensor, token: Tensor, log_prob: Tensor, step: int, stops: Tensor) -> None:
        """Add the next ``token`` ``[R]`` of the completions ``index`` that have not ended."""
        active = ~self.stopped[index]
        index, token = index[active], token[active]
        if self.seen is not None:
            self.seen[index, token] = True
        self.tokens[index, step], self.log_probs[index, step] = token, log_prob[active]
        self.length[index] = step + 1
        self.stopped[index] = torch.isin(token, stops)

    def completions(self) -> Completions:
        """The completions, on the CPU."""
        lengths = self.length.tolist()
        return Completions(
            [row[:n].clone() for row, n in zip(self.tokens.cpu(), lengths, strict=True)],
            [row[:n].clone() for row, n in zip(self.log_probs.cpu(), lengths, strict=True)],
            ["stop" if is_stopped else "length" for is_stopped in self.stopped.tolist()],
        )


def _next_tokens(
    logits: Tensor, sampling: SamplingParams, uniform: Tensor | None, seen: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Tokens ``[B]`` and their log-probabilities ``[B]``; greedy without ``uniform``."""
    logits = logits.float()
    likely = logits
    if seen is not None:
        likely = penalize_repetition(logits, seen, sampling.repetition_penalty)
    if sampling.temperature not in (0, 1):
        logits, likely = logits / sampling.temperature, likely / sampling.temperature
    log_probs = logits.log_softmax(-1)
    if uniform is None:
        token = likely.argmax(-1)
    else:
        likely = log_probs if seen is None else likely.log_softmax(-1)
        masked = mask_logits(likely, sampling.top_p, sampling.top_k, sampling.min_p)
        token = sample_tokens(masked.exp(), uniform)
    return token, log_probs.gather(-1, token[:, None])[:, 0]


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
    uniforms: Tensor | None = None,
    all_done: Callable[[bool], bool] | None = None,
) -> Completions:
    """Generate completions of left-padded prompts.

    Each prompt is processed once, for all of its completions. Finished rows are removed from the
    batch when they are a quarter of it. Each step uses one uniform number per completion, finished
    or not, so a completion does not depend on the length of others.

    Args:
        decode: forward pass of the model.
        prompt_ids: ``[B, P]`` int64.
        prompt_mask: ``[B, P]`` bool, False where padded on the left.
        sampling: options of sampling.
        stop_token_ids: ids of tokens that end a completion.
        samples: completions per prompt, above 0; those of a prompt are adjacent.
        generator: random generator on the CPU; by default torch's global one.
        uniforms: ``[B * samples, max_new_tokens]`` in [0, 1): random numbers to use instead of a
            generator.
        all_done: function from whether this rank is done to whether all ranks are; a rank that is
            done first decodes a dummy row until then. By default there is one rank.

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
    rows = _ActiveRows(prompt_mask)
    positions = (rows.mask.cumsum(1) - 1).clamp(min=0)
    logits = decode(prompt_ids, rows.mask, positions, rows.cache)
    seen = None
    if sampling.repetition_penalty != 1:
        counts = torch.zeros_like(logits, dtype=torch.int64)
        seen = counts.scatter_add_(1, prompt_ids, prompt_mask.long()).bool()
        seen = seen.repeat_interleave(samples, 0)
    generated = _Generated(count, sampling.max_new_tokens, device, seen)
    if samples > 1:
        rows.repeat(samples)
        logits = logits.repeat_interleave(samples, 0)
    for step in range(sampling.max_new_tokens):
        uniform = None
        if sampling.temperature > 0:
            if uniforms is None:
                random = torch.rand(count, dtype=torch.float64, generator=generator).to(device)
            else:
                random = uniforms[:, step]
            uniform = random[rows.index]
        shown = None if generated.seen is None else generated.seen[rows.index]
        token, log_prob = _next_tokens(logits, sampling, uniform, shown)
        generated.add(rows.index, token, log_prob, step, stops)
        done = bool(generated.stopped.all()) or step + 1 == sampling.max_new_tokens
        if done if all_done is None else all_done(done):
            break
        token = rows.drop_finished(generated.stopped, token)
        logits = rows.decode(decode, token)
    return generated.completions()
