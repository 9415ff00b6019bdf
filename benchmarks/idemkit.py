"""The peer on the same servers: idemkit's own backends for Redis and PostgreSQL, as its documentation shows them.

Its decorators for plain functions and for coroutines, a backend made by ``from_url``, the table made by what
``idemkit init-pg`` calls, the key taken from one argument, and everything else as it comes.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, contextmanager
from importlib import import_module
from typing import Any, Literal, TypeAlias

from benchmarks.contenders import AsyncCall, Call, charge, charge_async
from benchmarks.servers import Servers

Server: TypeAlias = Literal["redis", "postgresql"]


def reaches(server: Server, servers: Servers) -> bool:
    """Say whether idemkit has what it needs for a server; note the reason where it does not."""
    try:
        import_module({"redis": "redis", "postgresql": "asyncpg"}[server])
    except ImportError as error:
        servers.missing[f"idemkit on {server}"] = str(error)
        return False
    return True


def _backend(server: Server, url: str, label: str) -> Any:
    module = import_module("idemkit")
    if server == "redis":
        return module.RedisBackend.from_url(url, namespace=label)
    return module.PostgresBackend.from_url(_plain(url), table=label.replace("-", "_"))


def _plain(url: str) -> str:
    return url.replace("+psycopg", "")


async def _prepare(server: Server, url: str, label: str) -> None:
    if server == "postgresql":
        await import_module("idemkit.backends.postgres").init_pg(_plain(url), table=label.replace("-", "_"))


def _guarded(decorator: str, backend: Any, function: Any) -> Any:
    module = import_module("idemkit")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that all callers share one scope, which is meant here
        return getattr(module, decorator)(backend=backend, config=module.MethodConfig(key_fields=["order_id"]))(
            function
        )


@contextmanager
def idemkit_sync(server: Server, url: str, label: str) -> Iterator[Call]:
    """Guard the plain function; its calls go over an event loop of idemkit's own."""
    run_sync = import_module("idemkit.core.sync_bridge").run_sync
    run_sync(_prepare(server, url, label))
    backend = _backend(server, url, label)
    try:
        yield _guarded("idempotent_sync", backend, charge)
    finally:
        run_sync(backend.aclose())


@asynccontextmanager
async def idemkit_async(server: Server, url: str, label: str) -> AsyncIterator[AsyncCall]:
    """Guard the coroutine function."""
    await _prepare(server, url, label)
    async with _backend(server, url, label) as backend:
        yield _guarded("idempotent", backend, charge_async)


def entering(runner: asyncio.Runner, stack: ExitStack) -> Callable[[AbstractAsyncContextManager[Any]], Any]:
    """Return what enters a context of coroutines on the runner's loop, and leaves it with the stack."""

    def enter(context: AbstractAsyncContextManager[Any]) -> Any:
        value = runner.run(context.__aenter__())
        stack.callback(lambda: runner.run(context.__aexit__(None, None, None)))
        return value

    return enter
