"""Blocks that stay open while their thread goes on to other work: in generators, and across the awaits of a task."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from idempo import Idempotency, MemoryStore, ReentrantCallError
from idempo.hub import hub_of
from tests.async_support import until as until_async
from tests.interrupting import in_thread, until


def never() -> None:
    pytest.fail("ran twice")


async def never_async() -> None:
    pytest.fail("ran twice")


def waiting(store: MemoryStore) -> int:
    """How many wait for the call of the key."""
    flight = hub_of(store).flights._table.get(("default", "k"))
    room = None if flight is None else flight.room
    return 0 if room is None else sum(len(group.members) for group in room.groups.values())


def held(guard: Idempotency) -> Iterator[None]:
    """Hold the key from one step to the next, as a web framework's dependency does."""
    with guard.operation("k") as op:
        yield
        op.complete("held")


def test_a_duplicate_on_the_thread_that_opened_a_block_waits_for_it() -> None:
    """Behaviour 17: worker threads that run a generator piecewise have gone on to other calls meanwhile."""
    store = MemoryStore()
    guard, answers = Idempotency(store, wait=20), list[Any]()
    opened = threading.Event()
    dependency = held(guard)

    def worker() -> Any:
        contextvars.Context().run(next, dependency)
        opened.set()
        return contextvars.Context().run(guard.run, "k", never)

    thread = in_thread(worker, answers)
    assert opened.wait(20)
    until(lambda: waiting(store) == 1 or answers)
    assert next(dependency, "over") == "over"  # in another thread
    thread.join(20)
    assert answers == ["held"]


def test_a_duplicate_inside_an_open_block_of_a_generator_is_refused_at_once() -> None:
    """Behaviour 17: in its context, it would wait for itself."""
    guard = Idempotency(wait=60)
    dependency = held(guard)
    next(dependency)
    with pytest.raises(ReentrantCallError):
        guard.run("k", never)
    with pytest.raises(ReentrantCallError), guard.operation("k"):
        never()
    with pytest.raises(ReentrantCallError):
        asyncio.run(guard.run_async("k", never_async))
    assert next(dependency, "over") == "over"
    assert guard.run("k", never) == "held"


def test_a_plain_block_across_awaits_is_waited_for_by_other_tasks() -> None:
    """Behaviour 17: a coroutine waits without its thread; a plain call would stop the loop, and is refused."""
    store = MemoryStore()
    guard = Idempotency(store, wait=20)

    async def duplicate() -> Any:
        with pytest.raises(ReentrantCallError):
            guard.run("k", never)
        return await guard.run_async("k", never_async)

    async def main() -> Any:
        # Made before the block is open: a task begun inside it would have its context.
        let_go = asyncio.Event()

        async def other() -> Any:
            await let_go.wait()
            return await duplicate()

        task = asyncio.create_task(other())
        with guard.operation("k") as op:
            inner = asyncio.create_task(duplicate())
            let_go.set()
            with pytest.raises(ReentrantCallError):
                await guard.run_async("k", never_async)
            with pytest.raises(ReentrantCallError):
                guard.run("k", never)
            await until_async(lambda: waiting(store) == 2 or task.done() or inner.done())
            op.complete("held")
        return await task, await inner

    assert asyncio.run(main()) == ("held", "held")


@pytest.mark.realtime
def test_a_plain_block_that_a_loop_leaves_open_is_renewed_beyond_it() -> None:
    """Behaviour 20: it is held until it is left, wherever that is."""
    store = MemoryStore()
    renewed, renew = threading.Semaphore(0), store.renew

    def noting(*args: Any, **options: Any) -> bool:
        answer = renew(*args, **options)
        renewed.release()
        return answer

    store.renew = noting  # type: ignore[method-assign]
    dependency = held(Idempotency(store, lease=0.15))

    async def main() -> None:
        next(dependency)

    asyncio.run(main())
    for _ in range(5):
        assert renewed.acquire(timeout=5), "nobody renews"
    assert next(dependency, "over") == "over"
    assert Idempotency(store).run("k", never) == "held"
