"""Secrets and keys as they are given: one or several, never shown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

_SHORTEST: Final = 16


def checked_secrets(secrets: Any) -> list[bytes]:
    """Return one secret or several as a list of bytes, each long enough not to be guessed.

    Raises:
        TypeError: A secret is neither str nor bytes.
        ValueError: There is none, or one is too short.
    """
    found = several(secrets, "secret")
    if any(len(secret) < _SHORTEST for secret in found):
        raise ValueError(
            f"a secret must have at least {_SHORTEST} bytes, or it can be guessed; make one with"
            " secrets.token_urlsafe(32)"
        )
    return found


def several(given: Any, what: str) -> list[bytes]:
    """Return one secret or many as a list of bytes; no text of an error shows any of them."""
    if isinstance(given, str | bytes | bytearray):
        given = [given]
    elif not isinstance(given, Iterable):
        raise TypeError(f"{what}s must be one {what} or several, not {type(given).__name__}")
    result = []
    for one in given:
        if what == "secret" and isinstance(one, str):
            one = one.encode()  # noqa: PLW2901  # the same secret
        if not isinstance(one, bytes | bytearray):
            raise TypeError(f"a {what} must be bytes, not {type(one).__name__}")
        result.append(bytes(one))
    if not result:
        raise ValueError(f"at least one {what} is needed")
    return result
