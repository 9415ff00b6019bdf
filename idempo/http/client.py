"""For clients: a key for one logical call, kept over all its retries. Of the standard library, and any HTTP client.

The header is ``Idempotency-Key`` of draft-ietf-httpapi-idempotency-key-header-07, whose value is a String of Structured
Fields (RFC 9651, section 3.3.3).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from typing import Final

__all__ = ["HEADER", "KeptKey", "format_key", "new_key"]

HEADER: Final = "Idempotency-Key"
"""The header's name."""

_LONGEST: Final = 255


def new_key() -> str:
    """Return a new idempotency key, for one logical call: a random UUID, as the draft recommends (section 2.2)."""
    return str(uuid.uuid4())


def format_key(key: str) -> str:
    r"""Return a key as the header's value: between quotes, each quote and backslash in it behind a backslash.

    Args:
        key: 1 to 255 printable ASCII characters, the space included.

    Raises:
        TypeError: The key is no str.
        ValueError: It is empty, too long, or has other characters.

    >>> from idempo.http.client import format_key
    >>> print(format_key('order "42"'))
    "order \"42\""
    """
    return '"' + _checked(key).replace("\\", "\\\\").replace('"', '\\"') + '"'


class KeptKey(Mapping[str, str]):
    """The headers of one logical call, with a key that stays the same for as long as this object is used.

    Make one before the first try, outside of whatever retries, and give it as ``headers`` to each: any client that
    takes a mapping takes it. To send something else make another one, or the server refuses it as another payload.

    Args:
        key: A key of your own, such as one that is stored with the order, so that a process that comes after this one
            sends it again; a `new_key` when None. As for `format_key`.
        bare: Send the key without quotes, to servers that want it so; it must then have no space at its ends.

    Attributes:
        key: The key, as it was given or made.

    Raises:
        TypeError: The key is no str.
        ValueError: The key cannot stand in the header.

    >>> from idempo.http.client import KeptKey
    >>> dict(KeptKey("order-42"))
    {'Idempotency-Key': '"order-42"'}
    >>> dict(KeptKey("order-42", bare=True), Accept="text/plain")
    {'Idempotency-Key': 'order-42', 'Accept': 'text/plain'}
    """

    __slots__ = ("_value", "key")

    def __init__(self, key: str | None = None, *, bare: bool = False) -> None:
        self.key: Final = new_key() if key is None else _checked(key)
        if bare and self.key != self.key.strip(" "):
            raise ValueError("a bare key must have no space at its ends: nobody would receive it")
        self._value: Final = self.key if bare else format_key(self.key)

    def __getitem__(self, name: str) -> str:
        if isinstance(name, str) and name.lower() == HEADER.lower():
            return self._value
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter((HEADER,))

    def __len__(self) -> int:
        return 1

    def __repr__(self) -> str:
        return f"KeptKey({self.key!r})"


def _checked(key: str) -> str:
    if not isinstance(key, str):
        raise TypeError(f"a key must be a str, not {type(key).__name__}")
    if not 0 < len(key) <= _LONGEST:
        raise ValueError(f"a key must have 1 to {_LONGEST} characters, not {len(key)}")
    if not (key.isascii() and key.isprintable()):
        raise ValueError("a key must be of printable ASCII characters: give its digest, or encode it")
    return str.__str__(key)
