"""What may go wrong around a renewer: late answers, observers that exit, stores that cancel, eager tasks, crowds."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
import weakref
from typing import Any

import pytest

from idempo import (
    Event,
    EventKind,
    Idempotency,
    Key,
    LeaseLostError,
    MemoryStore,
    ResultNotStoredError,
    current_operation,
    loops,
)
from idempo.hub import hub_of
from idempo.loops import LoopRenewer, loop_renewer
from idempo.renewal import Schedule
from idempo.stores.cas import AsyncCasStore
from idempo.testing import FlakyStore
from idempo.testing.backend import AsyncDictBackend, DictBackend
from tests.async_support import SlowStore
from tests.async_support import until as until_async
from tests.interrupting import until


class Slow(AsyncCasStore):
    """Takes its time to renew, counts, and can be told to cancel its own requests."""

    def __init__(self, delay: float = 0.0, cancels: str = "") -> None:
        super().__init__(AsyncDictBackend(DictBackend()))
        self.delay = delay
        self.cancels = cancels
        self.renewals = 0

    async def renew(self, key: Key, **options: Any) -> bool:
        self.renewals += 1
        await asyncio.sleep(self.delay)
        if self.cancels == "renew" and self.renewals < 3:
            raise asyncio.CancelledError
        return await super().renew(key, **options)

    async def complete(self, key: Key, **options: Any) -> bool:
        if self.cancels == "complete":
            self.cancels = ""
            raise asyncio.CancelledError
        return await super().complete(key, **options)


class Gated(SlowStore):
    """Notes which keys it is asked to renew, and does so once the gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.gate = asyncio.Event()

    async def renew(self, key: Key, **options: Any) -> bool:
        self.asked.append(key.value)
        await self.gate.wait()
        return await super().renew(key, **options)


def renewer_of(store: Any) -> LoopRenewer:
    return loop_renewer(hub_of(store))


def renewed_keys(store: Any) -> set[str]:
    """Return the keys whose leases are renewed on the running loop."""
    return {flight.key.value for flight in renewer_of(store)._flights.values()}


def renew_now(store: Any) -> None:
    """Let every lease of the running loop be due."""
    renewer = renewer_of(store)
    for flight in renewer._flights.values():
        flight.renew_at = 0.0
    renewer._wake(0.0)


def lose(store: MemoryStore, error: Exception | None = None) -> None:
    """Lose the lease, and wait until the renewer has heard of it."""
    store.delete(Key("default", "k"))
    while True:
        try:
            current_operation().ensure_held()
        except LeaseLostError:
            if error is not None:
                raise error from None
            return


def test_a_late_answer_to_a_renewal_is_none_to_the_offer() -> None:
    """Behaviour 33: the outcome would be taken for stored, which it never was."""
    store = MemoryStore()
    events: list[Event] = []
    settled: list[object] = []
    schedule = Schedule(lambda flight: None, settled.append)

    def effect() -> None:
        flight = hub_of(store).flights._table["default", "k"]
        schedule.add(flight)
        asked = flight.offer
        assert schedule.offer(flight, b"outcome")
        schedule.answered(flight, asked, time.monotonic(), True)
        assert flight in schedule
        schedule.answered(flight, flight.offer, time.monotonic(), True)
        assert flight not in schedule
        flight.offer = None

    Idempotency(store, observers=[events.append]).run("k", effect)
    assert len(settled) == 1
    assert [event.kind for event in events] == [EventKind.EXECUTED] * 2  # of the offer, and of the call itself


@pytest.mark.realtime
def test_an_observer_that_exits_ends_no_renewal(caplog: pytest.LogCaptureFixture) -> None:
    """Behaviours 20, 37: all memory stores share one renewer, and it goes on."""

    def leave(event: Event) -> None:
        if event.kind is EventKind.LEASE_LOST and threading.current_thread().name == "idempo-renewer":
            sys.exit("an observer leaves")

    store, other = MemoryStore(), MemoryStore()

    with pytest.raises(LeaseLostError):
        Idempotency(store, lease=0.15, observers=[leave]).run("k", lose, store, payload=None)

    def last() -> bool:
        time.sleep(0.5)  # past three leases
        record = other.get(Key("default", "k"))
        return record is not None and record.lease_left is not None and record.lease_left > 0

    assert Idempotency(other, lease=0.15).run("k", last)
    assert "the renewer failed: SystemExit" in caplog.text


@pytest.mark.realtime
@pytest.mark.parametrize("method", ["renew", "complete"])
def test_a_cancellation_that_is_the_stores_own_is_its_failure(method: str) -> None:
    """Behaviours 30, 33: nobody cancelled the caller; it gets its value, and the lease is renewed at its pace."""
    store = Slow(cancels=method)
    runs: list[int] = []

    async def effect() -> str:
        runs.append(1)
        if method == "renew":
            await until_async(lambda: store.renewals >= 4)
        return "done"

    async def scenario() -> None:
        guard = Idempotency(store, lease=0.3)
        assert await guard.run_async("k", effect) == "done"
        assert await guard.run_async("k", effect) == "done"

    asyncio.run(scenario())
    assert runs == [1]
    assert store.renewals < 20


@pytest.mark.realtime
def test_many_leases_are_renewed_at_once() -> None:
    """Behaviour 20: one after another, the last of them would be too late."""
    store = Slow(0.02)

    async def scenario() -> list[Any]:
        async def effect() -> int:
            await asyncio.sleep(0.8)
            return current_operation().attempt

        guard = Idempotency(store, lease=0.5)
        return await asyncio.gather(
            *(guard.run_async(f"k{number}", effect) for number in range(60)), return_exceptions=True
        )

    assert asyncio.run(scenario()) == [1] * 60


def test_a_call_that_ends_while_others_are_renewed_first_is_not_renewed() -> None:
    """Behaviour 20: it was due with them, and the store would be asked for a key that is held no more."""
    store = Gated()
    keys = [f"k{number}" for number in range(loops._AT_ONCE + 1)]

    async def scenario() -> None:
        guard, end = Idempotency(store), {key: asyncio.Event() for key in keys}
        tasks = {key: asyncio.create_task(guard.run_async(key, end[key].wait)) for key in keys}
        await until_async(lambda: renewed_keys(store) == set(keys))
        renew_now(store)
        await until_async(lambda: len(store.asked) == loops._AT_ONCE)
        (last,) = set(keys) - set(store.asked)
        end[last].set()
        await tasks[last]
        store.gate.set()
        await until_async(lambda: renewer_of(store)._round is None)
        assert last not in store.asked
        for event in end.values():
            event.set()
        await asyncio.gather(*tasks.values())

    asyncio.run(scenario())
    assert len(store.asked) == loops._AT_ONCE


def test_a_renewal_that_is_cancelled_with_its_loop_is_no_failure_of_the_store() -> None:
    """Behaviours 30, 37: as `asyncio.run` cancels whatever is left at its end."""
    store = Gated()
    events: list[str] = []

    async def effect() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(5):  # it takes longer to end than the renewal does
                await asyncio.sleep(0)

    async def scenario() -> asyncio.Task[None]:
        guard = Idempotency(store, observers=[lambda event: events.append(event.kind.value)])
        task = asyncio.create_task(guard.run_async("k", effect))
        await until_async(lambda: "k" in renewed_keys(store))
        renew_now(store)
        await until_async(lambda: store.asked)
        return task

    assert asyncio.run(scenario()).cancelled()
    assert events == ["released"]


def test_a_loop_may_be_closed_while_a_renewal_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behaviour 20: what is left of it goes without a murmur, once the next loop has come."""
    store = Gated()
    guard = Idempotency(store)
    failures: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", failures.append)

    async def left() -> Any:
        task = asyncio.create_task(guard.run_async("k", asyncio.Event().wait))
        await until_async(lambda: "k" in renewed_keys(store))
        renew_now(store)
        await until_async(lambda: store.asked)
        assert not task.done()
        return weakref.ref(renewer_of(store)._round)

    async def another() -> str:
        return "another"

    loop = asyncio.new_event_loop()
    renewal = loop.run_until_complete(left())
    loop.close()
    store.gate = asyncio.Event()  # who waits for it is a cycle of its own now
    assert asyncio.run(guard.run_async("another", another)) == "another"
    gc.collect()
    assert renewal() is None
    assert [str(failure.exc_value) for failure in failures] == []


@pytest.mark.realtime
@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with 3.12")
def test_a_loop_with_eager_tasks_renews_too() -> None:
    """Behaviour 20: a round that ends at once is no round under way."""

    class Direct(AsyncCasStore):
        renewals = 0

        async def renew(self, key: Key, **options: Any) -> bool:
            self.renewals += 1
            return plain.renew(key, **options)

        async def claim(self, key: Key, **options: Any) -> Any:
            return plain.claim(key, **options)

        async def complete(self, key: Key, **options: Any) -> bool:
            return plain.complete(key, **options)

    plain = MemoryStore()
    store = Direct(AsyncDictBackend(DictBackend()))

    async def scenario() -> None:
        asyncio.get_running_loop().set_task_factory(getattr(asyncio, "eager_task_factory"))  # noqa: B009

        async def effect() -> None:
            await until_async(lambda: store.renewals >= 3)

        await Idempotency(store, lease=0.15).run_async("k", effect)

    asyncio.run(scenario())


@pytest.mark.realtime
@pytest.mark.parametrize("error", [None, ValueError("no")])
def test_a_lost_lease_is_told_once(error: Exception | None) -> None:
    """Behaviour 37: by the renewer, which hears of it first, and not again when the function ends."""
    store = MemoryStore()
    events: list[str] = []
    guard = Idempotency(store, lease=0.15, observers=[lambda event: events.append(event.kind.value)])
    with pytest.raises((LeaseLostError, ValueError)):
        guard.run("k", lose, store, error, payload=None)
    until(lambda: events)  # the renewer tells the function first, and observers last
    assert events == ["lease_lost"]


@pytest.mark.realtime
@pytest.mark.parametrize(("declared", "kind"), [(True, "failed"), (False, "result_lost")])
def test_an_outcome_that_is_stored_late_is_told_as_what_it_is(declared: bool, kind: str) -> None:
    """Behaviours 33, 37: a declared error, or one that could not be kept, is no value."""
    store = FlakyStore(MemoryStore(), [("complete", 1, "before"), ("complete", 2, "before"), ("complete", 3, "before")])
    events: list[str] = []
    told = threading.Event()

    def observe(event: Event) -> None:
        events.append(event.kind.value)
        if event.kind.value == kind:
            told.set()

    def fail() -> object:
        if declared:
            raise LookupError("out of stock")
        return threading.Lock()

    guard = Idempotency(store, lease=0.1, replay_errors=LookupError, observers=[observe])
    with pytest.raises((LookupError, ResultNotStoredError)):
        guard.run("k", fail)
    assert told.wait(20)
    assert "executed" not in events
