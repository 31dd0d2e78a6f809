"""DQN (Mnih et al., 2015) with double Q-learning (van Hasselt et al., 2016), as a LightningModule.

Where this departs from the papers, and why:
  1. Adam with PyTorch's epsilon instead of RMSProp, the usual choice since; ``optimizer`` takes any
     other.
  2. The Huber loss is weighted per sample and averaged over the batch. Schaul et al. (2016)
     accumulate ``w * delta`` over a minibatch, which is the same up to the learning rate.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_adaptive.core.bounds import check_at_least
from lit_adaptive.core.td import double_q_errors, huber_losses, q_errors
from lit_adaptive.modules.base import AdaptiveModule
from lit_adaptive.modules.optimization import OptimizerFactory
from lit_adaptive.modules.q_networks import MLP

NetworkFactory = Callable[[tuple[int, ...], int], nn.Module]
"""From an observation's shape and the number of actions to a network (``class_path`` in YAML)."""


class DQN(AdaptiveModule):
    """Learns action values from replayed transitions; the signal is each transition's TD error.

    Args:
        network: builds the online and the target network from an observation's shape and the number
            of actions: such as ``MLP``, or any module class whose first two arguments these are. It
            maps observations ``[B, *shape]``, of the environment's type, to values ``[B, A]``.
        learning_rate: learning rate of Adam, above 0.
        double: whether the online network chooses the next action and the target network evaluates
            it (double Q-learning).
        huber_delta: absolute TD error from which the loss is linear, above 0; None for the squared
            error.
        optimizer: optimizer to use instead of Adam; ``learning_rate`` is then ignored.
        observation_shape: shape of an observation; by default the environment's.
        num_actions: number of actions; by default the environment's.
    """

    needs = frozenset(
        {
            *("batch.observation", "batch.action", "batch.reward", "batch.next_observation"),
            *("batch.terminated", "batch.discount", "batch.weight", "duty.target_sync"),
        }
    )
    provides = frozenset({"signal.td_error", "model.target_net", "model.act"})
    remedies = {  # noqa: RUF012
        "duty.target_sync": "add callbacks.TargetSync to trainer.callbacks, "
        "or the target network never learns",
        "batch.next_observation": "use lit_adaptive.data.TransitionsDataModule",
    }

    def __init__(
        self,
        network: NetworkFactory = MLP,
        *,
        learning_rate: float = 1e-3,
        double: bool = True,
        huber_delta: float | None = 1.0,
        optimizer: OptimizerFactory | None = None,
        observation_shape: list[int] | None = None,
        num_actions: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 < learning_rate < math.inf:
            raise ValueError(f"learning_rate is {learning_rate}; it must be above 0 and finite")
        check_at_least(num_actions=(num_actions, 1))
        if huber_delta is not None and not huber_delta > 0:
            raise ValueError(f"huber_delta is {huber_delta}; it must be above 0, or null")
        self.save_hyperparameters()
        for name in [key for key, value in self.hparams.items() if callable(value)]:
            del self.hparams[name]  # a checkpoint holds primitives only
        self.network = network
        self.learning_rate = learning_rate
        self.double_q = double
        self.huber_delta = huber_delta
        self.optimizer = optimizer
        self.observation_shape = observation_shape
        self.num_actions = num_actions
        self.q_net: nn.Module | None = None
        self.target_net: nn.Module | None = None
        self._configured_rates: list[float] = []

    def configure_model(self) -> None:
        """Build the networks for the environment; shard them where the strategy has a mesh."""
        if self.q_net is not None:
            return
        shape, actions = self._sizes()
        try:
            self.q_net, self.target_net = self.network(shape, actions), self.network(shape, actions)
        except TypeError as error:
            raise ValueError(
                f"network cannot be built for observations of shape {shape} and {actions} actions "
                f"({error}): its first two arguments must be observation_shape and num_actions, as "
                "those of lit_adaptive.modules.MLP"
            ) from error
        self.target_net.load_state_dict(self.q_net.state_dict())
        self.target_net.requires_grad_(requires_grad=False)
        if self.device_mesh is not None:
            from torch.distributed.fsdp import fully_shard

            mesh = self.device_mesh["data_parallel"]
            for net in (self.q_net, self.target_net):
                fully_shard(net, mesh=mesh)

    def _sizes(self) -> tuple[tuple[int, ...], int]:
        if self.observation_shape is None or self.num_actions is None:
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            self.observation_shape = list(data.observation_space.shape)
            self.num_actions = int(data.action_space.n)
            # load_from_checkpoint then needs no environment
            self.hparams["observation_shape"] = self.observation_shape
            self.hparams["num_actions"] = self.num_actions
        return tuple(self.observation_shape), self.num_actions

    def td_errors(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """TD errors ``[B]``, and the action values ``[B, A]`` of the observations."""
        assert self.q_net is not None  # built in configure_model
        assert self.target_net is not None
        q = self.q_net(batch["observation"])
        known = (q, batch["action"], batch["reward"], batch["discount"], batch["terminated"])
        with torch.no_grad():
            target = self.target_net(batch["next_observation"])
            online = self.q_net(batch["next_observation"]) if self.double_q else None
        if online is None:
            return q_errors(*known, target), q
        return double_q_errors(*known, online, target), q

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """The weighted mean loss, and each transition's TD error."""
        td_error, q = self.td_errors(batch)
        losses = batch["weight"] * huber_losses(td_error, self.huber_delta)
        td_error = td_error.detach()
        if self._logs_now():
            self.statistics.add_values("train/loss", losses)
            self.statistics.add_values("train/td_error", td_error.abs())
            self.statistics.add_values("train/q", q.flatten())
        return {"loss": losses.mean(), "td_error": td_error}

    @torch.no_grad()
    def act(self, observation: Tensor) -> Tensor:
        """Greedy actions ``[n]`` int64 for ``observation`` ``[n, ...]``, on the CPU.

        Under sharding, all ranks must call this together.
        """
        assert self.q_net is not None
        values: Tensor = self.q_net(observation.to(self.device))
        return values.argmax(1).cpu()

    def configure_optimizers(self) -> Optimizer:
        """Adam, or ``optimizer``, over the online network."""
        assert self.q_net is not None
        parameters = list(self.q_net.parameters())
        if self.optimizer is not None:
            optimizer = self.optimizer(parameters)
        else:
            # the fused loop is by far the fastest on small networks
            rate, fused = self.learning_rate, self._may_fuse
            optimizer = torch.optim.Adam(parameters, lr=rate, fused=fused)
        self._configured_rates = [group["lr"] for group in optimizer.param_groups]
        return optimizer

    def on_train_start(self) -> None:
        """Use the configured learning rate rather than the checkpoint's."""
        if self.lr_schedulers() is None:
            optimizer: Any = self.optimizers()
            for group, rate in zip(optimizer.param_groups, self._configured_rates, strict=True):
                group["lr"] = rate

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Nothing: ``callbacks.EpisodeEvaluation`` plays the batch's seeds."""

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Nothing, as in validation."""

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The seeds whose episodes ``callbacks.EpisodeEvaluation`` writes to a file."""
        return batch["seed"]
