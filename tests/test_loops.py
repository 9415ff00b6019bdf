"""Event loops: several at once on one store, and some that stop or close while calls, waiters or renewals are there."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from idempo import (
    Event,
    EventKind,
    Idempotency,
    Key,
    MemoryStore,
    ResultNotStoredError,
    State,
    current_operation,
    renewal,
)
from idempo.hub import hub_of
from idempo.loops import pooled
from idempo.testing import AsyncFlakyStore
from tests.async_support import KEY, BlockingStore, Effect, SlowStore, WatchedStore

STORES = [MemoryStore, SlowStore, WatchedStore, BlockingStore]
HARD = 60.0  # a lease, in seconds: a key that is stuck until its end fails every test here


@contextmanager
def loop_in_a_thread() -> Iterator[asyncio.AbstractEventLoop]:
    """Run another event loop meanwhile."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20)
        loop.close()


@contextmanager
def abandoned_loop(call: Callable[[], Coroutine[Any, Any, Any]], until: Callable[[], bool]) -> Iterator[Any]:
    """Give a loop that was stopped, with its task still pending, once something was true."""
    loop = asyncio.new_event_loop()
    task = loop.create_task(call())
    while not until():
        loop.run_until_complete(asyncio.sleep(0))
    try:
        yield loop
    finally:
        if not loop.is_closed():
            task.cancel()
            loop.run_until_complete(asyncio.wait([task]))
            loop.close()
        del task
        gc.collect()  # here, where it belongs, asyncio complains of a task that is pending for ever


async def forever() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("make", STORES)
def test_several_loops_and_threads_share_one_store(make: Callable[[], Any]) -> None:
    """Behaviours 1, 42: of tasks in four loops one runs, and all get its value."""
    store = make()
    guard = Idempotency(store)
    runs: list[int] = []
    barrier = threading.Barrier(4)

    async def effect() -> list[int]:
        runs.append(1)
        await asyncio.sleep(0.01)
        return [len(runs)]

    async def many() -> list[Any]:
        barrier.wait(20)
        return await asyncio.gather(*(guard.run_async("k", effect) for _ in range(25)))

    with ThreadPoolExecutor(4) as pool:
        values = [value for one in pool.map(lambda _: asyncio.run(many()), range(4)) for value in one]
    assert values == [[1]] * 100
    assert len({id(value) for value in values}) == 100
    assert len(runs) == 1


@pytest.mark.parametrize("make", [MemoryStore, BlockingStore])
def test_coroutines_and_plain_functions_share_one_store(make: Callable[[], Any]) -> None:
    """Behaviour 42: a plain call joins a coroutine's, and the other way round."""
    store = make()
    guard = Idempotency(store)
    begun, end = threading.Event(), threading.Event()

    def plain() -> str:
        begun.set()
        end.wait(20)
        return "plain"

    async def coroutine() -> str:
        begun.set()
        await asyncio.to_thread(end.wait, 20)
        return "coroutine"

    def in_both(first: Callable[[], Any], second: Callable[[], Any], key: str) -> list[Any]:
        begun.clear()
        end.clear()
        with ThreadPoolExecutor(2) as pool:
            holder = pool.submit(first)
            begun.wait(20)
            waiter = pool.submit(second)
            while not hub_of(store).flights._table.get(("default", key)).room:  # type: ignore[union-attr]
                pass
            end.set()
            return [holder.result(20), waiter.result(20)]

    def run(key: str) -> Any:
        return guard.run(key, plain)

    def run_async(key: str) -> Any:
        return asyncio.run(guard.run_async(key, coroutine))

    assert in_both(lambda: run("a"), lambda: run_async("a"), "a") == ["plain", "plain"]
    assert in_both(lambda: run_async("b"), lambda: run("b"), "b") == ["coroutine", "coroutine"]


@pytest.mark.parametrize("make", [SlowStore, BlockingStore])
def test_loops_that_were_closed_are_forgotten(make: Callable[[], Any]) -> None:
    """Behaviour 20: a program that runs a loop per call keeps none of them."""
    store = make()
    guard, effect = Idempotency(store), Effect()
    for number in range(20):
        asyncio.run(guard.run_async(number, effect))
    assert len(hub_of(store).loops) <= 1
    assert len(hub_of(store).flights) == 0


def test_a_loop_may_be_closed_while_a_renewer_is_idle(caplog: pytest.LogCaptureFixture) -> None:
    """Behaviour 20: nothing is left pending, of which asyncio would complain."""
    gc.collect()
    caplog.clear()
    store, loop = SlowStore(), asyncio.new_event_loop()
    assert loop.run_until_complete(Idempotency(store).run_async("k", Effect())) == 1
    assert asyncio.all_tasks(loop) == set()
    loop.close()
    hub_of(store).loops.clear()
    del loop
    gc.collect()
    assert [record for record in caplog.records if record.name == "asyncio"] == []


def test_an_outcome_that_was_offered_when_its_loop_closed_is_offered_by_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Behaviour 33: it is stored once the store is back, and then nothing is left of it in the process."""
    monkeypatch.setattr(renewal, "_FIRST_RETRY", 0.01)
    store = AsyncFlakyStore(SlowStore())
    stored, outage, effect = asyncio.Event(), ExitStack(), Effect()

    def told(event: Event) -> None:
        if event.kind is EventKind.EXECUTED and event.key == KEY:
            stored.set()

    guard = Idempotency(store, lease=0.1, observers=[told])

    async def paid() -> str:
        outage.enter_context(store.outage())
        return "paid"

    with pytest.raises(ResultNotStoredError):
        asyncio.run(guard.run_async("k", paid))
    assert asyncio.run(guard.run_async("k", paid)) == "paid"
    outage.close()

    async def another() -> None:
        assert await guard.run_async("other", effect) == 1
        await stored.wait()
        assert len(hub_of(store).flights) == 0
        record = await guard.lookup_async("k")
        assert record is not None
        assert record.state is State.COMPLETED

    asyncio.run(asyncio.wait_for(another(), 20))
    assert guard.stats().executed == 2


@pytest.mark.parametrize("closed", [False, True], ids=["stopped", "closed"])
@pytest.mark.parametrize("phase", ["claim", "wait"])
def test_a_loop_that_stopped_while_its_call_led_holds_up_nobody(phase: str, closed: bool) -> None:
    """Behaviours 13, 42: whoever comes next asks the store himself."""
    store = SlowStore(turns=50 if phase == "claim" else 1)
    guard, effect = Idempotency(store, lease=HARD, wait=5), Effect()
    if phase == "wait":
        store.inner.claim(KEY, owner="elsewhere", fingerprint=None, lease=HARD, ttl=60)
    flights = hub_of(store).flights

    def leads() -> bool:
        flight = flights._table.get(("default", "k"))
        return flight is not None and (phase == "claim" or flight.phase.value == "waiting")

    with abandoned_loop(lambda: Idempotency(store, wait=HARD).run_async("k", effect), leads) as loop:
        store.turns = 1
        store.inner.release(KEY, owner="elsewhere", ttl=60)
        if closed:
            loop.close()
        assert asyncio.run(guard.run_async("k", effect)) == 1


@pytest.mark.parametrize("make", [MemoryStore, SlowStore, BlockingStore])
def test_waiters_of_a_stopped_loop_swallow_no_turn(make: Callable[[], Any]) -> None:
    """Behaviours 12, 42: the holder is cancelled; waiters elsewhere go on at once, though one loop stands still."""
    store = make()
    guard, effect = Idempotency(store, lease=HARD, wait=20), Effect(turns=0)
    flights = hub_of(store).flights
    with loop_in_a_thread() as holders:
        begun = threading.Event()

        async def hold() -> None:
            begun.set()
            await forever()

        holder = asyncio.run_coroutine_threadsafe(guard.run_async("k", hold), holders)
        assert begun.wait(20)

        def joined() -> bool:
            leading = flights._table.get(("default", "k"))
            return leading is not None and bool(leading.room)

        with abandoned_loop(lambda: guard.run_async("k", effect), joined):

            async def main() -> int:
                waiter = asyncio.create_task(guard.run_async("k", effect))
                await asyncio.sleep(0.01)
                holder.cancel()
                value: int = await asyncio.wait_for(waiter, 5)
                return value

            assert asyncio.run(main()) == 1


@pytest.mark.realtime
@pytest.mark.parametrize("make", [MemoryStore, SlowStore, BlockingStore])
def test_the_lease_of_a_stopped_loop_runs_out(make: Callable[[], Any]) -> None:
    """Behaviours 13, 20: a holder whose loop does not run is renewed no more, and taken over."""
    store = make()
    guard = Idempotency(store, lease=0.15, max_run=0, wait=5)
    flights = hub_of(store).flights

    def runs() -> bool:
        flight = flights._table.get(("default", "k"))
        return flight is not None and flight.phase.value == "running"

    async def attempt() -> int:
        return current_operation().attempt

    with abandoned_loop(lambda: guard.run_async("k", forever), runs):
        assert asyncio.run(guard.run_async("k", attempt)) == 2


@pytest.mark.realtime
def test_the_lease_of_a_closed_loop_is_renewed_by_no_other() -> None:
    """Behaviours 13, 20: the next loop goes on with what was offered, not with calls that nobody runs any more."""
    store = SlowStore()
    guard = Idempotency(store, lease=0.15, wait=5)
    flights = hub_of(store).flights

    def runs() -> bool:
        flight = flights._table.get(("default", "k"))
        return flight is not None and flight.phase.value == "running"

    async def attempt() -> int:
        return current_operation().attempt

    async def main() -> list[int]:
        return [await guard.run_async("another", attempt), await guard.run_async("k", attempt)]

    with abandoned_loop(lambda: guard.run_async("k", forever), runs) as loop:
        loop.close()
        assert asyncio.run(main()) == [1, 2]


@pytest.mark.realtime
@pytest.mark.parametrize("make", STORES)
def test_who_joined_while_the_other_claimed_goes_by_its_lease_too(make: Callable[[], Any]) -> None:
    """Behaviour 20: a function that hangs is renewed until max_run, and its duplicates do not wait any longer."""

    async def main() -> list[int]:
        guard = Idempotency(make(), lease=0.15, max_run=0, wait=20)
        hang = asyncio.Event()

        async def effect() -> int:
            attempt = current_operation().attempt
            if attempt == 1:
                await hang.wait()
            return attempt

        tasks = [asyncio.create_task(guard.run_async("k", effect)) for _ in range(3)]
        done, _ = await asyncio.wait(tasks, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        values = [task.result() for task in done]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        return values

    values = asyncio.run(main())
    assert values
    assert set(values) == {2}


async def close_at(at: int, coroutine: Coroutine[Any, Any, Any]) -> bool:
    """Close a coroutine at its n-th await; False when it has no such await."""
    for step in range(at):
        try:
            waits_for = coroutine.send(None)
        except StopIteration:
            return False
        if step < at - 1:
            await (asyncio.sleep(0) if waits_for is None else asyncio.wait([waits_for]))
    coroutine.close()
    return True


@pytest.mark.parametrize("make", STORES)
def test_a_coroutine_that_is_closed_at_any_await_frees_its_key(make: Callable[[], Any]) -> None:
    """Behaviour 30: it can wait for nothing any more, and so its loop gives the claim back."""

    async def one(at: int) -> bool:
        guard, effect = Idempotency(make(), lease=HARD, wait=5), Effect()
        closed = await close_at(at, guard.run_async("k", effect))
        runs = effect.runs
        assert await guard.run_async("k", effect) in (runs, runs + 1)
        assert len(hub_of(guard.store).flights) == 0
        return closed

    at = 1
    while asyncio.run(one(at)):
        at += 1
    assert at > 2


@pytest.mark.parametrize("make", STORES)
def test_a_waiter_that_is_closed_disturbs_nobody(make: Callable[[], Any]) -> None:
    """Behaviour 15: and it asks nothing of the store."""

    async def main() -> None:
        store = make()
        guard, effect = Idempotency(store, lease=HARD, wait=5), Effect(turns=10)
        holder = asyncio.create_task(guard.run_async("k", effect))
        await effect.started.wait()
        assert await close_at(1, guard.run_async("k", effect))
        assert await holder == 1
        assert getattr(store, "calls", ["claim", "complete"]) == ["claim", "complete"]

    asyncio.run(main())


@pytest.mark.parametrize("make", [SlowStore, BlockingStore])
def test_a_coroutine_that_is_closed_after_its_loop_leaves_its_lease(make: Callable[[], Any]) -> None:
    """Behaviour 30: nobody is there to tell the store; nothing of the call stays in the process, and nothing fails."""
    store = make()
    guard, begun = Idempotency(store, lease=HARD), asyncio.Event()
    kept: list[Coroutine[Any, Any, Any]] = []

    async def body() -> None:
        begun.set()
        await forever()

    async def main() -> None:
        coroutine = guard.run_async("k", body)
        while not begun.is_set():
            waits_for = coroutine.send(None)
            if not begun.is_set():
                await asyncio.wait([waits_for])
        kept.append(coroutine)

    asyncio.run(main())
    kept.pop().close()
    assert len(hub_of(store).flights) == 0
    assert store.inner.get(KEY).state is State.RUNNING


def test_a_watch_that_could_not_be_entered_is_not_left() -> None:
    """Behaviour 19: on the worker thread too a context is left only once it was entered."""
    left: list[object] = []

    class Context:
        def __enter__(self) -> None:
            raise LookupError("no")

        def __exit__(self, *error: object) -> None:
            left.append(error)

    async def main() -> None:
        with pytest.raises(LookupError, match="no"):
            async with pooled(Context(), hub_of(BlockingStore())):
                pytest.fail("entered")

    asyncio.run(main())
    assert left == []


def test_a_caller_that_is_cancelled_with_its_request_is_cancelled() -> None:
    """Behaviour 30: the store's request ends as cancelled too, which is no failure to ask the store again for."""

    class Cancelled(SlowStore):
        async def claim(self, key: Key, **options: Any) -> Any:
            self.calls.append("claim")
            asked.set()
            await answer.wait()
            raise asyncio.CancelledError

    async def main() -> None:
        task = asyncio.create_task(guard.run_async("k", forever))
        await asked.wait()
        task.cancel()
        await asyncio.sleep(0)  # the caller has been cancelled, and waits for the request that was sent
        answer.set()
        await asyncio.wait([task], timeout=5)
        assert task.cancelled()

    asked, answer, store = asyncio.Event(), asyncio.Event(), Cancelled()
    guard = Idempotency(store)
    asyncio.run(main())
    assert store.calls == ["claim", "release"]
    assert len(hub_of(store).flights) == 0
    assert guard.stats().store_failed == 0
