"""A module around a language model: how it is built, kept, and asked for answers."""

import hashlib
import pickle
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_adaptive.modules.base import AdaptiveModule, evaluation_mode
from lit_adaptive.modules.language_model import LanguageModel
from lit_adaptive.modules.model_builders import CausalLM
from lit_adaptive.rollout.generation import (
    Completions,
    SamplingParams,
    generate,
    left_pad_sequences,
)
from lit_adaptive.rollout.models.tokenizers import stop_token_ids

_PREFIX = "language."


class PolicyModule(AdaptiveModule):
    """A language model that answers prompts.

    Args:
        model: how the language model comes to be.
        weights: a checkpoint of such a module to begin with; None: the model's own weights.
        max_new_tokens: of an answer; 0: none are given.

    Raises:
        ValueError: if ``max_new_tokens`` is negative, or ``weights`` is no file.
    """

    def __init__(self, model: CausalLM, *, weights: str | None, max_new_tokens: int) -> None:
        super().__init__()
        if max_new_tokens < 0:
            raise ValueError(
                f"max_new_tokens is {max_new_tokens}; it must be at least 0 (0: no answers)"
            )
        if weights is not None and not Path(weights).is_file():
            raise ValueError(f"weights is {weights!r}, which is no file: give a checkpoint's path")
        self.recipe = model
        self.weights = weights
        self.max_new_tokens = max_new_tokens
        self.language: LanguageModel | None = None
        if model.lora is not None:
            self.strict_loading = False  # a checkpoint holds the adapters only

    # The model -----------------------------------------------------------------------------------

    @property
    def policy(self) -> LanguageModel:
        """The language model in training."""
        assert self.language is not None  # Lightning calls configure_model before anything else
        return self.language

    @property
    def tokenizer(self) -> Any:
        """The datamodule's."""
        return self.trainer.datamodule.tokenizer  # type: ignore[attr-defined]

    @property
    def transformer(self) -> Any:
        """The transformers model itself; adapters, if any, are in it."""
        return self.policy.base

    @property
    def attention_cost_ratio(self) -> float | None:
        """See ``modules.shared_reading``; None: prompts are to be read with each answer."""
        return self.policy.attention_cost_ratio

    def built(self) -> LanguageModel:
        """A new language model, with the weights that training begins with."""
        language = self.recipe.build(self.tokenizer)
        if self.weights is not None:
            _load(language, self.weights)
        return language

    def fingerprint(self) -> str:
        """Of all weights: hex digits that tell this model from any other. All ranks must ask."""
        digest = hashlib.blake2b(digest_size=16)
        for name, parameter in sorted(self.policy.named_parameters()):
            whole: Any = parameter.detach()
            if hasattr(whole, "full_tensor"):
                whole = whole.full_tensor()
            digest.update(f"{name} {whole.dtype} {tuple(whole.shape)}".encode())
            digest.update(whole.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def architecture_fingerprint(self) -> str:
        """Of the names and shapes of all weights: tells models apart, not their training."""
        shapes = [(name, tuple(each.shape)) for name, each in self.policy.named_parameters()]
        return hashlib.blake2b(repr(sorted(shapes)).encode(), digest_size=8).hexdigest()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out what LoRA does not train."""
        if self.recipe.lora is None:
            return
        trained = {n for n, p in self.policy.named_parameters() if p.requires_grad}
        state: dict[str, Any] = checkpoint["state_dict"]
        for name in [*state]:
            model, _, parameter = name.partition(".")
            if model in ("language", "average") and parameter not in trained:
                del state[name]

    # Answers -------------------------------------------------------------------------------------

    def decode(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, cache: Any
    ) -> Tensor:
        """See ``LanguageModel.decode``."""
        return self.policy.decode(input_ids, attention_mask, position_ids, cache)

    def stops(self) -> list[int]:
        """Tokens that end a completion."""
        config = getattr(self.policy.model, "generation_config", None)
        return stop_token_ids(self.tokenizer, config)

    def all_done(self, done: bool) -> bool:
        """Whether every rank is done: sharded models decode together."""
        if self.device_mesh is None or self.trainer.world_size == 1:
            return done
        flag = torch.tensor(float(done), device=self.device)
        return bool(self.trainer.strategy.reduce(flag, reduce_op="mean") == 1)

    @contextmanager
    def decoding(self) -> Generator[None]:
        """Within, without dropout or gradients, in the run's precision; then as it was."""
        with evaluation_mode(self), self.trainer.precision_plugin.forward_context():
            yield

    def _generator(self) -> torch.Generator:
        """Seeded from the global stream, which is part of what a resumed run repeats."""
        seed = int(torch.randint(2**62, ()))
        return torch.Generator(device="cpu").manual_seed(seed)

    @torch.no_grad()
    def answers(
        self, prompt_ids: Tensor, prompt_mask: Tensor, sampling: SamplingParams
    ) -> Completions:
        """Completions of left-padded prompts ``[B, P]``. Under sharding all ranks must ask.

        Args:
            prompt_ids: ``[B, P]`` int64.
            prompt_mask: ``[B, P]`` bool, False where padded.
            sampling: how.
        """
        with self.decoding():
            return generate(
                self.policy.decode,
                prompt_ids,
                prompt_mask,
                sampling,
                self.stops(),
                generator=self._generator() if sampling.temperature > 0 else None,
                all_done=self.all_done,
            )

    def texts(self, tokens: list[Tensor]) -> list[str]:
        """Completions as text, without the token that ends them."""
        stops = set(self.stops())
        kept = [[t for t in each.tolist() if t not in stops] for each in tokens]
        found: list[str] = self.tokenizer.batch_decode(kept, skip_special_tokens=True)
        return found

    def sample(
        self, prompts: list[str], samples: int, sampling: SamplingParams
    ) -> list[list[dict[str, Any]]]:
        """``samples`` completions of each prompt, each with its log-probability and its finish.

        Args:
            prompts: texts as the datamodule's dataset gives them.
            samples: above 0.
            sampling: how.
        """
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        ids = [each for each in data.encode_prompts(prompts) for _ in range(samples)]
        prompt_ids, mask = left_pad_sequences(ids, self.tokenizer.pad_token_id)
        found = self.answers(prompt_ids.to(self.device), mask.to(self.device), sampling)
        rows = [
            {"completion": text, "log_prob": float(log_prob.sum()), "finish": finish}
            for text, log_prob, finish in zip(
                self.texts(found.tokens), found.log_probs, found.finish, strict=True
            )
        ]
        return [rows[start : start + samples] for start in range(0, len(rows), samples)]

    def complete(self, prompts: list[str]) -> list[str]:
        """One completion of each prompt, drawn at temperature 1."""
        sampling = SamplingParams(max_new_tokens=max(self.max_new_tokens, 1), temperature=1.0)
        return [rows[0]["completion"] for rows in self.sample(prompts, 1, sampling)]


def _load(language: LanguageModel, path: str) -> None:
    """Give ``language`` the weights of a checkpoint.

    Raises:
        ValueError: if it cannot be read, or is of another model.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise ValueError(
            f"weights is {path!r}, which is no checkpoint of lit-adaptive: {error}"
        ) from error
    own = {k.removeprefix(_PREFIX): v for k, v in state.items() if k.startswith(_PREFIX)}
    known = language.state_dict()
    unknown = [name for name in own if name not in known or own[name].shape != known[name].shape]
    absent = [] if language.adapted else [name for name in known if name not in own]
    if unknown or absent or not own:
        raise ValueError(
            f"weights is {path!r}, a checkpoint of another model: it has {unknown[:3]}, which this "
            f"one has not or in another shape, and lacks {absent[:3]}"
        )
    language.load_state_dict(own, strict=False)
