r"""Multiplicative sample weights, in the manner of AdaBoost (Freund and Schapire, 1997).

Four quantities share this file, and never a name:

    loss         l_i        what the model paid for sample i                     [B]
    gain         g_i        the loss within its batch, from 0 to 1, less b       [B], in [-b, 1 - b]
    log weight   s_i        log of the sample's weight; 0 is where all begin     [N]
    weight       exp(s_i)   mass in the sampler's tree; P(i) = weight / sum      [N], above 0

One update of the samples of a batch, with learning rate eta, momentum mu and decay lambda:

    v_i <- mu v_i + (1 - mu) g_i
    s_i <- (1 - lambda) s_i + eta v_i,  then kept in [log floor, log ceiling]

So a sample's log weight is a moving average of its gains, at most eta (1 - b) / lambda, and a
sample that is easy whenever it is drawn goes as far below 0 as the ever hard one goes above.

Where this departs from the specification's ``w *= exp(eta * minmax(loss))``, and why:
  1. The specification's gain is never negative, so a weight grows whenever its sample is drawn,
     however easy, and what was drawn once is drawn more: weights drift without end. Here the
     baseline b = 1/2 is subtracted, as AdaBoost raises the wrong and lowers the right ones.
     ``baseline=0, decay=0`` is the specification's rule.
  2. Weights live as logarithms between a floor and a ceiling; a million updates overflow nothing.
  3. Where all losses of a batch are equal the min-max is 0/0; there is no news then: every gain
     is 0, and weights that were uniform stay so.
  4. A sample that stands in a batch more than once is updated once, by the mean of its losses.
"""

from torch import Tensor


def gains(loss: Tensor, *, baseline: float = 0.5) -> Tensor:
    """Min-max normalised losses less the baseline: what the weights' logarithms move by.

    Args:
        loss: ``[B]``, finite, of any sign; distinct samples.
        baseline: the normalised loss at which a weight stays as it is, in [0, 1].

    Returns:
        ``[B]`` float64 in ``[-baseline, 1 - baseline]``; all 0 if the losses are equal.
    """
    loss = loss.detach().double()
    if not len(loss):
        return loss
    least, greatest = loss.aminmax()
    # Halved, so that the span of opposite extremes does not overflow; exact otherwise.
    span = greatest / 2 - least / 2
    if not span > 0:
        return loss.new_zeros(len(loss))
    return (loss / 2 - least / 2) / span - baseline


def boosted(
    log_weight: Tensor,
    velocity: Tensor,
    gain: Tensor,
    *,
    learning_rate: float,
    momentum: float = 0.0,
    decay: float = 0.0,
    bounds: tuple[float, float],
) -> tuple[Tensor, Tensor]:
    """New log weights and velocities of the samples of a batch; the equations above.

    Args:
        log_weight: ``[B]``, of the batch's distinct samples.
        velocity: ``[B]``, smoothed gains so far; zeros at first.
        gain: ``[B]``.
        learning_rate: eta, not negative.
        momentum: mu in [0, 1).
        decay: lambda in [0, 1]: how much of a log weight each of its updates forgets.
        bounds: least and greatest log weight.

    Returns:
        ``log_weight`` and ``velocity``, each ``[B]``.
    """
    velocity = momentum * velocity + (1 - momentum) * gain
    moved = (1 - decay) * log_weight + learning_rate * velocity
    return moved.clamp(*bounds), velocity


def forgotten(log_weight: Tensor, share: float) -> Tensor:
    """All log weights drawn towards uniform: ``(1 - share) * log_weight``.

    Args:
        log_weight: ``[N]``.
        share: in [0, 1]; 1 makes all weights equal.
    """
    return log_weight * (1 - share)
