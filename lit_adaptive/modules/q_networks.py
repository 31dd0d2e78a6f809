"""Q-networks: from observations ``[B, *observation_shape]`` to action values ``[B, A]``.

Where these depart from the papers, and why:
  1. ``dueling`` puts two single layers on the shared trunk, where Wang et al. (2016) have two
     layers each, because the networks here are small.
  2. Weights are initialized with PyTorch's defaults.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class QNetwork(nn.Module):
    r"""A trunk, and a head with one value per action.

    With ``dueling``, :math:`Q(s, a) = V(s) + A(s, a) - \frac{1}{|A|} \sum_{a'} A(s, a')`
    (Wang et al., 2016, equation 9).

    Args:
        observation_shape: shape of one observation.
        num_actions: number of actions, above 0.
        dueling: whether to predict the state value and the actions' advantages separately.
    """

    def __init__(
        self, observation_shape: tuple[int, ...], num_actions: int, *, dueling: bool = False
    ) -> None:
        super().__init__()
        self.observation_shape = tuple(observation_shape)
        self.num_actions = num_actions
        self.dueling = dueling
        self.trunk: nn.Module
        self.head: nn.Linear
        self.value: nn.Module | None = None

    def _set_head(self, width: int) -> None:
        self.head = nn.Linear(width, self.num_actions)
        self.value = nn.Linear(width, 1) if self.dueling else None

    def _unsupported(self, supported: str) -> ValueError:
        return ValueError(
            f"{type(self).__name__} does not support observations of shape "
            f"{self.observation_shape}; it needs {supported}: choose another network "
            "(MLP takes any shape)"
        )

    def prepare(self, observation: Tensor) -> Tensor:
        """Convert an observation to the type of the weights."""
        return observation.to(self.head.weight.dtype)

    def forward(self, observation: Tensor) -> Tensor:
        """Action values ``[B, A]`` of ``observation`` ``[B, *observation_shape]``."""
        features = self.trunk(self.prepare(observation))
        output: Tensor = self.head(features)
        if self.value is None:
            return output
        value: Tensor = self.value(features)
        return value + output - output.mean(1, keepdim=True)


class MLP(QNetwork):
    """Fully connected layers with ReLU over the flattened observation.

    Args:
        observation_shape: any shape.
        num_actions: number of actions, above 0.
        hidden: widths of the hidden layers, at least one.
        dueling: see ``QNetwork``.
    """

    def __init__(
        self,
        observation_shape: tuple[int, ...],
        num_actions: int,
        *,
        hidden: Sequence[int] = (128, 128),
        dueling: bool = False,
    ) -> None:
        super().__init__(observation_shape, num_actions, dueling=dueling)
        if not hidden or min(hidden) <= 0:
            raise ValueError(f"hidden is {list(hidden)}; it must name at least one width above 0")
        # A single number has no dimension to flatten.
        flatten: dict[int, list[nn.Module]] = {0: [nn.Unflatten(0, (-1, 1))], 1: []}
        layers = flatten.get(len(self.observation_shape), [nn.Flatten()])
        width = math.prod(self.observation_shape)
        for outputs in hidden:
            layers += [nn.Linear(width, outputs), nn.ReLU()]
            width = outputs
        self.trunk = nn.Sequential(*layers)
        self._set_head(width)


class MinAtarConv(QNetwork):
    """One convolution (16 filters, 3 x 3) and one hidden layer (Young & Tian, 2019, section 4).

    Args:
        observation_shape: ``(channels, height, width)``, at least 3 x 3.
        num_actions: number of actions, above 0.
        hidden: width of the hidden layer.
        dueling: see ``QNetwork``.
    """

    def __init__(
        self,
        observation_shape: tuple[int, ...],
        num_actions: int,
        *,
        hidden: int = 128,
        dueling: bool = False,
    ) -> None:
        super().__init__(observation_shape, num_actions, dueling=dueling)
        if len(self.observation_shape) != 3 or min(self.observation_shape[1:]) < 3:
            raise self._unsupported("(channels, height, width) of at least 3 x 3, as MinAtar shows")
        channels, height, width = self.observation_shape
        self.trunk = nn.Sequential(
            nn.Conv2d(channels, 16, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * (height - 2) * (width - 2), hidden),
            nn.ReLU(),
        )
        self._set_head(hidden)


class NatureConv(QNetwork):
    """Three convolutions and a hidden layer of 512 (Mnih et al., 2015, methods).

    Bytes are divided by 255 here, so that the replay buffer can store bytes.

    Args:
        observation_shape: ``(frames, height, width)``, at least 36 x 36; the paper has (4, 84, 84).
        num_actions: number of actions, above 0.
        hidden: width of the hidden layer.
        dueling: see ``QNetwork``.
    """

    def __init__(
        self,
        observation_shape: tuple[int, ...],
        num_actions: int,
        *,
        hidden: int = 512,
        dueling: bool = False,
    ) -> None:
        super().__init__(observation_shape, num_actions, dueling=dueling)
        if len(self.observation_shape) != 3 or min(self.observation_shape[1:]) < 36:
            raise self._unsupported("(frames, height, width) of at least 36 x 36, as Atari shows")
        convolutions = nn.Sequential(
            nn.Conv2d(self.observation_shape[0], 32, 8, stride=4),
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, stride=2),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3),
            nn.ReLU(),
            nn.Flatten(),
        )
        height, width = (
            ((side - 8) // 4 + 1 - 4) // 2 + 1 - 2 for side in self.observation_shape[1:]
        )
        self.trunk = nn.Sequential(convolutions, nn.Linear(64 * height * width, hidden), nn.ReLU())
        self._set_head(hidden)

    def prepare(self, observation: Tensor) -> Tensor:
        """Convert an observation to the type of the weights, and scale bytes to [0, 1]."""
        converted = super().prepare(observation)
        return converted / 255 if observation.dtype == torch.uint8 else converted
