"""Every numeric option refuses nan and 10**30, and inf, -1 and 0 where they have no meaning.

The options are those of the classes that the configs build, with the arguments they are built with.
A refusal names the option and the value.
"""

import inspect
import math
import sys
import time
import typing
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, UnionType
from typing import Any

import pytest
import yaml
from small_configs import small_data

from lit_adaptive.cli.main import AdaptiveCLI

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPES = [
    path
    for path in sorted(CONFIGS.glob("*.yaml"))
    if not path.stem.startswith(("smollm2", "images", "text", "dqn_minatar", "dqn_atari"))
    # They read a file of an earlier run, a model, or the hub.
    and path.stem
    not in ("difficulty_offline", "reasoning_dots_rr", "deepscaler_dots_rr", "gsm8k_cropi")
]

pytestmark = pytest.mark.filterwarnings("ignore")  # of the constructors

# Values with a meaning, by option or by class and option.
ACCEPTED = {
    math.inf: {
        *("clip_high", "dual_clip", "kl_ratio_cap", "mismatch_high", "drop_off_policy"),
        *("covariance_high", "huber_delta", "timeout_s", "interval"),
    },
    -1: {"seed", "initial", "covariance_low", "WeightedReward.weight", "PassAtK.threshold"},
    0: {
        *("AdaptiveDataWeighter.learning_rate", "after_epochs", "initial", "interval"),
        *("seed", "start", "end", "every_n_batches", "decay", "forget", "epsilon", "examples"),
        *("rescore_every_n_epochs", "every_n_epochs", "beta", "steps", "warmup", "alpha", "gamma"),
        *("epsilon_end", "epsilon_start", "sloppy_reward", "label_noise", "num_workers", "refill"),
        *("overlong_cache", "replay_beta", "replay_fraction", "focal_gamma", "label_smoothing"),
        *("weight_decay", "dropout", "max_new_tokens", "clip_high", "clip_low", "covariance_beta"),
        *("covariance_low", "covariance_high", "covariance_share", "drop_off_policy", "max_age"),
        *("entropy_bonus", "kl_beta", "mismatch_low", "negative_weight", "positive_weight"),
        *("betas", "tolerance", "temperature", "top_k", "workers", "weight", "baseline"),
        *("AdaptiveBatchSampler.learning_rate", "momentum", "anneal", "prune", "threshold"),
        *("q_decay", "min_p", "tau", "concentration", "floor", "rest", "probes"),
        *(
            "uniform_share",
            "references",
            "updates",
            "forgetting",
            "asft_beta",
            "eaft_alpha",
            "retried",
        ),
        "constant",
    },
}
Built = dict[type, dict[str, Any]]


def class_paths(node: Any) -> set[str]:
    """Classes that a config builds."""
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    own = {str(node["class_path"])} if isinstance(node, dict) and "class_path" in node else set()
    return own.union(*map(class_paths, children))


def constructors() -> dict[Any, type]:
    """Public classes of the packages by the code of their constructors."""
    classes: dict[Any, type] = {}
    for name, module in [*sys.modules.items()]:
        if name.split(".")[0] in ("lit_adaptive", "callbacks"):
            for cls in [*vars(module).values()]:
                if inspect.isclass(cls) and cls.__module__ == name and "__init__" in vars(cls):
                    classes[cls.__init__.__code__] = cls
    return classes


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Arguments of the first call of each constructor while configs of all classes are built."""
    folder, arguments, classes = tmp_path_factory.mktemp("runs"), Built(), constructors()

    def record(frame: FrameType, event: str, argument: Any) -> None:
        cls = classes.get(frame.f_code) if event == "call" else None
        if cls is not None and cls not in arguments:
            values = dict(frame.f_locals)
            if type(values.pop(next(iter(values)))) is cls:
                arguments[cls] = values

    instantiate = AdaptiveCLI.instantiate_classes

    def recorded(cli: AdaptiveCLI) -> None:
        sys.setprofile(record)
        try:
            instantiate(cli)
        finally:
            sys.setprofile(None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AdaptiveCLI, "_run_subcommand", lambda self, subcommand: None)
        patch.setattr(AdaptiveCLI, "instantiate_classes", recorded)
        seen: set[str] = set()
        for path in RECIPES:
            if new := class_paths(yaml.safe_load(path.read_text())) - seen:
                AdaptiveCLI(["fit", "--config", str(path), f"--runs={folder}", *small_data(path)])
                seen |= new
    return arguments


def construct(cls: type, arguments: dict[str, Any]) -> None:
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for parameter in [*inspect.signature(cls.__init__).parameters.values()][1:]:
        value = arguments.get(parameter.name, parameter.default)
        if parameter.kind is parameter.VAR_POSITIONAL:
            positional += arguments.get(parameter.name, ())
        elif parameter.kind is parameter.VAR_KEYWORD:
            named |= arguments.get(parameter.name, {})
        elif value is not parameter.empty:
            named[parameter.name] = value
    cls(*positional, **named)


def numeric_options(cls: type) -> dict[str, bool]:
    """Whether a fraction is a value of each numeric option, by the option's name."""
    options: dict[str, bool] = {}
    for name, hint in typing.get_type_hints(cls.__init__).items():
        types = [hint, *typing.get_args(hint)]
        container = typing.get_origin(hint) not in (None, typing.Union, UnionType)
        if name != "return" and not container and (int in types or float in types):
            options[name] = float in types
    return options


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_bad_numbers_are_refused_by_name_and_value(built: Built) -> None:
    assert len(built) > 60
    internal = {"ColumnSpec"}  # its arguments are checked by the dataset that makes it
    wrong: list[str] = []
    count = 0
    for cls, arguments in built.items():
        if cls.__name__ in internal:
            continue
        for name, fraction in numeric_options(cls).items():
            for bad in (math.nan, math.inf, -1, 0) if fraction else (-1, 0, 10**30):
                count += 1
                value = float(bad) if fraction else bad
                case = f"{cls.__name__}.{name} = {value}"
                try:
                    construct(cls, arguments | {name: value})
                except ValueError as error:
                    shown = {str(value), f"{value:g}"}
                    if name.removeprefix("dataset_") not in str(error) or not any(
                        text in str(error) for text in shown
                    ):
                        wrong.append(f"{case}: not named in {error}")
                except Exception as error:
                    wrong.append(f"{case}: {type(error).__name__}: {error}")
                else:
                    accepted = ACCEPTED.get(bad, set())
                    if not {name, f"{cls.__name__}.{name}"} & accepted:
                        wrong.append(f"{case}: accepted")
    assert count > 400
    assert not wrong, "\n".join(wrong)


BAD = {bool: ["nonsense"], int: ["-7", "1e30", "nonsense"], float: ["-7", "nan", "nonsense"]}
WORDS = ["", "nonsense/7", "[7, {}]"]


def options_of(node: Any, path: str = "", owner: str = "") -> Iterator[tuple[str, str, Any]]:
    """Command-line option, class with name, and value of each leaf of a config, but lists'."""
    if isinstance(node, dict):
        owner = node.get("class_path", owner)
        for name, value in node.items():
            if name == "init_args":
                yield from options_of(value, path, owner)
            elif name == "class_path":
                yield path, f"{owner} class", value
            else:
                yield from options_of(value, f"{path}.{name}" if path else name, owner)
    elif node is not None and not isinstance(node, list):
        yield path, f"{owner} {path.rpartition('.')[2]}", node


def cases() -> Iterator[tuple[Path, str, str]]:
    """Each option of each class once, in the first config that has it, with each bad value."""
    seen: set[str] = set()
    for path in RECIPES:
        for option, key, value in options_of(yaml.safe_load(path.read_text())):
            if key not in seen and option:
                seen.add(key)
                for bad in BAD.get(type(value), WORDS):
                    yield path, option, bad


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_bad_values_on_the_command_line_are_refused_with_the_value_and_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(AdaptiveCLI, "_run_subcommand", lambda self, subcommand: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(CONFIGS)  # with the files that configs read
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else it tries for 40 s
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    wrong: list[str] = []
    count = refused = 0
    for path, option, bad in cases():
        count += 1
        case = f"{path.stem} --{option}={bad}"
        start = time.monotonic()
        try:
            options = [*small_data(path), f"--runs={tmp_path}", f"--{option}={bad}"]
            AdaptiveCLI(["fit", "--config", str(path), *options])
        except SystemExit:
            refused += 1
            error = capsys.readouterr().err.partition("error: ")[2]
            shown = {bad, "1e+30"} if bad != "[7, {}]" else {"7", "list"}
            if bad and not any(value in error for value in shown):
                wrong.append(f"{case}: without the value: {error}")
            if len(error.splitlines()) > 16:
                wrong.append(f"{case}: {len(error.splitlines())} lines: {error}")
        except Exception as error:
            wrong.append(f"{case}: {type(error).__name__}: {error}")
        if time.monotonic() - start > 20:
            wrong.append(f"{case}: took {time.monotonic() - start:.0f} s")
    assert count > 200
    assert refused > count / 2
    assert not wrong, "\n".join([f"{len(wrong)} of {count}", *wrong])
