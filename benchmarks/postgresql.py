"""Calls on PostgreSQL, beside the store's own statements run by bare psycopg, and beside idemkit on the same server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from time import perf_counter
from typing import Any, Final
from unittest import mock
from uuid import uuid4

from benchmarks.bare import OURS, PEER, Bare, Colour, Request, figures_beside_bare, timed
from benchmarks.contenders import Call, Peers
from benchmarks.idemkit import entering, idemkit_async, idemkit_sync, reaches
from benchmarks.measuring import Figure, Size
from benchmarks.servers import Servers
from benchmarks.single_calls import Arguments, AwaitedTurns, new_orders, replaying, running, time_calls
from benchmarks.stored import async_sql_store, guard, guard_async, sql_store

BAR: Final = 1.5
_BARE: Final = "statement by bare psycopg"
_KEPT: Final = "psycopg with one cursor, in binary"
_WINDOWS: Final = 5
_WARM: Final = 8  # psycopg prepares a statement at its sixth run


def postgresql_figures(size: Size, peers: Peers, servers: Servers) -> Iterator[Figure]:
    """Measure replays and fresh calls, of plain functions and of coroutine functions, and what they write."""
    url = servers.url("postgresql")
    if url is None:
        return
    peer = PEER in peers.present and reaches("postgresql", servers)
    yield from _sync_figures(url, size, peer=peer)
    yield from _async_figures(url, size, peer=peer)


def _label() -> str:
    return f"benchmarks_{uuid4().hex[:12]}"


@contextmanager
def _noting(cursor: type[Any], sent: list[Request]) -> Iterator[None]:
    """Put into the list what any cursor of this class is told to execute, while the block runs."""
    execute = cursor.execute

    def noting(self: Any, statement: Any, params: Any = None, **options: Any) -> Any:
        sent.append((statement, params))
        return execute(self, statement, params, **options)

    with mock.patch.object(cursor, "execute", noting):
        yield


def _plain(url: str) -> str:
    return url.replace("+psycopg", "")


def _sync_figures(url: str, size: Size, *, peer: bool) -> Iterator[Figure]:
    import psycopg

    table = _label()
    with ExitStack() as stack:
        noted = guard(stack.enter_context(sql_store(url, table)))
        connection = stack.enter_context(psycopg.connect(_plain(url), autocommit=True))
        cursor = connection.cursor(binary=True)

        def note(orders: Arguments) -> list[Request]:
            sent: list[Request] = []
            with _noting(psycopg.Cursor, sent):
                time_calls(noted, orders)
            return sent

        def run(request: Request) -> None:
            connection.execute(*request).fetchall()

        def run_on_cursor(request: Request) -> None:
            cursor.execute(*request)
            cursor.fetchall()

        time_calls(noted, new_orders(_WARM))
        ours = guard(stack.enter_context(sql_store(url, _label())))
        contenders = {OURS: ours}
        if peer:
            contenders[PEER] = stack.enter_context(idemkit_sync("postgresql", url, _label()))
        bare = Bare(
            _BARE,
            note,
            lambda _: connection.execute(f"TRUNCATE {table}"),
            lambda requests: timed(run, requests),
            {_KEPT: lambda requests: timed(run_on_cursor, requests)},
        )
        yield from figures_beside_bare("PostgreSQL", bare, contenders, Colour("sync", replaying, running), size, BAR)
        yield _written(ours, connection, size)


def _written(call: Call, connection: Any, size: Size) -> Figure:
    """Return the bytes that a replay writes to the server's log.

    All that the server writes meanwhile counts, for whomever: of several windows the least is ours.
    """

    def position() -> int:
        row = connection.execute("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn").fetchone()
        return int(row[0])

    def written(orders: Arguments) -> float:
        start = position()
        time_calls(call, orders)
        return (position() - start) / len(orders)

    fresh, replay = [], []
    for _ in range(_WINDOWS):
        orders = new_orders(size.counted)
        fresh.append(written(orders))
        time_calls(call, orders)  # the first reader of a row marks it as committed, which may be logged
        replay.append(written(orders))
    return Figure(
        "PostgreSQL, written to the log by a replay",
        min(replay),
        None,
        "pg_current_wal_insert_lsn",
        min(replay),
        0,
        unit="B",
        note=f"a fresh call writes {min(fresh):,.0f} B; the least of {_WINDOWS} × {size.counted} calls",
    )


def _async_figures(url: str, size: Size, *, peer: bool) -> Iterator[Figure]:
    import psycopg

    table = _label()
    with asyncio.Runner() as runner, ExitStack() as stack:
        enter = entering(runner, stack)
        noted = guard_async(enter(async_sql_store(url, table)))
        connection = enter(runner.run(psycopg.AsyncConnection.connect(_plain(url), autocommit=True)))
        cursor = connection.cursor(binary=True)
        awaited = AwaitedTurns(runner)

        def note(orders: Arguments) -> list[Request]:
            sent: list[Request] = []
            with _noting(psycopg.AsyncCursor, sent):
                awaited.time(noted, orders)
            return sent

        async def truncate() -> None:
            await connection.execute(f"TRUNCATE {table}")

        async def send(requests: list[Request]) -> float:
            start = perf_counter()
            for request in requests:
                await (await connection.execute(*request)).fetchall()
            return perf_counter() - start

        async def send_on_cursor(requests: list[Request]) -> float:
            start = perf_counter()
            for request in requests:
                await cursor.execute(*request)
                await cursor.fetchall()
            return perf_counter() - start

        awaited.time(noted, new_orders(_WARM))
        bare = Bare(
            _BARE,
            note,
            lambda _: runner.run(truncate()),
            lambda requests: runner.run(send(requests)),
            {_KEPT: lambda requests: runner.run(send_on_cursor(requests))},
        )
        contenders = {OURS: guard_async(enter(async_sql_store(url, _label())))}
        if peer:
            contenders[PEER] = enter(idemkit_async("postgresql", url, _label()))
        colour = Colour("async", awaited.replaying, awaited.running)
        yield from figures_beside_bare("PostgreSQL", bare, contenders, colour, size, BAR)
