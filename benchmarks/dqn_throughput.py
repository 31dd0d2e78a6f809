"""Environment steps per second of ``dqn_per``'s settings, against stable-baselines3's DQN.

    python benchmarks/dqn_throughput.py

Same environment (CartPole-v1), network (two hidden layers of 128), batch size (64), update ratio (one
gradient step for each 4 transitions) and optimizer (Adam); evaluation, plots and progress bars are
off on both sides. Ours draws by priority in eight environments, corrects the bias and writes
priorities back; stable-baselines3 has uniform replay only, in one environment (its default) and in
eight. Warm-up of the replay and the first 10 batches are not timed. The third peer makes the same
calls as ours in a plain loop: the difference is the cost of Lightning's loop.

Repetitions alternate in one process, so that load on the machine affects all alike; medians over
repetitions with seed 1, no interval.
"""

import statistics
import time
import warnings
from typing import Any

import common
import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from callbacks import BetaAnneal, PriorityRefresh, TargetSync, TransitionCollector
from lit_adaptive.core.prioritized import proportional_priorities
from lit_adaptive.data import TransitionsDataModule
from lit_adaptive.modules import DQN, MLP
from lit_adaptive.samplers import PrioritizedSampler

BATCH, HIDDEN, WARMUP, RATIO, ENVIRONMENTS = 64, (128, 128), 1_000, 4, 8
SKIPPED = 10  # batches before the clock starts


def build() -> tuple[DQN, TransitionsDataModule, list[Callback]]:
    """The model, the data and the callbacks of ``dqn_per``, without ``BetaAnneal``."""
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
    model, data, callbacks = build()
    clock = common.StepClock()
    trainer = common.quiet_trainer(
        max_steps=batches,
        limit_val_batches=0,
        callbacks=[*callbacks, BetaAnneal(), clock.lightning_callback()],
    )
    trainer.fit(model, data)
    ends = clock.ends[SKIPPED - 1 :]
    return RATIO * (len(ends) - 1) / (ends[-1] - ends[0])


def plain_loop(batches: int) -> float:
    """Environment steps per second of the same calls without Lightning's loop."""
    from lit_adaptive.rollout import EnvironmentStreams

    model, data, _ = build()
    model.trainer = Trainer(logger=False, accelerator="cpu", enable_checkpointing=False)
    model.trainer.datamodule = data
    model.configure_model()
    streams = EnvironmentStreams(
        data.make_environment, range(ENVIRONMENTS), total=ENVIRONMENTS, seed=1
    )
    generator = torch.Generator().manual_seed(1)

    def collect(epsilon: float) -> None:
        explores = torch.rand(ENVIRONMENTS, generator=generator) < epsilon
        random_action = torch.randint(2, (ENVIRONMENTS,), generator=generator)
        greedy = model.act(streams.observation) if epsilon < 1 else random_action
        action = torch.where(explores, random_action, greedy)
        step = streams.step(action)
        data.replay.add(
            step.observation,
            action,
            step.reward,
            step.next_observation,
            step.terminated,
            step.truncated,
        )
        streams.record(action, step.terminated | step.truncated)

    while len(data.replay) < WARMUP:
        collect(1.0)
    configured: Any = model.configure_optimizers()
    optimizer = configured["optimizer"] if isinstance(configured, dict) else configured
    batch_iterator = data._serve()
    model.log = model.log_dict = lambda *args, **kwargs: None
    start = time.perf_counter()
    for step in range(batches):
        batch = next(batch_iterator)
        output = model.training_step(batch, step)
        optimizer.zero_grad()
        output["loss"].backward()
        optimizer.step()
        priority = proportional_priorities(output["td_error"], epsilon=1e-6)
        data.update({"index": batch["index"], "serial": batch["serial"]}, priority)
        if step % 250 == 249:
            model.target_net.load_state_dict(model.q_net.state_dict())
        if step % 2 == 1:
            collect(0.5)
    return RATIO * batches / (time.perf_counter() - start)


def stable_baselines3(batches: int, environments: int) -> float:
    """Environment steps per second of stable-baselines3's DQN with uniform replay."""
    from stable_baselines3 import DQN as StableBaselines3DQN
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    class StepClock(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps >= WARMUP + SKIPPED * RATIO:
                now = time.perf_counter()
                if not hasattr(self, "start"):
                    self.start, self.first = now, self.num_timesteps
                self.seconds, self.steps = now - self.start, self.num_timesteps - self.first
            return True

    clock = StepClock()
    model = StableBaselines3DQN(
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
    model.learn(WARMUP + RATIO * batches, callback=clock)
    return clock.steps / clock.seconds


def main() -> None:
    parser = common.argument_parser(__doc__)
    parser.add_argument("--batches", type=int, default=2_000, help="gradient steps per repetition")
    parser.add_argument("--repetitions", type=int, default=5, help="after one of warm-up")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    contestants = {
        "lit-adaptive dqn_per": ours,
        "the same calls, bare loop": plain_loop,
        "stable-baselines3, 1 environment": lambda n: stable_baselines3(n, 1),
        "stable-baselines3, 8 environments": lambda n: stable_baselines3(n, ENVIRONMENTS),
    }
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    for repetition in range(args.repetitions + 1):
        for name, steps_per_second in contestants.items():
            speed = steps_per_second(args.batches if repetition else 200)
            if repetition:  # the first is warm-up
                speeds[name].append(speed)
    median = {name: statistics.median(values) for name, values in speeds.items()}
    our_speed = median["lit-adaptive dqn_per"]
    print(f"{'':36} {'steps/s':>9} {'ours':>9} {'µs/update':>10}")
    for name, speed in median.items():
        print(f"{name:36} {speed:9.0f} {our_speed / speed:8.2f}x {1e6 * RATIO / speed:10.0f}")
    overhead = 1e6 * RATIO * (1 / our_speed - 1 / median["the same calls, bare loop"])
    print(f"Lightning's loop with its callbacks costs {overhead:.0f} µs per training step")
    results = {
        "arguments": vars(args) | {"out": ""},
        "steps_per_second": speeds,
        "median": median,
    }
    common.write_results(args.out, "dqn_throughput.json", results)


if __name__ == "__main__":
    main()
