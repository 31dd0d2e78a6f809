"""What the parts of a run need and provide, checked before training.

Modules, datamodules and callbacks have two sets of names, ``needs`` and ``provides``:

    batch.NAME    a key of the training batch
    signal.NAME   a per-sample output of ``training_step``
    data.NAME     an attribute of the datamodule
    model.NAME    an attribute of the module
    duty.NAME     a task that another part performs, such as synchronizing a target network

In a valid run every need of a part is provided by some part. Sizes in ``NAMES``: B samples or
rollouts, K completion tokens, R rows of T tokens.
"""

from collections.abc import Iterable

NAMES = {
    "batch.index": "`[B]` int64: index in the dataset, or slot in the replay, of each sample",
    "batch.probability": "`[B]` float: probability of its draw",
    "batch.weight": "`[B]` float: factor of its loss, which corrects the draw's bias",
    "batch.input": "`[B, ...]`: input of a classifier",
    "batch.text": "list of B strings: what the input was computed from",
    "batch.target": "`[B]` int64: class; in language models `[K]`: the completion tokens",
    "batch.observation": "`[B, ...]`: observation before the action",
    "batch.action": "`[B]` int64: action",
    "batch.reward": "`[B]` float32: reward, discounted and summed over n steps",
    "batch.next_observation": "`[B, ...]`: observation n steps later",
    "batch.terminated": "`[B]` bool: the episode ended there, not by a time limit",
    "batch.discount": "`[B]` float32: factor of the next value, gamma^n",
    "batch.serial": "`[B]` int64: number of the transition in its slot, by which it is recognized",
    "batch.input_ids": "`[R, T]` int64: tokens, right-padded",
    "batch.position_ids": "`[R, T]` int64: place of each token in its sample",
    "batch.position": "`[K]` int64: place in `[R * T]` whose hidden state predicts the token",
    "batch.sequence": "`[K]` int64: sample or rollout of the token, ascending",
    "batch.ref_log_probs": "`[K]` float32: log-probability of the token under the reference",
    "batch.behavior_log_probs": "`[K]` float32: the same under the policy that generated it",
    "batch.advantage": "`[B]` float32: advantage of each rollout",
    "batch.age": "`[B]` int64: policy versions since the rollout was generated; 0 if fresh",
    "batch.off_policy": "`[B]` bool: the rollout is a demonstration",
    "signal.losses": "`[B]` float32: loss of each sample, without weight and gradient",
    "signal.td_error": "`[B]` float32: temporal-difference error of each transition",
    "signal.ratio": "`[B]` float32: mean importance ratio of each rollout",
    "data.sampler": "the sampler",
    "data.beta": "strength of the bias correction, in [0, 1]; may be changed during training",
    "data.staleness": "number of updates between the draw of the latest batch and its use",
    "data.update": "`(drawn, priority)`: gives new priorities to a sampler that learns",
    "data.advance": "`(progress)`: gives the progress in [0, 1] to a sampler that follows it",
    "data.write_scores": "`(path)`: writes the sampler's scores",
    "data.scoring_dataloader": "`()`: the training set in order, this rank's share",
    "data.texts": "`(index)`: prompt and columns of training samples",
    "data.tokenizer": "the tokenizer",
    "data.set_reference": "`(log_probs)`: sets `batch.ref_log_probs`",
    "data.replay": "the replay buffer",
    "data.make_environment": "`()`: a new environment",
    "data.evaluation_seeds": "seeds of the greedy episodes",
    "data.step": "the step of rollouts under way",
    "data.finished_step": "the same once all of it has been served, else None",
    "data.roll_out": "`(index)`: generates and scores completions between two steps",
    "data.trajectories": "stored rollouts of each prompt, for their gradients",
    "data.predictions": "a sampler whose predicted pass rates can be set",
    "model.per_sample_loss": "`(batch)`: loss of each sample `[B]`",
    "model.token_log_probs": "`(batch)`: log-probabilities `[K]`",
    "model.complete": "`(prompts)`: greedy completions",
    "model.sample": "`(prompts, ...)`: sampled completions",
    "model.advantages": "`(reward, group, size)`: advantages of rollouts",
    "model.fingerprint": "hash that tells models apart, by which stored data are recognized",
    "model.recipe": "how the language model is built, for its export",
    "model.num_classes": "number of classes",
    "model.act": "`(observation)`: greedy actions",
    "model.target_net": "the target network",
    "duty.feedback": "updating a sampler that learns",
    "duty.progress": "advancing a sampler that follows the training",
    "duty.collect": "adding transitions to the replay",
    "duty.rollout_replay": "storing rollouts in the replay",
    "duty.target_sync": "updating the target network",
}
"""What each name of this package stands for. Your own parts may use further names."""


def unmet_needs(parts: Iterable[object]) -> list[str]:
    """Check that every need is provided.

    Args:
        parts: the module, the datamodule and the callbacks of a run; optional attributes are
            ``needs``, ``provides`` and ``remedies`` (by need, a hint for the error).

    Returns:
        One line for each unmet need, with the part, the need and a remedy; empty for a valid run.
    """
    parts = list(parts)
    provided = frozenset[str]().union(*(_names(part, "provides") for part in parts))
    labels = ", ".join(_label(part) for part in parts)
    lines: list[str] = []
    for part in parts:
        remedies: dict[str, str] = getattr(part, "remedies", {})
        for need in sorted(_names(part, "needs") - provided):
            remedy = remedies.get(need, f"add a part that provides {need!r}, or leave this one out")
            if need.startswith("duty."):
                remedy += " (in a config, `callbacks+:` appends; `callbacks:` replaces the list)"
            lines.append(
                f"{_label(part)} needs {need!r}, which none of {labels} provides: {remedy}"
            )
    return lines


def check_pairing(parts: Iterable[object]) -> None:
    """Reject a run whose parts do not fit together.

    Args:
        parts: the module, the datamodule and the callbacks of the run.

    Raises:
        ValueError: with a line for each unmet need.
    """
    if lines := unmet_needs(parts):
        raise ValueError("these parts do not fit together:\n  " + "\n  ".join(lines))


def _names(part: object, attribute: str) -> frozenset[str]:
    return frozenset(getattr(part, attribute, ()))


def _label(part: object) -> str:
    """Class path of a part, as a config has it."""
    cls = type(part)
    names = cls.__module__.split(".")
    package = names[:2] if names[0] == "lit_adaptive" else names[:-1] or names
    return ".".join([*package, cls.__qualname__])
