"""Reward functions by name: in TRL's signature, and in verl's."""

import asyncio
import importlib
import inspect
import json
import math
from collections.abc import Awaitable, Callable, Mapping
from difflib import get_close_matches
from importlib.util import module_from_spec, spec_from_file_location
from numbers import Real
from pathlib import Path
from typing import Any, cast

from lit_adaptive.rollout.rewards.base import Extras, Reward, require_column, resolve_awaitable

_NOT_PASSED = ("trainer_state", "log_extra", "log_metric", "environments")


class FunctionReward(Reward):
    """A function of yours in TRL's signature. It may take only the columns that it needs.

    Args:
        path: path of the function, such as ``my_package.rewards.length``; it is called with
            ``prompts``, ``completions``, ``completion_ids`` and the columns by name, as TRL calls
            its own. In conversations too, prompts and completions are texts; ``trainer_state``,
            ``log_extra``, ``log_metric`` and ``environments`` are not passed. An ``async def`` is
            awaited.

    Raises:
        ValueError: if there is no such function, or it needs an argument that is not passed.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.function = import_function(path)
        parameters = inspect.signature(self.function).parameters
        takes_all = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
        self._parameters = None if takes_all else frozenset(parameters)
        missing = [
            name
            for name in _NOT_PASSED
            if name in parameters and parameters[name].default is inspect.Parameter.empty
        ]
        if missing:
            raise ValueError(
                f"{path} takes {missing}, which TRL passes and lit-adaptive does not: give them "
                "default values"
            )

    def __call__(
        self, prompts: list[str], completions: list[str], **columns: list[Any]
    ) -> list[float | None]:
        """Return what the function returns."""
        arguments = {"prompts": prompts, "completions": completions, **columns}
        if self._parameters is not None:
            arguments = {k: value for k, value in arguments.items() if k in self._parameters}
        rewards: list[float | None] = resolve_awaitable(self.function(**arguments))
        return rewards


class VerlReward(Reward):
    """A reward function in verl's signature, called for one sample at a time.

    It is called as ``compute_score(data_source=, solution_str=, ground_truth=, extra_info=)`` and
    returns a number, or a dictionary with ``score``, whose other numbers are logged, or a tuple
    that begins with the score. An ``async def`` is awaited, all samples of a batch at once.

    Args:
        path: path of the function: ``package.module.compute_score``, or
            ``folder/file.py:compute_score`` as verl has it.
        ground_truth: column of right answers.
        data_source: column of dataset names; without such a column the name is empty.
        extra_info: column of dictionaries, or of JSON; without such a column it is None.
        keywords: further arguments of the function, the same in every call.

    Raises:
        ValueError: if there is no such function.
    """

    def __init__(
        self,
        path: str,
        ground_truth: str = "answer",
        data_source: str = "data_source",
        extra_info: str = "extra_info",
        keywords: dict[str, Any] | None = None,
    ) -> None:
        self.path = path
        self.function = _load_function(path) if ".py:" in path else import_function(path)
        self.ground_truth = ground_truth
        self.data_source = data_source
        self.extra_info = extra_info
        self.keywords = keywords or {}

    def __call__(
        self,
        prompts: list[str],  # noqa: ARG002
        completions: list[str],
        **columns: list[Any],
    ) -> list[float | None]:
        """Return the score of each completion, None where the function returns None."""
        answers = require_column(columns, self.ground_truth, self)
        sources = columns.get(self.data_source, [""] * len(completions))
        infos = columns.get(self.extra_info, [None] * len(completions))
        outputs = [
            self.function(
                data_source=source,
                solution_str=completion,
                ground_truth=answer,
                extra_info=json.loads(info) if isinstance(info, str) else info,
                **self.keywords,
            )
            for source, completion, answer, info in zip(
                sources, completions, answers, infos, strict=True
            )
        ]
        if inspect.iscoroutinefunction(self.function):
            outputs = resolve_awaitable(_gather(outputs))
        scores: list[float | None] = []
        extras: Extras = {}
        for row, output in enumerate(outputs):
            score, numbers = self._split_output(output)
            scores.append(score)
            for name, value in numbers.items():
                extras.setdefault(name, [None] * len(completions))[row] = value
        self.extras = extras
        return scores

    def __getstate__(self) -> dict[str, Any]:
        """The function of a file is loaded again in another process."""
        state = dict(vars(self))
        if ".py:" in self.path:
            del state["function"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if "function" not in state:
            self.function = _load_function(self.path)

    def _split_output(self, output: Any) -> tuple[float | None, Mapping[str, float]]:
        """Return the score, and the other numbers by name."""
        if isinstance(output, dict):
            entries = cast("dict[str, Any]", output)
            if "score" not in entries:
                raise ValueError(
                    f"{self.path} gave a dictionary of {sorted(entries)}; it must have a 'score'"
                )
            numbers = {
                name: float(value)
                for name, value in entries.items()
                if name != "score" and isinstance(value, Real) and math.isfinite(value)
            }
            return entries["score"], numbers
        return (output[0] if isinstance(output, tuple | list) else output), {}


async def _gather(awaitables: list[Awaitable[Any]]) -> list[Any]:
    return list(await asyncio.gather(*awaitables))


def import_function(path: str) -> Callable[..., Any]:
    """Import a function by its path, such as ``package.module.function``.

    Raises:
        ValueError: if there is no such module, or nothing callable of this name in it.
    """
    module_name, _, name = path.rpartition(".")
    if not module_name:
        raise ValueError(
            f"path is {path!r}; a function is named with its module: package.module.function"
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"path is {path!r}, but there is no module {error.name!r}: write it as in an import, "
            "and run where it can be imported"
        ) from error
    function: Any = getattr(module, name, None)
    if not callable(function):
        near = get_close_matches(name, dir(module), n=1)
        hint = f"; did you mean {near[0]!r}?" if near and function is None else ""
        problem = "no" if function is None else "nothing callable named"
        raise ValueError(f"path is {path!r}, but {module_name} has {problem} {name!r}{hint}")
    return cast("Callable[..., Any]", function)


def _load_function(path: str) -> Callable[..., Any]:
    """Load the function of ``file.py:name``."""
    file, _, name = path.rpartition(":")
    if not Path(file).is_file():
        raise ValueError(f"path is {path!r}, but there is no file {file!r}")
    spec = spec_from_file_location(f"_verl_{Path(file).stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"path is {path!r}, but {file} has nothing callable named {name!r}")
    return cast("Callable[..., Any]", function)
