"""What went wrong with a config, in the words that help, and nothing else.

jsonargparse tries a value against every type that it might have and reports all of them, with the
whole value. What the user needs is the one line that names the option, and the names there are.
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
_CLASS = re.compile(r"class_path'?[ =:]+'([\w.]+)'")


def plain(message: str) -> str:
    """The lines of a parser's message that say what is wrong, with the nearest name there is."""
    kept: list[str] = []
    lines = message.splitlines()
    for number, line in enumerate(lines):
        if _NOISE.match(line) or not line.strip():
            continue
        short = _CALLABLE.sub("", _VALUE.sub("", line))
        indent = "  " * min(len(kept), 3)
        kept.append(indent + re.sub(r"^\s*(- )?", "", short) + _suggestion(lines[: number + 1]))
    return "\n".join(kept)


def _suggestion(lines: list[str]) -> str:
    """For an unknown option in the last line: whose it would be, the nearest name, and all."""
    unknown = _UNKNOWN.search(lines[-1])
    classes = _CLASS.findall(lines[-1]) or _CLASS.findall("\n".join(lines))
    if unknown is None or not classes:
        return ""
    names = _options_of(classes[-1])
    option = unknown.group(1).rsplit(".", 1)[-1]
    near = difflib.get_close_matches(option, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f" by {classes[-1]}: {hint}It takes {', '.join(names)}" if names else ""


def _options_of(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    try:
        cls: Any = getattr(importlib.import_module(module), name)
        found: list[str] = []
        for base in inspect.getmro(cls)[:-1]:
            parameters = inspect.signature(base).parameters.values()
            found += [each.name for each in parameters]
            if not any(each.kind is each.VAR_KEYWORD for each in parameters):
                break
    except (ImportError, AttributeError, TypeError, ValueError):
        return []
    return [name for name in dict.fromkeys(found) if name not in ("args", "kwargs", "options")]


def cause(error: BaseException) -> BaseException:
    """The error that a class raised, under those that jsonargparse wrapped around it."""
    while True:
        inner = error.__cause__ or error.__context__
        wrapped = str(error).startswith("Does not validate against any of the Union subtypes")
        if inner is None or not wrapped:
            return error
        error = inner


class PlainParser(LightningArgumentParser):
    """A parser whose errors are short."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong and where to read more, and stop."""
        if not self.exit_on_error:  # a part of another parser, which tries other types yet
            super().error(message, ex)
        prog = self.prog.replace(" [options]", "")
        sys.stderr.write(f"error: {plain(message)}\n(all options: {prog} --help)\n")
        self.exit(2)
        raise AssertionError from ex  # exit does not return
