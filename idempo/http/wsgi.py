"""`IdempotencyMiddleware` for WSGI (PEP 3333): Flask, Django, Pyramid, or a plain application."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from types import TracebackType
from typing import Any, Final, Unpack

from idempo import Idempotency, IdempotencyError
from idempo.blocks import BlockOperation, OperationBlock
from idempo.http._responding import Collected
from idempo.http.core import HttpIdempotency, HttpOptions, NotKeptError, UnfinishedResponseError
from idempo.http.requests import Request, Response, WsgiHeaders

Environ = dict[str, Any]
ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]
StartResponse = Callable[..., Callable[[bytes], object]]
App = Callable[[Environ, StartResponse], Iterable[bytes]]

_PIECE: Final = 64 * 1024  # bytes that are read at once

__all__ = ["IdempotencyMiddleware", "read_body", "request_of", "respond"]


class IdempotencyMiddleware:
    """Answers a repeated request with the first response, by its ``Idempotency-Key``.

    It belongs inside whatever authenticates, compresses, or answers for CORS, and around the routes. The body of a
    guarded request is read before the application is called, and a client that goes away does not end a request that
    has begun: what is left of its response is asked of the application, and kept.

    Args:
        app: The application.
        guard: On any store that is not for coroutines. Its events and counts tell of the requests.
        **options: Those of `HttpIdempotency`. ``principal`` has no default.

    Attributes:
        idempotency: The `HttpIdempotency` that decides.

    Raises:
        TypeError: An option is of the wrong type, or unknown.
        ValueError: An option is out of its range.
    """

    def __init__(self, app: App, guard: Idempotency, **options: Unpack[HttpOptions]) -> None:
        self._app = app
        self.idempotency: Final = HttpIdempotency(guard, **options)
        self._methods = self.idempotency.methods

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        if environ["REQUEST_METHOD"] not in self._methods:
            return self._app(environ, start_response)
        request = request_of(environ)
        admitted = self.idempotency.admit(request)
        if admitted is None:
            return self._app(environ, start_response)
        if isinstance(admitted, Response):
            return respond(admitted, start_response)
        return self._guarded(request, admitted, start_response)

    def _guarded(self, request: Request, key: str, start_response: StartResponse) -> Iterable[bytes]:
        limit = self.idempotency.max_body
        body = read_body(request.scope, limit)
        if body is None:
            return respond(self.idempotency.problems.cut_short(), start_response)
        if len(body) > limit:
            return respond(self.idempotency.problems.too_large(limit), start_response)
        block = self.idempotency.operation(request.with_body(body), key)
        if isinstance(block, Response):
            return respond(block, start_response)
        try:
            operation = block.__enter__()
        except (NotKeptError, IdempotencyError) as error:
            return respond(self.idempotency.answer(error), start_response)
        if operation.fresh:
            run = _Run(self.idempotency, block, operation, start_response)
            run.begin(self._app, request.scope, body)
            return run
        answer = self.idempotency.replayed(operation.result)
        block.__exit__(None, None, None)
        return respond(answer, start_response)


class _Run:
    """One request that is carried out, as the iterable of its response's body."""

    def __init__(
        self,
        rules: HttpIdempotency,
        block: OperationBlock,
        operation: BlockOperation,
        start_response: StartResponse,
    ) -> None:
        self._block = block
        self._operation = operation
        self._start_response = start_response
        self._collected = Collected(rules)
        self._settled = False
        self._parts: Iterator[bytes] = iter(())
        self._close: Callable[[], object] | None = None
        self._ended = False

    def begin(self, app: App, environ: Environ, body: bytes) -> None:
        """Call the application."""
        environ = {**environ, "wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        environ.pop("HTTP_TRANSFER_ENCODING", None)  # the body is whole now
        try:
            parts = app(environ, self._start)
            self._close = getattr(parts, "close", None)
            self._parts = iter(parts)
        except BaseException as error:
            self._fail(error)
            raise

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            part = next(self._parts)
            ended = self._collected.add(part)
        except StopIteration:
            self._settle()
            self._ended = True
            raise
        except BaseException as error:
            self._fail(error)
            raise
        if ended:
            self._settle()
        return part

    def close(self) -> None:
        """End the response, whether the client took the whole of it or went away."""
        try:
            while not (self._ended or self._settled or self._collected.too_large):
                next(self, None)
            if not self._ended:
                self._settle()
        finally:
            self._ended = True
            close, self._close = self._close, None
            if close is not None:
                close()

    def _start(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], object]:
        given = (status, headers) if exc_info is None else (status, headers, exc_info)
        write = self._start_response(*given)
        self._collected.begin(int(status[:3]), tuple((name.lower(), value) for name, value in headers))

        def writing(part: bytes) -> object:
            if self._collected.add(part):
                self._settle()
            return write(part)

        return writing

    def _settle(self) -> None:
        if self._settled:
            return
        if not self._collected.begun:
            self._fail(UnfinishedResponseError("the application ended before it had begun its response"))
            return
        self._settled = True
        try:
            self._operation.complete(self._collected.outcome())
        except Exception as error:  # noqa: BLE001 (a store's bug too; an event has told it)
            # Not kept, or not stored: it ran, and its client gets what the handler answered all the same.
            self._block.__exit__(type(error), error, error.__traceback__)
        else:
            self._block.__exit__(None, None, None)

    def _fail(self, error: BaseException) -> None:
        self._ended = self._settled = True
        self._block.__exit__(type(error), error, error.__traceback__)


def request_of(environ: Environ) -> Request:
    """Return an environ as a request, without its body."""
    path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    return Request(
        method=environ["REQUEST_METHOD"],
        host=(environ.get("HTTP_HOST") or environ.get("SERVER_NAME", "")).lower(),
        # PEP 3333 gives the bytes of UTF-8 as text of Latin-1.
        path=path.encode("latin-1", "replace").decode("utf-8", "surrogateescape"),
        query=environ.get("QUERY_STRING", "").encode("latin-1", "replace"),
        headers=WsgiHeaders(environ),
        scope=environ,
    )


def read_body(environ: Environ, limit: int) -> bytes | None:
    """Read the body of a request.

    Args:
        environ: Of the request.
        limit: Of its size, in bytes. What is over it is read no further.

    Returns:
        The body; or one byte more than ``limit``; or None where the client went away before its end.
    """
    source = environ["wsgi.input"]
    length = environ.get("CONTENT_LENGTH") or ""
    if length.isdecimal():
        left = min(int(length), limit + 1)
    elif environ.get("wsgi.input_terminated"):  # a chunked body, whose end the server finds
        left = limit + 1
    else:
        return b""
    parts: list[bytes] = []
    while left > 0:
        part = source.read(min(left, _PIECE))
        if not part:
            break
        left -= len(part)
        parts.append(part)
    return None if left > 0 and length else b"".join(parts)


def respond(response: Response, start_response: StartResponse) -> list[bytes]:
    """Answer with a whole response."""
    start_response(f"{response.status} {_phrase(response.status)}", list(response.headers))
    return [response.body]


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:  # of a status that nobody has registered
        return "Status"
