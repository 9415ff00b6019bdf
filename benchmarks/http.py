"""Requests through the ASGI middleware, in process: beside the bare application, and beside two peers on it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from importlib.util import find_spec
from itertools import count
from time import perf_counter
from typing import Any, Final

from benchmarks.measuring import Figure, Size, take_turns
from idempo import Idempotency, MemoryStore
from idempo.http.asgi import IdempotencyMiddleware

App = Callable[[Any, Any, Any], Awaitable[None]]

_BODY: Final = b'{"item": "tea"}'
_MESSAGE: Final = {"type": "http.request", "body": _BODY, "more_body": False}
_numbers = count()


def _application() -> App:
    """Return an application with one route, as Starlette serves it."""
    from starlette.applications import Starlette
    from starlette.requests import Request  # noqa: TC002 (Starlette looks at it)
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def place(request: Request) -> JSONResponse:
        order = await request.json()
        return JSONResponse({"placed": order["item"]}, 201)

    app: Any = Starlette(routes=[Route("/orders", place, methods=["POST"])])
    return app  # type: ignore[no-any-return]


async def _untouched(scope: Any, receive: Any, send: Any) -> None:
    return None


def _guarded(app: App) -> App:
    return IdempotencyMiddleware(app, Idempotency(MemoryStore(max_records=1_000_000)), principal=None)


def _peers(app: App) -> dict[str, App]:
    """Return the peers that are installed, each around the application."""
    found: dict[str, App] = {}
    if find_spec("idempotency_header_middleware") is not None:
        from idempotency_header_middleware import IdempotencyHeaderMiddleware
        from idempotency_header_middleware.backends import MemoryBackend

        found["asgi-idempotency-header"] = IdempotencyHeaderMiddleware(app, backend=MemoryBackend())
    if find_spec("fastapi_idempotency_key") is not None:
        from fastapi_idempotency_key.middleware import IdempotencyMiddleware as Peer

        found["fastapi-idempotency-key"] = Peer(app)
    return found


def _scope(key: str, method: str = "POST") -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": "/orders",
        "raw_path": b"/orders",
        "root_path": "",
        "query_string": b"",
        "headers": [
            (b"host", b"localhost:8000"),
            (b"user-agent", b"benchmark"),
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(_BODY)),
            (b"idempotency-key", f'"{key}"'.encode()),
        ],
        "client": ("127.0.0.1", 50_000),
        "server": ("127.0.0.1", 8000),
    }


async def _receive() -> Any:
    return _MESSAGE


class _Client:
    """Sends requests, and looks at each response."""

    def __init__(self, runner: asyncio.Runner, app: App, status: int = 201) -> None:
        self._runner = runner
        self._app = app
        self._status = status

    def turn(self, scopes: list[dict[str, Any]]) -> float:
        """Return the seconds that one request takes."""
        return self._runner.run(self._turn(scopes))

    async def _turn(self, scopes: list[dict[str, Any]]) -> float:
        statuses: list[int] = []

        async def send(message: Any) -> None:
            if "status" in message:
                statuses.append(message["status"])

        start = perf_counter()
        for scope in scopes:
            await self._app(scope, _receive, send)
        taken = (perf_counter() - start) / len(scopes)
        if statuses != [self._status] * (len(scopes) if self._status else 0):
            raise AssertionError(f"answered {set(statuses)}, not {self._status}")
        return taken


def _keys(calls: int) -> list[str]:
    return [f"8e03978e-40d5-43dd-bc93-{next(_numbers):012}" for _ in range(calls)]


def http_figures(size: Size) -> Iterator[Figure]:
    """Measure an untouched request, a replay and a fresh one."""
    with asyncio.Runner() as runner:
        bare, ours = _Client(runner, _untouched, 0), _Client(runner, _guarded(_untouched), 0)
        passing = [_scope("k", "GET")] * size.calls
        turns = take_turns({"idempo": lambda: ours.turn(passing), "bare": lambda: bare.turn(passing)}, size.rounds)
        added = turns.middle("idempo") - turns.middle("bare")
        yield Figure("ASGI: added to an untouched request", added, None, "", added, 3e-6, note="in process")

        app = _application()
        apps = {"idempo": _guarded(app), "bare route": app, **_peers(app)}
        clients = {name: _Client(runner, each) for name, each in apps.items()}

        def fresh(name: str) -> float:
            return clients[name].turn([_scope(key) for key in _keys(size.calls)])

        first = take_turns({name: lambda name=name: fresh(name) for name in clients}, size.rounds)
        yield first.figure("ASGI: fresh request", "idempo", "bare route", None)
        kept = _keys(size.calls)
        again = take_turns(
            {
                name: lambda client=client: client.turn([_scope(key) for key in kept])  # type: ignore[misc]
                for name, client in clients.items()
            },
            size.rounds,
        )
        yield again.figure("ASGI: replay", "idempo", "bare route", 1.5)
        for peer in clients:
            if peer not in ("idempo", "bare route"):
                yield first.speed_up(f"ASGI: fresh, against {peer}", "idempo", peer, 1.0)
                yield again.speed_up(f"ASGI: replay, against {peer}", "idempo", peer, 1.0)
