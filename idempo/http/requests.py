"""What the HTTP rooms pass on: a request and a response, of no framework."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol

import attrs

Pairs = tuple[tuple[str, str], ...]
"""Headers, in their order: names in lower case, and values as text of Latin-1."""


class Headers(Protocol):
    """The headers of a request. Names count in any case."""

    def get(self, name: str, default: str | None = None) -> str | None:
        """Return the first value, or the default."""
        ...

    def getall(self, name: str) -> list[str]:
        """Return each value, in their order; none is an empty list."""
        ...


class AsgiHeaders:
    """Headers as ASGI gives them: pairs of bytes, names in lower case."""

    __slots__ = ("_raw",)

    def __init__(self, raw: Iterable[tuple[bytes, bytes]]) -> None:
        self._raw = raw if isinstance(raw, list | tuple) else list(raw)

    def get(self, name: str, default: str | None = None) -> str | None:
        """Return the first value, or the default."""
        wanted = name.lower().encode("latin-1", "replace")
        for found, value in self._raw:
            if found == wanted:
                return value.decode("latin-1")
        return default

    def getall(self, name: str) -> list[str]:
        """Return each value, in their order."""
        wanted = name.lower().encode("latin-1", "replace")
        return [value.decode("latin-1") for found, value in self._raw if found == wanted]


class WsgiHeaders:
    """Headers as WSGI gives them: several of one name are one value, joined by commas (RFC 9110 section 5.2)."""

    __slots__ = ("_environ",)

    def __init__(self, environ: Mapping[str, Any]) -> None:
        self._environ = environ

    def get(self, name: str, default: str | None = None) -> str | None:
        """Return the value, or the default."""
        key = name.upper().replace("-", "_")
        value = self._environ.get(key if key in _WITHOUT_PREFIX else f"HTTP_{key}")
        return default if value is None else str(value)

    def getall(self, name: str) -> list[str]:
        """Return the value alone."""
        value = self.get(name)
        return [] if value is None else [value]


_WITHOUT_PREFIX: Final = frozenset({"CONTENT_TYPE", "CONTENT_LENGTH"})


class PlainHeaders:
    """Headers as pairs of text, for whoever makes a `Request` by hand."""

    __slots__ = ("_pairs",)

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()) -> None:
        self._pairs = [(name.lower(), value) for name, value in pairs]

    def get(self, name: str, default: str | None = None) -> str | None:
        """Return the first value, or the default."""
        return next(iter(self.getall(name)), default)

    def getall(self, name: str) -> list[str]:
        """Return each value, in their order."""
        wanted = name.lower()
        return [value for found, value in self._pairs if found == wanted]


@attrs.frozen(kw_only=True)
class Request:
    """A request, as far as idempotency looks at it.

    Attributes:
        method: As sent, which is upper case for all that are registered.
        host: Where it was sent to, from the ``Host`` header, in lower case; empty where there is none.
        path: Decoded, without the query.
        query: As sent, without the question mark.
        headers: ``get(name)`` is the first value, or None; ``getall(name)`` a list.
        body: The whole; empty as long as it was not read.
        scope: What the server gave: the ASGI scope or the WSGI environ.
    """

    method: str
    path: str
    host: str = ""
    query: bytes = b""
    headers: Headers = attrs.field(factory=PlainHeaders)
    body: bytes = attrs.field(default=b"", repr=False)
    scope: Any = attrs.field(default=None, repr=False)

    def with_body(self, body: bytes) -> Request:
        """Return this request with its body."""
        return Request(
            method=self.method,
            host=self.host,
            path=self.path,
            query=self.query,
            headers=self.headers,
            body=body,
            scope=self.scope,
        )


@attrs.frozen
class Response:
    """A response: what a handler answered, or what idempo answers instead.

    Attributes:
        status: From 100 to 599.
        headers: Pairs of text in their order, names in lower case. Several of one name are several pairs.
        body: The whole.
    """

    status: int
    headers: Pairs = attrs.field(default=(), repr=False)
    body: bytes = attrs.field(default=b"", repr=False)

    def header(self, name: str) -> str | None:
        """Return the first value of a header, or None."""
        wanted = name.lower()
        return next((value for found, value in self.headers if found == wanted), None)
