"""Short messages for errors in a config.

jsonargparse tries a value against every possible type and reports all failures together with the
whole value. The relevant part is the line that names the option, and the options that exist.
"""

import difflib
import importlib
import inspect
import re
import sys
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

_NOISE = re.compile(
    r"^\s*(Does not validate against any of the Union subtypes|Subtypes: |Errors:\s*$"
    r"|- Expected a <class 'NoneType'>|Given value type: |Given value: )"
)
_VALUE = re.compile(r"\.? (Got value|Given value): .*$")
_CALLABLE = re.compile(r"Type .*? expects a function or a callable class: ")
_UNKNOWN = re.compile(r"Option '([\w.]+)' is not accepted")
_DATA_FILE = re.compile(r"Config file loop detected: (\S+) ->|Expected a path but (\S+) either not")
_CONFIG_SUFFIXES = (".yaml", ".yml")
_CLASS = re.compile(r"class_path'?[ =:]+'([\w.]+)'")


_FILE_RULE = (
    "{name} is a file, and this option takes a class: give the class, and the file as its option "
    "(such as TableDataset and its path, or DemonstrationDataset or PromptDataset and its source)"
)


def shorten(message: str) -> str:
    """Keep the lines of a parser's message that name the error, and suggest existing options."""
    kept: list[str] = []
    lines = message.splitlines()
    for number, line in enumerate(lines):
        if _NOISE.match(line) or not line.strip():
            continue
        if file := _DATA_FILE.search(line):
            name = file[1] or file[2]
            if not name.endswith(_CONFIG_SUFFIXES):
                kept.append("  " * min(len(kept), 3) + _FILE_RULE.format(name=name))
                break
        text = re.sub(r"^\s*(- )?", "", _CALLABLE.sub("", _VALUE.sub("", line)))
        kept.append("  " * min(len(kept), 3) + text + _suggestion(lines[: number + 1]))
    return "\n".join(kept)


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
        if inner is None or not wrapped:
            return error
        error = inner


def raised_by_package(error: BaseException) -> bool:
    """Whether our own code raised an error, whose message then says what to do about it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    name = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", ""))
    return name.split(".")[0] in ("lit_adaptive", "callbacks")


class ShortErrorParser(LightningArgumentParser):
    """A parser with short error messages."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the shortened message and exit."""
        if not self.exit_on_error:  # called by another parser, which may try further types
            super().error(message, ex)
        prog = self.prog.replace(" [options]", "")
        sys.stderr.write(f"error: {shorten(message)}\n(all options: {prog} --help)\n")
        self.exit(2)
        raise AssertionError from ex  # exit does not return
