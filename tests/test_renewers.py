"""What may go wrong around a renewer: late answers, observers that exit, stores that cancel, eager tasks, crowds."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
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
)
from idempo.hub import hub_of
from idempo.renewal import Schedule
from idempo.stores.cas import AsyncCasStore
from idempo.testing import FlakyStore
from idempo.testing.backend import AsyncDictBackend, DictBackend
from tests.async_support import until as until_async


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
