"""Temporal-difference errors and their losses.

    error   delta = target - prediction         positive: better than predicted
    target  reward + discount * bootstrap       no bootstrap where the episode terminated

``reward`` may be a sum over k steps, as the replay buffer computes it, and ``discount`` gamma^k. A
*truncated* episode would continue, so its bootstrap remains (Pardo et al., 2018).
"""

import torch
from torch import Tensor


def _check_shapes(q: Tensor, next_q: Tensor, **column: Tensor) -> None:
    if q.dim() != 2 or next_q.shape != q.shape:
        raise ValueError(
            f"q has shape {tuple(q.shape)} and the next step's {tuple(next_q.shape)}; "
            "both must be [B, A], one value per action"
        )
    for name, value in column.items():
        if value.shape != q.shape[:1]:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}; it must be [{len(q)}], one per sample"
            )


def _td_errors(
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
        q: ``[B, A]`` action values of the observation.
        action: ``[B]`` int64, in [0, A).
        reward: ``[B]``, discounted sum over k steps.
        discount: ``[B]``, gamma^k.
        terminated: ``[B]`` bool, whether the episode ended within the k steps.
        target_q_next: ``[B, A]`` the target network's values of the observation k steps later.

    Returns:
        ``[B]``, in the unit of the reward.

    Raises:
        ValueError: naming the tensor whose shape does not fit.
    """
    _check_shapes(
        q, target_q_next, action=action, reward=reward, discount=discount, terminated=terminated
    )
    return _td_errors(q, action, reward, discount, terminated, target_q_next.amax(1))


def double_q_errors(
    q: Tensor,
    action: Tensor,
    reward: Tensor,
    discount: Tensor,
    terminated: Tensor,
    online_q_next: Tensor,
    target_q_next: Tensor,
) -> Tensor:
    r"""Double Q-learning: the online network selects, the target network evaluates the action.

    :math:`\delta = r + \gamma^k Q'(s', \mathrm{argmax}_a Q(s', a)) - Q(s, a)`; van Hasselt et al.
    (2016), equation 4. As ``q_errors``, with the online network's values ``online_q_next``
    ``[B, A]``.
    """
    _check_shapes(
        q, target_q_next, action=action, reward=reward, discount=discount, terminated=terminated
    )
    _check_shapes(q, online_q_next)
    best = online_q_next.argmax(1, keepdim=True)
    bootstrap = target_q_next.gather(1, best).squeeze(1)
    return _td_errors(q, action, reward, discount, terminated, bootstrap)


def huber_losses(error: Tensor, delta: float | None = 1.0) -> Tensor:
    r"""Half the square up to ``delta``, linear beyond: the gradient is clipped to ``delta``.

    Huber (1964); with ``delta=1`` the "clipped error" of Mnih et al. (2015).

    Args:
        error: any shape.
        delta: error at which the loss becomes linear, above 0; None: half the square everywhere.

    Returns:
        Losses of the same shape, not negative.

    Raises:
        ValueError: if ``delta`` is not above 0.
    """
    if delta is None:
        return 0.5 * error.square()
    if delta <= 0:
        raise ValueError(f"delta is {delta}; it must be above 0 (None: squared errors)")
    return torch.nn.functional.huber_loss(
        error, torch.zeros_like(error), reduction="none", delta=delta
    )
