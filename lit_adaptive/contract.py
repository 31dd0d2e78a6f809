"""What a part needs and what it provides, so that a wrong pairing is refused before training.

Modules, datamodules and callbacks carry two sets of names, ``needs`` and ``provides``:

    batch.NAME    a key of the training batch               (datamodules provide)
    signal.NAME   a per-sample output of ``training_step``  (modules provide)
    data.NAME     an attribute of the datamodule
    model.NAME    an attribute of the module
    duty.NAME     something that must be done for the part, such as syncing its target network

A run is sound when every need is provided by some part of it.
"""

from collections.abc import Iterable


def _names(part: object, kind: str) -> frozenset[str]:
    return frozenset(getattr(part, kind, ()))


def _label(part: object) -> str:
    cls = type(part)
    names = cls.__module__.split(".")
    package = names[:2] if names[0] == "lit_adaptive" else names[:-1] or names
    return ".".join([*package, cls.__qualname__])


def unmet_needs(parts: Iterable[object]) -> list[str]:
    """One line for each part whose needs nobody provides; empty if the run is sound."""
    parts = list(parts)
    provided = frozenset[str]().union(*(_names(part, "provides") for part in parts))
    present = ", ".join(_label(part) for part in parts)
    lines: list[str] = []
    for part in parts:
        missing = sorted(_names(part, "needs") - provided)
        remedies: dict[str, str] = getattr(part, "remedies", {})
        for name in missing:
            remedy = remedies.get(name, f"add a part that provides {name!r}, or leave this one out")
            lines.append(
                f"{_label(part)} needs {name!r}, and none of {present} provides it: {remedy}"
            )
    return lines


def check_pairing(parts: Iterable[object]) -> None:
    """Refuse a run whose parts do not fit together.

    Raises:
        ValueError: naming, for each unmet need, the part, the need and the remedy.
    """
    if lines := unmet_needs(parts):
        raise ValueError("these parts do not fit together:\n  " + "\n  ".join(lines))
