"""One application behind either middleware, asked in process."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import attrs

from idempo.http import Response
from idempo.http.asgi import IdempotencyMiddleware as AsgiMiddleware
from idempo.http.wsgi import IdempotencyMiddleware as WsgiMiddleware

Handler = Callable[[str, str, bytes], Response]


@attrs.frozen
class Answer:
    """What a client got."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def all(self, name: str) -> list[str]:
        """Return the values of a header."""
        return [value for found, value in self.headers if found == name]

    @property
    def replayed(self) -> bool:
        return self.all("idempotent-replayed") == ["true"]

    @property
    def problem(self) -> str:
        """The name of the problem that was told, behind the # of its type."""
        import json

        assert self.all("content-type") == ["application/problem+json"]
        told = json.loads(self.body)
        assert told["status"] == self.status
        assert told["title"]
        assert told["detail"]
        return str(told["type"]).partition("#")[2]


class Web:
    """A handler behind a middleware of one of the two kinds."""

    def __init__(self, kind: str, guard: Any, **options: Any) -> None:
        self.kind = kind
        self.asked: list[str] = []
        self.handler: Handler = lambda method, path, body: Response(
            201, (("content-type", "text/plain"), ("location", f"{path}/{len(self.asked)}")), b"made " + body
        )
        options = {"principal": None, **options}
        middleware: Any = AsgiMiddleware if kind == "asgi" else WsgiMiddleware
        self.middleware = middleware(self._asgi if kind == "asgi" else self._wsgi, guard, **options)

    def ask(self, key: str | None = '"k-1"', body: bytes = b"tea", **more: Any) -> Answer:
        """Send a request; each of ``keys`` is a header of its own."""
        if self.kind == "asgi":
            return asyncio.run(self.ask_async(key, body, **more))
        return ask_wsgi(self.middleware, key, body, **more)

    async def ask_async(self, key: str | None = '"k-1"', body: bytes = b"tea", **more: Any) -> Answer:
        """The same for ASGI, on a loop that runs."""
        return await ask_asgi(self.middleware, key, body, **more)

    def _handle(self, method: str, path: str, body: bytes) -> Response:
        self.asked.append(path)
        return self.handler(method, path, body)

    async def _asgi(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        answer = self._handle(scope["method"], scope["path"], body)
        headers = [(name.encode(), value.encode("latin-1", "replace")) for name, value in answer.headers]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})

    def _wsgi(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        answer = self._handle(environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["wsgi.input"].read())
        start_response(f"{answer.status} Some", list(answer.headers))
        return [answer.body]


def asgi_scope(
    key: str | None = '"k-1"',
    *,
    method: str = "POST",
    path: str = "/orders",
    host: str = "shop.example",
    query: str = "",
    headers: Sequence[tuple[str, str]] = (),
) -> dict[str, Any]:
    """Return the scope of a request."""
    pairs = [("host", host), *headers]
    if key is not None:
        pairs.append(("idempotency-key", key))
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode("utf-8", "surrogateescape"),
        "query_string": query.encode("latin-1"),
        "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in pairs],
        "extensions": {"http.response.pathsend": {}, "http.response.debug": {}},
    }


class AsgiClient:
    """The other end of one ASGI request."""

    def __init__(self, body: bytes | Sequence[bytes] = b"") -> None:
        parts = [body] if isinstance(body, bytes) else list(body)
        self._messages: list[Any] = [
            {"type": "http.request", "body": part, "more_body": at < len(parts) - 1} for at, part in enumerate(parts)
        ]
        self.sent: list[Any] = []

    async def receive(self) -> Any:
        return self._messages.pop(0) if self._messages else {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    def answer(self) -> Answer:
        """Return the response."""
        start, *parts = [one for one in self.sent if one["type"] in ("http.response.start", "http.response.body")]
        assert parts
        assert not parts[-1].get("more_body", False)
        headers = tuple((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in start["headers"])
        return Answer(start["status"], headers, b"".join(part.get("body", b"") for part in parts))


async def ask_asgi(app: Any, key: str | None = '"k-1"', body: bytes | Sequence[bytes] = b"tea", **more: Any) -> Answer:
    """Send a request to an ASGI application."""
    client = AsgiClient(body)
    await app(asgi_scope(key, **more), client.receive, client.send)
    return client.answer()


def wsgi_environ(
    key: str | None = '"k-1"',
    body: bytes = b"tea",
    *,
    method: str = "POST",
    path: str = "/orders",
    host: str = "shop.example",
    query: str = "",
    headers: Sequence[tuple[str, str]] = (),
) -> dict[str, Any]:
    """Return the environ of a request; several headers of one name are joined, as servers do."""
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": path.encode("utf-8", "surrogateescape").decode("latin-1"),
        "QUERY_STRING": query,
        "SERVER_NAME": "localhost",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": io.BytesIO(body),
    }
    for name, value in [("host", host), *headers, *([] if key is None else [("idempotency-key", key)])]:
        variable = name.upper().replace("-", "_")
        variable = variable if variable in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{variable}"
        joined = variable.startswith("HTTP_") and variable in environ
        environ[variable] = f"{environ[variable]},{value}" if joined else value
    return environ


def ask_wsgi(app: Any, key: str | None = '"k-1"', body: bytes = b"tea", **more: Any) -> Answer:
    """Send a request to a WSGI application."""
    started: list[Any] = []
    written: list[bytes] = []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        started[:] = [int(status[:3]), tuple((name.lower(), value) for name, value in headers)]
        return written.append

    parts = app(wsgi_environ(key, body, **more), start_response)
    try:
        whole = b"".join(parts)
    finally:
        getattr(parts, "close", lambda: None)()
    return Answer(started[0], started[1], b"".join(written) + whole)
