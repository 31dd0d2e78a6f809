"""Short messages for errors in a config, and a short ``--help``.

jsonargparse tries a value against every possible type and reports all failures together with the
whole value. The relevant part is the line that names the option, and the options that exist.
"""

import difflib
import importlib
import importlib.util
import inspect
import re
import sys
from argparse import (
    Action,
    HelpFormatter,
    _HelpAction,  # pyright: ignore[reportPrivateUsage]
)
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import DefaultHelpFormatter
from lightning.pytorch.cli import LightningArgumentParser

from lit_adaptive.cli.brief_help import brief_help

_NOISE = re.compile(
    r"^\s*((- )?Does not validate against any of the Union subtypes|Subtypes: |Errors:\s*$"
    r"|- Expected a <class 'NoneType'>|- Not of type Path: |Given value type: |Given value: )"
)
_VALUE = re.compile(r"\.? ?\b(?:Got|Given) value: (.*)$")
_VALUES = re.compile(r"\b(?:Got|Given) value: (.*?)(?=\.? Got value: |$)")
_OPTION_VALUE = re.compile(r"NestedArg\(key='.*?', val=(.*)\)$")
_MAX_VALUE = 60
"""Characters of a value that is repeated in a message."""
_CALLABLE = re.compile(r"Type .*? expects a function or a callable class: ")
_UNKNOWN = re.compile(r"Option '([\w.]+)' is not accepted")
_NO_CONFIG = "Unexpected config: "
_NO_CLASS = re.compile(r"(?:Expected a dot import path string|Unexpected import path format): (.+)")
_MISSING_CLASS = re.compile(
    r"module '([\w.]+)' has no attribute '(\w+)'|Expected a dot import path string: ()(\w+)"
)
_PATH = re.compile(r"^\s*(- )?Expected a path but .* either not accessible or invalid$")
_TRAINER_OPTION = re.compile(r"trainer\.\w+|ckpt_path|weights_only")
_LIBRARY = re.compile(r"(torch|torchmetrics|torchvision|lightning|datasets|transformers)\.")
"""Of classes, too many to be listed."""
_CLASS = re.compile(r"class_path'?[ =:]+'([\w.]+)'")


_FILE_RULE = (
    "{name} is a file, and this option takes a class: give the class, and the file as its option "
    "(such as TableDataset and its path, or DemonstrationDataset or PromptDataset and its source)"
)


def shorten(message: str) -> str:
    """Keep the lines of a parser's message that name the error, and suggest existing options."""
    kept: list[str] = []
    lines = message.splitlines()
    if message.startswith(_NO_CONFIG):  # and the content of the file
        return "a file of --config holds no options: give a YAML file such as those of configs"
    for number, line in enumerate(lines):
        if (file := _NO_CLASS.search(line)) and Path(file[1]).is_file():
            kept.append("  " * min(len(kept), 3) + _FILE_RULE.format(name=file[1]))
            return "\n".join(kept)
        if _NOISE.match(line) or not line.strip() or (_PATH.match(line) and len(lines) > 2):
            continue
        text = re.sub(r"^\s*(- )?", "", _CALLABLE.sub("", _VALUE.sub("", line)))
        text += _suggestion(lines[: number + 1]) + _class_suggestion(line)
        if text not in (each.strip() for each in kept):
            kept.append("  " * min(len(kept), 3) + text)
    shortened, value = "\n".join(kept), _given_value(lines)
    if value.strip("+-.").lower() in ("nan", "inf", "infinity"):
        shortened = shortened.replace("Expected a <class 'float'>", "Expected a finite number")
    return shortened if not value or value in shortened else f"{shortened} (got {value})"


def _given_value(lines: list[str]) -> str:
    """The value that was rejected, if it is short: of the option itself rather than its class."""
    values = [value for line in lines for value in _VALUES.findall(line)]
    own = [value for value in values if not value.startswith(("Namespace(", "NestedArg("))]
    nested = [found.group(1) for value in values if (found := _OPTION_VALUE.match(value))]
    value = next(iter([*own, *nested]), "").strip("'")
    return value if len(value) <= _MAX_VALUE else ""


def _class_suggestion(line: str) -> str:
    """For the name of a class that does not exist: the closest names, with their packages."""
    missing = _MISSING_CLASS.search(line)
    if missing is None:
        return ""
    module, name = missing.group(1) or "", missing.group(2) or missing.group(4)
    paths = {
        each.rpartition(".")[2].lower(): each
        for each in [*_public_classes(module), *(p for m in _PACKAGES for p in _public_classes(m))]
    }
    closest = difflib.get_close_matches(name.lower(), paths, n=3, cutoff=0.7)
    return f": did you mean {' or '.join(paths[each] for each in closest)}?" if closest else ""


_PACKAGES = (
    *("torch.optim", "torch.optim.lr_scheduler", "lightning.pytorch.loggers"),
    *("lightning.pytorch.callbacks", "lit_adaptive.rollout", "lit_adaptive.data"),
    *("lit_adaptive.samplers", "lit_adaptive.modules", "callbacks"),
)
"""Where configs take classes from; of two classes with one name the last is suggested."""


def _public_classes(module: str) -> list[str]:
    try:
        names = vars(importlib.import_module(module)) if module else {}
    except ImportError:
        return []
    return [f"{module}.{name}" for name, value in names.items() if inspect.isclass(value)]


def _suggestion(lines: list[str]) -> str:
    """For an unknown option in the last line: its class, the closest option, and all options."""
    unknown = _UNKNOWN.search(lines[-1])
    classes = _CLASS.findall(lines[-1]) or _CLASS.findall("\n".join(lines))
    if unknown is None or not classes:
        return ""
    options = _options_of(classes[-1])
    option = unknown.group(1).rsplit(".", 1)[-1]
    closest = difflib.get_close_matches(option, options, n=1)
    hint = f"did you mean {closest[0]!r}? " if closest else ""
    return f" by {classes[-1]}: {hint}Its options are {', '.join(options)}" if options else ""


def _options_of(class_path: str) -> list[str]:
    """Parameters of a class, and of its bases while they are passed on as ``**kwargs``."""
    module, _, name = class_path.rpartition(".")
    options: list[str] = []
    try:
        cls: Any = getattr(importlib.import_module(module), name)
        for base in inspect.getmro(cls)[:-1]:
            parameters = inspect.signature(base).parameters.values()
            options += [parameter.name for parameter in parameters]
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
                break
    except (ImportError, AttributeError, TypeError, ValueError):
        return []
    return [name for name in dict.fromkeys(options) if name not in ("args", "kwargs", "options")]


def root_cause(error: BaseException) -> BaseException:
    """The error that a class raised, without those that jsonargparse wrapped around it."""
    while True:
        inner = error.__cause__ or error.__context__
        wrapped = str(error).startswith("Does not validate against any of the Union subtypes")
        # Of several types the last one's error is the inner one; another may be the value's own.
        if inner is None or not wrapped or str(inner).startswith("Import path "):
            return error
        error = inner


def raised_by_package(error: BaseException) -> bool:
    """Whether our own code or Lightning's raised an error, whose message then says what to do."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    name = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", ""))
    return name.split(".")[0] in ("lit_adaptive", "callbacks", "lightning")


class _ShortHelpFormatter(DefaultHelpFormatter):
    """Shows a usage of one line, and the first sentence on each of Lightning's options."""

    def add_usage(
        self, usage: str | None, actions: Any, groups: Any, prefix: str | None = None
    ) -> None:
        """Leave out the list of all options, which follows with their descriptions."""
        complete = "%(prog)s" if prefix == "" else "%(prog)s [options]"  # "": part of another one
        super().add_usage(usage or complete, actions, groups, prefix)

    def _expand_help(self, action: Action) -> str:
        text, _, known = str(super()._expand_help(action)).partition(", known subclasses: ")
        own = [name for name in known.rstrip(")").split(", ") if not _LIBRARY.match(name)]
        if known:
            text += f", known subclasses: {', '.join(own)})" if own else ")"
        if _TRAINER_OPTION.fullmatch(action.dest) is None:
            return text
        description, mark, types = text.rpartition(" (type: ")
        first = re.split(r"(?<=\.)\s", description.replace("e.g. ", "such as "), maxsplit=1)[0]
        return first + mark + types.partition(", known subclasses: ")[0].rstrip(")") + ")"


class _CompleteHelp(_HelpAction):
    """``--help.all``."""

    def __call__(self, parser: Any, *args: Any, **kwargs: Any) -> None:
        """Print the help of all options and exit."""
        parser.brief = False
        super().__call__(parser, *args, **kwargs)


class ShortErrorParser(LightningArgumentParser):
    """A parser with short error messages and a short help.

    It reads files of ``--config`` only: any other option that takes a class would be replaced by
    the content of a file of that name, which an error then shows.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, formatter_class=_ShortHelpFormatter, **kwargs)
        self.brief = False

    def add_complete_help(self) -> None:
        """Let ``--help`` show the main options, and ``--help.all`` all of them."""
        self.brief = True
        self.add_argument("--help.all", action=_CompleteHelp, help="Show all options and exit.")

    def format_help(self, formatter: HelpFormatter | None = None) -> str:
        """The help: of the main options only after ``add_complete_help``."""
        if self.brief:
            return brief_help(self, self._program)
        return super().format_help(formatter)

    @property
    def _program(self) -> str:
        return self.prog.replace(" [options]", "")

    def keep_paths(self) -> None:
        """Let the options so far take the name of a file as it is."""
        for action in self._actions:
            each: Any = action
            if hasattr(each, "sub_add_kwargs"):  # of jsonargparse, which has no option for this
                each._enable_path = False
                each.sub_add_kwargs = each.sub_add_kwargs | {"sub_configs": False}

    def add_subcommands(self, *args: Any, **kwargs: Any) -> Any:
        """Add subcommands, to which ``add_command`` adds further ones."""
        self._commands: Any = super().add_subcommands(*args, **kwargs)
        return self._commands

    def add_command(self, name: str, parser: "ShortErrorParser") -> None:
        """Add a subcommand after ``add_subcommands``; its description is its help."""
        self._commands.add_subcommand(name, parser, help=parser.description)

    def add_completion(self) -> None:
        """Add ``--print_completion SHELL``, if shtab is installed, after all commands.

        A value without choices is completed as a file. jsonargparse's own option also completes the
        options of all classes: it reads the signatures of every network of torch for minutes.
        """
        if importlib.util.find_spec("shtab") is None:
            return
        import shtab

        for parser in (self, *self._commands.choices.values()):
            for action in parser._actions:
                each: Any = action
                if each.choices is None and each.nargs != 0:
                    each.complete = shtab.FILE
        text = "Print a script that completes commands and options in a shell."
        shtab.add_argument_to(self, "--print_completion", text)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the shortened message and exit."""
        if not self.exit_on_error:  # called by another parser, which may try further types
            super().error(message, ex)
        option = "--help.all" if self.brief else "--help"
        sys.stderr.write(f"error: {shorten(message)}\n(all options: {self._program} {option})\n")
        self.exit(2)
        raise AssertionError from ex  # exit does not return
