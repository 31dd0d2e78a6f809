"""Policy gradients on groups of rollouts, fresh or replayed, as a LightningModule.

The objective, and which paper says what, is in ``modules.grpo_objective`` and the core functions
named there. What of it departs from Rollout Replay (Sun et al., 2025, arXiv:2506.05316):
  1. Losses of an update are divided by its own count of sequences or tokens over all ranks and
     micro-batches; the paper's code averages each micro-batch by itself.
  2. Behaviour log-probabilities are those of the engine as it drew the tokens, not of a second pass
     of the trainer; where the two differ, ``mismatch`` corrects fresh tokens.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from lit_adaptive.core.log_probs import TokenLogProbs
from lit_adaptive.core.segments import segment_mean
from lit_adaptive.modules.language_model import read
from lit_adaptive.modules.model_builders import CausalLM
from lit_adaptive.modules.objective import ObjectiveOutput, PolicyObjective
from lit_adaptive.modules.optimization import Optimization
from lit_adaptive.modules.referenced import ReferencedModule
from lit_adaptive.rollout.rewards.base import Reward

Batch = dict[str, Any]
Reference = Literal["frozen", "adapter_off"]

GRPO_OPTIMIZATION = Optimization(learning_rate=1e-6)


class GRPO(ReferencedModule):
    """Trains a policy on groups of rollouts; returns how far it has moved from each of them.

    Logs ``policy_loss``, ``entropy``, ``kl``, ``clip_ratio/*``, ``ratio/*``, what the step of
    rollouts says of itself, and of replayed rollouts ``replay/ratio_mean``, ``replay/ess`` and
    ``replay/clip_frac``; all under ``train/``.

    Args:
        model: how the language model comes to be.
        objective: advantages and loss; by default GRPO.
        reference: of the KL: a second copy of the model as it begins, or the model without its
            LoRA.
        optimization: optimizer and learning-rate schedule.
        weights: a checkpoint of such a module, or of ``IWSFT``, to begin with.
        max_new_tokens: of greedy answers on validation sets and of ``predict``; 0: none.
        reward: judges greedy answers; by default whether they equal the column ``answer``.

    Raises:
        ValueError: naming the argument that is out of its range.
    """

    needs = frozenset(
        f"batch.{name}"
        for name in (
            "input_ids",
            "position",
            "target",
            "sequence",
            "behavior_log_probs",
            "advantage",
        )
    )
    remedies = {  # noqa: RUF012
        "batch.behavior_log_probs": "use lit_adaptive.data.RolloutDataModule",
    }
    provides = frozenset(
        {"model.advantages", "model.fingerprint", "model.complete", "model.sample", "signal.ratio"}
    )

    def __init__(
        self,
        model: CausalLM,
        *,
        objective: PolicyObjective | None = None,
        reference: Reference = "frozen",
        optimization: Optimization = GRPO_OPTIMIZATION,
        weights: str | None = None,
        max_new_tokens: int = 64,
        reward: Reward | None = None,
    ) -> None:
        super().__init__(model, weights=weights, max_new_tokens=max_new_tokens, reward=reward)
        self.objective = objective or PolicyObjective()
        self.optimization = optimization
        if reference == "adapter_off" and self.objective.kl_beta > 0 and model.lora is None:
            raise ValueError(
                "reference is 'adapter_off', but the model has no adapters: give the model a lora, "
                "or choose reference frozen"
            )
        self.reference: Reference = reference
        self._step_metrics: dict[str, float] = {}

    # The models ----------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Build the model, and the frozen reference if there is a KL to it."""
        if self.language is not None:
            return
        self.language = self.built()
        models = [self.language]
        if self.objective.kl_beta > 0 and self.reference == "frozen":
            models.append(self._freeze())
        if self.device_mesh is not None:
            for each in models:
                each.shard(self.device_mesh["data_parallel"])

    # What the datamodule asks --------------------------------------------------------------------

    def advantages(self, reward: Tensor, group: Tensor, size: int) -> Tensor:
        """Of rewards ``[N]`` (NaN: none) in ``size`` groups: ``[N]``."""
        return self.objective.advantages(reward, group, size)

    def required_prescores(self, updates: int) -> frozenset[str]:
        """What must be known of every token before a step of so many updates."""
        return self.objective.required_prescores(updates)

    def prescore(self, batch: Batch, names: frozenset[str]) -> dict[str, Tensor]:
        """These ``[K]`` of a batch, by the policy as it is."""
        with self.decoding():
            found = self._read(batch, entropy="entropy" in names)
        values: dict[str, Tensor] = {"old_log_probs": found.log_prob}
        if found.entropy is not None:
            values["entropy"] = found.entropy
        return {name: values[name] for name in names}

    def postprocess_prescores(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """What was prescored of a whole step, as batches carry it."""
        return self.objective.postprocess_prescores(found)

    # Training ------------------------------------------------------------------------------------

    def _read(self, batch: Batch, *, entropy: bool) -> TokenLogProbs:
        return read(self.policy, batch, entropy=entropy, temperature=batch["temperature"])[0]

    def _reference(self, batch: Batch) -> Tensor | None:
        if self.objective.kl_beta == 0:
            return None
        temperature = batch["temperature"]
        return self._reference_log_probs(batch, self.reference, temperature=temperature)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The loss of a micro-batch, and each rollout's mean ratio to the policy that wrote it."""
        self._step_metrics = batch.get("metrics", self._step_metrics)
        logging = self._logs_now()
        found = self._read(batch, entropy=logging or self.objective.needs_entropy)
        told = self.objective.loss(
            found.log_prob, found.entropy, self._reference(batch), batch, batch["max_new_tokens"]
        )
        size = len(batch["index"])
        ratio = segment_mean(told.policy.ratio, batch["sequence"], size)
        if logging:
            self._log_step(told, found.log_prob.detach(), found.entropy, batch)
        return {"loss": told.loss, "ratio": ratio}

    def _log_step(
        self, told: ObjectiveOutput, log_prob: Tensor, entropy: Tensor | None, batch: Batch
    ) -> None:
        policy, sequence = told.policy, batch["sequence"]
        clipped = {
            "low_mean": policy.clipped_low,
            "high_mean": policy.clipped_high,
            "region_mean": policy.clipped_low | policy.clipped_high,
        }
        values: dict[str, Tensor] = {"policy_loss": told.loss.detach()}
        if len(log_prob):
            values |= {f"clip_ratio/{name}": each.float().mean() for name, each in clipped.items()}
            values |= {"ratio/mean": policy.ratio.mean(), "ratio/max": policy.ratio.max()}
            values |= {name: each.mean() for name, each in told.shares.items()}
            assert entropy is not None
            values["entropy"] = entropy.detach().mean()
            if told.kl is not None:
                values["kl"] = told.kl.detach().mean()
            replayed = ((batch["age"] > 0) & ~batch["off_policy"])[sequence]
            fresh = ((batch["age"] == 0) & ~batch["off_policy"])[sequence]
            if bool(replayed.any()):
                values |= _of_replayed(policy.ratio[replayed], clipped["region_mean"][replayed])
            if bool(fresh.any()):
                gap = (log_prob - batch["behavior_log_probs"])[fresh].abs()
                values["sampling/sampling_logp_difference/mean"] = gap.mean()
                values["sampling/sampling_logp_difference/max"] = gap.max()
        everything = values | {n: torch.tensor(v) for n, v in self._step_metrics.items()}
        self.log_dict({f"train/{n}": v for n, v in everything.items()}, batch_size=1)
        if "reward" in self._step_metrics:
            self.log("reward", self._step_metrics["reward"], prog_bar=True, logger=False)


def _of_replayed(ratio: Tensor, clipped: Tensor) -> dict[str, Tensor]:
    """How far the policy is from the replayed tokens ``[k]``."""
    return {
        "replay/ratio_mean": ratio.mean(),
        "replay/ess": ratio.sum().square() / (len(ratio) * ratio.square().sum().clamp(min=1e-30)),
        "replay/clip_frac": clipped.float().mean(),
    }
