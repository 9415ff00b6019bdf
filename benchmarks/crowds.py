"""Many at once: tasks that share one key, and threads that share one store."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from time import perf_counter
from typing import Any, Final

from benchmarks.contenders import AMOUNT, CURRENCY, Call
from benchmarks.floor import by_hand
from benchmarks.measuring import Figure, Size, take_turns
from idempo import idempotent

BODY_SECONDS: Final = 0.1


class Lost(AssertionError):
    """A call did not get the one right result, or a key ran more than once."""


async def _gathered(wait: Callable[[], Awaitable[Any]], tasks: int) -> tuple[float, list[Any]]:
    start = perf_counter()
    loop = asyncio.get_running_loop()
    waiting = [loop.create_task(_awaited(wait())) for _ in range(tasks)]
    results = await asyncio.gather(*waiting)
    return perf_counter() - start, results


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def tasks_on_one_key(tasks: int, body_seconds: float = BODY_SECONDS) -> float:
    """Return the seconds until so many duplicates of one new operation all have its result.

    Raises:
        Lost: It ran more than once, or a task got something else.
    """
    runs = 0

    @idempotent(key="order_id")
    async def charge(order_id: str) -> dict[str, str]:
        nonlocal runs
        runs += 1
        await asyncio.sleep(body_seconds)
        return {"order_id": order_id, "status": "charged"}

    taken, results = asyncio.run(_gathered(lambda: charge("order-0000000042"), tasks))
    expected = {"order_id": "order-0000000042", "status": "charged"}
    if runs != 1 or results != [expected] * tasks:
        raise Lost(f"{tasks} tasks on one key: {runs} runs, {results.count(expected)} right results")
    return taken


def tasks_on_one_future(tasks: int, body_seconds: float = BODY_SECONDS) -> float:
    """Return the seconds until so many tasks all have the result of one future that is shared by hand."""

    async def timed() -> float:
        async def charge(order_id: str) -> dict[str, str]:
            await asyncio.sleep(body_seconds)
            return {"order_id": order_id, "status": "charged"}

        shared: asyncio.Future[dict[str, str]] | None = None

        async def join() -> dict[str, str]:
            nonlocal shared
            if shared is None:
                shared = asyncio.ensure_future(charge("order-0000000042"))
            return await shared

        taken, _ = await _gathered(join, tasks)
        return taken

    return asyncio.run(timed())


def threads_on_keys(guard: Callable[[Callable[..., Any]], Call], *, threads: int, calls: int, keys: int) -> float:
    """Return the seconds of one call, when so many threads each make so many calls, over so many new keys.

    Raises:
        Lost: A key ran more than once, or a call got something else than its key's result.
    """
    runs: list[str] = []

    def charge(order_id: str, amount: int, currency: str) -> dict[str, Any]:
        runs.append(order_id)
        return {"order_id": order_id, "status": "charged", "amount": amount}

    guarded = guard(charge)
    orders = [f"order-{number:010d}" for number in range(keys)]
    right = [0] * threads
    barrier = threading.Barrier(threads + 1)

    def work(number: int) -> None:
        mine = [orders[(number + turn) % keys] for turn in range(calls)]
        barrier.wait()
        for order_id in mine:
            right[number] += guarded(order_id, AMOUNT, CURRENCY)["order_id"] == order_id

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    barrier.wait()
    start = perf_counter()
    for worker in workers:
        worker.join()
    taken = perf_counter() - start
    if sorted(runs) != orders or sum(right) != threads * calls:
        raise Lost(f"{threads} threads, {keys} keys: {len(runs)} runs, {sum(right)} of {threads * calls} right results")
    return taken / (threads * calls)


def guard_with_idempo(charge: Callable[..., Any]) -> Call:
    """Guard the function as the other figures do."""
    return idempotent(key="order_id")(charge)


def crowd_figures(size: Size) -> Iterator[Figure]:
    """Measure duplicates that come all at once."""
    turns = take_turns(
        {
            "idempo": lambda: tasks_on_one_key(size.tasks),
            "one shared future": lambda: tasks_on_one_future(size.tasks),
        },
        size.crowds,
        collector=True,
    )
    yield turns.figure(f"{size.tasks:,} tasks on one key", "idempo", "one shared future", 1.8)

    for keys, what in ((1, "one key"), (size.threads, f"{size.threads} keys")):
        crowd = partial(threads_on_keys, threads=size.threads, calls=size.calls_per_thread, keys=keys)
        turns = take_turns(
            {"idempo": partial(crowd, guard_with_idempo), "the floor": partial(crowd, by_hand)},
            size.crowds,
            collector=True,
        )
        name = f"{size.threads} threads × {size.calls_per_thread} calls on {what}"
        yield turns.speed_up(name, "idempo", "the floor", 1.0)
