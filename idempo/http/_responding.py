"""A response on its way through a middleware: what of it is collected, and when its client can tell its end."""

from __future__ import annotations

from idempo.http._stored import TooLarge
from idempo.http.core import HttpIdempotency
from idempo.http.requests import Pairs, Response


class Collected:
    """Collects a response as it passes.

    Args:
        rules: Which responses are kept, and up to which size.
    """

    __slots__ = ("_headers", "_left", "_parts", "_rules", "_size", "_status")

    def __init__(self, rules: HttpIdempotency) -> None:
        self._rules = rules
        self._status = 0
        self._headers: Pairs = ()
        self._left: int | None = None  # bytes that Content-Length promised
        self._parts: list[bytes] = []
        self._size = 0

    @property
    def begun(self) -> bool:
        """Whether there is a status yet."""
        return self._status > 0

    @property
    def too_large(self) -> bool:
        """Whether more has passed than is kept."""
        return self._size > self._rules.max_response

    def begin(self, status: int, headers: Pairs) -> None:
        """Note the status and the headers, whose names are in lower case."""
        self._status = status
        self._headers = headers
        for name, value in headers:
            if name == "content-length" and value.isdecimal():
                self._left = int(value)

    def add(self, part: bytes) -> bool:
        """Note a part of the body; say whether the client can tell by it, from Content-Length, that it is the last."""
        self._size += len(part)
        if self.too_large:
            self._parts.clear()
        elif part:
            self._parts.append(part)
        return self._left is not None and self._size >= self._left

    def outcome(self) -> Response | TooLarge:
        """Return what is kept.

        Raises:
            NotKeptError: Nothing is, by its status.
        """
        return self._rules.outcome(Response(self._status, self._headers, b"".join(self._parts)), self._size)
