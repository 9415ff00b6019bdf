"""How keys are shown: a client chooses them, and they stand in logs and in errors."""

from __future__ import annotations

from typing import Final

_LONGEST: Final = 80


def shown(key: object) -> str:
    """Return a key, or what else a client has chosen, as one short line: escaped, and cut."""
    text = str(key).encode("unicode_escape").decode("ascii")
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
