"""The main options of the commands with a trainer, for a ``--help`` of one screen."""

import argparse

OPTIONS = {
    "options": {
        "--help": ("", "Show this help."),
        "--help.all": ("", "Show all options."),
        "--config": ("FILE", "YAML; of several, later ones override."),
        "--print_config": ("", "Print every value and default."),
        "--seed_everything": ("N", "Seed (default: 0)."),
        "--runs": ("FOLDER", "Folder of all runs (default: runs)."),
        "--ckpt_path": ("PATH", "Checkpoint to load: a path, last or best."),
        "--out": ("FOLDER", "Where to write (default: trajectories)."),
        "--prompts": ("SET", "train or validation (default: train)."),
        "--samples": ("N", "Rollouts of a prompt."),
    },
    "model (Classifier, DQN, IWSFT, GRPO or your own class)": {
        "--model": ("CLASS", "Class; --model.OPTION VALUE sets one."),
        "--model.help": ("CLASS", "Show the options of a class."),
    },
    "data (AdaptiveDataModule, TransitionsDataModule, DemonstrationsDataModule,\n"
    "      RolloutDataModule or your own class)": {
        "--data": ("CLASS", "Class; --data.OPTION VALUE sets one."),
        "--data.help": ("CLASS", "Show the options of a class."),
    },
    "trainer": {
        "--trainer.max_epochs": ("N", "Passes through the data."),
        "--trainer.max_steps": ("N", "Updates of the weights."),
        "--trainer.max_time": ("TIME", "DAYS:HOURS:MINUTES:SECONDS."),
        "--trainer.accelerator": ("NAME", "cpu, gpu or mps (default: auto)."),
        "--trainer.devices": ("N", "Number of devices (default: auto)."),
        "--trainer.strategy": ("NAME", "ddp, or a class (default: auto)."),
        "--trainer.precision": ("NAME", "32-true, bf16-mixed, bf16-true, 16-mixed."),
        "--trainer.accumulate_grad_batches": ("N", "Batches of an update (default: 1)."),
        "--trainer.gradient_clip_val": ("X", "Maximum norm of the gradient."),
        "--trainer.check_val_every_n_epoch": ("N", "Epochs per validation (default: 1)."),
        "--trainer.callbacks+": ("CLASS", "Add a callback."),
        "--trainer.callbacks.help": ("CLASS", "Show the options of a callback."),
        "--trainer.logger": ("CLASS", "Logger beside metrics.csv."),
        "--trainer.fast_dev_run": ("N", "Try N batches; write nothing."),
    },
}
"""By group and name: the value, and a description of at most 41 characters."""


def brief_help(parser: argparse.ArgumentParser, prog: str) -> str:
    """The main options that ``parser`` has: one line of at most 80 characters for each."""
    known = {name for action in parser._actions for name in action.option_strings}
    lines = [f"usage: {prog} [options]", "", (parser.description or "").split(". ")[0].rstrip(".")]
    for group, options in OPTIONS.items():
        shown = {
            f"{name} {value}": text for name, (value, text) in options.items() if name in known
        }
        lines += ["", f"{group}:", *(f"  {option:<35}  {text}" for option, text in shown.items())]
    return "\n".join(lines) + "\n"
