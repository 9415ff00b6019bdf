"""Calls on Redis, beside the store's own scripts called by the bare client, and beside idemkit on the same server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from time import perf_counter
from typing import Any, Final
from uuid import uuid4

from benchmarks.bare import OURS, PEER, Bare, Colour, Request, figures_beside_bare, timed
from benchmarks.contenders import Peers
from benchmarks.idemkit import entering, idemkit_async, idemkit_sync
from benchmarks.measuring import Figure, Size
from benchmarks.servers import Servers
from benchmarks.single_calls import Arguments, AwaitedTurns, new_orders, replaying, running, time_calls
from benchmarks.stored import async_redis_store, guard, guard_async, redis_store

BAR: Final = 1.3
_BARE: Final = "bare EVALSHA"


def redis_figures(size: Size, peers: Peers, servers: Servers) -> Iterator[Figure]:
    """Measure replays and fresh calls, of plain functions and of coroutine functions."""
    url = servers.url("redis")
    if url is not None:
        yield from _sync_figures(url, size, peers)
        yield from _async_figures(url, size, peers)


def _label() -> str:
    return f"benchmarks-{uuid4().hex[:12]}"


def _scripts(sent: list[Request]) -> list[Request]:
    """Return what evalsha() was called with, or would be: the script's name, a 1, the key and the arguments."""
    scripts = [arguments[1:] for arguments in sent if arguments[0] == "EVALSHA"]
    if len(scripts) != len(sent):
        raise AssertionError(f"calls sent other commands than EVALSHA: {sorted({str(each[0]) for each in sent})}")
    return scripts


def _sync_figures(url: str, size: Size, peers: Peers) -> Iterator[Figure]:
    from redis import Redis

    class Noting(Redis):
        def execute_command(self, *args: Any, **options: Any) -> Any:
            sent.append(args)
            return super().execute_command(*args, **options)

    sent: list[Request] = []
    with ExitStack() as stack:
        client = stack.enter_context(Redis.from_url(url))
        noted = guard(stack.enter_context(redis_store(url, _label(), Noting.from_url(url))))
        time_calls(noted, new_orders(1))  # the server is looked at, and has the scripts

        def note(orders: Arguments) -> list[Request]:
            sent.clear()
            time_calls(noted, orders)
            return _scripts(sent)

        def forget(requests: list[Request]) -> None:
            client.delete(*{request[2] for request in requests})

        bare = Bare(_BARE, note, forget, lambda requests: timed(lambda request: client.evalsha(*request), requests))
        contenders = {OURS: guard(stack.enter_context(redis_store(url, _label())))}
        if PEER in peers.present:
            contenders[PEER] = stack.enter_context(idemkit_sync("redis", url, _label()))
        yield from figures_beside_bare("Redis", bare, contenders, Colour("sync", replaying, running), size, BAR)


def _async_figures(url: str, size: Size, peers: Peers) -> Iterator[Figure]:
    from redis.asyncio import Redis

    class Noting(Redis):
        async def execute_command(self, *args: Any, **options: Any) -> Any:
            sent.append(args)
            return await super().execute_command(*args, **options)

    sent: list[Request] = []
    with asyncio.Runner() as runner, ExitStack() as stack:
        enter = entering(runner, stack)
        client = enter(Redis.from_url(url))
        noted = guard_async(enter(async_redis_store(url, _label(), Noting.from_url(url))))
        awaited = AwaitedTurns(runner)
        awaited.time(noted, new_orders(1))

        def note(orders: Arguments) -> list[Request]:
            sent.clear()
            awaited.time(noted, orders)
            return _scripts(sent)

        async def delete(requests: list[Request]) -> None:
            await client.delete(*{request[2] for request in requests})

        async def send(requests: list[Request]) -> float:
            start = perf_counter()
            for request in requests:
                await client.evalsha(*request)
            return perf_counter() - start

        bare = Bare(
            _BARE,
            note,
            lambda requests: runner.run(delete(requests)),
            lambda requests: runner.run(send(requests)),
        )
        contenders = {OURS: guard_async(enter(async_redis_store(url, _label())))}
        if PEER in peers.present:
            contenders[PEER] = enter(idemkit_async("redis", url, _label()))
        colour = Colour("async", awaited.replaying, awaited.running)
        yield from figures_beside_bare("Redis", bare, contenders, colour, size, BAR)
