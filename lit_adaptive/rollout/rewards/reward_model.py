"""A reward model: a network trained to score completions."""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from lit_adaptive.core.bounds import check_at_least
from lit_adaptive.rollout.models.hub import hub_access
from lit_adaptive.rollout.models.pretrained import load_tokenizer, transformers_quiet
from lit_adaptive.rollout.rewards.base import Reward


class RewardModel(Reward):
    """The output of a sequence classifier of transformers for prompt and completion.

    The model is loaded at the first call, stays in this process, and is not trained. With one
    output, the reward is that output; with several, the log-probability of the class ``label``.

    Args:
        name: folder or hub name of a model for ``AutoModelForSequenceClassification``, with its
            tokenizer.
        batch_size: number of completions per forward pass, above 0; those of similar length are
            batched together.
        max_length: greatest number of tokens of prompt and completion together, above 0; longer
            texts lose their beginning. By default the tokenizer's ``model_max_length``.
        chat: True to apply the tokenizer's chat template, with the prompt as the user's turn and
            the completion as the assistant's; False to append the completion to the prompt.
        label: number or name of the class, for a model with several outputs.
        device: device of the model, such as ``cuda:1`` or ``cpu``; by default the GPU if there is
            one.
        dtype: type of the parameters; ``auto`` for that in which they were saved.

    Raises:
        ValueError: if a number is out of range, and when called, if there is no such model, it has
            several outputs and no label, or no chat template.
    """

    in_process = True

    def __init__(
        self,
        name: str,
        *,
        batch_size: int = 16,
        max_length: int | None = None,
        chat: bool = False,
        label: int | str | None = None,
        device: str | None = None,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    ) -> None:
        check_at_least(batch_size=(batch_size, 1), max_length=(max_length, 1))
        self.name = name
        self.batch_size = batch_size
        self.max_length = max_length
        self.chat = chat
        self.label = label
        self.device = device
        self.dtype = dtype
        self._loaded: tuple[Any, Any, int | None] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the model, which is loaded again."""
        return {**vars(self), "_loaded": None}

    @torch.no_grad()
    def __call__(
        self,
        prompts: list[str],
        completions: list[str],
        **columns: list[Any],  # noqa: ARG002
    ) -> list[float | None]:
        """Return a number for each completion."""
        model, tokenizer, _ = self._model()
        tokens = self._tokenize(tokenizer, prompts, completions)
        order = sorted(range(len(tokens)), key=lambda k: len(tokens[k]))
        rewards = [math.nan] * len(tokens)
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            padded = tokenizer.pad(
                {"input_ids": [tokens[k] for k in rows]}, padding_side="right", return_tensors="pt"
            ).to(model.device)
            logits = model(
                input_ids=padded["input_ids"], attention_mask=padded["attention_mask"]
            ).logits
            for row, reward in zip(rows, self._rewards(logits).tolist(), strict=True):
                rewards[row] = reward
        return list(rewards)

    def _rewards(self, logits: Tensor) -> Tensor:
        """Rewards ``[B]`` float32 from the model's outputs ``[B, C]``."""
        _, _, label = self._model()
        if label is None:
            return logits[:, 0].float()
        return logits.float().log_softmax(-1)[:, label]

    def _tokenize(
        self, tokenizer: Any, prompts: list[str], completions: list[str]
    ) -> list[list[int]]:
        limit = self.max_length or min(tokenizer.model_max_length, 1 << 20)
        if self.chat:
            if not tokenizer.chat_template:
                raise ValueError(
                    f"the tokenizer of {self.name!r} has no chat template; set chat: false"
                )
            texts = [
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": p}, {"role": "assistant", "content": c}],
                    tokenize=False,
                )
                for p, c in zip(prompts, completions, strict=True)
            ]
        else:
            texts = [p + c for p, c in zip(prompts, completions, strict=True)]
        tokens: list[list[int]] = [
            tokenizer(text, add_special_tokens=not self.chat)["input_ids"] for text in texts
        ]
        return [row[-limit:] for row in tokens]

    def _model(self) -> tuple[Any, Any, int | None]:
        """Model, tokenizer and number of the class; loaded once."""
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    def _load(self) -> tuple[Any, Any, int | None]:
        from transformers import AutoModelForSequenceClassification

        tokenizer = load_tokenizer(self.name)
        try:
            with transformers_quiet(), hub_access(self.name):
                model, loading = AutoModelForSequenceClassification.from_pretrained(
                    self.name, dtype=self.dtype, output_loading_info=True
                )
        except (OSError, ValueError) as error:
            raise ValueError(
                f"the reward model {self.name!r} cannot be loaded: name the folder or hub model of "
                f"a sequence classifier. {error}"
            ) from error
        if loading["missing_keys"]:
            missing = sorted(loading["missing_keys"])
            raise ValueError(
                f"the reward model {self.name!r} has no weights for {missing}, so its rewards "
                "would be random: name a sequence classifier"
            )
        if model.config.pad_token_id is None:
            model.config.pad_token_id = tokenizer.pad_token_id
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        model = model.to(device).eval().requires_grad_(False)
        return model, tokenizer, self._class_number(model.config)

    def _class_number(self, config: Any) -> int | None:
        classes: dict[int, str] = {int(k): str(name) for k, name in config.id2label.items()}
        if self.label is None and len(classes) == 1:
            return None
        by_name = {name: k for k, name in classes.items()}
        number = by_name.get(str(self.label), self.label)
        if not isinstance(number, int) or number not in classes:
            raise ValueError(
                f"label is {self.label!r}, and the reward model {self.name!r} has the classes "
                f"{classes}; name one of them by its number or name"
            )
        return number
