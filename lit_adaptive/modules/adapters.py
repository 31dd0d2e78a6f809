"""Adapters: little to train, and the model without them beside it."""

import warnings
from typing import Any


class LoRA:
    """Low-rank adapters (Hu et al., 2022, arXiv:2106.09685) in place of training all weights.

    Args:
        rank: above 0.
        alpha: the adapters' output is multiplied by alpha / rank.
        dropout: of the adapters' input, in [0, 1).
        targets: names of the modules that get an adapter; by default all linear ones but the head.

    Raises:
        ValueError: naming the argument that is out of its range.
    """

    def __init__(
        self,
        rank: int = 16,
        alpha: float = 32.0,
        dropout: float = 0.0,
        targets: list[str] | None = None,
    ) -> None:
        if rank <= 0:
            raise ValueError(f"rank is {rank}; it must be above 0")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}; it must lie in [0, 1)")
        self.rank, self.alpha, self.dropout, self.targets = rank, alpha, dropout, targets

    def applied(self, model: Any) -> Any:
        """``model`` with adapters, the only part that is trained.

        Raises:
            ModuleNotFoundError: if peft is not installed.
        """
        try:
            import peft
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "LoRA needs the package `peft`: pip install 'lit-adaptive[lora]'"
            ) from error
        config = peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            target_modules=self.targets or "all-linear",
            task_type="CAUSAL_LM",
        )
        with warnings.catch_warnings():
            # peft still asks transformers by a name that will go
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
            return peft.get_peft_model(model, config)
