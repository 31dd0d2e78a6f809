"""Equations and the data structures below them: functions of tensors, without Lightning or I/O.

drawing           prioritized, boosting, reward_weighted, curriculum, difficulty, hard_examples:
                  priorities, masses and probabilities of samples
                  sum_tree, systematic: draws from masses, with and without replacement
                  corrections: weights that undo the bias of a draw
rollouts          advantages; freshness: priorities of replayed groups
                  influence: prompts whose gradient serves validation
                  projection: random projections of gradients
losses            td; iw_sft; policy_ratios, policy_losses, token_entropy: policy gradients
                  log_probs: log-probabilities of tokens without their logits
shared arithmetic segments, shares, schedules, diagnostics
kernels           fast implementations of the above
"""

from lit_adaptive.core.advantages import (
    FAILED,
    FLAT,
    INFORMATIVE,
    SOLVED,
    group_advantages,
    group_outcomes,
    has_spread,
    overlong_penalty,
    pass_at_k,
    psr_nsr_advantages,
    scale_by_sign,
)
from lit_adaptive.core.boosting import (
    average_duplicates,
    boost_log_weights,
    decay_toward_uniform,
    loss_gains,
)
from lit_adaptive.core.corrections import (
    inclusion_weights,
    inverse_probability_weights,
)
from lit_adaptive.core.curriculum import (
    competence,
    difficulty_cdf,
    eligible_mask,
    self_paced_mask,
    self_paced_threshold,
    staged_competence,
)
from lit_adaptive.core.diagnostics import (
    coverage,
    effective_sample_size,
    sampling_entropy,
)
from lit_adaptive.core.difficulty import (
    Gaussian,
    GumbelDraw,
    MarkovBelief,
    SelectionPrecision,
    adaptive_difficulty,
    arcsine_density,
    attention_weights,
    calibrated_logits,
    calibration_error,
    expected_signal,
    gumbel_top_k,
    kalman_update,
    markov_forecast,
    markov_observe,
    selection_log_masses,
    selection_precision,
    selection_scores,
    skip_probabilities,
    tracked_difficulty,
)
from lit_adaptive.core.freshness import (
    absolute_advantage,
    fresh_priorities,
    learnability,
    log_masses,
)
from lit_adaptive.core.hard_examples import (
    focal_loss,
    hardest_indices,
    infobatch_keep_probabilities,
    loss_cdf,
    reducible_loss,
    selective_backprop_probabilities,
)
from lit_adaptive.core.influence import (
    influence_scores,
    max_fusion,
    mean_validation_gradient,
    off_policy_coefficients,
    reciprocal_rank_fusion,
    select_top,
    selection_overlap,
)
from lit_adaptive.core.iw_sft import (
    ImportanceWeightedSFTLoss,
    TokenWeights,
    dft_weights,
    eaft_weights,
    iw_sft_weights,
    label_smoothed_losses,
    psft_weights,
    resolve_clamp,
    self_normalize,
)
from lit_adaptive.core.log_probs import (
    Distributions,
    TokenLogProbs,
    kl_divergence,
    logit_gradients,
    token_log_probs,
)
from lit_adaptive.core.policy_losses import (
    PolicyLoss,
    aggregate_losses,
    luffy_shaping,
    policy_gradient_losses,
)
from lit_adaptive.core.policy_ratios import (
    MismatchWeights,
    kl_estimates,
    log_importance_ratios,
    mismatch_weights,
    off_policy_sequence_mask,
    truncated_ratios,
)
from lit_adaptive.core.prioritized import (
    importance_sampling_weights,
    priority_masses,
    proportional_priorities,
    rank_priorities,
    sampling_probabilities,
)
from lit_adaptive.core.projection import (
    SparseProjection,
    hash_positions,
)
from lit_adaptive.core.reward_weighted import (
    balance_groups,
    exponential_masses,
    nested_masses,
    proportional_masses,
    rank_masses,
    standardize_rewards,
    threshold_masses,
)
from lit_adaptive.core.schedules import (
    linear_schedule,
)
from lit_adaptive.core.segments import (
    center_segments,
    reduce_segments,
    segment_count,
    segment_max,
    segment_mean,
    segment_std,
    segment_sum,
)
from lit_adaptive.core.sum_tree import (
    SumTree,
)
from lit_adaptive.core.systematic import (
    inclusion_probabilities,
    systematic_sample,
    uniform_sample,
)
from lit_adaptive.core.td import (
    double_q_errors,
    huber_losses,
    q_errors,
)
from lit_adaptive.core.token_entropy import (
    clip_cov,
    covariances,
    high_entropy_mask,
    kl_cov,
    kl_cov_penalties,
)

__all__ = [
    "FAILED",
    "FLAT",
    "INFORMATIVE",
    "SOLVED",
    "Distributions",
    "Gaussian",
    "GumbelDraw",
    "ImportanceWeightedSFTLoss",
    "MarkovBelief",
    "MismatchWeights",
    "PolicyLoss",
    "SelectionPrecision",
    "SparseProjection",
    "SumTree",
    "TokenLogProbs",
    "TokenWeights",
    "absolute_advantage",
    "adaptive_difficulty",
    "aggregate_losses",
    "arcsine_density",
    "attention_weights",
    "average_duplicates",
    "balance_groups",
    "boost_log_weights",
    "calibrated_logits",
    "calibration_error",
    "center_segments",
    "clip_cov",
    "competence",
    "covariances",
    "coverage",
    "decay_toward_uniform",
    "dft_weights",
    "difficulty_cdf",
    "double_q_errors",
    "eaft_weights",
    "effective_sample_size",
    "eligible_mask",
    "expected_signal",
    "exponential_masses",
    "focal_loss",
    "fresh_priorities",
    "group_advantages",
    "group_outcomes",
    "gumbel_top_k",
    "hardest_indices",
    "has_spread",
    "hash_positions",
    "high_entropy_mask",
    "huber_losses",
    "importance_sampling_weights",
    "inclusion_probabilities",
    "inclusion_weights",
    "influence_scores",
    "infobatch_keep_probabilities",
    "inverse_probability_weights",
    "iw_sft_weights",
    "kalman_update",
    "kl_cov",
    "kl_cov_penalties",
    "kl_divergence",
    "kl_estimates",
    "label_smoothed_losses",
    "learnability",
    "linear_schedule",
    "log_importance_ratios",
    "log_masses",
    "logit_gradients",
    "loss_cdf",
    "loss_gains",
    "luffy_shaping",
    "markov_forecast",
    "markov_observe",
    "max_fusion",
    "mean_validation_gradient",
    "mismatch_weights",
    "nested_masses",
    "off_policy_coefficients",
    "off_policy_sequence_mask",
    "overlong_penalty",
    "pass_at_k",
    "policy_gradient_losses",
    "priority_masses",
    "proportional_masses",
    "proportional_priorities",
    "psft_weights",
    "psr_nsr_advantages",
    "q_errors",
    "rank_masses",
    "rank_priorities",
    "reciprocal_rank_fusion",
    "reduce_segments",
    "reducible_loss",
    "resolve_clamp",
    "sampling_entropy",
    "sampling_probabilities",
    "scale_by_sign",
    "segment_count",
    "segment_max",
    "segment_mean",
    "segment_std",
    "segment_sum",
    "select_top",
    "selection_log_masses",
    "selection_overlap",
    "selection_precision",
    "selection_scores",
    "selective_backprop_probabilities",
    "self_normalize",
    "self_paced_mask",
    "self_paced_threshold",
    "skip_probabilities",
    "staged_competence",
    "standardize_rewards",
    "systematic_sample",
    "threshold_masses",
    "token_log_probs",
    "tracked_difficulty",
    "truncated_ratios",
    "uniform_sample",
]
