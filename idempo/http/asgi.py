"""`IdempotencyMiddleware` for ASGI: Starlette, FastAPI, Quart, Django's ASGI handler, or a plain application."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, Unpack, cast

from idempo import Idempotency, IdempotencyError
from idempo.blocks import AsyncBlockOperation, OperationBlock
from idempo.http._responding import Collected
from idempo.http.core import HttpIdempotency, HttpOptions, NotKeptError, UnfinishedResponseError
from idempo.http.requests import AsgiHeaders, Request, Response

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_PAST_THE_BODY: Final = frozenset({"http.response.pathsend", "http.response.trailers", "http.response.zerocopysend"})
"""Extensions by which a body, or what comes after it, would go past whoever looks at the messages."""

__all__ = ["IdempotencyMiddleware", "read_body", "request_of", "respond"]


class IdempotencyMiddleware:
    """Answers a repeated request with the first response, by its ``Idempotency-Key``.

    It belongs inside whatever authenticates, compresses, or answers for CORS, and around the routes. The body of a
    guarded request is read before the application is called, and a client that goes away does not end a request that
    has begun: it runs on in a task of its own, and its response is kept.

    Args:
        app: The application.
        guard: On any store. Its events and counts tell of the requests.
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
        self._running: set[asyncio.Task[None]] = set()  # a loop keeps only weak references to its tasks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or scope["method"] not in self._methods:
            await self._app(scope, receive, send)
            return
        request = request_of(scope)
        admitted = self.idempotency.admit(request)
        if admitted is None:
            await self._app(scope, receive, send)
        elif isinstance(admitted, Response):
            await respond(admitted, send)
        else:
            await self._guarded(request, admitted, receive, send)

    async def _guarded(self, request: Request, key: str, receive: Receive, send: Send) -> None:
        body = await read_body(receive, self.idempotency.max_body)
        if body is None:
            return  # the client went away while it was still sending
        if len(body) > self.idempotency.max_body:
            await respond(self.idempotency.problems.too_large(self.idempotency.max_body), send)
            return
        block = self.idempotency.operation(request.with_body(body), key)
        if isinstance(block, Response):
            await respond(block, send)
            return
        try:
            operation = await block.__aenter__()
        except (NotKeptError, IdempotencyError) as error:
            answer = self.idempotency.answer(error)
        else:
            if operation.fresh:
                await self._fresh(_Run(self._app, self.idempotency, block, operation, body, send), request.scope)
                return
            answer = self.idempotency.replayed(operation.result)
            await block.__aexit__(None, None, None)
        await respond(answer, send)

    async def _fresh(self, run: _Run, scope: Scope) -> None:
        task = asyncio.get_running_loop().create_task(run.serve(scope))
        run.block.hand_to(task)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            run.leave()
            task.add_done_callback(_tell_failure)
            raise


class _Run:
    """One request that is carried out: the messages of its response, and where they go."""

    def __init__(
        self,
        app: App,
        rules: HttpIdempotency,
        block: OperationBlock,
        operation: AsyncBlockOperation,
        body: bytes,
        send: Send,
    ) -> None:
        self.block = block
        self._app = app
        self._collected = Collected(rules)
        self._operation = operation
        self._body: bytes | None = body
        self._send = send
        self._gone = False
        self._settled = False
        self._over = asyncio.Event()

    def leave(self) -> None:
        """Send nothing more: whoever would pass it on is gone."""
        self._gone = True

    async def serve(self, scope: Scope) -> None:
        """Call the application, and end the operation by what it does."""
        scope = dict(scope)
        if scope.get("extensions"):
            scope["extensions"] = {
                name: value for name, value in scope["extensions"].items() if name not in _PAST_THE_BODY
            }
        try:
            await self._app(scope, self.receive, self.send)
        except BaseException as error:
            await self.block.__aexit__(type(error), error, error.__traceback__)
            raise
        else:
            unfinished = None if self._settled else UnfinishedResponseError("the application ended within its response")
            await self.block.__aexit__(None if unfinished is None else type(unfinished), unfinished, None)
        finally:
            self._over.set()

    async def receive(self) -> Message:
        """Give the body, and then nothing until the response is over: whether the client is there changes nothing."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._over.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Pass a message on; before the one that ends the body, the outcome is stored."""
        kind = message["type"]
        if kind == "http.response.start":
            self._collected.begin(
                message["status"],
                tuple(
                    (bytes(name).decode("latin-1").lower(), bytes(value).decode("latin-1"))
                    for name, value in message.get("headers", ())
                ),
            )
        elif kind == "http.response.body" and not self._settled:
            ended = self._collected.add(message.get("body", b""))
            if ended or not message.get("more_body", False):
                await self._settle()
        await self._pass_on(message)
        if kind == "http.response.body" and not message.get("more_body", False):
            self._over.set()

    async def _settle(self) -> None:
        self._settled = True
        try:
            await self._operation.complete(self._collected.outcome())
        except Exception as error:  # noqa: BLE001 (a store's bug too; an event has told it)
            # Not kept, or not stored: it ran, and its client gets what the handler answered all the same.
            await self.block.__aexit__(type(error), error, error.__traceback__)

    async def _pass_on(self, message: Message) -> None:
        if self._gone:
            return
        try:
            await self._send(message)
        except OSError:  # the client went away (ASGI 2.4): the run goes on without it
            self._gone = True


def _tell_failure(task: asyncio.Task[None]) -> None:
    """Hand the loop an error that nobody else hears of: `asyncio.shield` drops it once its caller is gone."""
    if not task.cancelled() and (error := task.exception()) is not None:
        message = "a guarded request failed after its client had gone"
        task.get_loop().call_exception_handler({"message": message, "exception": error, "task": task})


def request_of(scope: Scope) -> Request:
    """Return a scope as a request, without its body."""
    headers = AsgiHeaders(scope["headers"])
    return Request(
        method=scope["method"],
        host=(headers.get("host") or "").lower(),
        path=scope["path"],
        query=scope.get("query_string", b""),
        headers=headers,
        scope=scope,
    )


async def read_body(receive: Receive, limit: int) -> bytes | None:
    """Read the body of a request.

    Args:
        receive: Of the request.
        limit: Of its size, in bytes. What is over it is read no further.

    Returns:
        The body; or more than ``limit`` bytes of it; or None where the client went away before its end.
    """
    parts: list[bytes] = []
    size = 0
    while size <= limit:
        message = await receive()
        if message["type"] != "http.request":
            return None
        part = message.get("body", b"")
        size += len(part)
        parts.append(part)
        if not message.get("more_body", False):
            break
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def respond(response: Response, send: Send) -> None:
    """Send a whole response."""
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in response.headers]
    await send(cast("Message", {"type": "http.response.start", "status": response.status, "headers": headers}))
    await send({"type": "http.response.body", "body": response.body, "more_body": False})
