"""Temporal-difference errors and the losses on them, as pure functions of tensors.

    error   delta = target - prediction         positive: better than predicted
    target  reward + discount * bootstrap       no bootstrap where the episode terminated

``reward`` may be summed over k steps; ``discount`` is then gamma^k, per sample. A *truncated*
episode goes on beyond what was seen, so its bootstrap stays (Pardo et al., 2018).
"""

import torch
from torch import Tensor


def n_step_return(reward: Tensor, gamma: float) -> Tensor:
    r"""Discounted sum :math:`\sum_{j<n} \gamma^j r_{t+j}` over the last axis.

    Args:
        reward: ``[..., n]``, in the order they came.
        gamma: in [0, 1].

    Returns:
        ``[...]``, of the reward's dtype.

    Raises:
        ValueError: if ``gamma`` is outside [0, 1] or there is no reward.
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma is {gamma}; a discount lies in [0, 1]")
    steps = reward.shape[-1]
    if steps == 0:
        raise ValueError("reward has no steps in its last axis; an n-step return needs at least 1")
    powers = gamma ** torch.arange(steps, dtype=reward.dtype, device=reward.device)
    return (reward * powers).sum(-1)


def _check(q: Tensor, next_q: Tensor, **column: Tensor) -> None:
    if q.dim() != 2 or next_q.shape != q.shape:
        raise ValueError(
            f"q has shape {tuple(q.shape)} and the next step's {tuple(next_q.shape)}; "
            "both must be [B, A], one value for each action"
        )
    for name, value in column.items():
        if value.shape != q.shape[:1]:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}; it must be [{len(q)}], one per sample"
            )


def _errors(
    q: Tensor,
    action: Tensor,
    reward: Tensor,
    discount: Tensor,
    terminated: Tensor,
    bootstrap: Tensor,
) -> Tensor:
    target = reward + discount * torch.where(terminated, 0.0, bootstrap)
    return target.detach() - q.gather(1, action[:, None]).squeeze(1)


def q_errors(
    q: Tensor,
    action: Tensor,
    reward: Tensor,
    discount: Tensor,
    terminated: Tensor,
    target_q_next: Tensor,
) -> Tensor:
    r"""Q-learning: :math:`\delta = r + \gamma^k \max_a Q'(s', a) - Q(s, a)`.

    Mnih et al. (2015). No gradient flows through the target.

    Args:
        q: ``[B, A]`` of the observation.
        action: ``[B]`` int64, in [0, A).
        reward: ``[B]``, over k steps.
        discount: ``[B]``, gamma^k.
        terminated: ``[B]`` bool.
        target_q_next: ``[B, A]``, the target network's of the observation k steps on.

    Returns:
        ``[B]``, in the unit of the reward.

    Raises:
        ValueError: naming the tensor whose shape does not fit.
    """
    _check(q, target_q_next, action=action, reward=reward, discount=discount, terminated=terminated)
    return _errors(q, action, reward, discount, terminated, target_q_next.amax(1))


def double_q_errors(
    q: Tensor,
    action: Tensor,
    reward: Tensor,
    discount: Tensor,
    terminated: Tensor,
    online_q_next: Tensor,
    target_q_next: Tensor,
) -> Tensor:
    r"""Double Q-learning: the online network picks the next action, the target network rates it.

    :math:`\delta = r + \gamma^k Q'(s', \arg\max_a Q(s', a)) - Q(s, a)`; van Hasselt et al. (2016),
    equation 4. Arguments, result and errors as ``q_errors``, and ``online_q_next`` ``[B, A]``.
    """
    _check(q, target_q_next, action=action, reward=reward, discount=discount, terminated=terminated)
    _check(q, online_q_next)
    chosen = online_q_next.argmax(1, keepdim=True)
    bootstrap = target_q_next.gather(1, chosen).squeeze(1)
    return _errors(q, action, reward, discount, terminated, bootstrap)


def huber_losses(error: Tensor, delta: float | None = 1.0) -> Tensor:
    r"""Half the square up to ``delta``, linear beyond: the gradient is clipped to ``delta``.

    Huber (1964); with ``delta=1`` the "clipped error" of Mnih et al. (2015). ``None``: half the
    square everywhere.

    Args:
        error: any shape.
        delta: where the loss turns linear, above 0.

    Returns:
        Of the same shape, not negative.

    Raises:
        ValueError: if ``delta`` is not above 0.
    """
    if delta is None:
        return 0.5 * error.square()
    if delta <= 0:
        raise ValueError(f"delta is {delta}; it must be above 0 (None: squared errors throughout)")
    return torch.nn.functional.huber_loss(
        error, torch.zeros_like(error), reduction="none", delta=delta
    )
