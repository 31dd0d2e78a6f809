"""Environment steps per second: ``dqn_per`` against stable-baselines3's DQN, side by side.

    python benchmarks/dqn_throughput.py

Same environment (CartPole-v1), network (two hidden layers of 128), batch (64), update ratio (one
gradient step for each 4 transitions) and optimizer (Adam); evaluation, pictures and progress bars
off on both sides. Ours draws by priority, corrects, and writes priorities back; stable-baselines3
has uniform replay only, in one environment (its default) and in eight. Repetitions alternate in one
process, so the ratio holds on a busy machine too. The bare loop makes the very same calls as ours
without Lightning, which tells what Lightning's loop costs.
"""

import argparse
import json
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from callbacks import BetaAnneal, PriorityRefresh, TargetSync, TransitionCollector
from lit_adaptive.core.prioritized import proportional_priorities
from lit_adaptive.data import TransitionsDataModule
from lit_adaptive.modules import DQN, MLP
from lit_adaptive.samplers import PrioritizedSampler

BATCH, HIDDEN, WARMUP, RATIO, ENVIRONMENTS = 64, (128, 128), 1_000, 4, 8


class Clock(Callback):
    """Times the batches between the first and the last.

    Needs: nothing. Changes: nothing.
    """

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 10:
            self.start, self.first = time.perf_counter(), trainer.global_step
        self.seconds = time.perf_counter() - getattr(self, "start", 0.0)
        self.batches = trainer.global_step - 10


def _parts() -> tuple[DQN, TransitionsDataModule, list[Callback]]:
    seed_everything(1, verbose=False)
    data = TransitionsDataModule(
        "CartPole-v1",
        PrioritizedSampler,
        capacity=50_000,
        batch_size=BATCH,
        batches_per_epoch=10**6,
        num_environments=ENVIRONMENTS,
        beta=0.4,
    )
    model = DQN(network=lambda shape, actions: MLP(shape, actions, hidden=list(HIDDEN)))
    collect = TransitionCollector(transitions_per_batch=RATIO, warmup=WARMUP)
    return model, data, [collect, TargetSync(every_n_steps=250), PriorityRefresh()]


def ours(batches: int) -> float:
    """Environment steps per second of a LightningModule under a Trainer."""
    model, data, callbacks = _parts()
    clock = Clock()
    trainer = Trainer(
        max_steps=batches,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
        callbacks=[*callbacks, BetaAnneal(), clock],
    )
    trainer.fit(model, data)
    return RATIO * clock.batches / clock.seconds


def bare(batches: int) -> float:
    """The same calls in a plain loop."""
    model, data, _ = _parts()
    model.trainer = Trainer(logger=False, accelerator="cpu", enable_checkpointing=False)
    model.trainer.datamodule = data
    model.configure_model()
    from lit_adaptive.rollout.environments.streams import EnvironmentStreams

    streams = EnvironmentStreams(
        data.make_environment, range(ENVIRONMENTS), total=ENVIRONMENTS, seed=1
    )
    generator = torch.Generator().manual_seed(1)

    def collect(epsilon: float) -> None:
        dice = torch.rand(ENVIRONMENTS, generator=generator)
        chance = torch.randint(2, (ENVIRONMENTS,), generator=generator)
        greedy = model.act(streams.observation) if epsilon < 1 else chance
        action = torch.where(dice < epsilon, chance, greedy)
        step = streams.step(action)
        data.replay.add(
            step.observation, action, step.reward, step.next_observation, step.terminated,
            step.truncated,
        )  # fmt: skip
        streams.record(action, step.terminated | step.truncated)

    while len(data.replay) < WARMUP:
        collect(1.0)
    configured: Any = model.configure_optimizers()
    optimizer = configured["optimizer"] if isinstance(configured, dict) else configured
    served = data._serve()
    model.log = model.log_dict = lambda *args, **kwargs: None  # type: ignore[method-assign,assignment]
    start = time.perf_counter()
    for step in range(batches):
        batch = next(served)
        out = model.training_step(batch, step)
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        priority = proportional_priorities(out["td_error"], epsilon=1e-6)
        data.update({"index": batch["index"], "serial": batch["serial"]}, priority)
        if step % 250 == 249:
            model.target_net.load_state_dict(model.q_net.state_dict())
        if step % 2 == 1:
            collect(0.5)
    return RATIO * batches / (time.perf_counter() - start)


def stable_baselines3(batches: int, environments: int) -> float:
    """Environment steps per second of stable-baselines3's DQN with uniform replay."""
    from stable_baselines3 import DQN as Peer
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    class PeerClock(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps >= WARMUP + 10 * RATIO:
                now = time.perf_counter()
                if not hasattr(self, "start"):
                    self.start, self.first = now, self.num_timesteps
                self.seconds, self.steps = now - self.start, self.num_timesteps - self.first
            return True

    clock = PeerClock()
    peer = Peer(
        "MlpPolicy",
        make_vec_env("CartPole-v1", environments, seed=1),
        policy_kwargs={"net_arch": list(HIDDEN)},
        batch_size=BATCH,
        buffer_size=50_000,
        learning_starts=WARMUP,
        train_freq=max(1, RATIO // environments),
        gradient_steps=max(1, environments // RATIO),
        target_update_interval=1_000,
        learning_rate=1e-3,
        exploration_fraction=0.2,
        device="cpu",
        seed=1,
    )
    peer.learn(WARMUP + RATIO * batches, callback=clock)
    return clock.steps / clock.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=2_000)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    contestants = {
        "lit-adaptive dqn_per": ours,
        "the same calls, bare loop": bare,
        "stable-baselines3, 1 environment": lambda n: stable_baselines3(n, 1),
        "stable-baselines3, 8 environments": lambda n: stable_baselines3(n, ENVIRONMENTS),
    }
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    for repetition in range(arguments.repetitions + 1):
        for name, run in contestants.items():
            speed = run(arguments.batches if repetition else 200)
            if repetition:  # the first warms up
                speeds[name].append(speed)
    median = {name: statistics.median(found) for name, found in speeds.items()}
    own = median["lit-adaptive dqn_per"]
    print(f"{'':36} {'steps/s':>9} {'ours is':>9} {'µs/update':>10}")
    for name, speed in median.items():
        print(f"{name:36} {speed:9.0f} {own / speed:8.2f}x {1e6 * RATIO / speed:10.0f}")
    loop = 1e6 * RATIO * (1 / own - 1 / median["the same calls, bare loop"])
    print(f"Lightning's loop with its callbacks costs {loop:.0f} µs per training step")
    arguments.out.mkdir(exist_ok=True)
    result = {
        "arguments": vars(arguments) | {"out": ""},
        "steps_per_second": speeds,
        "median": median,
    }
    (arguments.out / "dqn_throughput.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
