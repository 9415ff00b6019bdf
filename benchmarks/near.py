"""Replays of `CachedStore` from its copies, beside those of a memory store with the same codec."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from benchmarks.measuring import Figure, Size, take_turns
from idempo import Idempotency, JsonCodec, MemoryStore
from idempo.stores.cached import CachedStore
from idempo.stores.sqlite import SqliteStore

_numbers = count()


def guarded(store: Any) -> Callable[[int], dict[str, int]]:
    """Return a plain function on this store, whose results are kept as JSON."""
    guard = Idempotency(store, namespace=f"benchmarks-{next(_numbers)}", codec=JsonCodec())

    @guard.idempotent(key="number", namespace="charge")
    def charge(number: int) -> dict[str, int]:
        return {"number": number, "amount": 500}

    return charge


def time_replays(charge: Callable[[int], dict[str, int]], calls: int) -> float:
    """Return the seconds that one replay takes, each of another key."""
    start = perf_counter()
    for number in range(calls):
        if charge(number)["amount"] != 500:
            raise AssertionError(f"{number} was charged otherwise")
    return (perf_counter() - start) / calls


def time_async_replays(store: Any, namespace: str, calls: int, rounds: int) -> Iterator[float]:
    """Yield, turn by turn, the seconds that one replay by a coroutine takes."""
    guard = Idempotency(store, namespace=namespace, codec=JsonCodec())

    @guard.idempotent(key="number", namespace="charge")
    async def charge(number: int) -> dict[str, int]:
        return {"number": number, "amount": 500}

    async def turn() -> float:
        start = perf_counter()
        for number in range(calls):
            await charge(number)
        return (perf_counter() - start) / calls

    with asyncio.Runner() as runner:
        runner.run(turn())
        for _ in range(rounds):
            yield runner.run(turn())


def near_figures(size: Size) -> Iterator[Figure]:
    """Measure a replay that is at hand, in front of a file."""
    ours, base = "CachedStore", "MemoryStore, JSON"
    with TemporaryDirectory() as folder, SqliteStore(Path(folder, "far.db"), synchronous="NORMAL") as far:
        store = CachedStore(far, max_records=size.calls + 1)
        near, memory = guarded(store), guarded(MemoryStore())
        for charge in (near, memory):
            time_replays(charge, size.calls)
        turns = take_turns(
            {ours: lambda: time_replays(near, size.calls), base: lambda: time_replays(memory, size.calls)}, size.rounds
        )
        yield turns.figure("replay near, CachedStore", ours, base, 1.25)
        coroutines = {
            ours: time_async_replays(CachedStore(far), "benchmarks-async", size.calls, size.rounds * 2),
            base: time_async_replays(MemoryStore(), "benchmarks-async", size.calls, size.rounds * 2),
        }
        turns = take_turns(
            {name: lambda seconds=seconds: next(seconds) for name, seconds in coroutines.items()}, size.rounds
        )
        yield turns.figure("replay near, coroutines", ours, base, 1.25)
        for seconds in coroutines.values():
            seconds.close()
