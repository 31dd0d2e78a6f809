"""Policy gradients on groups of rollouts, fresh or replayed, as a LightningModule.

``modules.objective`` and the core functions it calls have the objective and its papers. Where this
departs from Rollout Replay (Sun et al., 2025, arXiv:2506.05316), and why:
  1. The losses of an update are divided by its count of sequences or tokens over all ranks and
     micro-batches; the paper's code averages each micro-batch separately.
  2. Behavior log-probabilities are those of the engine when it drew the tokens, not those of a
     second pass of the trainer; where the two differ, ``mismatch`` corrects fresh tokens.
"""

from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_adaptive.core.log_probs import TokenLogProbs
from lit_adaptive.core.segments import segment_mean
from lit_adaptive.modules.language.network import LanguageModel
from lit_adaptive.modules.language.policy import PolicyModule
from lit_adaptive.modules.language.recipes import CausalLM
from lit_adaptive.modules.objective import ObjectiveOutput, PolicyObjective
from lit_adaptive.modules.optimization import Optimization
from lit_adaptive.rollout.rewards.base import Reward
from lit_adaptive.rollout.rewards.scorer import Scorer

Batch = dict[str, Any]
Reference = Literal["frozen", "adapter_off"]

GRPO_OPTIMIZATION = Optimization(learning_rate=1e-6)


class GRPO(PolicyModule):
    """Trains a policy on groups of rollouts; the signal per rollout is its mean importance ratio.

    Logs under ``train/``: ``policy_loss``, ``entropy``, ``kl``, ``clip_ratio/*``, ``ratio/*``, the
    metrics of the step of rollouts, and of replayed rollouts ``replay/ratio_mean``, ``replay/ess``
    and ``replay/clip_frac``.

    Args:
        model: recipe of the language model.
        objective: advantages and loss; by default GRPO.
        reference: reference of the KL: ``frozen``, a second copy of the initial model, or
            ``adapter_off``, the model without its LoRA.
        optimization: optimizer and learning-rate schedule.
        weights: path of a checkpoint of ``GRPO`` or ``IWSFT`` to start from.
        max_new_tokens: maximum length of greedy completions in validation and ``predict``, in
            tokens; 0 for none.
        reward: scores greedy completions; by default whether they equal the column ``answer``.

    Raises:
        ValueError: if an argument is out of range, or ``adapter_off`` is set without LoRA.
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
    ) | frozenset({"model.recipe"})

    def __init__(
        self,
        model: CausalLM,
        *,
        objective: PolicyObjective | None = None,
        reference: Reference = "frozen",
        optimization: Optimization = GRPO_OPTIMIZATION,
        weights: str | None = None,
        max_new_tokens: int = 64,
        reward: Reward | Scorer | None = None,
    ) -> None:
        super().__init__(
            model,
            optimization=optimization,
            weights=weights,
            max_new_tokens=max_new_tokens,
            reward=reward,
        )
        self.objective = objective or PolicyObjective()
        if reference == "adapter_off" and self.objective.kl_beta > 0 and model.lora is None:
            raise ValueError(
                "reference is 'adapter_off', but the model has no adapters: give the model a lora, "
                "or choose reference frozen"
            )
        self.reference: Reference = reference
        self._step_metrics: dict[str, float] = {}

    def _build_companions(self) -> list[LanguageModel]:
        """The frozen reference, if there is a KL to it."""
        if self.policy.has_dropout:
            rank_zero_warn(
                "the model has dropout, so the ratio to the behavior policy is random and not 1 "
                "on fresh rollouts: set the dropout of the model and its lora to 0"
            )
        needs_reference = self.objective.kl_beta > 0 and self.reference == "frozen"
        return [self._build_frozen()] if needs_reference else []

    # Called by the datamodule --------------------------------------------------------------------

    def advantages(self, reward: Tensor, group: Tensor, size: int) -> Tensor:
        """See ``PolicyObjective.advantages``."""
        return self.objective.advantages(reward, group, size)

    def required_prescores(self, updates: int) -> frozenset[str]:
        """See ``PolicyObjective.required_prescores``."""
        return self.objective.required_prescores(updates)

    def prescore(self, batch: Batch, names: frozenset[str]) -> dict[str, Tensor]:
        """Values ``[K]`` of a batch's tokens by the current policy, by name.

        Args:
            batch: a micro-batch of the datamodule.
            names: values to compute (``old_log_probs``, ``entropy``).
        """
        with self.decoding():
            scores = self._score(batch, entropy="entropy" in names)
        values: dict[str, Tensor] = {"old_log_probs": scores.log_prob}
        if scores.entropy is not None:
            values["entropy"] = scores.entropy
        return {name: values[name] for name in names}

    def postprocess_prescores(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """See ``PolicyObjective.postprocess_prescores``."""
        return self.objective.postprocess_prescores(values)

    # Training ------------------------------------------------------------------------------------

    def _score(self, batch: Batch, *, entropy: bool) -> TokenLogProbs:
        options = {"entropy": entropy, "temperature": batch["temperature"]}
        return self.policy.score_targets(batch, **options)[0]

    def _reference(self, batch: Batch) -> Tensor | None:
        if self.objective.kl_beta == 0:
            return None
        with self._reference_model(self.reference) as model:
            return model.score_targets(batch, temperature=batch["temperature"])[0].log_prob

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The loss of a micro-batch, and the mean ratio of each rollout to its behavior policy."""
        self._step_metrics = batch.get("metrics", self._step_metrics)
        logging = self._logs_now()
        scores = self._score(batch, entropy=logging or self.objective.needs_entropy)
        reference, max_length = self._reference(batch), batch["max_new_tokens"]
        output = self.objective.loss(scores.log_prob, scores.entropy, reference, batch, max_length)
        ratio = segment_mean(output.policy.ratio, batch["sequence"], len(batch["index"]))
        if logging:
            self._add_statistics(output, scores, batch)
        return {"loss": output.loss, "ratio": ratio}

    def _add_statistics(self, output: ObjectiveOutput, scores: TokenLogProbs, batch: Batch) -> None:
        policy, sequence, add = output.policy, batch["sequence"], self.statistics.add_values
        clipped = policy.clipped_low | policy.clipped_high
        # A micro-batch's loss is divided so that the mean over micro-batches and ranks is the loss.
        self.statistics.add_mean("policy_loss", output.loss.detach(), 1)
        add("clip_ratio/low_mean", policy.clipped_low)
        add("clip_ratio/high_mean", policy.clipped_high)
        add("clip_ratio/region_mean", clipped)
        add("ratio/mean", policy.ratio)
        self.statistics.add_max("ratio/max", policy.ratio)
        for name, affected in output.shares.items():
            add(name, affected)
        assert scores.entropy is not None
        add("entropy", scores.entropy)
        if output.kl is not None:
            add("kl", output.kl)
        replayed = ((batch["age"] > 0) & ~batch["off_policy"])[sequence]
        add("replay/ratio_mean", policy.ratio, replayed)
        self.statistics.add_ess("replay/ess", policy.ratio, replayed)
        add("replay/clip_frac", clipped, replayed)
        fresh = ((batch["age"] == 0) & ~batch["off_policy"])[sequence]
        difference = (scores.log_prob.detach() - batch["behavior_log_probs"]).abs()
        add("sampling/sampling_logp_difference/mean", difference, fresh)
        self.statistics.add_max("sampling/sampling_logp_difference/max", difference, fresh)

    def _finish_statistics(self, values: dict[str, float]) -> dict[str, float]:
        values |= self._step_metrics
        if "reward" in values:
            self.log("reward", values["reward"], prog_bar=True, logger=False)
        return {f"train/{name}": value for name, value in values.items()}
