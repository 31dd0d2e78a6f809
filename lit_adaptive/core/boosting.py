r"""Multiplicative sample weights in the manner of AdaBoost (Freund and Schapire, 1997).

Four quantities, each with its own name:

    loss         l_i       loss of sample i                                      [B]
    gain         g_i       loss, min-max normalised in its batch, minus b        [B], in [-b, 1 - b]
    log weight   s_i       log of the sample's weight; initially 0               [N]
    weight       exp(s_i)  mass in the sampler's tree; P(i) = weight / sum       [N], above 0

One update of the samples of a batch, with learning rate eta, momentum mu and decay lambda:

    v_i <- mu v_i + (1 - mu) g_i
    s_i <- (1 - lambda) s_i + eta v_i,  clamped to [log floor, log ceiling]

A sample's log weight is a moving average of its gains, at most eta (1 - b) / lambda. A sample that
is always easy goes as far below 0 as one that is always hard goes above.

Departures from the specification's ``w *= exp(eta * minmax(loss))``:
  1. The specification's gain is never negative, so a weight grows whenever its sample is drawn,
     however easy, and drawn samples are drawn more: weights drift without end. Here the baseline
     b = 1/2 is subtracted, as AdaBoost raises the weights of misclassified samples and lowers the
     others. ``baseline=0, decay=0`` is the specification's rule.
  2. Weights are kept as logarithms between a floor and a ceiling, so they never overflow.
  3. If all losses of a batch are equal, the min-max is 0/0; then every gain is 0, and uniform
     weights stay uniform.
  4. A sample that occurs more than once in a batch is updated once, by the mean of its losses.
"""

import torch
from torch import Tensor

from lit_adaptive.core.segments import segment_max, segment_mean


def average_duplicates(index: Tensor, loss: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct samples of a batch and the mean loss of each; exact where its losses are equal.

    Args:
        index: ``[B]`` int64.
        loss: ``[B]``, finite.

    Returns:
        Distinct indices ``[D]``, ascending, and their mean losses ``[D]`` float64.
    """
    distinct, position = torch.unique(index, return_inverse=True)
    loss = loss.detach().double()
    if len(distinct) == len(index):
        return distinct, torch.empty_like(loss).scatter(0, position, loss)
    greatest = segment_max(loss, position, len(distinct))
    below = segment_mean(loss - greatest[position], position, len(distinct))
    return distinct, greatest + below


def loss_gains(loss: Tensor, *, baseline: float = 0.5) -> Tensor:
    """Min-max normalised losses minus the baseline: the changes of the log weights.

    Args:
        loss: ``[B]``, finite, of any sign; of distinct samples.
        baseline: normalised loss at which a weight does not change, in [0, 1].

    Returns:
        ``[B]`` float64 in ``[-baseline, 1 - baseline]``; all 0 if the losses are equal.
    """
    loss = loss.detach().double()
    if not len(loss):
        return loss
    least, greatest = (loss / 2).aminmax()  # halved, the range of opposite extremes is finite
    gain = (loss / 2 - least) / (greatest - least) - baseline
    return torch.where(greatest > least, gain, 0.0)


def boost_log_weights(
    log_weight: Tensor,
    velocity: Tensor,
    gain: Tensor,
    *,
    learning_rate: float,
    momentum: float = 0.0,
    decay: float = 0.0,
    bounds: tuple[float, float],
) -> tuple[Tensor, Tensor]:
    """New log weights and velocities of a batch's samples, by the equations above.

    Args:
        log_weight: ``[B]``, of distinct samples.
        velocity: ``[B]``, smoothed gains so far; initially 0.
        gain: ``[B]``, see ``loss_gains``.
        learning_rate: eta, not negative.
        momentum: mu, in [0, 1).
        decay: lambda, in [0, 1]: fraction by which each update shrinks a log weight.
        bounds: smallest and largest log weight.

    Returns:
        ``log_weight`` and ``velocity``, each ``[B]``.
    """
    velocity = momentum * velocity + (1 - momentum) * gain
    log_weight = (1 - decay) * log_weight + learning_rate * velocity
    return log_weight.clamp(*bounds), velocity


def decay_toward_uniform(log_weight: Tensor, fraction: float) -> Tensor:
    """Log weights ``[N]`` shrunk by ``fraction`` in [0, 1]; 1 makes all weights equal."""
    return log_weight * (1 - fraction)
