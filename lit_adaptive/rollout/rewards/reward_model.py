"""A reward model: a network that has learnt what completions are worth."""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from lit_adaptive.rollout.models.pretrained import load_tokenizer, quiet
from lit_adaptive.rollout.rewards.base import Reward


class RewardModel(Reward):
    """What a sequence classifier of transformers says of prompt and completion.

    The model is loaded when it is first asked, stays in this process, and is not trained. A model
    of one output gives this number; of several, choose the class, whose log-probability it is then.

    Args:
        name: folder or hub name of a model for ``AutoModelForSequenceClassification``, with its
            tokenizer.
        batch_size: completions at once, above 0; of about equal length, so that little is padded.
        max_length: tokens of prompt and completion together, above 0; of longer ones the beginning
            is cut off. By default what the tokenizer says that the model can read.
        chat: the prompt is the user's turn and the completion the assistant's, by the tokenizer's
            chat template; else the completion follows the prompt as it is.
        label: the class, by its number or name, of a model with several outputs.
        device: such as ``cuda:1`` or ``cpu``; by default the GPU if there is one.
        dtype: of its parameters: ``auto`` as they were saved.

    Raises:
        ValueError: if a number is out of range, and when asked, if there is no such model, it has
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
        for argument, value in (("batch_size", batch_size), ("max_length", max_length)):
            if value is not None and value < 1:
                raise ValueError(f"{argument} is {value}; it must be above 0")
        self.name = name
        self.batch_size = batch_size
        self.max_length = max_length
        self.chat = chat
        self.label = label
        self.device = device
        self.dtype = dtype
        self._loaded: tuple[Any, Any, int | None] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the model, which is loaded again."""
        return {**vars(self), "_loaded": None}

    @torch.no_grad()
    def __call__(
        self,
        prompts: list[str],
        completions: list[str],
        **columns: list[Any],  # noqa: ARG002
    ) -> list[float | None]:
        """A number for each completion."""
        model, tokenizer, _ = self._model()
        tokens = self._tokens(tokenizer, prompts, completions)
        order = sorted(range(len(tokens)), key=lambda k: len(tokens[k]))
        rewards = [math.nan] * len(tokens)
        for start in range(0, len(order), self.batch_size):
            part = order[start : start + self.batch_size]
            padded = tokenizer.pad(
                {"input_ids": [tokens[k] for k in part]}, padding_side="right", return_tensors="pt"
            ).to(model.device)
            logits = model(
                input_ids=padded["input_ids"], attention_mask=padded["attention_mask"]
            ).logits
            for place, reward in zip(part, self._rewards(logits).tolist(), strict=True):
                rewards[place] = reward
        return list(rewards)

    def _rewards(self, logits: Tensor) -> Tensor:
        """``[B]`` float32 of the model's outputs ``[B, C]``."""
        _, _, label = self._model()
        if label is None:
            return logits[:, 0].float()
        return logits.float().log_softmax(-1)[:, label]

    def _tokens(
        self, tokenizer: Any, prompts: list[str], completions: list[str]
    ) -> list[list[int]]:
        most = self.max_length or min(tokenizer.model_max_length, 1 << 20)
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
        found: list[list[int]] = [
            tokenizer(text, add_special_tokens=not self.chat)["input_ids"] for text in texts
        ]
        return [each[-most:] for each in found]

    def _model(self) -> tuple[Any, Any, int | None]:
        """Model, tokenizer and class; loaded once."""
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    def _load(self) -> tuple[Any, Any, int | None]:
        from transformers import AutoModelForSequenceClassification

        tokenizer = load_tokenizer(self.name)
        try:
            with quiet():
                model, told = AutoModelForSequenceClassification.from_pretrained(
                    self.name, dtype=self.dtype, output_loading_info=True
                )
        except (OSError, ValueError) as error:
            raise ValueError(
                f"the reward model {self.name!r} cannot be loaded: name the folder or hub model of "
                f"a sequence classifier. {error}"
            ) from error
        if told["missing_keys"]:
            raise ValueError(
                f"the reward model {self.name!r} has no weights for {sorted(told['missing_keys'])}"
                ": it is no sequence classifier, and its rewards would be random; name one"
            )
        if model.config.pad_token_id is None:
            model.config.pad_token_id = tokenizer.pad_token_id
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        model = model.to(device).eval().requires_grad_(False)
        return model, tokenizer, self._class(model.config)

    def _class(self, config: Any) -> int | None:
        classes: dict[int, str] = {int(k): str(name) for k, name in config.id2label.items()}
        if self.label is None and len(classes) == 1:
            return None
        by_name = {name: k for k, name in classes.items()}
        found = by_name.get(str(self.label), self.label)
        if not isinstance(found, int) or found not in classes:
            raise ValueError(
                f"label is {self.label!r}, and the reward model {self.name!r} has the classes "
                f"{classes}; name one of them by its number or name"
            )
        return found
