"""Access to the Hugging Face hub without the long retries of its libraries."""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_TIMEOUT_S = 5.0


@contextmanager
def hub_access(name: str) -> Generator[None]:
    """Read ``name`` from the cache alone if the hub cannot be reached.

    The libraries repeat each failed request five times, which takes 23 s for each file. Here one
    request with a time-out of 5 s decides whether they are put into their offline mode.

    Args:
        name: what the block loads; the hub is not asked about an existing file or folder.

    Raises:
        OSError: if the hub cannot be reached and the block fails, because ``name`` is not cached.
    """
    from huggingface_hub import constants

    if constants.is_offline_mode() or Path(name).exists() or _reachable():
        yield
        return
    switches: list[Any] = [constants]
    if "datasets" in sys.modules:
        switches.append(sys.modules["datasets"].config)
    for switch in switches:
        switch.HF_HUB_OFFLINE = True
    try:
        yield
    except Exception as error:  # each library has its own
        if not _is_offline_error(error):
            raise
        raise OSError(
            f"{constants.ENDPOINT} cannot be reached, and {name!r} is neither a file or folder nor "
            f"in the cache {constants.HF_HUB_CACHE}: correct the name, or connect and try again"
        ) from None
    finally:
        for switch in switches:
            switch.HF_HUB_OFFLINE = False


def _is_offline_error(error: BaseException | None) -> bool:
    names = ("OfflineModeIsEnabled", "LocalEntryNotFoundError", "ConnectionError")
    while error is not None and type(error).__name__ not in names:
        error = error.__cause__ or error.__context__
    return error is not None


def _reachable() -> bool:
    """Whether the hub answers one request."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=_TIMEOUT_S)
    except Exception:  # of the HTTP library, whose name differs between versions
        return False
    return True
