"""What the parts of a run need and provide, checked before training.

Modules, datamodules and callbacks have two sets of names, ``needs`` and ``provides``:

    batch.NAME    a key of the training batch
    signal.NAME   a per-sample output of ``training_step``
    data.NAME     an attribute of the datamodule
    model.NAME    an attribute of the module
    duty.NAME     a task that another part performs, such as synchronizing a target network

In a valid run every need of a part is provided by some part.
"""

from collections.abc import Iterable


def unmet_needs(parts: Iterable[object]) -> list[str]:
    """Check that every need is provided.

    Args:
        parts: the module, the datamodule and the callbacks of a run; optional attributes are
            ``needs``, ``provides`` and ``remedies`` (by need, a hint for the error).

    Returns:
        One line for each unmet need, with the part, the need and a remedy; empty for a valid run.
    """
    parts = list(parts)
    provided = frozenset[str]().union(*(_names(part, "provides") for part in parts))
    labels = ", ".join(_label(part) for part in parts)
    lines: list[str] = []
    for part in parts:
        remedies: dict[str, str] = getattr(part, "remedies", {})
        for need in sorted(_names(part, "needs") - provided):
            remedy = remedies.get(need, f"add a part that provides {need!r}, or leave this one out")
            if need.startswith("duty."):
                remedy += " (in a config, `callbacks+:` appends; `callbacks:` replaces the list)"
            lines.append(
                f"{_label(part)} needs {need!r}, which none of {labels} provides: {remedy}"
            )
    return lines


def check_pairing(parts: Iterable[object]) -> None:
    """Reject a run whose parts do not fit together.

    Args:
        parts: the module, the datamodule and the callbacks of the run.

    Raises:
        ValueError: with a line for each unmet need.
    """
    if lines := unmet_needs(parts):
        raise ValueError("these parts do not fit together:\n  " + "\n  ".join(lines))


def _names(part: object, attribute: str) -> frozenset[str]:
    return frozenset(getattr(part, attribute, ()))


def _label(part: object) -> str:
    """Class path of a part, as a config has it."""
    cls = type(part)
    names = cls.__module__.split(".")
    package = names[:2] if names[0] == "lit_adaptive" else names[:-1] or names
    return ".".join([*package, cls.__qualname__])
