"""Text of unknown origin for a page or a terminal."""

import json
from typing import Any


def visible(value: Any, longest: int) -> str:
    """A value as text, shortened, and with control characters made visible."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = text if len(text) <= longest else f"{text[:longest]} …"
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
