"""Idempotency of HTTP without I/O: a request goes in, and what to do about it comes out.

Both middlewares are built on this, and so can be whatever speaks neither ASGI nor WSGI.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any, Final, Required, TypedDict
from uuid import UUID

from idempo import FingerprintError, Idempotency, IdempotencyError, InvalidKeyError, fingerprint
from idempo._checks import check_limit
from idempo.blocks import OperationBlock
from idempo.http._stored import ResponseCodec, TooLarge
from idempo.http.header import HEADER, check_parser, parse_key
from idempo.http.problems import DOCS, Problems
from idempo.http.requests import Request, Response
from idempo.keys import LONGEST_KEY, key_text
from idempo.policy import Seconds

Principal = str | int | bytes | UUID | Enum | tuple[Any, ...]
"""Who sent a request: what a key may be."""

NEVER_STORED: Final = frozenset({401, 403, 405, 408, 409, 425, 429, 503})
"""Statuses that say that the request was not carried out, and may be sent again."""

REPLAY_HEADERS: Final = frozenset(
    {
        "cache-control",
        "content-disposition",
        "content-encoding",
        "content-language",
        "content-location",
        "content-type",
        "etag",
        "expires",
        "last-modified",
        "link",
        "location",
        "vary",
    }
)
"""Headers that a replay has by default, besides Content-Length: those that tell of the body or of what was made."""

_SECRET: Final = frozenset(
    {
        "authentication-info",
        "authorization",
        "proxy-authenticate",
        "proxy-authentication-info",
        "proxy-authorization",
        "set-cookie",
        "set-cookie2",
        "www-authenticate",
    }
)
_OF_A_CONNECTION: Final = frozenset(
    {"connection", "content-length", "date", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
)
_ROOM_FOR_HEADERS: Final = 64 * 1024  # bytes that the headers of a stored response may have beside its body
_WITHOUT_BODY: Final = frozenset({204, 304})


class HttpOptions(TypedDict, total=False):
    """The options of `HttpIdempotency`, and so of both middlewares."""

    methods: Iterable[str]
    principal: Required[Callable[[Request], Principal | None] | None]
    required: bool
    key: Callable[[Request], str | None] | None
    applies: Callable[[Request], bool] | None
    payload: Callable[[Request], Any] | None
    store_status: Callable[[int], bool] | None
    max_body: int
    max_response: int
    replay_headers: Iterable[str]
    wait: Seconds
    bare_keys: bool
    problems: str


class NotKeptError(Exception):
    """Ends an operation whose response is not to be kept: nothing happened, and the key is free again.

    Attributes:
        response: What the handler answered.
    """

    def __init__(self, response: Response) -> None:
        super().__init__(response)
        self.response = response


def stored_by_default(status: int) -> bool:
    """Whether a response is an outcome: all but those whose status says that the request may be sent again."""
    return status not in NEVER_STORED


class UnfinishedResponseError(Exception):
    """An application ended before its response did. The operation ends by policy, and the server tells the client."""


class HttpIdempotency:
    """What both middlewares do about a request, and what they keep of a response.

    Args:
        guard: Serves the requests, in the namespace ``http`` within its own.
        principal: Gives who sent a request, from an identity that was *verified*: never from a header that a client
            may write as it likes. One principal's key never meets another's. None means that there is one tenant. A
            caller for whom it gives None, and who sends a key, is answered with 400.
        methods: Of requests that are guarded.
        required: Whether a request without a key is answered with 400, instead of being passed on unguarded.
        key: Gives the key that a request has, or None; that of its ``Idempotency-Key`` header when None. A middleware
            asks it before the body is read.
        applies: Whether a request is guarded, asked before its body is read; every one when None.
        payload: What is fingerprinted; the query and the bytes of the body when None. For bodies whose bytes change
            when they are sent again, as multipart's boundaries do. What it gives may be None, which checks nothing.
            Where it raises ValueError, or gives what has no canonical form, the bytes count.
        store_status: Whether a response of this status is the outcome; all but 401, 403, 405, 408, 409, 425, 429 and
            503 when None. After any other the key is free again.
        max_body: The largest body of a guarded request, in bytes; a larger one is answered with 413, and nothing runs.
        max_response: The largest body that is kept, in bytes; a larger one is sent, and not kept: its duplicates are
            told that it is lost.
        replay_headers: The names of the headers that a replay has besides Content-Length.
        wait: How long a duplicate waits for the request in progress, in seconds, before it is answered with 409.
        bare_keys: Whether a key without quotation marks is taken.
        problems: The address of a page on the problems, where clients find what they mean.

    Attributes:
        guard: The guard that serves the requests; an operator's ``forget`` and ``resolve`` can go there.

    Raises:
        ImportError: The extra ``http`` is not installed.
        TypeError: An option is of the wrong type.
        ValueError: An option is out of its range; or a header is named that is never replayed, such as Set-Cookie.
    """

    def __init__(
        self,
        guard: Idempotency,
        *,
        principal: Callable[[Request], Principal | None] | None,
        methods: Iterable[str] = ("POST", "PATCH"),
        required: bool = False,
        key: Callable[[Request], str | None] | None = None,
        applies: Callable[[Request], bool] | None = None,
        payload: Callable[[Request], Any] | None = None,
        store_status: Callable[[int], bool] | None = None,
        max_body: int = 1 << 20,
        max_response: int = 1 << 20,
        replay_headers: Iterable[str] = REPLAY_HEADERS,
        wait: Seconds = 0,
        bare_keys: bool = True,
        problems: str = DOCS,
    ) -> None:
        check_parser()
        if not isinstance(guard, Idempotency):
            raise TypeError(f"guard must be an Idempotency, not {type(guard).__name__}")
        for name, value in (
            ("principal", principal),
            ("key", key),
            ("applies", applies),
            ("payload", payload),
            ("store_status", store_status),
        ):
            if value is not None and not callable(value):
                raise TypeError(f"{name} must be a callable or None, not {type(value).__name__}")
        check_limit(max_body, "max_body")
        check_limit(max_response, "max_response")
        self.methods: Final = _checked_methods(methods)
        self.max_body: Final = max_body
        self.max_response: Final = max_response
        self._principal = principal
        self._required = required
        self._key = key
        self._applies = applies
        self._payload = payload
        self._store_status = stored_by_default if store_status is None else store_status
        self._replay_headers = _checked_names(replay_headers)
        self._bare = bare_keys
        self.problems: Final = Problems(problems)
        releasing = guard.policy.releasing
        self.guard: Final = guard.options(
            namespace="http",
            codec=ResponseCodec(),
            wait=wait,
            max_result=max_response + _ROOM_FOR_HEADERS,
            release_errors=(*releasing, NotKeptError),
        )

    def admit(self, request: Request) -> str | Response | None:
        """Say what a request is, before its body is read.

        Returns:
            The key that its client sent; or what it is answered instead of being carried out; or None, and it passes
            unguarded.
        """
        if request.method not in self.methods or (self._applies is not None and not self._applies(request)):
            return None
        try:
            key = self._key_of(request)
        except InvalidKeyError as error:
            return self.problems.invalid(str(error))
        if key is None:
            return self.problems.missing() if self._required else None
        length = request.headers.get("content-length")
        if length is not None and length.isdecimal() and self.over(length):
            return self.problems.too_large(self.max_body)
        return key

    def _key_of(self, request: Request) -> str | None:
        if self._key is None:
            values = request.headers.getall(HEADER)
            return parse_key(values, bare=self._bare) if values else None
        key: object = self._key(request)  # a caller without a type checker can give anything
        if key is None:
            return None
        if not isinstance(key, str):
            raise TypeError(f"key must give a str or None, not {type(key).__name__}")
        if not key:
            raise InvalidKeyError("the key is empty")
        return key

    def over(self, length: str) -> bool:
        """Whether a body of this Content-Length is too large."""
        digits = length.lstrip("0")
        return len(digits) > len(str(self.max_body)) or int(digits or "0") > self.max_body

    def operation(self, request: Request, key: str) -> OperationBlock | Response:
        """Return the operation that a request asks for, or what it is answered instead.

        Args:
            request: With its body.
            key: As `admit` gave it.

        Raises:
            TypeError: ``principal`` gave what cannot name anybody.
        """
        parts: tuple[Any, ...] = (request.host or ".", request.path or "/", key)
        if self._principal is not None:
            principal = self._principal(request)
            if principal is None:
                return self.problems.unknown_principal()
            parts = (*parts, _checked_principal(principal))
        whole = _composite(request.method, parts)
        if self._payload is not None:
            try:
                return self.guard.operation(whole, payload=self._payload(request))
            except (ValueError, FingerprintError, RecursionError):
                pass  # a body that is not what it should be: its handler will say so, and its bytes are what it is
        return self.guard.operation(whole, payload=_bytes_of(request))

    def outcome(self, response: Response, size: int | None = None) -> Response | TooLarge:
        """Return what is kept of a response.

        Args:
            response: As its handler gave it.
            size: Of its body, in bytes, where the body itself was not collected to its end.

        Raises:
            NotKeptError: Its status says that nothing is: raise this out of the operation's block.
        """
        if not self._store_status(response.status):
            raise NotKeptError(response)
        if (len(response.body) if size is None else size) > self.max_response:
            return TooLarge(self.max_response)
        kept = tuple(pair for pair in response.headers if pair[0] in self._replay_headers)
        return Response(response.status, kept, response.body)

    def replayed(self, stored: Response) -> Response:
        """Return the response that a duplicate gets."""
        headers = (*stored.headers, ("idempotent-replayed", "true"))
        if stored.status not in _WITHOUT_BODY:
            headers = (*headers, ("content-length", str(len(stored.body))))
        return Response(stored.status, headers, stored.body)

    def answer(self, error: IdempotencyError | NotKeptError) -> Response:
        """Return what a request is answered whose operation could not be entered.

        Args:
            error: What entering it raised; a NotKeptError is of the request in progress, which this one waited for.

        Raises:
            IdempotencyError: The error itself, where it is a mistake of the program.
        """
        if isinstance(error, NotKeptError):
            return error.response
        result = getattr(error, "result", None)  # of one that it joined: it ran, and its outcome could not be stored
        if isinstance(result, Response):
            return self.replayed(result)
        return self.problems.of(error)


def _bytes_of(request: Request) -> bytes:
    """Return query and body as bytes that no other query and body give."""
    return b"%d:%b%b" % (len(request.query), request.query, request.body)


def _composite(method: str, parts: tuple[Any, ...]) -> str:
    """Return a key that no other request has: a method is letters alone, and the text of a tuple is in parentheses."""
    try:
        text = method + key_text(parts)
        if len(text) <= LONGEST_KEY:
            return text
    except InvalidKeyError:  # too long, or a path that is no Unicode
        pass
    return f"sha256-{fingerprint((method, *parts)).hex()}"


def _checked_principal(principal: object) -> Any:
    kinds = (str, int, bytes, UUID, Enum, tuple)
    if not isinstance(principal, kinds) or isinstance(principal, bool) or principal in ("", b"", ()):
        raise TypeError(
            "principal must give a str, int, UUID, Enum, bytes or a tuple of these, and nothing empty, "
            f"not {type(principal).__qualname__}"
        )
    return principal


def _checked_methods(methods: Iterable[str]) -> frozenset[str]:
    if isinstance(methods, str):
        raise TypeError(f'methods must be several, as in ("{methods}",)')
    checked = frozenset(methods)
    for method in checked:
        if not isinstance(method, str) or not method.isascii() or not method.isalpha() or method != method.upper():
            raise ValueError(f"a method must be its name in upper case, not {method!r}")
    safe = checked & {"GET", "HEAD", "OPTIONS", "TRACE"}
    if safe:
        raise ValueError(f"{min(safe)} has no effect, and so needs no guard (RFC 9110 section 9.2.1)")
    return checked


def _checked_names(names: Iterable[str]) -> frozenset[str]:
    if isinstance(names, str):
        raise TypeError(f'replay_headers must be several, as in ("{names}",)')
    checked = frozenset(name.lower() for name in names)
    for name in sorted(checked & (_SECRET | _OF_A_CONNECTION)):
        why = "is a secret between the server and one client" if name in _SECRET else "belongs to one connection"
        raise ValueError(f"{name} is never replayed: it {why}")
    return checked
