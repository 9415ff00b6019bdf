"""One of the processes whose calls are counted: see `benchmarks.throughput`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from itertools import count, cycle
from typing import Any, Final, TypeAlias

from benchmarks.children import answer, told
from benchmarks.contenders import AMOUNT, CURRENCY
from benchmarks.idemkit import entering
from benchmarks.sampling import sampling
from benchmarks.stored import guard, guard_async
from benchmarks.throughput import STORES, TASKS

Run: TypeAlias = Callable[[Iterator[str], float], int]
"""Makes calls on these orders for so many seconds, and returns how many."""

_KEPT: Final = 200
"""Completed operations that are replayed."""


def main(number: int, places: dict[str, tuple[str, str]]) -> None:
    """Open the stores that are told, and make calls on one of them at the time that is told; answer calls a second."""
    runs: dict[str, Run] = {}
    completed = [f"completed-{number}-{each:06d}" for each in range(_KEPT)]
    fresh = (f"order-{number}-{each:010d}" for each in count())
    with asyncio.Runner() as runner, ExitStack() as stack:
        for line in told():
            if "open" in line:
                name = line["open"]
                runs[name] = _opened(name, *places[name], runner, stack)
                runs[name](iter(completed), 60.0)
                answer({})
                continue
            run = runs[line["store"]]
            orders: Iterator[str] = fresh if line["kind"] == "fresh" else cycle(completed)
            time.sleep(max(0.0, line["at"] - time.monotonic()))
            start = time.perf_counter()
            with sampling() if line["share"] else nullcontext() as samples:
                calls = run(orders, line["seconds"])
            answer(samples.share if samples is not None else calls / (time.perf_counter() - start))


def _opened(name: str, url: str, label: str, runner: asyncio.Runner, stack: ExitStack) -> Run:
    stored = STORES[name]
    if stored.make is not None:
        return _plain_calls(guard(stack.enter_context(stored.make(url, label))))
    assert stored.make_async is not None
    return _coroutines(guard_async(entering(runner, stack)(stored.make_async(url, label))), runner)


def _plain_calls(call: Any) -> Run:
    def run(orders: Iterator[str], seconds: float) -> int:
        end, calls = time.perf_counter() + seconds, 0
        for order in orders:
            call(order, AMOUNT, CURRENCY)
            calls += 1
            if time.perf_counter() > end:
                break
        return calls

    return run


def _coroutines(call: Any, runner: asyncio.Runner) -> Run:
    async def work(orders: Iterator[str], end: float) -> int:
        calls = 0
        for order in orders:
            await call(order, AMOUNT, CURRENCY)
            calls += 1
            if time.perf_counter() > end:
                break
        return calls

    async def all_of_them(orders: Iterator[str], seconds: float) -> int:
        end = time.perf_counter() + seconds
        return sum(await asyncio.gather(*(work(orders, end) for _ in range(TASKS))))

    return lambda orders, seconds: runner.run(all_of_them(orders, seconds))
