"""States of the buffers: written to files, and checked before a buffer takes them."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from lit_adaptive.files import load_state, save_state


class SavedState(ABC):
    """A buffer whose state can be written to a file."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that future draws depend on, copied; ``kind`` is the name of the class."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume so that draws continue as if they had not been interrupted.

        Raises:
            ValueError: if the state is of another class or settings, or damaged; nothing is changed
                then.
        """

    def save(self, path: str | Path) -> None:
        """Write ``state_dict`` to ``path``, atomically."""
        save_state(self.state_dict(), path)

    def load(self, path: str | Path) -> None:
        """Restore a file of ``save``.

        Raises:
            ValueError: if the file is damaged, or as ``load_state_dict``; nothing is changed then.
        """
        self.load_state_dict(load_state(path))


def check_settings(state: dict[str, Any], kind: str, **settings: object) -> None:
    """Raise ValueError unless a state is of class ``kind`` and has these ``settings``."""
    if state.get("kind") != kind:
        raise ValueError(
            f"the state is of {state.get('kind')!r}, not of a {kind}: pass the result of "
            f"{kind}.state_dict. Nothing was changed"
        )
    for name, value in settings.items():
        if state.get(name) != value:
            raise ValueError(
                f"the state has {name}={state.get(name)!r}, this {kind} {name}={value!r}: create "
                "it with the same value, or start with an empty one. Nothing was changed"
            )
