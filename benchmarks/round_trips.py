"""How often a call goes to its server and back, counted in a proxy between the two."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit
from uuid import uuid4

from benchmarks.measuring import Figure, Size
from benchmarks.servers import Servers
from benchmarks.single_calls import Arguments, new_orders
from benchmarks.stored import NETWORKED, Stored, at_port, guard, guard_async

_WARM = 8
"""Calls before the count: connections are made, scripts loaded, statements prepared (psycopg's at its sixth)."""


def count_round_trips(stored: Stored, url: str, calls: int) -> tuple[float, float]:
    """Return the round trips of one fresh call, and of one replay, on a guarded function that is warm."""
    from tests.servers.proxy import Proxy

    address, label = urlsplit(url), f"benchmarks-{uuid4().hex[:12]}"
    assert address.hostname is not None
    assert address.port is not None
    with Proxy(address.hostname, address.port) as proxy:

        def counted(run: Callable[[Arguments], None]) -> tuple[float, float]:
            warm, orders = new_orders(_WARM), new_orders(calls)
            run(warm)
            run(warm)
            found = []
            for _ in ("fresh", "replay"):
                proxy.reset_counts()
                run(orders)
                found.append(proxy.round_trips / calls)
            return found[0], found[1]

        if stored.make is not None:
            with stored.make(at_port(url, proxy.port), label) as store:
                call = guard(store)

                def run(orders: Arguments) -> None:
                    for order in orders:
                        call(*order)

                return counted(run)

        assert stored.make_async is not None
        with asyncio.Runner() as runner:
            making = stored.make_async(at_port(url, proxy.port), label)
            awaited_call = guard_async(runner.run(making.__aenter__()))

            async def run_awaited(orders: Arguments) -> None:
                for order in orders:
                    await awaited_call(*order)

            try:
                return counted(lambda orders: runner.run(run_awaited(orders)))
            finally:
                runner.run(making.__aexit__(None, None, None))


def round_trip_figures(size: Size, servers: Servers) -> Iterator[Figure]:
    """Count the round trips of calls on every store that a server stands behind."""
    for stored in NETWORKED:
        url = servers.url(stored.server)
        if url is None:
            continue
        fresh, replay = count_round_trips(stored, url, size.counted)
        for what, found, bar in (("fresh call", fresh, 2.0), ("replay", replay, 1.0)):
            # A claim over compare-and-swap reads before it writes; a replay only reads.
            barred = bar if stored.one_trip or what == "replay" else None
            yield Figure(f"{stored.name}: round trips, {what}", found, None, "counted", found, barred, unit="")
